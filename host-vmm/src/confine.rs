//! Confinement: what the process gives up before a guest runs.
//!
//! # How it works
//!
//! [`descriptors`] closes what the process has inherited beside its standard streams, and sees to it that a VMM that dies leaves no core with a
//! guest's memory in it. [`calls`] forbids, for good and to all threads, the system calls that a VMM has no use for once its machine
//! is built (seccomp): to run programs, to look into other processes, to change what it may, to mount, to load code into
//! the kernel, and to make sockets; where a network is to be made again after a restart, what that takes stays allowed. A call that is forbidden ends the process, and its name is told.
//!
//! # What it does not do
//!
//! This is a list of what is forbidden, and not of what is allowed: files stay within reach, as far as the user's own permissions go.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use syscalls::Sysno;

/// What no VMM calls once its machine is built.
const FORBIDDEN: &[Sysno] = &[
    Sysno::acct,
    Sysno::add_key,
    Sysno::adjtimex,
    Sysno::bpf,
    Sysno::chroot,
    Sysno::clock_adjtime,
    Sysno::clock_settime,
    Sysno::delete_module,
    Sysno::finit_module,
    Sysno::fsconfig,
    Sysno::fsmount,
    Sysno::fsopen,
    Sysno::init_module,
    Sysno::io_uring_setup,
    Sysno::ioperm,
    Sysno::iopl,
    Sysno::kcmp,
    Sysno::kexec_file_load,
    Sysno::kexec_load,
    Sysno::keyctl,
    Sysno::mount,
    Sysno::move_mount,
    Sysno::name_to_handle_at,
    Sysno::open_by_handle_at,
    Sysno::open_tree,
    Sysno::perf_event_open,
    Sysno::personality,
    Sysno::pidfd_getfd,
    Sysno::pidfd_open,
    Sysno::pivot_root,
    Sysno::process_vm_readv,
    Sysno::process_vm_writev,
    Sysno::ptrace,
    Sysno::quotactl,
    Sysno::reboot,
    Sysno::request_key,
    Sysno::setdomainname,
    Sysno::setgid,
    Sysno::setgroups,
    Sysno::sethostname,
    Sysno::setns,
    Sysno::setregid,
    Sysno::setresgid,
    Sysno::setresuid,
    Sysno::setreuid,
    Sysno::settimeofday,
    Sysno::setuid,
    Sysno::swapoff,
    Sysno::swapon,
    Sysno::syslog,
    Sysno::umount2,
    Sysno::unshare,
    Sysno::userfaultfd,
];

/// What passt does to confine itself, for a network that is made anew where the machine starts again.
const PASST: &[Sysno] = &[
    Sysno::mount,
    Sysno::pivot_root,
    Sysno::setgid,
    Sysno::setgroups,
    Sysno::setuid,
    Sysno::umount2,
    Sysno::unshare,
];

/// What only starting a guest's network needs.
const NETWORK: &[Sysno] = &[
    Sysno::bind,
    Sysno::connect,
    Sysno::execve,
    Sysno::execveat,
    Sysno::fork,
    Sysno::listen,
    Sysno::socket,
    Sysno::socketpair,
    Sysno::vfork,
];

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Descriptors or limits.
    #[error("{what} cannot be given up: {reason}; --no-sandbox does without")]
    System {
        /// What.
        what: &'static str,
        /// What the system says.
        reason: io::Error,
    },
    /// A kernel without seccomp, say.
    #[error(
        "system calls cannot be forbidden: {0}; the kernel must have CONFIG_SECCOMP_FILTER, or use --no-sandbox"
    )]
    Filter(#[from] seccompiler::Error),
    /// A filter that makes no sense.
    #[error("the list of forbidden system calls is wrong: {0}")]
    List(#[from] seccompiler::BackendError),
}

fn checked(what: &'static str, result: libc::c_int) -> Result<(), ConfineError> {
    if result == 0 {
        return Ok(());
    }
    let reason = io::Error::last_os_error();
    Err(ConfineError::System { what, reason })
}

/// Closes all descriptors but the standard streams, and limits the size of the process's own core to nothing. For the
/// beginning, when the process has opened nothing itself.
///
/// # Errors
///
/// [`ConfineError::System`].
pub fn descriptors() -> Result<(), ConfineError> {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call reads one structure, which lives.
    let limited = unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    checked("cores", limited)?;
    // SAFETY: the descriptors from 3 on are nobody's in this process yet.
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    checked("descriptors", closed)
}

/// Forbids what a machine that is built does not need, to all threads, and tells whoever breaks it. `network`: another one
/// is made when the machine starts again, and what makes it is a program that confines itself.
/// What has been forbidden stays so: a second time nothing is to be done.
///
/// # Errors
///
/// [`ConfineError`].
pub fn calls(network: bool) -> Result<(), ConfineError> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = tell;
    vmm_sys_util::signal::register_signal_handler(libc::SIGSYS, handler).map_err(|e| {
        ConfineError::System {
            what: "forbidden calls",
            reason: e.into(),
        }
    })?;
    seccompiler::apply_filter_all_threads(&filter(network)?)?;
    Ok(())
}

fn filter(network: bool) -> Result<BpfProgram, ConfineError> {
    let rules: BTreeMap<i64, Vec<_>> = FORBIDDEN
        .iter()
        .chain(NETWORK)
        .filter(|call| !network || !(NETWORK.contains(call) || PASST.contains(call)))
        .map(|call| (i64::from(call.id()), Vec::new()))
        .collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Trap,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

/// The number of the call that SIGSYS is about: the kernel's `si_syscall`, which the C library has no name for.
fn number(info: *const libc::siginfo_t) -> Option<usize> {
    const SI_SYSCALL: usize = 24;
    // SAFETY: the kernel gives a handler a whole siginfo_t, in which SIGSYS has its call at that place, aligned.
    let number = unsafe { info.byte_add(SI_SYSCALL).cast::<i32>().read() };
    usize::try_from(number).ok()
}

/// The handler: it does nothing that a handler may not, and does not return.
extern "C" fn tell(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let name = number(info).and_then(Sysno::new);
    let name = name.map_or("unknown to this program", |call| call.name());
    for text in [
        "\r\nparavane: the VMM has made the forbidden system call `",
        name,
        "`, and ends: its guest may have broken in, or --no-sandbox is needed\r\n",
    ] {
        // SAFETY: the text lives, and write may be called in a handler.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }
    // SAFETY: ends the process, and may be called in a handler.
    unsafe { libc::_exit(1) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What the confined process below is told to try.
    const TRY: &str = "PARAVANE_TEST_CONFINE";

    /// Not a test by itself: what a confined process does, for the one below.
    #[test]
    fn confined() {
        let Ok(what) = std::env::var(TRY) else { return };
        // A thread from before is confined as well.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let tries = what.clone();
        let before = std::thread::spawn(move || {
            wait.recv().unwrap();
            match tries.as_str() {
                // SAFETY: no arguments; it asks for nothing.
                "ptrace" => drop(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }),
                _ => {
                    std::fs::read("/proc/self/status").unwrap();
                    std::thread::spawn(|| ()).join().unwrap();
                }
            }
        });
        calls(what == "network").unwrap();
        go.send(()).unwrap();
        before.join().unwrap();
        std::process::exit(77);
    }

    #[test]
    fn a_forbidden_call_ends_the_process_and_is_named() {
        for (what, code) in [("ptrace", 1), ("nothing", 77), ("network", 77)] {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "confine::tests::confined", "--nocapture"])
                .env(TRY, what)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{what}: {text}");
            let named = text.contains("forbidden system call `ptrace`");
            assert_eq!(named, what == "ptrace", "{text}");
        }
    }

    #[test]
    fn programs_are_for_a_network_only() {
        assert_ne!(filter(true).unwrap(), filter(false).unwrap());
    }
}
