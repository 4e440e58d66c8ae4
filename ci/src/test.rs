//! Task `test`: everything that must hold, step by step, until one does not.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::attack::{self, AttackArgs};
use crate::cycles::{self, CyclesArgs};
use crate::progress::short;
use crate::workspace::Workspace;
use crate::{Arm, demo, initramfs, kernel, patches, run, spec, tools, tutorial};

/// A step: a name, what to do when it fails, and how it runs.
struct Step {
    name: &'static str,
    mend: &'static str,
    /// Takes when all has to be done, too.
    run: fn(&Workspace, Instant) -> Result<Count>,
}

/// What a step has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u32,
    failed: u32,
    skipped: u32,
}

/// A step that is one check.
const ONE: Count = Count {
    passed: 1,
    failed: 0,
    skipped: 0,
};

/// What takes long and can be gone on with another time ends by then: a machine for CI gives 90 minutes.
const LIMIT: Duration = Duration::from_secs(70 * 60);

/// The docs are for who reads this code, so they have private items, and links to them.
const DOC_FLAGS: &str = "-D warnings -A rustdoc::private-intra-doc-links";

/// Quick ones first; what boots a guest comes after what it boots.
const STEPS: [Step; 19] = [
    Step {
        name: "set-up",
        mend: "run ci/setup",
        run: |workspace, _| tools::setup(workspace, true).map(|()| ONE),
    },
    Step {
        name: "format",
        mend: "run `cargo fmt --all`",
        run: |workspace, _| cargo(workspace, "format", &["fmt", "--all", "--check"]),
    },
    Step {
        name: "clippy",
        mend: "mend what clippy names; an exception is `#[expect(…, reason = …)]`",
        run: |workspace, _| {
            let arguments = "clippy --workspace --all-targets --quiet -- -D warnings";
            cargo(workspace, "clippy", &words(arguments))
        },
    },
    Step {
        name: "docs",
        mend: "mend the links and comments that rustdoc names",
        run: |workspace, _| {
            let arguments = "doc --workspace --no-deps --document-private-items --quiet";
            cargo(workspace, "docs", &words(arguments))
        },
    },
    Step {
        name: "specification",
        mend: "see `cargo ci spec --help`",
        run: |workspace, _| spec::run(workspace, false, &spec::Published::default()).map(|()| ONE),
    },
    Step {
        name: "unit-tests",
        mend: "run `cargo test` with the failed test's name",
        run: |workspace, _| tests(workspace, "unit-tests", "--lib --bins"),
    },
    Step {
        name: "doc-tests",
        mend: "run `cargo test --doc`",
        run: |workspace, _| tests(workspace, "doc-tests", "--doc"),
    },
    Step {
        name: "tutorial",
        mend: "bring hypercall-abi/TUTORIAL.md up to date; `cargo ci tutorial` tries it",
        run: |workspace, _| tutorial::run(workspace).map(|()| ONE),
    },
    Step {
        name: "kernel-full",
        mend: "see `cargo ci kernel --help`",
        run: |workspace, _| kernel::build(workspace, Arm::Full, None).map(|_| ONE),
    },
    Step {
        name: "kernel-para",
        mend: "see `cargo ci kernel --help`",
        run: |workspace, _| kernel::build(workspace, Arm::Para, None).map(|_| ONE),
    },
    Step {
        name: "initramfs",
        mend: "see `cargo ci initramfs --help`",
        run: |workspace, _| initramfs::build(workspace).map(|_| ONE),
    },
    Step {
        name: "reference-host",
        mend: "run `cargo ci reference-host`",
        run: |_, _| demo::reference_host().map(|()| ONE),
    },
    Step {
        name: "debian-image",
        mend: "run `cargo ci image`",
        run: |workspace, _| demo::image(workspace).map(|()| ONE),
    },
    Step {
        name: "patches",
        mend: "run `cargo ci patches --no-build`",
        run: |workspace, _| patches::check(workspace).map(|()| ONE),
    },
    Step {
        name: "boots",
        mend: "run `cargo test --test NAME -- --test-threads=1 --nocapture` with the failed file's \
               name",
        // One guest at a time: two would take each other's processors, and time out.
        run: |workspace, _| tests(workspace, "boots", "--test=* -- --test-threads=1"),
    },
    Step {
        name: "attack",
        mend: "run `cargo ci attack`",
        run: |workspace, _| attack::run(workspace, &AttackArgs::default()).map(|()| ONE),
    },
    Step {
        name: "programs",
        mend: "run `paravane bench apps --smoke --launches 1`",
        run: |workspace, _| demo::programs(workspace).map(|()| ONE),
    },
    Step {
        name: "cycles",
        mend: "run `cargo ci cycles`",
        run: |workspace, _| cycles::run(workspace, &CyclesArgs::default()).map(|()| ONE),
    },
    Step {
        name: "builds-of-the-series",
        mend: "run `cargo ci patches`",
        run: series,
    },
];

/// Task `test`.
pub(crate) fn run(workspace: &Workspace, only: Option<&str>, list: bool) -> Result<()> {
    let chosen: Vec<&Step> = STEPS
        .iter()
        .filter(|step| only.is_none_or(|part| step.name.contains(part)))
        .collect();
    if chosen.is_empty() {
        bail!("no step's name contains {only:?}; `cargo ci test --list` lists them");
    }
    if list {
        chosen.iter().for_each(|step| println!("{}", step.name));
        return Ok(());
    }
    let started = Instant::now();
    let mut total = Count::default();
    for step in &chosen {
        println!("==> {}", step.name);
        let step_started = Instant::now();
        let result = (step.run)(workspace, started + LIMIT);
        let seconds = short(step_started.elapsed().as_secs_f64());
        let count = match &result {
            Ok(count) => *count,
            Err(error) => {
                let counted = error.downcast_ref::<FailedTests>();
                counted.map_or(
                    Count {
                        failed: 1,
                        ..Count::default()
                    },
                    |tests| tests.0,
                )
            }
        };
        total.passed += count.passed;
        total.failed += count.failed;
        total.skipped += count.skipped;
        if let Err(error) = result {
            println!("==> {}: failed after {seconds}\n{error:#}", step.name);
            println!("{}", total.line());
            bail!("step {} failed; {}", step.name, step.mend);
        }
        println!("==> {}: {}, {seconds}", step.name, count.line());
    }
    println!("all of it took {}", short(started.elapsed().as_secs_f64()));
    println!("{}", total.line());
    Ok(())
}

impl Count {
    fn line(self) -> String {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }

    /// Counts what libtest printed. A test that cannot run here passes, and prints
    /// `skipped: reason`.
    fn of(log: &str) -> Self {
        let mut count = Self::default();
        log.lines().for_each(|line| count.add(line));
        count.passed = count.passed.saturating_sub(count.skipped);
        count
    }

    fn add(&mut self, line: &str) {
        if line.starts_with("skipped: ") {
            self.skipped += 1;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            let number = |word: &str| {
                let before = result.split(word).next()?;
                before.split_whitespace().next_back()?.parse::<u32>().ok()
            };
            self.passed += number(" passed").unwrap_or(0);
            self.failed += number(" failed").unwrap_or(0);
            let ignored = number(" ignored").unwrap_or(0);
            self.skipped += ignored;
            // Taken off again where the skipped ones are, which libtest counts as passed.
            self.passed += ignored;
        }
    }
}

/// Tests failed: the error that carries how many did.
#[derive(Debug)]
struct FailedTests(Count);

impl std::fmt::Display for FailedTests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("tests failed")
    }
}

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

/// Builds the steps of the patch series that there is time for.
fn series(workspace: &Workspace, until: Instant) -> Result<Count> {
    let steps = patches::build(workspace, Some(until))?;
    if steps.left > 0 {
        println!(
            "    skipped: builds of {} steps of the series, for want of time; the next run goes on, \
             and `cargo ci patches` builds all",
            steps.left
        );
    }
    Ok(Count {
        passed: steps.built,
        failed: 0,
        skipped: steps.left,
    })
}

/// Runs cargo as one check.
fn cargo(workspace: &Workspace, step: &str, arguments: &[&str]) -> Result<Count> {
    let log = workspace.cache_dir("test")?.join(format!("{step}.log"));
    let mut command = command(workspace, arguments);
    run::logged(&mut command, &log, |_| {})?;
    Ok(ONE)
}

/// Runs `cargo test` with `arguments`, and counts.
fn tests(workspace: &Workspace, step: &str, arguments: &str) -> Result<Count> {
    let log = workspace.cache_dir("test")?.join(format!("{step}.log"));
    let (of_cargo, of_tests) = arguments.split_once(" -- ").unwrap_or((arguments, ""));
    // The default members: the guest's programs have no libtest.
    let mut all = words("test --no-fail-fast");
    all.extend(words(of_cargo));
    all.extend(["--", "--show-output"]);
    all.extend(of_tests.split_whitespace());
    let result = run::logged(&mut command(workspace, &all), &log, |line| {
        let is_slow_test = step == "boots" && line.starts_with("test ");
        if is_slow_test || line.starts_with("skipped: ") || line.contains("... FAILED") {
            println!("    {line}");
        }
    });
    let text = fs::read_to_string(&log).with_context(|| format!("cannot read {log:?}"))?;
    let count = Count::of(&text);
    match result {
        Ok(()) => Ok(count),
        Err(_) if count.failed > 0 => {
            let failures = format!("{}The whole log: {}", failures(&text), log.display());
            Err(anyhow::Error::new(std::io::Error::other(failures)).context(FailedTests(count)))
        }
        Err(error) => Err(error),
    }
}

/// What failed tests printed: a log's parts between `failures:` and the result line.
fn failures(log: &str) -> String {
    let mut shown = String::new();
    let mut inside = false;
    for line in log.lines() {
        inside = (inside || line == "failures:") && !line.starts_with("test result: ");
        if inside {
            shown += &format!("    {line}\n");
        }
    }
    shown
}

fn command(workspace: &Workspace, arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command
        .current_dir(&workspace.root)
        .args(arguments)
        .env("CARGO_TERM_COLOR", "never")
        .env("RUST_BACKTRACE", "0")
        .env("RUSTDOCFLAGS", DOC_FLAGS);
    command
}

#[cfg(test)]
mod tests {
    use super::{Count, failures};

    #[test]
    fn results_are_added_up() {
        let count = Count::of(
            "running 7 tests\n\
             test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
             test result: FAILED. 14 passed; 2 failed; 0 ignored; 0 measured",
        );
        assert_eq!(count.line(), "21 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_skipped_test_has_not_passed() {
        let count = Count::of(
            "skipped: no /dev/kvm here\n\
             test result: ok. 2 passed; 0 failed; 0 ignored",
        );
        assert_eq!(count.line(), "1 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn what_failed_is_shown() {
        let log = "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\nwords\n\n\
                   test result: FAILED. 0 passed; 1 failed\nmore";
        let shown = failures(log);
        assert!(shown.contains("words") && !shown.contains("more"));
    }
}
