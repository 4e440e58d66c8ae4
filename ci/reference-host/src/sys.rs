//! The few system calls that the standard library lacks. All `unsafe` code of this crate is here.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Starts a child that dies with this thread, in a process group of its own (the terminal's Ctrl-C is ours to handle),
/// and that inherits `files` under the numbers they have here.
pub(crate) fn spawn_bound(command: &mut Command, files: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    command.process_group(0);
    // SAFETY: between fork and exec the closure only makes system calls that are async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                return Err(io::Error::last_os_error());
            }
            for &file in &files {
                if libc::fcntl(file, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn()
}

/// As [`spawn_bound`], on one of the CPUs that this process may use. Which one goes by the child's process id, so that
/// several such children do not all share one.
pub(crate) fn spawn_on_one_cpu(
    command: &mut Command,
    files: &[BorrowedFd<'_>],
) -> io::Result<Child> {
    // SAFETY: between fork and exec the function only makes system calls, and allocates nothing.
    unsafe { command.pre_exec(stay_on_one_cpu) };
    spawn_bound(command, files)
}

/// Takes all CPUs but one from the calling process.
fn stay_on_one_cpu() -> io::Result<()> {
    // SAFETY: CPU sets of zeroes are empty sets.
    let (mut allowed, mut one): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { mem::zeroed() };
    let size = mem::size_of::<libc::cpu_set_t>();
    // SAFETY: the pointer and the size describe `allowed`.
    if unsafe { libc::sched_getaffinity(0, size, &raw mut allowed) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every number that is asked for is below the set's size in bits.
    let mut cpus = (0..8 * size).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &allowed) });
    let count = cpus.clone().count().max(1);
    let turn = usize::try_from(std::process::id()).unwrap_or(0) % count;
    if let Some(cpu) = cpus.nth(turn) {
        // SAFETY: `cpu` is below the set's size in bits.
        unsafe { libc::CPU_SET(cpu, &mut one) };
        // SAFETY: the pointer and the size describe `one`.
        if unsafe { libc::sched_setaffinity(0, size, &raw const one) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Waits until one of two files is readable or at its end; says which are.
pub(crate) fn wait_readable(
    first: BorrowedFd<'_>,
    second: BorrowedFd<'_>,
) -> io::Result<(bool, bool)> {
    let entry = |file: BorrowedFd<'_>| libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut entries = [entry(first), entry(second)];
    loop {
        // SAFETY: the pointer and the length describe `entries`, which outlives the call.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) };
        if ready >= 0 {
            return Ok((entries[0].revents != 0, entries[1].revents != 0));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The last signal that asked this process to end while a [`SignalGuard`] was alive; 0 when none did.
static PENDING: AtomicI32 = AtomicI32::new(0);

const SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

extern "C" fn note_signal(signal: i32) {
    PENDING.store(signal, Ordering::Relaxed);
}

/// The guards that live, and what was there before the first of them.
static GUARDS: Mutex<(u32, Vec<(i32, libc::sigaction)>)> = Mutex::new((0, Vec::new()));

/// While one lives, Ctrl-C and its like are noted and not obeyed, so that the run can clean up. What was there before
/// is put back at the end of the last one; a signal that was ignored stays ignored.
pub(crate) struct SignalGuard(());

impl SignalGuard {
    pub(crate) fn new() -> Self {
        let mut guards = GUARDS.lock().unwrap_or_else(PoisonError::into_inner);
        guards.0 += 1;
        if guards.0 > 1 {
            return Self(());
        }
        PENDING.store(0, Ordering::Relaxed);
        for signal in SIGNALS {
            // SAFETY: all zeroes is a valid `sigaction`: default action, empty mask, no flags.
            let mut old: libc::sigaction = unsafe { mem::zeroed() };
            // SAFETY: a null new action only reads the present one into `old`.
            unsafe { libc::sigaction(signal, ptr::null(), &raw mut old) };
            if old.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            let handler: extern "C" fn(i32) = note_signal;
            // SAFETY: as above, all zeroes is valid.
            let mut new: libc::sigaction = unsafe { mem::zeroed() };
            new.sa_sigaction = handler as libc::sighandler_t;
            new.sa_flags = libc::SA_RESTART;
            // SAFETY: the handler stores to an atomic and does nothing else, so it may run at any time.
            unsafe { libc::sigaction(signal, &raw const new, ptr::null_mut()) };
            guards.1.push((signal, old));
        }
        Self(())
    }

    /// The signal that came, if one did.
    pub(crate) fn pending(&self) -> Option<i32> {
        match PENDING.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal),
        }
    }
}

impl Drop for SignalGuard {
    fn drop(&mut self) {
        let mut guards = GUARDS.lock().unwrap_or_else(PoisonError::into_inner);
        guards.0 -= 1;
        if guards.0 > 0 {
            return;
        }
        for (signal, old) in guards.1.drain(..) {
            // SAFETY: `old` is what the kernel gave for this signal, handler and flags included.
            unsafe { libc::sigaction(signal, &raw const old, ptr::null_mut()) };
        }
    }
}

/// The frequency of this machine's time stamp counter, in kHz, as the kernel's monotonic clock has it.
pub(crate) fn tsc_khz() -> u64 {
    const SPAN: Duration = Duration::from_millis(20);
    let (counter, time) = tsc_and_time();
    thread::sleep(SPAN);
    let (counter_later, time_later) = tsc_and_time();
    let nanoseconds = (time_later - time).max(1);
    u64::try_from(u128::from(counter_later - counter) * 1_000_000 / nanoseconds).unwrap_or(0)
}

/// The time stamp counter, and the monotonic clock in nanoseconds, at the same moment: the closest of a few tries, for
/// a try may be interrupted.
fn tsc_and_time() -> (u64, u128) {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    let counter = || unsafe { std::arch::x86_64::_rdtsc() };
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..20 {
        let before = counter();
        let time = monotonic_time();
        let after = counter();
        if after - before < best.0 {
            best = (after - before, before.midpoint(after), time);
        }
    }
    (best.1, best.2)
}

fn monotonic_time() -> u128 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a whole `timespec`, which outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    u128::from(time.tv_sec.unsigned_abs()) * 1_000_000_000 + u128::from(time.tv_nsec.unsigned_abs())
}

/// How many files this process and its children may have open, at the most.
pub(crate) fn open_files_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a whole `rlimit`, which outlives the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_max
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
