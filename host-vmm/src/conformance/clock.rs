//! Facility `clock`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::pv::BOOT_INFO;
use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::Status;
use paravane_abi::clock::{CLOCK_TSC_RELIABLE, ClockPage};
use paravane_abi::registry::*;

use super::guest::{Call, Guest, Ran, results};
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
    check_eq!(clock.reserved0, 0);
    Ok(())
}

pub(super) fn pv_clock_5_the_timers_rate_is_in_boot_info() -> Verdict {
    let ran = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?;
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    // KVM's LAPIC counts nanoseconds unless it is told otherwise.
    check_eq!(info.clock.apic_timer_hz, 1_000_000_000);
    Ok(())
}

/// Boot-info, and the page that it names, of a guest that has run.
fn pages(ran: &Ran) -> Result<(BootInfo, ClockPage), Failure> {
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    check!(info.clock.page != 0 && info.clock.page.is_multiple_of(PAGE_SIZE as u64));
    let page = ran.memory.read_obj(info.clock.page)?;
    let size = size_of::<ClockPage>();
    let rest = ran.bytes(info.clock.page + size as u64, PAGE_SIZE - size)?;
    check!(rest.iter().all(|byte| *byte == 0), "the page has more");
    Ok((info, page))
}

pub(super) fn pv_clock_7_the_page_has_the_clock_of_boot_info() -> Verdict {
    let before = now()?;
    let (info, page) = pages(&Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?)?;
    check_eq!(page.tsc_hz, info.clock.tsc_hz);
    check_eq!(page.flags, info.clock.flags);
    check_eq!(page.reserved, [0; 2]);
    let told = Duration::from_nanos(page.wall_ns);
    check!(before <= told && told <= now()?, "{told:?}");
    Ok(())
}

pub(super) fn pv_clock_8_nobody_writes_when_the_guest_begins() -> Verdict {
    let (_, page) = pages(&Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?)?;
    check!(
        page.sequence.is_multiple_of(2),
        "sequence {}",
        page.sequence
    );
    Ok(())
}

pub(super) fn pv_clock_11_the_generations_agree() -> Verdict {
    let (info, page) = pages(&Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?)?;
    check_eq!(page.generation, info.generation);
    Ok(())
}

pub(super) fn pv_clock_13_event_vectors_and_processors() -> Verdict {
    let guest = Guest {
        vcpus: 2,
        ..Guest::default()
    };
    let cases = [
        (0, 0, Ok(0)),
        (EVENT_VECTOR_FIRST, 1, Ok(0)),
        (EVENT_VECTOR_LAST, 0, Ok(0)),
        (EVENT_VECTOR_FIRST - 1, 0, Err(Status::InvalidParam)),
        (EVENT_VECTOR_LAST + 1, 0, Err(Status::InvalidParam)),
        (EVENT_VECTOR_FIRST, 2, Err(Status::InvalidParam)),
        (0, u64::MAX, Err(Status::InvalidParam)),
        (u64::MAX, 0, Err(Status::InvalidParam)),
    ];
    let calls = cases.map(|(vector, id, _)| Call::new(CALL_CLOCK_EVENT, &[vector, id]));
    let results = guest.run(&calls)?.results(&calls)?;
    for ((vector, id, expected), result) in cases.iter().zip(results) {
        check_eq!(result, *expected, "clock.event({vector:#x}, {id:#x})");
    }
    Ok(())
}
