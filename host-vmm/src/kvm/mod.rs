//! KVM itself: opening it, what a guest's CPUID says, a vCPU's state, and the host's own counters.

pub mod counters;
pub mod cpuid;
pub(crate) mod port_string;
pub mod vcpu_state;

use kvm_ioctls::{Cap, Kvm};

/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No device.
    #[error(
        "{DEVICE} does not exist: load kvm_intel or kvm_amd (and allow virtualization in the firmware), or use the reference host (--host reference)"
    )]
    Missing,
    /// No permission.
    #[error(
        "{DEVICE} cannot be opened: permission denied; add yourself to the group that owns it (`usermod -aG kvm $USER`) and log in again"
    )]
    Permission,
    /// Anything else.
    #[error("{DEVICE} cannot be opened: {0}")]
    Open(kvm_ioctls::Error),
    /// A KVM too old for us.
    #[error("this host's KVM lacks {0}, which Paravane needs; Linux 5.10 or later has it")]
    Capability(&'static str),
    /// A register of a snapshot.
    #[error(
        "this host's KVM does not set MSR {index:#x} to what it was: it is another KVM or another processor"
    )]
    Msr {
        /// Which.
        index: u32,
    },
    /// An ioctl failed.
    #[error("KVM refused to {what}: {reason}")]
    Ioctl {
        /// What was asked of it.
        what: &'static str,
        /// What it says.
        reason: kvm_ioctls::Error,
    },
}

/// Turns a failed ioctl into an error that says what was being done.
pub(crate) fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |reason| KvmError::Ioctl { what, reason }
}

/// Opens KVM and checks for what every profile needs.
///
/// # Errors
///
/// [`KvmError`]; each says what to do about it.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|e| match e.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Permission,
        _ => KvmError::Open(e),
    })?;
    for (cap, name) in [
        (Cap::SyncRegs, "KVM_CAP_SYNC_REGS"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
        (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
        (Cap::Pit2, "KVM_CAP_PIT2"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Capability(name));
        }
    }
    Ok(kvm)
}
