//! Paravane's VMM as a library: a hosted virtual machine monitor on KVM.
//!
//! A VMM process runs one guest. The same code runs it fully virtualized (an unmodified kernel on
//! a legacy PC, [`device`]) and paravirtualized (a kernel that calls us, [`pv`]); the difference is
//! a [`config::Profile`], and nothing else.
//!
//! # Where to read
//!
//! 1. [`config`]: what a run is;
//! 2. [`vm`]: building the machine, starting and stopping it;
//! 3. [`vcpu`]: the run loop, where every exit arrives;
//! 4. [`pv`]: the calls, one file a facility; [`device`]: the registers that full guests poke;
//! 5. [`boot`]: what lies in memory before the first instruction; [`kvm`]: CPUID and statistics.
//!
//! # Whom it trusts
//!
//! Not the guest. Every byte that comes from guest memory or guest registers is checked where it
//! enters ([`memory`], [`pv`]), and never becomes a Rust reference.

pub mod awkward;
pub mod boot;
pub mod clock_watch;
pub mod complete;
pub mod config;
pub mod confine;
pub mod conformance;
pub mod console;
pub mod core;
pub mod crash;
pub mod ctl;
pub mod device;
pub mod disk;
pub mod doctor;
pub mod driver_domain;
pub mod end;
pub mod event_loop;
pub mod fleet;
pub mod gdb;
pub mod image;
mod kick;
pub mod kvm;
pub mod lies;
pub mod memory;
pub mod net;
pub mod pause;
pub mod port;
pub mod pv;
mod random;
pub mod resident;
pub mod snapshot;
pub mod socket;
pub mod stats;
pub mod switcher;
mod sync;
pub mod terminal;
pub mod top;
pub mod trail;
pub mod vcpu;
pub mod virtio;
pub mod vm;
