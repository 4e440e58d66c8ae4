//! One benchmark from its arguments to its table.
//!
//! Where this machine's KVM can run the arms, the launches run here. Otherwise the same program is started once on the
//! reference host and does them all there: it prints its samples, and this side collects them line by line, so that a
//! benchmark that is interrupted leaves what it has.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, bail, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::arm::Arm;
use crate::collect::{Collector, LineSink, lock};
use crate::experiment::{Experiment, Saved, complete};
use crate::host::Host;
use crate::job::Kind;
use crate::launch::Launcher;
use crate::ops;
use crate::ops_results::Results;
use crate::ops_table;
use crate::run::{Run, Share};
use crate::sample::Samples;
use crate::table::{Heading, Look, draw};

/// What an interval can be as wide as.
fn width(text: &str) -> Result<f64, &'static str> {
    let width = text.parse().ok().filter(|width| *width > 0.0);
    width.ok_or("use a number above 0: 0.05 is five percent")
}

/// What guests boot.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct GuestFiles {
    /// The unmodified kernel [default: the newest that `cargo ci kernel full` built].
    #[arg(long, value_name = "FILE")]
    pub kernel_full: Option<PathBuf>,
    /// The patched kernel [default: the newest that `cargo ci kernel para` built].
    #[arg(long, value_name = "FILE")]
    pub kernel_para: Option<PathBuf>,
    /// The guest's initramfs [default: the newest that `cargo ci initramfs` built].
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The root file system of suite apps [default: a Debian in the cache, made if there is none].
    #[arg(long, value_name = "FILE")]
    pub root: Option<PathBuf>,
}

/// What every suite takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CommonArgs {
    /// The arms to compare; ratios are to the first.
    ///
    /// `full`, `kvm-pv`, `para`; `para-console` is para without its console, `para+console` para with nothing else; a peer
    /// (`qemu-microvm`, `qemu-q35`, `qemu-tcg`, `firecracker`) is another VMM with the same kernel. Naming an arm twice
    /// makes an A/A twin, whose interval shows what a difference must exceed. `para~5` does five percent more of
    /// everything than it says, to see whether that is found.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub arms: Vec<String>,
    /// Where the guests run, and by which clock [default: this machine if its KVM can run every arm, else counted].
    #[arg(long, value_enum)]
    pub host: Option<Host>,
    /// Launches of each arm of each kind; with `--until`, the most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub launches: Option<u32>,
    /// Launches at once, on as many reference hosts; only where time is counted [default there: one a processor, at most 8].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub at_once: Option<u32>,
    /// Stop when every 95 % interval is at most so wide, relative to its ratio: 0.05 is five percent.
    #[arg(long, value_name = "WIDTH", value_parser = width)]
    pub until: Option<f64>,
    /// Write the raw samples here, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Go on with an interrupted benchmark: its raw samples, which also say what was to be done.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "arms", "launches", "until", "seed"])]
    pub resume: Option<PathBuf>,
    /// Write the table here, as Markdown.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Seed of the launches' order and of the bootstrap [default: a new one each time].
    #[arg(long)]
    pub seed: Option<u64>,
    /// What the guests boot.
    #[command(flatten)]
    pub files: GuestFiles,
    /// Guest memory in MiB [default: 128].
    #[arg(long)]
    pub memory: Option<u64>,
    /// vCPUs of a guest; a job that wants more gets more [default: 1].
    #[arg(long)]
    pub cpus: Option<u8>,
    /// How many seconds a boot may take; one with further jobs may take three times as long [default: 120; 20 where time is counted].
    #[arg(long, value_name = "SECONDS")]
    pub watchdog: Option<u64>,
    /// Do not ask `paravane doctor` what an exit costs on the host.
    #[arg(long)]
    pub no_doctor: bool,
    /// A try: a tenth of the rounds. Not to be published.
    #[arg(long)]
    pub smoke: bool,
}

/// Arguments with which a benchmark runs itself on the reference host.
#[derive(Clone, Debug, clap::Args)]
pub struct InsideArgs {
    /// The experiment's record.
    #[arg(long)]
    experiment: String,
    /// The unmodified kernel.
    #[arg(long)]
    kernel_full: PathBuf,
    /// The patched kernel.
    #[arg(long)]
    kernel_para: PathBuf,
    /// The initramfs.
    #[arg(long)]
    initrd: PathBuf,
    /// The root file system, if there is one.
    #[arg(long)]
    root: Option<PathBuf>,
    /// The result so far.
    #[arg(long)]
    done: Option<PathBuf>,
    /// Which part of the launches: those whose order leaves this remainder ...
    #[arg(long)]
    share: u32,
    /// ... when divided by this.
    #[arg(long)]
    shares: u32,
}

/// Runs an experiment, or goes on with the one in `--resume`, and prints its table. `unfit` is the reason why this
/// machine's KVM cannot run the guests, if it cannot. Returns whether every launch gave numbers.
///
/// # Errors
///
/// When the arguments make no sense, a file is missing, or the reference host fails.
pub fn session(
    args: &CommonArgs,
    experiment: impl FnOnce(Host) -> anyhow::Result<Experiment>,
    unfit: Option<&str>,
) -> anyhow::Result<bool> {
    let saved = args.resume.as_deref().map(Saved::read).transpose()?;
    // What was begun is gone on with on the same class of host.
    let begun = saved.as_ref().and_then(Saved::host);
    let class = Host::choose(args.host.or(begun), unfit);
    let experiment = match &saved {
        Some(saved) => saved.experiment.clone(),
        None => experiment(class)?,
    };
    let arms = experiment.arms()?;
    let launcher = launcher(&args.files, &experiment, &arms)?;
    let steps = experiment.steps(&arms);
    ensure!(
        !steps.is_empty(),
        "there is nothing to launch: give --launches more than 0"
    );
    let file = match (&args.resume, &args.json) {
        (Some(path), _) => Some(path),
        (None, path) => path.as_ref(),
    };
    let mut collector = Collector {
        file: None,
        samples: Samples::default(),
        kinds: experiment.kinds.clone(),
        arms: arms.iter().map(|arm| arm.name.clone()).collect(),
        progress: progress_bar(steps.len()),
        position: 0,
        costs: None,
        operations: None,
        machine: None,
        steps,
    };
    if let Some(saved) = &saved {
        collector.restore(saved);
    }
    collector.file = file
        .map(|path| begin_file(path, &experiment, saved.as_ref()))
        .transpose()?;
    let collector = Arc::new(Mutex::new(collector));
    let ended = if class == Host::here() {
        let stop = Arc::new(AtomicBool::new(false));
        watch_signals(&stop)?;
        let run = Run {
            launcher: &launcher,
            experiment: &experiment,
            arms: &arms,
            class,
            stop: &stop,
            samples: lock(&collector).samples.clone(),
            launched: saved.map(|saved| saved.launched).unwrap_or_default(),
            share: Share::WHOLE,
        };
        run.here(|line| lock(&collector).take(line))
    } else {
        on_the_reference_host(class, args, &launcher, &experiment, &collector)
    };
    let mut collector = lock(&collector);
    if ended.is_ok() {
        collector.take(&complete())?;
    }
    collector.progress.finish_and_clear();
    show(&collector, &experiment, class, args.markdown.as_deref())?;
    ended?;
    Ok(collector.samples.failed_launches() == 0)
}

/// The launches of a benchmark that was started on another machine: prints its samples and nothing else.
///
/// # Errors
///
/// When the arguments cannot be read, or the benchmark is interrupted.
pub fn inside(args: &InsideArgs) -> anyhow::Result<()> {
    let experiment: Experiment =
        serde_json::from_str(&args.experiment).context("the experiment cannot be read")?;
    let arms = experiment.arms()?;
    let files = GuestFiles {
        kernel_full: Some(args.kernel_full.clone()),
        kernel_para: Some(args.kernel_para.clone()),
        initrd: Some(args.initrd.clone()),
        root: args.root.clone(),
    };
    let launcher = launcher(&files, &experiment, &arms)?;
    let saved = args.done.as_deref().map(Saved::read).transpose()?;
    let stop = Arc::new(AtomicBool::new(false));
    watch_signals(&stop)?;
    let run = Run {
        launcher: &launcher,
        experiment: &experiment,
        arms: &arms,
        class: Host::here(),
        stop: &stop,
        samples: saved.iter().flat_map(Saved::samples).collect(),
        launched: saved.map(|saved| saved.launched).unwrap_or_default(),
        share: Share {
            number: args.share,
            of: args.shares,
        },
    };
    let mut out = io::stdout().lock();
    run.here(|line| Ok(writeln!(out, "{line}").and_then(|()| out.flush())?))
}

/// Opens the result file: a new one begins with the experiment, one that is gone on with loses what was cut.
fn begin_file(path: &Path, experiment: &Experiment, saved: Option<&Saved>) -> anyhow::Result<File> {
    let cannot = || format!("the result file `{}` cannot be written", path.display());
    let lines = match saved {
        Some(saved) => saved.lines.clone(),
        None => vec![experiment.record()?],
    };
    let text = lines.join("\n") + "\n";
    match saved {
        // Replaced at once, so that an interrupt now loses nothing.
        Some(_) => {
            let fresh = path.with_extension("resumed");
            std::fs::write(&fresh, text).with_context(cannot)?;
            std::fs::rename(&fresh, path).with_context(cannot)?;
        }
        None => std::fs::write(path, text).with_context(cannot)?,
    }
    OpenOptions::new()
        .append(true)
        .open(path)
        .with_context(cannot)
}

/// Prints the table, and writes it as Markdown where that is wanted.
fn show(
    collector: &Collector,
    experiment: &Experiment,
    class: Host,
    markdown: Option<&Path>,
) -> anyhow::Result<()> {
    if collector.position == 0 {
        return Ok(());
    }
    let tables = |look| {
        if experiment.suite == ops::SUITE {
            return ops_table::draw(
                &Results::new(
                    experiment,
                    collector.samples.clone(),
                    collector.operations.clone(),
                    collector.costs,
                    class.name(),
                ),
                look,
            );
        }
        let jobs = experiment.kinds.iter().flat_map(|kind| kind.jobs.clone());
        let heading = Heading {
            arms: collector.arms.clone(),
            jobs: jobs.collect(),
            host: class.name().to_owned(),
            seed: experiment.seed,
            costs: collector.costs,
        };
        draw(&collector.samples, &heading, look)
    };
    println!("{}", tables(Look::Terminal));
    if let Some(path) = markdown {
        std::fs::write(path, tables(Look::Markdown))
            .with_context(|| format!("the table `{}` cannot be written", path.display()))?;
    }
    Ok(())
}

/// The file that was given, or that of the cache.
fn given_or_cached(given: Option<&PathBuf>, cached: &str) -> anyhow::Result<PathBuf> {
    match given {
        Some(path) => Ok(path.clone()),
        None => Ok(paravane_reference_host::cache_folder()
            .context("there is no place for the cache; set HOME or PARAVANE_CACHE")?
            .join(cached)),
    }
}

/// The file itself: a symbolic link into the cache may be moved to a newer build while the benchmark runs.
fn resolved(path: &Path, mend: &str) -> anyhow::Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("`{}` cannot be read; {mend}", path.display()))
}

pub(crate) fn launcher(
    files: &GuestFiles,
    experiment: &Experiment,
    arms: &[Arm],
) -> anyhow::Result<Launcher> {
    let input = |given: Option<&PathBuf>,
                 cached: &str,
                 mend: &str,
                 needed: bool|
     -> anyhow::Result<PathBuf> {
        let path = given_or_cached(given, cached)?;
        if needed {
            resolved(&path, mend)
        } else {
            Ok(path)
        }
    };
    let (full, para) = (
        arms.iter().any(|arm| !arm.has_patched_kernel()),
        arms.iter().any(Arm::has_patched_kernel),
    );
    Ok(Launcher {
        program: std::env::current_exe().context("this program's own path is not known")?,
        kernel_full: input(
            files.kernel_full.as_ref(),
            "kernel/full/vmlinux",
            "build it with `cargo ci kernel full`",
            full,
        )?,
        kernel_para: input(
            files.kernel_para.as_ref(),
            "kernel/para/vmlinux",
            "build it with `cargo ci kernel para`",
            para,
        )?,
        initrd: input(
            files.initrd.as_ref(),
            "initramfs/guest.cpio",
            "build it with `cargo ci initramfs`",
            true,
        )?,
        root: files
            .root
            .clone()
            .filter(|_| experiment.kinds.iter().any(Kind::has_root)),
        memory_mib: experiment.memory_mib,
        cpus: experiment.cpus,
        disk_mib: 0,
        net: false,
        watchdog: experiment.watchdog,
        scratch: scratch_folder()?,
    })
}

/// A folder in memory if there is one: the guest's console goes to a file there, and a slow file system would be
/// measured with it.
fn scratch_folder() -> anyhow::Result<PathBuf> {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let folder = parent.join(format!("paravane-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("`{}` cannot be created", folder.display()))?;
    Ok(folder)
}

fn watch_signals(stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(stop))
            .context("a signal cannot be handled")?;
    }
    Ok(())
}

fn progress_bar(steps: usize) -> ProgressBar {
    let length = u64::try_from(steps).unwrap_or(u64::MAX);
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} launches, {eta} left; {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(std::time::Duration::from_secs(1));
    bar
}

/// So many reference hosts at once, and no more.
const MOST_AT_ONCE: u32 = 8;

/// How many reference hosts share the launches: with the clock it is one, since two would be in each other's way.
fn shares(class: Host, args: &CommonArgs, experiment: &Experiment) -> anyhow::Result<u32> {
    // Whether there are enough launches is for one to see.
    let one = class != Host::Counted || experiment.until.is_some();
    match args.at_once {
        Some(many) if one && many > 1 => {
            bail!(
                "launches at once are for --host counted without --until: others would disturb each other"
            )
        }
        Some(many) => Ok(many),
        None if one => Ok(1),
        None => {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            Ok(u32::try_from(processors).map_or(MOST_AT_ONCE, |count| count.min(MOST_AT_ONCE)))
        }
    }
}

/// Starts this program on the reference host, or on several, to make every launch there.
fn on_the_reference_host(
    class: Host,
    args: &CommonArgs,
    launcher: &Launcher,
    experiment: &Experiment,
    collector: &Arc<Mutex<Collector>>,
) -> anyhow::Result<()> {
    // The launches' files belong to the other side.
    let _ = std::fs::remove_dir_all(&launcher.scratch);
    let mut arguments: Vec<OsString> = vec![launcher.program.clone().into()];
    arguments.extend(["bench", "inside", "--experiment"].map(Into::into));
    arguments.push(serde_json::to_string(experiment)?.into());
    for (flag, path) in [
        ("--kernel-full", Some(&launcher.kernel_full)),
        ("--kernel-para", Some(&launcher.kernel_para)),
        ("--initrd", Some(&launcher.initrd)),
        ("--root", launcher.root.as_ref()),
        ("--done", args.resume.as_ref()),
    ] {
        if let Some(path) = path {
            arguments.push(flag.into());
            arguments.push(path.into());
        }
    }
    lock(collector)
        .progress
        .set_message("the reference host boots");
    let shares = shares(class, args, experiment)?;
    let share = |number: u32| -> anyhow::Result<()> {
        let mut arguments = arguments.clone();
        for (flag, value) in [("--share", number), ("--shares", shares)] {
            arguments.push(flag.into());
            arguments.push(value.to_string().into());
        }
        let into = Arc::clone(collector);
        let sink = LineSink::new(move |line| lock(&into).take(line));
        let mut command = paravane_reference_host::Command::new(arguments)?.stdout(sink);
        if class == Host::Counted {
            command = command.counted();
        }
        let finished = command.run()?;
        ensure!(
            finished.success(),
            "the benchmark ended with code {} on the reference host",
            finished.code
        );
        Ok(())
    };
    let ended: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let share = &share;
        let started: Vec<_> = (0..shares)
            .map(|number| scope.spawn(move || share(number)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            let panicked = |_| Err(anyhow::anyhow!("a thread of the benchmark has panicked"));
            thread.join().unwrap_or_else(panicked)
        };
        started.into_iter().map(join).collect()
    });
    if let Some(why) = lock(collector).refused() {
        bail!("{why}");
    }
    ended.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::tests::experiment;

    #[test]
    fn launches_are_at_once_only_where_they_do_not_disturb_each_other() {
        let mut experiment = experiment();
        experiment.until = None;
        let asked = |at_once| CommonArgs {
            at_once,
            ..CommonArgs::default()
        };
        for class in [Host::Kvm, Host::Reference] {
            assert_eq!(shares(class, &asked(None), &experiment).unwrap(), 1);
            assert_eq!(shares(class, &asked(Some(1)), &experiment).unwrap(), 1);
            assert!(shares(class, &asked(Some(2)), &experiment).is_err());
        }
        assert_eq!(
            shares(Host::Counted, &asked(Some(3)), &experiment).unwrap(),
            3
        );
        let unasked = shares(Host::Counted, &asked(None), &experiment).unwrap();
        assert!((1..=MOST_AT_ONCE).contains(&unasked));
        experiment.until = Some(0.05);
        assert_eq!(shares(Host::Counted, &asked(None), &experiment).unwrap(), 1);
    }
}
