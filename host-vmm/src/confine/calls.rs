//! System calls: none but those that a VMM makes once its machine is built (seccomp).
//!
//! A thread that serves the guest has a shorter list than the process, and one that serves a device a shorter one than a vCPU's, which starts it. Lists
//! are in the order in which a thread of the next one has more.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use syscalls::Sysno;

use super::ConfineError;

/// What a device's thread calls: its transfers (a disk's ring is there already, and restricted), a port's clients, and what the language's runtime needs in any thread.
const WORKER: &[Sysno] = &[
    Sysno::accept4,
    Sysno::brk,
    Sysno::clock_gettime,
    Sysno::clock_nanosleep,
    Sysno::close,
    Sysno::epoll_ctl,
    Sysno::epoll_pwait,
    Sysno::epoll_wait,
    Sysno::exit,
    Sysno::exit_group,
    Sysno::fallocate,
    Sysno::fcntl,
    Sysno::fdatasync,
    Sysno::fsync,
    Sysno::ftruncate,
    Sysno::futex,
    Sysno::getpid,
    Sysno::getrandom,
    Sysno::gettid,
    Sysno::io_uring_enter,
    Sysno::lseek,
    Sysno::madvise,
    Sysno::mmap,
    Sysno::mprotect,
    Sysno::mremap,
    Sysno::munmap,
    Sysno::nanosleep,
    Sysno::poll,
    Sysno::ppoll,
    Sysno::pread64,
    Sysno::preadv,
    Sysno::pwrite64,
    Sysno::pwritev,
    Sysno::read,
    Sysno::readv,
    Sysno::recvfrom,
    Sysno::recvmsg,
    Sysno::restart_syscall,
    Sysno::rseq,
    Sysno::rt_sigaction,
    Sysno::rt_sigprocmask,
    Sysno::rt_sigreturn,
    Sysno::sched_getaffinity,
    Sysno::sched_yield,
    Sysno::sendmsg,
    Sysno::sendto,
    Sysno::set_robust_list,
    Sysno::sigaltstack,
    Sysno::write,
    Sysno::writev,
];

/// What a vCPU's thread calls beside: it starts and ends devices, and explains a guest that dies with its kernel's symbols.
const VCPU: &[Sysno] = &[
    Sysno::clone,
    Sysno::clone3,
    Sysno::epoll_create1,
    Sysno::eventfd2,
    Sysno::fstat,
    Sysno::newfstatat,
    Sysno::openat,
    Sysno::prctl,
    Sysno::seccomp,
    Sysno::statx,
];

/// What the others call beside: sockets that are there already, files of [`super::files`], another machine where the guest starts again.
const PROCESS: &[Sysno] = &[
    Sysno::dup,
    Sysno::flock,
    Sysno::fstatfs,
    Sysno::getcwd,
    Sysno::getdents64,
    Sysno::getpeername,
    Sysno::getsockname,
    Sysno::getsockopt,
    Sysno::kill,
    Sysno::mincore,
    Sysno::pipe2,
    Sysno::prlimit64,
    Sysno::readlink,
    Sysno::setsockopt,
    Sysno::shutdown,
    Sysno::signalfd4,
    Sysno::timerfd_create,
    Sysno::timerfd_settime,
    Sysno::uname,
    Sysno::unlink,
    Sysno::wait4,
    Sysno::waitid,
];

/// Requests of `ioctl` beside KVM's and vhost's: the terminal's settings, and sockets that do not block.
const IOCTLS: [libc::Ioctl; 6] = [
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TIOCGWINSZ,
    libc::FIONBIO,
];

/// The types of KVM's requests and of vhost's, 0xae and 0xaf in bits 8 to 15, but for their last bit.
const KVM_AND_VHOST: u64 = 0xae00;

/// A thread that serves the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// A vCPU, or the poller of exitless rings, which carries out a vCPU's calls.
    Vcpu,
    /// A device.
    Worker,
}

/// The filters of such threads, where the process is confined.
static THREADS: OnceLock<[BpfProgram; 2]> = OnceLock::new();

/// Whether this host's kernel has seccomp, and the action that is asked of it.
pub(super) fn are_there() -> bool {
    let action: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: the call reads one number, which lives.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    result == 0
}

/// Gives up calls in all threads, and tells whoever makes one. False: the kernel has no seccomp.
pub(super) fn give_up() -> Result<bool, ConfineError> {
    if !are_there() {
        return Ok(false);
    }
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = tell;
    vmm_sys_util::signal::register_signal_handler(libc::SIGSYS, handler).map_err(|e| {
        ConfineError::System {
            what: "system calls",
            reason: e.into(),
        }
    })?;
    seccompiler::apply_filter_all_threads(&allowed(&[WORKER, VCPU, PROCESS])?)?;
    // Done once: the process is confined once.
    let _ = THREADS.set([allowed(&[WORKER, VCPU])?, allowed(&[WORKER])?]);
    Ok(true)
}

/// Gives up, in this thread, what its kind has no use for. Nothing where the process is not confined.
pub fn thread(kind: Thread) {
    if let Some([vcpu, worker]) = THREADS.get() {
        let filter = match kind {
            Thread::Vcpu => vcpu,
            Thread::Worker => worker,
        };
        // A kernel that is short of memory: what the whole process has given up stays so.
        let _ = seccompiler::apply_filter(filter);
    }
}

/// These calls, and signals to this process's own threads, and the requests of [`IOCTLS`], KVM and vhost.
fn allowed(lists: &[&[Sysno]]) -> Result<BpfProgram, ConfineError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = lists
        .concat()
        .iter()
        .map(|call| (i64::from(call.id()), Vec::new()))
        .collect();
    let rule = |argument, operator, value| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    let own = rule(0, SeccompCmpOp::Eq, std::process::id().into())?;
    rules.insert(libc::SYS_tgkill, vec![own]);
    let mut requests = vec![rule(1, SeccompCmpOp::MaskedEq(0xfe00), KVM_AND_VHOST)?];
    for request in IOCTLS {
        requests.push(rule(1, SeccompCmpOp::Eq, request)?);
    }
    rules.insert(libc::SYS_ioctl, requests);
    let (others, these) = (SeccompAction::Trap, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, others, these, TargetArch::x86_64)?;
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
    let number = number(info).unwrap_or_default();
    let name = Sysno::new(number).map_or("unknown to this program", |call| call.name());
    let mut text = [0; 256];
    let mut rest = &mut text[..];
    // Formatting into memory takes no lock and no memory. What does not fit is left out.
    let _ = write!(
        rest,
        "\r\nparavane: the VMM has made the forbidden system call `{name}` ({number}), and ends: its guest may have broken in, or --no-sandbox is needed\r\n"
    );
    let left = rest.len();
    let length = text.len() - left;
    // SAFETY: the text lives, and write may be called in a handler.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), length) };
    // SAFETY: ends the process, and may be called in a handler.
    unsafe { libc::_exit(1) }
}

/// Makes this process's kernel one without seccomp, as far as the process can tell.
#[cfg(test)]
pub(super) fn pretend_to_lack() {
    let rules = BTreeMap::from([(libc::SYS_seccomp, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, missing, TargetArch::x86_64);
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}
