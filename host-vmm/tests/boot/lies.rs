//! A para guest on a host that lies (`paravane::lies`): it goes on without what it was lied about, or says why it cannot.

use paravane::lies::LIES;

use crate::launch_or_skip;
use crate::launches::launches;

/// A launch: its name, the lies and what else `paravane run` gets, and what the guest says of it.
type Told = (&'static str, &'static str, &'static [&'static str]);

pub(crate) const LAUNCHES: [Told; 10] = [
    (
        "para-lies-page",
        "facilities,timer-slow,time-of-day,cpuid-count,fresh,memory-page,seed,kvm,devices --cpus 2 --pv=-irq,-ipi,-tlb,-sched",
        &[
            "clock: LAPIC timer of 3 Hz is ignored",
            "mem: page at 0x1000000 is not used",
            "rng: a seed of 2147483648 bytes",
            "dev: device 8 has 4294967295 queues",
        ],
    ),
    ("para-lies-short", "short,tsc-slow", &[]),
    (
        "para-lies-processors",
        "processors",
        &["smp: processor 1 is not started"],
    ),
    ("para-lies-ring-sizes", "ring-sizes", &[]),
    ("para-lies-ring-places", "ring-places", &[]),
    // There is no other clock: see the test.
    (TSC, "tsc-stands", &[]),
    (
        "para-lies-pages",
        "indices,wishes,clock-page,events --cpus 2",
        &[],
    ),
    (
        "para-lies-busy",
        "busy",
        &["clock: jumps are not followed: Busy"],
    ),
    (
        "para-lies-refused",
        "refused --cpus 2",
        &["smp: processor 1 is not started: Denied"],
    ),
    ("para-lies-done", "done,silence --cpus 2", &[]),
];

const TSC: &str = "para-lies-tsc";

#[test]
fn a_para_guest_bears_a_host_that_lies() {
    for (name, _, says) in LAUNCHES {
        let launch = launch_or_skip!(name);
        let expected = match name {
            TSC => (2, "crash"),
            _ => (0, "power-off"),
        };
        assert_eq!(
            (launch.code, launch.outcome()),
            expected,
            "{name}: {launch}"
        );
        for words in says {
            assert!(launch.console.contains(words), "{name}: {words}: {launch}");
        }
    }
    let launch = launch_or_skip!(TSC);
    assert!(launch.errors.contains("facility clock"), "{launch}");
}

#[test]
fn each_lie_is_told_to_a_guest() {
    let told = LAUNCHES.map(|(_, options, _)| options.split(' ').next().unwrap());
    let told: Vec<&str> = told.iter().flat_map(|lies| lies.split(',')).collect();
    for lie in &LIES {
        assert!(told.contains(&lie.name), "{}", lie.name);
    }
}
