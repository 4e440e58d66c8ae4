//! The flows side by side: as text, and as a sequence diagram in SVG.

use std::fmt::Write as _;

use maud::{PreEscaped, html};

use super::flow::{Crossing, Flow, Run, fold};

/// Runs of crossings that are drawn; what is left out is said.
const MOST: usize = 40;

/// The flows as text: a line a run of crossings.
pub(super) fn text(operation: &str, flows: &[(String, Flow)]) -> String {
    let mut out = format!("One operation, `{operation}`, between the guest's two marks.\n");
    for (arm, flow) in flows {
        let _ = writeln!(out, "\n{arm}: {}", summary(flow));
        let runs = fold(&flow.crossings);
        for run in runs.iter().take(MOST) {
            for (index, crossing) in run.turn.iter().enumerate() {
                let count = if index == 0 && run.times > 1 {
                    format!("{:>5} ×", run.times)
                } else {
                    " ".repeat(7)
                };
                let _ = writeln!(out, "{count} {}", path(crossing));
                for what in &crossing.elsewhere {
                    let _ = writeln!(out, "        ─ {what}");
                }
            }
            let _ = writeln!(
                out,
                "        {:>8.0} µs in the guest before, {:.0} µs away",
                run.guest_us, run.away_us
            );
        }
        if runs.len() > MOST {
            let _ = writeln!(out, "        … and {} more", runs.len() - MOST);
        }
    }
    out
}

fn summary(flow: &Flow) -> String {
    let out = flow.crossings.iter().filter(|c| c.to_vmm.is_some()).count();
    let away: f64 = flow.crossings.iter().map(|c| c.away_us).sum();
    format!(
        "{} exits, {out} of them to the VMM; {:.0} µs in all, {away:.0} µs of them outside the guest",
        flow.crossings.len(),
        flow.took_us,
    )
}

/// The way of one crossing in a line.
fn path(crossing: &Crossing) -> String {
    let mut line = format!("guest ─ {} → KVM", label(crossing));
    if let Some(exit) = &crossing.to_vmm {
        let _ = write!(line, " ─ {exit} → VMM");
    }
    if crossing.injected > 0 {
        line += " ─ interrupt injected → guest";
    }
    line
}

fn label(crossing: &Crossing) -> String {
    if crossing.what.is_empty() {
        crossing.reason.clone()
    } else {
        format!("{}: {}", crossing.reason, crossing.what)
    }
}

/// Where the lanes of one flow are, from its left edge.
const LANES: [(f64, &str); 3] = [(50.0, "guest"), (260.0, "KVM"), (410.0, "VMM")];
const FLOW_WIDTH: f64 = 500.0;
const TOP: f64 = 112.0;
const STEP: f64 = 26.0;
/// A line about another thread.
const LINE: f64 = 13.0;

fn rows(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(0))
}

/// The flows as one SVG picture.
pub(super) fn svg(operation: &str, flows: &[(String, Flow)]) -> String {
    let lines = |run: &Run| {
        run.turn
            .iter()
            .map(|crossing| crossing.elsewhere.len())
            .sum()
    };
    let tall = |flow: &Flow| {
        let runs = fold(&flow.crossings);
        let runs = runs.iter().take(MOST);
        runs.map(|run| rows(run.turn.len() + 1) * STEP + rows(lines(run)) * LINE)
            .sum()
    };
    let most = flows
        .iter()
        .map(|(_, flow)| tall(flow))
        .fold(0.0_f64, f64::max);
    let height = TOP + most + 2.0 * STEP;
    let count = u32::try_from(flows.len()).unwrap_or(1);
    let width = FLOW_WIDTH * f64::from(count);
    let markup = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {width} {height}")) width=(width) height=(height) {
            style { (PreEscaped(include_str!("trace.css"))) }
            rect.ground width="100%" height="100%" {}
            text.title x="20" y="24" { "One operation: " (operation) }
            @for (index, (arm, flow)) in (0_u32..).zip(flows) {
                g transform=(format!("translate({} 0)", f64::from(index) * FLOW_WIDTH)) {
                    (one(arm, flow, height))
                }
            }
        }
    };
    markup.into_string()
}

fn one(arm: &str, flow: &Flow, height: f64) -> maud::Markup {
    let runs = fold(&flow.crossings);
    let [(guest, _), (kvm, _), (vmm, _)] = LANES;
    let mut y = TOP;
    let mut rows = Vec::new();
    for run in runs.iter().take(MOST) {
        rows.push(turn(run, &mut y, guest, kvm, vmm));
    }
    html! {
        text.arm x="20" y="46" { (arm) }
        text.note x="20" y="62" { (summary(flow)) }
        @for (x, name) in LANES {
            text.lane x=(x) y="80" text-anchor="middle" { (name) }
            line.life x1=(x) x2=(x) y1="86" y2=(height - 8.0) {}
        }
        @for row in rows { (row) }
        @if runs.len() > MOST {
            text.note x=(guest + 8.0) y=(y + 12.0) { "… and " (runs.len() - MOST) " more" }
        }
        @if runs.is_empty() {
            text.note x=(guest + 8.0) y=(y + 4.0) { "no exit at all" }
        }
    }
}

/// The arrows of one run of crossings; moves `y` below them.
fn turn(run: &Run, y: &mut f64, guest: f64, kvm: f64, vmm: f64) -> maud::Markup {
    let top = *y - 14.0;
    let mut arrows = Vec::new();
    for crossing in &run.turn {
        arrows.push((
            *y,
            label(crossing),
            crossing.to_vmm.clone(),
            &crossing.elsewhere,
        ));
        *y += STEP + LINE * rows(crossing.elsewhere.len());
    }
    let back = *y - STEP + 10.0;
    let out = run.turn.iter().any(|crossing| crossing.to_vmm.is_some());
    let injected = run.turn.iter().any(|crossing| crossing.injected > 0);
    let from = if out { vmm } else { kvm };
    *y += STEP;
    html! {
        @for (at, text, exit, elsewhere) in arrows {
            (arrow(guest, kvm, at))
            text.call x=(guest + 8.0) y=(at - 4.0) { (text) }
            @if let Some(exit) = exit {
                (arrow(kvm, vmm, at))
                text.call x=(kvm + 8.0) y=(at - 4.0) { (exit.trim_start_matches("KVM_EXIT_")) }
            }
            @for (index, what) in elsewhere.iter().enumerate() {
                text.note x=(vmm + 60.0) y=(at + LINE * rows(index + 1)) text-anchor="end" { (what) }
            }
        }
        g.back { (arrow(from, guest, back)) }
        text.note x=(guest + 8.0) y=(back + 12.0) {
            @if injected { "interrupt injected; " }
            (format!("{:.0} µs away", run.away_us))
        }
        @if run.times > 1 {
            rect.loop x=(guest - 42.0) y=(top) width=(vmm - guest + 56.0) height=(back - top + 16.0) {}
            text.times x=(guest - 38.0) y=(top + 12.0) { (run.times) " ×" }
        }
    }
}

fn arrow(from: f64, to: f64, y: f64) -> maud::Markup {
    let head = if to > from { -6.0 } else { 6.0 };
    html! {
        path.arrow d=(format!("M{from} {y}H{to}m{head} -4L{to} {y}l{head} 4")) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        let crossing = Crossing {
            reason: "io".into(),
            what: "OUT 0x3f8 '<'".into(),
            to_vmm: Some("KVM_EXIT_IO".into()),
            guest_us: 3.0,
            away_us: 80.0,
            injected: 0,
            elsewhere: vec!["disk: pread64".into()],
        };
        Flow {
            crossings: vec![crossing; 64],
            took_us: 5312.0,
        }
    }

    #[test]
    fn repetitions_are_one_picture_with_a_count() {
        let flows = [
            ("full".to_owned(), flow()),
            (
                "para".to_owned(),
                Flow {
                    crossings: Vec::new(),
                    took_us: 9.0,
                },
            ),
        ];
        let text = text("console:64", &flows);
        assert!(
            text.contains("   64 × guest ─ io: OUT 0x3f8 '<' → KVM ─ KVM_EXIT_IO → VMM"),
            "{text}"
        );
        assert!(text.contains("─ disk: pread64") && svg("x", &flows).contains(">disk: pread64<"));
        assert!(
            text.contains("64 exits, 64 of them to the VMM; 5312 µs in all, 5120 µs"),
            "{text}"
        );
        let svg = svg("console:64", &flows);
        assert!(
            svg.contains("64 ×") && svg.contains("no exit at all"),
            "{svg}"
        );
        assert!(svg.contains("'&lt;'") && !svg.contains("'<'"));
    }
}
