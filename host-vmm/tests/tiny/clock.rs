//! Facility `clock`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use paravane::pv::BOOT_INFO;
use paravane_abi::boot_info::BootInfo;
use paravane_abi::clock::CLOCK_TSC_RELIABLE;
use paravane_abi::registry::*;

use crate::guest::{Call, Guest, results};

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

#[test]
fn pv_clock_1_the_frequency_is_in_boot_info() {
    let Some(ran) = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])]) else {
        return;
    };
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO).unwrap();
    let kvm = paravane::kvm::open().unwrap();
    let vcpu = kvm.create_vm().unwrap().create_vcpu(0).unwrap();
    assert_eq!(
        info.clock.tsc_hz,
        u64::from(vcpu.get_tsc_khz().unwrap()) * 1000
    );
}

#[test]
fn pv_clock_2_the_pair_is_of_this_run() {
    let before = now();
    let Some(ran) = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])]) else {
        return;
    };
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO).unwrap();
    let told = Duration::from_nanos(info.clock.wall_ns);
    assert!(
        before <= told && told <= now(),
        "{told:?} is not between the start and now"
    );
}

#[test]
fn pv_clock_3_wall_tells_the_time() {
    let before = now();
    let Some(results) = results(&[Call::new(CALL_CLOCK_WALL, &[]); 3]) else {
        return;
    };
    let told: Vec<_> = results
        .iter()
        .map(|r| Duration::from_nanos(r.unwrap()))
        .collect();
    assert!(before <= told[0], "{told:?}");
    assert!(told.is_sorted(), "{told:?}");
    assert!(told[2] <= now(), "{told:?}");
}

#[test]
fn pv_clock_4_flags_and_timer() {
    let Some(ran) = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])]) else {
        return;
    };
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO).unwrap();
    let clock = info.clock;
    assert_eq!(clock.flags & !CLOCK_TSC_RELIABLE, 0);
    // KVM's LAPIC counts nanoseconds unless it is told otherwise.
    assert_eq!(clock.apic_timer_hz, 1_000_000_000);
    assert_eq!((clock.reserved0, clock.reserved1), (0, 0));
}
