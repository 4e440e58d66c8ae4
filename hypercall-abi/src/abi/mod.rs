// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! The interface itself, one file a facility; numbers in [`registry`], the call in [`call`].
//!
//! Kbuild compiles this folder through `#[path]`, hence: `core` only, no macros of ours, no
//! crates. All shared structures are `repr(C)`, little-endian, without implicit padding.

pub mod base;
pub mod boot_info;
pub mod call;
pub mod clock;
pub mod console;
pub mod cpu;
pub mod cpuid;
pub mod crash;
pub mod delegate;
pub mod dev;
pub mod mem;
pub mod registry;
pub mod ring;
pub mod rng;
pub mod smp;
pub mod timer;
