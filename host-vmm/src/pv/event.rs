//! An event: the interrupt vector, and the processor, that a guest has named for something that happens on the host's side.

use std::sync::atomic::{AtomicU64, Ordering};

use paravane_abi::call::{CallResult, Status};
use paravane_abi::registry as reg;

use super::{Args, take};
use crate::snapshot::PartError;

/// A vector on a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTarget {
    /// Interrupt vector.
    pub vector: u8,
    /// APIC id.
    pub apic_id: u8,
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
