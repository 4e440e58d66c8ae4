//! An event: the interrupt vector, and the processor, that a guest has named for something that happens on the host's side.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi};
use kvm_ioctls::VmFd;
use paravane_abi::call::{CallResult, Status};
use paravane_abi::registry as reg;

use super::{Args, take};
use crate::kvm::{KvmError, refused};
use crate::snapshot::PartError;

/// A vector on a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTarget {
    /// Interrupt vector.
    pub vector: u8,
    /// APIC id.
    pub apic_id: u8,
}

impl EventTarget {
    /// The message that is this vector to this processor.
    fn message(self) -> kvm_msi {
        kvm_msi {
            address_lo: 0xfee0_0000 | u32::from(self.apic_id) << 12,
            data: u32::from(self.vector),
            ..Default::default()
        }
    }

    /// Sends the processor the vector.
    pub(crate) fn raise(self, vm: &VmFd) {
        // A guest that has switched its LAPIC off does not get the event: as on hardware.
        let _ = vm.signal_msi(self.message());
    }
}

/// Tells KVM which interrupt each line is, of those that have no interrupt controller.
pub(crate) fn route(
    vm: &VmFd,
    lines: impl IntoIterator<Item = (u32, EventTarget)>,
) -> Result<(), KvmError> {
    let routes = lines.into_iter().map(|(gsi, target)| {
        let msi = target.message();
        let mut route = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        route.u.msi.address_lo = msi.address_lo;
        route.u.msi.data = msi.data;
        route
    });
    let routes = KvmIrqRouting::from_entries(&routes.collect::<Vec<_>>())
        .map_err(|_| KvmError::Capability("interrupt routes"))?;
    vm.set_gsi_routing(&routes)
        .map_err(refused("route a device's interrupt"))
}

/// Where an event goes, if anywhere. One word, so that setting it is atomic.
#[derive(Debug, Default)]
pub struct Event(AtomicU64);

impl Event {
    /// The call with which a guest that has `vcpus` processors names vector and APIC id; vector 0: none.
    ///
    /// # Errors
    ///
    /// [`Status::InvalidParam`]. Spec: PV-CONSOLE-11, PV-CLOCK-13, PV-SMP-12, PV-MEM-11,
    /// PV-DEV-5
    pub fn name(&self, args: &Args, vcpus: u8) -> CallResult {
        let [vector, apic_id] = take(args)?;
        let known =
            vector == 0 || (reg::EVENT_VECTOR_FIRST..=reg::EVENT_VECTOR_LAST).contains(&vector);
        if !known || apic_id >= u64::from(vcpus) {
            return Err(Status::InvalidParam);
        }
        self.0.store(vector | apic_id << 8, Ordering::SeqCst);
        Ok(0)
    }

    /// The same target as `other` has.
    pub fn copy(&self, other: &Self) {
        self.0
            .store(other.0.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// The word that a snapshot has of it.
    #[must_use]
    pub fn word(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Takes on the word of a snapshot, in a guest that has `vcpus` processors.
    ///
    /// # Errors
    ///
    /// No guest could have named this.
    pub fn set_word(&self, word: u64, vcpus: u8) -> Result<(), PartError> {
        let args = [word & 0xff, word >> 8, 0, 0, 0, 0];
        let named = self.name(&args, vcpus);
        named.map_err(|_| PartError(format!("an event {word:#x} cannot be")))?;
        Ok(())
    }

    /// What the guest has named.
    #[must_use]
    pub fn target(&self) -> Option<EventTarget> {
        let [vector, apic_id, ..] = self.0.load(Ordering::SeqCst).to_le_bytes();
        (vector != 0).then_some(EventTarget { vector, apic_id })
    }
}
