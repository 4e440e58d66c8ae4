//! Doctor's report for people.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use super::host::HostClass;
use super::probes::NOTES;
use super::{Crossing, Instruction, Report};

/// Terminal colours, or nothing.
#[derive(Clone, Copy)]
struct Colours {
    on: bool,
}

impl Colours {
    fn paint(self, code: &str, text: &str) -> String {
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn heading(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Yes, no, or neither.
    fn mark(self, good: Option<bool>) -> String {
        match good {
            Some(true) => self.paint("32", "yes"),
            Some(false) => self.paint("31", "no "),
            None => self.paint("33", "-  "),
        }
    }
}

/// Prints the report on standard output, in colour if that is a terminal.
///
/// # Errors
///
/// When standard output does not take it.
pub fn print(report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let colours = Colours {
        on: out.is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    out.write_all(render(report, colours).as_bytes())
}

fn render(report: &Report, colours: Colours) -> String {
    let mut text = host(report, colours);
    if report.problem.is_none() {
        text += &capabilities(report, colours);
        text += &instructions(
            report,
            colours,
            "cpl0.",
            "Instructions at CPL 0, where a guest's kernel lives",
        );
        text += &instructions(
            report,
            colours,
            "cpl3.",
            "Behaviour at CPL 3, where a guest's user space lives",
        );
        if !report.crossings.is_empty() {
            text += &crossings(&report.crossings, colours);
            text += &ratios(&report.ratios, colours);
        }
    }
    text + &profiles(report, colours)
}

fn host(report: &Report, colours: Colours) -> String {
    let host = &report.host;
    let class = match host.class {
        HostClass::Hardware => "hardware (VMX or SVM, no hypervisor below)",
        HostClass::Nested => "nested (VMX or SVM inside another virtual machine)",
        HostClass::Reference => "reference (VMX or SVM emulated by QEMU's TCG)",
        HostClass::Software => "software (KVM without VMX and SVM)",
        HostClass::None => "none (no usable /dev/kvm)",
    };
    let mut rows = vec![
        ("host class", class.to_owned()),
        (
            "KVM module",
            host.module.clone().unwrap_or_else(|| "unknown".to_owned()),
        ),
        ("kernel", host.kernel.clone()),
        ("CPU", format!("{} x {}", host.cpus, host.cpu)),
    ];
    rows.extend(
        host.hypervisor
            .clone()
            .map(|hypervisor| ("runs on", hypervisor)),
    );
    if report.lacks.is_empty() {
        rows.push(("sandbox", "seccomp and Landlock".to_owned()));
    }
    rows.extend(
        report
            .lacks
            .iter()
            .map(|lack| ("sandbox", lack.to_string())),
    );
    rows.extend(report.problem.clone().map(|problem| ("problem", problem)));
    rows.iter()
        .fold(colours.heading("Host") + "\n", |mut text, (name, value)| {
            let _ = writeln!(text, "  {name:<12} {value}");
            text
        })
}

/// Three columns.
fn capabilities(report: &Report, colours: Colours) -> String {
    let mut text = format!("\n{}\n", colours.heading("KVM capabilities"));
    let cell = |(name, value): &(String, i32)| match value {
        0 | 1 => format!("{} {name:<26}", colours.mark(Some(*value == 1))),
        value => format!(
            "{} {:<26}",
            colours.mark(Some(*value > 0)),
            format!("{name} = {value}")
        ),
    };
    for row in report.capabilities.chunks(3) {
        let cells: Vec<_> = row.iter().map(cell).collect();
        let _ = writeln!(text, "  {}", cells.join(" ").trim_end());
    }
    text
}

fn instructions(report: &Report, colours: Colours, prefix: &str, heading: &str) -> String {
    let mut text = format!(
        "\n{}\n  as in the CPU's manual? and what happened\n",
        colours.heading(heading)
    );
    let rows: Vec<(&str, &Instruction)> = report
        .instructions
        .iter()
        .filter_map(|(name, instruction)| Some((name.strip_prefix(prefix)?, instruction)))
        .collect();
    // What has the same words shares its lines; what is as it should be needs no words.
    let mut groups: Vec<(Option<bool>, String, Vec<&str>)> = Vec::new();
    for (name, row) in rows {
        let good = row.as_manual == Some(true);
        let words = if good {
            String::new()
        } else {
            row.text.clone() + &note(prefix, name, row)
        };
        match groups
            .iter_mut()
            .find(|group| group.0 == row.as_manual && group.1 == words)
        {
            Some(group) => group.2.push(name),
            None => groups.push((row.as_manual, words, vec![name])),
        }
    }
    groups.sort_by_key(|(as_manual, ..)| *as_manual != Some(true));
    for (as_manual, words, names) in groups {
        let mark = colours.mark(as_manual);
        if let [name] = names[..] {
            let _ = writeln!(text, "  {mark} {name:<26} {words}");
            continue;
        }
        let lead = if words.is_empty() { words } else { words + ":" };
        let lines = [vec![lead], wrap(&names, 92)].concat();
        for (number, line) in lines.iter().filter(|line| !line.is_empty()).enumerate() {
            let _ = writeln!(
                text,
                "  {} {line}",
                if number == 0 { mark.as_str() } else { "   " }
            );
        }
    }
    text
}

/// What the outcome does not say.
fn note(prefix: &str, name: &str, row: &Instruction) -> String {
    NOTES
        .iter()
        .find(|(of, _)| of.strip_prefix(prefix) == Some(name))
        .filter(|_| row.as_manual == Some(false))
        .map(|(_, note)| format!(" ({note})"))
        .unwrap_or_default()
}

/// Words with commas, in lines of at most `width`.
fn wrap(words: &[&str], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            // Comma, blank, word, and the comma that may follow.
            Some(line) if line.len() + 3 + word.len() <= width => {
                line.push_str(", ");
                line.push_str(word);
            }
            last => {
                last.into_iter().for_each(|line| line.push(','));
                lines.push((*word).to_owned());
            }
        }
    }
    lines
}

fn crossings(rows: &[(String, Crossing)], colours: Colours) -> String {
    let mut text = format!(
        "\n{}\n  {:<46} {:>10} {:>10} {:>10}\n",
        colours.heading("What a crossing costs, in ns"),
        "",
        "median",
        "p10",
        "p90"
    );
    for (name, row) in rows {
        let what = format!(
            "{} {}",
            name.get(..4)
                .unwrap_or_default()
                .to_uppercase()
                .replace("CPL", "CPL "),
            row.what
        );
        let _ = match (row.median_ns, row.p10_ns, row.p90_ns, &row.failed) {
            (Some(median), Some(p10), Some(p90), None) => {
                writeln!(text, "  {what:<46} {median:>10.0} {p10:>10.0} {p90:>10.0}")
            }
            (.., failed) => writeln!(
                text,
                "  {what:<46} {}",
                failed.as_deref().unwrap_or("no samples")
            ),
        };
    }
    text
}

/// What the ABI promises of its calls.
const PROMISES: [(&str, &str, f64); 3] = [
    ("null_call_by_out", "null call / bare OUT", 1.05),
    (
        "batched_call_by_null_call",
        "null call of 8 in a ring / null call",
        0.25,
    ),
    (
        "exits_of_an_exitless_call",
        "exits of an exitless call",
        0.0,
    ),
];

fn ratios(rows: &[(String, f64)], colours: Colours) -> String {
    let mut text = format!("\n{}\n", colours.heading("What calls promise"));
    for (name, ratio) in rows {
        let Some((cpl, name)) = name.split_once('.') else {
            continue;
        };
        if let Some((_, what, most)) = PROMISES.iter().find(|promise| promise.0 == name) {
            let what = format!("{} {what}", cpl.to_uppercase().replace("CPL", "CPL "));
            let mark = colours.mark(Some(ratio <= most));
            let _ = writeln!(text, "  {mark} {what:<46} {ratio:>6.3}, at most {most}");
        }
    }
    text
}

fn profiles(report: &Report, colours: Colours) -> String {
    let mut text = format!("\n{}\n", colours.heading("Guests that can run here"));
    for (name, verdict) in &report.profiles {
        let words: Vec<_> = verdict.why.split("; ").collect();
        for (number, line) in words.iter().enumerate() {
            let lead = if number == 0 {
                format!("{} {name:<8}", colours.mark(Some(verdict.runs)))
            } else {
                " ".repeat(12)
            };
            let _ = writeln!(text, "  {lead} {line}");
        }
    }
    let (natively, elsewhere): (Vec<_>, Vec<_>) = report.profiles.iter().partition(|(_, v)| v.runs);
    if elsewhere.is_empty() {
        return text;
    }
    if natively.iter().any(|(name, _)| *name == "direct") {
        text += "  Recommended here: paravane run --guest direct\n";
    }
    text += "  What cannot run here runs on the reference host: paravane run --host reference\n";
    text
}

#[cfg(test)]
mod tests {
    use super::wrap;

    #[test]
    fn lines_are_filled_and_not_too_long() {
        assert_eq!(wrap(&["one", "two", "three"], 9), ["one, two,", "three"]);
        assert_eq!(
            wrap(&["longer than that", "x"], 9),
            ["longer than that,", "x"]
        );
        assert!(wrap(&[], 8).is_empty());
    }
}
