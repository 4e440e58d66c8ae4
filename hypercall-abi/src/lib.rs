//! The Paravane hypercall ABI: every number and layout that a host and a guest must agree on.
//!
//! This crate *is* the interface. It has no code that runs on a hot path, needs no allocator and
//! no standard library, and contains no `unsafe`. The same source folder, [`abi`], is compiled a
//! second time by Kbuild inside the guest kernel, so host and guest cannot drift apart; the C
//! header `include/paravane.h` is generated from it (`cargo ci spec`).
//!
//! `SPEC.md` says what the numbers mean; a doc comment that ends in `Spec: PV-…` names the clause.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;

pub use abi::*;
