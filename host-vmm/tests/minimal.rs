//! The guest in C that is written from `SPEC.md` and `paravane.h` alone
//! (`hypercall-abi/tests/minimal-guest`): a host has to be usable by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use paravane_abi::registry::*;

/// The guest's folder.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../hypercall-abi/tests/minimal-guest")
}

/// Compiles the guest and returns the ELF file.
fn build(compiler: &str) -> PathBuf {
    let elf = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("minimal-{compiler}.elf"));
    let status = Command::new(compiler)
        .args("-std=gnu11 -Wall -Wextra -Werror -O1 -ffreestanding -fno-pic".split(' '))
        // The host's KVM may interpret the guest: no vector registers.
        .args("-fno-stack-protector -fcf-protection=none -mgeneral-regs-only".split(' '))
        .args("-mno-red-zone -nostdlib -static -Wl,--build-id=none".split(' '))
        .args("-Wl,-z,noexecstack -Wl,--no-warn-rwx-segments".split(' '))
        .arg(format!("-Wl,-T,{}", source().join("guest.ld").display()))
        .arg("-I")
        .arg(source().join("../../include"))
        .arg(source().join("guest.c"))
        .arg("-o")
        .arg(&elf)
        .status()
        .unwrap_or_else(|error| panic!("{compiler} (ci/setup installs it): {error}"));
    assert!(status.success(), "{compiler}: {status}");
    elf
}

/// Runs it and returns what it prints; `None`, after a word about it, where there is no KVM.
fn run(compiler: &str, facilities: &str) -> Option<String> {
    if let Err(error) = paravane::kvm::open() {
        eprintln!("skipped: {error}");
        return None;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_paravane"))
        .args("run --guest para --host kvm --watchdog 60 --kernel".split(' '))
        .arg(build(compiler))
        .arg(format!("--pv={facilities}"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap().replace('\r', "");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}{errors}", output.status);
    Some(text)
}

/// The number after `name`, where the guest has printed it.
fn number(text: &str, name: &str) -> Option<u64> {
    let prefix = format!("minimal: {name} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix))?;
    Some(line.parse().unwrap())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_nanos()).unwrap()
}

#[test]
fn it_is_as_small_as_it_says() {
    let text = fs::read_to_string(source().join("guest.c")).unwrap();
    assert!(text.lines().count() < 200);
    let includes: Vec<_> = text.lines().filter(|l| l.starts_with("#include")).collect();
    assert_eq!(includes, ["#include \"paravane.h\""]);
}

#[test]
fn it_prints_reads_the_clock_and_powers_off() {
    for compiler in ["gcc", "clang-19"] {
        let before = now();
        let Some(text) = run(compiler, "") else {
            return;
        };
        let after = now();
        let first = "minimal: hello by console.write\n\
                     minimal: and this came through the ring\n";
        assert!(text.starts_with(first), "{compiler}:\n{text}");
        assert_eq!(number(&text, "version"), Some(u64::from(ABI_VERSION)));
        assert_eq!(number(&text, "generation"), Some(0));
        let wall = number(&text, "clock.wall").unwrap();
        assert!((before..=after).contains(&wall), "{compiler}:\n{text}");
        // Only where the host calls its counter reliable. A minute is what a wrong formula cannot
        // meet, and a slow machine can.
        if let Some(page) = number(&text, "wall by page") {
            assert!(page.abs_diff(wall) < 60_000_000_000, "{compiler}:\n{text}");
        }
    }
}

#[test]
fn it_does_without_what_a_host_has_not() {
    let Some(text) = run("gcc", "-clock") else {
        return;
    };
    assert!(text.contains("minimal: no clock\n"), "{text}");
    assert_eq!(number(&text, "clock.wall"), None);
    let word = number(&text, "facilities").unwrap();
    assert_eq!(word >> FACILITY_CLOCK & 1, 0);
    // Without a console it says nothing, and still powers off.
    assert_eq!(run("gcc", "-console").as_deref(), Some(""));
}
