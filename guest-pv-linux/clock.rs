// SPDX-License-Identifier: GPL-2.0-only

//! Facility `clock`: frequencies and the time of day, told instead of measured.
//!
//! They replace the calibration of the TSC against the PIT, that of the LAPIC timer against the
//! TSC, and the CMOS clock. Clocksource and timer stay native: TSC and LAPIC.

use crate::{
    abi::{boot_info::BootInfo, clock::*, registry::*},
    detect::host,
    kernel_c,
    once::Once,
};
use kernel::prelude::*;

const NSEC_PER_SEC: u64 = 1_000_000_000;

/// Frequencies that can be true, Hz. With the upper limit, the remainder of a division by
/// `tsc_hz` times 10^9 still fits in 64 bits.
const TSC_HZ_MIN: u64 = 1_000_000;
const TSC_HZ_MAX: u64 = 16 * NSEC_PER_SEC;

static CLOCK: Once<ClockInfo> = Once::new();

/// Takes the clock's part of the boot-info page.
///
/// # Safety
///
/// Only the boot processor runs, and calls this once.
pub(crate) unsafe fn init(info: &BootInfo) {
    if !info.has(FACILITY_CLOCK) {
        return;
    }
    let mut clock = info.clock;
    if !(TSC_HZ_MIN..=TSC_HZ_MAX).contains(&clock.tsc_hz) {
        pr_warn!("clock: a TSC of {} Hz cannot be; not used\n", clock.tsc_hz);
        return;
    }
    // The kernel has it per tick in 32 bits, and finds it out by itself where it is zero.
    if clock.apic_timer_hz > u64::from(u32::MAX) {
        pr_warn!(
            "clock: LAPIC timer of {} Hz is ignored\n",
            clock.apic_timer_hz
        );
        clock.apic_timer_hz = 0;
    }
    // SAFETY: By the function's requirement.
    unsafe { CLOCK.set(clock) };
}

/// Whether the host has facility `clock`.
#[no_mangle]
extern "C" fn paravane_has_clock() -> bool {
    CLOCK.get().is_some()
}

/// TSC frequency in kHz, 0 without the facility.
#[no_mangle]
extern "C" fn paravane_tsc_khz() -> usize {
    CLOCK
        .get()
        .map_or(0, |clock| (clock.tsc_hz / 1000) as usize)
}

/// Frequency of the LAPIC timer with divide configuration 1, Hz; 0 where it is not known.
#[no_mangle]
extern "C" fn paravane_apic_timer_hz() -> u64 {
    CLOCK.get().map_or(0, |clock| clock.apic_timer_hz)
}

/// Whether all processors' TSCs count together and never stop.
#[no_mangle]
extern "C" fn paravane_tsc_reliable() -> bool {
    CLOCK
        .get()
        .is_some_and(|clock| clock.flags & CLOCK_TSC_RELIABLE != 0)
}

/// Nanoseconds that `ticks` of the TSC take: whole seconds and the rest apart, since the product
/// would not fit in 64 bits.
fn ticks_to_ns(ticks: u64, tsc_hz: u64) -> u64 {
    (ticks / tsc_hz)
        .wrapping_mul(NSEC_PER_SEC)
        .wrapping_add(ticks % tsc_hz * NSEC_PER_SEC / tsc_hz)
}

/// Nanoseconds since 1970; 0 where they cannot be told.
#[no_mangle]
extern "C" fn paravane_wall_ns() -> u64 {
    let (Some(host), Some(clock)) = (host(), CLOCK.get()) else {
        return 0;
    };
    if paravane_tsc_reliable() && clock.wall_ns != 0 {
        // SAFETY: Only reads a register.
        let now = unsafe { kernel_c::paravane_rdtsc() };
        let passed = ticks_to_ns(now.wrapping_sub(clock.wall_tsc), clock.tsc_hz);
        return clock.wall_ns.wrapping_add(passed);
    }
    // SAFETY: `clock.wall` takes no address.
    match unsafe { host.call(CALL_CLOCK_WALL, []) } {
        Ok(now) => now,
        Err(status) => {
            // Late by the time since the start, but not by half a century.
            pr_warn!("clock: no time of day ({status:?}); taking that of the start\n");
            clock.wall_ns
        }
    }
}
