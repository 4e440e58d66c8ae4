//! Facility `crash`.

use std::mem::offset_of;

use crate::stats::Outcome;
use paravane_abi::call::Status;
use paravane_abi::crash::{
    CRASH_BACKTRACE_MAX, CRASH_LOG_MAX, CRASH_MAGIC, CRASH_MESSAGE_MAX, CrashRecord,
};
use paravane_abi::registry::*;
use zerocopy::{FromZeros, IntoBytes};

use super::guest::{Call, DATA, Guest, MEMORY_END};
use super::{Failure, Verdict};

const BYTES: u64 = size_of::<CrashRecord>() as u64;
const MESSAGE: &[u8] = b"out of paper";

fn record() -> Result<CrashRecord, Failure> {
    let mut record = CrashRecord::new_zeroed();
    record.magic = CRASH_MAGIC;
    record.size = u32::try_from(BYTES)?;
    record.rip = 0xffff_ffff_8100_0042;
    record.message[..MESSAGE.len()].copy_from_slice(MESSAGE);
    record.message_len = u32::try_from(MESSAGE.len())?;
    Ok(record)
}

pub(super) fn pv_crash_1_the_record_is_reported() -> Verdict {
    let guest = Guest {
        contents: vec![(DATA, record()?.as_bytes().to_vec())],
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
    let ran = guest.run(&calls)?;
    check_eq!(ran.after[0].result()?, Ok(0));
    check_eq!(ran.stats.outcome, Outcome::Crash);
    let message = ran.stats.message.unwrap_or_default();
    check!(message.contains("out of paper"), "{message}");
    check!(message.contains("ffffffff81000042"), "{message}");
    Ok(())
}

pub(super) fn pv_crash_2_a_wrong_length_is_invalid() -> Verdict {
    let guest = Guest {
        contents: vec![(DATA, record()?.as_bytes().to_vec())],
        ..Guest::default()
    };
    let calls = [0, BYTES - 1, BYTES + 1, 1 << 32 | BYTES, u64::MAX]
        .map(|length| Call::new(CALL_CRASH_REPORT, &[DATA, length]));
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [Err(Status::InvalidParam); 5]);
    check_eq!(ran.stats.message, None, "nothing has been reported");
    Ok(())
}

pub(super) fn pv_crash_2_a_wrong_record_is_invalid() -> Verdict {
    let over = |most: usize| u32::try_from(most + 1);
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
        over(CRASH_BACKTRACE_MAX)?,
        over(CRASH_MESSAGE_MAX)?,
        over(CRASH_LOG_MAX)?,
    ];
    let address = |index: usize| DATA + 0x1000 * index as u64;
    let mut contents = Vec::new();
    for (index, (spoil, most)) in spoil.iter().zip(most).enumerate() {
        let mut record = record()?;
        spoil(&mut record, most);
        contents.push((address(index), record.as_bytes().to_vec()));
    }
    let guest = Guest {
        contents,
        ..Guest::default()
    };
    let calls: Vec<_> = (0..spoil.len())
        .map(|index| Call::new(CALL_CRASH_REPORT, &[address(index), BYTES]))
        .collect();
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [Err(Status::InvalidParam); 6]);
    check_eq!(ran.stats.message, None, "nothing has been reported");
    Ok(())
}

pub(super) fn pv_crash_3_bad_addresses() -> Verdict {
    let guest = Guest {
        contents: vec![(DATA + 4, record()?.as_bytes().to_vec())],
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
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [Err(Status::BadAddress); 6]);
    check_eq!(ran.stats.message, None, "nothing has been reported");
    Ok(())
}
