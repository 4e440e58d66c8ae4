//! The counters of a run in the `OpenMetrics` text format, version 1.0, for a monitoring system to collect.

use std::fmt::Write as _;

use super::{State, Status};
use crate::stats::Stats;

/// Writes samples; writing to a `String` cannot fail.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}\n# HELP {name} {help}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"");
            for character in text.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }
}

/// The whole exposition.
pub(super) fn text(stats: &Stats, status: &Status) -> String {
    let mut text = Text::default();
    text.family("paravane", "info", "What runs.");
    let labels = [
        ("guest", stats.guest),
        ("host", &stats.host),
        ("version", status.version),
    ];
    text.sample("paravane_info", &labels, 1);
    text.family(
        "paravane_up_seconds",
        "gauge",
        "Time since the first instruction.",
    );
    let nanoseconds = stats.run_ns;
    let seconds = format_args!(
        "{}.{:09}",
        nanoseconds / 1_000_000_000,
        nanoseconds % 1_000_000_000
    )
    .to_string();
    text.sample("paravane_up_seconds", &[], seconds);
    text.family(
        "paravane_paused",
        "gauge",
        "1 while the guest stands still.",
    );
    let paused = u8::from(status.state == State::Paused);
    text.sample("paravane_paused", &[], paused);
    text.family("paravane_vcpus", "gauge", "vCPUs of the machine.");
    text.sample("paravane_vcpus", &[], stats.vcpus);
    if let Some(on) = &status.cpus_on {
        text.family("paravane_vcpus_on", "gauge", "vCPUs that are on.");
        text.sample("paravane_vcpus_on", &[], on.len());
    }
    text.family("paravane_memory_bytes", "gauge", "Guest memory.");
    text.sample("paravane_memory_bytes", &[], stats.mem_mib << 20);
    let resident = "What of the VMM is in the host's memory.";
    text.family("paravane_resident_bytes", "gauge", resident);
    text.sample("paravane_resident_bytes", &[], status.resident_mib << 20);
    if let (Some(kept), Some(reported)) = (status.kept_mib, status.reported_mib) {
        let what = "Memory that the guest keeps from itself.";
        text.family("paravane_kept_bytes", "gauge", what);
        text.sample("paravane_kept_bytes", &[], kept << 20);
        let what = "Memory that the guest has given back.";
        text.family("paravane_reported_bytes", "counter", what);
        text.sample("paravane_reported_bytes_total", &[], reported << 20);
    }
    if let Some(needed) = status.needed_mib {
        let what = "Memory that the guest says it would miss.";
        text.family("paravane_needed_bytes", "gauge", what);
        text.sample("paravane_needed_bytes", &[], needed << 20);
    }
    if !stats.guest_memory.is_empty() {
        let what = "What the driver of the guest's balloon tells: bytes, or events since its boot.";
        text.family("paravane_guest_memory", "unknown", what);
        for (name, value) in &stats.guest_memory {
            text.sample("paravane_guest_memory", &[("stat", name)], value);
        }
    }
    text.family(
        "paravane_exits",
        "counter",
        "Exits of all vCPUs, by KVM's count.",
    );
    text.sample("paravane_exits_total", &[], stats.exits);
    text.family("paravane_user_exits", "counter", "Exits to the VMM.");
    for (reason, count) in &stats.user_exits {
        text.sample("paravane_user_exits_total", &[("reason", reason)], count);
    }
    text.family("paravane_calls", "counter", "Calls of the guest.");
    for (call, count) in &stats.hypercalls {
        text.sample("paravane_calls_total", &[("call", call)], count);
    }
    if !stats.crossings.is_empty() {
        let what = "What has crossed a direct guest's switcher, as the guest counts.";
        text.family("paravane_crossings", "counter", what);
        for (kind, count) in &stats.crossings {
            text.sample("paravane_crossings_total", &[("kind", kind)], count);
        }
    }
    text.family(
        "paravane_console_bytes",
        "counter",
        "Bytes over the console.",
    );
    for (direction, count) in [
        ("out", stats.console.out_bytes),
        ("in", stats.console.in_bytes),
    ] {
        let labels = [("direction", direction)];
        text.sample("paravane_console_bytes_total", &labels, count);
    }
    text.family(
        "paravane_kvm",
        "unknown",
        "What KVM counts of the vCPUs, summed.",
    );
    for (name, count) in &stats.kvm_stats {
        text.sample("paravane_kvm", &[("stat", name)], count);
    }
    text.0.push_str("# EOF\n");
    text.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_quoted() {
        let mut text = Text::default();
        text.sample("name", &[("a", "x\"\\\n"), ("b", "")], 7);
        text.sample("other", &[], "0.5");
        assert_eq!(text.0, "name{a=\"x\\\"\\\\\\n\",b=\"\"} 7\nother 0.5\n");
    }
}
