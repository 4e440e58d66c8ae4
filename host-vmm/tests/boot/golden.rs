//! What a guest can see, compared with what stands in `tests/golden`.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// Leaves out what differs from one boot or one build to the next: times, addresses, sizes, frequencies, versions.
/// Every number becomes `#`, and the kernel's time stamp goes.
fn normalise(line: &str) -> String {
    let line = match line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    {
        Some((stamp, message)) if stamp.trim().parse::<f64>().is_ok() => message,
        _ => line,
    };
    let mut out = String::new();
    for word in line.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let number = bare.starts_with(|c: char| c.is_ascii_digit());
        if number {
            out.push('#');
            out.push_str(&word[bare.len()..]);
        } else {
            out.push_str(word);
        }
    }
    out
}

/// Compares a console with `messages/NAME`: a line `+ text` must be a part of some kernel message, `- text` of none.
pub(crate) fn check_messages(name: &str, console: &str) {
    let golden = fs::read_to_string(path(&format!("messages/{name}")))
        .expect("the golden messages are there");
    let said: Vec<String> = console
        .lines()
        .filter(|line| !line.contains("PARAVANE-"))
        .map(normalise)
        .collect();
    let has = |text: &str| said.iter().find(|line| line.contains(text));
    let mut wrong = String::new();
    for line in golden.lines() {
        match (line.get(..2), line.get(2..)) {
            (Some("+ "), Some(text)) if has(text).is_none() => {
                let _ = writeln!(wrong, "{name} does not say: {text}");
            }
            (Some("- "), Some(text)) => {
                if let Some(line) = has(text) {
                    let _ = writeln!(wrong, "{name} must not say {text}: {line}");
                }
            }
            (Some("+ " | "# "), _) => {}
            (None, _) if line.is_empty() => {}
            _ => panic!(
                "messages/{name} has a line that is neither `+ text`, `- text` nor `# text`: {line}"
            ),
        }
    }
    assert!(
        wrong.is_empty(),
        "{wrong}The console was:\n{}",
        said.join("\n")
    );
}

/// What of CPUID does not depend on the host's processor or kernel: the hypervisor bit, and the hypervisor leaves.
fn restrict(guest: &str, table: &Value) -> String {
    let entries = table
        .as_array()
        .expect("paravane cpuid --json prints an array");
    let register = |entry: &Value, name: &str| -> u32 {
        let text = entry[name]
            .as_str()
            .unwrap_or_else(|| panic!("{name} is missing in {entry}"));
        u32::from_str_radix(text.trim_start_matches("0x"), 16).expect("a hexadecimal number")
    };
    let mut out = String::new();
    for entry in entries {
        let leaf = register(entry, "leaf");
        let [eax, ebx, ecx, edx] = ["eax", "ebx", "ecx", "edx"].map(|name| register(entry, name));
        let line = match leaf {
            1 => format!("0x00000001 ecx.31 {}", ecx >> 31),
            // Which of KVM's features there are is for the host's KVM to say; para must see none.
            0x4000_0001 if guest == "kvm-pv" => format!("{leaf:#010x} any"),
            0x4000_0000..=0x4fff_ffff => {
                format!("{leaf:#010x} {eax:#010x} {ebx:#010x} {ecx:#010x} {edx:#010x}")
            }
            _ => continue,
        };
        let _ = writeln!(out, "{line}");
    }
    out
}

/// Compares a guest's CPUID table with `cpuid/GUEST`.
pub(crate) fn check_cpuid(guest: &str, table: &Value) {
    let golden = fs::read_to_string(path(&format!("cpuid/{guest}")))
        .expect("the golden CPUID table is there");
    let golden: String = golden
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(
        restrict(guest, table),
        golden,
        "CPUID of {guest} has changed: is tests/golden/cpuid/{guest} right?"
    );
}

#[test]
fn numbers_and_stamps_are_left_out() {
    for (line, normal) in [
        (
            "[    0.052000] tsc: Detected 2596.104 MHz processor",
            "tsc: Detected #.# MHz processor",
        ),
        (
            "[    0.1] smp: Brought up 1 node, 2 CPUs",
            "smp: Brought up # node, # CPUs",
        ),
        (
            "serial8250: ttyS0 at I/O 0x3f8 (irq = 4)",
            "serial8250: ttyS0 at I/O # (irq = #)",
        ),
        ("[not a stamp] kept", "[not a stamp] kept"),
    ] {
        assert_eq!(normalise(line), normal);
    }
}
