//! `paravane bench boot`, and the suites whose jobs come from data files alone.

use anyhow::ensure;

use crate::experiment::Experiment;
use crate::host::Host;
use crate::job::{Job, kinds, suite};
use crate::session::{CommonArgs, session};

/// Arguments of `paravane bench os`, and of the other suites of data files.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SuiteArgs {
    /// What every suite takes.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Only these jobs.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub jobs: Vec<String>,
}

/// Arguments of `paravane bench boot`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct BootArgs {
    /// Those of all suites.
    #[command(flatten)]
    pub suite: SuiteArgs,
    /// Launches of each arm for the console and system-call workloads.
    #[arg(long, default_value_t = 2)]
    pub workload_launches: u32,
    /// Bytes that the console workload writes [default: what its job says, 65,536].
    #[arg(long)]
    pub console_bytes: Option<u64>,
}

/// What a suite compares unless told: with an A/A twin.
const ARMS: &str = "full,full,kvm-pv,para";

/// Launches of each arm unless told.
const LAUNCHES: u32 = 10;

/// The same when all suites are run, so that it takes less than an hour on the reference host.
pub(crate) const LAUNCHES_OF_ALL: u32 = 5;

/// By counted time there is no noise that rounds would average out: a part of them does.
const COUNTED_PART: u64 = 4;
/// And a try has a tenth.
const SMOKE_PART: u64 = 10;

/// An experiment with these jobs on this class of host. `arms` are the ones unless told.
pub(crate) fn experiment(
    common: &CommonArgs,
    class: Host,
    name: &str,
    arms: &str,
    jobs: Vec<Job>,
) -> Experiment {
    let arms = if common.arms.is_empty() {
        arms.split(',').map(str::to_owned).collect()
    } else {
        common.arms.clone()
    };
    let part = match class {
        _ if common.smoke => SMOKE_PART,
        Host::Counted => COUNTED_PART,
        Host::Kvm | Host::Reference => 1,
    };
    let shorter = |job: Job| Job {
        rounds: job.rounds.div_ceil(part),
        ..job
    };
    let boots = jobs.iter().any(|job| job.work.is_none());
    Experiment {
        suite: name.to_owned(),
        arms,
        kinds: kinds(
            jobs.into_iter().map(shorter),
            common.launches.unwrap_or(LAUNCHES),
        ),
        seed: common.seed.unwrap_or_else(|| u64::from(fastrand::u32(..))),
        memory_mib: common.memory.unwrap_or(128),
        cpus: common.cpus.unwrap_or(1),
        watchdog: common.watchdog.unwrap_or(match class {
            // Ten times what any boot takes, and several minutes for one that spins.
            Host::Counted => 20,
            Host::Kvm | Host::Reference => 120,
        }),
        // What exits cost explains boots, and no other job.
        doctor: !common.no_doctor && boots,
        until: common.until,
        smoke: common.smoke,
    }
}

/// Runs `paravane bench boot`. `unfit` is the reason why this machine's KVM cannot run the guests, if it cannot.
///
/// # Errors
///
/// As [`session`]; and when a launch failed.
pub fn boot(args: &BootArgs, unfit: Option<&str>) -> anyhow::Result<()> {
    let jobs = wanted("boot", &args.suite.jobs)?;
    let make = |class| {
        let mut experiment = experiment(&args.suite.common, class, "boot", "full,para", jobs);
        for kind in &mut experiment.kinds {
            if kind.name == "workload" {
                kind.launches = args.workload_launches;
            }
            let console = kind.jobs.iter_mut().filter(|job| job.name == "console");
            for (job, bytes) in console.zip(args.console_bytes) {
                job.rounds = bytes;
            }
        }
        experiment.kinds.retain(|kind| kind.launches > 0);
        Ok(experiment)
    };
    finish(session(&args.suite.common, make, unfit)?)
}

/// Runs a suite of data files.
///
/// # Errors
///
/// As [`session`]; and when a launch failed, or a job is not known.
pub fn run_suite(name: &str, args: &SuiteArgs, unfit: Option<&str>) -> anyhow::Result<()> {
    let jobs = wanted(name, &args.jobs)?;
    let make = |class| Ok(experiment(&args.common, class, name, ARMS, jobs));
    finish(session(&args.common, make, unfit)?)
}

/// The jobs of a suite with these names; all of them, where there are none.
pub(crate) fn wanted(name: &str, names: &[String]) -> anyhow::Result<Vec<Job>> {
    let known: Vec<&str> = suite(name).map(|job| job.name.as_str()).collect();
    ensure!(
        names.iter().all(|job| known.contains(&job.as_str())),
        "suite {name} has the jobs {}",
        known.join(", ")
    );
    let wanted = |job: &&Job| names.is_empty() || names.contains(&job.name);
    Ok(suite(name).filter(wanted).cloned().collect())
}

pub(crate) fn finish(whole: bool) -> anyhow::Result<()> {
    ensure!(
        whole,
        "launches failed; their reasons stand below the tables"
    );
    Ok(())
}
