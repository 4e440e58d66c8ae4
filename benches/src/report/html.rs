//! The report as one HTML page: no script, no font, no file beside it; light and dark as the reader's system says.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::claims::claims;
use super::markdown::{METHOD, each, interval, machine_line};
use super::model::{ArmFigures, Figures, Operations, Part, Report, Verdict};
use super::plot::{Scale, axis, lateness, launches, ratio};
use crate::table::{Kind, write};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Paravane: paired benchmarks" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "Full and paravirtual guests, side by side" }
                    p {
                        "One Linux kernel tree, booted on one small VMM: "
                        b { "full" } " is the unmodified kernel on a legacy PC, "
                        b { "kvm-pv" } " the same kernel with KVM's own paravirtual features, "
                        b { "para" } " the patched kernel on Paravane's ABI, " b { "direct" } " that kernel without any privilege."
                    }
                    nav {
                        a href="#claims" { "Claims" }
                        @for part in &report.parts {
                            a href=(format!("#{}-{}", part.host, part.suite)) { (part.suite) " (" (part.host) ")" }
                        }
                        @if !report.operations.is_empty() { a href="#operations" { "Operations" } }
                        a href="#method" { "Method" }
                    }
                }
                main {
                    (claims_section(report))
                    @for part in &report.parts { (part_section(part)) }
                    @for operations in &report.operations { (operations_section(operations)) }
                    section id="method" {
                        h2 { "How it was measured" }
                        p { (METHOD) }
                        @for part in &report.parts {
                            details {
                                summary { "The machine of suite " (part.suite) " (" (part.host) ")" }
                                pre { (serde_json::to_string_pretty(&part.machine).unwrap_or_default()) }
                            }
                        }
                    }
                }
            }
        }
    };
    markup.into_string()
}

fn claims_section(report: &Report) -> Markup {
    html! {
        section id="claims" {
            h2 { "The claims, and what was measured" }
            p { "What a textbook's chapter on virtualization says, row by row." }
            @for claim in claims(report) {
                article.claim id=(claim.id) {
                    h3 { (claim.id) ". " (claim.text) }
                    @if !claim.evidence.is_empty() {
                        ul {
                            @for row in &claim.evidence {
                                li {
                                    @match &row.anchor {
                                        Some(anchor) => a href=(format!("#{anchor}")) { (row.text) },
                                        None => (row.text),
                                    }
                                }
                            }
                        }
                    }
                    p { b { "Verdict: " } (claim.verdict) "." }
                }
            }
        }
    }
}

fn part_section(part: &Part) -> Markup {
    let base = part.arms.first().map_or("", |arm| arm);
    let scale = Scale::of(part.jobs.iter().flat_map(|figures| &figures.arms));
    html! {
        section id=(format!("{}-{}", part.host, part.suite)) {
            h2 { "Suite " (part.suite) " on host class " (part.host) }
            p.machine { (machine_line(part)) }
            @if part.smoke {
                p.warning { "A try with a tenth of the rounds: not to be published." }
            }
            (twins(part))
            div.wide {
                table {
                    thead {
                        tr {
                            th { "job" } th { "arm" } th.number { "median" } th.number { "exits" }
                            th { "by " (base) ", 95 %" } th.picture { (axis(scale)) } th { "verdict" }
                        }
                    }
                    @for figures in &part.jobs {
                        tbody {
                            @for (index, arm) in figures.arms.iter().enumerate() {
                                tr {
                                    @if index == 0 {
                                        th.job rowspan=(figures.arms.len()) scope="rowgroup" {
                                            a href=(format!("#{}", part.anchor(&figures.job))) { (figures.job.title) }
                                        }
                                    }
                                    (arm_cells(figures, arm, scale))
                                }
                            }
                        }
                    }
                }
            }
            @for (arm, why) in &part.absent { p.warning { (arm) " is absent: " (why) "." } }
            (peers(part))
            @if let Some(costs) = part.costs {
                p {
                    "By " code { "paravane doctor" } ", an exit to the VMM costs " (write(costs.to_vmm, Kind::Time))
                    " here, and one that KVM answers itself " (write(costs.in_kvm, Kind::Time)) "."
                }
            }
            h3 { "Raw samples" }
            @for figures in &part.jobs { (raw(part, figures)) }
        }
    }
}

fn operations_section(operations: &Operations) -> Markup {
    html! {
        section id="operations" {
            h2 { "Privileged operations, one by one" }
            p.machine { (operations.origin) }
            @for section in &operations.sections {
                h3 { (section.title) }
                div.wide {
                    table {
                        thead { tr { @for name in &section.header { th { (name) } } } }
                        tbody {
                            @for row in &section.rows {
                                tr {
                                    @for (index, cell) in row.iter().enumerate() {
                                        @if index == 0 { th.job scope="row" { (cell) } } @else { td.number { (cell) } }
                                    }
                                }
                            }
                        }
                    }
                }
                @for note in &section.notes { p { (note) } }
            }
        }
    }
}

fn arm_cells(figures: &Figures, arm: &ArmFigures, scale: Scale) -> Markup {
    let class = match arm.verdict {
        Verdict::Gain => "gain",
        Verdict::Loss => "loss",
        _ => "",
    };
    html! {
        td { (arm.name) }
        td.number { (each(figures, arm)) }
        td.number { @if let Some(exits) = arm.exits { (write(exits, Kind::Count)) } }
        td.number { @if let Some(ratio) = arm.ratio { (interval(ratio)) } @else { "1" } }
        td.picture { (ratio(scale, figures, arm)) }
        td class=(class) { (arm.verdict.word()) }
    }
}

/// In how many jobs the twin's interval holds 1, as it must in 19 of 20.
fn twins(part: &Part) -> Markup {
    let twins: Vec<_> = part
        .jobs
        .iter()
        .filter_map(|figures| figures.twin)
        .collect();
    let hold = twins
        .iter()
        .filter(|t| t.low <= 1.0 && t.high >= 1.0)
        .count();
    html! {
        @if twins.is_empty() {
            p { "There is no A/A twin with enough launches: small differences may be noise." }
        } @else {
            p { "The A/A twin's interval holds 1 in " (hold) " of " (twins.len()) " jobs; the bands show how wide it is." }
        }
    }
}

fn peers(part: &Part) -> Markup {
    let with: Vec<_> = part
        .jobs
        .iter()
        .filter(|figures| !figures.peers.is_empty())
        .collect();
    html! {
        @if !with.is_empty() {
            h3 { "Peers" }
            p { "Other VMMs with the same kernel and initramfs, by what all of them have: the guest's own clock, or for a boot the whole process." }
            div.wide {
                table {
                    thead { tr { th { "job" } th { "VMM" } th.number { "time" } th { "ratio, 95 %" } } }
                    @for figures in with {
                        tbody {
                            @for (index, arm) in figures.peers.iter().enumerate() {
                                tr {
                                    @if index == 0 {
                                        th.job rowspan=(figures.peers.len()) scope="rowgroup" { (figures.job.title) }
                                    }
                                    td { (arm.name) }
                                    td.number { (each(figures, arm)) }
                                    td.number { @if let Some(ratio) = arm.ratio { (interval(ratio)) } @else { "1" } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn raw(part: &Part, figures: &Figures) -> Markup {
    html! {
        details {
            summary { (figures.job.title) }
            // Within, so that a link to it opens what it is in.
            p id=(part.anchor(&figures.job)) {
                (figures.job.what) " Facility under test: " (figures.job.facility) ". "
                @if figures.job.work.is_some() { (write(crate::statistics::float(figures.job.rounds), Kind::Count)) " rounds a launch." }
            }
            @if figures.arms.iter().any(|arm| !arm.late.is_empty()) {
                p { "How late, in microseconds; a bar is the share of an arm's sleeps." }
                (lateness(figures))
            }
            (launches(figures))
            div.wide {
                table {
                    thead { tr { th { "launch" } @for arm in &figures.arms { th.number { (arm.name) ", " (figures.job.unit) } } } }
                    tbody {
                        @let most = figures.arms.iter().filter_map(|arm| arm.raw.keys().last()).max();
                        @for launch in 1..=most.copied().unwrap_or(0) {
                            tr {
                                td { (launch) }
                                @for arm in &figures.arms {
                                    td.number { @if let Some(value) = arm.raw.get(&launch) { (value) } @else { "–" } }
                                }
                            }
                        }
                    }
                }
            }
            @for (arm, count, why) in &figures.failures {
                p.warning { (arm) ": " (count) " failed: " (why) }
            }
        }
    }
}
