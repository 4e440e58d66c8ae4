//! The result of suite `ops`, as its tables want it.

use std::collections::BTreeMap;

use crate::experiment::{Experiment, Saved};
use crate::machine;
use crate::pvbench::Operations;
use crate::sample::Samples;
use crate::statistics::float;
use crate::table::ExitCosts;

/// What was measured.
pub(crate) struct Results {
    /// What the operations are.
    pub(crate) measured: Operations,
    /// What `paravane doctor` says that exits cost.
    pub(crate) costs: Option<ExitCosts>,
    /// The class of the host.
    pub(crate) host: String,
    pub(crate) seed: u64,
    samples: Samples,
    /// The arms of each job.
    arms: BTreeMap<String, Vec<String>>,
}

impl Results {
    /// Those of an experiment so far.
    pub(crate) fn new(
        experiment: &Experiment,
        samples: Samples,
        measured: Option<Operations>,
        costs: Option<ExitCosts>,
        host: &str,
    ) -> Self {
        let arms = experiment.kinds.iter().flat_map(|kind| {
            let arms = |job: &String| (job.clone(), kind.arms.clone());
            kind.jobs.iter().map(|job| &job.name).map(arms)
        });
        Self {
            measured: measured.unwrap_or_default(),
            costs,
            host: host.to_owned(),
            seed: experiment.seed,
            arms: arms.filter(|(job, _)| samples.has(job)).collect(),
            samples,
        }
    }

    /// Those of a result file.
    pub(crate) fn of(saved: &Saved) -> Self {
        let measured = saved.record("operations");
        let host = saved
            .machine
            .as_ref()
            .and_then(|machine| machine.get("host")?.as_str());
        Self::new(
            &saved.experiment,
            saved.samples().collect(),
            measured.and_then(|line| serde_json::from_str(line).ok()),
            saved.record("crossings").and_then(machine::exit_costs),
            host.unwrap_or("unknown"),
        )
    }

    /// The arms of a job, none of one that was not launched.
    pub(crate) fn arms(&self, job: &str) -> &[String] {
        self.arms.get(job).map_or(&[], Vec::as_slice)
    }

    /// The values of a metric in one arm, by launch.
    pub(crate) fn values(&self, job: &str, metric: &str, arm: &str) -> BTreeMap<u32, f64> {
        let by_launch = self
            .samples
            .values(job, metric)
            .and_then(|arms| arms.get(arm));
        by_launch
            .into_iter()
            .flatten()
            .map(|(launch, value)| (*launch, float(*value)))
            .collect()
    }

    /// The values of two arms in the launches that both have.
    pub(crate) fn pairs(
        &self,
        job: &str,
        metric: &str,
        base: &str,
        arm: &str,
    ) -> BTreeMap<u32, (f64, f64)> {
        let others = self.values(job, metric, arm);
        self.values(job, metric, base)
            .into_iter()
            .filter_map(|(launch, base)| Some((launch, (base, *others.get(&launch)?))))
            .collect()
    }

    /// Why launches of an arm failed.
    pub(crate) fn failures(&self, job: &str, arm: &str) -> &[String] {
        self.samples.failures(job, arm)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ops::SUITE;
    use crate::ops::tests::planned;
    use crate::sample::{Origin, Outcome, Sample};

    /// A number of a job, an arm and a launch.
    pub(crate) fn line(job: &str, arm: &str, launch: u32, metric: &str, value: u64) -> String {
        let outcome = Outcome::Value {
            metric: metric.to_owned(),
            unit: String::new(),
            value,
        };
        sample(job, arm, launch, outcome)
    }

    /// What came of a launch.
    pub(crate) fn sample(job: &str, arm: &str, launch: u32, outcome: Outcome) -> String {
        let origin = Origin {
            suite: SUITE.to_owned(),
            job: job.to_owned(),
            arm: arm.to_owned(),
            launch,
            ..Origin::default()
        };
        serde_json::to_string(&Sample { origin, outcome }).unwrap()
    }

    /// A result file with these lines, as if they were of one launch.
    pub(crate) fn saved(lines: impl IntoIterator<Item = String>) -> Saved {
        let head = [
            planned(&[], &["console", "clock", "x"]).record().unwrap(),
            "{\"record\":\"machine\",\"host\":\"reference\"}".to_owned(),
            r#"{"record":"crossings","crossings":{"cpl0.out":{"median_ns":100.0},"cpl0.cpuid":{"median_ns":50.0}}}"#.to_owned(),
            "{\"record\":\"operations\",\"tsc_khz\":2000000,\"operations\":[\
             {\"op\":\"cpuid\",\"facility\":\"cpuid\",\"what\":\"CPUID <as asked>\"},\
             {\"op\":\"call\",\"facility\":\"base\",\"what\":\"null call\"}]}"
                .to_owned(),
            crate::experiment::launched(0),
        ];
        let lines: Vec<String> = head.into_iter().chain(lines).collect();
        Saved::parse(&lines.join("\n")).unwrap()
    }

    #[test]
    fn a_job_that_was_not_launched_has_no_arms() {
        let results = Results::of(&saved([line("left-out", "para", 1, "x", 1)]));
        assert!(results.arms("operations").is_empty());
        assert_eq!(results.arms("left-out").len(), 5);
        assert!(results.costs.is_some() && results.host == "reference");
        assert_eq!(results.measured.operations.len(), 2);
    }
}
