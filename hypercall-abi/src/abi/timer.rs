// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facility `timer`: one-shot deadlines, most of which never cross.
//!
//! # Background
//!
//! A kernel's timer is one register of the local APIC, the deadline, and each write to it an exit.
//! A timeout that is set and cancelled moves it to and fro, a tick that stops moves it away, and
//! the next wake-up back again: far more writes than interrupts.
//!
//! # How it works
//!
//! A deadline that is too early costs one interrupt that finds nothing due, one that is too late
//! is a fault. So the guest keeps two deadlines for each processor in its own memory, the *armed*
//! one, which the register has, and the *wanted* one, and writes only where the wanted one is the
//! earlier. The interrupt of a deadline that nobody wants any more arms the wanted one.
//!
//! The register is delegated to KVM, whose local APIC has it in the host's kernel: a page of
//! deadlines that the VMM looked at could only be a longer way. So the facility has no structure
//! and no call; its bit says that the device is there, and that it does what the clauses say.
//!
//! Spec: PV-TIMER-1 to PV-TIMER-3
