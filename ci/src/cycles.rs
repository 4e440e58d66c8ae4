//! Task `cycles`: boots, ends, kills, restarts, hotplug, copies and failing disks in a random mix, and nothing of it may hang or leak.
//!
//! # How it works
//!
//! The work is cut into pieces, a boot of the reference host each; in there this same program starts one guest after the
//! other ([`session`]) and writes a line of JSON for each. A seed gives the mix, so that a session that has failed can be
//! run again: session `index` of piece `seed`.

mod session;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::progress::{Effort, Progress};
use crate::workspace::Workspace;
use crate::{Arm, demo, initramfs, kernel};

/// Cycles where nothing else is asked for: about a minute of the reference host.
const COUNT: u32 = 30;
/// The mix where nothing else is asked for.
const SEED: u64 = 2026;
/// Cycles of one piece: some minutes of the reference host.
const PIECE: u32 = 60;
/// What a cycle takes on the reference host, for the first estimate.
const SECONDS_EACH: f64 = 1.5;
/// A piece that takes longer than this has hung, whatever its sessions say.
const PIECE_LIMIT: Duration = Duration::from_secs(1800);

/// Options of `cargo ci cycles`.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct CyclesArgs {
    /// How many cycles: a boot and its end is one, and so is a restart, a change of the processors that are on, and a copy's run
    #[arg(long, value_name = "N", default_value_t = COUNT, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// The mix's seed
    #[arg(long, value_name = "SEED", default_value_t = SEED)]
    seed: u64,
    /// Write a line of JSON for each guest to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run guests here, on this host's /dev/kvm, and not on the reference host
    #[arg(long)]
    here: bool,
    /// Only save direct guests and run copies of them to their end, here
    #[arg(long)]
    clones: bool,
}

impl Default for CyclesArgs {
    fn default() -> Self {
        Self {
            count: COUNT,
            seed: SEED,
            json: None,
            here: false,
            clones: false,
        }
    }
}

/// What guests are made of.
#[derive(Debug)]
struct Made {
    paravane: PathBuf,
    full: PathBuf,
    para: PathBuf,
    initrd: PathBuf,
    /// For logs.
    folder: PathBuf,
}

/// Counts what the sessions report.
#[derive(Debug)]
struct Tally {
    /// None once it is over.
    progress: Option<Progress>,
    json: Option<File>,
    /// The beginning of a line.
    begun: Vec<u8>,
    cycles: u64,
    guests: u32,
    bad: Vec<Value>,
}

impl Tally {
    fn line(&mut self, line: &str) -> io::Result<()> {
        let Ok(session) = serde_json::from_str::<Value>(line) else {
            return Ok(());
        };
        if let Some(file) = &mut self.json {
            writeln!(file, "{line}")?;
        }
        let cycles = session["cycles"].as_u64().unwrap_or(0);
        if let Some(progress) = &mut self.progress {
            (0..cycles).for_each(|_| progress.step());
        }
        self.cycles += cycles;
        self.guests += 1;
        if session["result"] != "good" {
            eprintln!("cycles: {line}");
            self.bad.push(session);
        }
        Ok(())
    }
}

/// Where the sessions' lines go.
#[derive(Clone, Debug)]
struct Sink(Arc<Mutex<Tally>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tally.begun.extend_from_slice(bytes);
        while let Some(end) = tally.begun.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = tally.begun.drain(..=end).collect();
            tally.line(String::from_utf8_lossy(&line).trim_end())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Task `cycles`.
pub(crate) fn run(workspace: &Workspace, args: &CyclesArgs) -> Result<()> {
    if paravane_reference_host::is_inside() {
        // A piece: nothing is built in there.
        let made = Made::find(workspace)?;
        let out = &mut io::stdout().lock();
        return session::run_all(&made, args.seed, args.count, args.clones, out);
    }
    demo::build_paravane(workspace)?;
    kernel::build(workspace, Arm::Full, None)?;
    kernel::build(workspace, Arm::Para, None)?;
    initramfs::build(workspace)?;
    let made = Made::find(workspace)?;
    // Nothing of an earlier run may be mistaken for one of this run.
    let _ = fs::remove_dir_all(&made.folder);
    fs::create_dir_all(&made.folder)?;

    let effort = Effort {
        steps: u64::from(args.count),
        seconds: f64::from(args.count) * SECONDS_EACH,
    };
    let json = args.json.as_ref().map(|path| {
        File::create(path).with_context(|| format!("{} cannot be written", path.display()))
    });
    let mut sink = Sink(Arc::new(Mutex::new(Tally {
        progress: Some(Progress::start("cycles", Path::new(""), effort)),
        json: json.transpose()?,
        begun: Vec::new(),
        cycles: 0,
        guests: 0,
        bad: Vec::new(),
    })));
    let mut left = args.count;
    for seed in args.seed.. {
        let count = left.min(PIECE);
        if args.here || args.clones {
            session::run_all(&made, seed, count, args.clones, &mut sink)?;
        } else {
            piece(workspace, seed, count, sink.clone())?;
        }
        left -= count;
        if left == 0 {
            break;
        }
    }
    let mut tally = sink.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(progress) = tally.progress.take() {
        progress.finish(false);
    }
    println!(
        "{} cycles of {} guests, {} guests failed",
        tally.cycles,
        tally.guests,
        tally.bad.len()
    );
    if tally.cycles < u64::from(args.count) {
        bail!("only {} cycles were run", tally.cycles);
    }
    if !tally.bad.is_empty() {
        bail!(
            "{} guests have failed; their logs are in {}, and `--seed` with a line's seed runs its piece again",
            tally.bad.len(),
            made.folder.display()
        );
    }
    Ok(())
}

/// Runs this program in the reference host.
fn piece(workspace: &Workspace, seed: u64, count: u32, sink: Sink) -> Result<()> {
    let program = std::env::current_exe()?.into_os_string();
    let arguments = ["cycles".into(), "--seed".into(), seed.to_string().into()];
    let command = paravane_reference_host::Command::new([program].into_iter().chain(arguments))?
        .arg("--count")
        .arg(count.to_string())
        .env("PARAVANE_CACHE", workspace.cache.as_os_str())
        .stdout(sink)
        .timeout(PIECE_LIMIT);
    let finished = command.run()?;
    if !finished.success() {
        bail!("the piece with seed {seed} ended with {}", finished.code);
    }
    Ok(())
}

impl Made {
    fn find(workspace: &Workspace) -> Result<Self> {
        let found = |path: PathBuf| {
            path.canonicalize()
                .with_context(|| format!("{} is not built", path.display()))
        };
        let cached = |path: &str| found(workspace.cache.join(path));
        Ok(Self {
            paravane: found(workspace.root.join("target/release/paravane"))?,
            full: cached("kernel/full/vmlinux")?,
            para: cached("kernel/para/vmlinux")?,
            initrd: cached("initramfs/guest.cpio")?,
            folder: workspace.root.join("target/cycles"),
        })
    }
}
