//! Facility `clock`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::pv::BOOT_INFO;
use paravane_abi::boot_info::BootInfo;
use paravane_abi::clock::CLOCK_TSC_RELIABLE;
use paravane_abi::registry::*;

use super::guest::{Call, Guest, results};
use super::{Failure, Verdict};

fn now() -> Result<Duration, Failure> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

pub(super) fn pv_clock_1_the_frequency_is_in_boot_info() -> Verdict {
    let ran = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?;
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    let kvm = crate::kvm::open()?;
    let vcpu = kvm.create_vm()?.create_vcpu(0)?;
    check_eq!(info.clock.tsc_hz, u64::from(vcpu.get_tsc_khz()?) * 1000);
    Ok(())
}

pub(super) fn pv_clock_2_the_pair_is_of_this_run() -> Verdict {
    let before = now()?;
    let ran = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?;
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    let told = Duration::from_nanos(info.clock.wall_ns);
    check!(
        before <= told && told <= now()?,
        "{told:?} is not between the start and now"
    );
    Ok(())
}

pub(super) fn pv_clock_3_wall_tells_the_time() -> Verdict {
    let before = now()?;
    let results = results(&[Call::new(CALL_CLOCK_WALL, &[]); 3])?;
    let told: Vec<_> = results
        .iter()
        .flatten()
        .copied()
        .map(Duration::from_nanos)
        .collect();
    check_eq!(told.len(), 3, "answers among {results:?}");
    check!(before <= told[0], "{told:?}");
    check!(told.is_sorted(), "{told:?}");
    check!(told[2] <= now()?, "{told:?}");
    Ok(())
}

pub(super) fn pv_clock_4_only_defined_flags_are_set() -> Verdict {
    let ran = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?;
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    let clock = info.clock;
    check_eq!(clock.flags & !CLOCK_TSC_RELIABLE, 0);
    check_eq!((clock.reserved0, clock.reserved1), (0, 0));
    Ok(())
}

pub(super) fn pv_clock_5_the_timers_rate_is_in_boot_info() -> Verdict {
    let ran = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?;
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    // KVM's LAPIC counts nanoseconds unless it is told otherwise.
    check_eq!(info.clock.apic_timer_hz, 1_000_000_000);
    Ok(())
}
