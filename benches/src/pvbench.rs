//! What `pvbench.ko` measures in the guest's kernel: how many cycles each privileged operation takes. The VMM counts the
//! exits between the operation's marks.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::launch::{LaunchError, Mark};

/// The mark after an operation's last round.
const MARK_END: u8 = 0x3f;

/// What an operation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operation {
    /// Its short name, which the samples' metrics begin with.
    pub(crate) op: String,
    /// The facility that replaces it.
    pub(crate) facility: String,
    /// A few words.
    pub(crate) what: String,
}

/// What was measured: a record of the result, beside the samples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operations {
    /// Frequency of the TSC, kHz; 0 where the guest does not know it.
    pub(crate) tsc_khz: u64,
    pub(crate) operations: Vec<Operation>,
}

impl Operations {
    /// The line of the result.
    pub(crate) fn line(&self) -> serde_json::Result<String> {
        let mut line = serde_json::to_value(self)?;
        if let Value::Object(fields) = &mut line {
            fields.insert("record".to_owned(), json!("operations"));
        }
        Ok(line.to_string())
    }
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
pub(crate) struct Measured {
    tsc_khz: u64,
    lines: Vec<Line>,
}

impl Measured {
    /// Finds it among the console's lines.
    ///
    /// # Errors
    ///
    /// When something is missing, or an operation went wrong.
    pub(crate) fn read(console: &str) -> Result<Self, LaunchError> {
        Self::parse(console).map_err(LaunchError::Failed)
    }

    fn parse(console: &str) -> Result<Self, String> {
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
        let failed = |line: &&Line| matches!(line.outcome, LineOutcome::Failed { .. });
        if let Some(line) = lines.iter().find(failed) {
            return Err(format!("operation {} failed", line.operation.op));
        }
        Ok(Self {
            tsc_khz: head.tsc_khz,
            lines,
        })
    }

    /// The record of it; `None` where the guest does not know how fast its cycles are: another arm's does.
    pub(crate) fn record(&self) -> Option<Operations> {
        let operations = self.lines.iter().map(|line| line.operation.clone());
        (self.tsc_khz > 0).then(|| Operations {
            tsc_khz: self.tsc_khz,
            operations: operations.collect(),
        })
    }

    /// Metric and unit with the value.
    pub(crate) fn metrics(&self, marks: &[Mark]) -> Vec<(String, &'static str, u64)> {
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
        assert_eq!(measured.record().unwrap().operations.len(), 2);
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
    fn a_file_that_is_cut_is_no_result_and_nor_is_one_with_a_failed_operation() {
        let why = |console: &str| Measured::read(console).err().unwrap().to_string();
        let cut = CONSOLE.replace("{\"op\":\"call\"", "x{\"op\":\"call\"");
        assert!(why(&cut).contains("1 of 2"));
        let failed = CONSOLE.replace(
            "\"absent\":\"the host has no such facility\"",
            "\"failed\":true",
        );
        assert_eq!(why(&failed), "operation call failed");
        assert!(why("nothing").contains("pvbench.ko"));
    }

    #[test]
    fn a_guest_that_does_not_know_its_frequency_leaves_the_record_to_another() {
        let blind = CONSOLE.replace("1000000", "0");
        assert_eq!(Measured::read(&blind).unwrap().record(), None);
    }

    #[test]
    fn marks_that_are_not_there_give_no_exits() {
        assert_eq!(exits_of(64, &[mark(64, 1, 1)]), None);
        assert_eq!(exits_of(64, &[mark(64, 1, 1), mark(65, 3, 3)]), None);
    }
}
