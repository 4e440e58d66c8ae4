//! Pausing a machine: every thread that runs the guest, or works on its memory, stands still.
//!
//! # How it works
//!
//! Such a thread is a *worker*: each vCPU, the poller of exitless rings, the event loop, each virtio device. Between
//! two pieces of work it looks at a flag, and parks where a pause is wanted. A worker without work (a processor that is
//! off, a poller without a promise) rests, and needs leave to begin again. So the machine stands still once nobody
//! works any more.
//!
//! A vCPU is inside KVM most of the time: a signal brings it out. One that arrives just before `KVM_RUN` is lost, hence
//! it is sent again until the vCPU has parked.
//!
//! Several can want the pause, for reasons of their own ([`Holder`]); the machine goes on once none of them does.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::kick::kick;
use crate::sync::{lock, wait};

/// How often workers that still work get their signal.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// A worker's place, from [`Pause::vcpu`], [`Pause::poller`] or [`Pause::event_loop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(usize);

/// Who wants the machine to stand still: a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Holder {
    /// A client of the control socket.
    Client = 1,
    /// The debugger.
    Debugger = 2,
    /// A core or a snapshot that is being written.
    Core = 4,
}

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
    /// The only one that the debugger lets go on.
    only: Option<Place>,
    ended: bool,
}

/// Who works on one machine, and whether all shall stand still.
#[derive(Debug)]
pub struct Pause {
    /// Whose pause it is, by [`Holder`]. Written under the lock; read without it by whoever works.
    wanted: AtomicU8,
    state: Mutex<State>,
    changed: Condvar,
    /// Written to when a pause is over.
    over: Option<EventFd>,
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
            wanted: AtomicU8::new(0),
            state: Mutex::new(State {
                workers: vec![Worker::Rests; usize::from(vcpus) + 2],
                only: None,
                ended: false,
            }),
            changed: Condvar::new(),
            over: None,
        }
    }

    /// The same, which tells the end of a pause by `event`, to a worker that waits for other things, too, and does not park
    /// ([`Pause::try_begin`]).
    #[must_use]
    pub fn telling(mut self, event: EventFd) -> Self {
        self.over = Some(event);
        self
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

    /// A place for one more worker.
    #[must_use]
    pub fn add_worker(&self) -> Place {
        let mut state = lock(&self.state);
        state.workers.push(Worker::Rests);
        Place(state.workers.len() - 1)
    }

    /// Whether the machine stands still, or is about to.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) != 0
    }

    /// Whether this worker has to stand still.
    #[must_use]
    pub fn holds(&self, place: Place) -> bool {
        self.is_wanted() && self.holds_in(&lock(&self.state), place)
    }

    fn holds_in(&self, state: &State, place: Place) -> bool {
        let wanted = self.wanted.load(Ordering::Relaxed);
        let stepped = wanted == Holder::Debugger as u8 && state.only == Some(place);
        wanted != 0 && !stepped && !state.ended
    }

    /// Begins to work, after the pause where there is one.
    pub fn begin(&self, place: Place) {
        self.begin_unless(place, || false);
    }

    /// The same of a worker that somebody may want to end: it does not wait where `ends` says so. Whoever makes that true,
    /// and waits for the worker, [`wake`](Self::wake)s it: the worker that waits would not stand still before it has ended.
    pub fn begin_unless(&self, place: Place, ends: impl Fn() -> bool) {
        let mut state = lock(&self.state);
        while self.holds_in(&state, place) && !ends() {
            state.workers[place.0] = Worker::Parked;
            self.changed.notify_all();
            state = wait(&self.changed, state);
        }
        state.workers[place.0] = Worker::Works(this_thread());
    }

    /// Begins to work unless there is a pause; whether it has. After a refusal the pause's end is told ([`Pause::telling`]).
    pub fn try_begin(&self, place: Place) -> bool {
        let mut state = lock(&self.state);
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

    /// Has all that are parked look whether they are to end.
    pub fn wake(&self) {
        let _state = lock(&self.state);
        self.changed.notify_all();
    }

    /// Has no work for now.
    pub fn rest(&self, place: Place) {
        lock(&self.state).workers[place.0] = Worker::Rests;
        self.changed.notify_all();
    }

    /// Wants a pause, and does not wait for it.
    pub fn want(&self, holder: Holder) {
        let mut state = lock(&self.state);
        if holder == Holder::Debugger {
            state.only = None;
        }
        self.wanted.fetch_or(holder as u8, Ordering::Relaxed);
    }

    /// Brings all workers to a stand. Returns how many would not stand still within `limit`; then `holder` has no pause.
    ///
    /// # Errors
    ///
    /// That number.
    pub fn pause(&self, holder: Holder, limit: Duration) -> Result<(), usize> {
        let deadline = Instant::now() + limit;
        self.want(holder);
        let mut state = lock(&self.state);
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
                drop(state);
                self.resume(holder);
                return Err(working);
            }
            state = self
                .changed
                .wait_timeout(state, KICK_INTERVAL)
                .map_or_else(|e| e.into_inner().0, |(state, _)| state);
        }
    }

    /// Lets all workers go on, as far as it is up to `holder`.
    pub fn resume(&self, holder: Holder) {
        let _state = lock(&self.state);
        let before = self.wanted.fetch_and(!(holder as u8), Ordering::Relaxed);
        self.changed.notify_all();
        if before == holder as u8
            && let Some(over) = &self.over
        {
            // A full counter has told it.
            let _ = over.write(1);
        }
    }

    /// Lets one worker go on, for the debugger; the others stand still.
    pub fn resume_only(&self, place: Place) {
        lock(&self.state).only = Some(place);
        self.changed.notify_all();
    }

    /// The run has ended: nobody waits any more.
    pub fn end(&self) {
        lock(&self.state).ended = true;
        self.wanted.store(0, Ordering::Relaxed);
        self.changed.notify_all();
    }
}

fn this_thread() -> libc::pid_t {
    // SAFETY: gettid has no arguments and cannot fail.
    unsafe { libc::gettid() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    #[test]
    fn nobody_works_during_a_pause() {
        let pause = Arc::new(Pause::new(2));
        let done = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
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
            pause
                .pause(Holder::Client, Duration::from_secs(60))
                .unwrap();
            assert!(!pause.try_begin(Pause::event_loop()));
            let before = done.load(Ordering::SeqCst);
            std::thread::yield_now();
            assert_eq!(done.load(Ordering::SeqCst), before);
            pause.resume(Holder::Client);
            while done.load(Ordering::SeqCst) == before {
                std::thread::yield_now();
            }
        }
        assert!(pause.try_begin(Pause::event_loop()));
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|t| t.join().unwrap());
        // The event loop has not parked.
        assert_eq!(pause.pause(Holder::Client, Duration::ZERO), Err(1));
        assert!(!pause.is_wanted());
    }

    #[test]
    fn a_pause_lasts_as_long_as_somebody_wants_it_and_its_end_is_told() {
        let over = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let pause = Pause::new(2).telling(over.try_clone().unwrap());
        pause.pause(Holder::Client, Duration::ZERO).unwrap();
        pause.pause(Holder::Core, Duration::ZERO).unwrap();
        pause.resume(Holder::Core);
        assert!(pause.holds(Pause::vcpu(0)));
        assert!(!pause.try_begin(Pause::event_loop()));
        assert!(over.read().is_err());
        pause.resume(Holder::Client);
        assert!(!pause.holds(Pause::vcpu(0)));
        assert_eq!(over.read().unwrap(), 1);
    }

    #[test]
    fn the_debugger_lets_one_processor_go_on_unless_others_want_the_pause() {
        let pause = Pause::new(2);
        pause.pause(Holder::Debugger, Duration::ZERO).unwrap();
        pause.resume_only(Pause::vcpu(1));
        assert!(!pause.holds(Pause::vcpu(1)));
        assert!(pause.holds(Pause::vcpu(0)));
        pause.pause(Holder::Client, Duration::ZERO).unwrap();
        assert!(pause.holds(Pause::vcpu(1)));
        pause.resume(Holder::Client);
        pause.pause(Holder::Debugger, Duration::ZERO).unwrap();
        assert!(pause.holds(Pause::vcpu(1)));
    }

    #[test]
    fn the_end_of_the_run_ends_the_pause() {
        let pause = Arc::new(Pause::new(1));
        pause.pause(Holder::Client, Duration::ZERO).unwrap();
        let worker = {
            let pause = pause.clone();
            std::thread::spawn(move || pause.begin(Pause::vcpu(0)))
        };
        pause.end();
        worker.join().unwrap();
    }
}
