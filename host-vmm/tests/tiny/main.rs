//! Tiny guests on `/dev/kvm`: a few instructions that make calls, and what exactly comes back.
//!
//! The guest is the bare-metal image that doctor runs, booted like a kernel by the VMM's own code.
//! A test's name begins with the clause of `SPEC.md` that it tries. No VMX or SVM is needed: the
//! guest's instructions are among those that every KVM knows.

mod guest;

mod base;
mod call;
mod clock;
mod console;
mod crash;
mod discovery;
mod hostile;
mod rings;
