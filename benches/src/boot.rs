//! `paravane bench boot`, and the suites whose jobs come from data files alone.

use anyhow::ensure;

use crate::experiment::Experiment;
use crate::job::{Job, kinds, suite};
use crate::session::{CommonArgs, session};

/// Arguments of `paravane bench boot`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct BootArgs {
    /// What every suite takes.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Launches of each arm for the console and system-call workloads.
    #[arg(long, default_value_t = 2)]
    pub workload_launches: u32,
    /// Bytes that the console workload writes.
    #[arg(long, default_value_t = 1 << 20)]
    pub console_bytes: u64,
    /// Calls that the system-call workload makes.
    #[arg(long, default_value_t = 1_000_000)]
    pub syscalls: u64,
    /// Boot with `quiet` only.
    #[arg(long, conflicts_with = "normal_boot")]
    pub quiet_boot: bool,
    /// Boot with the kernel's normal messages only.
    #[arg(long)]
    pub normal_boot: bool,
}

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
        watchdog: common.watchdog.unwrap_or(120),
        doctor: !common.no_doctor,
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
    let wanted = |job: &&Job| match job.name.as_str() {
        "boot" => !args.quiet_boot,
        "boot-quiet" => !args.normal_boot,
        _ => args.workload_launches > 0,
    };
    let jobs = suite("boot").filter(wanted).cloned().map(|job| Job {
        rounds: match job.name.as_str() {
            "console" => args.console_bytes,
            "syscall" => args.syscalls,
            _ => job.rounds,
        },
        ..job
    });
    let make = || {
        let mut experiment = experiment(&args.common, "boot", "full,para", jobs.collect());
        for kind in &mut experiment.kinds {
            if kind.name == "workload" {
                kind.launches = args.workload_launches;
            }
        }
        experiment.kinds.retain(|kind| kind.launches > 0);
        experiment
    };
    finish(session(&args.common, make, unfit)?)
}

/// Runs a suite of data files.
///
/// # Errors
///
/// As [`session`]; and when a launch failed, or a job is not known.
pub fn run_suite(name: &str, args: &SuiteArgs, unfit: Option<&str>) -> anyhow::Result<()> {
    let wanted = |job: &&Job| args.jobs.is_empty() || args.jobs.contains(&job.name);
    let jobs: Vec<Job> = suite(name).filter(wanted).cloned().collect();
    let known: Vec<&str> = suite(name).map(|job| job.name.as_str()).collect();
    ensure!(
        args.jobs.iter().all(|job| known.contains(&job.as_str())),
        "suite {name} has the jobs {}",
        known.join(", ")
    );
    let make = || experiment(&args.common, name, ARMS, jobs);
    finish(session(&args.common, make, unfit)?)
}

fn finish(whole: bool) -> anyhow::Result<()> {
    ensure!(
        whole,
        "launches failed; their reasons stand below the tables"
    );
    Ok(())
}
