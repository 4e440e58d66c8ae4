//! Facility `crash`.

use std::mem::offset_of;

use paravane::stats::Outcome;
use paravane_abi::call::Status;
use paravane_abi::crash::{
    CRASH_BACKTRACE_MAX, CRASH_LOG_MAX, CRASH_MAGIC, CRASH_MESSAGE_MAX, CrashRecord,
};
use paravane_abi::registry::*;
use zerocopy::{FromZeros, IntoBytes};

use crate::guest::{Call, DATA, Guest, MEMORY_END};

const BYTES: u64 = size_of::<CrashRecord>() as u64;

fn record() -> CrashRecord {
    let mut record = CrashRecord::new_zeroed();
    record.magic = CRASH_MAGIC;
    record.size = u32::try_from(BYTES).unwrap();
    record.rip = 0xffff_ffff_8100_0042;
    let message = b"out of paper";
    record.message[..message.len()].copy_from_slice(message);
    record.message_len = u32::try_from(message.len()).unwrap();
    record
}

#[test]
fn pv_crash_1_the_record_is_reported() {
    let guest = Guest {
        contents: vec![(DATA, record().as_bytes().to_vec())],
        ..Guest::default()
    };
    let calls = [
        Call::new(CALL_CRASH_REPORT, &[DATA, BYTES]),
        // The record has been copied: what happens to it now does not matter.
        Call {
            store: (
                DATA + offset_of!(CrashRecord, message) as u64,
                u32::from_le_bytes(*b"lots"),
            ),
            ..Call::new(CALL_BASE_POWER, &[POWER_CRASH, POWER_REASON_PANIC])
        },
    ];
    let Some(ran) = guest.run(&calls) else { return };
    assert_eq!(ran.after[0].result(), Ok(0));
    assert_eq!(ran.stats.outcome, Outcome::Crash);
    let message = ran.stats.message.unwrap();
    assert!(message.contains("out of paper"), "{message}");
    assert!(message.contains("ffffffff81000042"), "{message}");
}

#[test]
fn pv_crash_2_a_wrong_length_is_invalid() {
    let guest = Guest {
        contents: vec![(DATA, record().as_bytes().to_vec())],
        ..Guest::default()
    };
    let calls = [0, BYTES - 1, BYTES + 1, 1 << 32 | BYTES, u64::MAX]
        .map(|length| Call::new(CALL_CRASH_REPORT, &[DATA, length]));
    let Some(ran) = guest.run(&calls) else { return };
    assert_eq!(ran.results(&calls), [Err(Status::InvalidParam); 5]);
    assert_eq!(ran.stats.message, None, "nothing has been reported");
}

#[test]
fn pv_crash_2_a_wrong_record_is_invalid() {
    let over = |most: usize| u32::try_from(most).unwrap() + 1;
    let spoil: [fn(&mut CrashRecord, u32); 6] = [
        |record, _| record.magic += 1,
        |record, _| record.size -= 1,
        |record, _| record.reserved0 = 1,
        |record, most| record.backtrace_len = most,
        |record, most| record.message_len = most,
        |record, most| record.log_len = most,
    ];
    let most = [
        0,
        0,
        0,
        over(CRASH_BACKTRACE_MAX),
        over(CRASH_MESSAGE_MAX),
        over(CRASH_LOG_MAX),
    ];
    let address = |index: usize| DATA + 0x1000 * index as u64;
    let contents = spoil
        .iter()
        .zip(most)
        .enumerate()
        .map(|(index, (spoil, most))| {
            let mut record = record();
            spoil(&mut record, most);
            (address(index), record.as_bytes().to_vec())
        })
        .collect();
    let guest = Guest {
        contents,
        ..Guest::default()
    };
    let calls: Vec<_> = (0..spoil.len())
        .map(|index| Call::new(CALL_CRASH_REPORT, &[address(index), BYTES]))
        .collect();
    let Some(ran) = guest.run(&calls) else { return };
    assert_eq!(ran.results(&calls), [Err(Status::InvalidParam); 6]);
    assert_eq!(ran.stats.message, None, "nothing has been reported");
}

#[test]
fn pv_crash_3_bad_addresses() {
    let guest = Guest {
        contents: vec![(DATA + 4, record().as_bytes().to_vec())],
        ..Guest::default()
    };
    let calls = [
        DATA + 4,
        DATA + 1,
        MEMORY_END,
        MEMORY_END - BYTES + 8,
        u64::MAX - 7,
        u64::MAX,
    ]
    .map(|address| Call::new(CALL_CRASH_REPORT, &[address, BYTES]));
    let Some(ran) = guest.run(&calls) else { return };
    assert_eq!(ran.results(&calls), [Err(Status::BadAddress); 6]);
    assert_eq!(ran.stats.message, None, "nothing has been reported");
}
