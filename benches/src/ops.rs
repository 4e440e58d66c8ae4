//! `paravane bench ops`: what each privileged operation costs in each guest, and what each facility is worth.
//!
//! # How it measures
//!
//! *Operations.* The module `pvbench.ko` measures them from inside the guest's kernel, in cycles; the VMM counts the
//! exits of each. One patched image boots as every guest, so that the instructions measured are the same: a launch is
//! the sample, and its number is the median, or the tail, over the module's rounds.
//!
//! *Attribution.* A para guest boots with everything and without one facility, in turn. What the facility saves is the
//! difference; what the exits saved predict is their number times what `paravane doctor` says that an exit costs here;
//! the residual is the rest ([`crate::attribution`]).
//!
//! Twins show what a difference must exceed: of `para` in both parts.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use clap::{Args as _, FromArgMatches as _};

use crate::arm::{Arm, name_twins};
use crate::collect::LineSink;
use crate::host::Host;
use crate::launch::Launcher;
use crate::ops_launch::{Series, launch_all};
use crate::ops_results::Results;
use crate::ops_table::draw;
use crate::session::{given_or_cached, resolved, scratch_folder, watch_signals};
use crate::table::Look;

/// Arguments of `paravane bench ops`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "The tables can be drawn again, and of several runs together: paravane bench ops --from a.jsonl --from b.jsonl\n\
    A row is marked `worse` or `better` where the interval of para/kvm-pv lies beyond that of the twins."
)]
pub struct OpsArgs {
    /// The guests whose operations are compared. `para-irq` is para without facility irq; naming an arm twice makes a twin.
    #[arg(long, value_delimiter = ',', default_value = "full,kvm-pv,para,para")]
    pub arms: Vec<String>,
    /// Launches of each arm for the operations; 0 leaves them out.
    #[arg(long, default_value_t = 6)]
    pub launches: u32,
    /// Boots with and without each facility for the attribution; 0 leaves it out.
    #[arg(long, default_value_t = 6)]
    pub boots: u32,
    /// The facilities whose worth is measured [default: all that a para guest can do without on any host: not clock].
    #[arg(long, value_delimiter = ',')]
    pub facilities: Vec<String>,
    /// Where the guests run [default: this machine if its KVM can run every arm, else the reference host].
    #[arg(long, value_enum)]
    pub host: Option<Host>,
    /// Write the raw samples here, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the tables here, as Markdown.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Launch nothing: draw the tables of raw samples that were taken before.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub from: Vec<PathBuf>,
    /// Seed of the launches' order and of the bootstrap [default: a new one each time].
    #[arg(long)]
    pub seed: Option<u64>,
    /// The patched kernel, which boots as every arm [default: the newest that `cargo ci kernel para` built].
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The guest's initramfs, with pvbench.ko [default: the newest that `cargo ci initramfs` built].
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Guest memory in MiB.
    #[arg(long, default_value_t = 128)]
    pub memory: u64,
    /// vCPUs of a guest; with one, what needs two is absent.
    #[arg(long, default_value_t = 2)]
    pub cpus: u8,
    /// How many seconds a launch may take.
    #[arg(long, default_value_t = 240, value_name = "SECONDS")]
    pub watchdog: u64,
    /// Print the samples and nothing else: how the benchmark runs itself on the reference host.
    #[arg(long, hide = true)]
    pub samples_only: bool,
}

impl OpsArgs {
    /// What the command line takes when nothing is said.
    ///
    /// # Errors
    ///
    /// Never, since nothing is required.
    pub fn by_default() -> anyhow::Result<Self> {
        let command = Self::augment_args(clap::Command::new("ops"));
        Ok(Self::from_arg_matches(
            &command.try_get_matches_from(["ops"])?,
        )?)
    }
}

/// The arms of the attribution: para, its twin, and para without each of `facilities`.
fn attribution_arms(facilities: &[String]) -> Vec<String> {
    let without = facilities.iter().map(|facility| format!("para-{facility}"));
    ["para".to_owned(), "para".to_owned()]
        .into_iter()
        .chain(without)
        .collect()
}

fn series(job: &'static str, arms: &[String], launches: u32) -> anyhow::Result<Series> {
    let arms: Result<Vec<Arm>, _> = arms.iter().map(|name| name.parse()).collect();
    let mut arms = arms?;
    name_twins(&mut arms);
    Ok(Series {
        job,
        arms,
        launches,
    })
}

/// Runs the benchmark and prints its tables. `facilities` are those that a para guest can do without; `unfit` is the
/// reason why this machine's KVM cannot run the guests, if it cannot.
///
/// # Errors
///
/// When the arguments make no sense, a file is missing, the reference host fails, or a launch failed.
pub fn ops(
    args: &OpsArgs,
    facilities: &[&str],
    unfit: impl FnOnce() -> Option<String>,
) -> anyhow::Result<()> {
    if !args.from.is_empty() {
        return redraw(args);
    }
    let mut args = args.clone();
    if args.facilities.is_empty() {
        args.facilities = facilities.iter().map(ToString::to_string).collect();
    }
    let args = &args;
    let series = [
        series("ops", &args.arms, args.launches)?,
        series("boot", &attribution_arms(&args.facilities), args.boots)?,
    ];
    ensure!(
        series.iter().any(|series| series.launches > 0),
        "there is nothing to launch: give --launches or --boots more than 0"
    );
    let seed = args.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let launcher = launcher(args)?;
    let class = Host::choose(args.host, unfit().as_deref());
    let stop = Arc::new(AtomicBool::new(false));
    if args.samples_only {
        watch_signals(&stop)?;
        let mut out = io::stdout().lock();
        return launch_all(&launcher, &series, class, seed, &stop, |line| {
            Ok(writeln!(out, "{line}").and_then(|()| out.flush())?)
        });
    }
    let file = args.json.as_deref().map(|path| {
        File::create(path)
            .with_context(|| format!("the result file `{}` cannot be created", path.display()))
    });
    let total = series.iter().map(Series::total).sum();
    let mut results = Results::new(total);
    results.file = file.transpose()?;
    let results = Arc::new(Mutex::new(results));
    let ended = if class == Host::here() {
        watch_signals(&stop)?;
        launch_all(&launcher, &series, class, seed, &stop, |line| {
            lock(&results).take(line)
        })
    } else {
        on_the_reference_host(args, &launcher, seed, &results)
    };
    let results = lock(&results);
    results.progress.finish_and_clear();
    show(&results, args.markdown.as_deref())?;
    ended?;
    ensure!(
        results.failed == 0,
        "{} launches failed; their reasons stand below the tables",
        results.failed
    );
    Ok(())
}

fn lock(results: &Mutex<Results>) -> std::sync::MutexGuard<'_, Results> {
    // Results are whole after every line: ones that a panicking thread held are still good.
    results.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Draws the tables of recorded samples.
fn redraw(args: &OpsArgs) -> anyhow::Result<()> {
    let mut results = Results::new(0);
    for path in &args.from {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the samples `{}` cannot be read", path.display()))?;
        results.take_all(&text)?;
    }
    ensure!(
        !results.is_empty(),
        "there are no samples of `paravane bench ops` in these files"
    );
    show(&results, args.markdown.as_deref())
}

fn show(results: &Results, markdown: Option<&Path>) -> anyhow::Result<()> {
    if results.is_empty() {
        return Ok(());
    }
    println!("{}", draw(results, Look::Terminal));
    if let Some(path) = markdown {
        std::fs::write(path, draw(results, Look::Markdown))
            .with_context(|| format!("the tables `{}` cannot be written", path.display()))?;
    }
    Ok(())
}

fn launcher(args: &OpsArgs) -> anyhow::Result<Launcher> {
    let kernel = resolved(
        &given_or_cached(args.kernel.as_ref(), "kernel/para/vmlinux")?,
        "build it with `cargo ci kernel para`",
    )?;
    Ok(Launcher {
        program: std::env::current_exe().context("this program's own path is not known")?,
        // A module loads into the kernel that it was built with, and the patched one boots as every guest.
        kernel_full: kernel.clone(),
        kernel_para: kernel,
        initrd: resolved(
            &given_or_cached(args.initrd.as_ref(), "initramfs/guest.cpio")?,
            "build it with `cargo ci initramfs`",
        )?,
        root: None,
        memory_mib: args.memory,
        cpus: args.cpus,
        disk_mib: 0,
        net: false,
        watchdog: args.watchdog,
        scratch: scratch_folder()?,
    })
}

/// Starts this program once on the reference host, with the same arguments, to make every launch there.
fn on_the_reference_host(
    args: &OpsArgs,
    launcher: &Launcher,
    seed: u64,
    results: &Arc<Mutex<Results>>,
) -> anyhow::Result<()> {
    // The launches' files belong to the other side.
    let _ = std::fs::remove_dir_all(&launcher.scratch);
    let mut arguments: Vec<std::ffi::OsString> = vec![launcher.program.clone().into()];
    arguments.extend(["bench", "ops", "--samples-only"].map(Into::into));
    for (flag, value) in [
        ("--arms", &args.arms.join(",")),
        ("--facilities", &args.facilities.join(",")),
        ("--seed", &seed.to_string()),
        ("--launches", &args.launches.to_string()),
        ("--boots", &args.boots.to_string()),
        ("--memory", &args.memory.to_string()),
        ("--cpus", &args.cpus.to_string()),
        ("--watchdog", &args.watchdog.to_string()),
    ] {
        arguments.push(format!("{flag}={value}").into());
    }
    for (flag, path) in [
        ("--kernel", &launcher.kernel_para),
        ("--initrd", &launcher.initrd),
    ] {
        arguments.push(flag.into());
        arguments.push(path.into());
    }
    lock(results)
        .progress
        .set_message("the reference host boots");
    let into = Arc::clone(results);
    let sink = LineSink::new(move |line| lock(&into).take(line));
    let finished = paravane_reference_host::Command::new(arguments)?
        .stdout(sink)
        .run()?;
    ensure!(
        finished.success(),
        "the benchmark ended with code {} on the reference host",
        finished.code
    );
    Ok(())
}
