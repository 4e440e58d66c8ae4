//! Facility `mem` and virtio's balloon in whole guests: what is zero, what goes back to the host, what the guest keeps from itself.

use crate::launch_or_skip;
use crate::launches::{Launch, launches};

/// Words of the memory workload that were not zero, the first time and the second; `None`: it has not run.
fn dirty_words(launch: &Launch) -> Option<[u64; 2]> {
    let (_, line) = launch.console.split_once("PARAVANE-MEMORY ")?;
    let mut words = line.split(' ').map(|word| word.parse().ok());
    Some([words.next()??, words.next()??])
}

/// A number of its status, each time that it was asked.
fn told(launch: &Launch, what: &str) -> Vec<u64> {
    let statuses = launch.statuses.iter();
    statuses
        .filter_map(|status| status[what].as_u64())
        .collect()
}

#[test]
fn pv_mem_3_new_memory_is_zero_whoever_had_it_before() {
    // The awkward host fills memory that it does not call fresh; each guest then uses half of its memory twice.
    let names = [
        "para-memory",
        "para-without-mem",
        "para-awkward-16",
        "kvm-pv-balloon",
        "para-balloon",
    ];
    for name in names {
        let launch = launch_or_skip!(name);
        assert_eq!(dirty_words(launch), Some([0, 0]), "{launch}");
    }
}

#[test]
fn pv_mem_5_memory_that_the_guest_has_freed_is_the_hosts_again() {
    let launch = launch_or_skip!("para-memory");
    assert!(launch.call("mem.report") > 0, "{launch}");
    has_given_back(launch);
}

fn has_given_back(launch: &Launch) {
    let resident = told(launch, "resident_mib");
    let most = resident.iter().copied().max().unwrap_or(0);
    let after = resident.iter().skip_while(|mib| **mib < most);
    let least = after.copied().min().unwrap_or(0);
    // 64 MiB were used, and then free; what of them is no whole huge page stays.
    assert!(most >= least + 32, "{resident:?}: {launch}");
}

#[test]
fn a_virtio_balloon_gives_back_what_the_guest_has_freed() {
    for name in ["kvm-pv-balloon", "para-balloon"] {
        let launch = launch_or_skip!(name);
        has_given_back(launch);
        let needed = told(launch, "needed_mib");
        let most = needed.iter().copied().max().unwrap_or(0);
        assert!((64..=128).contains(&most), "{needed:?}: {launch}");
        let told = &launch.stats["guest_memory"]["total"];
        assert!(
            (64 << 20..128 << 20).contains(&told.as_u64().unwrap_or(0)),
            "{launch}"
        );
    }
}

#[test]
fn without_facility_mem_the_host_gets_nothing_back() {
    let launch = launch_or_skip!("para-without-mem");
    assert_eq!(launch.call("mem.report"), 0, "{launch}");
    let resident = told(launch, "resident_mib");
    let most = resident.iter().copied().max().unwrap_or(0);
    let last = resident.last().copied().unwrap_or(0);
    // The VMM's own memory comes and goes; a guest that gives back gives 32.
    assert!(most > 64 && last + 16 >= most, "{resident:?}: {launch}");
    assert!(told(launch, "kept_mib").is_empty(), "{launch}");
}

#[test]
fn pv_mem_14_a_guest_says_what_it_would_miss() {
    let launch = launch_or_skip!("para-memory");
    let needed = told(launch, "needed_mib");
    let most = needed.iter().copied().max().unwrap_or(0);
    // Of 128 MiB it uses 64 and some when it is told to keep 16; then it tells.
    assert!((1..=128).contains(&most), "{needed:?}: {launch}");
}

#[test]
fn pv_mem_12_a_guest_keeps_what_the_host_wants() {
    let launch = launch_or_skip!("para-memory");
    keeps_what_is_wanted(launch);
    assert_eq!(launch.call("mem.event"), 1, "{launch}");
}

fn keeps_what_is_wanted(launch: &Launch) {
    let kept = told(launch, "kept_mib");
    // Of 16 that are asked for; Linux takes one back where it has nothing else to allocate.
    assert!(
        kept.iter().any(|mib| (10..=16).contains(mib)),
        "{kept:?}: {launch}"
    );
    assert_eq!(kept.last(), Some(&0), "{kept:?}: {launch}");
}

#[test]
fn a_virtio_balloon_keeps_what_the_host_wants() {
    keeps_what_is_wanted(launch_or_skip!("kvm-pv-balloon"));
    keeps_what_is_wanted(launch_or_skip!("para-balloon"));
}
