//! Task `attack`: hostile guests poke all that they can reach, and the VMM must neither fall nor grow.
//!
//! # How it works
//!
//! The bare-metal guest carries out a script of random operations ([`script`]): ports, registers in memory, MSRs, CPUID leaves, calls, rings and
//! queues. Each run of a VMM (the program, confined as always) has a guest and a seed; there are runs until the VMMs have served as many exits as
//! were asked for. A guest may kill itself: that ends a run. A VMM that panics, makes a forbidden call, hangs, or has more memory, threads or descriptors
//! late than early has failed. Beside it runs a neighbour, which does the same work without an attack before or after: what processor time the one takes by the other's is
//! reported, and not judged. It is time on a processor, since a host with fewer processors than guests divides them in any case.

mod script;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use self::script::{MEMORY_MIB, Target};
use crate::demo;
use crate::holds::Holds;
use crate::workspace::Workspace;

/// Operations where nothing else is asked for: seconds of the reference host.
const OPERATIONS: u64 = 200_000;
/// The first run's seed where nothing else is asked for.
const SEED: u64 = 8;
/// Passes of a run's script: what a VMM leaks adds up.
const PASSES: u64 = 16;
/// Passes of the neighbour's script.
const NEIGHBOUR_PASSES: u64 = 1;
/// A run is ended after so many seconds.
const RUN_LIMIT: u32 = 600;
/// One whose watchdog has not ended it so long after that is killed.
const GRACE: Duration = Duration::from_secs(60);
/// One that has served fewer operations by then hangs: a busy host serves hundreds a second.
const HANGS_BELOW: u64 = 10_000;
const WHOLE_LIMIT: Duration = Duration::from_secs(7200);
const POLL: Duration = Duration::from_millis(50);
/// Options of `cargo ci attack`.
#[derive(Debug, Args)]
pub(crate) struct AttackArgs {
    /// How many operations the VMMs have to serve
    #[arg(long, value_name = "N", default_value_t = OPERATIONS)]
    operations: u64,
    /// The first run's seed; the next run has the next one
    #[arg(long, value_name = "SEED", default_value_t = SEED)]
    seed: u64,
    /// Run guests here, on this host's /dev/kvm, and not on the reference host
    #[arg(long)]
    here: bool,
}

impl Default for AttackArgs {
    fn default() -> Self {
        Self {
            operations: OPERATIONS,
            seed: SEED,
            here: false,
        }
    }
}

/// A run, as it is reported.
#[derive(Debug, Serialize)]
struct Report {
    guest: &'static str,
    seed: u64,
    operations: u64,
    seconds: f64,
    outcome: String,
    early: Holds,
    late: Holds,
    /// The neighbour's processor time beside the attack by that alone.
    neighbour: Option<f64>,
    failure: Option<String>,
}

/// The programs, and a folder for what runs need.
#[derive(Debug)]
struct Made {
    paravane: PathBuf,
    attacker: PathBuf,
    folder: PathBuf,
}

/// Task `attack`.
pub(crate) fn run(workspace: &Workspace, args: &AttackArgs) -> Result<()> {
    if args.here || paravane_reference_host::is_inside() {
        if args.here {
            build(workspace)?;
        }
        return attack(&Made::find(workspace)?, args);
    }
    build(workspace)?;
    let program = std::env::current_exe()?.into_os_string();
    let command = paravane_reference_host::Command::new([program, "attack".into()])?
        .arg("--operations")
        .arg(args.operations.to_string())
        .arg("--seed")
        .arg(args.seed.to_string())
        .env("PARAVANE_CACHE", workspace.cache.as_os_str())
        .timeout(WHOLE_LIMIT);
    match command.run()?.code {
        0 => Ok(()),
        code => bail!("the attack in the reference host ended with {code}"),
    }
}

fn build(workspace: &Workspace) -> Result<()> {
    demo::build_paravane(workspace)?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&workspace.root);
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "paravane-bare-metal",
    ]);
    if !cargo.status()?.success() {
        bail!("the attacker does not build");
    }
    Ok(())
}

fn attack(made: &Made, args: &AttackArgs) -> Result<()> {
    const GUESTS: [(&str, Target); 3] = [
        ("para", Target::Para),
        ("full", Target::Full),
        ("kvm-pv", Target::KvmPv),
    ];
    fs::create_dir_all(&made.folder)?;
    let (mut operations, mut failures) = (0, 0);
    let mut neighbours = Vec::new();
    for (seed, guest) in (args.seed..).zip(GUESTS.iter().cycle()) {
        let left = args.operations.saturating_sub(operations);
        let report = made.one(*guest, seed, left)?;
        neighbours.extend(report.neighbour);
        operations += report.operations;
        failures += u32::from(report.failure.is_some());
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        out.flush()?;
        // Each guest has its turn, however few are asked for.
        let turns = seed - args.seed + 1;
        if operations >= args.operations && turns >= GUESTS.len() as u64 {
            break;
        }
        if report.operations < 100 {
            bail!("the attack does not get on: {report:?}");
        }
    }
    println!("{operations} operations, {failures} failures");
    neighbours.sort_by(f64::total_cmp);
    if let (Some(least), Some(most)) = (neighbours.first(), neighbours.last()) {
        let (count, median) = (neighbours.len(), neighbours[neighbours.len() / 2]);
        println!(
            "a neighbour's processor time beside an attack by that alone: {median:.3} (median of {count}, {least:.3} to {most:.3})"
        );
    }
    if failures > 0 {
        bail!("{failures} VMMs have failed; `--seed` with a line's seed repeats it");
    }
    Ok(())
}

/// A VMM that runs, and where it says what.
#[derive(Debug)]
struct Running {
    child: Child,
    errors: PathBuf,
    stats: PathBuf,
    started: Instant,
    /// How long it may take.
    limit: Duration,
}

/// How a VMM has ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    errors: String,
    stats: Value,
    seconds: f64,
    /// It has ignored its watchdog, and was killed.
    was_killed: bool,
}

impl Made {
    fn find(workspace: &Workspace) -> Result<Self> {
        let release = workspace.root.join("target/release");
        Ok(Self {
            paravane: release.join("paravane"),
            attacker: release.join("paravane-bare-metal"),
            // Inside the reference host, in its own memory: its disk is this machine's.
            folder: std::env::temp_dir().join(format!("paravane-attack-{}", std::process::id())),
        })
    }

    fn start(&self, name: &str, guest: &str, script: &[u8]) -> Result<Running> {
        let path = |ext: &str| self.folder.join(format!("{name}.{ext}"));
        let (script_path, disk) = (path("script"), path("disk"));
        fs::write(&script_path, script)?;
        fs::write(&disk, vec![0; 1 << 20])?;
        let (errors, stats) = (path("errors"), path("stats"));
        let _ = fs::remove_file(&stats);
        let mut command = Command::new(&self.paravane);
        command.args(["run", "--host", "kvm", "--guest", guest, "--stats", "json"]);
        command.args(["--console-log", "/dev/null"]);
        command.arg("--watchdog").arg(RUN_LIMIT.to_string());
        command.arg("--memory").arg(MEMORY_MIB.to_string());
        command.arg("--kernel").arg(&self.attacker);
        command.arg("--initrd").arg(&script_path);
        command.arg("--stats-file").arg(&stats);
        command.arg("--disk").arg(&disk);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(&errors)?);
        let child = command.spawn().context("the VMM cannot be started")?;
        Ok(Running {
            child,
            errors,
            stats,
            started: Instant::now(),
            limit: Duration::from_secs(RUN_LIMIT.into()) + GRACE,
        })
    }

    fn neighbour(&self, seed: u64) -> Result<Running> {
        let script = script::write(Target::Neighbour, seed, NEIGHBOUR_PASSES);
        self.start("neighbour", "para", &script)
    }

    /// One VMM with its neighbour.
    fn one(&self, (guest, target): (&'static str, Target), seed: u64, most: u64) -> Result<Report> {
        let alone = || self.neighbour(seed)?.wait(&mut |_| {});
        let before = seed.is_multiple_of(2).then(alone).transpose()?;
        let passes = PASSES.min(most / 150_000 + 1);
        let attacker = self.start("attacker", guest, &script::write(target, seed, passes))?;
        let mut neighbour = self.neighbour(seed)?;
        let mut whole = false;
        let mut samples = Vec::new();
        let ended = attacker.wait(&mut |pid| {
            samples.extend(Holds::of(pid));
            // One that the attack has not outlived has been beside it for only a part of its time.
            whole |= matches!(neighbour.child.try_wait(), Ok(Some(_)));
        })?;
        let neighbour = neighbour.wait(&mut |_| {})?;
        let alone = before.map_or_else(alone, Ok)?;
        let (early, late) = Holds::early_and_late(&samples);
        Ok(Report {
            guest,
            seed,
            operations: ended.operations(),
            seconds: ended.seconds,
            outcome: ended.stats["outcome"].as_str().unwrap_or("none").to_owned(),
            early,
            late,
            neighbour: neighbour
                .marked_cpu_ns()
                .zip(alone.marked_cpu_ns())
                .filter(|_| whole)
                .map(|(beside, alone)| beside / alone),
            failure: ended
                .failure()
                .or_else(|| late.grown_since(early))
                .or_else(|| {
                    let failure = neighbour.failure()?;
                    Some(format!("the neighbour: {failure}"))
                }),
        })
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Running {
    /// Waits for its end, which its watchdog bounds, or else a kill; and has a look now and then.
    fn wait(mut self, look: &mut dyn FnMut(u32)) -> Result<Ended> {
        let mut was_killed = false;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if self.started.elapsed() >= self.limit {
                was_killed = true;
                self.child.kill()?;
                break self.child.wait()?;
            }
            look(self.child.id());
            sleep(POLL);
        };
        let stats = fs::read_to_string(&self.stats).unwrap_or_default();
        Ok(Ended {
            code: status.code(),
            errors: fs::read_to_string(&self.errors)?,
            stats: serde_json::from_str(&stats).unwrap_or_default(),
            seconds: self.started.elapsed().as_secs_f64(),
            was_killed,
        })
    }
}

impl Ended {
    /// What the VMM has served.
    fn operations(&self) -> u64 {
        let exits = self.stats["user_exits"].as_object();
        let exits = exits.into_iter().flatten();
        exits.filter_map(|(_, count)| count.as_u64()).sum()
    }

    /// The VMM's processor time at its guest's last mark.
    fn marked_cpu_ns(&self) -> Option<f64> {
        self.stats["marks"].as_array()?.last()?["cpu_ns"].as_f64()
    }

    /// What is wrong with the VMM, whatever its guest has done.
    fn failure(&self) -> Option<String> {
        if self.was_killed {
            return Some(format!("its watchdog has not ended it: {}", self.errors));
        }
        let has = |text: &str| self.errors.contains(text);
        let is_fallen = has("panicked") || has("forbidden system call") || self.stats.is_null();
        let has_hung = self.stats["outcome"] == "watchdog" && self.operations() < HANGS_BELOW;
        if !is_fallen && !has_hung && matches!(self.code, Some(0..=3)) {
            return None;
        }
        let (code, errors) = (self.code, &self.errors);
        Some(format!("exit status {code:?}: {errors}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_that_its_watchdog_does_not_end_is_killed_and_has_failed() {
        let sleeper = Command::new("sleep").arg("600").spawn();
        let running = Running {
            child: sleeper.unwrap(),
            errors: "/dev/null".into(),
            stats: "/dev/null".into(),
            started: Instant::now(),
            limit: 2 * POLL,
        };
        let mut looks = 0;
        let ended = running.wait(&mut |_| looks += 1).unwrap();
        assert!(looks > 0);
        assert!(ended.failure().unwrap().contains("watchdog"));
    }
}
