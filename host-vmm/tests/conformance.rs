//! `paravane abi`: the suite as a command, and the guest that checks any host by itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use paravane_reference_host::or_skipped;
use serde_json::Value;

fn paravane(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command
        .args(arguments.split_whitespace())
        .stdin(Stdio::null());
    command
}

fn has_kvm() -> bool {
    or_skipped(paravane::kvm::open()).is_some()
}

/// Writes the self-reporting guest to a file of its own.
fn guest(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let status = paravane("abi guest --output").arg(&path).status().unwrap();
    assert!(status.success(), "{status}");
    path
}

/// Boots it; what it has printed, and how the VMM has ended.
fn boot(elf: &Path, options: &str) -> (String, Output) {
    let output = paravane("run --guest para --host kvm --watchdog 60 --kernel")
        .arg(elf)
        .args(options.split_whitespace())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (text, output)
}

/// The number of test points by the plan, after each point has been found in its place.
fn points(tap: &str) -> usize {
    let mut lines = tap.lines();
    assert_eq!(lines.next(), Some("TAP version 14"), "{tap}");
    let plan: usize = lines
        .next()
        .and_then(|line| line.strip_prefix("1..")?.parse().ok())
        .unwrap_or_else(|| panic!("no plan: {tap}"));
    let numbers: Vec<usize> = lines
        .filter_map(|line| {
            line.strip_prefix("not ")
                .unwrap_or(line)
                .strip_prefix("ok ")
        })
        .map(|line| line.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(numbers, (1..=plan).collect::<Vec<_>>(), "{tap}");
    plan
}

fn failures(tap: &str) -> Vec<&str> {
    tap.lines()
        .filter(|line| line.starts_with("not ok"))
        .collect()
}

#[test]
fn the_suite_finds_that_this_host_conforms() {
    if !has_kvm() {
        return;
    }
    let output = paravane("abi check --host kvm").output().unwrap();
    let tap = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{tap}");
    assert!(points(&tap) > 40 && failures(&tap).is_empty(), "{tap}");

    let output = paravane("abi check --host kvm --json").output().unwrap();
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let clauses = report["clauses"].as_array().unwrap();
    let counts = &report["counts"];
    assert_eq!(counts["clauses"], clauses.len());
    for state in ["pass", "fail", "skipped", "untested"] {
        let with = clauses.iter().filter(|clause| clause["state"] == state);
        assert_eq!(counts[state], with.count(), "{state}");
    }
    assert_eq!(counts["fail"], 0);
    for clause in clauses
        .iter()
        .filter(|clause| clause["state"] == "untested")
    {
        assert!(clause["reason"].is_string(), "{clause}");
    }
}

#[test]
fn the_guest_finds_that_this_host_conforms() {
    if !has_kvm() {
        return;
    }
    let (tap, output) = boot(&guest("guest.elf"), "");
    assert!(output.status.success(), "{output:?}");
    assert!(points(&tap) > 50, "{tap}");
    assert_eq!(failures(&tap), [""; 0], "{tap}");
    assert!(
        !tap.contains("# SKIP") && !tap.contains("Bail out!"),
        "{tap}"
    );
}

#[test]
fn the_guest_finds_that_an_awkward_host_conforms() {
    if !has_kvm() {
        return;
    }
    let elf = guest("awkward.elf");
    let mut heard = 0;
    for seed in 0..40 {
        let (tap, output) = boot(&elf, &format!("--awkward {seed}"));
        let character = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{character}{tap}");
        if character.contains("no console") {
            assert_eq!(tap, "", "{character}");
            continue;
        }
        heard += 1;
        points(&tap);
        assert_eq!(failures(&tap), [""; 0], "{character}{tap}");
    }
    assert!(heard > 20, "{heard}");
}

#[test]
fn the_guest_skips_what_is_not_offered() {
    if !has_kvm() {
        return;
    }
    let (tap, _) = boot(&guest("without.elf"), "--pv=-clock");
    points(&tap);
    assert_eq!(failures(&tap), [""; 0], "{tap}");
    let of_clock = |line: &&str| line.contains("clock.wall") || line.contains("PV-CLOCK-");
    assert!(tap.lines().any(|line| of_clock(&line)), "{tap}");
    for line in tap.lines().filter(of_clock) {
        assert!(line.contains("# SKIP"), "{line}");
    }
}

#[test]
fn the_guest_reports_a_breach() {
    if !has_kvm() {
        return;
    }
    let elf = guest("breach.elf");
    // The guest expects another magic: it cannot tell whether it or the host is wrong.
    let mut bytes = fs::read(&elf).unwrap();
    let places: Vec<_> = (0..bytes.len() - 8)
        .filter(|at| bytes[*at..].starts_with(b"PARAVANE"))
        .collect();
    assert_eq!(places.len(), 1, "one step has it");
    bytes[places[0]] = b'C';
    fs::write(&elf, bytes).unwrap();
    let (tap, _) = boot(&elf, "");
    points(&tap);
    let failed = failures(&tap);
    assert!(
        failed.len() == 1 && failed[0].contains("PV-BOOT-2"),
        "{tap}"
    );
    let found = "# status 0000000000000000, value 454e415641524150";
    assert!(tap.contains(found), "{tap}");
}
