//! The numbers of one launch.

use serde::Deserialize;

use crate::job::{Counts, Job, Kind};
use crate::launch::{Ended, LaunchError, Mark, RunStats};
use crate::pvbench::Measured;

/// One number of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// The job that the number belongs to.
    pub job: String,
    /// What was measured.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// The number.
    pub value: u64,
}

/// How many sleeps were less than 2^n µs late: the metric's name, and n.
pub(crate) const LATE_BUCKET: &str = "late_bucket_";

/// The marks of the guest's init: its start, and the begin and the end of each job.
const INIT_STARTED: u8 = 1;
const JOB_BEGINS: u8 = 2;
const JOB_ENDS: u8 = 3;

/// The phases of a boot: a name, and the messages between which it lies.
const PHASES: [(&str, &str, &str); 4] = [
    ("setup", "linux_version", "apic"),
    ("cpu", "apic", "smp"),
    ("drivers", "smp", "freeing"),
    ("last", "freeing", "run_init"),
];

/// Gathers the numbers of one job.
struct Numbers<'a> {
    job: &'a Job,
    metrics: &'a mut Vec<Metric>,
}

impl Numbers<'_> {
    fn push(&mut self, name: impl Into<String>, unit: &'static str, value: u64) {
        self.metrics.push(Metric {
            job: self.job.name.clone(),
            name: name.into(),
            unit,
            value,
        });
    }
}

/// The numbers of a launch of this kind; `measured` by the module in the guest's kernel, if it was there.
pub(crate) fn metrics(
    kind: &Kind,
    ended: &Ended,
    measured: Option<&Measured>,
) -> Result<Vec<Metric>, LaunchError> {
    let mut metrics = Vec::new();
    let works = kind
        .jobs
        .iter()
        .filter(|job| job.work.is_some() && !job.is_by_module());
    let works = works.count();
    let guest = guest_times(&ended.console);
    let marks = ended.stats.as_ref().map(|stats| pairs(&stats.marks));
    let enough = |what: &str, found: usize| {
        if found == works {
            return Ok(());
        }
        let why = format!("the guest reported {what} of {found} jobs and was given {works}");
        Err(LaunchError::Failed(why))
    };
    enough("times", guest.len())?;
    if let Some(marks) = &marks {
        enough("marks", marks.len())?;
    }
    let mut index = 0;
    for job in &kind.jobs {
        let mut numbers = Numbers {
            job,
            metrics: &mut metrics,
        };
        numbers.push("process_ns", "ns", ended.process_ns);
        if job.work.is_none() {
            boot(&mut numbers, ended)?;
            continue;
        }
        if job.is_by_module() {
            let marks = ended.stats.as_ref().map_or(&[][..], |stats| &stats.marks);
            for (name, unit, value) in measured.iter().flat_map(|measured| measured.metrics(marks))
            {
                numbers.push(name, unit, value);
            }
            continue;
        }
        numbers.push("rounds", "count", job.rounds);
        if let Some(ns) = guest.get(index) {
            numbers.push("guest_ns", "ns", *ns);
        }
        if let Some((begin, end)) = marks.as_ref().and_then(|marks| marks.get(index)) {
            let mut push = |name: &str, unit, of: fn(&Mark) -> u64| {
                numbers.push(name, unit, of(end).saturating_sub(of(begin)));
            };
            push("time_ns", "ns", |mark| mark.t_ns);
            push("exits", "exits", |mark| mark.exits);
            push("user_exits", "exits", |mark| mark.user_exits);
            push("host_exits", "exits", |mark| mark.host_exits);
            push("cpu_ns", "ns", |mark| mark.cpu_ns);
            push("out_bytes", "bytes", |mark| mark.console_out_bytes);
        }
        if job.counts == Some(Counts::Late) {
            naps(&mut numbers, &ended.console)?;
        }
        index += 1;
    }
    Ok(metrics)
}

/// What the guest says of its sleeps: `PARAVANE-NAPS {JSON}`.
#[derive(Deserialize)]
struct Naps {
    early: u64,
    /// Less than 1 µs late, less than 2, less than 4, …
    late_us_log2: Vec<u64>,
}

impl Naps {
    /// The end of the bucket that has the last of so many in a hundred, nanoseconds.
    fn quantile(&self, percent: u64) -> u64 {
        let all: u64 = self.late_us_log2.iter().sum();
        let wanted = (all * percent).div_ceil(100);
        let mut seen = 0;
        let mut end = 1000;
        for count in &self.late_us_log2 {
            seen += count;
            if seen >= wanted {
                break;
            }
            end *= 2;
        }
        end
    }
}

fn naps(numbers: &mut Numbers<'_>, console: &str) -> Result<(), LaunchError> {
    let told = console
        .lines()
        .find_map(|line| line.split_once("PARAVANE-NAPS ")?.1.trim().into());
    let naps: Option<Naps> = told.and_then(|json: &str| serde_json::from_str(json).ok());
    let Some(naps) = naps else {
        let why = "the guest did not tell how late its sleeps were";
        return Err(LaunchError::Failed(why.to_owned()));
    };
    numbers.push("early", "count", naps.early);
    for percent in [50, 90, 99] {
        numbers.push(format!("late_p{percent}_ns"), "ns", naps.quantile(percent));
    }
    for (bucket, count) in naps.late_us_log2.iter().enumerate() {
        numbers.push(format!("{LATE_BUCKET}{bucket}"), "count", *count);
    }
    Ok(())
}

/// What the guest's own clock says of each job: `PARAVANE-JOB NAME ROUNDS NANOSECONDS`.
fn guest_times(console: &str) -> Vec<u64> {
    let time = |line: &str| {
        let (_, words) = line.split_once("PARAVANE-JOB ")?;
        words.split_ascii_whitespace().nth(2)?.parse().ok()
    };
    console.lines().filter_map(time).collect()
}

/// The begin and the end of each job.
fn pairs(marks: &[Mark]) -> Vec<(Mark, Mark)> {
    let mut pairs = Vec::new();
    let mut begun = None;
    for mark in marks {
        match mark.code {
            JOB_BEGINS => begun = Some(*mark),
            JOB_ENDS => pairs.extend(begun.take().map(|begin| (begin, *mark))),
            _ => {}
        }
    }
    pairs
}

fn boot(numbers: &mut Numbers<'_>, ended: &Ended) -> Result<(), LaunchError> {
    let report = &ended.report;
    let at = |name: &str| report.milestones_ns.get(name).copied();
    for (name, from, to) in PHASES {
        if let (Some(from), Some(to)) = (at(from), at(to)) {
            numbers.push(format!("phase_{name}_ns"), "ns", to.saturating_sub(from));
        }
    }
    if let Some(monotonic) = report.init_monotonic_ns {
        numbers.push("guest_clock_at_init_ns", "ns", monotonic);
    }
    let Some(stats) = &ended.stats else {
        return Ok(());
    };
    let init = stats.marks.iter().find(|mark| mark.code == INIT_STARTED);
    let init = init.ok_or_else(|| {
        LaunchError::Failed("the guest never made the mark of its init".to_owned())
    })?;
    numbers.push("boot_to_init_ns", "ns", init.t_ns);
    numbers.push("exits_to_init", "exits", init.exits);
    numbers.push("user_exits_to_init", "exits", init.user_exits);
    numbers.push("host_exits_to_init", "exits", init.host_exits);
    numbers.push("console_out_bytes", "bytes", init.console_out_bytes);
    numbers.push("setup_ns", "ns", stats.setup_ns);
    // The kernel's clock starts late; what lies before it is the difference to the VMM's clock.
    if let Some(run_init) = at("run_init") {
        let before = init.t_ns.saturating_sub(run_init);
        numbers.push("phase_before_clock_ns", "ns", before);
    }
    whole_run(numbers, stats);
    Ok(())
}

/// The exits of the whole run, by reason, and the calls, by name.
fn whole_run(numbers: &mut Numbers<'_>, stats: &RunStats) {
    numbers.push("run_exits", "exits", stats.exits);
    for (reason, count) in &stats.user_exits {
        numbers.push(format!("run_exits_{reason}"), "exits", *count);
    }
    for (name, count) in &stats.kvm_stats {
        let wanted = name.ends_with("_exits")
            || ["insn_emulation", "irq_injections", "pf_taken"].contains(&&**name);
        if let Some(count) = count.as_u64().filter(|_| wanted) {
            numbers.push(format!("run_kvm_{name}"), "count", count);
        }
    }
    for (call, count) in &stats.hypercalls {
        numbers.push(format!("run_calls_{call}"), "calls", *count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{kinds, suite};
    use crate::launch::read_report;

    const STATS: &str = r#"{"guest":"full","host":"kvm","vcpus":1,"mem_mib":128,"outcome":"reboot","message":null,
        "setup_ns":5000000,"run_ns":9000,"exits":40,"user_exits":{"io_out":30,"mmio":2},
        "kvm_stats":{"exits":40,"halt_exits":3,"irq_exits":0,"nothing":9,"histogram":[1,2]},"hypercalls":{},
        "console":{"out_bytes":700,"in_bytes":0},"marks":[
        {"code":1,"t_ns":1000,"exits":10,"user_exits":8,"console_out_bytes":100},
        {"code":2,"t_ns":2000,"exits":12,"user_exits":9,"console_out_bytes":120},
        {"code":3,"t_ns":5000,"exits":32,"user_exits":19,"console_out_bytes":620},
        {"code":2,"t_ns":5100,"exits":33,"user_exits":20,"console_out_bytes":620},
        {"code":3,"t_ns":5200,"exits":34,"user_exits":21,"console_out_bytes":620}]}"#;

    const CONSOLE: &str = "[0.1] x\nPARAVANE-JOB console 65536 2900\n[0.2] yPARAVANE-JOB null 1000000 90\n\
        PARAVANE-REPORT {\"milestones_ns\":{\"linux_version\":0,\"apic\":300,\"run_init\":900}}[0.2] y\n";

    fn ended() -> Ended {
        Ended {
            stats: Some(serde_json::from_str(STATS).unwrap()),
            report: read_report(CONSOLE).unwrap(),
            console: CONSOLE.to_owned(),
            process_ns: 77,
        }
    }

    fn value(metrics: &[Metric], job: &str, name: &str) -> Option<u64> {
        let found = metrics.iter().find(|m| m.job == job && m.name == name);
        found.map(|metric| metric.value)
    }

    #[test]
    fn the_lateness_of_sleeps_is_a_histogram_and_its_quantiles() {
        let naps = Naps {
            early: 0,
            late_us_log2: vec![0, 0, 0, 0, 40, 40, 18, 0, 2],
        };
        let told = [50, 90, 99].map(|percent| naps.quantile(percent));
        assert_eq!(told, [32_000, 64_000, 256_000]);
        let job = suite("os").find(|job| job.name == "nap").unwrap();
        let mut metrics = Vec::new();
        let mut numbers = Numbers {
            job,
            metrics: &mut metrics,
        };
        assert!(super::naps(&mut numbers, "nothing").is_err());
        let line = "[0.3] xPARAVANE-NAPS {\"early\":1,\"late_us_log2\":[3,0,5]}\n";
        super::naps(&mut numbers, line).unwrap();
        assert_eq!(value(&metrics, "nap", job.metric()), Some(4_000));
        assert_eq!(value(&metrics, "nap", "early"), Some(1));
        assert_eq!(value(&metrics, "nap", "late_bucket_2"), Some(5));
    }

    #[test]
    fn boot_is_measured_at_the_first_mark() {
        let kinds = kinds(suite("boot").cloned(), 1);
        let mut ended = ended();
        ended.console.clear();
        let metrics = metrics(&kinds[0], &ended, None);
        // The marks of jobs that were not asked for make the launch a failure.
        assert!(metrics.unwrap_err().to_string().contains("2 jobs"));
        if let Some(stats) = &mut ended.stats {
            stats.marks.truncate(1);
        }
        let metrics = super::metrics(&kinds[0], &ended, None).unwrap();
        for (name, expected) in [
            ("process_ns", Some(77)),
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
            assert_eq!(value(&metrics, "boot", name), expected, "{name}");
        }
        if let Some(stats) = &mut ended.stats {
            stats.marks.clear();
        }
        assert!(super::metrics(&kinds[0], &ended, None).is_err(), "no mark");
    }

    #[test]
    fn a_job_is_what_lies_between_its_two_marks() {
        let kinds = kinds(suite("boot").cloned(), 1);
        let metrics = metrics(&kinds[2], &ended(), None).unwrap();
        for (job, name, expected) in [
            ("console", "exits", 20),
            ("console", "time_ns", 3000),
            ("console", "guest_ns", 2900),
            ("console", "out_bytes", 500),
            ("syscall", "exits", 1),
            ("syscall", "time_ns", 100),
            ("syscall", "guest_ns", 90),
            ("syscall", "rounds", 1_000_000),
        ] {
            assert_eq!(value(&metrics, job, name), Some(expected), "{job} {name}");
        }
    }

    #[test]
    fn a_peer_has_the_guest_s_clock_only() {
        let kinds = kinds(suite("boot").cloned(), 1);
        let ended = Ended {
            stats: None,
            ..ended()
        };
        let metrics = metrics(&kinds[2], &ended, None).unwrap();
        assert_eq!(value(&metrics, "console", "guest_ns"), Some(2900));
        assert_eq!(value(&metrics, "console", "time_ns"), None);
    }

    #[test]
    fn a_job_without_a_result_is_a_failure() {
        let kinds = kinds(suite("os").cloned(), 1);
        let error = metrics(&kinds[0], &ended(), None).unwrap_err();
        assert!(error.to_string().contains("of 2 jobs"), "{error}");
    }
}
