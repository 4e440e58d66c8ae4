//! Pausing a machine: every thread that runs the guest, or works on its memory, stands still.
//!
//! # How it works
//!
//! Such a thread is a *worker*: each vCPU, the poller of exitless rings, the event loop. Between two pieces of work it
//! looks at a flag, and parks where a pause is wanted. A worker without work (a processor that is off, a poller without a
//! promise) rests, and needs leave to begin again. So the machine stands still once nobody works any more.
//!
//! A vCPU is inside KVM most of the time: a signal brings it out. One that arrives just before `KVM_RUN` is lost, hence
//! it is sent again until the vCPU has parked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::signal::SIGRTMIN;

/// How often workers that still work get their signal.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// A worker's place, from [`Pause::vcpu`], [`Pause::poller`] or [`Pause::event_loop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worker {
    /// Without work.
    Rests,
    /// The system's id of its thread.
    Works(libc::pid_t),
    /// Waits for the end of the pause.
    Parked,
}

#[derive(Debug)]
struct State {
    workers: Vec<Worker>,
    ended: bool,
}

/// Who works on one machine, and whether all shall stand still.
#[derive(Debug)]
pub struct Pause {
    /// Written under the lock; read without it by whoever works.
    wanted: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Default for Pause {
    /// That of a machine with one vCPU.
    fn default() -> Self {
        Self::new(1)
    }
}

impl Pause {
    /// For a machine with so many vCPUs, a poller and an event loop.
    #[must_use]
    pub fn new(vcpus: u8) -> Self {
        Self {
            wanted: AtomicBool::new(false),
            state: Mutex::new(State {
                workers: vec![Worker::Rests; usize::from(vcpus) + 2],
                ended: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// The place of vCPU `id`.
    #[must_use]
    pub const fn vcpu(id: usize) -> Place {
        Place(id + 2)
    }

    /// The place of the poller.
    #[must_use]
    pub const fn poller() -> Place {
        Place(0)
    }

    /// The place of the event loop.
    #[must_use]
    pub const fn event_loop() -> Place {
        Place(1)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the machine stands still, or is about to.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Begins to work, after the pause where there is one.
    pub fn begin(&self, place: Place) {
        let mut state = self.lock();
        while self.is_wanted() && !state.ended {
            state.workers[place.0] = Worker::Parked;
            self.changed.notify_all();
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.workers[place.0] = Worker::Works(this_thread());
    }

    /// Begins to work unless there is a pause; whether it has.
    pub fn try_begin(&self, place: Place) -> bool {
        let mut state = self.lock();
        if self.is_wanted() {
            return false;
        }
        state.workers[place.0] = Worker::Works(this_thread());
        true
    }

    /// Between two pieces of work: parks where a pause is wanted.
    pub fn checkpoint(&self, place: Place) {
        if self.is_wanted() {
            self.begin(place);
        }
    }

    /// Has no work for now.
    pub fn rest(&self, place: Place) {
        self.lock().workers[place.0] = Worker::Rests;
        self.changed.notify_all();
    }

    /// Brings all workers to a stand. Returns how many would not stand still within `limit`; then all go on.
    ///
    /// # Errors
    ///
    /// That number.
    pub fn pause(&self, limit: Duration) -> Result<(), usize> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        self.wanted.store(true, Ordering::Relaxed);
        loop {
            let threads = state.workers.iter().filter_map(|worker| match worker {
                Worker::Works(thread) => Some(*thread),
                _ => None,
            });
            let working = threads.inspect(|thread| kick(*thread)).count();
            if working == 0 || state.ended {
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.wanted.store(false, Ordering::Relaxed);
                self.changed.notify_all();
                return Err(working);
            }
            state = self
                .changed
                .wait_timeout(state, KICK_INTERVAL)
                .map_or_else(|e| e.into_inner().0, |(state, _)| state);
        }
    }

    /// Lets all workers go on.
    pub fn resume(&self) {
        let _state = self.lock();
        self.wanted.store(false, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// The run has ended: nobody waits any more.
    pub fn end(&self) {
        self.lock().ended = true;
        self.resume();
    }
}

fn this_thread() -> libc::pid_t {
    // SAFETY: gettid has no arguments and cannot fail.
    unsafe { libc::gettid() }
}

/// Interrupts a thread of this process. One that has ended is none of ours any more, and gets nothing.
fn kick(thread: libc::pid_t) {
    // SAFETY: tgkill takes three numbers. The signal has a handler that does nothing, and only threads of this process
    // get it.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGRTMIN()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn nobody_works_during_a_pause() {
        let pause = Arc::new(Pause::new(2));
        let done = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        vmm_sys_util::signal::register_signal_handler(SIGRTMIN(), nothing).unwrap();
        let threads: Vec<_> = (0..2)
            .map(|id| {
                let (pause, done, stop) = (pause.clone(), done.clone(), stop.clone());
                std::thread::spawn(move || {
                    pause.begin(Pause::vcpu(id));
                    while !stop.load(Ordering::Relaxed) {
                        pause.checkpoint(Pause::vcpu(id));
                        done.fetch_add(1, Ordering::SeqCst);
                        std::thread::yield_now();
                    }
                    pause.rest(Pause::vcpu(id));
                })
            })
            .collect();
        for _ in 0..100 {
            pause.pause(Duration::from_secs(60)).unwrap();
            assert!(!pause.try_begin(Pause::event_loop()));
            let before = done.load(Ordering::SeqCst);
            std::thread::yield_now();
            assert_eq!(done.load(Ordering::SeqCst), before);
            pause.resume();
            while done.load(Ordering::SeqCst) == before {
                std::thread::yield_now();
            }
        }
        assert!(pause.try_begin(Pause::event_loop()));
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|t| t.join().unwrap());
        // The event loop has not parked.
        assert_eq!(pause.pause(Duration::ZERO), Err(1));
        assert!(!pause.is_wanted());
    }

    #[test]
    fn the_end_of_the_run_ends_the_pause() {
        let pause = Arc::new(Pause::new(1));
        pause.pause(Duration::ZERO).unwrap();
        let worker = {
            let pause = pause.clone();
            std::thread::spawn(move || pause.begin(Pause::vcpu(0)))
        };
        pause.end();
        worker.join().unwrap();
    }
}
