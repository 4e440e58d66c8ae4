//! Facility `ring` by the doorbell. What needs a second processor or the poller is in `tests/ring`.

use crate::pv::{BOOT_INFO, CONSOLE_PAGE};
use crate::random::Random;
use crate::stats::Outcome;
use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::{CALLS, CallResult, Status};
use paravane_abi::registry::*;
use paravane_abi::ring::{RING_ENTRIES_MAX, RING_EXITLESS, RingEntry, RingHeader, ring_bytes};
use zerocopy::IntoBytes;

use super::guest::{Call, DATA, Guest, MEMORY_END, Ran};
use super::{Failure, Verdict};

/// Where the guest's ring is.
const RING: u64 = DATA;
const HEAD: u64 = RING;
const TAIL: u64 = RING + 64;
const HOST_LOOKS: u64 = RING + 68;
/// Text for the console.
const TEXT: u64 = DATA + 0x8000;
/// What stands in an entry that has not been completed.
const PENDING: i32 = 0x7777;

const BAD: CallResult = Err(Status::InvalidParam);

/// Entry number `index` of the ring.
fn entry_at(index: u64) -> u64 {
    RING + ring_bytes(0) + index * size_of::<RingEntry>() as u64
}

fn entry(call: u32, args: &[u64]) -> RingEntry {
    let mut entry = RingEntry {
        call,
        status: PENDING,
        value: u64::MAX,
        args: [0; 6],
    };
    entry.args[..args.len()].copy_from_slice(args);
    entry
}

/// A guest with these entries from the ring's beginning, and a header full of junk.
fn guest(entries: &[RingEntry]) -> Guest {
    let header = RingHeader {
        tail: 0xaaaa_aaaa,
        host_looks: 0x5555_5555,
        ..RingHeader::default()
    };
    Guest {
        contents: vec![
            (RING, [header.as_bytes(), entries.as_bytes()].concat()),
            (TEXT, b"one two three".to_vec()),
        ],
        ..Guest::default()
    }
}

fn register(entries: u32) -> Call {
    Call::new(CALL_RING_REGISTER, &[0, RING, u64::from(entries)])
}

/// `ring.submit` after the guest has published `head`.
fn submit(head: u32) -> Call {
    Call {
        store: (HEAD, head),
        ..Call::new(CALL_RING_SUBMIT, &[0])
    }
}

/// Entry number `index` now.
fn now(ran: &Ran, index: u64) -> Result<RingEntry, Failure> {
    Ok(ran.memory.read_obj(entry_at(index))?)
}

pub(super) fn pv_ring_1_transports_and_facility_go_together() -> Verdict {
    let (ring, exitless) = (TRANSPORT_RING, TRANSPORT_EXITLESS);
    for (facilities, expected) in [
        ("", ring | exitless),
        ("ring", ring),
        ("exitless", ring | exitless),
        ("-exitless", ring),
        ("-ring", 0),
        ("console", 0),
    ] {
        let guest = Guest {
            facilities,
            ..guest(&[])
        };
        let calls = [register(1)];
        let ran = guest.run(&calls)?;
        let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
        check_eq!(info.transports, TRANSPORT_DOORBELL | expected);
        check_eq!(info.has(FACILITY_RING), expected != 0, "{facilities}");
        let answer = if expected == 0 {
            Err(Status::NotSupported)
        } else {
            Ok(0)
        };
        check_eq!(ran.results(&calls)?, [answer], "{facilities}");
    }
    Ok(())
}

pub(super) fn pv_ring_2_a_registered_ring_is_empty() -> Verdict {
    let calls = [Call::new(
        CALL_RING_REGISTER,
        &[0, RING, u64::from(RING_ENTRIES_MAX), RING_EXITLESS],
    )];
    let ran = guest(&[]).run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0)]);
    check_eq!((ran.u32(TAIL)?, ran.u32(HOST_LOOKS)?), (0, 0));
    Ok(())
}

pub(super) fn pv_ring_15_register_takes_what_can_be() -> Verdict {
    let most = u64::from(RING_ENTRIES_MAX);
    let rows = [
        ([2, RING, 8, 0], BAD),
        ([u64::MAX, RING, 8, 0], BAD),
        ([1 << 32, RING, 8, 0], BAD),
        ([0, RING, 0, 0], BAD),
        ([0, RING, 3, 0], BAD),
        ([0, RING, most + 1, 0], BAD),
        ([0, RING, most * 2, 0], BAD),
        ([0, RING, 1 << 32, 0], BAD),
        ([0, RING, (1 << 32) + 8, 0], BAD),
        ([0, RING, 8, 2], BAD),
        ([0, RING, 8, RING_EXITLESS | 1 << 63], BAD),
        ([0, RING, most, 0], Ok(0)),
        ([1, RING + 0x1_0000, 1, RING_EXITLESS], Ok(0)),
    ];
    let guest = Guest {
        vcpus: 2,
        ..guest(&[])
    };
    let calls: Vec<_> = rows
        .iter()
        .map(|(args, _)| Call::new(CALL_RING_REGISTER, args))
        .collect();
    let ran = guest.run(&calls)?;
    for ((args, expected), found) in rows.iter().zip(ran.results(&calls)?) {
        check_eq!(found, *expected, "{args:x?}");
    }
    Ok(())
}

pub(super) fn pv_ring_15_no_exitless_ring_without_the_transport() -> Verdict {
    let guest = Guest {
        facilities: "-exitless",
        ..guest(&[])
    };
    let calls = [
        Call::new(CALL_RING_REGISTER, &[0, RING, 8, RING_EXITLESS]),
        Call::new(CALL_RING_REGISTER, &[0, RING, 8, 0]),
    ];
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [BAD, Ok(0)]);
    Ok(())
}

pub(super) fn pv_ring_16_a_second_ring_is_denied_and_the_first_stays() -> Verdict {
    let calls = [
        register(8),
        Call::new(CALL_RING_REGISTER, &[0, RING + 0x1_0000, 8]),
        register(8),
        submit(1),
    ];
    let ran = guest(&[entry(CALL_BASE_NOP, &[5])]).run(&calls)?;
    let denied = Err(Status::Denied);
    check_eq!(ran.results(&calls)?, [Ok(0), denied, denied, Ok(1)]);
    check_eq!(now(&ran, 0)?.result(), Ok(5));
    Ok(())
}

pub(super) fn pv_ring_3_a_ring_lies_in_memory() -> Verdict {
    let whole = MEMORY_END - 4096;
    // One page holds the header and this many entries, and no more.
    let fit = 32;
    let rows = [
        (RING + 1, 1, false),
        (RING + 64, 1, false),
        (RING + 4095, 1, false),
        (MEMORY_END, 1, false),
        (whole, 64, false),
        (0xfee0_0000, 1, false),
        (1 << 63, 1, false),
        (u64::MAX - 4095, RING_ENTRIES_MAX, false),
        (whole, fit, true),
    ];
    let calls: Vec<_> = rows
        .iter()
        .map(|(address, entries, _)| {
            Call::new(CALL_RING_REGISTER, &[0, *address, u64::from(*entries)])
        })
        .collect();
    let ran = guest(&[]).run(&calls)?;
    for ((address, entries, good), found) in rows.iter().zip(ran.results(&calls)?) {
        let expected = if *good {
            Ok(0)
        } else {
            Err(Status::BadAddress)
        };
        check_eq!(found, expected, "{entries} entries at {address:#x}");
    }
    Ok(())
}

pub(super) fn pv_ring_4_an_unregistered_ring_is_the_guests() -> Verdict {
    let unregister = Call::new(CALL_RING_UNREGISTER, &[0]);
    let calls = [register(8), submit(1), unregister, submit(2)];
    let entries = [entry(CALL_BASE_NOP, &[5]); 2];
    let ran = guest(&entries).run(&calls)?;
    let denied = Err(Status::Denied);
    check_eq!(ran.results(&calls)?, [Ok(0), Ok(1), Ok(0), denied]);
    check_eq!(ran.u32(TAIL)?, 1);
    check_eq!(now(&ran, 1)?, entries[1]);
    Ok(())
}

pub(super) fn pv_ring_17_what_is_not_registered_cannot_be_unregistered() -> Verdict {
    let unregister = |apic_id| Call::new(CALL_RING_UNREGISTER, &[apic_id]);
    let calls = [
        unregister(0),
        register(8),
        unregister(0),
        unregister(0),
        unregister(1),
        unregister(u64::MAX),
    ];
    let ran = guest(&[]).run(&calls)?;
    let denied = Err(Status::Denied);
    check_eq!(
        ran.results(&calls)?,
        [denied, Ok(0), Ok(0), denied, BAD, BAD]
    );
    Ok(())
}

pub(super) fn pv_ring_4_a_ring_can_be_registered_again() -> Verdict {
    let calls = [
        register(8),
        submit(2),
        Call::new(CALL_RING_UNREGISTER, &[0]),
        // From the beginning again: the head that still stands there counts from zero.
        register(4),
        submit(1),
    ];
    let entries = [entry(CALL_BASE_NOP, &[5]), entry(CALL_BASE_VERSION, &[])];
    let ran = guest(&entries).run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0), Ok(2), Ok(0), Ok(0), Ok(1)]);
    check_eq!(ran.u32(TAIL)?, 1);
    Ok(())
}

pub(super) fn pv_ring_5_submit_tells_how_many() -> Verdict {
    let calls = [register(4), submit(3), submit(3), submit(4), submit(8)];
    let ran = guest(&[entry(CALL_BASE_NOP, &[5]); 4]).run(&calls)?;
    let expected = [Ok(0), Ok(3), Ok(0), Ok(1), Ok(4)];
    check_eq!(ran.results(&calls)?, expected);
    check_eq!(ran.u32(TAIL)?, 8);
    Ok(())
}

pub(super) fn pv_ring_18_only_a_ring_can_be_submitted() -> Verdict {
    let calls = [
        submit(1),
        register(4),
        Call::new(CALL_RING_SUBMIT, &[1]),
        Call::new(CALL_RING_SUBMIT, &[2]),
        Call::new(CALL_RING_SUBMIT, &[u64::MAX]),
    ];
    let guest = Guest {
        vcpus: 2,
        ..guest(&[entry(CALL_BASE_NOP, &[5])])
    };
    let ran = guest.run(&calls)?;
    let denied = Err(Status::Denied);
    check_eq!(ran.results(&calls)?, [denied, Ok(0), denied, BAD, BAD]);
    check_eq!(ran.u32(TAIL)?, 0);
    Ok(())
}

pub(super) fn pv_ring_5_a_processor_may_submit_anothers_ring() -> Verdict {
    let guest = Guest {
        vcpus: 2,
        ..guest(&[entry(CALL_BASE_NOP, &[5])])
    };
    let calls = [
        Call::new(CALL_RING_REGISTER, &[1, RING, 8]),
        Call {
            store: (HEAD, 1),
            ..Call::new(CALL_RING_SUBMIT, &[1])
        },
    ];
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0), Ok(1)]);
    check_eq!(now(&ran, 0)?.result(), Ok(5));
    Ok(())
}

pub(super) fn pv_ring_23_each_entry_has_its_own_status() -> Verdict {
    let write = |address, length| entry(CALL_CONSOLE_WRITE, &[address, length]);
    let rows = [
        (write(TEXT, 4), Ok(4)),
        (entry(0xffff_ffff, &[1, 2, 3]), Err(Status::NotSupported)),
        (write(TEXT + 4, 4), Ok(4)),
        (entry(CALL_BASE_VERSION, &[1]), BAD),
        (write(MEMORY_END, 1), Err(Status::BadAddress)),
        (write(TEXT + 8, 5), Ok(5)),
        (entry(CALL_BASE_POWER, &[99]), BAD),
        (entry(CALL_BASE_NOP, &[1 << 63]), Ok(1 << 63)),
    ];
    let entries = rows.map(|(entry, _)| entry);
    let calls = [register(8), submit(8)];
    let ran = guest(&entries).run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0), Ok(8)]);
    check_eq!(ran.console, b"one two three", "in their order");
    for (index, (before, expected)) in (0..).zip(rows) {
        let after = now(&ran, index)?;
        check_eq!(after.result(), expected, "entry {index}");
        check_eq!(
            (i64::from(after.status), after.value),
            Status::encode(expected)
        );
        check_eq!((after.call, after.args), (before.call, before.args));
    }
    let count = |name| ran.stats.hypercalls.get(name).copied();
    check_eq!(count("console.write"), Some(4), "counted like other calls");
    check_eq!(count("unknown"), Some(1));
    Ok(())
}

pub(super) fn pv_ring_7_a_power_off_ends_the_batch() -> Verdict {
    for (action, outcome) in [
        (POWER_OFF, Outcome::PowerOff),
        (POWER_REBOOT, Outcome::Reboot),
        (POWER_CRASH, Outcome::Crash),
    ] {
        let entries = [
            entry(CALL_CONSOLE_WRITE, &[TEXT, 4]),
            entry(CALL_BASE_POWER, &[action]),
            entry(CALL_CONSOLE_WRITE, &[TEXT, 4]),
        ];
        let calls = [register(4), submit(3)];
        let ran = guest(&entries).run(&calls)?;
        check_eq!(ran.stats.outcome, outcome);
        check_eq!(ran.console, b"one ");
        check_eq!(ran.u32(TAIL)?, 1);
        check_eq!([now(&ran, 1)?, now(&ran, 2)?], entries[1..]);
    }
    Ok(())
}

pub(super) fn pv_ring_8_rings_do_not_nest() -> Verdict {
    let entries = [
        entry(CALL_RING_SUBMIT, &[0]),
        entry(CALL_RING_UNREGISTER, &[0]),
        entry(CALL_RING_REGISTER, &[0, RING, 8]),
        entry(FACILITY_RING << 16 | 0xffff, &[1, 2, 3, 4, 5, 6]),
        entry(CALL_BASE_NOP, &[5]),
    ];
    let calls = [register(8), submit(5)];
    let ran = guest(&entries).run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0), Ok(5)]);
    for index in 0..4 {
        check_eq!(now(&ran, index)?.result(), BAD, "entry {index}");
    }
    check_eq!(now(&ran, 4)?.result(), Ok(5));
    Ok(())
}

pub(super) fn pv_ring_13_entries_that_are_published_too_early_are_taken_as_they_are() -> Verdict {
    let junk = RingEntry {
        call: 0x7777_7777,
        status: PENDING,
        value: u64::MAX,
        args: [u64::MAX; 6],
    };
    let calls = [register(4), submit(3)];
    let ran = guest(&[junk, entry(0, &[]), entry(CALL_BASE_NOP, &[5])]).run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0), Ok(3)]);
    check_eq!(now(&ran, 0)?.result(), Err(Status::NotSupported));
    check_eq!(now(&ran, 1)?.result(), Err(Status::NotSupported));
    check_eq!(now(&ran, 2)?.result(), Ok(5));
    Ok(())
}

pub(super) fn pv_ring_19_an_entry_that_is_changed_late_is_checked_as_it_is_then() -> Verdict {
    // Published with a range in memory; its length has been made too great when the host looks.
    let length = entry_at(0) + 24;
    let calls = [
        register(4),
        Call {
            store: (HEAD, 1),
            ..Call::new(CALL_BASE_NOP, &[])
        },
        Call {
            store: (length, u32::MAX),
            ..Call::new(CALL_RING_SUBMIT, &[0])
        },
    ];
    let ran = guest(&[entry(CALL_CONSOLE_WRITE, &[TEXT, 4])]).run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0), Ok(0), Ok(1)]);
    check_eq!(now(&ran, 0)?.result(), BAD);
    check_eq!(ran.console, b"");
    Ok(())
}

pub(super) fn pv_ring_10_the_host_trusts_its_own_tail_only() -> Verdict {
    let entries = [entry(CALL_CONSOLE_WRITE, &[TEXT, 4]); 2];
    let calls = [
        register(2),
        submit(1),
        // Would print again.
        Call {
            store: (TAIL, 0),
            ..Call::new(CALL_RING_SUBMIT, &[0])
        },
        submit(2),
    ];
    let ran = guest(&entries).run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0), Ok(1), Ok(0), Ok(1)]);
    check_eq!(ran.u32(TAIL)?, 2);
    check_eq!(ran.console, b"one one ");
    Ok(())
}

pub(super) fn pv_ring_11_impossible_indices_empty_the_ring() -> Verdict {
    let entries = [entry(CALL_CONSOLE_WRITE, &[TEXT, 4]); 4];
    // More than there are, forwards and backwards; then as many as can be, over the index's end.
    let calls = [
        register(4),
        submit(5),
        submit(4),
        submit(0xffff_fffe),
        submit(2),
        submit(7),
    ];
    let ran = guest(&entries).run(&calls)?;
    check_eq!(
        ran.results(&calls)?,
        [Ok(0), Ok(0), Ok(0), Ok(0), Ok(4), Ok(0)]
    );
    check_eq!(ran.console, b"one one one one ");
    check_eq!(ran.u32(TAIL)?, 7);
    Ok(())
}

pub(super) fn pv_ring_22_other_rings_are_not_looked_at() -> Verdict {
    let calls = [register(4), submit(1), submit(2)];
    let entries = [entry(CALL_BASE_NOP, &[5]); 2];
    let ran = guest(&entries).run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0), Ok(1), Ok(1)]);
    check_eq!(ran.u32(HOST_LOOKS)?, 0);
    Ok(())
}

/// A word for the ring: an index, a call, or any.
fn word(random: &mut Random) -> u32 {
    let any = random.next_u32();
    let small = any % 20;
    let call = random.pick(CALLS).0;
    // The check wants to see the end; and random bytes would go anywhere.
    if random.one_in(3) && ![CALL_BASE_POWER, CALL_RNG_FILL].contains(&call) {
        return call;
    }
    random.pick(&[small, u32::MAX - small, any, CALL_BASE_NOP])
}

pub(super) fn pv_ring_11_a_hostile_ring_harms_nobody() -> Verdict {
    let mut random = Random::new(0x5249_4e47);
    let addresses = [
        RING,
        RING,
        RING,
        RING,
        RING,
        RING,
        RING,
        RING + 0x1000,
        RING + 4,
        MEMORY_END - 0x1000,
        MEMORY_END - 0x2000,
        MEMORY_END,
        CONSOLE_PAGE,
        0,
        1 << 52,
        u64::MAX - 0xfff,
    ];
    let mut head = 0_u32;
    let mut calls: Vec<_> = (0..8000)
        .map(|_| {
            let id = random.pick(&[
                CALL_RING_SUBMIT,
                CALL_RING_SUBMIT,
                CALL_RING_SUBMIT,
                CALL_RING_SUBMIT,
                CALL_RING_SUBMIT,
                CALL_RING_SUBMIT,
                CALL_RING_REGISTER,
                CALL_RING_REGISTER,
                CALL_RING_UNREGISTER,
            ]);
            let vcpu = random.pick(&[0, 0, 0, 0, 0, 0, 0, 1, 1, 2, u64::MAX]);
            let mut call = Call::new(id, &[vcpu]);
            if id == CALL_RING_REGISTER {
                call.args[1] = random.pick(&addresses[..]);
                // Address zero is the guest's own page tables' neighbourhood.
                call.args[1] = call.args[1].max(RING);
                call.args[2] = random.pick(&[4, 8, 16, 32, 32, 0, 3, 512, u64::MAX]);
                // Without the poller, which would run at times that no seed fixes.
                call.args[3] = random.pick(&[0, 0, 0, 2]);
            }
            // The header's and the first entries' words.
            let index = random.below(96);
            let at = random.pick(&[HEAD, HEAD, TAIL, HOST_LOOKS, RING + 4 * index]);
            // No call that stops the machine: it is not among the words.
            call.store = (at, word(&mut random));
            if at == HEAD {
                if !random.one_in(8) {
                    call.store.1 = head.wrapping_add(random.pick(&[0, 1, 2, 3, 5, 17]));
                }
                head = call.store.1;
            }
            call
        })
        .collect();
    calls.push(Call::new(CALL_BASE_NOP, &[0x600d]));
    let guest = Guest {
        vcpus: 2,
        ..guest(&[])
    };
    let ran = guest.run(&calls)?;
    check_eq!(ran.stats.outcome, Outcome::PowerOff, "{:?}", ran.stats);
    let results = ran.results(&calls)?;
    check_eq!(results.last(), Some(&Ok(0x600d)), "the VMM answers");
    let completed: u64 = calls
        .iter()
        .zip(&results)
        .filter(|(call, _)| call.id == CALL_RING_SUBMIT)
        .filter_map(|(_, result)| result.ok())
        .sum();
    check!(completed > 1000, "{completed}: the test tries too little");
    // Rings were at their pages only; the last two pages of memory and these.
    for (range, what) in [
        (RING - 0x1000..RING, "below the ring"),
        (RING + 0x4000..TEXT, "above the ring"),
        (MEMORY_END - 0x4000..MEMORY_END - 0x2000, "below the end"),
    ] {
        let length = usize::try_from(range.end - range.start)?;
        let start = usize::try_from(range.start)?;
        let same = ran.bytes(range.start, length)? == ran.before[start..start + length];
        check!(same, "{what}");
    }
    Ok(())
}
