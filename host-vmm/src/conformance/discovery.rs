//! Discovery by CPUID, and the boot-info page.

use crate::memory::{HIGH_RAM, PV_AREA};
use crate::pv::{BOOT_INFO, DOORBELL_PORT};
use paravane_abi::boot_info::{BOOT_INFO_MAGIC, BootInfo};
use paravane_abi::call::CALLS;
use paravane_abi::registry::*;

use super::guest::{After, Call, Guest, Mode, offered};
use super::{Failure, Verdict};

/// All transports that have a bit.
const TRANSPORTS: u32 = TRANSPORT_DOORBELL | TRANSPORT_RING | TRANSPORT_EXITLESS | TRANSPORT_VMCALL;
/// [`CPUID_BASE_STEP`], for `step_by`.
const STEP: usize = CPUID_BASE_STEP as usize;

/// EAX, EBX, ECX and EDX of each leaf, as the guest reads them.
fn leaves(leaves: &[u32]) -> Result<Vec<[u32; 4]>, Failure> {
    let guest = Guest {
        mode: Mode::Cpuid,
        ..Guest::default()
    };
    let calls: Vec<_> = leaves.iter().map(|leaf| Call::new(*leaf, &[])).collect();
    registers(&guest, &calls)
}

/// The same of a guest in [`Mode::Cpuid`]; the first argument is the subleaf.
pub(super) fn registers(guest: &Guest, calls: &[Call]) -> Result<Vec<[u32; 4]>, Failure> {
    let ran = guest.run(calls)?;
    let mut found = Vec::new();
    for After { registers } in &ran.after {
        let mut leaf = [0; 4];
        for (to, from) in leaf.iter_mut().zip(registers) {
            *to = u32::try_from(*from)?;
        }
        found.push(leaf);
    }
    Ok(found)
}

/// Looks for the block as a guest does.
fn find_base() -> Result<u32, Failure> {
    // All possible bases are 256 leaves; a host with this many before the block is possible, ours
    // has it among the first ones.
    let bases: Vec<_> = (CPUID_BASE_FIRST..CPUID_BASE_END)
        .step_by(STEP)
        .take(16)
        .collect();
    let found = leaves(&bases)?;
    let signature = [
        CPUID_SIGNATURE_EBX,
        CPUID_SIGNATURE_ECX,
        CPUID_SIGNATURE_EDX,
    ];
    let index = found.iter().position(|leaf| leaf[1..] == signature);
    let index = index.ok_or_else(|| Failure::Breach("no block with the signature".to_owned()))?;
    Ok(bases[index])
}

pub(super) fn pv_disc_1_the_block_is_found() -> Verdict {
    let base = find_base()?;
    let spelt = [
        CPUID_SIGNATURE_EBX,
        CPUID_SIGNATURE_ECX,
        CPUID_SIGNATURE_EDX,
    ]
    .map(u32::to_le_bytes);
    check_eq!(spelt.concat(), b"ParavaneHype");
    check_eq!(base % CPUID_BASE_STEP, 0);
    Ok(())
}

pub(super) fn pv_disc_2_the_last_leaf_is_told() -> Verdict {
    let base = find_base()?;
    let found = leaves(&[base])?;
    check!(found[0][0] >= base + CPUID_LEAF_COUNT - 1);
    Ok(())
}

pub(super) fn pv_disc_3_features() -> Verdict {
    let base = find_base()?;
    let found = leaves(&[base + CPUID_LEAF_FEATURES])?;
    let [version, low, high, transports] = found[0];
    check_eq!(version, ABI_VERSION);
    check_eq!(u64::from(low) | u64::from(high) << 32, offered("")?.word());
    check!(
        transports & TRANSPORT_DOORBELL != 0,
        "transports are {transports:#x}"
    );
    check_eq!(transports & !TRANSPORTS, 0, "undefined transports");
    Ok(())
}

pub(super) fn pv_disc_4_boot_info_and_doorbell() -> Verdict {
    let base = find_base()?;
    let found = leaves(&[base + CPUID_LEAF_BOOT])?;
    let address = u64::from(found[0][0]) | u64::from(found[0][1]) << 32;
    check_eq!(address, BOOT_INFO);
    check_eq!(found[0][2..], [u32::from(DOORBELL_PORT), 0]);
    Ok(())
}

pub(super) fn pv_boot_1_boot_info_is_filled() -> Verdict {
    let guest = Guest {
        vcpus: 3,
        ..Guest::default()
    };
    let ran = guest.run(&[Call::new(CALL_BASE_FACILITIES, &[])])?;
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    check_eq!(info.version, ABI_VERSION);
    check_eq!(Ok(info.facilities), ran.after[0].result()?);
    check!(
        info.transports & TRANSPORT_DOORBELL != 0,
        "transports are {:#x}",
        info.transports
    );
    check_eq!(info.transports & !TRANSPORTS, 0, "undefined transports");
    check_eq!(info.doorbell_port, u32::from(DOORBELL_PORT));
    check_eq!(info.vcpu_count, 3);
    check_eq!(info.reserved0, 0);
    let rest = ran.bytes(
        BOOT_INFO + size_of::<BootInfo>() as u64,
        4096 - size_of::<BootInfo>(),
    )?;
    check!(rest.iter().all(|byte| *byte == 0));
    Ok(())
}

pub(super) fn pv_boot_2_magic() -> Verdict {
    let ran = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?;
    check_eq!(ran.bytes(BOOT_INFO, 8)?, b"PARAVANE");
    check_eq!(BOOT_INFO_MAGIC.to_le_bytes(), *b"PARAVANE");
    Ok(())
}

pub(super) fn pv_boot_3_size() -> Verdict {
    let ran = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?;
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    check_eq!(info.size as usize, size_of::<BootInfo>());
    Ok(())
}

pub(super) fn pv_boot_4_shared_pages_are_reserved_memory() -> Verdict {
    let ran = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?;
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    let console = info.console.address
        + 4096
        + u64::from(info.console.out_size)
        + u64::from(info.console.in_size);
    let end = console
        .max(info.clock.page + 4096)
        .max(info.rng.address + 4096)
        .max(info.dev.address + 4096);
    // The map: entries of 20 bytes at 0x2d0 of the zero page, their number at 0x1e8.
    let zero_page = crate::memory::ZERO_PAGE;
    let entries = ran.bytes(zero_page + 0x1e8, 1)?[0];
    let mut reserved = false;
    for index in 0..u64::from(entries) {
        let entry = zero_page + 0x2d0 + 20 * index;
        let [start, length]: [u64; 2] = ran.memory.read_obj(entry)?;
        let kind = ran.u32(entry + 16)?;
        reserved |= kind == 2 && start <= BOOT_INFO && end <= start + length;
    }
    check!(reserved, "{BOOT_INFO:#x} to {end:#x} is not reserved");
    check!(PV_AREA <= BOOT_INFO && end <= HIGH_RAM);
    Ok(())
}

pub(super) fn pv_boot_8_a_guest_that_spoils_the_page_harms_itself_only() -> Verdict {
    // The guest breaks the page, against PV-BOOT-8, and harms itself only.
    let spoil = Call {
        store: (BOOT_INFO, 0xdead_beef),
        ..Call::new(CALL_BASE_FACILITIES, &[])
    };
    let ran = Guest::default().run(&[spoil, Call::new(CALL_BASE_NOP, &[5])])?;
    check_eq!(ran.u32(BOOT_INFO)?, 0xdead_beef);
    check_eq!(ran.after[1].result()?, Ok(5));
    Ok(())
}

pub(super) fn pv_boot_9_the_page_stays_as_it_was() -> Verdict {
    let guest = Guest {
        facilities: "-ring",
        ..Guest::default()
    };
    // The guest prints the page, makes each call, and prints it again.
    let print = Call::new(CALL_CONSOLE_WRITE, &[BOOT_INFO, PAGE_SIZE as u64]);
    let others = CALLS.iter().filter(|id| id.0 != CALL_BASE_POWER);
    let mut calls = vec![print];
    calls.extend(others.map(|id| Call::new(id.0, &[])));
    calls.push(print);
    let printed = guest.run(&calls)?.console;
    check_eq!(printed.len(), 2 * PAGE_SIZE);
    check!(printed[..PAGE_SIZE] == printed[PAGE_SIZE..]);
    Ok(())
}
