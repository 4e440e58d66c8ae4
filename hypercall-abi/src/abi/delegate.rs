// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facilities `irq`, `ipi`, `tlb` and `sched`, delegated to KVM's own interface.
//!
//! # Background
//!
//! Where a mechanism is at its best inside the host's kernel, beside the virtual local APIC and the
//! scheduler, a way through the VMM can only be longer. KVM has such mechanisms, with an
//! interface that is documented and stable.
//!
//! # How it works
//!
//! [`DelegateInfo`] in the boot-info page says where KVM's CPUID block is, and which of its
//! features are there. Each facility stands for some of them:
//!
//! | facility | features | replaces |
//! |---|---|---|
//! | `irq` | `PV_EOI` | the end-of-interrupt write, where nothing else waits |
//! | `ipi` | `PV_SEND_IPI` | one write of the interrupt command register for each target |
//! | `tlb` | `PV_TLB_FLUSH` | interrupts to processors that do not run |
//! | `sched` | `STEAL_TIME`, `PV_UNHALT`, `PV_SCHED_YIELD` | spinning for who has no CPU |
//! | `sched` | `ASYNC_PF`, `ASYNC_PF_INT` | standing still while the host fetches memory |
//! | `sched` | `POLL_CONTROL` | polling twice, in the guest and in the host |
//!
//! Spec: PV-DELEGATE-1 to PV-DELEGATE-4

/// Features of KVM's that facility `irq` stands for, as bits of its CPUID leaf base + 1, EAX.
pub const IRQ_KVM_FEATURES: u32 = 0x0000_0040;
/// The same for facility `ipi`.
pub const IPI_KVM_FEATURES: u32 = 0x0000_0800;
/// The same for facility `tlb`. KVM's guests find out who runs from the steal-time page.
pub const TLB_KVM_FEATURES: u32 = 0x0000_0220;
/// The same for facility `sched`.
pub const SCHED_KVM_FEATURES: u32 = 0x0000_70b0;

/// The part of the boot-info page about facilities that are KVM's. Writer: host. Spec:
/// PV-DELEGATE-1
#[cfg_attr(
    feature = "zerocopy",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DelegateInfo {
    /// First leaf of KVM's CPUID block; zero where nothing is delegated.
    pub kvm_base: u32,
    /// KVM's features, as in its leaf base + 1, EAX.
    pub kvm_features: u32,
    /// Zero.
    pub reserved: u64,
}

const _: () = assert!(core::mem::size_of::<DelegateInfo>() == 16);

/// The features that the facilities of `word` stand for.
#[must_use]
pub const fn kvm_features_of(word: u64) -> u32 {
    use super::registry::{FACILITY_IPI, FACILITY_IRQ, FACILITY_SCHED, FACILITY_TLB};
    let mut features = 0;
    if word & (1 << FACILITY_IRQ) != 0 {
        features |= IRQ_KVM_FEATURES;
    }
    if word & (1 << FACILITY_IPI) != 0 {
        features |= IPI_KVM_FEATURES;
    }
    if word & (1 << FACILITY_TLB) != 0 {
        features |= TLB_KVM_FEATURES;
    }
    if word & (1 << FACILITY_SCHED) != 0 {
        features |= SCHED_KVM_FEATURES;
    }
    features
}
