//! What a trace says: crossings, one after the other.

use serde::Serialize;

/// One line of the trace.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    /// The thread, `vcpu0-99`.
    pub(super) task: String,
    /// Microseconds.
    pub(super) at: f64,
    pub(super) name: String,
    pub(super) text: String,
}

/// One way out of the guest and back.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Crossing {
    /// What the processor said: `io`, `msr`, `npf`, `interrupt`, …
    pub(super) reason: String,
    /// What was asked, for people: `OUT 0x3f8 'a'`.
    pub(super) what: String,
    /// Whether it went on to the VMM; then under which name.
    pub(super) to_vmm: Option<String>,
    /// How long the guest had run before it, µs.
    pub(super) guest_us: f64,
    /// How long it took until the guest went on, µs.
    pub(super) away_us: f64,
    /// Interrupts that were injected on the way back.
    pub(super) injected: u32,
    /// What the VMM asked its host for, and what other threads did from then on until the next one: `disk: pread64`.
    pub(super) elsewhere: Vec<String>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Flow {
    pub(super) crossings: Vec<Crossing>,
    /// From mark to mark, µs.
    pub(super) took_us: f64,
}

/// The mark port, and the marks of a job's begin and end.
const MARK: &str = "pio_write at 0x84 ";
const BEGIN: &str = "val 0x2";
const END: &str = "val 0x3";

/// Reads the lines of a trace: `task-pid [cpu] flags seconds: name: text`.
pub(super) fn parse(trace: &str) -> Vec<Event> {
    let event = |line: &str| {
        let (head, rest) = line.split_once(": ")?;
        let at: f64 = head.split_ascii_whitespace().next_back()?.parse().ok()?;
        let (name, text) = rest.split_once(':')?;
        Some(Event {
            task: head.split_ascii_whitespace().next()?.to_owned(),
            at: at * 1e6,
            // A system call has its arguments' names behind its own.
            name: name.split('(').next()?.to_owned(),
            text: text.trim().to_owned(),
        })
    };
    let lines = trace.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(event).collect()
}

/// The crossings between the two marks; `None` without both.
pub(super) fn between_marks(events: &[Event]) -> Option<Flow> {
    let mark = |value: &str| {
        events.iter().position(|event| {
            event.name == "kvm_pio" && event.text.starts_with(MARK) && event.text.ends_with(value)
        })
    };
    let (begin, end) = (mark(BEGIN)?, mark(END)?);
    // The thread of the guest's processor; what others do is on its behalf.
    let vcpu = &events.get(begin)?.task;
    // The operation begins when the guest goes on after its mark.
    let entry = |event: &Event| event.name == "kvm_entry" && event.task == *vcpu;
    let first = begin + events.get(begin..end)?.iter().position(entry)?;
    // The exit of the second mark is not the operation's.
    let exit = |event: &Event| event.name == "kvm_exit" && event.task == *vcpu;
    let last = events.get(..end)?.iter().rposition(exit)?;
    let mut crossings: Vec<Crossing> = Vec::new();
    let mut entered = events.get(first)?.at;
    let began = entered;
    let mut left: Option<f64> = None;
    for event in events.get(first..last)? {
        match event.name.as_str() {
            _ if event.task != *vcpu => {
                if let (Some(what), Some(crossing)) = (other(event), crossings.last_mut()) {
                    crossing.elsewhere.push(what);
                }
            }
            "kvm_entry" => {
                if let (Some(left), Some(crossing)) = (left.take(), crossings.last_mut()) {
                    crossing.away_us = event.at - left;
                }
                entered = event.at;
            }
            "kvm_exit" => {
                left = Some(event.at);
                crossings.push(Crossing {
                    reason: word_after(&event.text, "reason").to_owned(),
                    what: String::new(),
                    to_vmm: None,
                    guest_us: event.at - entered,
                    away_us: 0.0,
                    injected: 0,
                    elsewhere: Vec::new(),
                });
            }
            name => {
                if let Some(crossing) = crossings.last_mut() {
                    note(crossing, name, &event.text);
                }
            }
        }
    }
    let took_us = events.get(last)?.at - began;
    Some(Flow { crossings, took_us })
}

/// What another thread did, if it is worth a word: a system call, or a way out of another guest.
fn other(event: &Event) -> Option<String> {
    let (thread, _) = event.task.rsplit_once('-')?;
    if event.name == "kvm_exit" {
        return Some(format!(
            "{thread}: exit, {}",
            word_after(&event.text, "reason")
        ));
    }
    let call = event.name.strip_prefix("sys_")?;
    Some(format!("{thread}: {call}"))
}

/// Adds to a crossing what a further line says about it.
fn note(crossing: &mut Crossing, name: &str, text: &str) {
    match name {
        "kvm_userspace_exit" => crossing.to_vmm = Some(word_after(text, "reason").to_owned()),
        "kvm_inj_virq" => crossing.injected += 1,
        _ if name.starts_with("sys_") => crossing.elsewhere.push(name.replacen("sys_", "VMM: ", 1)),
        _ if !crossing.what.is_empty() => {}
        "kvm_pio" => crossing.what = port(text),
        "kvm_msr" => crossing.what = msr(text),
        "kvm_mmio" => crossing.what = format!("{} {}", word(text, 1), word_after(text, "gpa")),
        "kvm_cpuid" => crossing.what = format!("CPUID {}", word_after(text, "func")),
        "kvm_page_fault" => crossing.what = address(word_after(text, "address")),
        "kvm_hypercall" => crossing.what = format!("hypercall {}", word_after(text, "nr")),
        "kvm_cr" => crossing.what = text.chars().take(24).collect(),
        _ => {}
    }
}

/// `pio_write at 0x3f8 size 1 count 1 val 0x61` as `OUT 0x3f8 'a'`.
fn port(text: &str) -> String {
    let (verb, at) = (word(text, 0), word_after(text, "at"));
    let value = word_after(text, "val");
    let byte = value
        .strip_prefix("0x")
        .and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let value = match byte {
        Some(byte) if byte.is_ascii_graphic() => format!("'{}'", char::from(byte)),
        _ => value.to_owned(),
    };
    if verb == "pio_read" {
        format!("IN {at}")
    } else {
        format!("OUT {at} {value}")
    }
}

/// `msr_write 838 = 0x…` as `WRMSR 838`.
fn msr(text: &str) -> String {
    let verb = if word(text, 0) == "msr_read" {
        "RDMSR"
    } else {
        "WRMSR"
    };
    let number = word(text, 1);
    let known = MSRS.iter().find(|(known, _)| *known == number);
    format!("{verb} {}", known.map_or(number, |(_, name)| name))
}

/// Model-specific registers that a kernel writes all the time.
const MSRS: [(&str, &str); 5] = [
    ("6e0", "TSC_DEADLINE"),
    ("80b", "x2APIC EOI"),
    ("830", "x2APIC ICR"),
    ("838", "x2APIC TMICT"),
    ("c0000080", "EFER"),
];

/// Registers of the LAPIC's page, which is no memory, so that each access is a nested page fault.
const LAPIC: [(u64, &str); 5] = [
    (0x80, "TPR"),
    (0xb0, "EOI"),
    (0x300, "ICR"),
    (0x310, "ICR2"),
    (0x380, "TMICT"),
];

/// `0x00000000fee000b0` as `LAPIC EOI`, `0x0000000000104000` as `at 0x104000`.
fn address(text: &str) -> String {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let Ok(address) = u64::from_str_radix(digits, 16) else {
        return format!("at {text}");
    };
    let register = LAPIC
        .iter()
        .find(|(offset, _)| 0xfee0_0000 + offset == address);
    register.map_or_else(
        || format!("at {address:#x}"),
        |(_, name)| format!("LAPIC {name}"),
    )
}

fn word(text: &str, index: usize) -> &str {
    text.split_ascii_whitespace().nth(index).unwrap_or_default()
}

fn word_after<'a>(text: &'a str, key: &str) -> &'a str {
    let mut words = text.split_ascii_whitespace();
    words.find(|word| *word == key);
    words.next().unwrap_or_default().trim_end_matches(',')
}

/// Crossings that are alike, one after the other or in turns of two, as one with a count.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    /// The first turn's crossings: one, or two that alternate.
    pub(super) turn: Vec<Crossing>,
    pub(super) times: usize,
    /// Of all of them, µs.
    pub(super) guest_us: f64,
    pub(super) away_us: f64,
}

/// Folds repetitions: a full guest's line of text is one register read and one write for each character.
pub(super) fn fold(crossings: &[Crossing]) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut rest = crossings;
    while !rest.is_empty() {
        let (length, times) = (1..=3)
            .filter(|length| *length <= rest.len())
            .map(|length| (length, repeats(rest, length)))
            // What covers most; the shorter turn where both cover the same.
            .fold((1, 1), |best, (length, times)| {
                if times > 1 && length * times > best.0 * best.1 {
                    (length, times)
                } else {
                    best
                }
            });
        let (run, after) = rest.split_at(length * times);
        runs.push(Run {
            turn: run.iter().take(length).cloned().collect(),
            times,
            guest_us: run.iter().map(|crossing| crossing.guest_us).sum(),
            away_us: run.iter().map(|crossing| crossing.away_us).sum(),
        });
        rest = after;
    }
    runs
}

/// How often the first `length` crossings come again, themselves included.
fn repeats(crossings: &[Crossing], length: usize) -> usize {
    let first = crossings.get(..length).unwrap_or_default();
    crossings
        .chunks_exact(length)
        .take_while(|turn| turn.iter().zip(first).all(|(a, b)| alike(a, b)))
        .count()
}

/// Whether two crossings are the same operation: the byte of an OUT may differ.
fn alike(this: &Crossing, that: &Crossing) -> bool {
    let kind = |crossing: &Crossing| {
        let words = crossing.what.split_ascii_whitespace().take(2);
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    this.reason == that.reason && this.to_vmm == that.to_vmm && kind(this) == kind(that)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "# tracer: nop\n\
  vcpu0-99 [000] ..... 10.000000: kvm_exit: vcpu 0 reason io rip 0x1 info1 0x840011\n\
  vcpu0-99 [000] ..... 10.000010: kvm_pio: pio_write at 0x84 size 1 count 1 val 0x2\n\
  vcpu0-99 [000] ..... 10.000020: kvm_userspace_exit: reason KVM_EXIT_IO (2)\n\
  vcpu0-99 [000] d.... 10.000100: kvm_entry: vcpu 0, rip 0x2\n\
  vcpu0-99 [000] ..... 10.000150: kvm_exit: vcpu 0 reason io rip 0x3 info1 0x3fd0013\n\
  vcpu0-99 [000] ..... 10.000160: kvm_userspace_exit: reason KVM_EXIT_IO (2)\n\
  vcpu0-99 [000] ..... 10.000180: kvm_pio: pio_read at 0x3fd size 1 count 1 val 0x60\n\
  vcpu0-99 [000] d.... 10.000190: kvm_entry: vcpu 0, rip 0x4\n\
  vcpu0-99 [000] ..... 10.000200: kvm_exit: vcpu 0 reason io rip 0x5 info1 0x3f80011\n\
  vcpu0-99 [000] ..... 10.000210: kvm_pio: pio_write at 0x3f8 size 1 count 1 val 0x61\n\
  disk-98 [000] ..... 10.000215: sys_pread64(fd: 7, buf: 7f00, count: 1000, pos: 0)\n\
  disk-98 [000] ..... 10.000216: sys_pread64 -> 0x1000\n\
  vcpu0-90 [000] ..... 10.000217: kvm_exit: vcpu 0 reason hlt rip 0x1\n\
  vcpu0-99 [000] ..... 10.000220: kvm_userspace_exit: reason KVM_EXIT_IO (2)\n\
  vcpu0-99 [000] ..... 10.000230: kvm_inj_virq: IRQ 0xec\n\
  vcpu0-99 [000] d.... 10.000240: kvm_entry: vcpu 0, rip 0x6\n\
  vcpu0-99 [000] ..... 10.000340: kvm_exit: vcpu 0 reason io rip 0x7 info1 0x840011\n\
  vcpu0-99 [000] ..... 10.000350: kvm_pio: pio_write at 0x84 size 1 count 1 val 0x3\n";

    #[test]
    fn a_flow_lies_between_the_marks() {
        let flow = between_marks(&parse(TRACE)).unwrap();
        assert!((flow.took_us - 240.0).abs() < 0.5, "{flow:?}");
        let whats: Vec<&str> = flow.crossings.iter().map(|c| c.what.as_str()).collect();
        assert_eq!(whats, ["IN 0x3fd", "OUT 0x3f8 'a'"]);
        let first = &flow.crossings[0];
        assert_eq!(first.to_vmm.as_deref(), Some("KVM_EXIT_IO"));
        assert!((first.guest_us - 50.0).abs() < 0.5 && (first.away_us - 40.0).abs() < 0.5);
        assert_eq!(flow.crossings[1].injected, 1);
        assert_eq!(
            flow.crossings[1].elsewhere,
            ["disk: pread64", "vcpu0: exit, hlt"]
        );
    }

    #[test]
    fn registers_have_their_names() {
        assert_eq!(address("0x00000000fee000b0"), "LAPIC EOI");
        assert_eq!(address("0x0000000000104000"), "at 0x104000");
        assert_eq!(msr("msr_write 6e0 = 0x5"), "WRMSR TSC_DEADLINE");
        assert_eq!(msr("msr_read 1b = 0x5"), "RDMSR 1b");
    }

    #[test]
    fn without_both_marks_there_is_no_flow() {
        let cut = TRACE.rsplit_once("kvm_pio").unwrap().0;
        assert_eq!(between_marks(&parse(cut)), None);
    }

    #[test]
    fn alternating_crossings_are_folded() {
        let one = |what: &str| Crossing {
            reason: "io".into(),
            what: what.into(),
            to_vmm: None,
            guest_us: 1.0,
            away_us: 2.0,
            injected: 0,
            elsewhere: Vec::new(),
        };
        let line = [
            "IN 0x3fd",
            "OUT 0x3f8 'a'",
            "IN 0x3fd",
            "OUT 0x3f8 'b'",
            "CPUID 1",
        ];
        let runs = fold(&line.map(one));
        let shape: Vec<(usize, usize)> =
            runs.iter().map(|run| (run.turn.len(), run.times)).collect();
        assert_eq!(shape, [(2, 2), (1, 1)]);
        assert!((runs[0].away_us - 8.0).abs() < 0.01);
    }
}
