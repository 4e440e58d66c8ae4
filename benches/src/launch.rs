//! One launch: a child process, our VMM or a peer, and what it and its guest leave behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::arm::Arm;
use crate::job::{Job, Kind};
use crate::metrics::{Metric, metrics};
use crate::neighbour::Neighbour;
use crate::network::TAP;
use crate::peer::{ConsoleTo, Peer};
use crate::pvbench::{Measured, Operations};

/// How often a running child is looked at. Only a peer's time as a process is measured by it.
const POLL: Duration = Duration::from_millis(5);

/// How many boots' time a launch with further jobs may take: the longest here takes a third of it, and a guest that
/// hangs costs an unattended `bench --all` no more than that.
const JOBS_PATIENCE: u64 = 3;
/// How much longer than its watchdog a VMM may take before it is killed.
const GRACE: Duration = Duration::from_secs(30);

/// What all launches of a benchmark have in common.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The `paravane` program.
    pub program: PathBuf,
    /// The unmodified kernel.
    pub kernel_full: PathBuf,
    /// The patched kernel.
    pub kernel_para: PathBuf,
    /// The guest's initramfs.
    pub initrd: PathBuf,
    /// The root file system of the jobs that are programs of a distribution.
    pub root: Option<PathBuf>,
    /// Guest memory, MiB; a job that wants more gets more.
    pub memory_mib: u64,
    /// vCPUs; a job that wants more gets more.
    pub cpus: u8,
    /// MiB of the guests' disk; 0: they have none. A job that wants one gets it.
    pub disk_mib: u64,
    /// Whether the guests are connected to the launches' network. A job that wants it is.
    pub net: bool,
    /// How many seconds a boot may take; one with further jobs may take three times as long.
    pub watchdog: u64,
    /// A folder for the files of one launch.
    pub scratch: PathBuf,
}

/// Why a launch gave no numbers.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The user wants the benchmark to stop.
    #[error("interrupted")]
    Interrupted,
    /// The launch failed; the benchmark goes on.
    #[error("{0}")]
    Failed(String),
}

/// The statistics file of `paravane run`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct RunStats {
    pub(crate) outcome: String,
    pub(crate) message: Option<String>,
    pub(crate) setup_ns: u64,
    #[serde(default)]
    pub(crate) exits: u64,
    #[serde(default)]
    pub(crate) user_exits: BTreeMap<String, u64>,
    #[serde(default)]
    pub(crate) kvm_stats: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    pub(crate) hypercalls: BTreeMap<String, u64>,
    pub(crate) marks: Vec<Mark>,
}

/// A byte that the guest wrote to the mark port.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Mark {
    pub(crate) code: u8,
    pub(crate) t_ns: u64,
    pub(crate) exits: u64,
    pub(crate) user_exits: u64,
    /// Exits for interrupts of the host's own.
    #[serde(default)]
    pub(crate) host_exits: u64,
    #[serde(default)]
    pub(crate) cpu_ns: u64,
    pub(crate) console_out_bytes: u64,
}

/// What the guest's init says about its kernel.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Report {
    #[serde(default)]
    pub(crate) init_monotonic_ns: Option<u64>,
    #[serde(default)]
    pub(crate) milestones_ns: BTreeMap<String, u64>,
    #[serde(default)]
    paravirt: Option<String>,
    #[serde(default)]
    hypervisor: Option<String>,
    #[serde(default)]
    cpuid_hypervisor_bit: bool,
}

/// What came of a launch.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) metrics: Vec<Metric>,
    /// What the operations are that its guest has measured.
    pub(crate) operations: Option<Operations>,
}

/// What a guest that was what its arm says left behind.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// Our VMM's statistics; a peer has none.
    pub(crate) stats: Option<RunStats>,
    pub(crate) report: Report,
    /// What the guest printed.
    pub(crate) console: String,
    /// From the start of the process to its end.
    pub(crate) process_ns: u64,
}

impl Launcher {
    /// Launches one guest and makes numbers of its end. `stop` ends it early.
    pub(crate) fn launch(
        &self,
        kind: &Kind,
        arm: &Arm,
        stop: &AtomicBool,
    ) -> Result<Launched, LaunchError> {
        let works = kind.jobs.iter().any(|job| job.work.is_some());
        let watchdog = if works {
            self.watchdog.saturating_mul(JOBS_PATIENCE)
        } else {
            self.watchdog
        };
        let launcher = Self {
            cpus: self.cpus.max(kind.cpus()),
            memory_mib: self.memory_mib.max(kind.memory()),
            disk_mib: self.disk_mib.max(kind.disk()),
            root: self.root.clone().filter(|_| kind.has_root()),
            net: self.net || kind.net(),
            ..self.clone()
        };
        // It runs until the launch is over.
        let _neighbour = kind
            .beside()
            .map(|beside| Neighbour::start(&launcher, beside))
            .transpose()?;
        let ended = launcher.run(arm, &cmdline(kind, arm), watchdog, stop)?;
        let measured = kind
            .jobs
            .iter()
            .any(Job::is_by_module)
            .then(|| Measured::read(&ended.console))
            .transpose()?;
        Ok(Launched {
            metrics: metrics(kind, &ended, measured.as_ref())?,
            operations: measured.and_then(|measured| measured.record()),
        })
    }

    /// Launches one guest with `cmdline`, and waits for its end for at most `watchdog` seconds.
    pub(crate) fn run(
        &self,
        arm: &Arm,
        cmdline: &str,
        watchdog: u64,
        stop: &AtomicBool,
    ) -> Result<Ended, LaunchError> {
        let file = |name: &str| self.scratch.join(name);
        let (stats_file, console_file, errors_file) =
            (file("stats.json"), file("console.log"), file("errors.log"));
        for old in [&stats_file, &console_file, &errors_file] {
            // Usually there is none; one that cannot be removed shows itself by being overwritten or not.
            let _ = fs::remove_file(old);
        }
        if self.disk_mib > 0 {
            self.make_disk()?;
        }
        let mut command = match arm.peer {
            Some(peer) => self.peer(peer, cmdline, &console_file)?,
            None => self.ours(arm, cmdline, watchdog, &stats_file, &console_file),
        };
        command.stdin(Stdio::null()).stderr(create(&errors_file)?);
        let begin = Instant::now();
        let child = command.spawn().map_err(|error| {
            let program = command.get_program().display();
            LaunchError::Failed(format!("`{program}` cannot be started: {error}"))
        })?;
        let seconds = arm.peer.map_or(0, |peer| peer.seconds).max(watchdog);
        let status = wait(child, Duration::from_secs(seconds) + GRACE, stop)?;
        let process_ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let console = fs::read(&console_file).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        let stats = match arm.peer {
            // A peer's own exit status says how its guest ended, each in its own way; the guest's report says enough.
            Some(_) => None,
            None => Some(read_stats(&stats_file, status, &errors_file, &console)?),
        };
        let report = read_report(&console).map_err(|error| {
            LaunchError::Failed(failure(
                format!("{error}; the VMM ended with {status}"),
                fs::read_to_string(&errors_file).ok().as_deref(),
                &console,
            ))
        })?;
        check_identity(arm, &report, stats.as_ref()).map_err(LaunchError::Failed)?;
        Ok(Ended {
            stats,
            report,
            console,
            process_ns,
        })
    }

    fn disk(&self) -> PathBuf {
        self.scratch.join("disk.img")
    }

    /// A new disk, all zero, for one launch.
    fn make_disk(&self) -> Result<(), LaunchError> {
        let bytes = self.disk_mib << 20;
        create(&self.disk())?.set_len(bytes).map_err(|error| {
            LaunchError::Failed(format!(
                "a disk of {} MiB cannot be made: {error}",
                self.disk_mib
            ))
        })
    }

    fn ours(
        &self,
        arm: &Arm,
        cmdline: &str,
        watchdog: u64,
        stats: &Path,
        console: &Path,
    ) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("run").args(arm.run_arguments()).args([
            "--host=kvm",
            "--stats=json",
            "--prealloc",
        ]);
        command.arg("--kernel").arg(if arm.has_patched_kernel() {
            &self.kernel_para
        } else {
            &self.kernel_full
        });
        command.arg("--initrd").arg(&self.initrd);
        if let Some(root) = &self.root {
            let mut disk = root.clone().into_os_string();
            disk.push(",readonly");
            command.arg("--disk").arg(disk);
        }
        if self.disk_mib > 0 {
            let mut disk = self.disk().into_os_string();
            disk.push(if arm.uring { ",aio=io_uring" } else { "" });
            command.arg("--disk").arg(disk);
        }
        if self.net {
            command.arg(format!("--net=tap={TAP}"));
        }
        command
            .arg(format!("--memory={}", self.memory_mib))
            .arg(format!("--cpus={}", self.cpus));
        command.arg(format!("--watchdog={watchdog}"));
        command.arg("--stats-file").arg(stats);
        command.arg("--console-log").arg(console);
        command.arg(format!("--cmdline={cmdline}"));
        command.stdout(Stdio::null());
        command
    }

    fn peer(&self, peer: &Peer, cmdline: &str, console: &Path) -> Result<Command, LaunchError> {
        let program = peer.path().ok_or_else(|| {
            LaunchError::Failed(format!("`{}` is not installed on this host", peer.program))
        })?;
        let config = self.scratch.join("config");
        let text = |path: &Path| path.display().to_string();
        let words = [
            ("memory", self.memory_mib.to_string()),
            ("cpus", self.cpus.to_string()),
            (
                "kernel",
                text(peer.kernel(&self.kernel_full, &self.kernel_para)),
            ),
            ("initrd", text(&self.initrd)),
            (
                "cmdline",
                format!("console=ttyS0 reboot={} panic=-1 {cmdline}", peer.reboot),
            ),
            ("console", text(console)),
            ("config", text(&config)),
        ];
        let words = words
            .each_ref()
            .map(|(word, value)| (*word, value.as_str()));
        if let Some(content) = &peer.config {
            fs::write(&config, Peer::fill(content, &words)).map_err(|error| {
                let path = config.display();
                LaunchError::Failed(format!("`{path}` cannot be written: {error}"))
            })?;
        }
        let mut command = Command::new(program);
        command.args(peer.arguments.iter().map(|text| Peer::fill(text, &words)));
        command.stdout(match peer.console {
            ConsoleTo::File => Stdio::null(),
            ConsoleTo::Stdout => create(console)?.into(),
        });
        Ok(command)
    }
}

fn create(path: &Path) -> Result<fs::File, LaunchError> {
    fs::File::create(path).map_err(|error| {
        LaunchError::Failed(format!("`{}` cannot be created: {error}", path.display()))
    })
}

/// The user's part of the kernel command line. Jobs come after a quiet boot; a boot is measured without.
fn cmdline(kind: &Kind, arm: &Arm) -> String {
    // A PC without ACPI cannot power itself off.
    let end = if arm.is_para() { "poweroff" } else { "restart" };
    let orders: Vec<String> = kind
        .jobs
        .iter()
        .filter_map(|job| job.order(arm.handicap))
        .chain([format!("end={end}")])
        .collect();
    let quiet = if kind.quiet() { "quiet " } else { "" };
    format!("{quiet}{}-- {}", arm.cmdline(), orders.join(" "))
}

/// Waits for the child's end; kills it when the user stops the benchmark or when it outlives its watchdog.
fn wait(mut child: Child, limit: Duration, stop: &AtomicBool) -> Result<ExitStatus, LaunchError> {
    let begin = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => {}
            Err(error) => {
                return Err(LaunchError::Failed(format!(
                    "the VMM cannot be waited for: {error}"
                )));
            }
        }
        let stopped = stop.load(Ordering::Relaxed);
        if stopped || begin.elapsed() > limit {
            // Both fail only when the child has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            return Err(if stopped {
                LaunchError::Interrupted
            } else {
                LaunchError::Failed(format!(
                    "the VMM did not end within {} s and was killed",
                    limit.as_secs()
                ))
            });
        }
        std::thread::sleep(POLL);
    }
}

/// The statistics of a run that ended well, or in one line what is known of one that did not.
fn read_stats(
    path: &Path,
    status: ExitStatus,
    errors: &Path,
    console: &str,
) -> Result<RunStats, LaunchError> {
    let stats: Option<RunStats> = fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let (reason, message) = match stats {
        Some(stats) if status.success() => return Ok(stats),
        Some(stats) => (format!("outcome {}", stats.outcome), stats.message),
        None => {
            let reason = format!("the VMM left no readable statistics and ended with {status}");
            (reason, fs::read_to_string(errors).ok())
        }
    };
    Err(LaunchError::Failed(failure(
        reason,
        message.as_deref(),
        console,
    )))
}

/// A reason in one line: with the first line that was said about it, and the last that the guest printed.
fn failure(mut reason: String, message: Option<&str>, console: &str) -> String {
    let mut lines = message.unwrap_or_default().lines();
    if let Some(line) = lines.find(|line| !line.trim().is_empty()) {
        reason += &format!("; {}", line.trim());
    }
    if let Some(line) = console.lines().rfind(|line| !line.trim().is_empty()) {
        reason += &format!("; the guest's last line: {}", line.trim());
    }
    reason
}

/// Finds the report among the console's lines. Kernel messages may stand before it on the same line.
pub(crate) fn read_report(console: &str) -> Result<Report, LaunchError> {
    if let Some(error) = console
        .lines()
        .find(|line| line.contains("PARAVANE-INIT-ERROR"))
    {
        return Err(LaunchError::Failed(error.trim().to_owned()));
    }
    let (_, json) = console
        .split_once("PARAVANE-REPORT ")
        .ok_or_else(|| LaunchError::Failed("the guest's init printed no report".to_owned()))?;
    let mut values = serde_json::Deserializer::from_str(json).into_iter();
    match values.next() {
        Some(Ok(report)) => Ok(report),
        _ => Err(LaunchError::Failed(
            "the report of the guest's init is not readable".to_owned(),
        )),
    }
}

/// Whether the guest was what the arm says: an arm that is something else must not become a number.
fn check_identity(arm: &Arm, report: &Report, stats: Option<&RunStats>) -> Result<(), String> {
    let (paravirt, hypervisor) = (report.paravirt.as_deref(), report.hypervisor.as_deref());
    let is = |text: Option<&str>, part: &str| text.is_some_and(|text| text.contains(part));
    let bare = is(paravirt, "bare hardware") && hypervisor.is_none();
    let calls: u64 = stats.map_or(0, |stats| stats.hypercalls.values().sum());
    let right = match (arm.peer, arm.guest) {
        // Binary translation shows a hypervisor bit that Linux makes nothing of.
        (Some(peer), _) => match &peer.hypervisor {
            Some(name) => is(hypervisor, name),
            None => bare,
        },
        (None, "full") => bare && !report.cpuid_hypervisor_bit,
        (None, "kvm-pv") => is(hypervisor, "KVM"),
        (None, _) => is(hypervisor, "Paravane") && calls > 0,
    };
    if right {
        return Ok(());
    }
    Err(format!(
        "the guest is not what its arm says: `{}`, `{}`, hypervisor bit {}, {calls} hypercalls",
        paravirt.unwrap_or("no paravirt message"),
        hypervisor.unwrap_or("no hypervisor message"),
        report.cpuid_hypervisor_bit,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(count: u64) -> RunStats {
        RunStats {
            hypercalls: BTreeMap::from([("console.notify".to_owned(), count)]),
            ..RunStats::default()
        }
    }

    #[test]
    fn an_impostor_is_refused() {
        let bare = || Report {
            paravirt: Some("Booting … on bare hardware".into()),
            ..Report::default()
        };
        let (full, para): (Arm, Arm) = ("full".parse().unwrap(), "para".parse().unwrap());
        assert!(check_identity(&full, &bare(), Some(&called(0))).is_ok());
        assert!(
            check_identity(&para, &bare(), Some(&called(0)))
                .unwrap_err()
                .contains("0 hypercalls")
        );
        let seen = Report {
            hypervisor: Some("Hypervisor detected: Paravane".into()),
            ..Report::default()
        };
        assert!(check_identity(&para, &seen, Some(&called(1))).is_ok());
        assert!(
            check_identity(&para, &seen, Some(&called(0))).is_err(),
            "a para guest without a call"
        );
        assert!(check_identity(&full, &seen, Some(&called(0))).is_err());
        let bit = Report {
            cpuid_hypervisor_bit: true,
            ..bare()
        };
        assert!(check_identity(&full, &bit, Some(&called(0))).is_err());
    }

    #[test]
    fn a_peer_must_be_what_its_file_says() {
        let bare = Report {
            paravirt: Some("Booting … on bare hardware".into()),
            cpuid_hypervisor_bit: true,
            ..Report::default()
        };
        let kvm = Report {
            hypervisor: Some("Hypervisor detected: KVM".into()),
            ..Report::default()
        };
        let (q35, tcg): (Arm, Arm) = ("qemu-q35".parse().unwrap(), "qemu-tcg".parse().unwrap());
        assert!(check_identity(&q35, &kvm, None).is_ok());
        assert!(check_identity(&q35, &bare, None).is_err());
        assert!(check_identity(&tcg, &bare, None).is_ok());
        assert!(check_identity(&tcg, &kvm, None).is_err());
    }

    #[test]
    fn an_error_of_init_and_a_missing_report_are_failures() {
        assert!(read_report("nothing").is_err());
        let error =
            read_report("x\nPARAVANE-INIT-ERROR proc cannot be mounted on /proc: errno 19\n")
                .unwrap_err();
        assert!(error.to_string().contains("errno 19"));
    }

    #[test]
    fn the_guest_is_told_its_jobs_and_how_to_end() {
        let kinds = crate::job::kinds(crate::job::suite("boot").cloned(), 1);
        let of = |kind: usize, arm: &str| cmdline(&kinds[kind], &arm.parse().unwrap());
        assert_eq!(of(0, "full"), "-- end=restart");
        assert_eq!(of(1, "para"), "quiet -- end=poweroff");
        let workload = of(2, "full~50");
        assert!(
            workload.contains("job=console:98304:1 job=null:1500000:1"),
            "{workload}"
        );
    }
}
