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
//! Spec: PV-SMP-1 to PV-SMP-9

/// `smp.state`: the processor is off.
pub const SMP_OFF: u64 = 0;
/// `smp.state`: the processor is on.
pub const SMP_ON: u64 = 1;
