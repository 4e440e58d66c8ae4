//! The launches of `paravane bench ops`, and what of them becomes a sample.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::arm::Arm;
use crate::host::Host;
use crate::launch::{LaunchError, Launcher, Mark};
use crate::machine;
use crate::plan::plan;
use crate::sample::{Origin, Outcome, Sample};

/// The suite's name in every line.
pub(crate) const SUITE: &str = "ops";
/// The mark after an operation's last round.
const MARK_END: u8 = 0x3f;
/// The mark that the guest's init makes first.
const MARK_INIT: u8 = 1;

/// Launches of one kind.
pub(crate) struct Series {
    /// `ops` or `boot`.
    pub(crate) job: &'static str,
    pub(crate) arms: Vec<Arm>,
    /// Of each arm.
    pub(crate) launches: u32,
}

impl Series {
    /// How many launches there are.
    pub(crate) fn total(&self) -> u64 {
        u64::from(self.launches) * self.arms.len() as u64
    }
}

/// What an operation is: a line of the results beside the samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operation {
    /// Its short name, which the samples' metrics begin with.
    pub(crate) op: String,
    /// The facility that replaces it.
    pub(crate) facility: String,
    /// A few words.
    pub(crate) what: String,
}

/// The record of what was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Operations {
    suite: String,
    record: String,
    /// Frequency of the TSC, kHz; 0 where the guest does not know it.
    pub(crate) tsc_khz: u64,
    pub(crate) operations: Vec<Operation>,
}

/// A line of the module's file.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(flatten)]
    operation: Operation,
    mark: u8,
    #[serde(flatten)]
    outcome: LineOutcome,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum LineOutcome {
    Cycles {
        n: u64,
        min: u64,
        median: u64,
        p90: u64,
        p99: u64,
    },
    Absent {
        #[expect(dead_code, reason = "only its presence counts")]
        absent: String,
    },
    Failed {
        #[expect(dead_code, reason = "only its presence counts")]
        failed: bool,
    },
}

/// The first line of the module's file.
#[derive(Debug, Deserialize)]
struct Head {
    #[expect(dead_code, reason = "only its presence counts")]
    pvbench: u32,
    tsc_khz: u64,
    operations: usize,
}

/// What the module has measured.
struct Measured {
    tsc_khz: u64,
    lines: Vec<Line>,
}

impl Measured {
    /// Finds it among the console's lines.
    fn read(console: &str) -> Result<Self, String> {
        let objects = || console.lines().filter(|line| line.starts_with('{'));
        let head: Head = objects()
            .find_map(|line| serde_json::from_str(line).ok())
            .ok_or("the guest printed nothing of pvbench.ko")?;
        let lines: Vec<Line> = objects()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        if lines.len() != head.operations {
            let (got, of) = (lines.len(), head.operations);
            return Err(format!("only {got} of {of} operations arrived"));
        }
        Ok(Self {
            tsc_khz: head.tsc_khz,
            lines,
        })
    }

    /// The operations that went wrong: the others have numbers all the same.
    fn failures(&self) -> impl Iterator<Item = Outcome> {
        self.lines
            .iter()
            .filter(|line| matches!(line.outcome, LineOutcome::Failed { .. }))
            .map(|line| Outcome::Failed {
                failed: format!("operation {} failed", line.operation.op),
            })
    }

    fn record(&self) -> Operations {
        let operations = self.lines.iter().map(|line| line.operation.clone());
        Operations {
            suite: SUITE.to_owned(),
            record: "operations".to_owned(),
            tsc_khz: self.tsc_khz,
            operations: operations.collect(),
        }
    }

    /// Metric and unit with the value.
    fn metrics(&self, marks: &[Mark]) -> Vec<(String, &'static str, u64)> {
        let mut metrics = Vec::new();
        for line in &self.lines {
            let LineOutcome::Cycles {
                n,
                min,
                median,
                p90,
                p99,
            } = line.outcome
            else {
                continue;
            };
            let op = &line.operation.op;
            let mut push = |name: &str, unit, value| {
                metrics.push((format!("{op}.{name}"), unit, value));
            };
            push("n", "count", n);
            for (name, value) in [("min", min), ("median", median), ("p90", p90), ("p99", p99)] {
                push(name, "cycles", value);
            }
            if let Some((exits, user_exits)) = exits_of(line.mark, marks) {
                push("exits", "exits", exits);
                push("user_exits", "exits", user_exits);
            }
        }
        metrics
    }
}

/// Exits of all rounds of the operation with that mark, all and to the VMM, without that of the mark at their end.
fn exits_of(code: u8, marks: &[Mark]) -> Option<(u64, u64)> {
    let begin = marks.iter().position(|mark| mark.code == code)?;
    let (begin, end) = (marks.get(begin)?, marks.get(begin + 1)?);
    let between = |of: fn(&Mark) -> u64| of(end).checked_sub(of(begin))?.checked_sub(1);
    (end.code == MARK_END).then_some(())?;
    Some((
        between(|mark| mark.exits)?,
        between(|mark| mark.user_exits)?,
    ))
}

fn boot_metrics(marks: &[Mark]) -> Result<Vec<(String, &'static str, u64)>, String> {
    let mark = marks
        .iter()
        .find(|mark| mark.code == MARK_INIT)
        .ok_or("the guest never came to its init")?;
    Ok(vec![
        ("boot_to_init_ns".to_owned(), "ns", mark.t_ns),
        ("exits_to_init".to_owned(), "exits", mark.exits),
        ("user_exits_to_init".to_owned(), "exits", mark.user_exits),
    ])
}

fn outcomes(metrics: Vec<(String, &'static str, u64)>) -> Vec<Outcome> {
    let value = |(metric, unit, value): (String, &str, u64)| Outcome::Value {
        metric,
        unit: unit.to_owned(),
        value,
    };
    metrics.into_iter().map(value).collect()
}

/// Makes all launches, and gives each line of the result to `take`.
pub(crate) fn launch_all(
    launcher: &Launcher,
    series: &[Series],
    class: Host,
    seed: u64,
    stop: &AtomicBool,
    mut take: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut begin = || {
        let mut record = machine::record(class.name(), launcher);
        if let Some(fields) = record.as_object_mut() {
            fields.insert("suite".to_owned(), json!(SUITE));
            fields.insert("vcpus".to_owned(), json!(launcher.cpus));
        }
        take(&record.to_string())?;
        if let Some(costs) = machine::crossings(&launcher.program, class.name()) {
            take(&costs.to_string())?;
        }
        Ok(())
    };
    let mut course = Course {
        launcher,
        class,
        seed,
        stop,
        order: 0,
        said: false,
    };
    let result = begin().and_then(|()| {
        series
            .iter()
            .try_for_each(|series| course.series(series, &mut take))
    });
    // The files of the last launch; a folder that stays behind is no reason to fail.
    let _ = std::fs::remove_dir_all(&launcher.scratch);
    result
}

/// The launches so far.
struct Course<'a> {
    launcher: &'a Launcher,
    class: Host,
    seed: u64,
    stop: &'a AtomicBool,
    order: u32,
    /// Whether the record of the operations has been given.
    said: bool,
}

impl Course<'_> {
    fn series(
        &mut self,
        series: &Series,
        take: &mut impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for step in plan(&[series.launches], series.arms.len(), self.seed) {
            let Some(arm) = series.arms.get(step.arm) else {
                continue;
            };
            let origin = Origin {
                suite: SUITE.to_owned(),
                job: series.job.to_owned(),
                arm: arm.name.clone(),
                io: arm.io.to_owned(),
                host: self.class.name().to_owned(),
                launch: step.launch,
                block: step.block,
                order: self.order,
                seed: self.seed,
            };
            self.order += 1;
            let outcomes = self
                .launch(series.job, arm, take)?
                .unwrap_or_else(|failed| vec![Outcome::Failed { failed }]);
            for outcome in outcomes {
                let origin = origin.clone();
                take(&serde_json::to_string(&Sample { origin, outcome })?)?;
            }
            if self.stop.load(Ordering::Relaxed) {
                bail!("interrupted; the samples so far are kept");
            }
        }
        Ok(())
    }

    /// One launch: what it gave, or why it gave nothing. The outer error ends the benchmark.
    fn launch(
        &mut self,
        job: &str,
        arm: &Arm,
        take: &mut impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Result<Vec<Outcome>, String>> {
        // A PC without ACPI cannot power itself off.
        let end = if arm.is_para() { "poweroff" } else { "restart" };
        let cmdline = match job {
            "ops" => format!("quiet -- ops end={end}"),
            _ => format!("-- end={end}"),
        };
        let ended = match self
            .launcher
            .run(arm, &cmdline, self.launcher.watchdog, self.stop)
        {
            Ok(ended) => ended,
            Err(LaunchError::Interrupted) => bail!("interrupted; the samples so far are kept"),
            Err(LaunchError::Failed(why)) => return Ok(Err(why)),
        };
        let marks = match &ended.stats {
            Some(stats) => &stats.marks[..],
            None => return Ok(Err("this VMM counts no exits".to_owned())),
        };
        if job != "ops" {
            return Ok(boot_metrics(marks).map(outcomes));
        }
        let measured = match Measured::read(&ended.console) {
            Ok(measured) => measured,
            Err(why) => return Ok(Err(why)),
        };
        // A full guest may not know the frequency.
        if !self.said && measured.tsc_khz > 0 {
            take(&serde_json::to_string(&measured.record())?)?;
            self.said = true;
        }
        let mut outcomes = outcomes(measured.metrics(marks));
        outcomes.extend(measured.failures());
        Ok(Ok(outcomes))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const CONSOLE: &str = "[    0.1] a message\nPARAVANE-MODULE results\n\
        {\"pvbench\":1,\"tsc_khz\":1000000,\"operations\":2}\n\
        {\"op\":\"cpuid\",\"facility\":\"cpuid\",\"what\":\"CPUID\",\"mark\":64,\"n\":1000,\"min\":9,\"median\":10,\"p90\":11,\"p99\":30}\n\
        {\"op\":\"call\",\"facility\":\"base\",\"what\":\"null call\",\"mark\":65,\"absent\":\"the host has no such facility\"}\n\
        PARAVANE-REPORT {\"version\":1}\n";

    fn mark(code: u8, exits: u64, user_exits: u64) -> Mark {
        let text = format!(
            "{{\"code\":{code},\"t_ns\":0,\"exits\":{exits},\"user_exits\":{user_exits},\"console_out_bytes\":0}}"
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn an_operation_is_its_rounds_and_the_exits_between_its_marks() {
        let measured = Measured::read(CONSOLE).unwrap();
        assert_eq!(measured.record().operations.len(), 2);
        let marks = [
            mark(1, 5, 5),
            mark(64, 100, 20),
            mark(MARK_END, 1_101, 21),
            mark(6, 2_000, 50),
        ];
        let metrics: BTreeMap<String, u64> = measured
            .metrics(&marks)
            .into_iter()
            .map(|(name, _, value)| (name, value))
            .collect();
        for (name, value) in [
            ("cpuid.n", 1000),
            ("cpuid.median", 10),
            ("cpuid.p99", 30),
            ("cpuid.exits", 1000),
            ("cpuid.user_exits", 0),
        ] {
            assert_eq!(metrics.get(name), Some(&value), "{name}");
        }
        assert!(
            !metrics.keys().any(|name| name.starts_with("call.")),
            "what is absent is no number: {metrics:?}"
        );
    }

    #[test]
    fn a_file_that_is_cut_is_no_result_and_a_failed_operation_no_number() {
        let cut = CONSOLE.replace("{\"op\":\"call\"", "x{\"op\":\"call\"");
        assert!(Measured::read(&cut).is_err_and(|why| why.contains("1 of 2")));
        let failed = CONSOLE.replace(
            "\"absent\":\"the host has no such facility\"",
            "\"failed\":true",
        );
        let measured = Measured::read(&failed).unwrap();
        let failures: Vec<Outcome> = measured.failures().collect();
        assert_eq!(
            failures,
            [Outcome::Failed {
                failed: "operation call failed".to_owned()
            }]
        );
        assert!(
            measured
                .metrics(&[])
                .iter()
                .all(|(name, ..)| !name.starts_with("call."))
        );
        assert!(Measured::read("nothing").is_err());
    }

    #[test]
    fn marks_that_are_not_there_give_no_exits() {
        assert_eq!(exits_of(64, &[mark(64, 1, 1)]), None);
        assert_eq!(exits_of(64, &[mark(64, 1, 1), mark(65, 3, 3)]), None);
    }
}
