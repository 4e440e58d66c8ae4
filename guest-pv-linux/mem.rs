// SPDX-License-Identifier: GPL-2.0-only

//! Facility `mem`: memory that is zero is not cleared, and memory goes back to the host.
//!
//! # Fresh memory
//!
//! A bit for each page says whether the page is *fresh*: the host has said that it is zero, and
//! nobody has used it since. The allocators ask when they hand memory out (`take_fresh_memory()`
//! in C), and clear what is not fresh. Asking takes the bit away. Memory that memblock gives out,
//! fresh or not, loses its bits when it is freed, or at the latest before the page allocator gets
//! the rest; so the page allocator's pages with a bit are those that nobody has had.
//!
//! Whoever writes to memory that nobody has given out is against it: `CONFIG_FRESH_MEMORY` is off
//! with memory tests, page poisoning, hibernation and kexec, and the bits are not set where a
//! decompressor has moved the kernel to a place of its own choice.
//!
//! # Giving back
//!
//! The kernel's page reporting (`mm/page_reporting.c`) names huge pages that are free, and
//! `mem.report` gives them back, a batch for a call; they are fresh then. The balloon, in
//! `memory.c`, allocates what the host would like us to do without, and reports it likewise.

use crate::{
    abi::{
        boot_info::BootInfo,
        mem::{MemPage, MemRange},
        registry::*,
    },
    detect::host,
    fresh, kernel_c,
    once::Once,
    shared_page::SharedRange,
};
use core::{mem::offset_of, sync::atomic::AtomicU64};
use kernel::prelude::*;

const PAGE: u64 = PAGE_SIZE as u64;

const WANTED: usize = offset_of!(MemPage, wanted);
const KEPT: usize = offset_of!(MemPage, kept);
const NEEDED: usize = offset_of!(MemPage, needed);

/// The page with the host's wish.
static BALLOON: Once<SharedRange> = Once::new();

/// A bit for each page of memory, from address zero on.
static FRESH: Once<&'static [AtomicU64]> = Once::new();

/// Sets the bits that the host's word gives; whether there are any. Called once, when memblock
/// and the kernel's mapping of all memory are there, and nothing has been given back yet.
#[no_mangle]
#[link_section = ".init.text"]
extern "C" fn paravane_init_fresh_memory() -> bool {
    let Some(host) = host().filter(|host| host.info.has(FACILITY_MEM)) else {
        return false;
    };
    let ranges = host.info.mem.fresh;
    // SAFETY: Only reads a variable.
    let limit = unsafe { kernel_c::paravane_memory_end() };
    let end = ranges
        .iter()
        .filter(|range| range.size > 0)
        .map(|range| range.address.saturating_add(range.size).min(limit))
        .max()
        .unwrap_or(0);
    let words = (end / PAGE).div_ceil(64) as usize;
    if words == 0 {
        return false;
    }
    // SAFETY: Runs while memblock hands memory out (see above).
    let memory = unsafe { kernel_c::paravane_boot_memory(words * 8) }.cast::<AtomicU64>();
    if memory.is_null() {
        return false;
    }
    // SAFETY: `memory` is that many zeroed bytes, aligned to a cache line, and never freed.
    let bits = unsafe { core::slice::from_raw_parts(memory, words) };
    for range in ranges {
        fresh::set(bits, range);
    }
    // SAFETY: Only the boot processor runs, and calls this function once.
    unsafe { FRESH.set(bits) };
    true
}

/// Takes the range: whether all of it was zero. Its pages are not fresh any more.
#[no_mangle]
extern "C" fn arch_take_fresh_memory(address: u64, size: u64) -> bool {
    FRESH
        .get()
        .is_some_and(|bits| fresh::take(bits, address, size))
}

/// Whether the host has facility `mem`.
#[no_mangle]
extern "C" fn paravane_has_mem() -> bool {
    host().is_some_and(|host| host.info.has(FACILITY_MEM))
}

/// Gives the ranges back to the host; false where it refuses. Their pages are fresh then.
///
/// # Safety
///
/// The list has `count` entries in the kernel's mapping of all memory, and nobody uses the
/// memory that they name.
#[no_mangle]
unsafe extern "C" fn paravane_report_ranges(list: *const MemRange, count: u32) -> bool {
    let Some(host) = host() else {
        return false;
    };
    // SAFETY: By the function's requirement.
    let address = unsafe { kernel_c::paravane_pa(list.cast()) };
    // SAFETY: By the function's requirement nobody misses what the host makes zero.
    if unsafe { host.call(CALL_MEM_REPORT, [address, u64::from(count)]) }.is_err() {
        return false;
    }
    // SAFETY: By the function's requirement.
    let ranges = unsafe { core::slice::from_raw_parts(list, count as usize) };
    if let Some(bits) = FRESH.get() {
        for range in ranges {
            fresh::set(bits, *range);
        }
    }
    true
}

/// Takes the memory page that the boot-info page names.
///
/// # Safety
///
/// Only the boot processor runs, and calls this once.
pub(crate) unsafe fn init(info: &BootInfo) {
    if !info.has(FACILITY_MEM) {
        return;
    }
    match SharedRange::new(info.mem.page, PAGE) {
        // SAFETY: By the function's requirement.
        Some(page) => unsafe { BALLOON.set(page) },
        None => pr_warn!("mem: page at {:#x} is not used\n", info.mem.page),
    }
}

/// Pages that the host would like us to keep from ourselves.
#[no_mangle]
extern "C" fn paravane_memory_wanted() -> u32 {
    BALLOON.get().map_or(0, |page| page.load_acquire(WANTED))
}

/// Tells the host how many pages we keep from ourselves.
#[no_mangle]
extern "C" fn paravane_memory_kept(pages: u32) {
    if let Some(page) = BALLOON.get() {
        page.store_release(KEPT, pages);
    }
}

/// Tells the host how many pages we would miss.
#[no_mangle]
extern "C" fn paravane_memory_needed(pages: u32) {
    if let Some(page) = BALLOON.get() {
        page.store_release(NEEDED, pages);
    }
}

/// Asks for an event when the host wants more or less; false where there is none.
#[no_mangle]
extern "C" fn paravane_memory_listen(vector: u32, apic_id: u32) -> bool {
    let (Some(host), Some(_)) = (host(), BALLOON.get()) else {
        return false;
    };
    let arguments = [u64::from(vector), u64::from(apic_id)];
    // SAFETY: `mem.event` takes no address; the vector's handler is installed.
    unsafe { host.call(CALL_MEM_EVENT, arguments) }.is_ok()
}
