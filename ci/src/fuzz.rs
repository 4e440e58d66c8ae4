//! Task `fuzz`: libFuzzer searches for inputs that break the VMM.
//!
//! # How it works
//!
//! The targets are those of `host-vmm/fuzz`. What libFuzzer wants of a compiler is a pass of LLVM's that a stable compiler has, too, so neither a
//! nightly toolchain nor cargo-fuzz is needed. What a search has found is in `host-vmm/fuzz/corpus`, and the next search begins with it; `--keep` makes
//! the smallest inputs that reach as much seeds, which `host-vmm/tests/fuzz.rs` runs in each test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::run;
use crate::workspace::Workspace;

/// Coverage counters, and the sum's overflow as an error.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";
/// Named, so that what runs while it is built has none of the flags.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
/// Bytes of an input at most, and of a seed.
const INPUT_MAX: u32 = 4096;
const SEED_MAX: u32 = 1024;
/// Seeds of a target at most: the tests run each.
const SEEDS_MAX: usize = 48;

/// Options of `cargo ci fuzz`.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Files of host-vmm/fuzz/fuzz_targets; none: all, one after the other
    targets: Vec<String>,
    /// How long each is searched
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Write the inputs that reach the most to host-vmm/fuzz/seeds
    #[arg(long)]
    keep: bool,
}

/// A target: its program and its inputs.
struct Target {
    name: String,
    program: PathBuf,
    corpus: PathBuf,
    seeds: PathBuf,
}

/// Task `fuzz`.
pub(crate) fn run(workspace: &Workspace, args: &FuzzArgs) -> Result<()> {
    let folder = workspace.root.join("host-vmm/fuzz");
    let names = names(&folder)?;
    if let Some(unknown) = args.targets.iter().find(|name| !names.contains(name)) {
        bail!("there is no target `{unknown}`: {}", names.join(", "));
    }
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&folder).env("RUSTFLAGS", FLAGS);
    cargo.args(["build", "--quiet", "--release", "--target", PLATFORM]);
    run::show(&mut cargo)?;
    for name in names {
        if !args.targets.is_empty() && !args.targets.contains(&name) {
            continue;
        }
        let target = Target {
            program: folder
                .join("target")
                .join(PLATFORM)
                .join("release")
                .join(&name),
            corpus: folder.join("corpus").join(&name),
            seeds: folder.join("seeds").join(&name),
            name,
        };
        fs::create_dir_all(&target.corpus)?;
        fs::create_dir_all(&target.seeds)?;
        search(&target, &folder, args.minutes)?;
        if args.keep {
            keep(&target, &folder)?;
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let files = fs::read_dir(folder.join("fuzz_targets"))?;
    let mut names = Vec::new();
    for file in files {
        let path = file?.path();
        let stem = path.file_stem().context("a file has a name")?;
        names.push(stem.to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Searches, and says how far it has come; an error where an input breaks the VMM.
fn search(target: &Target, folder: &Path, minutes: u64) -> Result<()> {
    let artifacts = folder.join("artifacts");
    fs::create_dir_all(&artifacts)?;
    let log = artifacts.join(format!("{}.log", target.name));
    let found = artifacts.join(format!("{}-", target.name));
    let mut command = Command::new(&target.program);
    command.arg(format!("-max_total_time={}", minutes * 60));
    command.arg(format!("-max_len={INPUT_MAX}"));
    command.args(["-timeout=10", "-rss_limit_mb=1024"]);
    command.arg(format!("-artifact_prefix={}", found.display()));
    command.args([&target.corpus, &target.seeds]);
    let mut last = String::new();
    let searched = run::logged(&mut command, &log, |line| {
        if line.contains("DONE") {
            line.clone_into(&mut last);
        }
    });
    searched.with_context(|| {
        format!(
            "an input breaks target {}; to see it again: {} {}…",
            target.name,
            target.program.display(),
            found.display()
        )
    })?;
    println!("{}: {last}", target.name);
    Ok(())
}

/// Replaces the seeds of an earlier search: a small set of inputs that reaches what the corpus does, and of these the longest, which reach the most.
fn keep(target: &Target, folder: &Path) -> Result<()> {
    let small = folder
        .join("artifacts")
        .join(format!("{}-small", target.name));
    let _ = fs::remove_dir_all(&small);
    fs::create_dir_all(&small)?;
    let mut merge = Command::new(&target.program);
    merge.args(["-set_cover_merge=1", "-use_counters=0"]);
    merge.arg(format!("-max_len={SEED_MAX}"));
    merge.args([&small, &target.corpus]);
    run::logged(&mut merge, &small.with_extension("log"), |_| ())?;
    for seed in found(&target.seeds)? {
        fs::remove_file(seed)?;
    }
    let mut inputs = found(&small)?;
    inputs.sort_by_key(|path| fs::metadata(path).map_or(0, |about| about.len()));
    for input in inputs.iter().rev().take(SEEDS_MAX) {
        let name = input.file_name().context("a file has a name")?;
        fs::copy(input, target.seeds.join(name))?;
    }
    Ok(())
}

/// Files that libFuzzer has named, by a hash; other seeds are somebody's own.
fn found(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_hash = |name: &str| name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let mut files = Vec::new();
    for file in fs::read_dir(folder)? {
        let file = file?;
        if file.file_name().to_str().is_some_and(is_hash) {
            files.push(file.path());
        }
    }
    Ok(files)
}
