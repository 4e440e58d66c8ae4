//! Facility `mem`.

use std::ops::Range;

use crate::doctor::image::layout::SCRATCH;
use crate::memory::ZERO_PAGE;
use crate::pv::{BOOT_INFO, CONSOLE_PAGE};
use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::Status;
use paravane_abi::mem::{MEM_REPORT_MAX, MemPage, MemRange};
use paravane_abi::registry::*;
use zerocopy::IntoBytes;

use super::guest::{Call, DATA, Guest, MEMORY_END, Ran, result, results};
use super::{Failure, Verdict};

const PAGE: u64 = PAGE_SIZE as u64;

/// Memory that the guests of this file report.
const TARGET: u64 = 0x80_0000;
const PATTERN: u8 = 0xa5;

/// Entries of the zero page's memory map with that type.
fn memory_map(ran: &Ran, kind: u32) -> Result<Vec<Range<u64>>, Failure> {
    // Entries of 20 bytes at 0x2d0 of the zero page, their number at 0x1e8.
    let mut map = Vec::new();
    for index in 0..u64::from(ran.bytes(ZERO_PAGE + 0x1e8, 1)?[0]) {
        let entry = ZERO_PAGE + 0x2d0 + 20 * index;
        let [start, length]: [u64; 2] = ran.memory.read_obj(entry)?;
        if ran.u32(entry + 16)? == kind {
            map.push(start..start + length);
        }
    }
    Ok(map)
}

/// A guest that has run, and what it was told to be fresh.
fn fresh() -> Result<(Ran, Vec<MemRange>), Failure> {
    let ran = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?;
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    let ranges = info.mem.fresh.into_iter().filter(|range| range.size > 0);
    Ok((ran, ranges.collect()))
}

pub(super) fn pv_mem_1_fresh_memory_is_zero() -> Verdict {
    let (ran, ranges) = fresh()?;
    let bytes: u64 = ranges.iter().map(|range| range.size).sum();
    check!(bytes > 16 << 20, "{bytes} bytes: little is fresh");
    // What the check itself has put there for its guest is not the host's.
    let by_check = SCRATCH..ran.frames.end;
    for range in ranges {
        let (start, end) = (range.address, range.address + range.size);
        let dirty = (start..end).find(|at| {
            let zero = usize::try_from(*at).is_ok_and(|at| ran.before[at] == 0);
            !zero && !by_check.contains(at)
        });
        check_eq!(dirty, None, "a byte of {range:x?} that is not zero");
    }
    Ok(())
}

pub(super) fn pv_mem_2_fresh_ranges_are_usable_memory() -> Verdict {
    let (ran, ranges) = fresh()?;
    let usable = memory_map(&ran, 1)?;
    for (index, range) in ranges.iter().enumerate() {
        let (start, end) = (range.address, range.address + range.size);
        check_eq!((start % PAGE, end % PAGE), (0, 0), "{range:x?}");
        let whole = |map: &Range<u64>| map.start <= start && end <= map.end;
        check!(usable.iter().any(whole), "{range:x?} is not in {usable:x?}");
        let apart = |other: &MemRange| end <= other.address || other.address + other.size <= start;
        check!(ranges[..index].iter().all(apart), "{range:x?} overlaps");
    }
    Ok(())
}

/// A guest with a list of ranges at `DATA`, and a pattern in four pages from `TARGET`.
fn with_list(ranges: &[(u64, u64)]) -> Guest {
    let list = ranges.iter().flat_map(|(address, size)| [*address, *size]);
    let list: Vec<u64> = list.collect();
    let pattern = vec![PATTERN; 4 * PAGE_SIZE];
    Guest {
        contents: vec![(DATA, list.as_bytes().to_vec()), (TARGET, pattern)],
        ..Guest::default()
    }
}

/// Which of the four pages are zero; all others must have the pattern.
fn zeroed(ran: &Ran) -> Result<[bool; 4], Failure> {
    let mut zero = [false; 4];
    for (at, zero) in (TARGET..).step_by(PAGE_SIZE).zip(&mut zero) {
        let bytes = ran.bytes(at, PAGE_SIZE)?;
        *zero = bytes.iter().all(|byte| *byte == 0);
        let kept = bytes.iter().all(|byte| *byte == PATTERN);
        check!(*zero || kept, "the page at {at:#x} is neither");
    }
    Ok(zero)
}

fn report(count: u64) -> Call {
    Call::new(CALL_MEM_REPORT, &[DATA, count])
}

pub(super) fn pv_mem_4_reported_memory_reads_as_zero() -> Verdict {
    let guest = with_list(&[
        (TARGET + PAGE, PAGE),
        // Huge, and again a part of it, which is zero already.
        (TARGET + (2 << 20), 2 << 20),
        (TARGET + (2 << 20), PAGE),
        (TARGET + 3 * PAGE, PAGE),
    ]);
    let ran = guest.run(&[report(4)])?;
    check_eq!(ran.results(&[report(4)])?, [Ok(0)]);
    check_eq!(zeroed(&ran)?, [false, true, false, true]);
    Ok(())
}

pub(super) fn pv_mem_6_counts_and_sizes_are_checked() -> Verdict {
    let calls = [0, MEM_REPORT_MAX as u64 + 1, 1 << 32 | 1, u64::MAX].map(report);
    let ran = with_list(&[(TARGET, PAGE)]).run(&calls)?;
    check_eq!(ran.results(&calls)?, [Err(Status::InvalidParam); 4]);
    check_eq!(zeroed(&ran)?, [false; 4]);
    for size in [0, 1, PAGE - 1, PAGE + 1, u64::MAX] {
        // The range before it is as it must be, and stays.
        let ran = with_list(&[(TARGET, PAGE), (TARGET + PAGE, size)]).run(&[report(2)])?;
        let found = ran.results(&[report(2)])?;
        check_eq!(found, [Err(Status::InvalidParam)], "{size:#x}");
        check_eq!(zeroed(&ran)?, [false; 4]);
    }
    Ok(())
}

pub(super) fn pv_mem_7_addresses_are_checked() -> Verdict {
    let lists = [DATA + 4, MEMORY_END - 8, MEMORY_END, u64::MAX - 7, 1 << 63];
    let calls = lists.map(|at| Call::new(CALL_MEM_REPORT, &[at, 1]));
    for (call, found) in calls.iter().zip(results(&calls)?) {
        check_eq!(found, Err(Status::BadAddress), "{call:x?}");
    }
    for (address, size) in [
        (TARGET + 1, PAGE),
        (TARGET + PAGE - 8, PAGE),
        (MEMORY_END - PAGE, 2 * PAGE),
        (MEMORY_END, PAGE),
        (0xfee0_0000, PAGE),
        (0, !(PAGE - 1)),
        (!(PAGE - 1), 2 * PAGE),
    ] {
        let ran = with_list(&[(TARGET, PAGE), (address, size)]).run(&[report(2)])?;
        let found = ran.results(&[report(2)])?;
        check_eq!(found, [Err(Status::BadAddress)], "{address:#x}, {size:#x}");
        check_eq!(zeroed(&ran)?, [false; 4]);
    }
    Ok(())
}

pub(super) fn pv_mem_8_memory_that_is_reported_in_use_is_what_the_guest_writes() -> Verdict {
    let used = Call {
        store: (TARGET + 8, 0x600d),
        ..Call::new(CALL_BASE_NOP, &[])
    };
    // The list itself is among what is reported: the host has copied it.
    let guest = with_list(&[(DATA, PAGE), (TARGET, PAGE)]);
    let calls = [report(2), used];
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0), Ok(0)]);
    let at: [u32; 4] = ran.memory.read_obj(TARGET)?;
    check_eq!(at, [0, 0, 0x600d, 0]);
    check_eq!(ran.u32(DATA)?, 0);
    Ok(())
}

pub(super) fn pv_mem_9_the_page_is_where_boot_info_says() -> Verdict {
    let ran = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?;
    let page = ran.memory.read_obj::<BootInfo>(BOOT_INFO)?.mem.page;
    check_eq!(page % PAGE, 0);
    check!(page != BOOT_INFO && page != CONSOLE_PAGE, "{page:#x}");
    let reserved = memory_map(&ran, 2)?;
    let inside = |map: &Range<u64>| map.contains(&page) && page + PAGE <= map.end;
    check!(reserved.iter().any(inside), "{page:#x} in {reserved:x?}");
    check_eq!(
        ran.memory.read_obj::<MemPage>(page)?,
        MemPage::default(),
        "nothing is wanted, nothing kept"
    );
    Ok(())
}

pub(super) fn pv_mem_11_event_vectors_and_processors() -> Verdict {
    for (vector, apic_id, good) in [
        (0, 0, true),
        (EVENT_VECTOR_FIRST, 0, true),
        (EVENT_VECTOR_LAST, 0, true),
        (EVENT_VECTOR_FIRST - 1, 0, false),
        (EVENT_VECTOR_LAST + 1, 0, false),
        (1 << 32 | EVENT_VECTOR_FIRST, 0, false),
        (EVENT_VECTOR_FIRST, 1, false),
        (EVENT_VECTOR_FIRST, u64::MAX, false),
    ] {
        let expected = if good {
            Ok(0)
        } else {
            Err(Status::InvalidParam)
        };
        let found = result(CALL_MEM_EVENT, &[vector, apic_id])?;
        check_eq!(found, expected, "{vector:#x}, {apic_id:#x}");
    }
    Ok(())
}
