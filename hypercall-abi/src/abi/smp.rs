// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facility `smp`: processors on and off.
//!
//! # Background
//!
//! A PC's processor is started by two messages to its local APIC, begins in real mode below 1 MiB,
//! and works its way up through a trampoline of code that the kernel has put there: tables for
//! three modes, and a number of exits. It is never switched off; it halts.
//!
//! # How it works
//!
//! `smp.start` names a processor, and where it begins: in 64-bit mode, with the kernel's own page
//! tables. `smp.stop` switches the calling processor off, and costs nothing from then on; it can be
//! started again. The boot processor is the one with APIC id zero.
//!
//! [`SmpPage::wanted`] is the host's wish: how many processors the guest should have on. The guest
//! follows it with the calls above when it can; the event of `smp.event` says that it has changed.
//!
//! | register | of a processor that begins |
//! |---|---|
//! | RIP, RSP, CR3, RDI | as `smp.start` names them |
//! | other general registers | zero |
//! | RFLAGS | interrupts off, all other flags zero |
//! | CR0 | protection, paging, ET |
//! | CR4 | PAE |
//! | EFER | long mode, NX |
//! | CS, SS, DS, ES | flat, CPL 0; GDTR and IDTR are to be loaded |
//! | local APIC | as after power-on |
//!
//! Spec: PV-SMP-1 to PV-SMP-15

/// `smp.state`: the processor is off.
pub const SMP_OFF: u64 = 0;
/// `smp.state`: the processor is on.
pub const SMP_ON: u64 = 1;

/// The processors' part of the boot-info page. Writer: host. Spec: PV-SMP-10
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
pub struct SmpInfo {
    /// Guest physical address of the [`SmpPage`], page-aligned.
    pub address: u64,
    /// Zero.
    pub reserved: u64,
}

/// What the host wants of the processors. Writer: host. Spec: PV-SMP-10
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
pub struct SmpPage {
    /// How many processors the host wants to be on; 0: it has no wish.
    pub wanted: u32,
    /// Zero.
    pub reserved: [u32; 15],
}

const _: () = {
    assert!(core::mem::size_of::<SmpInfo>() == 16);
    assert!(core::mem::size_of::<SmpPage>() == 64);
};

/// The wish in a page's `wanted`, for a guest with so many processors. `None`: there is none, or
/// none that can be followed. Spec: PV-SMP-14
#[must_use]
pub const fn smp_wish(wanted: u32, vcpu_count: u32) -> Option<u32> {
    if wanted == 0 || wanted > vcpu_count {
        None
    } else {
        Some(wanted)
    }
}
