//! Task `selftests`: the kernel's own tests, in the full guest and in the para guest, compared.
//!
//! # How it works
//!
//! The tests come from the source tree of the guests' kernel (`tools/testing/selftests`), are built by its own
//! makefiles, statically, and go into an initramfs with a script as its first process ([`INIT`]). Each guest
//! runs the list ([`LIST`]). What has failed is run again, since a loaded machine breaks what tests say about time; what
//! passes in full must pass in para.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use cpio::newc::ModeFileType;
use serde::Serialize;

use crate::initramfs::Archive;
use crate::kernel::source::Source;
use crate::workspace::Workspace;
use crate::{Arm, demo, kernel, run};

/// The tests.
const LIST: &str = include_str!("selftests/tests.txt");
/// The guest's first process.
const INIT: &str = include_str!("selftests/init.sh");
/// Folders of tests that are built.
const BUILT: [&str; 3] = ["timers", "futex/functional", "membarrier"];
/// Folders of tests that are scripts.
const SCRIPTS: [&str; 1] = ["cpu-hotplug"];
/// How often a test may fail before it has.
const TRIES: u32 = 3;
/// `ksft_skip` of the tests.
const SKIPPED: i32 = 4;

/// Options of `cargo ci selftests`.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SelftestsArgs {
    /// Run only the tests whose names contain this
    only: Option<String>,
    /// Write the comparison to this file, a JSON object for each test
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// vCPUs of each guest
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u8,
    /// Run the guests here, on this host's /dev/kvm, and not on the reference host
    #[arg(long)]
    here: bool,
}

/// A line of the list.
#[derive(Debug)]
struct Test<'a> {
    /// Its line's number.
    number: usize,
    name: &'a str,
    /// Seconds, or why it does not run.
    limit: std::result::Result<u64, &'a str>,
    text: &'a str,
}

/// What has become of a test in one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Passed,
    Skipped,
    Failed,
    /// The guest has not come so far.
    Lost,
}

impl Verdict {
    fn of(code: i32) -> Self {
        match code {
            0 => Self::Passed,
            SKIPPED => Self::Skipped,
            _ => Self::Failed,
        }
    }
}

/// A test's row.
#[derive(Debug, Serialize)]
struct Row<'a> {
    test: &'a str,
    full: Option<Verdict>,
    para: Option<Verdict>,
    tries: [u32; 2],
    left_out: Option<&'a str>,
}

/// Task `selftests`.
pub(crate) fn run(workspace: &Workspace, args: &SelftestsArgs) -> Result<()> {
    let tests: Vec<Test<'_>> = tests()
        .filter(|test| {
            let only = args.only.as_deref();
            only.is_none_or(|part| test.text.contains(part))
        })
        .collect();
    let initrd = build(workspace)?;
    let paravane = demo::build_paravane(workspace)?;
    let full = kernel::build(workspace, Arm::Full, None)?;
    let para = kernel::build(workspace, Arm::Para, None)?;

    let mut results: [BTreeMap<usize, (Verdict, u32)>; 2] = Default::default();
    for round in 1..=TRIES {
        let arms = [("full", &full, "reboot"), ("para", &para, "poweroff")];
        for ((arm, kernel, end), results) in arms.into_iter().zip(&mut results) {
            let left: Vec<&Test<'_>> = tests
                .iter()
                .filter(|test| test.limit.is_ok())
                .filter(|test| {
                    let verdict = results.get(&test.number).map(|(verdict, _)| *verdict);
                    !matches!(verdict, Some(Verdict::Passed | Verdict::Skipped))
                })
                .collect();
            if left.is_empty() {
                continue;
            }
            eprintln!("selftests: {arm}, {} tests, round {round}", left.len());
            let guest = Guest {
                paravane: &paravane,
                arm,
                kernel: &kernel.join("vmlinux"),
                initrd: &initrd,
                end,
                log: &workspace
                    .cache_dir("selftests")?
                    .join(format!("{arm}-{round}.log")),
            };
            let codes = guest.run(&left, args)?;
            for test in left {
                let verdict = codes
                    .get(&test.number)
                    .map_or(Verdict::Lost, |c| Verdict::of(*c));
                results.insert(test.number, (verdict, round));
            }
        }
    }
    let rows: Vec<Row<'_>> = tests
        .iter()
        .map(|test| {
            let [full, para] = [0, 1].map(|arm: usize| results[arm].get(&test.number));
            Row {
                test: test.text,
                full: full.map(|(verdict, _)| *verdict),
                para: para.map(|(verdict, _)| *verdict),
                tries: [full, para].map(|result| result.map_or(0, |(_, tries)| *tries)),
                left_out: test.limit.err(),
            }
        })
        .collect();
    report(&rows, args.json.as_deref(), workspace)
}

/// The list's lines.
fn tests() -> impl Iterator<Item = Test<'static>> {
    let lines = (1..).zip(LIST.lines());
    lines.filter_map(|(number, line)| {
        let (name, rest) = line.split_once(' ').filter(|_| !line.starts_with('#'))?;
        let (limit, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        Some(Test {
            number,
            name,
            limit: limit.parse().map_err(|_| rest),
            text: if limit == "-" { name } else { line },
        })
    })
}

/// One guest that runs tests.
struct Guest<'a> {
    paravane: &'a Path,
    arm: &'static str,
    kernel: &'a Path,
    initrd: &'a Path,
    /// The command that ends it.
    end: &'static str,
    log: &'a Path,
}

impl Guest<'_> {
    /// Exit codes by the tests' numbers.
    fn run(&self, tests: &[&Test<'_>], args: &SelftestsArgs) -> Result<BTreeMap<usize, i32>> {
        let seconds: u64 = tests.iter().filter_map(|t| t.limit.ok()).sum();
        let mut cmdline = format!("quiet -- {}", self.end);
        for test in tests {
            write!(cmdline, " {}", test.number)?;
        }
        let mut command = Command::new(self.paravane);
        command
            .args(["run", "--guest", self.arm, "--memory", "256"])
            .args(["--host", if args.here { "kvm" } else { "reference" }])
            .args(["--cpus", &args.cpus.to_string()])
            .args(["--watchdog", &(seconds + 120).to_string()])
            .arg("--console-log")
            .arg(self.log)
            .arg("--kernel")
            .arg(self.kernel)
            .arg("--initrd")
            .arg(self.initrd)
            .args(["--cmdline", &cmdline]);
        // What came before a watchdog counts all the same.
        let ended = run::read(&mut command);
        let bytes = fs::read(self.log).unwrap_or_default();
        let codes: BTreeMap<usize, i32> = String::from_utf8_lossy(&bytes)
            .lines()
            .filter_map(|line| {
                let (_, result) = line.split_once("SELFTEST-END ")?;
                let (number, code) = result.trim_end().split_once(' ')?;
                Some((number.parse().ok()?, code.parse().ok()?))
            })
            .collect();
        if codes.is_empty() {
            ended.with_context(|| format!("the {} guest has run no test", self.arm))?;
            bail!(
                "the {} guest has run no test; see {}",
                self.arm,
                self.log.display()
            );
        }
        Ok(codes)
    }
}

fn report(rows: &[Row<'_>], json: Option<&Path>, workspace: &Workspace) -> Result<()> {
    let mut lines = String::new();
    let mut worse = Vec::new();
    println!("{:<70} full     para", "test");
    for row in rows {
        writeln!(lines, "{}", serde_json::to_string(row)?)?;
        let [full, para] = [row.full, row.para].map(|verdict| match verdict {
            Some(Verdict::Passed) => "passed",
            Some(Verdict::Skipped) => "skipped",
            Some(Verdict::Failed) => "failed",
            Some(Verdict::Lost) => "lost",
            None => "-",
        });
        let note = row.left_out.unwrap_or_default();
        println!("{:<70} {full:<8} {para:<8} {note}", row.test);
        if row.full == Some(Verdict::Passed) && row.para != Some(Verdict::Passed) {
            worse.push(row.test);
        }
    }
    if let Some(path) = json {
        fs::write(path, lines).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    if !worse.is_empty() {
        bail!(
            "passed in full and not in para: {}; the consoles are in {}",
            worse.join(", "),
            workspace.cache_dir("selftests")?.display()
        );
    }
    Ok(())
}

/// Builds the tests and their initramfs; returns its path.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let _lock = workspace.lock("selftests")?;
    let source = Source::find(workspace, None)?.unpack(workspace)?;
    let folder = workspace.cache_dir("selftests")?;
    let from = source.path.join("tools/testing/selftests");
    // Debian 12's copy of this one header is too old for the tests.
    let headers = folder.join("include/linux");
    fs::create_dir_all(&headers)?;
    fs::copy(
        source.path.join("include/uapi/linux/membarrier.h"),
        headers.join("membarrier.h"),
    )?;

    let mut archive = Archive::guest()?;
    archive.add("init", ModeFileType::Regular, 0o755, INIT.as_bytes())?;
    for parent in ["tests", "tests/futex"] {
        archive.add(parent, ModeFileType::Directory, 0o755, b"")?;
    }
    archive.add("tests/list", ModeFileType::Regular, 0o644, LIST.as_bytes())?;
    for name in BUILT {
        let output = folder.join(name);
        fs::create_dir_all(&output)?;
        // valid-adjtimex has a function of the C library's name.
        run::read(
            Command::new("make")
                .arg("-C")
                .arg(from.join(name))
                .arg(format!("OUTPUT={}", output.display()))
                .arg(format!(
                    "KHDR_INCLUDES=-isystem {}",
                    folder.join("include").display()
                ))
                .args(["CC=gcc", "LDFLAGS=-static -s -Wl,-z,muldefs"]),
        )
        .with_context(|| format!("the kernel's tests in {name} do not build"))?;
    }
    for name in BUILT.into_iter().chain(SCRIPTS) {
        let place = format!("tests/{name}");
        archive.add(&place, ModeFileType::Directory, 0o755, b"")?;
        let mut names: Vec<&str> = tests()
            .filter(|test| test.limit.is_ok())
            .filter_map(|test| {
                let (parent, file) = test.name.rsplit_once('/')?;
                (parent == name).then_some(file)
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        let built = if SCRIPTS.contains(&name) {
            &from
        } else {
            &folder
        };
        for file in names {
            let bytes = fs::read(built.join(name).join(file))?;
            archive.add(
                &format!("{place}/{file}"),
                ModeFileType::Regular,
                0o755,
                &bytes,
            )?;
        }
    }
    let path = folder.join("selftests.cpio");
    fs::write(&path, archive.finish()?)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_runs_or_says_why_not() {
        for test in tests() {
            match test.limit {
                Ok(seconds) => assert!(seconds > 0, "{}", test.text),
                Err(reason) => assert!(reason.len() > 10, "{}: {reason}", test.name),
            }
            let folder = test.name.rsplit_once('/').unwrap().0;
            assert!(
                BUILT
                    .into_iter()
                    .chain(SCRIPTS)
                    .any(|known| known == folder)
            );
        }
        assert!(tests().filter(|test| test.limit.is_ok()).count() > 20);
    }
}
