//! Signatures, rings and the facility word. That C has the same layouts is a test of `cargo ci`.

use paravane_abi::boot_info::{BootInfo, BOOT_INFO_MAGIC};
use paravane_abi::console::ring_used;
use paravane_abi::crash::CRASH_MAGIC;
use paravane_abi::registry::*;
use paravane_abi::smp::smp_wish;

#[test]
fn pv_disc_2_the_signature_spells_the_name() {
    let words = [
        CPUID_SIGNATURE_EBX,
        CPUID_SIGNATURE_ECX,
        CPUID_SIGNATURE_EDX,
    ];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(bytes, b"ParavaneHype");
}

#[test]
fn pv_boot_2_the_magic_spells_the_name() {
    assert_eq!(&BOOT_INFO_MAGIC.to_le_bytes(), b"PARAVANE");
}

#[test]
fn pv_crash_2_the_magic_spells_the_name() {
    assert_eq!(&CRASH_MAGIC.to_le_bytes(), b"PVCRASH1");
}

#[test]
fn the_facility_word_has_a_bit_for_each_id() {
    let info = BootInfo {
        facilities: 1 << FACILITY_BASE | 1 << FACILITY_CRASH,
        ..BootInfo::default()
    };
    assert!(info.has(FACILITY_BASE) && info.has(FACILITY_CRASH));
    assert!(!info.has(FACILITY_CONSOLE));
    for beyond in [64, 65, 64 + FACILITY_BASE, u32::MAX] {
        assert!(!info.has(beyond), "facility {beyond} has no bit");
    }
}

/// Numbers near everything that could go wrong: zero, the size, half and whole of the range.
fn edges(size: u32) -> Vec<u32> {
    let centres = [0, size, u32::MAX / 2, u32::MAX - size];
    let near = |centre: u32| (0..5_u32).map(move |d| centre.wrapping_add(d).wrapping_sub(2));
    centres.into_iter().flat_map(near).collect()
}

#[test]
fn pv_console_4_what_a_ring_holds_is_what_was_put_in() {
    for size in [4096, 65536, 1 << 31] {
        for tail in edges(size) {
            for used in [0, 1, size / 2, size - 1, size] {
                assert_eq!(ring_used(tail.wrapping_add(used), tail, size), Some(used));
            }
        }
    }
}

#[test]
fn pv_console_4_a_ring_never_holds_more_than_its_size() {
    for size in [4096, 65536, 1 << 31] {
        for tail in edges(size) {
            for excess in [1, 2, size - 1, u32::MAX - size] {
                let head = tail.wrapping_add(size).wrapping_add(excess);
                assert_eq!(ring_used(head, tail, size), None);
            }
        }
    }
}

#[test]
fn pv_smp_14_a_wish_that_cannot_be_is_none() {
    for (wanted, vcpus, wish) in [
        (0, 4, None),
        (1, 4, Some(1)),
        (4, 4, Some(4)),
        (5, 4, None),
        (u32::MAX, 64, None),
        (1, 0, None),
    ] {
        assert_eq!(smp_wish(wanted, vcpus), wish, "{wanted} of {vcpus}");
    }
}
