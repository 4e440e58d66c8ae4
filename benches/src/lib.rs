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
//! Times are those of the host's clock, but for host class `counted`: there a nanosecond is an instruction of the emulated
//! processor ([`host`]), and what a sample differs by from the next one is what the guests did differently. That holds
//! whatever else the machine does, so that several such hosts share the launches.
//!
//! A launch that fails, or whose guest is not what its arm says (a full guest that finds a hypervisor, a para guest
//! that makes no call), is a failed sample with its reason, never a number.
//!
//! # Where to read
//!
//! [`session`](mod@session) is the whole course of a benchmark; [`launch`] is one sample of it; [`job`] and [`peer`] are
//! the data files. [`ops`](mod@ops) compares single operations, and facilities.

pub mod all;
pub mod arm;
pub mod attribution;
pub mod boot;
mod collect;
pub mod experiment;
pub mod host;
pub mod job;
pub mod launch;
pub mod machine;
pub mod metrics;
pub mod neighbour;
mod network;
pub mod ops;
mod ops_results;
mod ops_table;
pub mod peer;
pub mod plan;
mod pvbench;
pub mod report;
mod run;
pub mod sample;
pub mod session;
pub mod statistics;
pub mod table;
pub mod trace;

pub use all::{AllArgs, all};
pub use boot::{BootArgs, SuiteArgs, boot, run_suite};
pub use ops::{OpsArgs, ops};
pub use report::{ReportArgs, report};
pub use session::{CommonArgs, GuestFiles, InsideArgs, inside};
pub use trace::{TraceArgs, trace};
