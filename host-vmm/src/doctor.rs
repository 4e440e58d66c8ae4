//! `paravane doctor`: what this host's KVM can do, what a crossing costs, which guests can run.
//!
//! # Background
//!
//! KVM on VMX or SVM behaves as the CPU's manual says. A software KVM does not: it interprets the
//! guest's kernel, knows a part of the instruction set, and may never come back from the rest.
//! Nobody should find out by a kernel that dies in its first second.
//!
//! # How it works
//!
//! [`probes`] lists what is tried. Each probe is a symbol of the bare-metal guest ([`image`]), run
//! in a [`machine`] of its own by [`probe`], in another process ([`worker`]) that can be killed.
//! [`profiles`] judges by the outcomes, not by the host's name; only VMCALL and VMMCALL depend on
//! the [`host`], because there a wrong guess costs a CPU of the host. [`table`] prints.

pub mod capabilities;
pub mod host;
pub mod image;
pub mod interrupts;
pub mod machine;
pub mod probe;
pub mod probes;
pub mod profiles;
pub mod table;
pub mod worker;

use std::io::{self, Write};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use kvm_ioctls::Kvm;
use serde::{Serialize, Serializer};
use thiserror::Error;

use crate::confine::{self, Lack};

use self::host::Host;
use self::probe::{Finished, Outcome};
use self::probes::{CROSSINGS, INSTRUCTIONS};
use self::profiles::{Needs, Verdict};
use crate::config::Profile;

/// What the command line says.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "It boots guests of a few instructions, and hurts nothing. Without /dev/kvm it says what to do.\n\
    Exit status: 0 the host has been looked at, whatever it can do; 1 it could not be."
)]
pub struct DoctorArgs {
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// Leave out the costs of crossings
    #[arg(long)]
    pub quick: bool,
    /// Be the process that runs these probes (numbers with commas)
    #[arg(long, hide = true, value_delimiter = ',')]
    pub worker: Option<Vec<usize>>,
}

/// Doctor itself fails; an unfit host is no failure.
#[derive(Debug, Error)]
pub enum DoctorError {
    /// The probes cannot run.
    #[error(transparent)]
    Worker(#[from] worker::WorkerError),
    /// The report cannot be printed.
    #[error("the report cannot be printed")]
    Print(#[from] io::Error),
}

/// One instruction or behaviour.
#[derive(Clone, Debug, Serialize)]
pub struct Instruction {
    /// Whether the CPU did what its manual says; `null` if that was not tried.
    pub as_manual: Option<bool>,
    /// What came of it, in words.
    pub text: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What one crossing costs, or why that is not known. Nanoseconds for one crossing; percentiles
/// are over batches.
#[derive(Clone, Debug, Serialize)]
pub struct Crossing {
    /// What crosses.
    #[serde(skip)]
    pub what: &'static str,
    /// Half of the batches took less.
    pub median_ns: Option<f64>,
    /// A tenth of the batches took less.
    pub p10_ns: Option<f64>,
    /// Nine tenths of the batches took less.
    pub p90_ns: Option<f64>,
    /// Batches taken.
    pub batches: usize,
    /// Crossings in each.
    pub batch: u32,
    /// How many times as much as a bare OUT, where the two take turns: the median of pairs.
    pub by_bare_out: Option<f64>,
    /// Exits to the VMM in the median batch, for one crossing.
    pub exits: Option<f64>,
    /// Why there is no number.
    pub failed: Option<String>,
}

/// All that doctor finds out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The host.
    pub host: Host,
    /// What its kernel cannot do for a VMM's confinement.
    pub lacks: Vec<Lack>,
    /// Why `/dev/kvm` cannot be used, and the mend.
    pub problem: Option<String>,
    /// `KVM_CAP_…`.
    #[serde(serialize_with = "as_map")]
    pub capabilities: Vec<(String, i32)>,
    /// By name, `cpl0.…` and `cpl3.…`.
    #[serde(serialize_with = "as_map")]
    pub instructions: Vec<(String, Instruction)>,
    /// By name; empty with `--quick`.
    #[serde(serialize_with = "as_map")]
    pub crossings: Vec<(String, Crossing)>,
    /// What calls cost beside each other, by name; empty with `--quick`.
    #[serde(serialize_with = "as_map")]
    pub ratios: Vec<(String, f64)>,
    /// By name.
    #[serde(serialize_with = "as_map")]
    pub profiles: Vec<(String, Verdict)>,
}

fn as_map<T: Serialize, S: Serializer>(
    rows: &[(String, T)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(rows.iter().map(|(name, value)| (name, value)))
}

/// Examines this host and prints the report on standard output.
///
/// # Errors
///
/// When the probes cannot be started or the report cannot be printed. A host without KVM is no
/// error but a report.
pub fn run(args: &DoctorArgs) -> Result<Option<Report>, DoctorError> {
    if let Some(jobs) = &args.worker {
        worker::work(jobs)?;
        return Ok(None);
    }
    let report = examine(args.quick)?;
    let printed = if args.json {
        print_json(&report)
    } else {
        table::print(&report)
    };
    match printed {
        // `| head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        other => other?,
    }
    Ok(Some(report))
}

fn print_json(report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, report)?;
    writeln!(out)
}

/// Examines this host.
///
/// # Errors
///
/// When the probes cannot be started.
pub fn examine(quick: bool) -> Result<Report, DoctorError> {
    let kvm = match open_kvm() {
        Ok(kvm) => kvm,
        Err(problem) => {
            let verdict = Verdict {
                runs: false,
                why: problem.clone(),
            };
            return Ok(Report {
                host: Host::examine(false),
                lacks: confine::lacks(),
                problem: Some(problem),
                capabilities: Vec::new(),
                instructions: Vec::new(),
                crossings: Vec::new(),
                ratios: Vec::new(),
                profiles: profiles::ALL
                    .map(|needs| (needs.name.to_owned(), verdict.clone()))
                    .into(),
            });
        }
    };
    let capabilities = capabilities::examine(&kvm);
    let jobs = INSTRUCTIONS.len() + if quick { 0 } else { CROSSINGS.len() };
    let finished = worker::employ(&(0..jobs).collect::<Vec<_>>())?;
    let (instructions, crossings) = finished.split_at(INSTRUCTIONS.len());
    let instructions: Vec<_> = INSTRUCTIONS
        .iter()
        .zip(instructions)
        .map(|(probe, finished)| (probe.name.to_owned(), instruction(probe, finished)))
        .collect();
    let failed: Vec<_> = instructions
        .iter()
        .filter(|(_, instruction)| instruction.as_manual == Some(false))
        .map(|(name, instruction)| (name.as_str(), &instruction.outcome))
        .collect();
    let profiles = profiles::ALL
        .map(|needs| {
            (
                needs.name.to_owned(),
                profiles::judge(&needs, &capabilities, &failed),
            )
        })
        .into();
    let crossings = costs(crossings);
    Ok(Report {
        host: Host::examine(true),
        lacks: confine::lacks(),
        problem: None,
        profiles,
        ratios: ratios(&crossings),
        crossings,
        capabilities,
        instructions,
    })
}

/// Whether a guest of this profile can run here, as far as a few milliseconds tell.
///
/// # Errors
///
/// The reason why not, in words for a user.
pub fn can_run(profile: Profile) -> Result<(), String> {
    let kvm = open_kvm()?;
    let needs = Needs::of(profile);
    let capabilities = capabilities::examine(&kvm);
    let probes = INSTRUCTIONS
        .iter()
        .filter(|probe| needs.essential.contains(&probe.name));
    // All at once: most of the time goes into making machines.
    let outcomes: Vec<_> = thread::scope(|scope| {
        let started: Vec<_> = probes
            .map(|probe| {
                let run = || probe::run(probe.setup, 1, Duration::from_millis(500)).outcome;
                (probe, scope.spawn(run))
            })
            .collect();
        let hang = Outcome::Hang { killed: true };
        let join = |(probe, thread): (_, ScopedJoinHandle<'_, _>)| {
            (probe, thread.join().unwrap_or(hang.clone()))
        };
        started.into_iter().map(join).collect()
    });
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|(probe, outcome): &&(&probes::InstructionProbe, Outcome)| {
            !probe.expected.is(outcome)
        })
        .map(|(probe, outcome)| (probe.name, outcome))
        .collect();
    let verdict = profiles::judge(&needs, &capabilities, &failed);
    if verdict.runs {
        Ok(())
    } else {
        Err(verdict.why)
    }
}

/// Opens `/dev/kvm`, or says what to do.
fn open_kvm() -> Result<Kvm, String> {
    let kvm = Kvm::new().map_err(|error| mend(error.errno()))?;
    match kvm.get_api_version() {
        12 => Ok(kvm),
        version if version < 0 => {
            Err("/dev/kvm is not KVM's device; make it again: mknod /dev/kvm c 10 232".to_owned())
        }
        version => Err(format!(
            "/dev/kvm speaks version {version} of its interface, not 12; use a newer kernel"
        )),
    }
}

/// What an open of `/dev/kvm` that failed means for a user.
fn mend(errno: i32) -> String {
    match errno {
        libc::ENOENT => {
            "/dev/kvm does not exist; load the module kvm_intel or kvm_amd, and enable virtualization in the firmware"
                .to_owned()
        }
        libc::EACCES | libc::EPERM => {
            "/dev/kvm cannot be opened: permission denied; add yourself to the group kvm".to_owned()
        }
        libc::ENODEV | libc::ENXIO => {
            "/dev/kvm is there, but no KVM module serves it; load kvm_intel or kvm_amd".to_owned()
        }
        _ => format!("/dev/kvm cannot be opened: {}", io::Error::from_raw_os_error(errno)),
    }
}

/// Puts an outcome beside what the manual says.
fn instruction(probe: &probes::InstructionProbe, finished: &Finished) -> Instruction {
    let outcome = finished.outcome.clone();
    let as_manual = match outcome {
        Outcome::NotProbed { .. } => None,
        _ => Some(probe.expected.is(&outcome)),
    };
    Instruction {
        as_manual,
        text: outcome.text(),
        outcome,
    }
}

/// What calls cost beside each other: the ABI's three promises, at each privilege.
fn ratios(crossings: &[(String, Crossing)]) -> Vec<(String, f64)> {
    let find = |name: &str| {
        let row = crossings.iter().find(|(known, _)| known == name);
        row.map(|(_, crossing)| crossing)
    };
    let mut ratios = Vec::new();
    for cpl in ["cpl0", "cpl3"] {
        let median = |name: &str| find(&format!("{cpl}.{name}")).and_then(|row| row.median_ns);
        for (ratio, of, by) in [
            ("batched_call_by_null_call", "call_batch", "call_nop"),
            ("exitless_call_by_null_call", "call_exitless", "call_nop"),
        ] {
            if let (Some(of), Some(by)) = (median(of), median(by)) {
                let value = (of / by * 1000.0).round() / 1000.0;
                ratios.push((format!("{cpl}.{ratio}"), value));
            }
        }
        let by_out = find(&format!("{cpl}.call_nop")).and_then(|row| row.by_bare_out);
        ratios.extend(by_out.map(|ratio| (format!("{cpl}.null_call_by_out"), ratio)));
        let exits = find(&format!("{cpl}.call_exitless")).and_then(|row| row.exits);
        ratios.extend(exits.map(|exits| (format!("{cpl}.exits_of_an_exitless_call"), exits)));
    }
    ratios
}

/// Makes costs of stamps: percentiles of the batches, less the median of an empty one, or of the
/// crossing's own frame.
fn costs(finished: &[Finished]) -> Vec<(String, Crossing)> {
    let median = |index: usize| {
        finished
            .get(index)
            .and_then(|empty| percentile(&empty.batches_ns, 50))
            .unwrap_or(0)
    };
    let (kernel, user) = (median(0), median(1));
    CROSSINGS
        .iter()
        .zip(finished)
        .enumerate()
        .map(|(index, (probe, finished))| {
            let (base, cs) = match (index, probe.setup.privilege) {
                (0, _) => (0, image::layout::KERNEL_CS),
                (1, _) => (0, image::layout::USER_CS),
                (_, machine::Privilege::Kernel) => (kernel, image::layout::KERNEL_CS),
                (_, machine::Privilege::User) => (user, image::layout::USER_CS),
            };
            let frame = CROSSINGS
                .iter()
                .position(|other| !probe.frame.is_empty() && other.name == probe.frame);
            let base = frame.map_or(base, median);
            let failed = match &finished.outcome {
                Outcome::Result { value } if *value == u32::from(cs) => None,
                // Stopped by the deadline, but with numbers.
                Outcome::Hang { killed: false } if finished.batches_ns.len() >= 8 => None,
                Outcome::Result { .. } => Some("ends at another privilege".to_owned()),
                other => Some(other.text()),
            };
            let own = own_batches(probe, &finished.batches_ns);
            let one = |percent| {
                let batch = percentile(&own, percent).filter(|_| failed.is_none())?;
                Some(
                    (f64::from(batch.saturating_sub(base)) / f64::from(probe.batch) * 10.0).round()
                        / 10.0,
                )
            };
            let crossing = Crossing {
                what: probe.what,
                median_ns: one(50),
                p10_ns: one(10),
                p90_ns: one(90),
                batches: finished.batches_ns.len(),
                batch: probe.batch,
                by_bare_out: by_bare_out(probe, &finished.batches_ns, base)
                    .filter(|_| failed.is_none()),
                exits: percentile(&finished.batches_exits, 50)
                    .filter(|_| failed.is_none())
                    .map(|exits| f64::from(exits) / f64::from(probe.batch)),
                failed,
            };
            (probe.name.to_owned(), crossing)
        })
        .collect()
}

/// The batches that are the crossing's own. The first stamp ends a batch of bare OUTs.
fn own_batches(probe: &probes::CrossingProbe, batches: &[u32]) -> Vec<u32> {
    let step = if probe.in_turns { 2 } else { 1 };
    batches.iter().copied().step_by(step).collect()
}

/// The median of the pairs' ratios, each less the frame. Neighbours see the same load.
fn by_bare_out(probe: &probes::CrossingProbe, batches: &[u32], frame: u32) -> Option<f64> {
    if !probe.in_turns {
        return None;
    }
    // The first pair warms up.
    let mut ratios: Vec<f64> = batches
        .chunks_exact(2)
        .skip(1)
        .map(|pair| {
            let [own, bare] = [pair[0], pair[1]].map(|batch| batch.saturating_sub(frame));
            f64::from(own) / f64::from(bare.max(1))
        })
        .collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let median = ratios.get(ratios.len().checked_sub(1)? / 2)?;
    Some((median * 1000.0).round() / 1000.0)
}

/// The value below which `percent` of the values lie; the first is left out, it warms up.
fn percentile(values: &[u32], percent: usize) -> Option<u32> {
    let mut sorted = values.get(1..)?.to_vec();
    sorted.sort_unstable();
    sorted
        .get(sorted.len().saturating_sub(1) * percent / 100)
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_leave_the_first_batch_out() {
        assert_eq!(percentile(&[1000], 50), None);
        let batches: Vec<u32> = [1000].into_iter().chain(1..=11).collect();
        assert_eq!(percentile(&batches, 10), Some(2));
        assert_eq!(percentile(&batches, 50), Some(6));
        assert_eq!(percentile(&batches, 90), Some(10));
    }

    #[test]
    fn costs_are_for_one_crossing_without_the_frame() {
        let ran = |value: u16, batch: u32| Finished {
            outcome: Outcome::Result {
                value: value.into(),
            },
            batches_ns: vec![batch; 5],
            batches_exits: Vec::new(),
        };
        let (kernel, user) = (image::layout::KERNEL_CS, image::layout::USER_CS);
        let finished: Vec<_> = CROSSINGS
            .iter()
            .enumerate()
            .map(|(index, probe)| match (index, probe.setup.privilege) {
                (0 | 1, machine::Privilege::Kernel) => ran(kernel, 1000),
                (0 | 1, machine::Privilege::User) => ran(user, 5000),
                (_, machine::Privilege::Kernel) => ran(kernel, 1000 + 32 * probe.batch),
                (_, machine::Privilege::User) => ran(user, 5000 + 32 * probe.batch),
            })
            .collect();
        for (probe, (name, crossing)) in CROSSINGS.iter().zip(costs(&finished)).skip(2) {
            // One with a frame of its own costs here as much as that.
            let expected = if probe.frame.is_empty() { 32.0 } else { 0.0 };
            assert_eq!(crossing.median_ns, Some(expected), "{name}");
        }
    }

    #[test]
    fn a_call_in_turns_is_compared_with_its_neighbour() {
        let find = |name| CROSSINGS.iter().find(|probe| probe.name == name).unwrap();
        let call = find("cpl0.call_nop");
        // Own, bare, own, bare …; the load doubles in the middle, and the frame is 100.
        let batches = [900, 900, 310, 300, 310, 300, 520, 500, 520, 500, 520, 500];
        assert_eq!(by_bare_out(call, &batches, 100), Some(1.05));
        assert_eq!(own_batches(call, &batches), [900, 310, 310, 520, 520, 520]);
        assert_eq!(by_bare_out(find("cpl0.out"), &batches, 100), None);
        assert_eq!(by_bare_out(call, &[], 100), None);
    }

    #[test]
    fn calls_are_compared_with_one_another() {
        let row = |name: &str, median_ns, by_bare_out, exits| {
            let crossing = Crossing {
                what: "",
                median_ns: Some(median_ns),
                p10_ns: None,
                p90_ns: None,
                batches: 5,
                batch: 1,
                by_bare_out,
                exits: Some(exits),
                failed: None,
            };
            (name.to_owned(), crossing)
        };
        let rows = [
            row("cpl0.call_nop", 1040.0, Some(1.04), 1.0),
            row("cpl0.call_batch", 208.0, None, 0.125),
            row("cpl0.call_exitless", 52.0, None, 0.0),
        ];
        let expected = [
            ("cpl0.batched_call_by_null_call", 0.2),
            ("cpl0.exitless_call_by_null_call", 0.05),
            ("cpl0.null_call_by_out", 1.04),
            ("cpl0.exits_of_an_exitless_call", 0.0),
        ]
        .map(|(name, ratio)| (name.to_owned(), ratio));
        assert_eq!(ratios(&rows), expected);
        assert_eq!(ratios(&[]), []);
    }

    #[test]
    fn a_crossing_that_changes_privilege_has_no_cost() {
        let wrong = Finished {
            outcome: Outcome::Result { value: 0 },
            batches_ns: vec![9; 5],
            batches_exits: Vec::new(),
        };
        for (name, crossing) in costs(&vec![wrong; CROSSINGS.len()]) {
            assert_eq!(
                (crossing.median_ns, crossing.failed.is_some()),
                (None, true),
                "{name}"
            );
        }
    }

    #[test]
    fn names_are_used_once_and_known() {
        let names: Vec<_> = INSTRUCTIONS.iter().map(|probe| probe.name).collect();
        for needs in profiles::ALL {
            for needed in needs.instructions.iter().chain(needs.essential) {
                assert!(names.contains(needed), "{}: {needed}", needs.name);
            }
        }
        for (name, _) in probes::NOTES {
            assert!(names.contains(name), "note on {name}");
        }
        let mut all = names;
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), INSTRUCTIONS.len());
        let image = image::Image::load().unwrap();
        let setups = INSTRUCTIONS.iter().map(|probe| probe.setup);
        for setup in setups.chain(CROSSINGS.iter().map(|probe| probe.setup)) {
            let symbols = [setup.entry, setup.syscall_entry].into_iter();
            for symbol in symbols.chain(setup.gate.map(|gate| gate.handler)) {
                assert!(image.symbol(symbol).is_ok(), "{symbol}");
            }
        }
    }

    #[test]
    fn an_open_that_failed_comes_with_its_mend() {
        for errno in [libc::ENOENT, libc::EACCES, libc::ENODEV] {
            let text = mend(errno);
            assert!(text.contains("/dev/kvm") && text.contains(';'), "{text}");
        }
        assert!(
            mend(libc::EMFILE).contains("open files"),
            "{}",
            mend(libc::EMFILE)
        );
    }
}
