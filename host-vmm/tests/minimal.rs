//! The guest in C that is written from `SPEC.md` and `paravane.h` alone
//! (`hypercall-abi/tests/minimal-guest`): a host has to be usable by it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use paravane::config::{Config, Profile};
use paravane::console::Console;
use paravane::pv::BOOT_INFO;
use paravane::vm::{RunOptions, Vm};
use paravane_abi::boot_info::BootInfo;
use paravane_abi::registry::*;
use paravane_reference_host::or_skipped;
use serde_json::Value;

/// The guest's folder.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../hypercall-abi/tests/minimal-guest")
}

/// Compiles one of the guests and returns the ELF file.
fn build(compiler: &str, name: &str) -> PathBuf {
    // Tests run at once, so each has its own file.
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    let elf = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{compiler}-{test}.elf"));
    let status = Command::new(compiler)
        .args("-std=gnu11 -Wall -Wextra -Werror -O1 -ffreestanding -fno-pic".split(' '))
        // The host's KVM may interpret the guest: no vector registers.
        .args("-fno-stack-protector -fcf-protection=none -mgeneral-regs-only".split(' '))
        .args("-mno-red-zone -nostdlib -static -Wl,--build-id=none".split(' '))
        .args("-Wl,-z,noexecstack -Wl,--no-warn-rwx-segments".split(' '))
        .arg(format!("-Wl,-T,{}", source().join("guest.ld").display()))
        .arg("-I")
        .arg(source().join("../../include"))
        .arg(source().join(format!("{name}.c")))
        .arg("-o")
        .arg(&elf)
        .status()
        .unwrap_or_else(|error| panic!("{compiler} (ci/setup installs it): {error}"));
    assert!(status.success(), "{compiler}: {status}");
    elf
}

/// Whether there is a KVM; a word about it if not.
fn kvm() -> bool {
    or_skipped(paravane::kvm::open()).is_some()
}

/// The command that runs a guest.
fn command(elf: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command
        .args("run --guest para --host kvm --watchdog 60 --kernel".split(' '))
        .arg(elf);
    command
}

/// Runs the guest and returns what it prints, and the names of the calls that it made; `None`, after a word about
/// it, where there is no KVM.
fn run(compiler: &str, facilities: &str) -> Option<(String, Vec<String>)> {
    if !kvm() {
        return None;
    }
    let elf = build(compiler, "guest");
    let stats = elf.with_extension("json");
    let output = command(&elf)
        .arg(format!("--pv={facilities}"))
        .args(["--stats", "json", "--stats-file"])
        .arg(&stats)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap().replace('\r', "");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}{errors}", output.status);
    let stats: Value = serde_json::from_str(&fs::read_to_string(stats).unwrap()).unwrap();
    let calls = stats["hypercalls"].as_object().unwrap();
    Some((text, calls.keys().cloned().collect()))
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
        let Some((text, calls)) = run(compiler, "") else {
            return;
        };
        let after = now();
        let first = "minimal: hello by console.write\n\
                     minimal: and this came through the ring\n";
        assert!(text.starts_with(first), "{compiler}:\n{text}");
        assert!(calls.iter().any(|call| call == "clock.wall"), "{calls:?}");
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
fn a_file_that_may_not_grow_does_not_end_the_guest() {
    if !kvm() {
        return;
    }
    let elf = build("gcc", "guest");
    let run = command(&elf);
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 0; exec \"$@\"", "sh"])
        .arg(run.get_program())
        .args(run.get_args())
        .arg("--console-log")
        .arg(elf.with_extension("log"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{}: {text}", output.status);
}

#[test]
fn pv_conf_2_a_guest_makes_no_call_of_what_is_missing() {
    let Some((text, calls)) = run("gcc", "-clock") else {
        return;
    };
    assert!(text.contains("minimal: no clock\n"), "{text}");
    assert_eq!(number(&text, "clock.wall"), None);
    let word = number(&text, "facilities").unwrap();
    assert_eq!(word >> FACILITY_CLOCK & 1, 0);
    assert!(calls.iter().any(|call| call == "console.write"));
    assert!(!calls.iter().any(|call| call.starts_with("clock.")));
    // Without a console it says nothing, and still powers off.
    let (text, calls) = run("gcc", "-console").unwrap();
    assert_eq!(text, "");
    assert!(calls.iter().any(|call| call == "base.power"), "{calls:?}");
    assert!(!calls.iter().any(|call| call.starts_with("console.")));
}

#[test]
fn pv_state_1_a_restart_finds_everything_as_at_the_first_start() {
    if !kvm() {
        return;
    }
    let mut machine = command(&build("gcc", "reboot"))
        .args(["--on-reboot", "restart"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(machine.stdout.take().unwrap()).lines();
    let states: Vec<_> = lines
        .map(|line| line.unwrap().trim().to_owned())
        .filter(|line| line.starts_with("minimal") || line.starts_with("state "))
        .take(4)
        .collect();
    machine.kill().unwrap();
    machine.wait().unwrap();
    assert_eq!(states.len(), 4, "it has ended by itself: {states:?}");
    assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
}

#[test]
fn a_restart_goes_on_in_the_same_log_and_is_the_end_by_default() {
    if !kvm() {
        return;
    }
    let elf = build("gcc", "reboot");
    let log = elf.with_extension("log");
    let states = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.matches("state ").count()
    };
    let mut machine = command(&elf)
        .args(["--on-reboot", "restart", "--console-log"])
        .arg(&log)
        .spawn()
        .unwrap();
    while states() < 3 {
        assert_eq!(machine.try_wait().unwrap(), None, "it has ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    machine.kill().unwrap();
    machine.wait().unwrap();

    let output = command(&elf).arg("--console-log").arg(&log).output();
    assert_eq!(output.unwrap().status.code(), Some(0));
    assert_eq!(states(), 1);
}

#[test]
fn restarts_do_not_outlive_the_watchdog() {
    if !kvm() {
        return;
    }
    let options = "run --guest para --host kvm --on-reboot restart --watchdog 2 --kernel";
    let output = Command::new(env!("CARGO_BIN_EXE_paravane"))
        .args(options.split(' '))
        .arg(build("gcc", "reboot"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[test]
fn a_guest_that_hangs_is_explained() {
    if !kvm() {
        return;
    }
    let (mut vm, _console) = machine(2);
    vm.boot().unwrap();
    // Without the magic it finds no host, and halts.
    vm.memory().write(BOOT_INFO, &[0; 8]).unwrap();
    let message = vm.run(RunOptions::default()).unwrap().message.unwrap();
    assert!(message.contains("vCPU 0 was here:\n  rip "), "{message}");
    assert!(message.contains(" guest+0x"), "{message}");
    assert!(message.contains("vCPU 1 was off"), "{message}");
}

/// A machine with the guest, and its console.
fn machine(vcpus: u8) -> (Vm, Console) {
    let config = Config {
        vcpus,
        // A guest that finds no host halts.
        watchdog: Some(Duration::from_secs(3)),
        ..Config::of(Profile::Para, build("gcc", "guest"))
    };
    let console = Console::memory().unwrap();
    let vm = Vm::new(config, console.clone(), Instant::now()).unwrap();
    (vm, console)
}

/// Boots the guest with bytes of its boot-info page changed; what it prints and how many calls it makes.
fn run_spoilt(offset: usize, bytes: &[u8]) -> Option<(String, u64)> {
    if !kvm() {
        return None;
    }
    let (mut vm, console) = machine(1);
    vm.boot().unwrap();
    vm.memory().write(BOOT_INFO + offset as u64, bytes).unwrap();
    let stats = vm.run(RunOptions::default()).unwrap();
    let text = String::from_utf8(console.contents()).unwrap();
    Some((text, stats.hypercalls.values().sum()))
}

#[test]
fn pv_boot_6_a_page_with_another_magic_is_not_used() {
    let Some(found) = run_spoilt(offset_of!(BootInfo, magic), b"PARAVANF") else {
        return;
    };
    assert_eq!(found, (String::new(), 0));
}

#[test]
fn pv_boot_7_fields_beyond_the_size_are_not_used() {
    let size = u32::try_from(offset_of!(BootInfo, clock)).unwrap();
    let at = offset_of!(BootInfo, size);
    let Some(found) = run_spoilt(at, &size.to_le_bytes()) else {
        return;
    };
    // This guest takes a page only with all fields that it knows.
    assert_eq!(found, (String::new(), 0));
    // One that a later version has filled further.
    let (text, _) = run_spoilt(at, &4096_u32.to_le_bytes()).unwrap();
    assert!(text.starts_with("minimal: hello"), "{text}");
}

#[test]
fn pv_disc_7_a_guest_goes_by_bits_whatever_the_version() {
    let at = offset_of!(BootInfo, version);
    for version in [0, ABI_VERSION + 1, u32::MAX] {
        let Some((text, _)) = run_spoilt(at, &version.to_le_bytes()) else {
            return;
        };
        assert!(text.contains("this came through the ring"), "{text}");
    }
}

#[test]
fn pv_disc_5_a_guest_finds_the_block_wherever_it_is() {
    if !kvm() {
        return;
    }
    let elf = build("gcc", "guest");
    let mut places = BTreeSet::new();
    for seed in 0..16 {
        // A host that refuses calls, but powers off.
        let output = command(&elf)
            .args(["--awkward", &seed.to_string()])
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "seed {seed}: {errors}");
        let (_, place) = errors.split_once("CPUID block moved by ").unwrap();
        places.insert(place.lines().next().unwrap().to_owned());
    }
    assert!(places.len() > 2, "{places:?}");
}
