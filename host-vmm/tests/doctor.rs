//! `paravane doctor` as a user runs it, and its probes on `/dev/kvm`.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use paravane::config::Profile;
use paravane::doctor::machine::{Privilege, Setup};
use paravane::doctor::probe::{self, Outcome};
use paravane_reference_host::or_skipped;
use serde_json::Value;

/// Starts doctor.
fn doctor(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_paravane"))
        .arg("doctor")
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Its standard output; it must have ended well.
fn output(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn json(child: Child) -> Value {
    serde_json::from_str(&output(child)).unwrap()
}

/// Whether there is a KVM; a word about it if not.
fn kvm() -> bool {
    or_skipped(paravane::kvm::open()).is_some()
}

#[test]
fn the_report_has_what_others_read() {
    let report = json(doctor(&["--json"]));
    for profile in ["full", "kvm-pv", "para", "direct"] {
        let verdict = &report["profiles"][profile];
        assert!(verdict["runs"].is_boolean(), "{verdict}");
        assert_ne!(verdict["why"].as_str().unwrap(), "");
    }
    if !kvm() {
        return;
    }
    // These two work on every KVM that is one.
    let out = &report["crossings"]["cpl0.out"];
    let number = |name: &str| out[name].as_f64().unwrap();
    assert!(0.0 < number("p10_ns"), "{out}");
    assert!(number("p10_ns") <= number("median_ns"), "{out}");
    assert!(number("median_ns") <= number("p90_ns"), "{out}");
    assert_eq!(report["instructions"]["cpl0.nop"]["as_manual"], true);
    // Where KVM would hang, it has not been tried.
    let software = report["host"]["class"] == "software";
    let vmcall = &report["instructions"]["cpl0.vmcall"]["outcome"]["kind"];
    assert_eq!(vmcall == "not-probed", software, "{vmcall}");
}

#[test]
fn the_table_names_every_profile() {
    let text = output(doctor(&["--quick"]));
    for name in ["full", "kvm-pv", "para", "direct"] {
        assert!(
            text.lines().any(|line| line.contains(name)),
            "{name} in\n{text}"
        );
    }
    assert!(!text.contains('\x1b'), "colours in a pipe");
}

#[test]
fn a_quick_answer_agrees_with_the_report() {
    let report = json(doctor(&["--json", "--quick"]));
    for profile in [
        Profile::Full,
        Profile::KvmPv,
        Profile::Para,
        Profile::Direct,
    ] {
        let answer = paravane::doctor::can_run(profile);
        let runs = &report["profiles"][profile.name()]["runs"];
        assert_eq!(*runs, answer.is_ok(), "{profile}: {answer:?}");
    }
}

#[test]
fn a_guest_that_never_ends_is_ended() {
    if !kvm() {
        return;
    }
    for (entry, privilege) in [("k_spin", Privilege::Kernel), ("u_spin", Privilege::User)] {
        let setup = Setup::plain(entry, privilege);
        let outcome = probe::run(setup, 1, Duration::from_millis(100)).outcome;
        assert_eq!(outcome, Outcome::Hang { killed: false }, "{entry}");
    }
}

/// The probe process of a doctor. Before it has become one, the process that starts it waits for it in
/// the kernel, and stopping it would stop both.
fn worker_of(parent: u32) -> Option<i32> {
    let parent = parent.to_string();
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let entry = entry.ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // After the name in parentheses: state, parent.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let arguments = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        (fields.nth(1)? == parent && arguments.contains("--worker"))
            .then(|| entry.file_name().to_str()?.parse().ok())?
    })
}

#[test]
fn a_probe_process_that_falls_silent_is_replaced() {
    if !kvm() {
        return;
    }
    let mut doctor = doctor(&["--json"]);
    let worker = loop {
        assert_eq!(
            doctor.try_wait().unwrap(),
            None,
            "it ended before it was seen to work"
        );
        if let Some(worker) = worker_of(doctor.id()) {
            break worker;
        }
        thread::sleep(Duration::from_millis(1));
    };
    // As if its KVM had swallowed it.
    // SAFETY: a signal to a process that doctor, which still runs, has started and not yet waited for.
    assert_eq!(unsafe { libc::kill(worker, libc::SIGSTOP) }, 0);
    let report = json(doctor);
    assert_eq!(report["instructions"]["cpl0.nop"]["as_manual"], true);
    assert!(
        report["crossings"]["cpl0.out"]["median_ns"].is_number(),
        "all jobs have been done"
    );
}
