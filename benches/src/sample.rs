//! Raw results, one JSON object a line.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What a line is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The suite.
    pub suite: String,
    /// The job within it.
    pub job: String,
    /// The arm's name.
    pub arm: String,
    /// Where its devices are served: `hosted`, `kernel`; of a peer nothing is said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub io: String,
    /// The class of the host: `kvm` or `reference`. Classes are never compared with each other.
    pub host: String,
    /// The pair that the launch belongs to, from 1.
    pub launch: u32,
    /// The ABBA block, from 0.
    pub block: u32,
    /// The position of the launch in the whole benchmark, from 0.
    pub order: u32,
    /// The seed that the order was drawn with.
    pub seed: u64,
}

/// One line: a number, or a launch that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// What the line is about.
    #[serde(flatten)]
    pub origin: Origin,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A number, or the reason why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Outcome {
    /// A measured value.
    Value {
        /// What was measured.
        metric: String,
        /// `ns`, `exits`, `calls`, `bytes` or `count`.
        unit: String,
        /// The number.
        value: u64,
    },
    /// A launch without a number.
    Failed {
        /// Why.
        failed: String,
    },
}

/// The values of one metric: by arm, then by launch.
pub type Values = BTreeMap<String, BTreeMap<u32, u64>>;

/// All samples, gathered for the table.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// By job and metric.
    values: BTreeMap<(String, String), Values>,
    /// By job and arm: the reasons.
    failures: BTreeMap<(String, String), Vec<String>>,
    /// The launches that failed, by their position in the benchmark.
    failed: BTreeSet<u32>,
}

impl FromIterator<Sample> for Samples {
    fn from_iter<I: IntoIterator<Item = Sample>>(all: I) -> Self {
        let mut samples = Self::default();
        all.into_iter().for_each(|sample| samples.add(sample));
        samples
    }
}

impl Samples {
    /// Takes one line in.
    pub fn add(&mut self, sample: Sample) {
        let Sample { origin, outcome } = sample;
        match outcome {
            Outcome::Value { metric, value, .. } => {
                let by_arm = self.values.entry((origin.job, metric)).or_default();
                by_arm
                    .entry(origin.arm)
                    .or_default()
                    .insert(origin.launch, value);
            }
            Outcome::Failed { failed } => {
                self.failed.insert(origin.order);
                self.failures
                    .entry((origin.job, origin.arm))
                    .or_default()
                    .push(failed);
            }
        }
    }

    /// Reads lines as they stand in a result file; lines that are not samples (the machine's record) are left out.
    #[must_use]
    pub fn parse(lines: &str) -> Self {
        let lines = lines.lines();
        lines
            .filter_map(|line| serde_json::from_str::<Sample>(line).ok())
            .collect()
    }

    /// The values of one metric.
    #[must_use]
    pub fn values(&self, job: &str, metric: &str) -> Option<&Values> {
        self.values.get(&(job.to_owned(), metric.to_owned()))
    }

    /// The names of a job's metrics that begin with `prefix`.
    pub fn metrics<'a>(&'a self, job: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let of_job = self.values.keys().filter(move |(of, _)| of == job);
        of_job
            .map(|(_, metric)| metric.as_str())
            .filter(move |metric| metric.starts_with(prefix))
    }

    /// The reasons why launches of an arm failed.
    #[must_use]
    pub fn failures(&self, job: &str, arm: &str) -> &[String] {
        self.failures
            .get(&(job.to_owned(), arm.to_owned()))
            .map_or(&[], Vec::as_slice)
    }

    /// How many launches failed.
    #[must_use]
    pub fn failed_launches(&self) -> usize {
        self.failed.len()
    }

    /// Whether a job has any line.
    #[must_use]
    pub fn has(&self, job: &str) -> bool {
        self.values
            .keys()
            .chain(self.failures.keys())
            .any(|(of, _)| of == job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(arm: &str, launch: u32) -> Origin {
        Origin {
            suite: "boot".into(),
            job: "boot".into(),
            arm: arm.into(),
            host: "kvm".into(),
            launch,
            seed: 1,
            ..Origin::default()
        }
    }

    #[test]
    fn a_line_is_flat_and_a_failed_one_has_no_value() {
        let outcome = Outcome::Value {
            metric: "boot_to_init_ns".into(),
            unit: "ns".into(),
            value: 7,
        };
        let line = serde_json::to_value(Sample {
            origin: origin("full", 1),
            outcome,
        })
        .unwrap();
        for key in [
            "suite", "job", "arm", "host", "launch", "metric", "unit", "value",
        ] {
            assert!(line.get(key).is_some(), "{key} is not in {line}");
        }
        let outcome = Outcome::Failed {
            failed: "watchdog".into(),
        };
        let line = serde_json::to_value(Sample {
            origin: origin("full", 1),
            outcome,
        })
        .unwrap();
        assert_eq!(line["failed"], "watchdog");
        assert!(line.get("value").is_none() && line.get("metric").is_none());
    }

    #[test]
    fn lines_come_back_as_they_were_written() {
        let mut text = String::from("{\"suite\":\"boot\",\"record\":\"machine\"}\n");
        for (arm, launch, value) in [("full", 1, 10), ("para", 1, 4), ("full", 2, 12)] {
            let outcome = Outcome::Value {
                metric: "exits_to_init".into(),
                unit: "exits".into(),
                value,
            };
            let sample = Sample {
                origin: origin(arm, launch),
                outcome,
            };
            text += &format!("{}\n", serde_json::to_string(&sample).unwrap());
        }
        let outcome = Outcome::Failed {
            failed: "no init".into(),
        };
        let failed = Sample {
            origin: origin("para", 2),
            outcome,
        };
        text += &serde_json::to_string(&failed).unwrap();
        let samples = Samples::parse(&text);
        let values = samples.values("boot", "exits_to_init").unwrap();
        assert_eq!(values["full"], BTreeMap::from([(1, 10), (2, 12)]));
        assert_eq!(values["para"], BTreeMap::from([(1, 4)]));
        assert_eq!(samples.failures("boot", "para"), ["no init"]);
    }
}
