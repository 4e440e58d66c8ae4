//! Files: none but those that the run still needs (Landlock).
//!
//! What is open already stays open. What is read at a path comes later: the kernel's symbols when the guest dies, and all that a machine is made of
//! where it can start again.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Needs;
use crate::config::Io;

/// What is asked for; an older kernel does what it knows of it.
const KNOWN: ABI = ABI::V6;

/// What the process says about itself and its host: `ctl` reports it, `gdb` and a guest's clock ask for it.
const READ: [&str; 5] = [
    "/proc/self/statm",
    "/proc/cpuinfo",
    "/proc/sys/kernel/osrelease",
    "/etc/localtime",
    "/sys/module",
];

/// Whether this host's kernel has Landlock.
pub(super) fn are_there() -> bool {
    const VERSION: libc::c_uint = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: it asks for the version, and reads nothing.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, VERSION) };
    version > 0
}

/// Gives up all files but those of `needs`, TCP, and signals to others. False: the kernel has no Landlock.
pub(super) fn give_up(needs: &Needs<'_>) -> Result<bool, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = read | AccessFs::WriteFile | AccessFs::IoctlDev;
    for path in READ {
        rules = allow(rules, Path::new(path), read)?;
    }
    let config = needs.config;
    rules = allow(rules, &config.kernel, read)?;
    if needs.restarts {
        rules = allow(rules, Path::new("/dev/kvm"), device)?;
        if config.vsock.is_some() {
            rules = allow(rules, Path::new("/dev/vhost-vsock"), device)?;
        }
        if let Some(path) = &config.initrd {
            rules = allow(rules, path, read)?;
        }
        if config.io == Io::Kernel {
            rules = allow(rules, Path::new("/dev/vhost-net"), device)?;
        }
        for disk in &config.disks {
            let access = if disk.read_only { read } else { device };
            rules = allow(rules, &disk.path, access)?;
        }
    }
    for path in &needs.removes {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let folder = folder.unwrap_or(Path::new("."));
        rules = allow(rules, folder, AccessFs::RemoveFile.into())?;
    }
    let status = rules.restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// Keeps what there is at `path`; what is not there cannot be kept.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(fd) = PathFd::new(path) else {
        return Ok(rules);
    };
    let access = if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(KNOWN)
    };
    rules.add_rule(PathBeneath::new(fd, access))
}
