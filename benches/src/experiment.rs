//! What a benchmark is made of. It stands in the first line of its result, so that a result can be gone on with, and
//! read without the program that made it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::arm::{Arm, ArmError, name_twins};
use crate::host::Host;
use crate::job::Kind;
use crate::plan::{Step, plan};
use crate::sample::Sample;

/// Everything that decides which launches are made, and in which order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Experiment {
    /// The suite's name.
    pub suite: String,
    /// The arms; ratios are to the first.
    pub arms: Vec<String>,
    /// The kinds of launch.
    pub kinds: Vec<Kind>,
    /// Seed of the order and of the bootstrap.
    pub seed: u64,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// vCPUs; a job that wants more gets more.
    pub cpus: u8,
    /// Seconds that a boot may take.
    pub watchdog: u64,
    /// Whether `paravane doctor` is asked what exits cost.
    pub doctor: bool,
    /// A kind is launched no more when its intervals are at most so wide, by their ratios.
    pub until: Option<f64>,
    /// Whether this is a try with fewer rounds, not to be published.
    pub smoke: bool,
}

impl Experiment {
    /// The arms, twins with names of their own.
    ///
    /// # Errors
    ///
    /// When a word is not an arm.
    pub fn arms(&self) -> Result<Vec<Arm>, ArmError> {
        let arms: Result<Vec<Arm>, _> = self.arms.iter().map(|name| name.parse()).collect();
        let mut arms = arms?;
        name_twins(&mut arms);
        Ok(arms)
    }

    /// The launches of `arms` in their order.
    #[must_use]
    pub fn steps(&self, arms: &[Arm]) -> Vec<Step> {
        let launches: Vec<u32> = self.kinds.iter().map(|kind| kind.launches).collect();
        plan(&launches, arms.len(), self.seed, |kind, arm| {
            let kind = self.kinds.get(kind);
            kind.zip(arms.get(arm))
                .is_some_and(|(kind, arm)| arm.fits(kind))
        })
    }

    /// The line of the result.
    ///
    /// # Errors
    ///
    /// When it cannot be written as JSON.
    pub fn record(&self) -> serde_json::Result<String> {
        let mut line = serde_json::to_value(self)?;
        if let Value::Object(fields) = &mut line {
            fields.insert("record".to_owned(), json!("experiment"));
        }
        Ok(line.to_string())
    }
}

/// The line after the samples of one launch: a launch without it was cut.
#[must_use]
pub fn launched(order: u32) -> String {
    json!({ "record": "launched", "order": order }).to_string()
}

/// The last line of a result: all launches were made.
#[must_use]
pub fn complete() -> String {
    json!({ "record": "complete" }).to_string()
}

/// A result file, read back.
#[derive(Clone, Debug)]
pub struct Saved {
    /// What was to be done.
    pub experiment: Experiment,
    /// On which machine.
    pub machine: Option<Value>,
    /// Every whole line: records, and the samples of whole launches.
    pub lines: Vec<String>,
    /// The positions of whole launches.
    pub launched: BTreeSet<u32>,
}

impl Saved {
    /// Reads a result file.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is not one.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("the result `{}` cannot be read", path.display()))?;
        Self::parse(&text).with_context(|| {
            format!(
                "`{}` is not the result of a benchmark: its first line must be the experiment's record",
                path.display()
            )
        })
    }

    /// Reads a result's text. What a launch that was cut has left is dropped.
    ///
    /// # Errors
    ///
    /// When there is no record of the experiment.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let (mut experiment, mut machine) = (None, None);
        let mut launched = BTreeSet::new();
        for line in text.lines() {
            let Ok(value) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            match value.get("record").and_then(Value::as_str) {
                Some("experiment") => experiment = Some(serde_json::from_value(value)?),
                Some("machine") if machine.is_none() => machine = Some(value),
                Some("launched") => {
                    let order = value.get("order").and_then(Value::as_u64);
                    launched.extend(order.and_then(|order| u32::try_from(order).ok()));
                }
                _ => {}
            }
        }
        let Some(experiment) = experiment else {
            bail!("there is no record of an experiment");
        };
        let whole = |line: &&str| {
            // The last line may have been cut in its middle.
            serde_json::from_str::<Value>(line).is_ok()
                && serde_json::from_str::<Sample>(line)
                    .map_or(true, |sample| launched.contains(&sample.origin.order))
        };
        let lines = text.lines().filter(whole).map(str::to_owned).collect();
        Ok(Self {
            experiment,
            machine,
            lines,
            launched,
        })
    }

    /// The class of host that it was begun on.
    #[must_use]
    pub fn host(&self) -> Option<Host> {
        let name = self.machine.as_ref()?.get("host")?.as_str()?;
        Host::from_str(name, true).ok()
    }

    /// Its samples.
    pub fn samples(&self) -> impl Iterator<Item = Sample> {
        self.lines
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
    }

    /// The record of that name, if there is one.
    #[must_use]
    pub fn record(&self, name: &str) -> Option<&str> {
        let text = format!("\"record\":\"{name}\"");
        let line = self.lines.iter().find(|line| line.contains(&text));
        line.map(String::as_str)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::job::{kinds, suite};
    use crate::sample::{Origin, Outcome};

    pub(crate) fn experiment() -> Experiment {
        Experiment {
            suite: "boot".into(),
            arms: vec!["full".into(), "full".into(), "para".into()],
            kinds: kinds(suite("boot").cloned(), 4),
            seed: 7,
            memory_mib: 128,
            cpus: 1,
            watchdog: 60,
            doctor: false,
            until: Some(0.05),
            smoke: false,
        }
    }

    #[test]
    fn an_experiment_comes_back_as_it_was_written() {
        let line = experiment().record().unwrap();
        let saved = Saved::parse(&line).unwrap();
        assert_eq!(saved.experiment, experiment());
        let steps = |experiment: &Experiment| experiment.steps(&experiment.arms().unwrap());
        assert_eq!(steps(&saved.experiment), steps(&experiment()));
    }

    #[test]
    fn what_a_cut_launch_left_is_dropped() {
        let sample = |order| {
            let origin = Origin {
                order,
                ..Origin::default()
            };
            let outcome = Outcome::Failed {
                failed: "x".to_owned(),
            };
            serde_json::to_string(&Sample { origin, outcome }).unwrap()
        };
        let lines = [
            experiment().record().unwrap(),
            "{\"record\":\"machine\",\"cpu\":\"x\",\"host\":\"counted\"}".to_owned(),
            sample(0),
            launched(0),
            sample(1),
            sample(1),
            "{\"suite\":\"bo".to_owned(),
        ];
        let saved = Saved::parse(&lines.join("\n")).unwrap();
        assert_eq!(saved.lines.len(), 4);
        assert_eq!(saved.launched, BTreeSet::from([0]));
        assert_eq!(saved.samples().count(), 1);
        assert!(saved.machine.is_some() && saved.record("machine").is_some());
        assert_eq!(saved.host(), Some(Host::Counted));
        assert!(Saved::parse("{}").is_err());
    }
}
