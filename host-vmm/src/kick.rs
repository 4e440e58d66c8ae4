//! The signal that brings a thread out of KVM, or out of its wait: its arrival is all.
//!
//! Whoever sends it sees first to its handler, without which it would end the process.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Once;
use std::thread::JoinHandle;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The signal, which has a handler.
fn signal() -> libc::c_int {
    static HANDLED: Once = Once::new();
    HANDLED.call_once(|| {
        let handled = register_signal_handler(SIGRTMIN(), nothing);
        // It is refused for signals that do not exist.
        assert_eq!(handled, Ok(()), "there are real-time signals");
    });
    SIGRTMIN()
}

/// To a thread of this process, by the system's id. One that has ended is none of ours any more, and gets nothing.
pub(crate) fn kick(thread: libc::pid_t) {
    // SAFETY: tgkill takes three numbers.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
}

/// To a thread that somebody holds the handle of.
pub(crate) fn kick_held<T>(thread: &JoinHandle<T>) {
    // SAFETY: the handle is held, so the thread's id is still valid.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), signal()) };
}
