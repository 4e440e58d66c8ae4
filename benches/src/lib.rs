//! Paired benchmarks of full and paravirtual guests: `paravane bench`.
//!
//! # How it measures
//!
//! The unit is the pair, and the *launch* is the sample: one VMM process that boots one guest and ends. The launches
//! of the arms are interleaved in randomised ABBA blocks ([`plan`]), so that what changes slowly on a machine (heat,
//! neighbours, caches) falls on all arms alike. Each launch gives raw samples, one JSON object a line ([`sample`]);
//! the table ([`table`]) is made from these lines alone, so that it can be made again from a published file. A ratio
//! stands beside its 95 % interval by a paired bootstrap over the launches ([`statistics`]).
//!
//! A launch that fails, or whose guest is not what its arm says (a full guest that finds a hypervisor, a para guest
//! that makes no call), is a failed sample with its reason, never a number.
//!
//! # Where to read
//!
//! [`mod@boot`] is the whole course of a benchmark; [`launch`] is one sample of it.

pub mod arm;
pub mod boot;
mod collect;
pub mod launch;
pub mod machine;
pub mod plan;
mod run;
pub mod sample;
pub mod statistics;
pub mod table;

pub use boot::{BootArgs, boot};
