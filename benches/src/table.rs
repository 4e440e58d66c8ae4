//! The paired table, made from raw samples alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle, presets};

use crate::job::Job;
use crate::sample::Samples;
use crate::statistics::{MEANINGFUL_LAUNCHES, Ratio, float, median, paired_ratio};

/// How a table looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Lines for a terminal.
    Terminal,
    /// Markdown, for a report.
    Markdown,
}

/// What the table is about.
#[derive(Clone, Debug)]
pub struct Heading {
    /// The arms; ratios are to the first.
    pub arms: Vec<String>,
    /// The jobs, in their order.
    pub jobs: Vec<Job>,
    /// The class of the host.
    pub host: String,
    /// The seed of the order.
    pub seed: u64,
    /// What exits cost on this host, if known.
    pub costs: Option<ExitCosts>,
}

/// What one exit costs, in ns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExitCosts {
    /// One that goes out to the VMM.
    pub to_vmm: f64,
    /// One that KVM answers itself.
    pub in_kvm: f64,
}

/// How a number is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Time,
    Count,
}

/// The numbers of one row: by arm, then by launch.
type Numbers = BTreeMap<String, BTreeMap<u32, f64>>;

struct Row {
    label: String,
    kind: Kind,
    numbers: Numbers,
}

/// A row's label and metric.
type Line = (&'static str, &'static str, Kind);

/// A line above, below, and under the heading.
pub(crate) const TERMINAL: TableStyle = TableStyle::new()
    .top_border(LineStyle::none().fill('─').junction('─'))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

const BOOT_ROWS: [Line; 13] = [
    ("boot to init", "boot_to_init_ns", Kind::Time),
    (
        "· before the kernel's clock",
        "phase_before_clock_ns",
        Kind::Time,
    ),
    ("· memory, first interrupts", "phase_setup_ns", Kind::Time),
    ("· APIC, CPUs", "phase_cpu_ns", Kind::Time),
    ("· drivers, initramfs", "phase_drivers_ns", Kind::Time),
    ("· last steps", "phase_last_ns", Kind::Time),
    ("exits to init", "exits_to_init", Kind::Count),
    ("· of these to the VMM", "user_exits_to_init", Kind::Count),
    (
        "· interrupts of the host",
        "host_exits_to_init",
        Kind::Count,
    ),
    ("console bytes to init", "console_out_bytes", Kind::Count),
    ("the VMM's own set-up", "setup_ns", Kind::Time),
    (
        "the guest's clock at init",
        "guest_clock_at_init_ns",
        Kind::Time,
    ),
    ("the whole process", "process_ns", Kind::Time),
];

const JOB_ROWS: [Line; 7] = [
    ("time", "time_ns", Kind::Time),
    ("· by the guest's own clock", "guest_ns", Kind::Time),
    ("exits", "exits", Kind::Count),
    ("· of these to the VMM", "user_exits", Kind::Count),
    ("· interrupts of the host", "host_exits", Kind::Count),
    ("processor time of the host", "cpu_ns", Kind::Time),
    ("bytes that arrived", "out_bytes", Kind::Count),
];

/// Rows of the whole run by reason: the prefix of their metrics and what stands before the reason.
const REASONS: [(&str, &str); 3] = [
    ("run_exits_", "to the VMM: "),
    ("run_kvm_", "KVM counts: "),
    ("run_calls_", "call: "),
];

/// Draws everything: a table a job, then what it means.
#[must_use]
pub fn draw(samples: &Samples, heading: &Heading, look: Look) -> String {
    let mut out = String::new();
    for job in heading.jobs.iter().filter(|job| samples.has(&job.name)) {
        let mark = if look == Look::Markdown { "## " } else { "" };
        let _ = writeln!(out, "{mark}{}\n\n{}\n", job.title, job.what);
        let rows = rows(samples, job, heading.costs);
        let _ = writeln!(
            out,
            "{}\n",
            job_table(&rows, samples, &job.name, heading, look)
        );
        if job.work.is_none() {
            for line in accounts(samples, &job.name, heading) {
                let _ = writeln!(out, "{line}");
            }
            out.push('\n');
        }
    }
    let _ = writeln!(
        out,
        "Medians; ratios to `{}` with their 95 % interval (paired bootstrap over launches). Host class `{}`, seed {}.",
        heading.arms.first().map_or("", String::as_str),
        heading.host,
        heading.seed,
    );
    let few = |job: &Job| launches(samples, job).is_some_and(|n| n < MEANINGFUL_LAUNCHES);
    if heading.jobs.iter().any(few) {
        let _ = writeln!(
            out,
            "With fewer than {MEANINGFUL_LAUNCHES} pairs an interval is not meaningful and is not given."
        );
    }
    out
}

/// How many launches the best-served arm of a job has.
fn launches(samples: &Samples, job: &Job) -> Option<usize> {
    let by_arm = samples.values(&job.name, job.metric())?;
    by_arm.values().map(BTreeMap::len).max()
}

fn numbers(samples: &Samples, job: &str, metric: &str) -> Option<Numbers> {
    let values = samples.values(job, metric)?;
    let floats = |launches: &BTreeMap<u32, u64>| {
        launches
            .iter()
            .map(|(n, value)| (*n, float(*value)))
            .collect()
    };
    Some(
        values
            .iter()
            .map(|(arm, launches)| (arm.clone(), floats(launches)))
            .collect(),
    )
}

/// One metric by another, launch by launch; launches where the other is zero are left out.
fn quotient(samples: &Samples, job: &str, above: &str, below: &str) -> Option<Numbers> {
    let (above, below) = (numbers(samples, job, above)?, numbers(samples, job, below)?);
    let quotients = above.into_iter().filter_map(|(arm, above)| {
        let below = below.get(&arm)?;
        let of = |n: &u32, above: f64| {
            below
                .get(n)
                .filter(|below| **below != 0.0)
                .map(|below| above / below)
        };
        let by_launch: BTreeMap<u32, f64> = above
            .iter()
            .filter_map(|(n, above)| Some((*n, of(n, *above)?)))
            .collect();
        Some((arm, by_launch))
    });
    Some(quotients.collect())
}

/// What each boot would have taken with every exit free: its time less what its exits cost by themselves. The host's own
/// interrupts are among them.
fn floor(samples: &Samples, job: &str, costs: ExitCosts) -> Option<Numbers> {
    let of = |metric| numbers(samples, job, metric);
    let (exits, to_vmm) = (of("exits_to_init")?, of("user_exits_to_init")?);
    let mut floor = of("boot_to_init_ns")?;
    for (arm, launches) in &mut floor {
        launches.retain(|launch, time| {
            let of = |numbers: &Numbers| numbers.get(arm)?.get(launch).copied();
            let Some((exits, to_vmm)) = of(&exits).zip(of(&to_vmm)) else {
                return false;
            };
            let in_kvm = (exits - to_vmm).max(0.0);
            *time -= to_vmm * costs.to_vmm + in_kvm * costs.in_kvm;
            true
        });
    }
    Some(floor)
}

fn rows(samples: &Samples, job: &Job, costs: Option<ExitCosts>) -> Vec<Row> {
    let name = job.name.as_str();
    let mut rows = Vec::new();
    let mut push = |label: String, kind, numbers: Option<Numbers>| {
        let anything = |numbers: &Numbers| {
            numbers
                .values()
                .flat_map(BTreeMap::values)
                .any(|value| *value != 0.0)
        };
        if let Some(numbers) = numbers.filter(anything) {
            rows.push(Row {
                label,
                kind,
                numbers,
            });
        }
    };
    let lines: &[Line] = if job.work.is_none() {
        &BOOT_ROWS
    } else {
        &JOB_ROWS
    };
    for (label, metric, kind) in lines {
        push((*label).to_owned(), *kind, numbers(samples, name, metric));
    }
    if job.work.is_some() {
        push(
            format!("time per {}", job.round),
            Kind::Time,
            quotient(samples, name, "time_ns", "rounds"),
        );
        push(
            "bytes per exit".into(),
            Kind::Count,
            quotient(samples, name, "out_bytes", "exits"),
        );
        return rows;
    }
    push(
        "boot to init, were exits free".to_owned(),
        Kind::Time,
        costs.and_then(|costs| floor(samples, name, costs)),
    );
    if name == "boot" {
        push(
            "exits of the whole run".to_owned(),
            Kind::Count,
            numbers(samples, name, "run_exits"),
        );
        for (prefix, before) in REASONS {
            for metric in samples.metrics(name, prefix) {
                let reason = metric.strip_prefix(prefix).unwrap_or(metric);
                push(
                    format!("· {before}{reason}"),
                    Kind::Count,
                    numbers(samples, name, metric),
                );
            }
        }
    }
    rows
}

/// The ratio of an arm to the base over the launches that both have.
fn ratio(numbers: &Numbers, base: &str, arm: &str, seed: u64) -> Option<Ratio> {
    let (base, arm) = (numbers.get(base)?, numbers.get(arm)?);
    let pairs: Vec<(f64, f64)> = base
        .iter()
        .filter_map(|(launch, base)| Some((*base, *arm.get(launch)?)))
        .collect();
    paired_ratio(&pairs, seed)
}

fn middle(numbers: &Numbers, arm: &str) -> Option<f64> {
    median(&numbers.get(arm)?.values().copied().collect::<Vec<_>>())
}

fn job_table(rows: &[Row], samples: &Samples, job: &str, heading: &Heading, look: Look) -> String {
    let mut table = Table::new();
    table.load_style(match look {
        Look::Terminal => TERMINAL,
        Look::Markdown => presets::ASCII_MARKDOWN,
    });
    let Some((base, others)) = heading.arms.split_first() else {
        return String::new();
    };
    let mut header = vec![String::new(), base.clone()];
    for arm in others {
        header.extend([arm.clone(), format!("{arm}/{base}"), "95 %".to_owned()]);
    }
    let columns = header.len();
    table.set_header(header);
    for row in rows {
        let cell = |arm: &str| {
            middle(&row.numbers, arm).map_or_else(|| "–".to_owned(), |value| write(value, row.kind))
        };
        let mut cells = vec![row.label.clone(), cell(base)];
        for arm in others {
            let ratio = ratio(&row.numbers, base, arm, heading.seed);
            cells.push(cell(arm));
            let none = || "–".to_owned();
            let (value, ends) = ratio.map_or_else(
                || (none(), none()),
                |ratio| {
                    let [value, low, high] = ratio_and_ends(ratio);
                    if ratio.pairs >= MEANINGFUL_LAUNCHES {
                        (value, format!("{low}–{high}"))
                    } else {
                        (significant(ratio.value), format!("n = {}", ratio.pairs))
                    }
                },
            );
            cells.extend([value, ends]);
        }
        table.add_row(cells);
    }
    let mut cells = vec!["launches".to_owned()];
    for (index, arm) in heading.arms.iter().enumerate() {
        // A peer has not every number, but each launch gives some.
        let counts = rows.iter().filter_map(|row| row.numbers.get(arm));
        let count = counts.map(BTreeMap::len).max().unwrap_or(0);
        cells.push(count.to_string());
        if index > 0 {
            cells.extend([String::new(), String::new()]);
        }
    }
    table.add_row(cells);
    for column in 1..columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut out = table.trim_fmt();
    for arm in &heading.arms {
        let failures = samples.failures(job, arm);
        if let Some(reason) = failures.first() {
            let count = failures.len();
            let plural = if count == 1 { "" } else { "es" };
            let _ = write!(out, "\n\n{arm}: {count} launch{plural} failed: {reason}");
        }
    }
    out
}

/// One arm's boot: how long it took, and its exits.
#[derive(Clone, Copy)]
struct Boot {
    time: f64,
    to_vmm: f64,
    in_kvm: f64,
}

impl Boot {
    /// The time that the exits take, each at what it costs by itself.
    fn exits_ns(self, costs: ExitCosts) -> f64 {
        self.to_vmm * costs.to_vmm + self.in_kvm * costs.in_kvm
    }
}

/// What the exits explain of a boot, and what they cannot.
fn accounts(samples: &Samples, job: &str, heading: &Heading) -> Vec<String> {
    let Some(costs) = heading.costs else {
        return Vec::new();
    };
    let of = |metric: &str, arm: &str| middle(&numbers(samples, job, metric)?, arm);
    let mut boots: Vec<(&str, Boot)> = Vec::new();
    for arm in &heading.arms {
        if let (Some(time), Some(exits), Some(to_vmm)) = (
            of("boot_to_init_ns", arm),
            of("exits_to_init", arm),
            of("user_exits_to_init", arm),
        ) {
            let in_kvm = (exits - to_vmm).max(0.0);
            boots.push((
                arm,
                Boot {
                    time,
                    to_vmm,
                    in_kvm,
                },
            ));
        }
    }
    let mut lines = vec![format!(
        "By `paravane doctor`, an exit to the VMM costs {} on this host, and one that KVM answers itself {}:",
        write(costs.to_vmm, Kind::Time),
        write(costs.in_kvm, Kind::Time),
    )];
    for (arm, boot) in &boots {
        let exits = boot.exits_ns(costs);
        lines.push(format!(
            "- {arm}: {} exits to the VMM and {} in KVM explain {} of {} ({:.0} %), {:.3} times the floor, \
             the same boot with every exit free; the rest is guest instructions, waiting, and the VMM's work at its exits.",
            write(boot.to_vmm, Kind::Count),
            write(boot.in_kvm, Kind::Count),
            write(exits, Kind::Time),
            write(boot.time, Kind::Time),
            100.0 * exits / boot.time,
            boot.time / (boot.time - exits),
        ));
    }
    if let Some(((base, full), others)) = boots.split_first() {
        for (arm, boot) in others {
            let saved = full.time - boot.time;
            let predicted = full.exits_ns(costs) - boot.exits_ns(costs);
            lines.push(format!(
                "- {arm} against {base}: {} saved, of which the exits saved predict {}. The residual of {} is work and \
                 waiting that {arm} does without, and what an exit costs beyond a bare one.",
                write(saved, Kind::Time),
                write(predicted, Kind::Time),
                write(saved - predicted, Kind::Time),
            ));
        }
    }
    lines
}

pub(crate) fn write(value: f64, kind: Kind) -> String {
    match kind {
        Kind::Time => {
            let (scale, unit) = match value.abs() {
                ns if ns >= 1e9 => (1e9, "s"),
                ns if ns >= 1e6 => (1e6, "ms"),
                ns if ns >= 1e3 => (1e3, "µs"),
                _ => (1.0, "ns"),
            };
            format!("{} {unit}", significant(value / scale))
        }
        Kind::Count if value.abs() >= 1000.0 => thousands(&format!("{value:.0}")),
        Kind::Count if value.fract() == 0.0 => format!("{value:.0}"),
        Kind::Count => significant(value),
    }
}

/// Three significant digits.
pub(crate) fn significant(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => thousands(&format!("{value:.0}")),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        v if v >= 0.1 => format!("{value:.3}"),
        v if v >= 0.01 => format!("{value:.4}"),
        v if v >= 0.001 => format!("{value:.5}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.2e}"),
    }
}

/// A ratio and the ends of its interval, with three significant digits, or with more (at most two) where the interval is so
/// narrow that its ends would look alike.
pub(crate) fn ratio_and_ends(ratio: Ratio) -> [String; 3] {
    let all = [ratio.value, ratio.low, ratio.high];
    let width = ratio.high - ratio.low;
    let (plain, mut unit) = match ratio.value {
        v if (1.0..10.0).contains(&v) => (2, 0.01),
        v if (0.1..1.0).contains(&v) => (3, 0.001),
        _ => return all.map(significant),
    };
    let mut decimals = plain;
    while width > 0.0 && width < unit && decimals < plain + 2 {
        decimals += 1;
        unit /= 10.0;
    }
    if decimals == plain {
        return all.map(significant);
    }
    all.map(|value| format!("{value:.decimals$}"))
}

fn thousands(digits: &str) -> String {
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0
            && (digits.len() - index).is_multiple_of(3)
            && digit.is_ascii_digit()
            && !out.ends_with('-')
        {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests;
