// SPDX-License-Identifier: GPL-2.0-only

//! Facility `clock`: frequencies and the time of day, told instead of measured.
//!
//! They replace the calibration of the TSC against the PIT, that of the LAPIC timer against the
//! TSC, and the CMOS clock. Clocksource and timer stay native: TSC and LAPIC.
//!
//! A clock that jumps is followed: the host says so in its page and raises the event, on the
//! vector that the console has, too. The interrupt only looks at a word; what follows is done by a
//! work item, since setting the time of day wakes timers.

use crate::{
    abi::{boot_info::BootInfo, clock::*, registry::*},
    checks,
    detect::host,
    kernel_c,
    once::Once,
    rng,
    shared_page::SharedRange,
};
use core::{
    mem::{offset_of, size_of},
    sync::atomic::{fence, AtomicU64, Ordering},
};
use kernel::prelude::*;

/// How often a page that the host is writing to is read again.
const TRIES: u32 = 1000;
const DISRUPTION: usize = offset_of!(ClockPage, disruption);

static CLOCK: Once<ClockInfo> = Once::new();

/// The host's page, and what has been seen of it.
struct Page {
    shared: SharedRange,
    disruption: AtomicU64,
    generation: AtomicU64,
}

static PAGE: Once<Page> = Once::new();

impl Page {
    /// The page as it is between two changes; `None` where the host does not come to an end.
    /// Spec: PV-CLOCK-9
    fn read(&self) -> Option<ClockPage> {
        for _ in 0..TRIES {
            let sequence = self.shared.load_acquire(0);
            // SAFETY: Any bytes make a valid `ClockPage`: it has integers only.
            let page: ClockPage = unsafe { self.shared.read(0) };
            fence(Ordering::Acquire);
            if sequence % 2 == 0 && self.shared.load_acquire(0) == sequence {
                return Some(page);
            }
            core::hint::spin_loop();
        }
        None
    }

    /// What the host's `disruption` is now, or is becoming.
    fn disruption_now(&self) -> u64 {
        // SAFETY: Any bytes make a valid `u64`.
        unsafe { self.shared.read(DISRUPTION) }
    }
}

/// The host's page, where it has one that can be.
#[link_section = ".init.text"]
fn find_page(clock: &ClockInfo) -> Option<Page> {
    if clock.page == 0 {
        return None;
    }
    let Some(shared) = SharedRange::new(clock.page, size_of::<ClockPage>() as u64) else {
        pr_warn!("clock: a page at {:#x} cannot be; not used\n", clock.page);
        return None;
    };
    let page = Page {
        shared,
        disruption: AtomicU64::new(0),
        generation: AtomicU64::new(0),
    };
    let now = page.read()?;
    page.disruption.store(now.disruption, Ordering::Relaxed);
    page.generation.store(now.generation, Ordering::Relaxed);
    Some(page)
}

/// Takes the clock's part of the boot-info page.
///
/// # Safety
///
/// Only the boot processor runs, and calls this once.
#[link_section = ".init.text"]
pub(crate) unsafe fn init(info: &BootInfo) {
    if !info.has(FACILITY_CLOCK) {
        return;
    }
    let mut clock = info.clock;
    if !checks::tsc_hz(&clock) {
        pr_warn!("clock: a TSC of {} Hz cannot be; not used\n", clock.tsc_hz);
        return;
    }
    // The kernel finds it out by itself where it is zero.
    if !checks::apic_timer_hz(&clock) {
        pr_warn!(
            "clock: LAPIC timer of {} Hz is ignored\n",
            clock.apic_timer_hz
        );
        clock.apic_timer_hz = 0;
    }
    // SAFETY: By the function's requirement.
    unsafe { CLOCK.set(clock) };
    if let Some(page) = find_page(&clock) {
        // SAFETY: By the function's requirement.
        unsafe { PAGE.set(page) };
    }
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

/// Time of day and TSC at one moment: the latest that the host has told.
fn pair(clock: &ClockInfo) -> (u64, u64) {
    match PAGE.get().and_then(Page::read) {
        Some(page) => (page.wall_ns, page.wall_tsc),
        None => (clock.wall_ns, clock.wall_tsc),
    }
}

/// Nanoseconds since 1970; 0 where they cannot be told.
#[no_mangle]
extern "C" fn paravane_wall_ns() -> u64 {
    let (Some(host), Some(clock)) = (host(), CLOCK.get()) else {
        return 0;
    };
    let (wall_ns, wall_tsc) = pair(clock);
    if paravane_tsc_reliable() && wall_ns != 0 {
        // SAFETY: Only reads a register.
        let now = unsafe { kernel_c::paravane_rdtsc() };
        let passed = checks::ticks_to_ns(now.wrapping_sub(wall_tsc), clock.tsc_hz);
        return wall_ns.wrapping_add(passed);
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

/// Asks the host to raise `vector` on the processor `apic_id` when its clock jumps. Whether there
/// is something to follow: now, and from now on.
#[no_mangle]
extern "C" fn paravane_clock_listen(vector: u32, apic_id: u32) -> bool {
    let (Some(host), Some(_)) = (host(), PAGE.get()) else {
        return false;
    };
    let arguments = [u64::from(vector), u64::from(apic_id)];
    // SAFETY: `clock.event` takes no address, and `helpers.c` has a handler for the vector.
    match unsafe { host.call(CALL_CLOCK_EVENT, arguments) } {
        Ok(_) => true,
        Err(status) => {
            pr_warn!("clock: jumps are not followed: {status:?}\n");
            false
        }
    }
}

/// Whether the clock has jumped since it was last followed. Called by the interrupt.
#[no_mangle]
extern "C" fn paravane_clock_has_jumped() -> bool {
    PAGE.get()
        .is_some_and(|page| page.disruption_now() != page.disruption.load(Ordering::Relaxed))
}

/// Follows a clock that has jumped. Called by one work item.
#[no_mangle]
extern "C" fn paravane_clock_follow() {
    let (Some(page), Some(clock)) = (PAGE.get(), CLOCK.get()) else {
        return;
    };
    // A host that does not come to an end raises the event when it does.
    let Some(told) = page.read() else {
        return;
    };
    if page.disruption.swap(told.disruption, Ordering::Relaxed) == told.disruption {
        return;
    }
    // First of all: a key must not be made twice.
    if page.generation.swap(told.generation, Ordering::Relaxed) != told.generation {
        // SAFETY: The one work item is the only caller.
        unsafe { rng::reseed(told.generation) };
    }
    if told.tsc_hz != clock.tsc_hz {
        pr_warn!(
            "clock: the TSC runs at {} Hz, and not at {}: time is wrong from now on\n",
            told.tsc_hz,
            clock.tsc_hz
        );
    }
    let wall_ns = paravane_wall_ns();
    if wall_ns != 0 {
        // SAFETY: No requirements but that the caller can sleep, as a work item does.
        unsafe { kernel_c::paravane_set_wall(wall_ns) };
    }
}

/// The machine's generation; 0 where the host has no page.
pub(crate) fn generation() -> u64 {
    PAGE.get()
        .map_or(0, |page| page.generation.load(Ordering::Relaxed))
}
