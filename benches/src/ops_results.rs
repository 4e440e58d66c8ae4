//! What `paravane bench ops` has so far, from its lines alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;

use crate::machine;
use crate::ops_launch::{Operation, Operations, SUITE};
use crate::sample::{Outcome, Sample, Samples};
use crate::session::progress_bar;
use crate::statistics::float;
use crate::table::ExitCosts;

/// More launches than a run has; those of the next are numbered from here on.
const RUN: u32 = 1_000_000;

/// The results so far.
pub(crate) struct Results {
    /// Where the lines go as well.
    pub(crate) file: Option<File>,
    pub(crate) progress: ProgressBar,
    /// How many launches have failed, but for those without a facility.
    pub(crate) failed: usize,
    pub(crate) operations: Vec<Operation>,
    pub(crate) tsc_khz: u64,
    pub(crate) costs: Option<ExitCosts>,
    /// The class of the host.
    pub(crate) host: Option<String>,
    pub(crate) seed: u64,
    samples: Samples,
    /// The arms of each job, in the order in which they came.
    arms: BTreeMap<String, Vec<String>>,
    /// What the launches of this run are numbered from; `None` before the first.
    first_launch: Option<u32>,
    last_order: Option<u32>,
}

impl Results {
    /// None yet, of so many launches.
    pub(crate) fn new(launches: u64) -> Self {
        Self {
            file: None,
            progress: progress_bar(usize::try_from(launches).unwrap_or(usize::MAX)),
            failed: 0,
            operations: Vec::new(),
            tsc_khz: 0,
            costs: None,
            host: None,
            seed: 0,
            samples: Samples::default(),
            arms: BTreeMap::new(),
            first_launch: None,
            last_order: None,
        }
    }

    /// What was recorded before; `None` where the file is that of a suite.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the samples `{}` cannot be read", path.display()))?;
        if text
            .lines()
            .any(|line| line.contains("\"record\":\"experiment\""))
        {
            return Ok(None);
        }
        let mut results = Self::new(0);
        results.take_all(&text)?;
        Ok((!results.is_empty()).then_some(results))
    }

    /// Takes every line in.
    pub(crate) fn take_all(&mut self, text: &str) -> anyhow::Result<()> {
        text.lines().try_for_each(|line| self.take(line))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.arms.is_empty()
    }

    /// Takes one line in.
    pub(crate) fn take(&mut self, line: &str) -> anyhow::Result<()> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{line}").context("the result file cannot be written")?;
        }
        if let Ok(record) = serde_json::from_str::<Operations>(line) {
            self.operations = record.operations;
            self.tsc_khz = record.tsc_khz;
            return Ok(());
        }
        if line.contains("\"record\":\"machine\"") {
            // What comes now is another run: its launches are further launches.
            self.first_launch = Some(self.first_launch.map_or(0, |first| first + RUN));
            self.last_order = None;
        }
        let Ok(mut sample) = serde_json::from_str::<Sample>(line) else {
            self.costs = self.costs.or_else(|| machine::exit_costs(line));
            return Ok(());
        };
        if sample.origin.suite != SUITE {
            return Ok(());
        }
        let origin = &mut sample.origin;
        let host = self.host.get_or_insert_with(|| origin.host.clone());
        ensure!(
            *host == origin.host,
            "samples of host class {host} cannot be compared with those of {}",
            origin.host
        );
        if self.seed == 0 {
            self.seed = origin.seed;
        }
        origin.launch += self.first_launch.unwrap_or(0);
        let arms = self.arms.entry(origin.job.clone()).or_default();
        if !arms.contains(&origin.arm) {
            arms.push(origin.arm.clone());
        }
        let failed = match &sample.outcome {
            Outcome::Failed { failed } => {
                // That a guest cannot do without a facility is a result.
                if !origin.arm.starts_with("para-") {
                    self.failed += 1;
                }
                format!(" failed: {failed}")
            }
            Outcome::Value { .. } => String::new(),
        };
        if self.last_order != Some(origin.order) {
            self.last_order = Some(origin.order);
            self.progress.inc(1);
            self.progress
                .set_message(format!("{} {}", origin.job, origin.arm));
            if self.progress.is_hidden() && self.progress.length() > Some(0) {
                let (at, of) = (
                    self.progress.position(),
                    self.progress.length().unwrap_or(0),
                );
                eprintln!("{at}/{of} {} {}{failed}", origin.job, origin.arm);
            }
        }
        self.samples.add(sample);
        Ok(())
    }

    /// The arms of a job: those that are known in a good order, then as they came.
    pub(crate) fn arms(&self, job: &str) -> Vec<String> {
        const KNOWN: [&str; 3] = ["full", "kvm-pv", "para"];
        let rank = |arm: &String| {
            let plain = arm.split('#').next().unwrap_or(arm);
            let known = KNOWN.iter().position(|known| *known == plain);
            (known.unwrap_or(KNOWN.len()), arm.contains('#'))
        };
        let mut arms = self.arms.get(job).cloned().unwrap_or_default();
        arms.sort_by_key(rank);
        arms
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
