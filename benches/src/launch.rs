//! One launch: a child process `paravane run`, and the samples that its statistics and its guest's report give.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::arm::Arm;
use crate::plan::Job;

/// How often a running child is looked at. Nothing is timed by this: the VMM's own clock is.
const POLL: Duration = Duration::from_millis(20);

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
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// vCPUs.
    pub cpus: u8,
    /// How many seconds a boot may take; a workload may take ten times as long.
    pub watchdog: u64,
    /// What the console workload writes.
    pub console_bytes: u64,
    /// How many system calls the other workload makes.
    pub syscalls: u64,
    /// A folder for the files of one launch.
    pub scratch: PathBuf,
}

/// One number of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// The job that the number belongs to.
    pub job: &'static str,
    /// What was measured.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// The number.
    pub value: u64,
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
#[derive(Debug, Deserialize)]
pub(crate) struct RunStats {
    outcome: String,
    message: Option<String>,
    setup_ns: u64,
    #[serde(default)]
    exits: u64,
    #[serde(default)]
    user_exits: BTreeMap<String, u64>,
    #[serde(default)]
    kvm_stats: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    hypercalls: BTreeMap<String, u64>,
    marks: Vec<Mark>,
}

/// A byte that the guest wrote to the mark port.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Mark {
    code: u8,
    t_ns: u64,
    exits: u64,
    user_exits: u64,
    console_out_bytes: u64,
}

/// What the guest's init says about its kernel.
#[derive(Debug, Default, Deserialize)]
struct Report {
    #[serde(default)]
    init_monotonic_ns: Option<u64>,
    #[serde(default)]
    milestones_ns: BTreeMap<String, u64>,
    #[serde(default)]
    paravirt: Option<String>,
    #[serde(default)]
    hypervisor: Option<String>,
    #[serde(default)]
    cpuid_hypervisor_bit: bool,
}

/// What a guest that was what its arm says left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) stats: RunStats,
    report: Report,
}

/// The phases of a boot: a name, and the messages between which it lies.
const PHASES: [(&str, &str, &str); 4] = [
    ("setup", "linux_version", "apic"),
    ("cpu", "apic", "smp"),
    ("drivers", "smp", "freeing"),
    ("last", "freeing", "run_init"),
];

impl Launcher {
    /// Launches one guest and makes numbers of its end. `stop` ends it early.
    ///
    /// # Errors
    ///
    /// [`LaunchError`].
    pub fn launch(
        &self,
        job: Job,
        arm: &Arm,
        stop: &AtomicBool,
    ) -> Result<Vec<Metric>, LaunchError> {
        let watchdog = match job {
            Job::Boot | Job::BootQuiet => self.watchdog,
            Job::Workload => self.watchdog.saturating_mul(10),
        };
        let ended = self.run(arm, &self.cmdline(job, arm), watchdog, stop)?;
        match job {
            Job::Boot | Job::BootQuiet => boot_metrics(job, &ended.stats, &ended.report),
            Job::Workload => workload_metrics(&ended.stats, self.syscalls),
        }
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
        let errors = fs::File::create(&errors_file).map_err(|error| {
            LaunchError::Failed(format!(
                "`{}` cannot be created: {error}",
                errors_file.display()
            ))
        })?;
        let mut command = Command::new(&self.program);
        command.arg("run").args(arm.run_arguments()).args([
            "--host=kvm",
            "--stats=json",
            "--prealloc",
        ]);
        command.arg("--kernel").arg(if arm.is_para() {
            &self.kernel_para
        } else {
            &self.kernel_full
        });
        command.arg("--initrd").arg(&self.initrd);
        command
            .arg(format!("--memory={}", self.memory_mib))
            .arg(format!("--cpus={}", self.cpus));
        command.arg(format!("--watchdog={watchdog}"));
        command
            .arg("--stats-file")
            .arg(&stats_file)
            .arg("--console-log")
            .arg(&console_file);
        command.arg(format!("--cmdline={cmdline}"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        let child = command.spawn().map_err(|error| {
            LaunchError::Failed(format!(
                "`{}` cannot be started: {error}",
                self.program.display()
            ))
        })?;
        let status = wait(child, Duration::from_secs(watchdog) + GRACE, stop)?;
        let console = fs::read(&console_file).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let stats = read_stats(&stats_file, status, &errors_file, &console)?;
        let report = read_report(&console)?;
        check_identity(arm, &report, &stats).map_err(LaunchError::Failed)?;
        Ok(Ended { stats, report })
    }

    /// The user's part of the kernel command line. The workloads come after a quiet boot; a boot is measured without.
    fn cmdline(&self, job: Job, arm: &Arm) -> String {
        // A PC without ACPI cannot power itself off.
        let end = if arm.is_para() { "poweroff" } else { "restart" };
        let (console, syscalls) = (self.console_bytes, self.syscalls);
        match job {
            Job::Boot => format!("-- end={end}"),
            Job::BootQuiet => format!("quiet -- end={end}"),
            Job::Workload => {
                format!("quiet -- console-bytes={console} syscalls={syscalls} end={end}")
            }
        }
    }
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
    let (mut reason, message) = match stats {
        Some(stats) if status.success() => return Ok(stats),
        Some(stats) => (format!("outcome {}", stats.outcome), stats.message),
        None => {
            let reason = format!("the VMM left no readable statistics and ended with {status}");
            (reason, fs::read_to_string(errors).ok())
        }
    };
    let mut lines = message.as_deref().unwrap_or_default().lines();
    if let Some(line) = lines.find(|line| !line.trim().is_empty()) {
        reason += &format!("; {}", line.trim());
    }
    if let Some(line) = console.lines().rfind(|line| !line.trim().is_empty()) {
        reason += &format!("; the guest's last line: {}", line.trim());
    }
    Err(LaunchError::Failed(reason))
}

/// Finds the report among the console's lines. Kernel messages may stand before it on the same line.
fn read_report(console: &str) -> Result<Report, LaunchError> {
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
fn check_identity(arm: &Arm, report: &Report, stats: &RunStats) -> Result<(), String> {
    let (paravirt, hypervisor) = (report.paravirt.as_deref(), report.hypervisor.as_deref());
    let is = |text: Option<&str>, part: &str| text.is_some_and(|text| text.contains(part));
    let right = match arm.guest {
        "full" => {
            is(paravirt, "bare hardware") && hypervisor.is_none() && !report.cpuid_hypervisor_bit
        }
        "kvm-pv" => is(hypervisor, "KVM"),
        _ => is(hypervisor, "Paravane") && stats.hypercalls.values().any(|count| *count > 0),
    };
    if right {
        return Ok(());
    }
    let calls: u64 = stats.hypercalls.values().sum();
    Err(format!(
        "the guest is not what its arm says: `{}`, `{}`, hypervisor bit {}, {calls} hypercalls",
        paravirt.unwrap_or("no paravirt message"),
        hypervisor.unwrap_or("no hypervisor message"),
        report.cpuid_hypervisor_bit,
    ))
}

fn mark(stats: &RunStats, code: u8) -> Result<Mark, LaunchError> {
    let found = stats.marks.iter().find(|mark| mark.code == code);
    found
        .copied()
        .ok_or_else(|| LaunchError::Failed(format!("the guest never made mark {code}")))
}

fn boot_metrics(job: Job, stats: &RunStats, report: &Report) -> Result<Vec<Metric>, LaunchError> {
    let job = job.name();
    let init = mark(stats, 1)?;
    let metric = |name: &str, unit, value| Metric {
        job,
        name: name.to_owned(),
        unit,
        value,
    };
    let mut metrics = vec![
        metric("boot_to_init_ns", "ns", init.t_ns),
        metric("exits_to_init", "exits", init.exits),
        metric("user_exits_to_init", "exits", init.user_exits),
        metric("console_out_bytes", "bytes", init.console_out_bytes),
        metric("setup_ns", "ns", stats.setup_ns),
        metric("run_exits", "exits", stats.exits),
    ];
    let at = |name: &str| report.milestones_ns.get(name).copied();
    for (name, from, to) in PHASES {
        if let (Some(from), Some(to)) = (at(from), at(to)) {
            metrics.push(metric(
                &format!("phase_{name}_ns"),
                "ns",
                to.saturating_sub(from),
            ));
        }
    }
    // The kernel's clock starts late; what lies before it is the difference to the VMM's clock.
    if let Some(run_init) = at("run_init") {
        let before = init.t_ns.saturating_sub(run_init);
        metrics.push(metric("phase_before_clock_ns", "ns", before));
    }
    if let Some(monotonic) = report.init_monotonic_ns {
        metrics.push(metric("guest_clock_at_init_ns", "ns", monotonic));
    }
    for (reason, count) in &stats.user_exits {
        metrics.push(metric(&format!("run_exits_{reason}"), "exits", *count));
    }
    for (name, count) in &stats.kvm_stats {
        let wanted = name.ends_with("_exits")
            || ["insn_emulation", "irq_injections", "pf_taken"].contains(&&**name);
        if let Some(count) = count.as_u64().filter(|_| wanted) {
            metrics.push(metric(&format!("run_kvm_{name}"), "count", count));
        }
    }
    for (call, count) in &stats.hypercalls {
        metrics.push(metric(&format!("run_calls_{call}"), "calls", *count));
    }
    Ok(metrics)
}

fn workload_metrics(stats: &RunStats, syscalls: u64) -> Result<Vec<Metric>, LaunchError> {
    let mut metrics = Vec::new();
    for (job, begin, end) in [("console", 2, 3), ("syscall", 4, 5)] {
        let (begin, end) = (mark(stats, begin)?, mark(stats, end)?);
        let mut push = |suffix: &str, unit, of: fn(&Mark) -> u64| {
            let value = of(&end).saturating_sub(of(&begin));
            metrics.push(Metric {
                job,
                name: format!("{job}_{suffix}"),
                unit,
                value,
            });
        };
        push("ns", "ns", |mark| mark.t_ns);
        push("exits", "exits", |mark| mark.exits);
        push("user_exits", "exits", |mark| mark.user_exits);
        if job == "console" {
            push("out_bytes", "bytes", |mark| mark.console_out_bytes);
        }
    }
    metrics.push(Metric {
        job: "syscall",
        name: "syscall_count".to_owned(),
        unit: "count",
        value: syscalls,
    });
    Ok(metrics)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATS: &str = r#"{"guest":"full","host":"kvm","vcpus":1,"mem_mib":128,"outcome":"reboot","message":null,
        "setup_ns":5000000,"run_ns":9000,"exits":40,"user_exits":{"io_out":30,"mmio":2},
        "kvm_stats":{"exits":40,"halt_exits":3,"irq_exits":0,"nothing":9,"histogram":[1,2]},"hypercalls":{},
        "console":{"out_bytes":700,"in_bytes":0},"marks":[
        {"code":1,"t_ns":1000,"exits":10,"user_exits":8,"console_out_bytes":100},
        {"code":2,"t_ns":2000,"exits":12,"user_exits":9,"console_out_bytes":120},
        {"code":3,"t_ns":5000,"exits":32,"user_exits":19,"console_out_bytes":620},
        {"code":4,"t_ns":5100,"exits":33,"user_exits":20,"console_out_bytes":620},
        {"code":5,"t_ns":5200,"exits":34,"user_exits":21,"console_out_bytes":620}]}"#;

    fn value(metrics: &[Metric], name: &str) -> Option<u64> {
        metrics
            .iter()
            .find(|metric| metric.name == name)
            .map(|metric| metric.value)
    }

    #[test]
    fn boot_is_measured_at_the_first_mark() {
        let report = read_report(
            "[0.1] x\nPARAVANE-REPORT {\"milestones_ns\":{\"linux_version\":0,\"apic\":300,\"run_init\":900},\
             \"paravirt\":\"Booting paravirtualized kernel on bare hardware\",\"hypervisor\":null}[0.2] y\n",
        )
        .unwrap();
        let stats: RunStats = serde_json::from_str(STATS).unwrap();
        check_identity(&"full".parse().unwrap(), &report, &stats).unwrap();
        let metrics = boot_metrics(Job::Boot, &stats, &report).unwrap();
        for (name, expected) in [
            ("boot_to_init_ns", Some(1000)),
            ("exits_to_init", Some(10)),
            ("user_exits_to_init", Some(8)),
            ("phase_setup_ns", Some(300)),
            ("phase_cpu_ns", None),
            ("phase_before_clock_ns", Some(100)),
            ("run_exits_io_out", Some(30)),
            ("run_kvm_halt_exits", Some(3)),
            ("run_kvm_irq_exits", Some(0)),
            ("run_kvm_nothing", None),
        ] {
            assert_eq!(value(&metrics, name), expected, "{name}");
        }
    }

    #[test]
    fn workloads_are_what_lies_between_two_marks() {
        let stats: RunStats = serde_json::from_str(STATS).unwrap();
        let metrics = workload_metrics(&stats, 1000).unwrap();
        for (name, expected) in [
            ("console_exits", 20),
            ("console_ns", 3000),
            ("console_out_bytes", 500),
            ("syscall_exits", 1),
            ("syscall_ns", 100),
        ] {
            assert_eq!(value(&metrics, name), Some(expected), "{name}");
        }
    }

    #[test]
    fn an_impostor_is_refused() {
        let stats: RunStats = serde_json::from_str(STATS).unwrap();
        let bare = Report {
            paravirt: Some("Booting … on bare hardware".into()),
            ..Report::default()
        };
        let para: Arm = "para".parse().unwrap();
        assert!(
            check_identity(&para, &bare, &stats)
                .unwrap_err()
                .contains("0 hypercalls")
        );
        let seen = Report {
            hypervisor: Some("Hypervisor detected: Paravane".into()),
            ..Report::default()
        };
        assert!(
            check_identity(&para, &seen, &stats).is_err(),
            "a para guest without a call"
        );
        assert!(check_identity(&"full".parse().unwrap(), &seen, &stats).is_err());
        let bit = Report {
            cpuid_hypervisor_bit: true,
            ..bare
        };
        assert!(check_identity(&"full".parse().unwrap(), &bit, &stats).is_err());
    }

    #[test]
    fn a_missing_mark_an_error_of_init_and_a_missing_report_are_failures() {
        let mut stats: RunStats = serde_json::from_str(STATS).unwrap();
        stats.marks.clear();
        assert!(
            boot_metrics(Job::Boot, &stats, &Report::default())
                .unwrap_err()
                .to_string()
                .contains("mark 1")
        );
        assert!(read_report("nothing").is_err());
        let error =
            read_report("x\nPARAVANE-INIT-ERROR proc cannot be mounted on /proc: errno 19\n")
                .unwrap_err();
        assert!(error.to_string().contains("errno 19"));
    }
}
