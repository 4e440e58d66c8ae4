//! Facility `timer`: the local APIC's deadline, delegated to KVM. ABI: `hypercall-abi/src/abi/timer.rs`.
//!
//! KVM has the device; here is only whether this KVM has its TSC-deadline mode.

use kvm_ioctls::{Cap, Kvm};
use paravane_abi::call::Status;
use paravane_abi::registry as reg;

use super::{Args, Facility, Reply};
use crate::config::FacilitySet;

/// The facility.
#[derive(Debug)]
pub struct Timer;

/// `set`, without the facility where this host's KVM has no TSC-deadline mode.
#[must_use]
pub fn delegable(kvm: &Kvm, set: FacilitySet) -> FacilitySet {
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        set
    } else {
        set.without(reg::FACILITY_TIMER)
    }
}

impl Facility for Timer {
    fn id(&self) -> u32 {
        reg::FACILITY_TIMER
    }

    fn call(&self, _function: u32, _args: &Args) -> Reply {
        Reply::Resume(Err(Status::NotSupported))
    }
}
