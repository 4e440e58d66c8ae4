//! The tables of `paravane bench ops`.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use crate::attribution::{Difference, Verdict, Worth, worth};
use crate::ops::{ALONE, BARE, BARE_TWIN, FULL, LEFT_OUT, OPERATIONS, PARA, PEER, TWIN};
use crate::ops_results::Results;
use crate::statistics::{MEANINGFUL_LAUNCHES, Ratio, median, paired_ratio};
use crate::table::{Kind, Look, TERMINAL, ratio_and_ends, significant, write};

/// A table with its title and what stands below it.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
    pub(crate) notes: Vec<String>,
}

/// All that there is to show.
pub(crate) fn sections(results: &Results) -> Vec<Section> {
    let mut sections = Vec::new();
    if !results.arms(OPERATIONS).is_empty() {
        sections.push(cycles(results));
        sections.push(Section {
            notes: notes(results, OPERATIONS, operations_notes(results)),
            ..exits(results)
        });
    }
    for boots in &BOOTS {
        if !results.arms(boots.job).is_empty() {
            sections.push(attribution(results, boots));
        }
    }
    sections
}

/// What holds for all tables.
pub(crate) fn origin(results: &Results) -> String {
    format!(
        "Host class `{}`, seed {}. Intervals are 95 %, by paired bootstrap over launches; none is given of fewer than \
         {MEANINGFUL_LAUNCHES}.",
        results.host, results.seed,
    )
}

/// Draws everything.
pub(crate) fn draw(results: &Results, look: Look) -> String {
    let mut out = String::new();
    let mark = if look == Look::Markdown { "## " } else { "" };
    for section in sections(results) {
        let _ = writeln!(out, "{mark}{}\n", section.title);
        let _ = writeln!(out, "{}\n", text(&section, look));
        for note in &section.notes {
            let _ = writeln!(out, "{note}");
        }
        if !section.notes.is_empty() {
            out.push('\n');
        }
    }
    let _ = writeln!(out, "{}", origin(results));
    out
}

/// What stands below a table: what it means, and the launches that failed.
fn notes(results: &Results, job: &str, mut notes: Vec<String>) -> Vec<String> {
    for arm in results.arms(job) {
        let failures = results.failures(job, arm);
        if let Some(reason) = failures.first() {
            notes.push(format!("{arm}: {} failed: {reason}", failures.len()));
        }
    }
    notes
}

/// The table alone.
pub(crate) fn text(section: &Section, look: Look) -> String {
    let mut table = Table::new();
    table.load_style(match look {
        Look::Terminal => TERMINAL,
        Look::Markdown => presets::ASCII_MARKDOWN,
    });
    table.set_header(&section.header);
    for row in &section.rows {
        table.add_row(row);
    }
    for column in 1..section.header.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

/// The arms that get a column: twins only show what a difference must exceed.
fn shown(results: &Results) -> Vec<String> {
    let arms = results.arms(OPERATIONS);
    arms.iter()
        .filter(|arm| !arm.contains('#'))
        .cloned()
        .collect()
}

/// The median over the launches of one metric.
fn middle(results: &Results, metric: &str, arm: &str) -> Option<f64> {
    let values = results.values(OPERATIONS, metric, arm);
    median(&values.into_values().collect::<Vec<_>>())
}

fn ratio(results: &Results, op: &str, base: &str, arm: &str) -> Option<Ratio> {
    let pairs = results.pairs(OPERATIONS, &format!("{op}.median"), base, arm);
    paired_ratio(&pairs.into_values().collect::<Vec<_>>(), results.seed)
}

fn ratio_cell(ratio: Option<Ratio>) -> String {
    match ratio {
        Some(r) if r.pairs >= MEANINGFUL_LAUNCHES => {
            let [value, low, high] = ratio_and_ends(r);
            format!("{value} ({low}–{high})")
        }
        Some(r) => significant(r.value),
        None => "–".to_owned(),
    }
}

/// What the ratio to the peer means beside that of the twins.
fn judged(ratio: Option<Ratio>, twins: Option<Ratio>) -> &'static str {
    let (Some(ratio), Some(twins)) = (ratio, twins) else {
        return "";
    };
    if ratio.pairs.min(twins.pairs) < MEANINGFUL_LAUNCHES {
        ""
    } else if ratio.low > twins.high.max(1.0) {
        "worse"
    } else if ratio.high < twins.low.min(1.0) {
        "better"
    } else {
        ""
    }
}

fn cycles(results: &Results) -> Section {
    let shown = shown(results);
    let mut header = words(["operation", "facility"]);
    header.extend(shown.iter().map(|arm| format!("{arm}: median / 99 %")));
    header.extend(words(["para/full", "para/kvm-pv", "twins", ""]));
    let mut rows = Vec::new();
    for operation in &results.measured.operations {
        let op = &operation.op;
        let mut cells = vec![operation.what.clone(), operation.facility.clone()];
        for arm in &shown {
            let of = |name: &str| middle(results, &format!("{op}.{name}"), arm);
            cells.push(match (of("median"), of("p99")) {
                (Some(median), Some(tail)) => format!(
                    "{} / {}",
                    write(median, Kind::Count),
                    write(tail, Kind::Count)
                ),
                _ => "–".to_owned(),
            });
        }
        let (to_peer, twins) = (
            ratio(results, op, PEER, PARA),
            ratio(results, op, PARA, TWIN),
        );
        cells.push(ratio_cell(ratio(results, op, FULL, PARA)));
        cells.push(ratio_cell(to_peer));
        cells.push(ratio_cell(twins));
        cells.push(judged(to_peer, twins).to_owned());
        rows.push(cells);
    }
    let mut cells = words(["launches", ""]);
    let launches = |arm: &String| {
        results
            .values(OPERATIONS, "empty.median", arm)
            .len()
            .to_string()
    };
    cells.extend(shown.iter().map(launches));
    cells.resize(header.len(), String::new());
    rows.push(cells);
    Section {
        title: "Operations, in cycles",
        header,
        rows,
        notes: Vec::new(),
    }
}

fn exits(results: &Results) -> Section {
    let shown = shown(results);
    let mut header = words(["operation"]);
    for arm in &shown {
        header.extend([arm.clone(), "to the VMM".to_owned()]);
    }
    let mut rows = Vec::new();
    for operation in &results.measured.operations {
        let op = &operation.op;
        let mut cells = vec![operation.what.clone()];
        for arm in &shown {
            let of = |name: &str| middle(results, &format!("{op}.{name}"), arm);
            for exits in [of("exits"), of("user_exits")] {
                cells.push(match (exits, of("n")) {
                    (Some(exits), Some(rounds)) if rounds > 0.0 => format!("{:.2}", exits / rounds),
                    _ => "–".to_owned(),
                });
            }
        }
        rows.push(cells);
    }
    Section {
        title: "Operations, in exits a round",
        header,
        rows,
        notes: Vec::new(),
    }
}

fn operations_notes(results: &Results) -> Vec<String> {
    let frequency = match results.measured.tsc_khz {
        0 => String::new(),
        khz => format!(" A cycle is one of the TSC, which counts {khz} kHz."),
    };
    vec![
        format!(
            "Each launch gives the median and the 99 % quantile of its rounds; the table has the medians over launches.{frequency} \
             What measuring costs (the first row) is in every other row."
        ),
        "Exits are those of the whole machine during the rounds: interrupts of the host are among them.".to_owned(),
        "`twins` is para against itself. `worse` and `better`: para/kvm-pv lies beyond what the twins show.".to_owned(),
    ]
}

/// A difference with its interval; `unit` writes a number.
fn cell(difference: Difference, unit: Kind) -> String {
    if difference.pairs < MEANINGFUL_LAUNCHES {
        return write(difference.value, unit);
    }
    format!(
        "{} ({} to {})",
        write(difference.value, unit),
        write(difference.low, unit),
        write(difference.high, unit)
    )
}

/// Boots with and without.
struct Boots {
    job: &'static str,
    title: &'static str,
    /// What is subtracted from what.
    what: &'static str,
    /// The guest that the others are compared with, and its twin.
    base: &'static str,
    twin: &'static str,
    /// What comes before the facility in the others' names.
    prefix: &'static str,
    /// Whether the others are the ones that have it.
    added: bool,
}

const BOOTS: [Boots; 2] = [
    Boots {
        job: LEFT_OUT,
        title: "What each facility is worth in a boot",
        what: "Boot to init with the kernel's messages: para without the facility less para with everything",
        base: PARA,
        twin: TWIN,
        prefix: "para-",
        added: false,
    },
    Boots {
        job: ALONE,
        title: "What each facility is worth by itself",
        what: "Quiet boot to init, for a console of bytes would hide all else: para with nothing but its clock less para with its clock \
               and the facility",
        base: BARE,
        twin: BARE_TWIN,
        prefix: "para+clock+",
        added: true,
    },
];

fn attribution(results: &Results, boots: &Boots) -> Section {
    let header = words([
        "facility",
        "exits to the VMM removed",
        "exits in KVM removed",
        "time saved",
        "predicted by the exits",
        "residual",
        "",
    ]);
    let mut rows = Vec::new();
    let twins = worth(results, boots.job, boots.base, boots.twin);
    let mut add = |name: &str, worth: Worth, verdict: &str| {
        let mut cells = vec![
            name.to_owned(),
            cell(worth.to_vmm, Kind::Count),
            cell(worth.in_kvm, Kind::Count),
            cell(worth.time, Kind::Time),
        ];
        match worth.account {
            Some((predicted, residual)) => {
                cells.extend([cell(predicted, Kind::Time), cell(residual, Kind::Time)]);
            }
            None => cells.extend(words(["–", "–"])),
        }
        cells.push(verdict.to_owned());
        rows.push(cells);
    };
    if let Some(twins) = twins {
        add("(twins)", twins, "");
    }
    for arm in results.arms(boots.job) {
        let Some(facility) = arm.strip_prefix(boots.prefix) else {
            continue;
        };
        let (with, without) = if boots.added {
            (arm.as_str(), boots.base)
        } else {
            (boots.base, arm.as_str())
        };
        let Some(worth) = worth(results, boots.job, with, without) else {
            continue;
        };
        let verdict = match twins.map(|twins| worth.time.verdict(&twins.time)) {
            Some(Verdict::Saves) => "saves",
            Some(Verdict::Costs) => "costs",
            Some(Verdict::Nothing) => "not beyond the twins",
            Some(Verdict::TooFew) | None => "",
        };
        add(facility, worth, verdict);
    }
    Section {
        title: boots.title,
        header,
        rows,
        notes: notes(results, boots.job, attribution_notes(results, boots)),
    }
}

fn attribution_notes(results: &Results, boots: &Boots) -> Vec<String> {
    let pairs = results.values(boots.job, "boot_to_init_ns", boots.base);
    let mut notes = vec![format!("{}; {} pairs.", boots.what, pairs.len())];
    match results.costs {
        Some(costs) => notes.push(format!(
            "By `paravane doctor`, an exit to the VMM costs {} here, and one that KVM serves itself {}. The residual is work \
             and waiting that the facility spares, and what an exit costs beyond a bare one.",
            write(costs.to_vmm, Kind::Time),
            write(costs.in_kvm, Kind::Time),
        )),
        None => notes.push("What an exit costs on this host is not known.".to_owned()),
    }
    notes.push(
        "Exits in KVM have the host's interrupts among them, which come with the time that passes: on a busy machine that is \
         most of their spread."
            .to_owned(),
    );
    notes.push(
        "Where a guest has one processor, ipi, tlb and smp have nothing to do: the operations, which are of two, show their worth."
            .to_owned(),
    );
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::ops_results::tests::{line, sample, saved};
    use crate::sample::Outcome;

    fn results(lines: impl IntoIterator<Item = String>) -> Results {
        Results::of(&saved(lines))
    }

    /// Six launches of every arm; `para` takes so many cycles for a CPUID.
    fn operations(para: u64) -> Results {
        results((1..=6).flat_map(|launch| {
            let noise = u64::from(launch % 3);
            [
                (FULL, "cpuid", 4_000),
                (PEER, "cpuid", 2_000),
                ("para", "cpuid", para),
                ("para#2", "cpuid", para),
                ("para", "call", 3_000),
            ]
            .into_iter()
            .flat_map(move |(arm, op, cycles)| {
                [
                    line(OPERATIONS, arm, launch, &format!("{op}.n"), 1_000),
                    line(
                        OPERATIONS,
                        arm,
                        launch,
                        &format!("{op}.median"),
                        cycles + noise,
                    ),
                    line(OPERATIONS, arm, launch, &format!("{op}.p99"), cycles * 2),
                    line(OPERATIONS, arm, launch, &format!("{op}.exits"), 1_010),
                ]
            })
        }))
    }

    fn row(text: &str, begins: &str) -> String {
        let row = text.lines().find(|line| line.contains(begins));
        row.unwrap_or_else(|| panic!("no row {begins}: {text}"))
            .to_owned()
    }

    #[test]
    fn an_operation_has_median_and_tail_of_every_guest_and_is_judged_against_the_peer() {
        for (para, verdict) in [(200, "better"), (9_000, "worse")] {
            let text = draw(&operations(para), Look::Markdown);
            let row = row(&text, "| CPUID");
            assert!(row.contains("4,001 / 8,000"), "{row}");
            assert!(row.contains(verdict), "{row}");
        }
        let text = draw(&operations(2_000), Look::Markdown);
        assert!(!row(&text, "| CPUID").contains("tter"), "{text}");
        assert!(!row(&text, "| CPUID").contains("worse"), "{text}");
    }

    #[test]
    fn what_a_guest_does_not_have_is_a_dash_and_exits_are_those_of_a_round() {
        let text = draw(&operations(200), Look::Markdown);
        let (cycles, exits) = text.split_once("in exits a round").unwrap();
        assert_eq!(row(cycles, "| null call").matches('–').count(), 5, "{text}");
        assert!(row(exits, "| CPUID").contains("1.01"), "{text}");
    }

    #[test]
    fn a_facility_is_judged_against_the_twins_and_a_failed_one_says_why() {
        let boots = (1..=6).flat_map(|launch| {
            [
                (LEFT_OUT, PARA, 10),
                (LEFT_OUT, TWIN, 11),
                (LEFT_OUT, "para-console", 50),
                (ALONE, BARE, 90),
                (ALONE, BARE_TWIN, 89),
                (ALONE, "para+clock+console", 60),
            ]
            .into_iter()
            .flat_map(move |(job, arm, ms)| {
                [
                    line(job, arm, launch, "boot_to_init_ns", ms * 1_000_000),
                    line(job, arm, launch, "exits_to_init", ms * 10),
                    line(job, arm, launch, "user_exits_to_init", ms),
                ]
            })
        });
        let failed = Outcome::Failed {
            failed: "no clock".to_owned(),
        };
        let failed = sample(LEFT_OUT, "para-clock", 1, failed);
        let text = draw(&results(boots.chain([failed])), Look::Markdown);
        let (left_out, alone) = text.split_once("by itself").unwrap();
        for (part, saved) in [(left_out, "40.0 ms"), (alone, "30.0 ms")] {
            let row = row(part, "| console");
            assert!(row.contains(saved) && row.contains("saves"), "{row}");
        }
        assert!(text.contains("para-clock: 1 failed: no clock"), "{text}");
        assert!(!text.contains("| clock"), "{text}");
    }
}
