//! The launches, one after the other, on the host that this process is on.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;

use crate::arm::Arm;
use crate::boot::Host;
use crate::launch::{LaunchError, Launcher, Metric};
use crate::machine;
use crate::plan::{Job, Step};
use crate::sample::{Origin, Outcome, SUITE, Sample};

/// The launches of one benchmark on the host that this process is on.
pub(crate) struct Run<'a> {
    pub(crate) launcher: &'a Launcher,
    pub(crate) arms: &'a [Arm],
    pub(crate) steps: &'a [Step],
    pub(crate) class: Host,
    pub(crate) seed: u64,
    pub(crate) stop: &'a AtomicBool,
    /// Whether to ask `paravane doctor` what the crossings cost here.
    pub(crate) doctor: bool,
}

impl Run<'_> {
    /// Launches everything and gives each line of the result to `take`.
    pub(crate) fn here(
        &self,
        mut take: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let result = self.all(&mut take);
        // The files of the last launch; a folder that stays behind is no reason to fail.
        let _ = std::fs::remove_dir_all(&self.launcher.scratch);
        result
    }

    fn all(&self, take: &mut impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let kernels = [
            self.launcher.kernel_full.as_path(),
            self.launcher.kernel_para.as_path(),
        ];
        let kernels: Vec<&Path> = kernels
            .into_iter()
            .filter(|kernel| kernel.exists())
            .collect();
        take(&machine::record(self.class.name(), self.seed, &kernels).to_string())?;
        if self.doctor
            && let Some(line) = machine::crossings(&self.launcher.program, self.class.name())
        {
            take(&line.to_string())?;
        }
        for step in self.steps {
            let Some(arm) = self.arms.get(step.arm) else {
                continue;
            };
            let result = self.launcher.launch(step.job, arm, self.stop);
            for sample in self.samples(step, arm, result)? {
                take(&serde_json::to_string(&sample)?)?;
            }
            if self.stop.load(Ordering::Relaxed) {
                bail!("interrupted; the samples so far are kept");
            }
        }
        Ok(())
    }

    fn samples(
        &self,
        step: &Step,
        arm: &Arm,
        result: Result<Vec<Metric>, LaunchError>,
    ) -> anyhow::Result<Vec<Sample>> {
        let origin = |job: &str| Origin {
            suite: SUITE.to_owned(),
            job: job.to_owned(),
            arm: arm.name.clone(),
            host: self.class.name().to_owned(),
            launch: step.launch,
            block: step.block,
            order: step.order,
            seed: self.seed,
        };
        match result {
            Ok(metrics) => {
                let sample = |metric: Metric| Sample {
                    origin: origin(metric.job),
                    outcome: Outcome::Value {
                        metric: metric.name,
                        unit: metric.unit.to_owned(),
                        value: metric.value,
                    },
                };
                Ok(metrics.into_iter().map(sample).collect())
            }
            Err(LaunchError::Interrupted) => bail!("interrupted; the samples so far are kept"),
            Err(LaunchError::Failed(failed)) => {
                let jobs = match step.job {
                    Job::Workload => vec!["console", "syscall"],
                    job => vec![job.name()],
                };
                let sample = |job| Sample {
                    origin: origin(job),
                    outcome: Outcome::Failed {
                        failed: failed.clone(),
                    },
                };
                Ok(jobs.into_iter().map(sample).collect())
            }
        }
    }
}
