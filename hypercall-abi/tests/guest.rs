//! What a Linux guest does with the host's word, and needs no kernel for: the same files that Kbuild compiles.

#![expect(
    clippy::cast_possible_truncation,
    reason = "the kernel's Rust has no such lints, and its pointers have 64 bits"
)]

mod abi {
    pub(crate) use paravane_abi::*;
}
#[path = "../../guest-pv-linux/checks.rs"]
mod checks;
#[path = "../../guest-pv-linux/fresh.rs"]
mod fresh;

use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU64, Ordering};

use abi::boot_info::{BootInfo, BOOT_INFO_MAGIC};
use abi::clock::ClockInfo;
use abi::console::ConsoleInfo;
use abi::cpuid::CpuidEntry;
use abi::dev::{DevEntry, DEV_CONFIG_BYTES};
use abi::mem::MemRange;
use abi::registry::{FACILITY_BASE, PAGE_SIZE, TRANSPORT_DOORBELL};

const PAGE: u64 = PAGE_SIZE as u64;

fn page() -> BootInfo {
    BootInfo {
        magic: BOOT_INFO_MAGIC,
        size: size_of::<BootInfo>() as u32,
        facilities: 1 << FACILITY_BASE,
        transports: TRANSPORT_DOORBELL,
        doorbell_port: 0x7e,
        ..BootInfo::default()
    }
}

#[test]
fn pv_boot_7_what_lies_beyond_the_size_has_not_been_said() {
    let full = BootInfo {
        generation: 5,
        clock: ClockInfo {
            tsc_hz: 7,
            flags: 9,
            page: 11,
            ..ClockInfo::default()
        },
        ..page()
    };
    assert_eq!(checks::boot_info(&full, 0x7e), Some(full));
    // In the middle of a field: that one has not been said, either.
    let size = offset_of!(BootInfo, clock) + offset_of!(ClockInfo, flags) + 3;
    let short = BootInfo {
        size: size as u32,
        ..full
    };
    let said = checks::boot_info(&short, 0x7e).unwrap();
    assert_eq!((said.generation, said.clock.tsc_hz), (5, 7));
    assert_eq!((said.clock.flags, said.clock.page), (0, 0));
    // A host of a later version has more to say.
    let long = BootInfo {
        size: PAGE_SIZE as u32,
        ..full
    };
    assert_eq!(checks::boot_info(&long, 0x7e), Some(long));
}

#[test]
fn a_boot_info_page_that_cannot_be_one_is_not_believed() {
    type Spoil = fn(&mut BootInfo);
    let spoils: [Spoil; 8] = [
        |page| page.magic += 1,
        |page| page.size = 0,
        |page| page.size = offset_of!(BootInfo, clock) as u32 - 1,
        |page| page.size = PAGE_SIZE as u32 + 1,
        |page| page.size = u32::MAX,
        |page| page.facilities = !(1 << FACILITY_BASE),
        |page| page.transports = !TRANSPORT_DOORBELL,
        |page| page.doorbell_port = 0x7f,
    ];
    for (index, spoil) in spoils.iter().enumerate() {
        let mut page = page();
        spoil(&mut page);
        assert_eq!(checks::boot_info(&page, 0x7e), None, "{index}");
    }
    let page = BootInfo {
        doorbell_port: 0x1_0000,
        ..page()
    };
    assert_eq!(checks::boot_info(&page, 0x1_0000), None);
}

#[test]
fn rings_frequencies_and_queues_have_limits() {
    let console = |out_size, in_size| {
        checks::console(&ConsoleInfo {
            out_size,
            in_size,
            ..ConsoleInfo::default()
        })
    };
    assert!(console(4096, 1 << 31));
    for size in [0, 1, 2048, 4097, 12288, u32::MAX] {
        assert!(!console(size, 4096) && !console(4096, size), "{size}");
    }
    let clock = |tsc_hz, apic_timer_hz| {
        let clock = ClockInfo {
            tsc_hz,
            apic_timer_hz,
            ..ClockInfo::default()
        };
        (checks::tsc_hz(&clock), checks::apic_timer_hz(&clock))
    };
    assert_eq!(clock(3_000_000_000, 1_000_000_000), (true, true));
    assert_eq!(clock(100_000_000, 0), (true, true));
    assert_eq!(clock(0, 3), (false, false));
    assert_eq!(clock(u64::MAX, 1 << 32), (false, false));
    let device = |queues, queue_max| {
        checks::device(&DevEntry {
            kind: 2,
            queues,
            queue_max,
            state: 0,
            features: 0,
            generation: 0,
            reserved: [0; 9],
            config: [0; DEV_CONFIG_BYTES],
        })
    };
    assert!(device(4, 32768) && device(0, 1));
    assert!(!device(5, 256) && !device(u32::MAX, 256));
    assert!(!device(1, 0) && !device(1, 3) && !device(1, 65536));
}

#[test]
fn pv_cpuid_1_a_table_ends_where_it_is_not_in_order() {
    let count = |leaves: &[(u32, u32)]| {
        let entry = |&(leaf, subleaf): &(u32, u32)| CpuidEntry {
            leaf,
            subleaf,
            flags: 0,
            reserved: 0,
            eax: 0,
            ebx: 0,
            ecx: 0,
            edx: 0,
        };
        checks::cpuid_count(&leaves.iter().map(entry).collect::<Vec<_>>())
    };
    assert_eq!(count(&[]), 0);
    assert_eq!(count(&[(7, 0)]), 1);
    assert_eq!(count(&[(0, 0), (4, 0), (4, 1), (0x8000_0000, 0)]), 4);
    assert_eq!(count(&[(0, 0), (1, 0), (0, 0), (0, 0)]), 2);
    assert_eq!(count(&[(0, 0), (4, 1), (4, 1), (5, 0)]), 2);
}

#[test]
fn ticks_of_any_number_are_told_in_nanoseconds() {
    for tsc_hz in [100_000_000, 999_999_937, 2_999_999_999, 16_000_000_000] {
        for ticks in [0, 1, tsc_hz - 1, tsc_hz, u64::MAX / 2, u64::MAX] {
            let exact = u128::from(ticks) * 1_000_000_000 / u128::from(tsc_hz);
            let told = checks::ticks_to_ns(ticks, tsc_hz);
            assert_eq!(told, exact as u64, "{ticks} at {tsc_hz}");
        }
    }
}

fn bits(words: usize) -> Vec<AtomicU64> {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

#[test]
fn fresh_pages_are_those_that_lie_wholly_in_a_range_and_are_taken_once() {
    const PAGES: u64 = 192;
    // Each range against one page at a time: both ends in, at and between words.
    let ends = [0, 1, 62, 63, 64, 65, 127, 128, 129, 191, 192, 193];
    for first in ends {
        for end in ends {
            let bits = bits(3);
            let address = first * PAGE - u64::from(first > 0);
            let size = (end * PAGE + PAGE - 1).saturating_sub(address);
            fresh::set(&bits, MemRange { address, size });
            for page in 0..PAGES {
                let is_in = page * PAGE >= address && (page + 1) * PAGE <= address + size;
                assert_eq!(fresh::take(&bits, page * PAGE, 1), is_in, "{page}");
                assert!(!fresh::take(&bits, page * PAGE, PAGE));
            }
        }
    }
}

#[test]
fn a_range_that_is_fresh_in_part_is_not_and_is_taken_as_a_whole() {
    let bits = bits(2);
    let set = |first: u64, pages: u64| {
        let (address, size) = (first * PAGE, pages * PAGE);
        fresh::set(&bits, MemRange { address, size });
    };
    set(0, 60);
    set(61, 60);
    assert!(!fresh::take(&bits, 0, 128 * PAGE));
    assert!(bits.iter().all(|word| word.load(Ordering::Relaxed) == 0));
    set(60, 10);
    assert!(fresh::take(&bits, 60 * PAGE + 1, 10 * PAGE - 1));
}

#[test]
fn a_range_without_end_takes_no_time_and_ends_with_memory() {
    let bits = bits(2);
    for address in [0, PAGE, u64::MAX - PAGE, u64::MAX] {
        fresh::set(
            &bits,
            MemRange {
                address,
                size: u64::MAX,
            },
        );
    }
    assert!(fresh::take(&bits, 0, 128 * PAGE));
    assert!(!fresh::take(&bits, 128 * PAGE, PAGE));
    assert!(!fresh::take(&bits, u64::MAX, u64::MAX));
}
