//! `paravane bench boot`: the pair booted again and again.
//!
//! Where this machine's KVM can run the arms, the launches run here. Otherwise the same program is started once on the
//! reference host and does them all there: it prints its samples, and this side collects them line by line, so that a
//! benchmark that is interrupted leaves what it has.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::arm::{Arm, name_twins};
use crate::collect::{Collector, LineSink, lock};
use crate::launch::Launcher;
use crate::plan::{Job, plan};
use crate::run::Run;
use crate::sample::Samples;
use crate::table::{Heading, Look, draw};

/// Where the guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Host {
    /// This machine's `/dev/kvm`.
    Kvm,
    /// The emulated reference host.
    Reference,
}

impl Host {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Reference => "reference",
        }
    }
}

/// Arguments of `paravane bench boot`.
#[derive(Clone, Debug, clap::Args)]
pub struct BootArgs {
    /// The arms to compare; ratios are to the first. `para-console` is para without its console; naming an arm twice
    /// makes an A/A twin.
    #[arg(long, value_delimiter = ',', default_value = "full,para")]
    pub arms: Vec<String>,
    /// Where the guests run [default: this machine if its KVM can run every arm, else the reference host].
    #[arg(long, value_enum)]
    pub host: Option<Host>,
    /// Launches of each arm for each kind of boot.
    #[arg(long, default_value_t = 10)]
    pub launches: u32,
    /// Launches of each arm for the console and system-call workloads.
    #[arg(long, default_value_t = 2)]
    pub workload_launches: u32,
    /// Bytes that the console workload writes.
    #[arg(long, default_value_t = 1 << 20)]
    pub console_bytes: u64,
    /// Calls that the system-call workload makes.
    #[arg(long, default_value_t = 1_000_000)]
    pub syscalls: u64,
    /// Boot with `quiet` only.
    #[arg(long, conflicts_with_all = ["normal_boot", "both"])]
    pub quiet_boot: bool,
    /// Boot with the kernel's normal messages only.
    #[arg(long, conflicts_with = "both")]
    pub normal_boot: bool,
    /// Boot in both ways: this is the default.
    #[arg(long)]
    pub both: bool,
    /// Write the raw samples here, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the table here, as Markdown.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Seed of the launches' order and of the bootstrap [default: a new one each time].
    #[arg(long)]
    pub seed: Option<u64>,
    /// The unmodified kernel [default: the newest that `cargo ci kernel full` built].
    #[arg(long, value_name = "FILE")]
    pub kernel_full: Option<PathBuf>,
    /// The patched kernel [default: the newest that `cargo ci kernel para` built].
    #[arg(long, value_name = "FILE")]
    pub kernel_para: Option<PathBuf>,
    /// The guest's initramfs [default: the newest that `cargo ci initramfs` built].
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Guest memory in MiB.
    #[arg(long, default_value_t = 128)]
    pub memory: u64,
    /// vCPUs of a guest.
    #[arg(long, default_value_t = 1)]
    pub cpus: u8,
    /// How many seconds a boot may take; a workload may take ten times as long.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub watchdog: u64,
    /// Do not ask `paravane doctor` what an exit costs on the host.
    #[arg(long)]
    pub no_doctor: bool,
    /// Print the samples and nothing else: how the benchmark runs itself on the reference host.
    #[arg(long, hide = true)]
    pub samples_only: bool,
}

/// Names the class of the host for what runs on the reference host.
const HOST_CLASS: &str = "PARAVANE_HOST_CLASS";

/// Runs the benchmark and prints its table. `unfit` is the reason why this machine's KVM cannot run the guests, if it
/// cannot.
///
/// # Errors
///
/// When the arguments make no sense, a file is missing, the reference host fails, or a launch failed.
pub fn boot(args: BootArgs, unfit: Option<String>) -> anyhow::Result<()> {
    let arms: Result<Vec<Arm>, _> = args.arms.iter().map(|name| name.parse()).collect();
    let mut arms = arms?;
    name_twins(&mut arms);
    let seed = args.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let launcher = launcher(&args, &arms)?;
    let steps = plan(&jobs(&args), arms.len(), seed);
    ensure!(
        !steps.is_empty(),
        "there is nothing to launch: give --launches or --workload-launches more than 0"
    );
    let inside = std::env::var(HOST_CLASS).is_ok_and(|class| class == Host::Reference.name());
    let class = if inside {
        Host::Reference
    } else {
        choose_host(args.host, unfit.as_deref())
    };
    let stop = Arc::new(AtomicBool::new(false));
    let run = Run {
        launcher: &launcher,
        arms: &arms,
        steps: &steps,
        class,
        seed,
        stop: &stop,
        doctor: !args.no_doctor,
    };
    if args.samples_only {
        watch_signals(&stop)?;
        let mut out = io::stdout().lock();
        return run.here(|line| Ok(writeln!(out, "{line}").and_then(|()| out.flush())?));
    }

    let file = args.json.as_deref().map(|path| {
        File::create(path)
            .with_context(|| format!("the result file `{}` cannot be created", path.display()))
    });
    let collector = Arc::new(Mutex::new(Collector {
        file: file.transpose()?,
        samples: Samples::default(),
        arms: arms.iter().map(|arm| arm.name.clone()).collect(),
        progress: progress_bar(steps.len()),
        position: 0,
        costs: None,
        steps: steps.clone(),
    }));
    let ended = if class == Host::Kvm || inside {
        watch_signals(&stop)?;
        run.here(|line| lock(&collector).take(line))
    } else {
        on_the_reference_host(&args, &launcher, seed, &collector)
    };
    let collector = lock(&collector);
    collector.progress.finish_and_clear();
    show(&collector, class, seed, args.markdown.as_deref())?;
    ended?;
    let failed = collector.samples.failed_launches();
    ensure!(
        failed == 0,
        "{failed} launches failed; their reasons stand below the tables"
    );
    Ok(())
}

/// Prints the table, and writes it as Markdown where that is wanted.
fn show(
    collector: &Collector,
    class: Host,
    seed: u64,
    markdown: Option<&Path>,
) -> anyhow::Result<()> {
    if collector.position == 0 {
        return Ok(());
    }
    let heading = Heading {
        arms: collector.arms.clone(),
        host: class.name().to_owned(),
        seed,
        costs: collector.costs,
    };
    println!("{}", draw(&collector.samples, &heading, Look::Terminal));
    if let Some(path) = markdown {
        std::fs::write(path, draw(&collector.samples, &heading, Look::Markdown))
            .with_context(|| format!("the table `{}` cannot be written", path.display()))?;
    }
    Ok(())
}

fn jobs(args: &BootArgs) -> Vec<(Job, u32)> {
    let mut jobs = Vec::new();
    if !args.quiet_boot {
        jobs.push((Job::Boot, args.launches));
    }
    if !args.normal_boot {
        jobs.push((Job::BootQuiet, args.launches));
    }
    jobs.push((Job::Workload, args.workload_launches));
    jobs
}

fn launcher(args: &BootArgs, arms: &[Arm]) -> anyhow::Result<Launcher> {
    let input = |given: Option<&PathBuf>,
                 cached: &str,
                 mend: &str,
                 needed: bool|
     -> anyhow::Result<PathBuf> {
        let path = match given {
            Some(path) => path.clone(),
            None => paravane_reference_host::cache_folder()
                .context("there is no place for the cache; set HOME or PARAVANE_CACHE")?
                .join(cached),
        };
        if !needed {
            return Ok(path);
        }
        // A symbolic link into the cache may be moved to a newer build while the benchmark runs.
        path.canonicalize()
            .with_context(|| format!("`{}` cannot be read; {mend}", path.display()))
    };
    let (full, para) = (
        arms.iter().any(|arm| !arm.is_para()),
        arms.iter().any(Arm::is_para),
    );
    let (kernel_full, kernel_para) = (args.kernel_full.as_ref(), args.kernel_para.as_ref());
    Ok(Launcher {
        program: std::env::current_exe().context("this program's own path is not known")?,
        kernel_full: input(
            kernel_full,
            "kernel/full/vmlinux",
            "build it with `cargo ci kernel full`",
            full,
        )?,
        kernel_para: input(
            kernel_para,
            "kernel/para/vmlinux",
            "build it with `cargo ci kernel para`",
            para,
        )?,
        initrd: input(
            args.initrd.as_ref(),
            "initramfs/guest.cpio",
            "build it with `cargo ci initramfs`",
            true,
        )?,
        memory_mib: args.memory,
        cpus: args.cpus,
        watchdog: args.watchdog,
        console_bytes: args.console_bytes,
        syscalls: args.syscalls,
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

/// The host that was asked for, or this machine if it can run the guests.
fn choose_host(asked: Option<Host>, unfit: Option<&str>) -> Host {
    match (asked, unfit) {
        (Some(host), _) => host,
        (None, None) => Host::Kvm,
        (None, Some(why)) => {
            eprintln!(
                "The launches run on the reference host: this machine's KVM cannot run the guests: {why}"
            );
            Host::Reference
        }
    }
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

/// Starts this program once on the reference host, with the same arguments, to make every launch there.
fn on_the_reference_host(
    args: &BootArgs,
    launcher: &Launcher,
    seed: u64,
    collector: &Arc<Mutex<Collector>>,
) -> anyhow::Result<()> {
    // The launches' files belong to the other side.
    let _ = std::fs::remove_dir_all(&launcher.scratch);
    let mut arguments: Vec<std::ffi::OsString> = vec![launcher.program.clone().into()];
    arguments.extend(["bench", "boot", "--samples-only"].map(Into::into));
    let arms = args.arms.join(",");
    for (flag, value) in [
        ("--arms", &arms),
        ("--seed", &seed.to_string()),
        ("--launches", &args.launches.to_string()),
        ("--workload-launches", &args.workload_launches.to_string()),
        ("--console-bytes", &args.console_bytes.to_string()),
        ("--syscalls", &args.syscalls.to_string()),
        ("--memory", &args.memory.to_string()),
        ("--cpus", &args.cpus.to_string()),
        ("--watchdog", &args.watchdog.to_string()),
    ] {
        arguments.push(format!("{flag}={value}").into());
    }
    for (given, flag) in [
        (args.quiet_boot, "--quiet-boot"),
        (args.normal_boot, "--normal-boot"),
        (args.no_doctor, "--no-doctor"),
    ] {
        if given {
            arguments.push(flag.into());
        }
    }
    for (flag, path) in [
        ("--kernel-full", &launcher.kernel_full),
        ("--kernel-para", &launcher.kernel_para),
        ("--initrd", &launcher.initrd),
    ] {
        arguments.push(flag.into());
        arguments.push(path.into());
    }
    lock(collector)
        .progress
        .set_message("the reference host boots");
    let sink = LineSink::new(Arc::clone(collector));
    let finished = paravane_reference_host::Command::new(arguments)?
        .env(HOST_CLASS, Host::Reference.name())
        .stdout(sink)
        .run()?;
    ensure!(
        finished.success(),
        "the benchmark ended with code {} on the reference host",
        finished.code
    );
    Ok(())
}
