//! Facility `timer`: the local APIC's deadline, delegated to KVM. ABI: `hypercall-abi/src/abi/timer.rs`.
//!
//! KVM has the device, and [`crate::kvm::cpuid::delegable`] says whether it has the TSC-deadline mode; there is
//! nothing to call.

use paravane_abi::call::Status;
use paravane_abi::registry as reg;

use super::{Args, Facility, Reply};
use crate::snapshot::Saved;

/// The facility.
#[derive(Debug)]
pub struct Timer;

impl Saved for Timer {}

impl Facility for Timer {
    fn id(&self) -> u32 {
        reg::FACILITY_TIMER
    }

    fn call(&self, _function: u32, _args: &Args) -> Reply {
        Reply::Resume(Err(Status::NotSupported))
    }
}
