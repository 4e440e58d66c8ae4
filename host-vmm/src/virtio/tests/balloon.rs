//! A balloon and its driver, good and hostile.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::driver::{NEXT, WRITE, wait_for};
use super::rings::{Rings, SIZE, base};
use crate::memory::Memory;
use crate::snapshot::Saved;
use crate::virtio::COMMON_FEATURES;
use crate::virtio::balloon::{Balloon, BalloonState, WANTED};

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
const REPORTS: u16 = 3;
/// `VIRTIO_BALLOON_F_REPORTING`.
const REPORTING: u64 = 1 << 5;
/// A page that is given back, as a number.
const PAGE: u32 = 0x1000;
const MIB: u64 = 1 << 20;

fn made() -> (Rings, Arc<BalloonState>) {
    let (memory, state) = (Memory::new(32).unwrap(), Arc::<BalloonState>::default());
    let device = Balloon::new(memory.clone(), Arc::clone(&state));
    (Rings::new(Box::new(device), memory), state)
}

/// Writes to `count` pages.
fn dirty(rings: &Rings, count: u32) {
    let bytes = vec![0xa5; count as usize * 4096];
    rings.memory.write(u64::from(PAGE) << 12, &bytes).unwrap();
}

/// The numbers of the pages that are zero, of so many.
fn zeros(rings: &Rings, count: u32) -> Vec<u32> {
    let is_zero = |page: &u32| {
        let mut bytes = [1; 4096];
        let at = u64::from(PAGE + page) << 12;
        rings.memory.read(at, &mut bytes).unwrap();
        assert!(bytes == [0; 4096] || bytes == [0xa5; 4096]);
        bytes[0] == 0
    };
    (0..count).filter(is_zero).collect()
}

/// Names pages, and waits until the device has them.
fn name(rings: &mut Rings, queue: u16, pages: &[u32]) {
    let numbers = pages.iter().flat_map(|page| (PAGE + page).to_le_bytes());
    rings.send(queue, &numbers.collect::<Vec<_>>());
    wait_for("an answer", || {
        rings.used(queue) == rings.offered[usize::from(queue)]
    });
}

#[test]
fn what_is_put_in_is_zero_and_counted_until_it_is_taken_out() {
    let (mut rings, state) = made();
    dirty(&rings, 8);
    // In any order, and twice.
    name(&mut rings, INFLATE, &[6, 1, 2, 5]);
    name(&mut rings, INFLATE, &[3]);
    assert_eq!(zeros(&rings, 8), [1, 2, 3, 5, 6]);
    let told = state.memory_use();
    assert_eq!((told.kept, told.reported), (5 << 12, 5 << 12));
    assert_eq!(told.needed, None);
    name(&mut rings, DEFLATE, &[3, 2]);
    dirty(&rings, 4);
    assert_eq!(zeros(&rings, 8), [5, 6]);
    assert_eq!(state.memory_use().kept, 3 << 12);
    name(&mut rings, DEFLATE, &[7, 7, 7, 7, 7, 7]);
    assert_eq!(state.memory_use().kept, 0);
}

#[test]
fn what_the_driver_has_free_is_the_hosts_in_whole_pages() {
    let (mut rings, state) = made();
    dirty(&rings, 8);
    let at = u64::from(PAGE) << 12;
    rings.offer(REPORTS, at + 4096, 2 * 4096, WRITE);
    rings.offer(REPORTS, at + 4 * 4096 + 1, 2 * 4096, WRITE);
    rings.offer(REPORTS, at + 7 * 4096 + 1, 4095, WRITE);
    wait_for("all reports", || rings.used(REPORTS) == 3);
    assert_eq!(zeros(&rings, 8), [1, 2, 5]);
    assert_eq!(state.memory_use().reported, 3 << 12);
    assert_eq!(state.memory_use().kept, 0);
}

#[test]
fn a_wish_is_in_the_configuration_and_an_interrupt() {
    let (rings, state) = made();
    state.want(16 * MIB + 1);
    rings.unit.configure(WANTED, state.wanted_pages());
    assert_eq!(rings.unit.config()[..4], 4096_u32.to_le_bytes());
    assert_eq!(rings.unit.generation(), 1);
    assert_eq!(rings.told.config.load(Ordering::SeqCst), 4096);
    state.want(u64::MAX);
    assert_eq!(state.wanted_pages(), u32::MAX);
}

/// Statistics of these bytes, as a driver writes them.
fn statistics(total: u64, available: u64) -> Vec<u8> {
    let all = [(5_u16, total), (6, available), (77, 1)];
    let bytes = |(tag, value): (u16, u64)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    all.map(bytes).concat()
}

#[test]
fn the_driver_has_its_buffer_back_when_somebody_asks() {
    let (mut rings, state) = made();
    for round in 0..u64::from(SIZE) * 2 {
        rings.send(STATISTICS, &statistics(round + 32 * MIB, round * 2));
        let needed = (32 * MIB).checked_sub(round);
        wait_for("what it tells", || state.memory_use().needed == needed);
        assert_eq!(state.statistics().len(), 2, "the tag that nobody knows");
        assert_eq!(u64::from(rings.used(STATISTICS)), round);
        // It does not answer, and is not waited for longer than a moment.
        state.ask(&rings.unit);
        wait_for("its buffer", || {
            u64::from(rings.used(STATISTICS)) == round + 1
        });
    }
    assert!(rings.told.used.load(Ordering::SeqCst) > 0);
}

#[test]
fn a_driver_without_statistics_reports_in_the_third_queue() {
    let (mut rings, state) = made();
    rings.unit.stop();
    rings.start_with(COMMON_FEATURES | REPORTING, 3);
    dirty(&rings, 2);
    rings.offer(2, u64::from(PAGE) << 12, 4096, WRITE);
    wait_for("the report", || rings.used(2) == 1);
    assert_eq!(zeros(&rings, 2), [0]);
    state.ask(&rings.unit);
    rings.unit.stop();
    // A queue less than the features want.
    let few = [0, 1].map(super::rings::setup);
    assert!(rings.unit.start(COMMON_FEATURES | REPORTING, &few).is_err());
    rings.start_with(COMMON_FEATURES, 2);
    name(&mut rings, INFLATE, &[1]);
    assert_eq!(zeros(&rings, 2), [0, 1]);
}

#[test]
fn a_driver_that_breaks_the_rules_loses_the_balloon_and_nothing_is_given_back() {
    let (mut rings, state) = made();
    dirty(&rings, 1024);
    let end = 32 << 20 >> 12;
    let numbers = |pages: &[u32]| pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    let requests: [(u16, Vec<u8>); 7] = [
        (INFLATE, numbers(&[PAGE, end])),
        (INFLATE, numbers(&[u32::MAX, PAGE, 0])),
        (DEFLATE, numbers(&[end])),
        (INFLATE, vec![0; 3]),
        (INFLATE, vec![]),
        (INFLATE, numbers(&vec![PAGE; 1025])),
        (STATISTICS, vec![0; 650]),
    ];
    for (number, (queue, bytes)) in requests.iter().enumerate() {
        rings.send(*queue, bytes);
        wait_for("the device's end", || rings.unit.needs_reset());
        assert_eq!(rings.used(*queue), 0, "{number}");
        rings.unit.stop();
        rings.start();
    }
    let at = u64::from(PAGE) << 12;
    for (address, length, flags) in [
        (at, 4096, 0),
        (at, 0, WRITE),
        (32 << 20, 4096, WRITE),
        (at, u32::MAX, WRITE),
        (at, 4096, WRITE | NEXT),
    ] {
        rings.offer(REPORTS, address, length, flags);
        wait_for("the device's end", || rings.unit.needs_reset());
        rings.unit.stop();
        rings.start();
    }
    assert!(zeros(&rings, 1024).is_empty());
    let told = state.memory_use();
    assert_eq!((told.kept, told.reported), (0, 0));
}

#[test]
fn a_restored_balloon_goes_on_with_what_is_in_it() {
    let (mut rings, state) = made();
    state.want(3 << 12);
    name(&mut rings, INFLATE, &[0, 1, 2]);
    let (again, restored) = made();
    again.unit.stop();
    restored.restore(state.save().unwrap()).unwrap();
    again.memory.write(base(0), &[0; 0x3000]).unwrap();
    let setups = [0, 1, 2, 3].map(super::rings::setup);
    again.unit.start(again.unit.features(), &setups).unwrap();
    let told = restored.memory_use();
    assert_eq!((told.kept, told.reported), (3 << 12, 3 << 12));
    assert_eq!(restored.wanted_pages(), 3);
    // After a reset there is nothing in it.
    again.unit.stop();
    again.unit.start(again.unit.features(), &setups).unwrap();
    assert_eq!(restored.memory_use().kept, 0);
}
