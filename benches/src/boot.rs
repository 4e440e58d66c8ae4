//! `paravane bench boot`: the pair booted again and again.
//!
//! Where this machine's KVM can run the arms, the launches run here. Otherwise the same program is started once on the
//! reference host and does them all there: it prints its samples, and this side collects them line by line, so that a
//! benchmark that is interrupted leaves what it has.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::arm::{Arm, name_twins};
use crate::launch::{LaunchError, Launcher};
use crate::plan::{Job, Step, plan};
use crate::sample::{Origin, Outcome, SUITE, Sample, Samples};
use crate::table::{Heading, Look, draw};
use crate::{launch, machine};

/// Where the guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Host {
    /// This machine's `/dev/kvm`.
    Kvm,
    /// The emulated reference host.
    Reference,
}

impl Host {
    const fn name(self) -> &'static str {
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
    #[arg(long, default_value_t = 100_000)]
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
    /// How many seconds one guest may take.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub watchdog: u64,
    /// What one exit to the VMM costs on the host, in ns, to tell what the exits explain.
    #[arg(long, value_name = "NS")]
    pub exit_cost_ns: Option<u64>,
    /// Print the samples and nothing else, for this class of host: how the benchmark runs itself elsewhere.
    #[arg(long, value_enum, hide = true)]
    pub samples_for: Option<Host>,
}

/// Runs the benchmark and prints its table. `can_run` says whether this machine's KVM can run a profile, and if not,
/// why.
///
/// # Errors
///
/// When the arguments make no sense, a file is missing, the reference host fails, or a launch failed.
pub fn boot(args: &BootArgs, can_run: impl Fn(&str) -> Result<(), String>) -> anyhow::Result<()> {
    let mut arms: Vec<Arm> = args
        .arms
        .iter()
        .map(|name| name.parse())
        .collect::<Result<_, _>>()?;
    name_twins(&mut arms);
    let seed = args.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let launcher = launcher(args, &arms)?;
    let jobs = jobs(args);
    let steps = plan(&jobs, arms.len(), seed);
    ensure!(
        !steps.is_empty(),
        "there is nothing to launch: give --launches or --workload-launches more than 0"
    );
    let stop = Arc::new(AtomicBool::new(false));
    let refusal = |arm: &Arm| can_run(arm.guest).err();

    if let Some(class) = args.samples_for {
        watch_signals(&stop)?;
        let mut out = io::stdout().lock();
        let run = Run {
            launcher: &launcher,
            arms: &arms,
            steps: &steps,
            class,
            seed,
            stop: &stop,
        };
        return run.here(refusal, |line| {
            Ok(writeln!(out, "{line}").and_then(|()| out.flush())?)
        });
    }

    let class = choose_host(args.host, &arms, &can_run);
    let file = args.json.as_deref().map(|path| {
        File::create(path)
            .with_context(|| format!("the result file `{}` cannot be created", path.display()))
    });
    let progress = progress_bar(steps.len());
    let collector = Arc::new(Mutex::new(Collector {
        file: file.transpose()?,
        samples: Samples::default(),
        steps: steps.clone(),
        arms: arms.iter().map(|arm| arm.name.clone()).collect(),
        progress: progress.clone(),
        position: 0,
    }));
    let ended = match class {
        Host::Kvm => {
            watch_signals(&stop)?;
            let run = Run {
                launcher: &launcher,
                arms: &arms,
                steps: &steps,
                class,
                seed,
                stop: &stop,
            };
            run.here(refusal, |line| lock(&collector).take(line))
        }
        Host::Reference => on_the_reference_host(args, &launcher, seed, &collector),
    };
    progress.finish_and_clear();
    let collector = lock(&collector);
    let heading = Heading {
        arms: collector.arms.clone(),
        host: class.name().to_owned(),
        seed,
        exit_cost_ns: args.exit_cost_ns,
    };
    if collector.position > 0 {
        println!("{}", draw(&collector.samples, &heading, Look::Terminal));
        if let Some(path) = &args.markdown {
            std::fs::write(path, draw(&collector.samples, &heading, Look::Markdown))
                .with_context(|| format!("the table `{}` cannot be written", path.display()))?;
        }
    }
    ended?;
    let failed: usize = ["boot", "boot-quiet", "console", "syscall"]
        .iter()
        .flat_map(|job| {
            heading
                .arms
                .iter()
                .map(|arm| collector.samples.failures(job, arm).len())
        })
        .sum();
    ensure!(
        failed == 0,
        "{failed} launches failed; their reasons stand below the tables"
    );
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

/// The folder of built kernels and initramfs.
fn cache() -> Option<PathBuf> {
    let of = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    of("PARAVANE_CACHE")
        .or_else(|| of("XDG_CACHE_HOME").map(|folder| folder.join("paravane")))
        .or_else(|| of("HOME").map(|folder| folder.join(".cache/paravane")))
}

fn launcher(args: &BootArgs, arms: &[Arm]) -> anyhow::Result<Launcher> {
    let input = |given: Option<&PathBuf>,
                 cached: &str,
                 mend: &str,
                 needed: bool|
     -> anyhow::Result<PathBuf> {
        let path = match given {
            Some(path) => path.clone(),
            None => cache()
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

/// The host that was asked for, or this machine if it can run every arm.
fn choose_host(
    asked: Option<Host>,
    arms: &[Arm],
    can_run: &impl Fn(&str) -> Result<(), String>,
) -> Host {
    if let Some(host) = asked {
        return host;
    }
    match arms
        .iter()
        .find_map(|arm| Some((arm.guest, can_run(arm.guest).err()?)))
    {
        None => Host::Kvm,
        Some((guest, why)) => {
            eprintln!(
                "This machine's KVM cannot run {guest} guests ({why}): the launches run on the reference host."
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

/// The launches of one benchmark on the host that this process is on.
struct Run<'a> {
    launcher: &'a Launcher,
    arms: &'a [Arm],
    steps: &'a [Step],
    class: Host,
    seed: u64,
    stop: &'a AtomicBool,
}

impl Run<'_> {
    /// Launches everything and gives each line of the result to `take`.
    fn here(
        &self,
        refusal: impl Fn(&Arm) -> Option<String>,
        mut take: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let result = self.all(refusal, &mut take);
        // The files of the last launch; a folder that stays behind is no reason to fail.
        let _ = std::fs::remove_dir_all(&self.launcher.scratch);
        result
    }

    fn all(
        &self,
        refusal: impl Fn(&Arm) -> Option<String>,
        take: &mut impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let kernels = [
            self.launcher.kernel_full.as_path(),
            self.launcher.kernel_para.as_path(),
        ];
        let kernels: Vec<&Path> = kernels
            .into_iter()
            .filter(|kernel| kernel.exists())
            .collect();
        take(&machine::record(self.class.name(), self.seed, &kernels).to_string())?;
        let refusals: Vec<Option<String>> = self.arms.iter().map(refusal).collect();
        for step in self.steps {
            let Some(arm) = self.arms.get(step.arm) else {
                continue;
            };
            let result = match refusals.get(step.arm).cloned().flatten() {
                Some(why) => Err(LaunchError::Failed(format!(
                    "this host cannot run it: {why}"
                ))),
                None => self.launcher.launch(step.job, arm, self.stop),
            };
            for sample in self.samples(step, arm, result)? {
                take(&serde_json::to_string(&sample)?)?;
            }
            if self.stop.load(Ordering::Relaxed) {
                bail!("interrupted; the samples so far are kept");
            }
        }
        Ok(())
    }

    fn samples(
        &self,
        step: &Step,
        arm: &Arm,
        result: Result<Vec<launch::Metric>, LaunchError>,
    ) -> anyhow::Result<Vec<Sample>> {
        let origin = |job: &str| Origin {
            suite: SUITE.to_owned(),
            job: job.to_owned(),
            arm: arm.name.clone(),
            host: self.class.name().to_owned(),
            launch: step.launch,
            block: step.block,
            order: step.order,
            seed: self.seed,
        };
        match result {
            Ok(metrics) => {
                let sample = |metric: launch::Metric| Sample {
                    origin: origin(metric.job),
                    outcome: Outcome::Value {
                        metric: metric.name,
                        unit: metric.unit.to_owned(),
                        value: metric.value,
                    },
                };
                Ok(metrics.into_iter().map(sample).collect())
            }
            Err(LaunchError::Interrupted) => bail!("interrupted; the samples so far are kept"),
            Err(LaunchError::Failed(failed)) => {
                let jobs = match step.job {
                    Job::Workload => vec!["console", "syscall"],
                    job => vec![job.name()],
                };
                let sample = |job| Sample {
                    origin: origin(job),
                    outcome: Outcome::Failed {
                        failed: failed.clone(),
                    },
                };
                Ok(jobs.into_iter().map(sample).collect())
            }
        }
    }
}

/// Where the result's lines come together.
struct Collector {
    file: Option<File>,
    samples: Samples,
    steps: Vec<Step>,
    arms: Vec<String>,
    progress: ProgressBar,
    position: usize,
}

impl Collector {
    fn take(&mut self, line: &str) -> anyhow::Result<()> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{line}").context("the result file cannot be written")?;
        }
        let Ok(sample) = serde_json::from_str::<Sample>(line) else {
            return Ok(());
        };
        let position = usize::try_from(sample.origin.order)? + 1;
        if position > self.position {
            self.position = position;
            self.advance(&sample);
        }
        self.samples.add(sample);
        Ok(())
    }

    fn advance(&self, sample: &Sample) {
        let (total, position) = (self.steps.len(), self.position);
        self.progress
            .set_position(u64::try_from(position).unwrap_or(u64::MAX));
        let name = |step: &Step| {
            format!(
                "{} {}",
                step.job.name(),
                self.arms.get(step.arm).map_or("", |arm| arm)
            )
        };
        if let Some(next) = self.steps.get(position) {
            self.progress.set_message(name(next));
        }
        let failed = match &sample.outcome {
            Outcome::Failed { failed } => format!(" failed: {failed}"),
            Outcome::Value { .. } => String::new(),
        };
        if self.progress.is_hidden() {
            let step = self.steps.get(position - 1).map(name).unwrap_or_default();
            eprintln!("{position}/{total} {step}{failed}");
        }
    }
}

fn lock(collector: &Mutex<Collector>) -> std::sync::MutexGuard<'_, Collector> {
    // A collector is whole after every line: one that a panicking thread held is still good.
    collector.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The output of the benchmark on the reference host, line by line into the collector.
struct LineSink {
    collector: Arc<Mutex<Collector>>,
    line: Vec<u8>,
}

impl Write for LineSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line).into_owned();
                self.line.clear();
                lock(&self.collector)
                    .take(&line)
                    .map_err(io::Error::other)?;
            } else {
                self.line.push(*byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
    arguments.extend(["bench", "boot", "--samples-for=reference"].map(Into::into));
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
    let sink = LineSink {
        collector: Arc::clone(collector),
        line: Vec::new(),
    };
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
