//! `paravane trace`: one operation as it really went, in a full and in a para guest, side by side.
//!
//! # How it works
//!
//! The guest's init does the operation between two marks. KVM's own tracepoints (`kvm_exit`, `kvm_entry`,
//! `kvm_userspace_exit` and what they were about) are recorded meanwhile in a buffer of their own, and what lies between
//! the marks is the *flow*: who had the processor, for how long, and what was asked ([`flow`]). It is drawn with a lane
//! each for guest, KVM and VMM ([`draw`]), as text or as SVG; what other threads did on the guest's behalf, a disk's or those
//! of a driver domain, stands below the crossing that came before.
//!
//! Tracing costs time itself, so the times are for proportion; figures come from the benchmarks.

mod draw;
mod flow;
mod record;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use crate::host::Host;
use crate::job::{self, Job};
use crate::session::GuestFiles;

/// Arguments of `paravane trace`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Operations are the words of the guest's init (benches/init/src/jobs.rs), with a number of rounds:\n\
    console:64 a line to the console · sleep:1 arm a timer, halt, wake up · fork:1 a process, its end, its wait · \
    switch:1 to another process and back · fault:1 the first touch of a page · read:1 4 KiB from a disk\n\
    Needs root, and tracefs at /sys/kernel/tracing; the reference host has both.\n\
    Examples: paravane trace sleep:1 --svg sleep.svg\n\
    \x20         paravane trace read:1 --arms full,para,para@driver-domain --svg read.svg"
)]
pub struct TraceArgs {
    /// What the guests do.
    #[arg(default_value = "console:64", value_parser = operation)]
    pub operation: String,
    /// The arms.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "full,para",
        value_name = "LIST"
    )]
    pub arms: Vec<String>,
    /// Where the guests run [default: this machine if its KVM can run them, else the reference host].
    #[arg(long, value_enum)]
    pub host: Option<Host>,
    /// Draw the flows into this file.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write the flows here, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// What the guests boot.
    #[command(flatten)]
    pub files: GuestFiles,
    /// vCPUs of a guest.
    #[arg(long, default_value_t = 1)]
    pub cpus: u8,
}

/// An operation, if it is one that the guest's init knows.
fn operation(text: &str) -> Result<String, String> {
    let jobs = job::suites().into_iter().flat_map(job::suite);
    let one = |job: &&Job| !job.is_by_module();
    let known: BTreeSet<_> = jobs
        .filter(one)
        .filter_map(|job| job.work.as_deref())
        .collect();
    let mut parts = text.split(':');
    let is_known = parts.next().is_some_and(|word| known.contains(word));
    let rounds = parts.next().and_then(|rounds| rounds.parse().ok());
    if is_known && rounds.is_some_and(|rounds: u64| rounds > 0) {
        return Ok(text.to_owned());
    }
    let known: Vec<_> = known.into_iter().collect();
    let known = known.join(", ");
    Err(format!(
        "use a word and a number of rounds, as in sleep:1; the words are {known}"
    ))
}

/// Traces the operation in each arm, on the host that this process is on, and draws the flows.
///
/// # Errors
///
/// When a word is not an arm, tracing is not possible, or a guest failed.
pub fn trace(args: &TraceArgs) -> anyhow::Result<()> {
    let mut flows = Vec::new();
    for name in &args.arms {
        let arm: crate::arm::Arm = name.parse()?;
        ensure!(
            arm.peer.is_none(),
            "`{name}` is a peer: it has no mark port, so that its operation cannot be found in a trace"
        );
        let text = record::record(&arm, &args.operation, args.cpus, &args.files)?;
        let events = flow::parse(&text);
        let flow = flow::between_marks(&events).with_context(|| {
            format!("the trace of {name} does not have both marks of the operation")
        })?;
        flows.push((name.clone(), flow));
    }
    print!("{}", draw::text(&args.operation, &flows));
    if let Some(path) = &args.svg {
        std::fs::write(path, draw::svg(&args.operation, &flows))
            .with_context(|| format!("the picture `{}` cannot be written", path.display()))?;
    }
    if let Some(path) = &args.json {
        let arms: serde_json::Map<_, _> = flows
            .iter()
            .map(|(name, flow)| Ok((name.clone(), serde_json::to_value(flow)?)))
            .collect::<serde_json::Result<_>>()?;
        std::fs::write(path, serde_json::to_string_pretty(&arms)? + "\n")
            .with_context(|| format!("the flows `{}` cannot be written", path.display()))?;
    }
    Ok(())
}
