//! The launches, one after the other, on the host that this process is on.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use crate::arm::Arm;
use crate::experiment::{Experiment, launched};
use crate::host::Host;
use crate::job::{Job, Kind};
use crate::launch::{LaunchError, Launcher};
use crate::machine;
use crate::metrics::Metric;
use crate::network::Network;
use crate::plan::Step;
use crate::sample::{Origin, Outcome, Sample, Samples};
use crate::statistics::{MEANINGFUL_LAUNCHES, Ratio, ratio_by_launch};

/// So many failed launches, and none before that gave a number, end a benchmark.
const HOPELESS: u32 = 6;

/// The launches of one benchmark on the host that this process is on.
pub(crate) struct Run<'a> {
    pub(crate) launcher: &'a Launcher,
    pub(crate) experiment: &'a Experiment,
    pub(crate) arms: &'a [Arm],
    pub(crate) class: Host,
    pub(crate) stop: &'a AtomicBool,
    /// The samples so far, of an earlier part of this benchmark first.
    pub(crate) samples: Samples,
    /// The launches that an earlier part has made.
    pub(crate) launched: BTreeSet<u32>,
    /// Which of the launches are this process's.
    pub(crate) share: Share,
}

/// A part of the launches: those whose order leaves the remainder `number` when divided by `of`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub(crate) number: u32,
    pub(crate) of: u32,
}

impl Share {
    pub(crate) const WHOLE: Self = Self { number: 0, of: 1 };

    fn has(self, order: u32) -> bool {
        order % self.of.max(1) == self.number
    }

    /// Whether it is the one that says what holds for all.
    fn is_first(self) -> bool {
        self.number == 0
    }
}

impl Run<'_> {
    /// Launches all that is its share, and gives each line of the result to `take`.
    pub(crate) fn here(
        mut self,
        mut take: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let result = self.all(&mut take);
        // The files of the last launch; a folder that stays behind is no reason to fail.
        let _ = std::fs::remove_dir_all(&self.launcher.scratch);
        result
    }

    fn all(&mut self, take: &mut impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let machine = machine::record(self.class, self.launcher);
        let unequal = machine::unequal_kernels(&machine);
        ensure!(
            unequal.is_empty(),
            "the kernels of the arms differ in more than what is under test: their manifests have another {}; build \
             both again with `cargo ci kernel full` and `cargo ci kernel para`",
            unequal.join(", and another ")
        );
        if self.share.is_first() {
            self.describe(&machine, take)?;
        }
        let wants_network = self.experiment.kinds.iter().any(Kind::net);
        let network = wants_network.then(Network::new).transpose();
        let mut blocks: BTreeMap<(usize, u32), bool> = BTreeMap::new();
        let (mut failed, mut gave_numbers) = (0, !self.launched.is_empty());
        let mut described = false;
        for step in self.experiment.steps(self.arms) {
            let (Some(arm), Some(kind)) = (
                self.arms.get(step.arm),
                self.experiment.kinds.get(step.kind),
            ) else {
                continue;
            };
            let block = (step.kind, step.block);
            let enough = *blocks
                .entry(block)
                .or_insert_with(|| settled(self.experiment, self.arms, &self.samples, kind));
            if enough || !self.wanted(&step, arm) {
                continue;
            }
            let result = match &network {
                Err(why) if kind.net() => Err(LaunchError::Failed(why.clone())),
                _ => self.launcher.launch(kind, arm, self.stop),
            };
            if let Err(LaunchError::Failed(_)) = &result {
                failed += 1;
            } else {
                gave_numbers = true;
            }
            let operations = result.as_ref().ok().and_then(|launched| {
                let record = launched.operations.as_ref()?;
                (!described).then(|| record.line())
            });
            if let Some(line) = operations {
                take(&line?)?;
                described = true;
            }
            let result = result.map(|launched| launched.metrics);
            for sample in self.make_samples(&step, kind, arm, result)? {
                take(&serde_json::to_string(&sample)?)?;
                self.samples.add(sample);
            }
            take(&launched(step.order))?;
            ensure!(
                gave_numbers || failed < HOPELESS,
                "the first {HOPELESS} launches have all failed, and the others would; the reasons stand above"
            );
            if self.stop.load(Ordering::Relaxed) {
                bail!("interrupted; the samples so far are kept, and `--resume` goes on");
            }
        }
        Ok(())
    }

    /// Says what holds for all launches.
    fn describe(
        &self,
        machine: &Value,
        take: &mut impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        take(&machine.to_string())?;
        if self.experiment.doctor
            && let Some(line) = machine::crossings(&self.launcher.program, self.class.name())
        {
            take(&line.to_string())?;
        }
        for arm in self.arms {
            if let Some(why) = absent(arm, self.class) {
                take(&json!({ "record": "absent", "arm": arm.name, "why": why }).to_string())?;
            }
        }
        Ok(())
    }

    /// Whether this launch is still to be made.
    fn wanted(&self, step: &Step, arm: &Arm) -> bool {
        let most = arm.peer.and_then(|peer| peer.launches).unwrap_or(u32::MAX);
        self.share.has(step.order)
            && !self.launched.contains(&step.order)
            && step.launch <= most
            && absent(arm, self.class).is_none()
    }

    fn make_samples(
        &self,
        step: &Step,
        kind: &Kind,
        arm: &Arm,
        result: Result<Vec<Metric>, LaunchError>,
    ) -> anyhow::Result<Vec<Sample>> {
        let origin = |job: &str| Origin {
            suite: self.experiment.suite.clone(),
            job: job.to_owned(),
            arm: arm.name.clone(),
            io: arm.io.to_owned(),
            host: self.class.name().to_owned(),
            launch: step.launch,
            block: step.block,
            order: step.order,
            seed: self.experiment.seed,
        };
        match result {
            Ok(metrics) => {
                let sample = |metric: Metric| Sample {
                    origin: origin(&metric.job),
                    outcome: Outcome::Value {
                        metric: metric.name,
                        unit: metric.unit.to_owned(),
                        value: metric.value,
                    },
                };
                Ok(metrics.into_iter().map(sample).collect())
            }
            Err(LaunchError::Interrupted) => {
                bail!("interrupted; the samples so far are kept, and `--resume` goes on")
            }
            Err(LaunchError::Failed(failed)) => {
                let sample = |job: &Job| Sample {
                    origin: origin(&job.name),
                    outcome: Outcome::Failed {
                        failed: failed.clone(),
                    },
                };
                Ok(kind.jobs.iter().map(sample).collect())
            }
        }
    }
}

/// Whether every interval of this kind's jobs is as narrow as was asked for.
fn settled(experiment: &Experiment, arms: &[Arm], samples: &Samples, kind: &Kind) -> bool {
    let judged = |arm: &&Arm| arm.peer.is_none() && arm.fits(kind);
    let judged: Vec<&Arm> = arms.iter().filter(judged).collect();
    let (Some(until), Some((base, judged))) = (experiment.until, judged.split_first()) else {
        return false;
    };
    let ratio = |job: &Job, arm: &Arm| {
        let values = samples.values(&job.name, job.metric())?;
        let (base, arm) = (values.get(&base.name)?, values.get(&arm.name)?);
        ratio_by_launch(base, arm, experiment.seed)
    };
    let narrow = |ratio: Ratio| {
        ratio.pairs >= MEANINGFUL_LAUNCHES && ratio.high - ratio.low <= until * ratio.value
    };
    let is_settled = |job: &Job| judged.iter().all(|arm| ratio(job, arm).is_some_and(narrow));
    !judged.is_empty() && kind.jobs.iter().all(is_settled)
}

/// Why the arm is not launched on this host, if it is not.
fn absent(arm: &Arm, class: Host) -> Option<String> {
    let peer = arm.peer?;
    if let Some(why) = peer.absent_on.get(class.name()) {
        return Some(why.clone());
    }
    peer.path()
        .is_none()
        .then(|| format!("`{}` is not in PATH on this host", peer.program))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::tests::experiment;
    use crate::job::{kinds, suite};

    #[test]
    fn each_launch_is_in_one_share() {
        for of in [1, 2, 3, 8] {
            let shares = (0..of).map(|number| Share { number, of });
            for order in 0..20 {
                assert_eq!(shares.clone().filter(|share| share.has(order)).count(), 1);
            }
        }
    }

    #[test]
    fn a_kind_is_settled_by_the_arms_that_are_launched_and_not_by_none() {
        let disk = suite("io").find(|job| job.disk > 0).unwrap();
        let kinds = kinds([disk.clone()], 10);
        let arms = |names: &[&str]| -> Vec<Arm> {
            names.iter().map(|name| name.parse().unwrap()).collect()
        };
        let mut samples = Samples::default();
        let is_settled = |samples: &Samples, names: &[&str]| {
            settled(&experiment(), &arms(names), samples, &kinds[0])
        };
        for launch in 1..=5 {
            // The network of the last one is not in this kind of launch.
            assert!(!is_settled(&samples, &["full", "para", "para@kernel"]));
            for arm in ["full", "para"] {
                let origin = Origin {
                    job: disk.name.clone(),
                    arm: arm.to_owned(),
                    launch,
                    ..Origin::default()
                };
                let (metric, unit) = (disk.metric().to_owned(), "ns".to_owned());
                let value = 1000;
                let outcome = Outcome::Value {
                    metric,
                    unit,
                    value,
                };
                samples.add(Sample { origin, outcome });
            }
        }
        assert!(is_settled(&samples, &["full", "para", "para@kernel"]));
        assert!(!is_settled(&samples, &["full", "kvm-pv"]));
        assert!(
            !is_settled(&samples, &["full", "qemu-tcg"]),
            "a peer settles nothing"
        );
    }
}
