//! The look-up in the CPUID table.

use paravane_abi::cpuid::{cpuid_find, CpuidEntry, LEAF_SUBLEAF, LEAF_VARIES};

fn entry(leaf: u32, subleaf: u32, flags: u32) -> CpuidEntry {
    CpuidEntry {
        leaf,
        subleaf,
        flags,
        eax: leaf,
        ebx: subleaf,
        ecx: 3,
        edx: 4,
        ..CpuidEntry::default()
    }
}

fn table() -> [CpuidEntry; 5] {
    [
        entry(0, 0, 0),
        entry(1, 0, LEAF_VARIES),
        entry(4, 0, LEAF_SUBLEAF),
        entry(4, 2, LEAF_SUBLEAF),
        entry(0x8000_0001, 0, 0),
    ]
}

#[test]
fn an_entry_is_found() {
    assert_eq!(cpuid_find(&table(), 0, 0), Some([0, 0, 3, 4]));
    // A leaf without subleaves has the same registers for all.
    assert_eq!(cpuid_find(&table(), 0, 9), Some([0, 0, 3, 4]));
    assert_eq!(cpuid_find(&table(), 4, 2), Some([4, 2, 3, 4]));
    let highest = cpuid_find(&table(), 0x8000_0001, u32::MAX);
    assert_eq!(highest, Some([0x8000_0001, 0, 3, 4]));
}

#[test]
fn pv_cpuid_4_what_has_no_entry_is_not_known() {
    for (leaf, subleaf) in [
        (2, 0),
        (4, 1),
        (4, 3),
        (0x8000_0000, 0),
        (u32::MAX, u32::MAX),
    ] {
        assert_eq!(cpuid_find(&table(), leaf, subleaf), None, "{leaf:#x}");
    }
    assert_eq!(cpuid_find(&[], 0, 0), None);
    assert_eq!(cpuid_find(&table()[1..], 0, 0), None);
}

#[test]
fn pv_cpuid_5_what_varies_is_not_known() {
    assert_eq!(cpuid_find(&table(), 1, 0), None);
    assert_eq!(cpuid_find(&table(), 1, 7), None);
}
