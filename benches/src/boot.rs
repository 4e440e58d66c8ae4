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
    /// Bytes that the console workload writes.
    #[arg(long, default_value_t = 1 << 20)]
    pub console_bytes: u64,
}

/// What a suite compares unless told: with an A/A twin.
const ARMS: &str = "full,full,kvm-pv,para";

/// Launches of each arm unless told.
const LAUNCHES: u32 = 10;

/// The same when all suites are run, so that it takes less than an hour on the reference host.
pub(crate) const LAUNCHES_OF_ALL: u32 = 5;

/// An experiment with these jobs. `arms` are the ones unless told.
pub(crate) fn experiment(
    common: &CommonArgs,
    name: &str,
    arms: &str,
    jobs: Vec<Job>,
) -> Experiment {
    let arms = if common.arms.is_empty() {
        arms.split(',').map(str::to_owned).collect()
    } else {
        common.arms.clone()
    };
    let shorter = |mut job: Job| {
        if common.smoke {
            job.rounds = (job.rounds / 10).max(1);
        }
        job
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
        watchdog: common.watchdog.unwrap_or(match common.host {
            // Ten times what any boot takes, and several minutes for one that spins.
            Some(Host::Counted) => 20,
            _ => 120,
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
    let jobs = wanted("boot", &args.suite.jobs)?
        .into_iter()
        .map(|job| Job {
            rounds: if job.name == "console" {
                args.console_bytes
            } else {
                job.rounds
            },
            ..job
        });
    let make = || {
        let mut experiment = experiment(&args.suite.common, "boot", "full,para", jobs.collect());
        for kind in &mut experiment.kinds {
            if kind.name == "workload" {
                kind.launches = args.workload_launches;
            }
        }
        experiment.kinds.retain(|kind| kind.launches > 0);
        experiment
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
    let make = || experiment(&args.common, name, ARMS, jobs);
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
