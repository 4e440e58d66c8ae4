//! The jobs: data files in `benches/jobs/<suite>/<job>.toml`, part of the program.
//!
//! A job says what is measured, in which unit, which direction is better, which facility of the ABI it tests and which
//! claims bear on it. Jobs of one [`Kind`] of launch share a guest: its boot costs more than most of them.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::neighbour::Beside;
use crate::table::Kind as Number;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

/// What a job compares where its time says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counts {
    /// The exits between its marks.
    Exits,
    /// How late its sleeps ended, nine of ten.
    Late,
    /// The cycles of each operation, in the guest's kernel.
    Cycles,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The suite: the folder's name.
    #[serde(default)]
    pub suite: String,
    /// The job: the file's name.
    #[serde(default)]
    pub name: String,
    /// A few words for a heading.
    pub title: String,
    /// A sentence: what happens.
    pub what: String,
    /// The facility that it tests, `all` or `none`.
    pub facility: String,
    /// The claims that its result bears on.
    #[serde(default)]
    pub claims: Vec<String>,
    /// Jobs of one launch share a guest.
    pub launch: String,
    /// Whether the guest boots without messages.
    #[serde(default)]
    pub quiet: bool,
    /// vCPUs of its guest.
    #[serde(default = "one")]
    pub cpus: u8,
    /// MiB of its guest's memory, if it wants more than the others.
    #[serde(default)]
    pub memory: u64,
    /// What runs beside the guest.
    #[serde(default)]
    pub beside: Option<Beside>,
    /// MiB of the guest's disk, which is new and empty; 0: it has none.
    #[serde(default)]
    pub disk: u64,
    /// Whether its guest is connected to a network of this host's.
    #[serde(default)]
    pub net: bool,
    /// What the guest's init does, by its own word; nothing for a boot.
    #[serde(default)]
    pub work: Option<String>,
    /// Of the work `program`: the shell command, in the root file system that `paravane image` makes for this; `$ROUNDS` is
    /// how often. It has no double quotes, for the kernel's command line has them.
    #[serde(default)]
    pub command: Option<String>,
    /// How often.
    #[serde(default = "one")]
    pub rounds: u64,
    /// With how many processes or threads.
    #[serde(default = "one")]
    pub tasks: u8,
    /// What a round is called.
    #[serde(default = "boot")]
    pub round: String,
    /// What is compared, where it is not the time: `exits`, `late` or `cycles`.
    #[serde(default)]
    pub counts: Option<Counts>,
    /// The unit of the number.
    pub unit: String,
    /// Which way is better.
    pub direction: Direction,
}

fn one<T: From<u8>>() -> T {
    1.into()
}

fn boot() -> String {
    "boot".to_owned()
}

impl Job {
    /// The metric that counts; the others explain it.
    #[must_use]
    pub const fn metric(&self) -> &'static str {
        match (&self.work, self.counts) {
            (None, _) => "boot_to_init_ns",
            (Some(_), None) => "time_ns",
            (Some(_), Some(Counts::Exits)) => "exits",
            (Some(_), Some(Counts::Late)) => "late_p90_ns",
            // What measuring costs: there is no one number of all operations.
            (Some(_), Some(Counts::Cycles)) => "empty.median",
        }
    }

    /// Whether `pvbench.ko` does it, in the guest's kernel, and tells its numbers itself.
    #[must_use]
    pub(crate) fn is_by_module(&self) -> bool {
        self.counts == Some(Counts::Cycles)
    }

    /// How its number is written.
    #[must_use]
    pub(crate) const fn number(&self) -> Number {
        match self.counts {
            None | Some(Counts::Late) => Number::Time,
            Some(Counts::Exits | Counts::Cycles) => Number::Count,
        }
    }

    /// What the guest's init is told, with `percent` more rounds than the job says.
    #[must_use]
    pub fn order(&self, percent: u32) -> Option<String> {
        let work = self.work.as_ref()?;
        if self.is_by_module() {
            return Some(work.clone());
        }
        let rounds = self.rounds + self.rounds * u64::from(percent) / 100;
        let order = format!("job={work}:{rounds}:{}", self.tasks);
        Some(match &self.command {
            Some(command) => format!("\"{order}:{command}\""),
            None => order,
        })
    }
}

/// One kind of launch, and how often each arm makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// The name that its jobs give it.
    pub name: String,
    /// Launches of each arm; the most, where a stop rule may end them earlier.
    pub launches: u32,
    /// The jobs, in the guest's order.
    pub jobs: Vec<Job>,
    /// The arms that make it, by their names in results; empty: all that [fit](crate::arm::Arm::fits).
    #[serde(default)]
    pub arms: Vec<String>,
}

impl Kind {
    /// Whether the guest boots without messages.
    #[must_use]
    pub fn quiet(&self) -> bool {
        self.jobs.iter().any(|job| job.quiet)
    }

    /// MiB of the guest's memory, at the least.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.jobs.iter().map(|job| job.memory).max().unwrap_or(0)
    }

    /// MiB of the guest's disk.
    #[must_use]
    pub fn disk(&self) -> u64 {
        self.jobs.iter().map(|job| job.disk).max().unwrap_or(0)
    }

    /// Whether its jobs are programs of a distribution.
    #[must_use]
    pub fn has_root(&self) -> bool {
        self.jobs.iter().any(|job| job.command.is_some())
    }

    /// What runs beside its guest.
    #[must_use]
    pub fn beside(&self) -> Option<Beside> {
        self.jobs.iter().find_map(|job| job.beside)
    }

    /// Whether the guest is connected to a network.
    #[must_use]
    pub fn net(&self) -> bool {
        self.jobs.iter().any(|job| job.net)
    }

    /// vCPUs of the guest.
    #[must_use]
    pub fn cpus(&self) -> u8 {
        self.jobs.iter().map(|job| job.cpus).max().unwrap_or(1)
    }
}

/// The text of each job's file, after its suite and its name.
macro_rules! files {
    ($($suite:literal: $($name:literal)+;)+) => {
        &[$($(($suite, $name, include_str!(concat!("../jobs/", $suite, "/", $name, ".toml"))),)+)+]
    };
}

/// The file of every job, in the order in which they are shown.
const FILES: &[(&str, &str, &str)] = files! {
    "boot": "boot" "boot-quiet" "console" "syscall";
    "os": "null" "clock" "open" "switch" "pipe" "fork" "exec" "fault" "hash" "map" "signal" "sleep" "nap" "idle";
    "sched": "message-2x" "futex-2x" "shootdown-2x" "lock-2x" "message-4x" "futex-4x" "shootdown-4x" "lock-4x";
    "io": "read" "write" "sync" "scan" "load" "ping" "send";
    "apps": "compile" "database" "cache" "fio" "iperf3";
    "ops": "operations" "left-out" "alone";
    "neighbours": "alone" "busy-guest" "crashing-guest" "busy-host";
};

static JOBS: LazyLock<Vec<Job>> = LazyLock::new(|| {
    let read = |(suite, name, text): &(&str, &str, &str)| {
        // A file that does not read is found by a test; without it, its job is not there.
        let job: Job = toml::from_str(text).ok()?;
        Some(Job {
            suite: (*suite).to_owned(),
            name: (*name).to_owned(),
            ..job
        })
    };
    FILES.iter().filter_map(read).collect()
});

/// The jobs of a suite.
pub fn suite(name: &str) -> impl Iterator<Item = &'static Job> {
    JOBS.iter().filter(move |job| job.suite == name)
}

/// The suites' names, in the order in which they are shown.
#[must_use]
pub fn suites() -> Vec<&'static str> {
    let mut names: Vec<&str> = JOBS.iter().map(|job| job.suite.as_str()).collect();
    names.dedup();
    names
}

/// Puts jobs that share a guest together; each kind is launched `launches` times.
#[must_use]
pub fn kinds(jobs: impl IntoIterator<Item = Job>, launches: u32) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for job in jobs {
        match kinds.iter_mut().find(|kind| kind.name == job.launch) {
            Some(kind) => kind.jobs.push(job),
            None => kinds.push(Kind {
                name: job.launch.clone(),
                launches,
                jobs: vec![job],
                arms: Vec::new(),
            }),
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn every_data_file_is_a_job() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
        let mut found = BTreeSet::new();
        for suite in std::fs::read_dir(folder).unwrap() {
            let suite = suite.unwrap();
            for file in std::fs::read_dir(suite.path()).unwrap() {
                let name = file.unwrap().file_name().into_string().unwrap();
                let name = name.strip_suffix(".toml").unwrap();
                found.insert((suite.file_name().into_string().unwrap(), name.to_owned()));
            }
        }
        let known: BTreeSet<(String, String)> = JOBS
            .iter()
            .map(|job| (job.suite.clone(), job.name.clone()))
            .collect();
        assert_eq!(known, found);
    }

    #[test]
    fn jobs_that_share_a_guest_agree_about_it() {
        for suite in suites() {
            for kind in kinds(suite_of(suite), 1) {
                for job in &kind.jobs {
                    let (machine, named) = (
                        (kind.quiet(), kind.cpus(), kind.memory()),
                        (job.quiet, job.cpus, job.memory),
                    );
                    assert_eq!(named, machine, "{}", job.name);
                    let devices = (kind.disk(), kind.net());
                    assert_eq!((job.disk, job.net), devices, "{}", job.name);
                    assert_eq!(job.command.is_some(), kind.has_root(), "{}", job.name);
                    assert_eq!(job.beside, kind.beside(), "{}", job.name);
                    assert!(
                        job.work.is_some() || kind.jobs.len() == 1,
                        "a boot is alone: {}",
                        job.name
                    );
                }
            }
        }
    }

    fn suite_of(name: &str) -> impl Iterator<Item = Job> {
        suite(name).cloned()
    }

    #[test]
    fn a_handicapped_arm_does_more_than_it_says() {
        let job = suite("os").find(|job| job.name == "switch").unwrap();
        assert_eq!(job.order(0).unwrap(), "job=switch:4000:1");
        assert_eq!(job.order(5).unwrap(), "job=switch:4200:1");
    }

    #[test]
    fn a_command_fits_the_kernels_command_line() {
        let commands = JOBS
            .iter()
            .filter_map(|job| Some((job, job.command.as_ref()?)));
        for (job, command) in commands {
            assert_eq!(job.work.as_deref(), Some("program"));
            assert!(!command.contains(['"', '\n']), "{}", job.name);
            assert_eq!(job.order(0).unwrap().matches('"').count(), 2);
        }
        // Linux's COMMAND_LINE_SIZE on x86 is 2048.
        for suite in suites() {
            for kind in kinds(suite_of(suite), 1) {
                let orders = kind.jobs.iter().filter_map(|job| job.order(0));
                let length: usize = orders.map(|order| order.len() + 1).sum();
                assert!(length < 1500, "{suite}, {}: {length}", kind.name);
            }
        }
    }
}
