// SPDX-License-Identifier: GPL-2.0-only

//! What of the host's word can be true. Nothing here needs the kernel: the tests are
//! `hypercall-abi/tests/guest.rs`.

use crate::abi::{
    boot_info::*, clock::ClockInfo, console::ConsoleInfo, cpuid::CpuidEntry, dev::*, registry::*,
};
use core::{
    mem::{offset_of, size_of},
    ptr,
};

const NSEC_PER_SEC: u64 = 1_000_000_000;

/// Frequencies that can be true, Hz. A counter that is said to be much slower than it is makes a
/// tick shorter than its interrupt. With the upper limit, the remainder of a division by `tsc_hz`
/// times 10^9 still fits in 64 bits.
const TSC_HZ_MIN: u64 = 100_000_000;
const TSC_HZ_MAX: u64 = 16 * NSEC_PER_SEC;

/// The same of the LAPIC timer; the kernel has it per tick in 32 bits.
const APIC_HZ_MIN: u64 = 1_000_000;
const APIC_HZ_MAX: u64 = u32::MAX as u64;

/// The most entries of a queue that virtio allows.
const QUEUE_MAX: u32 = 32768;

/// The boot-info page as far as it has been said, zero beyond; `None` where it cannot be one, or
/// names another doorbell than CPUID's `port`.
pub(crate) fn boot_info(page: &BootInfo, port: u32) -> Option<BootInfo> {
    let size = page.size as usize;
    let is_page = page.magic == BOOT_INFO_MAGIC
        && (offset_of!(BootInfo, clock)..=PAGE_SIZE).contains(&size)
        && page.has(FACILITY_BASE);
    let has_doorbell =
        page.doorbell_port == port && port <= 0xffff && page.transports & TRANSPORT_DOORBELL != 0;
    if !is_page || !has_doorbell {
        return None;
    }
    let mut said = BootInfo::default();
    // What lies beyond `size`, or only in part below it, has not been said. Spec: PV-BOOT-7
    let length = (size & !7).min(size_of::<BootInfo>());
    // SAFETY: Both are a `BootInfo`, which has integers only: any bytes make a valid one.
    unsafe {
        ptr::copy_nonoverlapping(
            ptr::from_ref(page).cast::<u8>(),
            ptr::from_mut(&mut said).cast::<u8>(),
            length,
        );
    }
    Some(said)
}

/// Whether the console's rings can be these.
pub(crate) fn console(info: &ConsoleInfo) -> bool {
    let is_size = |size: u32| size.is_power_of_two() && size as usize >= PAGE_SIZE;
    is_size(info.out_size) && is_size(info.in_size)
}

/// Whether the TSC can run at this rate.
pub(crate) fn tsc_hz(clock: &ClockInfo) -> bool {
    (TSC_HZ_MIN..=TSC_HZ_MAX).contains(&clock.tsc_hz)
}

/// Whether the LAPIC timer can; zero: nobody knows.
pub(crate) fn apic_timer_hz(clock: &ClockInfo) -> bool {
    clock.apic_timer_hz == 0 || (APIC_HZ_MIN..=APIC_HZ_MAX).contains(&clock.apic_timer_hz)
}

/// Whether a device can have such queues.
pub(crate) fn device(entry: &DevEntry) -> bool {
    entry.queue_max.is_power_of_two()
        && entry.queue_max <= QUEUE_MAX
        && entry.queues as usize <= DEV_QUEUES_MAX
}

/// How many entries of a CPUID table are in order: what comes after them would be found in place of
/// others. Spec: PV-CPUID-1
pub(crate) fn cpuid_count(table: &[CpuidEntry]) -> usize {
    let key = |entry: &CpuidEntry| (entry.leaf, entry.subleaf);
    let disorder = table
        .windows(2)
        .position(|pair| key(&pair[0]) >= key(&pair[1]));
    disorder.map_or(table.len(), |before| before + 1)
}

/// Nanoseconds that `ticks` of the TSC take: whole seconds and the rest apart, since the product
/// would not fit in 64 bits.
pub(crate) fn ticks_to_ns(ticks: u64, tsc_hz: u64) -> u64 {
    (ticks / tsc_hz)
        .wrapping_mul(NSEC_PER_SEC)
        .wrapping_add(ticks % tsc_hz * NSEC_PER_SEC / tsc_hz)
}
