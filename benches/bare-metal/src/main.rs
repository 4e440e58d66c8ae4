//! The bare-metal guest: the smallest thing that asks a KVM what it can do.
//!
//! # How it works
//!
//! The VMM (`doctor`, the tiny-guest tests) loads this image at fixed addresses, builds page
//! tables, descriptor tables and an IDT around it ([`layout`]), and starts a vCPU in 64-bit mode
//! at one *probe*: a symbol of this image, at CPL 0 or at CPL 3. A probe runs a few instructions
//! and ends with a write to [`layout::DONE`], EAX being its result; or it traps, and the stub of
//! the vector tells. A *crossing* ([`crossings`]) repeats one thing in batches.
//!
//! # Why assembly
//!
//! On a software KVM every instruction at CPL 0 is interpreted, at about a microsecond, and SSE is
//! not known there. So a probe consists of exactly the instructions that it is about. Compiled
//! Rust for this target may use SSE where it likes, and would measure the interpreter.
#![no_std]
#![no_main]

#[macro_use]
mod code;
mod attack;
mod calls;
mod conform;
mod crossings;
mod kernel;
pub mod layout;
#[path = "../../../hypercall-abi/src/abi/registry.rs"]
pub mod registry;
mod steps;
mod traps;
mod user;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
