//! Facility `cpuid`: the table, against what CPUID returns.

use crate::pv::BOOT_INFO;
use paravane_abi::boot_info::BootInfo;
use paravane_abi::cpuid::{CpuidEntry, LEAF_SUBLEAF, LEAF_VARIES};

use super::Verdict;
use super::guest::{Call, Guest, Mode, Ran};
use super::{Failure, discovery};

/// The table of the guest that has run.
fn table(ran: &Ran) -> Result<Vec<CpuidEntry>, Failure> {
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    check!(info.cpuid.count > 0 && info.cpuid.address.is_multiple_of(4096));
    (0..u64::from(info.cpuid.count))
        .map(|index| {
            let at = info.cpuid.address + index * size_of::<CpuidEntry>() as u64;
            Ok(ran.memory.read_obj(at)?)
        })
        .collect()
}

/// A guest with several processors, whose table has all that can differ between them.
fn guest() -> Guest {
    Guest {
        vcpus: 3,
        mode: Mode::Cpuid,
        ..Guest::default()
    }
}

/// The table that every such guest gets.
fn its_table() -> Result<Vec<CpuidEntry>, Failure> {
    table(&guest().run(&[Call::new(0, &[])])?)
}

pub(super) fn pv_cpuid_1_the_table_is_in_order() -> Verdict {
    let keys: Vec<_> = its_table()?.iter().map(|e| (e.leaf, e.subleaf)).collect();
    check!(
        keys.windows(2).all(|pair| pair[0] < pair[1]),
        "{keys:x?} are not in order"
    );
    Ok(())
}

pub(super) fn pv_cpuid_2_cpuid_returns_what_the_table_says() -> Verdict {
    let entries = its_table()?;
    let calls: Vec<_> = entries
        .iter()
        .map(|e| Call::new(e.leaf, &[u64::from(e.subleaf)]))
        .collect();
    let mut compared = 0;
    for (entry, found) in entries.iter().zip(discovery::registers(&guest(), &calls)?) {
        check_eq!(entry.reserved, 0);
        check_eq!(entry.flags & !(LEAF_SUBLEAF | LEAF_VARIES), 0);
        if entry.flags & LEAF_VARIES == 0 {
            let told = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            check_eq!(told, found, "leaf {:#x}, {}", entry.leaf, entry.subleaf);
            compared += 1;
        }
    }
    check!(compared > 20, "{compared} entries: the table spares little");
    Ok(())
}

pub(super) fn pv_cpuid_3_leaves_with_subleaves_say_so() -> Verdict {
    let entries = its_table()?;
    let single: Vec<_> = entries
        .iter()
        .filter(|e| e.flags & (LEAF_SUBLEAF | LEAF_VARIES) == 0)
        .collect();
    let calls: Vec<_> = single.iter().map(|e| Call::new(e.leaf, &[1])).collect();
    for (entry, found) in single.iter().zip(discovery::registers(&guest(), &calls)?) {
        let told = [entry.eax, entry.ebx, entry.ecx, entry.edx];
        check_eq!(told, found, "leaf {:#x} with ECX = 1", entry.leaf);
    }
    Ok(())
}
