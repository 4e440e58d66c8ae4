//! The figures of a report.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::arm::{Arm, twin_of};
use crate::experiment::Saved;
use crate::job::{Counts, Direction, Job};
use crate::machine;
use crate::metrics::LATE_BUCKET;
use crate::ops::SUITE;
use crate::ops_results::Results;
use crate::ops_table::{Section, origin, sections};
use crate::sample::Samples;
use crate::statistics::{MEANINGFUL_LAUNCHES, Ratio, float, median, ratio_by_launch};
use crate::table::ExitCosts;

/// Everything that a report says.
pub(super) struct Report {
    pub(super) parts: Vec<Part>,
    /// What `paravane bench ops` measured, a class of host each.
    pub(super) operations: Vec<Operations>,
}

/// The tables of `paravane bench ops`.
pub(super) struct Operations {
    pub(super) sections: Vec<Section>,
    pub(super) origin: String,
}

impl Operations {
    fn of(results: &Results) -> Self {
        Self {
            sections: sections(results),
            origin: origin(results),
        }
    }
}

/// One suite on one host.
pub(super) struct Part {
    pub(super) suite: String,
    pub(super) host: String,
    /// The arms' names; ratios are to the first.
    pub(super) arms: Vec<String>,
    pub(super) seed: u64,
    pub(super) smoke: bool,
    pub(super) machine: Value,
    pub(super) costs: Option<ExitCosts>,
    /// Peers that were not there, and why.
    pub(super) absent: Vec<(String, String)>,
    pub(super) jobs: Vec<Figures>,
}

/// The figures of one job.
pub(super) struct Figures {
    pub(super) job: Job,
    /// Our arms, by the VMM's clock.
    pub(super) arms: Vec<ArmFigures>,
    /// The same arms and the peers, by what all of them have; empty without peers.
    pub(super) peers: Vec<ArmFigures>,
    /// The interval of the A/A twin.
    pub(super) twin: Option<Ratio>,
    /// The arms' failed launches: how many, and the first one's reason.
    pub(super) failures: Vec<(String, usize, String)>,
}

/// The figures of one arm.
pub(super) struct ArmFigures {
    pub(super) name: String,
    /// By launch.
    pub(super) raw: BTreeMap<u32, u64>,
    pub(super) median: f64,
    /// To the first arm; the first arm has none.
    pub(super) ratio: Option<Ratio>,
    pub(super) verdict: Verdict,
    pub(super) exits: Option<f64>,
    pub(super) user_exits: Option<f64>,
    /// Of a job of sleeps: how many were less than 2^n µs late, all launches together.
    pub(super) late: Vec<u64>,
}

/// What may be said about an arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is what the others are compared with.
    Base,
    /// It is the first arm once more.
    Twin,
    /// Better, beyond both intervals.
    Gain,
    /// Worse, beyond both intervals.
    Loss,
    /// No difference is shown.
    Same,
    /// Too few launches to tell.
    Few,
}

impl Verdict {
    /// In a word or two.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Twin => "A/A twin",
            Self::Gain => "gain",
            Self::Loss => "loss",
            Self::Same => "no difference shown",
            Self::Few => "too few launches",
        }
    }

    /// The verdict on a ratio, by its own interval and by that of the twin.
    pub(super) fn of(ratio: Ratio, twin: Option<Ratio>, direction: Direction) -> Self {
        if ratio.pairs < MEANINGFUL_LAUNCHES {
            return Self::Few;
        }
        let within = |low: f64, high: f64, value: f64| (low..=high).contains(&value);
        let by_twin =
            twin.is_some_and(|twin| within(twin.low.min(1.0), twin.high.max(1.0), ratio.value));
        if within(ratio.low, ratio.high, 1.0) || by_twin {
            Self::Same
        } else if (ratio.value < 1.0) == (direction == Direction::Lower) {
            Self::Gain
        } else {
            Self::Loss
        }
    }
}

impl Report {
    /// Computes every figure.
    pub(super) fn of(saved: Vec<Saved>) -> Self {
        let (operations, saved): (Vec<Saved>, Vec<Saved>) = saved
            .into_iter()
            .partition(|saved| saved.experiment.suite == SUITE);
        let parts = saved.into_iter().map(Part::of);
        Self {
            parts: parts.filter(|part| !part.jobs.is_empty()).collect(),
            operations: operations
                .iter()
                .map(|saved| Operations::of(&Results::of(saved)))
                .filter(|operations| !operations.sections.is_empty())
                .collect(),
        }
    }

    /// The figures of an arm, of every part that has the job.
    pub(super) fn find<'a>(
        &'a self,
        suite: &'a str,
        job: &'a str,
        arm: &'a str,
    ) -> impl Iterator<Item = (&'a Part, &'a Figures, &'a ArmFigures)> {
        self.parts
            .iter()
            .filter(move |part| part.suite == suite)
            .flat_map(|part| part.jobs.iter().map(move |figures| (part, figures)))
            .filter(move |(_, figures)| figures.job.name == job)
            .filter_map(move |(part, figures)| {
                let found = figures.arm(arm)?;
                Some((part, figures, found))
            })
    }
}

impl Part {
    fn of(saved: Saved) -> Self {
        let samples: Samples = saved.samples().collect();
        let experiment = &saved.experiment;
        // The words were arms when the result was made; one that is none any more has samples all the same.
        let arms: Vec<Arm> = experiment.arms().unwrap_or_default();
        let seed = experiment.seed;
        let jobs = experiment.kinds.iter().flat_map(|kind| &kind.jobs);
        let jobs = jobs.filter(|job| samples.has(&job.name));
        let jobs = jobs
            .map(|job| figures(job, &arms, &samples, seed))
            .collect();
        let text = |value: &Value, name: &str| {
            value
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or("unknown")
                .to_owned()
        };
        let absent = saved
            .lines
            .iter()
            .filter(|line| line.contains("\"record\":\"absent\""))
            .filter_map(|line| serde_json::from_str(line).ok())
            .map(|record: Value| (text(&record, "arm"), text(&record, "why")))
            .collect();
        let machine = saved.machine.clone().unwrap_or_default();
        Self {
            suite: experiment.suite.clone(),
            host: text(&machine, "host"),
            arms: arms.into_iter().map(|arm| arm.name).collect(),
            seed,
            smoke: experiment.smoke,
            costs: saved.record("crossings").and_then(machine::exit_costs),
            machine,
            absent,
            jobs,
        }
    }

    /// An arm's time in one job by its time in another, paired by launch: the two were interleaved.
    pub(super) fn between(&self, arm: &str, job: &str, base: &str) -> Option<Ratio> {
        let raw = |job: &str| {
            let figures = self.jobs.iter().find(|figures| figures.job.name == job)?;
            Some(&figures.arm(arm)?.raw)
        };
        ratio_by_launch(raw(base)?, raw(job)?, self.seed)
    }

    /// One arm's values by another's, paired by launch.
    pub(super) fn between_arms(&self, arm: &ArmFigures, base: &ArmFigures) -> Option<Ratio> {
        ratio_by_launch(&base.raw, &arm.raw, self.seed)
    }

    /// A name for links to a job's raw samples.
    pub(super) fn anchor(&self, job: &Job) -> String {
        format!("{}-{}-{}", self.host, self.suite, job.name)
    }
}

impl Figures {
    /// Our arm of that name.
    pub(super) fn arm(&self, name: &str) -> Option<&ArmFigures> {
        self.arms.iter().find(|arm| arm.name == name)
    }

    /// How many launches of an arm failed.
    pub(super) fn failed(&self, arm: &str) -> usize {
        let failed = self.failures.iter().find(|(name, ..)| name == arm);
        failed.map_or(0, |(_, count, _)| *count)
    }
}

/// The histogram of a job of sleeps; empty for the others.
fn late(job: &Job, arm: &str, samples: &Samples) -> Vec<u64> {
    if job.counts != Some(Counts::Late) {
        return Vec::new();
    }
    let bucket = |n: u32| {
        let values = samples.values(&job.name, &format!("{LATE_BUCKET}{n}"))?;
        Some(values.get(arm)?.values().sum())
    };
    (0..).map_while(bucket).collect()
}

fn figures(job: &Job, arms: &[Arm], samples: &Samples, seed: u64) -> Figures {
    let base = arms.first().map_or("", |arm| &arm.name);
    let (ours, peers): (Vec<&Arm>, Vec<&Arm>) = arms.iter().partition(|arm| arm.peer.is_none());
    let of = |metric: &str, arms: &[&Arm]| -> (Vec<ArmFigures>, Option<Ratio>) {
        let raw = |arm: &str| {
            let values = samples.values(&job.name, metric)?.get(arm)?;
            Some(values.clone()).filter(|values| !values.is_empty())
        };
        let ratio = |arm: &str| ratio_by_launch(&raw(base)?, &raw(arm)?, seed);
        let twin = arms
            .iter()
            .find(|arm| twin_of(&arm.name) == Some(base))
            .and_then(|arm| ratio(&arm.name))
            .filter(|twin| twin.pairs >= MEANINGFUL_LAUNCHES);
        let figures = arms.iter().filter_map(|arm| {
            let raw = raw(&arm.name)?;
            let values: Vec<f64> = raw.values().map(|value| float(*value)).collect();
            let count = |metric: &str| {
                let values = samples.values(&job.name, metric)?.get(&arm.name)?;
                median(
                    &values
                        .values()
                        .map(|value| float(*value))
                        .collect::<Vec<_>>(),
                )
            };
            let (exits, user_exits) = if job.work.is_none() {
                ("exits_to_init", "user_exits_to_init")
            } else {
                ("exits", "user_exits")
            };
            let compared = (arm.name != base).then(|| ratio(&arm.name)).flatten();
            let verdict = match compared {
                _ if twin_of(&arm.name) == Some(base) => Verdict::Twin,
                Some(ratio) => Verdict::of(ratio, twin, job.direction),
                None => Verdict::Base,
            };
            Some(ArmFigures {
                name: arm.name.clone(),
                median: median(&values)?,
                raw,
                ratio: compared,
                verdict,
                exits: count(exits),
                user_exits: count(user_exits),
                late: late(job, &arm.name, samples),
            })
        });
        (figures.collect(), twin)
    };
    let (own, twin) = of(job.metric(), &ours);
    let everybody: Vec<&Arm> = ours
        .iter()
        .filter(|arm| twin_of(&arm.name).is_none())
        .chain(&peers)
        .copied()
        .collect();
    let common = if job.work.is_some() {
        "guest_ns"
    } else {
        "process_ns"
    };
    let peers = if peers.is_empty() {
        Vec::new()
    } else {
        of(common, &everybody).0
    };
    let failures = arms
        .iter()
        .filter_map(|arm| {
            let reasons = samples.failures(&job.name, &arm.name);
            Some((arm.name.clone(), reasons.len(), reasons.first()?.clone()))
        })
        .collect();
    Figures {
        job: job.clone(),
        arms: own,
        peers,
        twin,
        failures,
    }
}
