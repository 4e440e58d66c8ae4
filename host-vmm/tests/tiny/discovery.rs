//! Discovery by CPUID, and the boot-info page.

use paravane::memory::{HIGH_RAM, PV_AREA};
use paravane::pv::{BOOT_INFO, DOORBELL_PORT};
use paravane_abi::boot_info::{BOOT_INFO_MAGIC, BootInfo};
use paravane_abi::registry::*;

use crate::guest::{Call, Guest, Mode};

/// EAX, EBX, ECX and EDX of each leaf, as the guest reads them.
fn leaves(leaves: &[u32]) -> Option<Vec<[u32; 4]>> {
    let guest = Guest {
        mode: Mode::Cpuid,
        ..Guest::default()
    };
    let calls: Vec<_> = leaves.iter().map(|leaf| Call::new(*leaf, &[])).collect();
    let ran = guest.run(&calls)?;
    let four = |registers: &[u64]| {
        let mut four = [0; 4];
        for (to, from) in four.iter_mut().zip(registers) {
            *to = u32::try_from(*from).unwrap();
        }
        four
    };
    Some(
        ran.after
            .iter()
            .map(|after| four(&after.registers))
            .collect(),
    )
}

/// Looks for the block as a guest does.
fn find_base() -> Option<u32> {
    // All possible bases are 256 leaves; a host with this many before the block is possible, ours
    // has it among the first ones.
    let bases: Vec<_> = (CPUID_BASE_FIRST..CPUID_BASE_END)
        .step_by(CPUID_BASE_STEP.try_into().unwrap())
        .take(16)
        .collect();
    let found = leaves(&bases)?;
    let signature = [
        CPUID_SIGNATURE_EBX,
        CPUID_SIGNATURE_ECX,
        CPUID_SIGNATURE_EDX,
    ];
    let index = found.iter().position(|leaf| leaf[1..] == signature);
    Some(bases[index.expect("a para guest finds the block")])
}

#[test]
fn pv_disc_1_the_block_is_found() {
    let Some(base) = find_base() else { return };
    let spelt = [
        CPUID_SIGNATURE_EBX,
        CPUID_SIGNATURE_ECX,
        CPUID_SIGNATURE_EDX,
    ]
    .map(u32::to_le_bytes);
    assert_eq!(spelt.concat(), b"ParavaneHype");
    assert_eq!(base % CPUID_BASE_STEP, 0);
}

#[test]
fn pv_disc_2_the_last_leaf_is_told() {
    let Some(base) = find_base() else { return };
    let found = leaves(&[base]).unwrap();
    assert!(found[0][0] >= base + CPUID_LEAF_COUNT - 1);
}

#[test]
fn pv_disc_3_features() {
    let Some(base) = find_base() else { return };
    let found = leaves(&[base + CPUID_LEAF_FEATURES]).unwrap();
    let word =
        1 << FACILITY_BASE | 1 << FACILITY_CONSOLE | 1 << FACILITY_CLOCK | 1 << FACILITY_CRASH;
    assert_eq!(found, [[ABI_VERSION, word, 0, TRANSPORT_DOORBELL]]);
}

#[test]
fn pv_disc_4_boot_info_and_doorbell() {
    let Some(base) = find_base() else { return };
    let found = leaves(&[base + CPUID_LEAF_BOOT]).unwrap();
    let address = u64::from(found[0][0]) | u64::from(found[0][1]) << 32;
    assert_eq!(address, BOOT_INFO);
    assert_eq!(found[0][2..], [u32::from(DOORBELL_PORT), 0]);
}

#[test]
fn pv_boot_1_boot_info_is_filled() {
    let guest = Guest {
        vcpus: 3,
        ..Guest::default()
    };
    let Some(ran) = guest.run(&[Call::new(CALL_BASE_FACILITIES, &[])]) else {
        return;
    };
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO).unwrap();
    assert_eq!(info.version, ABI_VERSION);
    assert_eq!(Ok(info.facilities), ran.after[0].result());
    assert_eq!(info.transports, TRANSPORT_DOORBELL);
    assert_eq!(info.doorbell_port, u32::from(DOORBELL_PORT));
    assert_eq!(info.vcpu_count, 3);
    assert_eq!(info.reserved0, 0);
    let rest = ran.bytes(
        BOOT_INFO + size_of::<BootInfo>() as u64,
        4096 - size_of::<BootInfo>(),
    );
    assert!(rest.iter().all(|byte| *byte == 0));
}

#[test]
fn pv_boot_2_magic() {
    let Some(ran) = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])]) else {
        return;
    };
    assert_eq!(ran.bytes(BOOT_INFO, 8), b"PARAVANE");
    assert_eq!(BOOT_INFO_MAGIC.to_le_bytes(), *b"PARAVANE");
}

#[test]
fn pv_boot_3_size() {
    let Some(ran) = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])]) else {
        return;
    };
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO).unwrap();
    assert_eq!(info.size as usize, size_of::<BootInfo>());
}

#[test]
fn pv_boot_4_shared_pages_are_reserved_memory() {
    let Some(ran) = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])]) else {
        return;
    };
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO).unwrap();
    let end = info.console.address
        + 4096
        + u64::from(info.console.out_size)
        + u64::from(info.console.in_size);
    // The map: entries of 20 bytes at 0x2d0 of the zero page, their number at 0x1e8.
    let zero_page = paravane::memory::ZERO_PAGE;
    let entries = ran.bytes(zero_page + 0x1e8, 1)[0];
    let reserved = (0..u64::from(entries)).any(|index| {
        let entry = ran.bytes(zero_page + 0x2d0 + 20 * index, 20);
        let number = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
        let (start, length, kind) = (number(0), number(8), entry[16]);
        kind == 2 && start <= BOOT_INFO && end <= start + length
    });
    assert!(reserved, "{BOOT_INFO:#x} to {end:#x} is not reserved");
    assert!(PV_AREA <= BOOT_INFO && end <= HIGH_RAM);
}

#[test]
fn pv_boot_5_the_host_does_not_write_the_page_again() {
    // The guest breaks the page, against PV-BOOT-4, and harms itself only.
    let spoil = Call {
        store: (BOOT_INFO, 0xdead_beef),
        ..Call::new(CALL_BASE_FACILITIES, &[])
    };
    let Some(ran) = Guest::default().run(&[spoil, Call::new(CALL_BASE_NOP, &[5])]) else {
        return;
    };
    assert_eq!(ran.u32(BOOT_INFO), 0xdead_beef);
    assert_eq!(ran.after[1].result(), Ok(5));
}
