//! Facility `console`: calls and the output ring. The input ring has unit tests beside its code.

use std::mem::offset_of;

use crate::pv::{BOOT_INFO, CONSOLE_PAGE};
use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::Status;
use paravane_abi::console::ConsolePage;
use paravane_abi::registry::*;

use super::Verdict;
use super::guest::{Call, DATA, Guest, MEMORY_END, results};

const OUT_HEAD: u64 = CONSOLE_PAGE + offset_of!(ConsolePage, out_head) as u64;
const OUT_TAIL: u64 = CONSOLE_PAGE + offset_of!(ConsolePage, out_tail) as u64;
const OUT_BUFFER: u64 = CONSOLE_PAGE + 4096;

/// `length` bytes that differ from their neighbours.
fn pattern(length: usize) -> Vec<u8> {
    (b'!'..=b'~').cycle().take(length).collect()
}

/// A call that is made after the guest has published `head`.
fn after_head(head: u32, call: Call) -> Call {
    Call {
        store: (OUT_HEAD, head),
        ..call
    }
}

pub(super) fn pv_console_1_write_prints_and_counts() -> Verdict {
    let most = usize::try_from(CONSOLE_WRITE_MAX)?;
    let text = pattern(most);
    let guest = Guest {
        contents: vec![(DATA + 1, text.clone()), (MEMORY_END - 3, b"end".to_vec())],
        ..Guest::default()
    };
    let writes = [
        (DATA + 1, 5),
        (DATA + 1, 0),
        (MEMORY_END - 3, 3),
        (DATA + 1, CONSOLE_WRITE_MAX),
        // Nothing is everywhere.
        (u64::MAX, 0),
    ];
    let calls = writes.map(|(address, length)| Call::new(CALL_CONSOLE_WRITE, &[address, length]));
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, writes.map(|(_, length)| Ok(length)));
    check_eq!(ran.console, [&text[..5], b"end", &text[..]].concat());
    Ok(())
}

pub(super) fn pv_console_1_write_comes_after_what_is_in_the_ring() -> Verdict {
    let guest = Guest {
        contents: vec![(OUT_BUFFER, b"first ".to_vec()), (DATA, b"second".to_vec())],
        ..Guest::default()
    };
    let calls = [after_head(6, Call::new(CALL_CONSOLE_WRITE, &[DATA, 6]))];
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(6)]);
    check_eq!(ran.console, b"first second");
    Ok(())
}

pub(super) fn pv_console_9_write_too_long_is_invalid() -> Verdict {
    let calls = [CONSOLE_WRITE_MAX + 1, 1 << 32, u64::MAX]
        .map(|length| Call::new(CALL_CONSOLE_WRITE, &[DATA, length]));
    let ran = Guest::default().run(&calls)?;
    check_eq!(ran.results(&calls)?, [Err(Status::InvalidParam); 3]);
    check_eq!(ran.console, b"");
    Ok(())
}

pub(super) fn pv_console_10_write_outside_memory_is_a_bad_address() -> Verdict {
    let calls = [
        (MEMORY_END - 1, 2),
        (MEMORY_END, 1),
        (0xfee0_0000, 4),
        (u64::MAX, 1),
        (u64::MAX - 4, 16),
        (1 << 63, CONSOLE_WRITE_MAX),
    ]
    .map(|(address, length)| Call::new(CALL_CONSOLE_WRITE, &[address, length]));
    let ran = Guest::default().run(&calls)?;
    check_eq!(ran.results(&calls)?, [Err(Status::BadAddress); 6]);
    check_eq!(ran.console, b"");
    Ok(())
}

pub(super) fn pv_console_2_the_rings_are_where_boot_info_says() -> Verdict {
    let ran = Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])?;
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    let console = info.console;
    check_eq!(console.address, CONSOLE_PAGE);
    check_eq!(console.address % 4096, 0);
    for size in [console.out_size, console.in_size] {
        check!(size.is_power_of_two() && size >= 4096, "{size}");
    }
    check_eq!(console.reserved, [0; 2]);
    Ok(())
}

pub(super) fn pv_console_3_the_host_trusts_its_own_tail_only() -> Verdict {
    let guest = Guest {
        contents: vec![(OUT_BUFFER, b"abcdef".to_vec())],
        ..Guest::default()
    };
    let notify = Call::new(CALL_CONSOLE_NOTIFY, &[]);
    let calls = [
        after_head(3, notify),
        // Would print "abc" again.
        Call {
            store: (OUT_TAIL, 0),
            ..notify
        },
        after_head(6, notify),
    ];
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0); 3]);
    check_eq!(ran.console, b"abcdef");
    check_eq!(ran.u32(OUT_TAIL)?, 6);
    Ok(())
}

pub(super) fn pv_console_4_impossible_indices_empty_the_ring() -> Verdict {
    let info = 0x1_0000;
    let guest = Guest {
        contents: vec![(OUT_BUFFER, pattern(info))],
        ..Guest::default()
    };
    let notify = Call::new(CALL_CONSOLE_NOTIFY, &[]);
    // More than the ring holds, forwards and backwards; then three bytes from there.
    let calls = [
        after_head(0x1_0001, notify),
        after_head(0x1_0000, notify),
        after_head(0x1_0003, notify),
    ];
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0); 3]);
    check_eq!(ran.console, pattern(3));
    check_eq!(ran.u32(OUT_TAIL)?, 0x1_0003);
    Ok(())
}

pub(super) fn pv_console_4_indices_wrap() -> Verdict {
    let size = 0x1_0000;
    let guest = Guest {
        contents: vec![(OUT_BUFFER, pattern(size))],
        ..Guest::default()
    };
    let notify = Call::new(CALL_CONSOLE_NOTIFY, &[]);
    let calls = [
        // The whole ring; from its end over its beginning.
        after_head(0xffff, notify),
        after_head(0x1_0004, notify),
        // An impossible step close to the end of the index's range, and over it.
        after_head(0xffff_fffe, notify),
        after_head(2, notify),
    ];
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0); 4]);
    let text = pattern(size);
    let expected = [
        &text[..0xffff],
        &text[0xffff..],
        &text[..4],
        &text[0xfffe..],
        &text[..2],
    ]
    .concat();
    check!(ran.console == expected, "{} bytes", ran.console.len());
    Ok(())
}

pub(super) fn pv_console_5_notify_takes_all_bytes() -> Verdict {
    let guest = Guest {
        contents: vec![(OUT_BUFFER, b"hello, host".to_vec())],
        ..Guest::default()
    };
    let calls = [after_head(11, Call::new(CALL_CONSOLE_NOTIFY, &[]))];
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0)]);
    check_eq!(ran.u32(OUT_TAIL)?, 11);
    check_eq!(ran.console, b"hello, host");
    Ok(())
}

pub(super) fn pv_console_11_event_vectors_and_processors() -> Verdict {
    let guest = Guest {
        vcpus: 2,
        ..Guest::default()
    };
    let bad = Err(Status::InvalidParam);
    let events = [
        (0, 0, Ok(0)),
        (0, 1, Ok(0)),
        (0, 2, bad),
        (1, 0, bad),
        (EVENT_VECTOR_FIRST - 1, 0, bad),
        (EVENT_VECTOR_FIRST, 0, Ok(0)),
        (EVENT_VECTOR_LAST, 1, Ok(0)),
        (EVENT_VECTOR_LAST + 1, 0, bad),
        (EVENT_VECTOR_FIRST, 2, bad),
        (EVENT_VECTOR_FIRST, 256, bad),
        (EVENT_VECTOR_FIRST, u64::MAX, bad),
        (1 << 32 | EVENT_VECTOR_FIRST, 0, bad),
        (u64::MAX, 0, bad),
    ];
    let calls =
        events.map(|(vector, apic_id, _)| Call::new(CALL_CONSOLE_EVENT, &[vector, apic_id]));
    let ran = guest.run(&calls)?;
    for ((vector, apic_id, expected), found) in events.iter().zip(ran.results(&calls)?) {
        check_eq!(found, *expected, "vector {vector:#x}, APIC id {apic_id:#x}");
    }
    Ok(())
}

pub(super) fn pv_console_5_notify_of_an_empty_ring_is_no_error() -> Verdict {
    let calls = [Call::new(CALL_CONSOLE_NOTIFY, &[]); 2];
    check_eq!(results(&calls)?, [Ok(0); 2]);
    Ok(())
}
