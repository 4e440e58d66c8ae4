//! Where the result's lines come together, from this process or from the reference host.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, bail};
use indicatif::ProgressBar;
use serde_json::Value;

use crate::experiment::Saved;
use crate::job::Kind;
use crate::machine;
use crate::plan::Step;
use crate::pvbench::Operations;
use crate::sample::{Outcome, Sample, Samples};
use crate::table::ExitCosts;

/// Where the result's lines come together.
pub(crate) struct Collector {
    pub(crate) file: Option<File>,
    pub(crate) samples: Samples,
    pub(crate) steps: Vec<Step>,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) arms: Vec<String>,
    pub(crate) progress: ProgressBar,
    pub(crate) position: usize,
    /// What `paravane doctor` says that exits cost.
    pub(crate) costs: Option<ExitCosts>,
    /// What the operations are, of suite ops.
    pub(crate) operations: Option<Operations>,
    /// The machine of an earlier part, which this part's must equal; or why it does not.
    pub(crate) machine: Option<Result<Value, String>>,
}

impl Collector {
    /// Takes in what an earlier part has measured.
    pub(crate) fn restore(&mut self, saved: &Saved) {
        for sample in saved.samples() {
            self.samples.add(sample);
        }
        self.position = saved.launched.len();
        self.costs = saved.record("crossings").and_then(machine::exit_costs);
        self.operations = saved
            .record("operations")
            .and_then(|line| serde_json::from_str(line).ok());
        self.machine = saved.machine.clone().map(Ok);
    }

    /// Takes one line in.
    pub(crate) fn take(&mut self, line: &str) -> anyhow::Result<()> {
        let Ok(sample) = serde_json::from_str::<Sample>(line) else {
            return self.take_record(line);
        };
        self.write(line)?;
        let position = usize::try_from(sample.origin.order)? + 1;
        if position > self.position {
            self.position = position;
            self.advance(&sample);
        }
        self.samples.add(sample);
        Ok(())
    }

    fn take_record(&mut self, line: &str) -> anyhow::Result<()> {
        let record: Value = serde_json::from_str(line).unwrap_or_default();
        let kind = record.get("record").and_then(Value::as_str);
        if let (Some("machine"), Some(Ok(earlier))) = (kind, &self.machine) {
            let differences = machine::differences(earlier, &record);
            if !differences.is_empty() {
                let why = format!(
                    "the samples so far are from another machine or of other programs, and cannot be gone on with: {}; \
                     begin a new result, or go back to what they were made with",
                    differences.join("; ")
                );
                self.machine = Some(Err(why.clone()));
                bail!(why);
            }
            return Ok(());
        }
        if kind == Some("absent") {
            let text = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or("?");
            eprintln!("{} is absent: {}", text("arm"), text("why"));
        }
        if kind == Some("operations") {
            if self.operations.is_some() {
                return Ok(());
            }
            self.operations = serde_json::from_str(line).ok();
        }
        let costs = machine::exit_costs(line);
        // The costs of the first part hold for the whole: they are of the same machine.
        if costs.is_some() && self.costs.is_some() {
            return Ok(());
        }
        self.costs = self.costs.or(costs);
        self.write(line)
    }

    /// Why this part cannot be added to the earlier one, if so.
    pub(crate) fn refused(&self) -> Option<String> {
        self.machine.clone()?.err()
    }

    fn write(&mut self, line: &str) -> anyhow::Result<()> {
        match &mut self.file {
            Some(file) => writeln!(file, "{line}").context("the result file cannot be written"),
            None => Ok(()),
        }
    }

    fn advance(&self, sample: &Sample) {
        let (total, position) = (self.steps.len(), self.position);
        self.progress
            .set_position(u64::try_from(position).unwrap_or(u64::MAX));
        let name = |step: &Step| {
            let kind = self.kinds.get(step.kind).map_or("", |kind| &kind.name);
            let arm = self.arms.get(step.arm).map_or("", |arm| arm);
            format!("{kind} {arm}")
        };
        if let Some(next) = self.steps.get(position) {
            self.progress.set_message(name(next));
        }
        let failed = match &sample.outcome {
            Outcome::Failed { failed } => format!(" failed: {failed}"),
            Outcome::Value { .. } => String::new(),
        };
        if self.progress.is_hidden() {
            let step = self.steps.get(position - 1).map(name).unwrap_or_default();
            let left = self.progress.eta().as_secs();
            eprintln!("{position}/{total} {step}, {left} s left{failed}");
        }
    }
}

/// The collector, for this thread alone.
pub(crate) fn lock(collector: &Mutex<Collector>) -> std::sync::MutexGuard<'_, Collector> {
    // A collector is whole after every line: one that a panicking thread held is still good.
    collector.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The output of a benchmark on the reference host, line by line to who takes it.
pub(crate) struct LineSink<F> {
    take: F,
    line: Vec<u8>,
}

impl<F: FnMut(&str) -> anyhow::Result<()>> LineSink<F> {
    /// A sink without a line so far.
    pub(crate) fn new(take: F) -> Self {
        Self {
            take,
            line: Vec::new(),
        }
    }
}

impl<F: FnMut(&str) -> anyhow::Result<()>> Write for LineSink<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line).into_owned();
                self.line.clear();
                (self.take)(&line).map_err(io::Error::other)?;
            } else {
                self.line.push(*byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
