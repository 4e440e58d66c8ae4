//! Confinement: what the process gives up before a guest runs.
//!
//! # How it works
//!
//! [`descriptors`] closes what the process has inherited beside its standard streams, limits how many it can have, and sees to it that a VMM that
//! dies leaves no core with a guest's memory in it. [`process`] then gives up, for good and for all threads, all files but those that the run still
//! needs ([`files`], Landlock), and all system calls but those that a VMM makes once its machine is built ([`calls`], seccomp). The threads that serve
//! the guest give up more ([`thread`]). A call that is not allowed ends the process, and its name is told.
//!
//! A kernel that lacks one of the two is a host's policy and no error: the run goes on, and says what it lacks.

mod calls;
mod files;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::Config;
pub use calls::{Thread, thread};

/// The most descriptors of a VMM: a guest of many vCPUs and devices has a few hundred.
const DESCRIPTORS_MAX: libc::rlim_t = 1024;

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
    /// The kernel refuses a filter though it has seccomp.
    #[error("system calls cannot be given up: {0}; --no-sandbox does without")]
    Filter(#[from] seccompiler::Error),
    /// A filter that makes no sense.
    #[error("the list of system calls is wrong: {0}")]
    List(#[from] seccompiler::BackendError),
    /// The kernel refuses Landlock's rules though it has Landlock.
    #[error("files cannot be given up: {0}; --no-sandbox does without")]
    Files(#[from] landlock::RulesetError),
}

/// What this host's kernel cannot do for a VMM's confinement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lack {
    /// `CONFIG_SECCOMP_FILTER`.
    Seccomp,
    /// `CONFIG_SECURITY_LANDLOCK`, and `landlock` among the kernel's security modules.
    Landlock,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seccomp => "this host's kernel has no seccomp (CONFIG_SECCOMP_FILTER), so the VMM keeps all system calls",
            Self::Landlock => "this host's kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, lsm=landlock,…), so the VMM keeps all files of its user",
        })
    }
}

/// What this host's kernel lacks, without giving anything up.
#[must_use]
pub fn lacks() -> Vec<Lack> {
    let seccomp = (!calls::are_there()).then_some(Lack::Seccomp);
    let landlock = (!files::are_there()).then_some(Lack::Landlock);
    seccomp.into_iter().chain(landlock).collect()
}

/// What a run still has to do once its machine is built.
#[derive(Debug)]
pub struct Needs<'a> {
    /// What is run.
    pub config: &'a Config,
    /// The machine can start again.
    pub restarts: bool,
    /// Files that may have to be removed at the end: sockets, a core that nobody needed.
    pub removes: Vec<&'a Path>,
}

fn checked(what: &'static str, result: libc::c_int) -> Result<(), ConfineError> {
    if result == 0 {
        return Ok(());
    }
    let reason = io::Error::last_os_error();
    Err(ConfineError::System { what, reason })
}

fn limit(what: &'static str, resource: u32, most: libc::rlim_t) -> Result<(), ConfineError> {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: the call reads one structure, which lives.
    checked(what, unsafe { libc::setrlimit(resource, &raw const limit) })
}

/// Closes all descriptors but the standard streams, and limits their number, and the size of the process's own core to nothing. For the
/// beginning, when the process has opened nothing itself.
///
/// # Errors
///
/// [`ConfineError::System`].
pub fn descriptors() -> Result<(), ConfineError> {
    limit("cores", libc::RLIMIT_CORE, 0)?;
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes one structure, which lives.
    checked("descriptors", unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut now)
    })?;
    let most = DESCRIPTORS_MAX.min(now.rlim_max);
    limit("descriptors", libc::RLIMIT_NOFILE, most)?;
    // SAFETY: the descriptors from 3 on are nobody's in this process yet.
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    checked("descriptors", closed)
}

/// Gives up what a machine that is built does not need, and returns what this host's kernel could not do. For the process's first thread, before the
/// guest runs. What has been given up stays so: a second time nothing is to be done.
///
/// # Errors
///
/// [`ConfineError`].
pub fn process(needs: &Needs<'_>) -> Result<Vec<Lack>, ConfineError> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let mut lacks = Vec::new();
    if !files::give_up(needs)? {
        lacks.push(Lack::Landlock);
    }
    if !calls::give_up()? {
        lacks.push(Lack::Seccomp);
    }
    Ok(lacks)
}

#[cfg(test)]
mod tests;
