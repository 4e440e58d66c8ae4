//! A guest by the library, inside the reference host: its memory can be looked at while it runs, and its host's clock set.
//!
//! The launches' script runs the one test here, which is ignored otherwise; it prints a line for each thing that it has
//! seen, and the tests outside look for these ([`Inside`]).

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use paravane::config::{Config, Profile};
use paravane::console::Console;
use paravane::memory::Memory;
use paravane::pv::RNG_SEED;
use paravane::stats::{Outcome, Stats};
use paravane::vm::{Machine, RunOptions, Vm, VmError};

/// Name of the test, for the script.
pub(crate) const TEST: &str = "inside::a_guest_follows_its_host";
/// Variables that say which kernel and initrd.
pub(crate) const KERNEL: &str = "PARAVANE_TEST_KERNEL";
pub(crate) const INITRD: &str = "PARAVANE_TEST_INITRD";

/// What the test has seen, each with a line.
pub(crate) const SEED_IS_GONE: &str = "inside: the seed is gone";
pub(crate) const STEP_IS_FOLLOWED: &str = "inside: the step is followed";
pub(crate) const COPY_IS_RESEEDED: &str = "inside: the copy has random numbers of its own";

/// A guest with a shell.
struct Guest {
    console: Console,
    memory: Memory,
    machine: Arc<Machine>,
    run: JoinHandle<Result<Stats, VmError>>,
}

impl Guest {
    fn boot() -> Self {
        let file = |name| PathBuf::from(std::env::var_os(name).expect("the script names the file"));
        let config = Config {
            initrd: Some(file(INITRD)),
            cmdline: "-- shell quietly end=poweroff".to_owned(),
            memory_mib: 128,
            watchdog: Some(Duration::from_secs(120)),
            ..Config::of(Profile::Para, file(KERNEL))
        };
        let console = Console::memory().unwrap();
        let mut vm = Vm::new(config, console.clone(), Instant::now()).unwrap();
        vm.boot().unwrap();
        assert_ne!(seed(vm.memory()), [0; 64], "there is a seed");
        Self {
            console,
            memory: vm.memory().clone(),
            machine: Arc::clone(vm.machine()),
            run: thread::spawn(move || vm.run(RunOptions::default())),
        }
    }

    /// What the guest prints from `from` on, once `found` finds something in it; and where that ends.
    fn wait<T>(&self, from: usize, what: &str, found: impl Fn(&str) -> Option<T>) -> (T, usize) {
        loop {
            let over = self.run.is_finished();
            let bytes = self.console.contents();
            let text = String::from_utf8_lossy(&bytes);
            let new = text.get(from..).unwrap_or_default();
            if let Some(value) = found(new) {
                return (value, text.len());
            }
            assert!(!over, "the guest does not say {what}:\n{text}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for(&self, from: usize, words: &str) -> usize {
        self.wait(from, words, |text| text.contains(words).then_some(()))
            .1
    }

    fn type_in(&self, line: &str) {
        assert_eq!(self.machine.input(line.as_bytes()), line.len());
    }

    /// The guest's time of day, seconds since 1970.
    fn time(&self, from: usize) -> (u64, usize) {
        self.type_in("echo time=$(date +%s)\n");
        self.wait(from, "the time", |text| {
            let (_, after) = text.rsplit_once("time=")?;
            let (digits, _) = after.split_once(|c: char| !c.is_ascii_digit())?;
            digits.parse().ok()
        })
    }
}

fn seed(memory: &Memory) -> [u8; 64] {
    memory.read_obj(RNG_SEED).unwrap()
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn set_clock(seconds: u64) {
    let status = Command::new("date")
        .args(["-s", &format!("@{seconds}")])
        .status();
    assert!(status.unwrap().success(), "the clock is set");
}

#[test]
#[ignore = "sets the clock of its host: the launches' script runs it, inside the reference host"]
fn a_guest_follows_its_host() {
    const STEP: u64 = 400 * 24 * 3600;
    const FOLLOWS: &str = "the time of day has been set by the host";
    let guest = Guest::boot();
    let at = guest.wait_for(0, "paravane# ");
    assert_eq!(seed(&guest.memory), [0; 64], "the seed is still there");
    println!("{SEED_IS_GONE}");

    let before = now();
    let (told, at) = guest.time(at);
    assert!(told.abs_diff(before) < 600, "{told}, {before}");
    set_clock(before + STEP);
    let at = guest.wait_for(at, FOLLOWS);
    let (told, at) = guest.time(at);
    assert!(told.abs_diff(before + STEP) < 600, "{told}, {before}");
    // And back again.
    set_clock(before);
    let at = guest.wait_for(at, FOLLOWS);
    let (told, at) = guest.time(at);
    assert!(told.abs_diff(before) < 600, "{told}, {before}");
    println!("{STEP_IS_FOLLOWED}");

    // As whoever restores a machine does.
    guest.machine.has_been_restored(0x5eed).unwrap();
    guest.wait_for(at, "crng reseeded due to virtual machine fork");
    println!("{COPY_IS_RESEEDED}");

    guest.type_in("exit\n");
    let stats = guest.run.join().unwrap().unwrap();
    assert_eq!(stats.outcome, Outcome::PowerOff, "{stats}");
    assert!(stats.to_string().contains("clock.event"), "{stats}");
}
