//! The report as Markdown.

use std::fmt::Write as _;

use serde_json::Value;

use super::claims::claims;
use super::model::{ArmFigures, Figures, Part, Report};
use crate::ops_table;
use crate::statistics::{MEANINGFUL_LAUNCHES, Ratio};
use crate::table::{Kind, Look, ratio_and_ends, significant, write};

/// What the figures are, for every reader of a report.
pub(super) const METHOD: &str = "Each launch is a whole virtual machine: one VMM process that boots one guest and ends. The arms are launched in turn, \
    in randomised ABBA blocks, so that what changes slowly on a machine falls on all of them alike. A figure is the median of \
    the launches. A ratio is the arm's median by that of the first arm; its interval is the 95 % percentile bootstrap over pairs \
    of launches. The A/A twin is the first arm once more, under another name: what its interval holds is noise. An arm has a \
    gain or a loss only where its own interval leaves out 1 and its ratio lies outside the twin's interval. Exits are counted \
    by KVM in every launch, whether somebody reads them or not; reading them happens at the marks before and after what is timed.";

/// The whole text.
pub(super) fn text(report: &Report) -> String {
    let mut out = String::from("# Paired benchmarks of full and paravirtual guests\n\n");
    let _ = writeln!(out, "{METHOD}\n");
    out.push_str("## The claims\n\n| claim | measured | verdict |\n|---|---|---|\n");
    for claim in claims(report) {
        let rows: Vec<&str> = claim.evidence.iter().map(|row| row.text.as_str()).collect();
        let rows = if rows.is_empty() {
            "–".to_owned()
        } else {
            rows.join("<br>")
        };
        let _ = writeln!(
            out,
            "| **{}** {} | {} | {} |",
            claim.id,
            claim.text,
            cell(&rows),
            cell(&claim.verdict)
        );
    }
    for part in &report.parts {
        part_text(&mut out, part);
    }
    for operations in &report.operations {
        for section in &operations.sections {
            let _ = writeln!(out, "\n## {}\n", section.title);
            out.push_str(&ops_table::text(section, Look::Markdown));
            out.push_str("\n\n");
            for note in &section.notes {
                let _ = writeln!(out, "- {}", cell(note));
            }
        }
        let _ = writeln!(out, "\n{}", operations.origin);
    }
    out
}

fn part_text(out: &mut String, part: &Part) {
    let _ = writeln!(
        out,
        "\n## Suite `{}` on host class `{}`\n",
        part.suite, part.host
    );
    let _ = writeln!(out, "{}\n", machine_line(part));
    if part.smoke {
        out.push_str("**A try with a tenth of the rounds: not to be published.**\n\n");
    }
    let Some((base, others)) = part.arms.split_first() else {
        return;
    };
    let _ = write!(out, "| job | {base} |");
    for arm in others {
        let _ = write!(out, " {arm}/{base}, 95 % |");
    }
    out.push_str("\n|---|---|");
    out.push_str(&"---|".repeat(others.len()));
    out.push('\n');
    for figures in &part.jobs {
        let find = |name: &str| figures.arms.iter().find(|arm| arm.name == name);
        let first = find(base).map_or_else(|| "–".to_owned(), |arm| each(figures, arm));
        let _ = write!(out, "| {} | {first} |", cell(&figures.job.title));
        for arm in others {
            let text = find(arm).and_then(|arm| Some((arm.ratio?, arm)));
            let text = text.map_or_else(
                || "–".to_owned(),
                |(ratio, arm)| format!("{}, {}", interval(ratio), arm.verdict.word()),
            );
            let _ = write!(out, " {text} |");
        }
        out.push('\n');
    }
    out.push('\n');
    peers_text(out, part);
    for (arm, why) in &part.absent {
        let _ = writeln!(out, "- {arm} is absent: {}", cell(why));
    }
    for figures in &part.jobs {
        for (arm, count, why) in &figures.failures {
            let _ = writeln!(
                out,
                "- {}, {arm}: {count} failed: {}",
                figures.job.title,
                cell(why)
            );
        }
    }
}

fn peers_text(out: &mut String, part: &Part) {
    let with = part.jobs.iter().filter(|figures| !figures.peers.is_empty());
    let mut any = false;
    for figures in with {
        if !any {
            out.push_str("Peers, by what all of them have: the guest's own clock, or the whole process for a boot.\n\n");
            any = true;
        }
        let arms: Vec<String> = figures
            .peers
            .iter()
            .map(|arm| {
                let ratio = arm
                    .ratio
                    .map_or(String::new(), |r| format!(", {}", interval(r)));
                format!("{} {}{ratio}", arm.name, write(arm.median, Kind::Time))
            })
            .collect();
        let _ = writeln!(out, "- {}: {}", figures.job.title, arms.join("; "));
    }
    if any {
        out.push('\n');
    }
}

/// The machine in one line.
pub(super) fn machine_line(part: &Part) -> String {
    let text = |name: &str| {
        let value = part.machine.get(name);
        value.map_or("unknown".to_owned(), |value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        })
    };
    format!(
        "{}, {} CPU(s), Linux {}, paravane {}; seed {}; {} launches an arm at most. Time: {}.",
        text("cpu"),
        text("cpus"),
        text("kernel"),
        text("paravane"),
        part.seed,
        part.jobs
            .iter()
            .flat_map(|figures| &figures.arms)
            .map(|arm| arm.raw.len())
            .max()
            .unwrap_or(0),
        // Older results do not say it, and have no other.
        part.machine
            .get("time")
            .and_then(Value::as_str)
            .unwrap_or("as it passes"),
    )
}

/// What a round takes, or a boot.
pub(super) fn each(figures: &Figures, arm: &ArmFigures) -> String {
    let rounds = crate::statistics::float(figures.job.rounds.max(1));
    let time = write(arm.median / rounds, figures.job.number());
    if figures.job.work.is_some() {
        format!("{time} a {}", figures.job.round)
    } else {
        time
    }
}

/// A ratio with its interval.
pub(super) fn interval(ratio: Ratio) -> String {
    if ratio.pairs < MEANINGFUL_LAUNCHES {
        return format!("{} (n = {})", significant(ratio.value), ratio.pairs);
    }
    let [value, low, high] = ratio_and_ends(ratio);
    format!("{value} ({low} to {high})")
}

/// Text within a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
