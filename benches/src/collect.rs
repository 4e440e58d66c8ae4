//! Where the result's lines come together, from this process or from the reference host.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use indicatif::ProgressBar;

use crate::machine;
use crate::plan::Step;
use crate::sample::{Outcome, Sample, Samples};
use crate::table::ExitCosts;

/// Where the result's lines come together.
pub(crate) struct Collector {
    pub(crate) file: Option<File>,
    pub(crate) samples: Samples,
    pub(crate) steps: Vec<Step>,
    pub(crate) arms: Vec<String>,
    pub(crate) progress: ProgressBar,
    pub(crate) position: usize,
    /// What `paravane doctor` says that exits cost.
    pub(crate) costs: Option<ExitCosts>,
}

impl Collector {
    /// Takes one line in.
    pub(crate) fn take(&mut self, line: &str) -> anyhow::Result<()> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{line}").context("the result file cannot be written")?;
        }
        let Ok(sample) = serde_json::from_str::<Sample>(line) else {
            self.costs = self.costs.or_else(|| machine::exit_costs(line));
            return Ok(());
        };
        let position = usize::try_from(sample.origin.order)? + 1;
        if position > self.position {
            self.position = position;
            self.advance(&sample);
        }
        self.samples.add(sample);
        Ok(())
    }

    fn advance(&self, sample: &Sample) {
        let (total, position) = (self.steps.len(), self.position);
        self.progress
            .set_position(u64::try_from(position).unwrap_or(u64::MAX));
        let name = |step: &Step| {
            format!(
                "{} {}",
                step.job.name(),
                self.arms.get(step.arm).map_or("", |arm| arm)
            )
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
            eprintln!("{position}/{total} {step}{failed}");
        }
    }
}

/// The collector, for this thread alone.
pub(crate) fn lock(collector: &Mutex<Collector>) -> std::sync::MutexGuard<'_, Collector> {
    // A collector is whole after every line: one that a panicking thread held is still good.
    collector.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The output of the benchmark on the reference host, line by line into the collector.
pub(crate) struct LineSink {
    collector: Arc<Mutex<Collector>>,
    line: Vec<u8>,
}

impl LineSink {
    /// A sink without a line so far.
    pub(crate) fn new(collector: Arc<Mutex<Collector>>) -> Self {
        Self {
            collector,
            line: Vec::new(),
        }
    }
}

impl Write for LineSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line).into_owned();
                self.line.clear();
                lock(&self.collector)
                    .take(&line)
                    .map_err(io::Error::other)?;
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
