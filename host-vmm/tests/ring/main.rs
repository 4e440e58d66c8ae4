//! Submission rings without KVM: other threads in the guest's place ([`poller`]), and a model check of
//! the wake-up protocol ([`wakeup`]).

mod host;
mod poller;
mod wakeup;
