//! Counters, and how fast they move.

use serde_json::Value;

use super::{GuestSnapshot, Snapshot};

/// One counter of every guest.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) label: String,
    /// What each guest has of it: the count, and how many came each second; nothing where it is not counted.
    pub(super) cells: Vec<Option<(u64, Option<f64>)>>,
}

/// Counters that stand by themselves: a label, and the place in the statistics.
const SINGLE: [(&str, &str); 3] = [
    ("exits, all", "/exits"),
    ("console bytes out", "/console/out_bytes"),
    ("console bytes in", "/console/in_bytes"),
];

/// Groups of counters: what stands before the counter's own name, and the place in the statistics.
const GROUPS: [(&str, &str); 4] = [
    ("to the VMM: ", "/user_exits"),
    ("call: ", "/hypercalls"),
    ("switcher: ", "/crossings"),
    ("KVM counts: ", "/kvm_stats"),
];

/// KVM's counters that say where guests go; it has dozens.
const OF_KVM: [&str; 7] = [
    "halt_exits",
    "irq_exits",
    "io_exits",
    "mmio_exits",
    "signal_exits",
    "pf_taken",
    "insn_emulation",
];

/// The counters of now, with what has changed since before.
pub(super) fn rows(before: Option<&Snapshot>, now: &Snapshot) -> Vec<Row> {
    let mut rows: Vec<Row> = SINGLE
        .iter()
        .map(|(label, place)| row(before, now, (*label).to_owned(), place))
        .collect();
    for (prefix, place) in GROUPS {
        let mut names: Vec<&String> = now
            .guests
            .iter()
            .filter_map(|guest| guest.stats.pointer(place)?.as_object())
            .flat_map(serde_json::Map::keys)
            .filter(|name| prefix != "KVM counts: " || OF_KVM.contains(&name.as_str()))
            .collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            // A JSON pointer's own signs; names of calls have none of them, but a host may be newer.
            let escaped = name.replace('~', "~0").replace('/', "~1");
            rows.push(row(
                before,
                now,
                format!("{prefix}{name}"),
                &format!("{place}/{escaped}"),
            ));
        }
    }
    rows.retain(|row| row.cells.iter().flatten().any(|(count, _)| *count > 0));
    rows
}

fn row(before: Option<&Snapshot>, now: &Snapshot, label: String, place: &str) -> Row {
    let count = |guest: &GuestSnapshot| guest.stats.pointer(place).and_then(Value::as_u64);
    let cell = |guest: &GuestSnapshot| {
        let value = count(guest)?;
        let rate = before.and_then(|before| {
            let earlier = before.guests.iter().find(|old| old.name == guest.name)?;
            let passed = now.t_ms.checked_sub(before.t_ms).filter(|ms| *ms > 0)?;
            let grown = value.saturating_sub(count(earlier)?);
            Some(float(grown) * 1000.0 / float(passed))
        });
        Some((value, rate))
    };
    Row {
        label,
        cells: now.guests.iter().map(cell).collect(),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate for people: three digits are shown"
)]
const fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rates_are_differences_by_time() {
        let snapshot = |t_ms, exits, calls| Snapshot {
            t_ms,
            guests: vec![GuestSnapshot {
                name: "para".into(),
                stats: json!({ "exits": exits, "hypercalls": { "console.notify": calls },
                    "user_exits": { "uart_in": 0 }, "kvm_stats": { "halt_exits": 3, "nothing": 9 } }),
                ..GuestSnapshot::default()
            }],
        };
        let rows = rows(Some(&snapshot(0, 100, 4)), &snapshot(500, 150, 6));
        let labels: Vec<&str> = rows.iter().map(|row| row.label.as_str()).collect();
        assert_eq!(
            labels,
            [
                "exits, all",
                "call: console.notify",
                "KVM counts: halt_exits"
            ],
            "what is zero or of no interest is left out"
        );
        assert_eq!(rows[0].cells, [Some((150, Some(100.0)))]);
        assert_eq!(rows[1].cells, [Some((6, Some(4.0)))]);
    }

    #[test]
    fn a_guest_that_came_later_has_no_rate_yet() {
        let now = Snapshot {
            t_ms: 10,
            guests: vec![GuestSnapshot {
                name: "new".into(),
                stats: json!({ "exits": 7 }),
                ..GuestSnapshot::default()
            }],
        };
        let rows = rows(Some(&Snapshot::default()), &now);
        assert_eq!(rows[0].cells, [Some((7, None))]);
    }
}
