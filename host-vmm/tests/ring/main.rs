//! Submission rings without KVM: a reference model of calls and rings ([`model`]) that runs side by side with
//! the VMM's dispatcher ([`properties`]), other threads in the guest's place ([`poller`]), and a model check
//! of the wake-up protocol ([`wakeup`]).

mod host;
mod model;
mod poller;
mod properties;
mod wakeup;
