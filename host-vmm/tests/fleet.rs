//! Several guests at once, one of which crashes again and again: the others do not notice.
//!
//! Where the kernel or the initramfs is not built, or this KVM runs neither a para nor a direct guest, each test prints
//! `skipped: reason`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use paravane::config::Profile;
use paravane_reference_host::or_skipped;

/// Kernel, initramfs, and the profile that this KVM runs.
fn built() -> Result<(PathBuf, PathBuf, Profile), String> {
    let profile = [Profile::Para, Profile::Direct]
        .into_iter()
        .find(|profile| paravane::doctor::can_run(*profile).is_ok())
        .ok_or("this KVM runs neither a para nor a direct guest")?;
    Ok((
        paravane_reference_host::built("kernel/para/vmlinux", "kernel para")?,
        paravane_reference_host::built("initramfs/guest.cpio", "initramfs")?,
        profile,
    ))
}

/// Runs guests with these names, options and arguments for init.
fn fleet(name: &str, guests: &[(&str, &str, &str)]) -> Option<Output> {
    let (kernel, initrd, profile) = or_skipped(built())?;
    let mut text = String::new();
    for (guest, options, init) in guests {
        let _ = writeln!(
            text,
            "[[guest]]\nname = {guest:?}\nguest = \"{profile}\"\nhost = \"kvm\"\nkernel = {kernel:?}\ninitrd = {initrd:?}\n\
             memory = 64\nwatchdog = 120\ncmdline = \"quiet -- {init}\"\n{options}",
        );
    }
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.toml"));
    fs::write(&file, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_paravane"))
        .arg("run")
        .arg("--file")
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Some(output)
}

#[test]
fn a_guest_that_crashes_in_a_loop_is_not_noticed_by_the_others() {
    const CRASHES: usize = 5;
    let crasher = format!("restart = \"on-failure\"\nrestarts = {}", CRASHES - 1);
    let work = "quietly job=null:1000 job=sleep:20 job=fork:20 end=poweroff";
    let Some(output) = fleet(
        "crashing",
        &[
            ("one", "", work),
            ("crasher", &crasher, "panic"),
            ("two", "", work),
        ],
    ) else {
        return;
    };
    let (out, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    for name in ["one", "two"] {
        let said = |what: &str| {
            out.lines()
                .filter(|line| line.starts_with(name) && line.contains(what))
                .count()
        };
        assert_eq!(said("PARAVANE-JOB fork 20 "), 1, "{name}: {out}{errors}");
        assert_eq!(said("[switched off]"), 1, "{name}: {out}{errors}");
        let record = format!("paravane: {name}: started 1 times, 0 failures, exit status 0");
        assert!(errors.contains(&record), "{errors}");
    }
    let ends = out
        .lines()
        .filter(|line| line.starts_with("crasher") && line.contains("[its kernel crashed"))
        .count();
    assert_eq!(ends, CRASHES, "{out}{errors}");
    let record = format!("crasher: started {CRASHES} times, {CRASHES} failures, exit status 2");
    assert!(errors.contains(&record), "{errors}");
    assert_eq!(output.status.code(), Some(2), "the greatest of theirs");
}

/// A status of 2 is a crash, of a guest of the fleet's too: a command line that is wrong has another.
#[test]
fn a_command_line_that_is_wrong_ends_with_1_before_anything_runs() {
    for (arguments, reason) in [
        (&["run", "--kernel", "k", "--cpus", "none"][..], "--cpus"),
        (&["run", "--kernel", "k", "--memory", "0"], "MiB"),
        (&["run", "--kernel", "k", "--disk", "d,fail=x"], "seed"),
        (&["bench", "boot", "--until", "0"], "above 0"),
        (&["trace", "sleeep:1"], "sleep"),
        (&["trace", "sleep:0"], "rounds"),
        (&["frobnicate"], "Usage"),
    ] {
        let program = Command::new(env!("CARGO_BIN_EXE_paravane"))
            .args(arguments)
            .output();
        let output = program.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.contains(reason), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_fleet_that_is_none_is_refused_before_anything_runs() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("none.toml");
    for (text, reason) in [
        ("[[guest]]\nname = \"a\"\nguest = \"half\"\n", "guest a of"),
        ("[[guest]]\nguest = \"para\"\n", "name"),
    ] {
        fs::write(&file, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_paravane"))
            .args(["run", "--file"])
            .arg(&file)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(reason), "{errors}");
    }
}
