//! Facility `dev`. That the interrupt comes is a test of a booted guest.

use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::{CallResult, Status};
use paravane_abi::dev::*;
use paravane_abi::registry::*;
use zerocopy::IntoBytes;

use super::guest::{Call, DATA, Guest, MEMORY_END, Ran};
use super::{Failure, Verdict};
use crate::pv::BOOT_INFO;
use crate::pv::dev::DOORBELL_PORT;

/// Virtio's number of the block device, and `VIRTIO_F_VERSION_1`.
const BLOCK: u32 = 2;
const VERSION_1: u64 = 1 << 32;

const START: u64 = DATA;
const DESCRIPTORS: u64 = DATA + 0x1000;
const AVAILABLE: u64 = DATA + 0x2000;
const USED: u64 = DATA + 0x3000;
const HEADER: u64 = DATA + 0x4000;
const INTO: u64 = DATA + 0x5000;
const STATUS: u64 = DATA + 0x6000;
/// A status that the device has not written.
const UNTOUCHED: u8 = 0xee;
/// Calls that pass the time that a device has.
const PATIENCE: usize = 20_000;

const INVALID: CallResult = Err(Status::InvalidParam);
const BAD_ADDRESS: CallResult = Err(Status::BadAddress);

fn good() -> DevStart {
    let mut start = DevStart {
        features: VERSION_1,
        ..DevStart::default()
    };
    start.queues[0] = DevQueue {
        descriptors: DESCRIPTORS,
        available: AVAILABLE,
        used: USED,
        size: 16,
        reserved: 0,
    };
    start
}

/// A descriptor of the table.
fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// A guest with a disk, and in its memory `start` and a request to read sector 1, not made available yet, whose data go to `into`.
fn guest(start: &DevStart, into: u64) -> Guest {
    let chain = [
        descriptor(HEADER, 16, 1, 1),
        descriptor(into, 512, 3, 2),
        descriptor(STATUS, 1, 2, 0),
    ];
    let mut header = [0; 16];
    header[8] = 1;
    Guest {
        disk: true,
        contents: vec![
            (START, start.as_bytes().to_vec()),
            (DESCRIPTORS, chain.concat()),
            (HEADER, header.to_vec()),
            (STATUS, vec![UNTOUCHED]),
        ],
        ..Guest::default()
    }
}

fn start() -> Call {
    Call::new(CALL_DEV_START, &[0, START])
}

fn stop() -> Call {
    Call::new(CALL_DEV_STOP, &[0])
}

/// Makes the request available, and rings for `what`.
fn ring(what: u32) -> Call {
    Call {
        port: DOORBELL_PORT,
        store: (AVAILABLE, 1 << 16),
        ..Call::new(what, &[])
    }
}

/// Makes `calls`, and then waits.
fn run(guest: &Guest, calls: &[Call]) -> Result<Ran, Failure> {
    let mut all = calls.to_vec();
    all.resize(calls.len() + PATIENCE, Call::new(CALL_BASE_NOP, &[]));
    guest.run(&all)
}

fn info(ran: &Ran) -> Result<DevInfo, Failure> {
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    Ok(info.dev)
}

/// Where the device's entry is.
fn entry(ran: &Ran) -> Result<u64, Failure> {
    Ok(info(ran)?.address)
}

/// Used requests, and the status of the one that there is.
fn answer(ran: &Ran) -> Result<(u32, u8), Failure> {
    Ok((ran.u32(USED)? >> 16, ran.bytes(STATUS, 1)?[0]))
}

pub(super) fn pv_dev_1_the_table_has_as_many_as_are_counted() -> Verdict {
    for (disk, count) in [(false, 0), (true, 1)] {
        let guest = Guest {
            disk,
            ..Guest::default()
        };
        let ran = guest.run(&[Call::new(CALL_BASE_NOP, &[])])?;
        let info = info(&ran)?;
        check_eq!(info.count, count);
        check!(info.address.is_multiple_of(PAGE_SIZE as u64));
        check!(u16::try_from(info.doorbell_port).is_ok());
        let rest = ran.bytes(info.address, PAGE_SIZE)?;
        let table = usize::try_from(count)? * size_of::<DevEntry>();
        check!(rest[table..].iter().all(|byte| *byte == 0));
    }
    Ok(())
}

pub(super) fn pv_dev_2_an_entry_is_a_virtio_device() -> Verdict {
    let ran = guest(&good(), INTO).run(&[Call::new(CALL_BASE_NOP, &[])])?;
    let entry: DevEntry = ran.memory.read_obj(entry(&ran)?)?;
    check_eq!((entry.kind, entry.queues, entry.state), (BLOCK, 1, 0));
    check!(entry.queue_max.is_power_of_two());
    check_eq!(entry.features & VERSION_1, VERSION_1);
    // Its capacity, in sectors.
    check_eq!(entry.config[..8], 8_u64.to_le_bytes());
    check_eq!(entry.reserved, [0; 9]);
    Ok(())
}

pub(super) fn pv_dev_8_what_a_doorbell_is_rung_for_is_served() -> Verdict {
    let ran = run(&guest(&good(), INTO), &[start(), ring(0)])?;
    check_eq!(ran.after[0].result()?, Ok(0));
    check_eq!(answer(&ran)?, (1, 0));
    check_eq!(ran.bytes(INTO, 512)?, [1; 512]);
    Ok(())
}

pub(super) fn pv_dev_3_all_that_works_is_between_start_and_stop() -> Verdict {
    let calls = [stop(), start(), stop(), ring(0)];
    let ran = run(&guest(&good(), INTO), &calls)?;
    for call in 0..3 {
        check_eq!(ran.after[call].result()?, Ok(0));
    }
    check_eq!(answer(&ran)?, (0, UNTOUCHED));
    Ok(())
}

pub(super) fn pv_dev_11_a_stopped_device_starts_anew() -> Verdict {
    let calls = [start(), stop(), start(), ring(0)];
    let ran = run(&guest(&good(), INTO), &calls)?;
    check_eq!(ran.after[2].result()?, Ok(0));
    check_eq!(answer(&ran)?, (1, 0));
    Ok(())
}

pub(super) fn pv_dev_4_a_device_has_a_number() -> Verdict {
    let mut calls = Vec::new();
    for number in [1, DEV_MAX as u64, 1 << 32, u64::MAX] {
        calls.push(Call::new(CALL_DEV_START, &[number, START]));
        calls.push(Call::new(CALL_DEV_STOP, &[number]));
    }
    let ran = guest(&good(), INTO).run(&calls)?;
    check!(ran.results(&calls)?.iter().all(|result| *result == INVALID));
    Ok(())
}

/// What `dev.start` says of a start that `spoil` has been at; the device must not have begun.
fn spoiled(spoil: impl FnOnce(&mut DevStart)) -> Result<CallResult, Failure> {
    let mut spoiled = good();
    spoil(&mut spoiled);
    let again = Call {
        store: (AVAILABLE, 1 << 16),
        ..start()
    };
    let ran = guest(&spoiled, INTO).run(&[again, again])?;
    let [first, second] = [ran.after[0].result()?, ran.after[1].result()?];
    check_eq!(first, second);
    check_eq!(answer(&ran)?, (0, UNTOUCHED));
    Ok(first)
}

pub(super) fn pv_dev_5_a_start_that_cannot_be_is_invalid() -> Verdict {
    let spoils: [fn(&mut DevStart); 13] = [
        |start| start.features = 0,
        |start| start.features |= 1 << 63,
        |start| start.vector = 0x1f,
        |start| start.vector = 0x100,
        |start| start.vector = u32::MAX,
        |start| start.apic_id = 1,
        |start| start.queues[0].size = 0,
        |start| start.queues[0].size = 15,
        |start| start.queues[0].size = 1 << 16,
        |start| start.queues[0].size = 1 << 15,
        |start| start.queues[0].reserved = 1,
        |start| start.queues[1].used = 8,
        |start| start.queues[DEV_QUEUES_MAX - 1].reserved = 1,
    ];
    for (number, spoil) in spoils.into_iter().enumerate() {
        check_eq!(spoiled(spoil)?, INVALID, "number {number}");
    }
    Ok(())
}

pub(super) fn pv_dev_6_queues_lie_in_memory() -> Verdict {
    let spoils: [fn(&mut DevStart); 8] = [
        |start| start.queues[0].descriptors += 8,
        |start| start.queues[0].available += 1,
        |start| start.queues[0].used += 2,
        |start| start.queues[0].descriptors = MEMORY_END - 128,
        |start| start.queues[0].available = MEMORY_END - 16,
        |start| start.queues[0].used = MEMORY_END - 64,
        |start| start.queues[0].used = 0xfee0_0000,
        |start| start.queues[0].descriptors = u64::MAX - 15,
    ];
    for (number, spoil) in spoils.into_iter().enumerate() {
        check_eq!(spoiled(spoil)?, BAD_ADDRESS, "number {number}");
    }
    let addresses = [START + 4, MEMORY_END - 8, MEMORY_END, u64::MAX - 7, 1 << 63];
    let calls = addresses.map(|address| Call::new(CALL_DEV_START, &[0, address]));
    let ran = guest(&good(), INTO).run(&calls)?;
    check_eq!(ran.results(&calls)?, [BAD_ADDRESS; 5]);
    Ok(())
}

pub(super) fn pv_dev_7_a_started_device_is_not_started() -> Verdict {
    let ran = run(&guest(&good(), INTO), &[start(), start(), ring(0)])?;
    check_eq!(ran.after[0].result()?, Ok(0));
    check_eq!(ran.after[1].result()?, Err(Status::Denied));
    check_eq!(answer(&ran)?, (1, 0), "it goes on");
    Ok(())
}

pub(super) fn pv_dev_9_a_doorbell_of_nobody_is_silent() -> Verdict {
    let nobody = [1, 1 << 16, 1 << 31, u32::MAX].map(ring);
    let stopped = run(
        &guest(&good(), INTO),
        &[nobody.as_slice(), &[ring(0)]].concat(),
    )?;
    check_eq!(answer(&stopped)?, (0, UNTOUCHED));
    // A device may look unasked, so that only this is certain: it goes on.
    let started = [&[start()], nobody.as_slice(), &[ring(0)]].concat();
    let ran = run(&guest(&good(), INTO), &started)?;
    check_eq!(answer(&ran)?, (1, 0));
    check_eq!(ran.u32(entry(&ran)? + 12)?, 0);
    Ok(())
}

pub(super) fn pv_dev_12_a_broken_driver_is_told() -> Verdict {
    let broken = guest(&good(), MEMORY_END - 1);
    let ran = run(&broken, &[start(), ring(0)])?;
    check_eq!(ran.u32(entry(&ran)? + 12)?, DEV_NEEDS_RESET);
    check_eq!(answer(&ran)?, (0, UNTOUCHED));
    // The wait is before the stop.
    let mut calls = vec![start(), ring(0)];
    calls.resize(PATIENCE, Call::new(CALL_BASE_NOP, &[]));
    calls.push(stop());
    let ran = broken.run(&calls)?;
    check_eq!(ran.u32(entry(&ran)? + 12)?, 0);
    Ok(())
}

pub(super) fn pv_dev_13_a_guest_that_spoils_the_table_deceives_itself() -> Verdict {
    let table = crate::pv::DEV_TABLE;
    let spoil = |at, value| Call {
        store: (table + at, value),
        ..Call::new(CALL_BASE_NOP, &[])
    };
    let calls = [spoil(0, 77), spoil(4, 99), spoil(8, 0), start(), ring(0)];
    let ran = run(&guest(&good(), INTO), &calls)?;
    check_eq!(ran.after[3].result()?, Ok(0));
    check_eq!(answer(&ran)?, (1, 0));
    Ok(())
}
