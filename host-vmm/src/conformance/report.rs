//! What `paravane abi check` says: the clauses of `SPEC.md`, each with its checks, as TAP or JSON.

use std::fmt;

use serde::Serialize;

use super::{CHECKS, Failure};

/// The specification that this binary was built with.
const SPEC: &str = include_str!("../../../hypercall-abi/SPEC.md");
/// Clauses without a test, and why: `id: reason`.
const UNTESTED: &str = include_str!("../../../hypercall-abi/tests/untested.txt");

/// How a clause fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All its checks have passed.
    Pass,
    /// One of its checks has not.
    Fail,
    /// Its checks cannot run here.
    Skipped,
    /// It has no check that a guest could make.
    Untested,
}

/// A check that has been made.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// What is checked.
    pub name: String,
    /// How it went; never [`State::Untested`].
    pub state: State,
    /// Why not, where it has not passed.
    pub why: Option<String>,
}

/// A clause.
#[derive(Clone, Debug, Serialize)]
pub struct Clause {
    /// Its permanent id.
    pub clause: String,
    /// How it fares.
    pub state: State,
    /// Why it is not tested.
    pub reason: Option<String>,
    /// Its checks.
    pub checks: Vec<Point>,
}

/// How many clauses there are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All.
    pub clauses: usize,
    /// All checks passed.
    pub pass: usize,
    /// A check failed.
    pub fail: usize,
    /// Cannot be checked here.
    pub skipped: usize,
    /// No guest can check it.
    pub untested: usize,
}

/// All clauses.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Class of the host: `kvm` or `reference`.
    pub host: String,
    /// ABI version, `major.minor`.
    pub abi: String,
    /// Of the clauses.
    pub counts: Counts,
    /// In the order of the specification.
    pub clauses: Vec<Clause>,
}

/// The ids of all clauses, in the order of the specification.
fn clause_ids() -> impl Iterator<Item = &'static str> {
    SPEC.split("\n\n")
        .filter_map(|paragraph| paragraph.strip_prefix("**[")?.split_once("]**"))
        .map(|(id, _)| id)
}

/// Why a clause has no check here.
fn why_untested(id: &str) -> String {
    let excuse = UNTESTED
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(of, _)| *of == id);
    // The conformance checklist: who is bound.
    let row = SPEC
        .lines()
        .find_map(|line| line.strip_prefix(&format!("| {id} | "))?.split_once(" |"));
    match (excuse, row) {
        (Some((_, reason)), _) => reason.to_owned(),
        (None, Some(("", _))) => "it binds the guest alone; `cargo test` tries it".to_owned(),
        _ => "a guest cannot see it by its calls; `cargo test` tries it".to_owned(),
    }
}

impl Report {
    /// Runs all checks.
    #[must_use]
    pub fn make(host: String) -> Self {
        let version = paravane_abi::registry::ABI_VERSION;
        let mut report = Self {
            host,
            abi: format!("{}.{}", version >> 16, version & 0xffff),
            counts: Counts::default(),
            clauses: Vec::new(),
        };
        for id in clause_ids() {
            let mut checks = Vec::new();
            for check in CHECKS.iter().filter(|check| check.clause() == id) {
                let (state, why) = match check.run() {
                    Ok(()) => (State::Pass, None),
                    Err(Failure::Skipped(why)) => (State::Skipped, Some(why)),
                    Err(failure) => (State::Fail, Some(failure.to_string())),
                };
                let name = check.what();
                checks.push(Point { name, state, why });
            }
            report.add(id, checks);
        }
        report
    }

    fn add(&mut self, id: &str, checks: Vec<Point>) {
        let any = |state| checks.iter().any(|point| point.state == state);
        let counts = &mut self.counts;
        counts.clauses += 1;
        let (state, count) = if checks.is_empty() {
            (State::Untested, &mut counts.untested)
        } else if any(State::Fail) {
            (State::Fail, &mut counts.fail)
        } else if any(State::Skipped) {
            (State::Skipped, &mut counts.skipped)
        } else {
            (State::Pass, &mut counts.pass)
        };
        *count += 1;
        self.clauses.push(Clause {
            clause: id.to_owned(),
            state,
            reason: checks.is_empty().then(|| why_untested(id)),
            checks,
        });
    }

    /// Whether no check has failed, and some have passed.
    #[must_use]
    pub fn conforms(&self) -> bool {
        self.counts.fail == 0 && self.counts.pass > 0
    }
}

/// What would end a TAP description or directive early.
fn one_line(text: &str) -> String {
    text.replace('\n', "; ").replace('#', "\\#")
}

/// TAP 14: a test point for each check, and one that is skipped for each clause without any.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let points = |clause: &Clause| clause.checks.len().max(1);
        let total: usize = self.clauses.iter().map(points).sum();
        writeln!(f, "TAP version 14\n1..{total}")?;
        writeln!(f, "# Paravane ABI {} on host {}", self.abi, self.host)?;
        let mut number = 0;
        for Clause {
            clause,
            reason,
            checks,
            ..
        } in &self.clauses
        {
            if let Some(reason) = reason {
                number += 1;
                writeln!(
                    f,
                    "ok {number} - {clause} # SKIP untested: {}",
                    one_line(reason)
                )?;
            }
            for Point { name, state, why } in checks {
                number += 1;
                let name = one_line(name);
                let why = one_line(why.as_deref().unwrap_or_default());
                match state {
                    State::Skipped => writeln!(f, "ok {number} - {clause} {name} # SKIP {why}")?,
                    State::Fail => {
                        writeln!(f, "not ok {number} - {clause} {name}")?;
                        // A YAML block; JSON strings are YAML strings.
                        let quoted = serde_json::Value::from(why);
                        writeln!(f, "  ---\n  message: {quoted}\n  ...")?;
                    }
                    State::Pass | State::Untested => writeln!(f, "ok {number} - {clause} {name}")?,
                }
            }
        }
        let Counts {
            clauses,
            pass,
            fail,
            skipped,
            untested,
        } = self.counts;
        writeln!(
            f,
            "# {clauses} clauses: {pass} pass, {fail} fail, {skipped} skipped, {untested} untested"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(states: &[&[State]]) -> Report {
        let mut report = Report {
            host: "kvm".to_owned(),
            abi: "0.1".to_owned(),
            counts: Counts::default(),
            clauses: Vec::new(),
        };
        for states in states {
            let point = |state: &State| Point {
                name: "a name".to_owned(),
                state: *state,
                why: (*state != State::Pass).then(|| "a # and\n\"more\"".to_owned()),
            };
            report.add("PV-DISC-1", states.iter().map(point).collect());
        }
        report
    }

    #[test]
    fn a_clause_is_as_good_as_its_worst_check() {
        use State::{Fail, Pass, Skipped};
        let report = report(&[&[Pass, Pass], &[Pass, Fail, Skipped], &[Pass, Skipped], &[]]);
        let counts = Counts {
            clauses: 4,
            pass: 1,
            fail: 1,
            skipped: 1,
            untested: 1,
        };
        assert_eq!(report.counts, counts);
        assert!(!report.conforms());
    }

    #[test]
    fn a_host_where_nothing_could_be_checked_does_not_conform() {
        assert!(!report(&[&[State::Skipped], &[]]).conforms());
        assert!(report(&[&[State::Pass], &[]]).conforms());
    }

    #[test]
    fn tap_has_one_point_a_check_and_keeps_each_on_its_line() {
        use State::{Fail, Pass, Skipped};
        let text = report(&[&[Pass, Fail], &[Skipped], &[]]).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["TAP version 14", "1..4"]);
        assert_eq!(lines[3], "ok 1 - PV-DISC-1 a name");
        assert_eq!(lines[4], "not ok 2 - PV-DISC-1 a name");
        assert_eq!(lines[6], r#"  message: "a \\# and; \"more\"""#);
        assert_eq!(
            lines[8],
            r#"ok 3 - PV-DISC-1 a name # SKIP a \# and; "more""#
        );
        assert!(
            lines[9].starts_with("ok 4 - PV-DISC-1 # SKIP untested: "),
            "{text}"
        );
    }

    #[test]
    fn a_clause_without_checks_says_why() {
        let why = why_untested("PV-CALL-5");
        assert!(why.starts_with("it binds the guest alone"), "{why}");
        let why = why_untested("PV-CONSOLE-13");
        assert!(why.starts_with("a guest cannot see it"), "{why}");
    }

    #[test]
    fn every_check_is_of_a_clause_that_exists() {
        for check in CHECKS {
            let clause = check.clause();
            assert!(
                clause_ids().any(|id| id == clause),
                "{}: no {clause}",
                check.name
            );
        }
    }
}
