//! Facilities `irq`, `ipi`, `tlb` and `sched`, which are KVM's own. ABI: `hypercall-abi/src/abi/delegate.rs`.
//!
//! The host side is in KVM; here is what the guest is told of it. KVM's block with just the features
//! of these facilities is in [`crate::kvm::cpuid`].

use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::Status;
use paravane_abi::delegate::{DelegateInfo, kvm_features_of};
use paravane_abi::registry as reg;

use super::{Args, Facility, Reply};
use crate::config::FacilitySet;
use crate::kvm::cpuid::KVM_BASE;
use crate::memory::{Memory, MemoryError};
use crate::snapshot::Saved;

/// The facilities that can be delegated.
pub const DELEGATED: [u32; 4] = [
    reg::FACILITY_IRQ,
    reg::FACILITY_IPI,
    reg::FACILITY_TLB,
    reg::FACILITY_SCHED,
];

/// One of the facilities.
#[derive(Debug)]
pub struct Delegate {
    id: u32,
    features: u32,
}

impl Delegate {
    /// Those of `set`.
    pub fn of(set: FacilitySet) -> impl Iterator<Item = Box<dyn Facility>> {
        let features = kvm_features_of(set.word());
        DELEGATED
            .into_iter()
            .filter(move |id| set.has(*id))
            .map(move |id| Box::new(Self { id, features }) as Box<dyn Facility>)
    }
}

impl Saved for Delegate {}

impl Facility for Delegate {
    fn id(&self) -> u32 {
        self.id
    }

    /// Spec: PV-DELEGATE-1
    fn describe(&self, _memory: &Memory, info: &mut BootInfo) -> Result<(), MemoryError> {
        info.delegate = DelegateInfo {
            kvm_base: KVM_BASE,
            kvm_features: self.features,
            reserved: 0,
        };
        Ok(())
    }

    fn call(&self, _function: u32, _args: &Args) -> Reply {
        Reply::Resume(Err(Status::NotSupported))
    }
}
