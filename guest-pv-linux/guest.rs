// SPDX-License-Identifier: GPL-2.0-only

//! Linux as a paravirtual guest of a Paravane host.
//!
//! # How it works
//!
//! `detect` finds the host's CPUID block and reads the boot-info page, once. From then on the host
//! is not asked what there is: every facility looks at the checked copy of that page. A facility
//! whose bit is not set, or whose part of the page cannot be true, is not used, and what it would
//! have replaced stays as it is on bare hardware.
//!
//! `helpers.c` sets the kernel's hooks (structures, macros and sections that have no Rust
//! binding in this kernel); what the hooks do is here. Without a Paravane host nothing in this
//! folder runs but one look at CPUID.
//!
//! # Reading order
//!
//! `abi/` (the interface), `call`, `shared_page`, `detect`, then a file a facility: `base`,
//! `console`, `clock`, `cpuid`, `crash`, `delegate`, `dev`, `mem`, `rng`, `smp`, `timer`. `info`
//! serves the modules: `paravane.ko`, which is `paravane.rs`, and `pvbench.ko`, which is
//! `bench.rs`.

pub mod abi;

mod base;
mod call;
mod checks;
mod clock;
mod console;
mod cpuid;
mod crash;
mod delegate;
mod detect;
mod dev;
mod fresh;
mod info;
mod kernel_c;
mod mem;
mod once;
mod rng;
mod shared_page;
mod smp;
mod timer;

/// Prefix of the messages of this crate.
const __LOG_PREFIX: &[u8] = b"paravane\0";
