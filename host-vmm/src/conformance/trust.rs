//! What facility bits promise, and where a call can reach.

use crate::pv::CONSOLE_PAGE;
use paravane_abi::call::{CALLS, Status};
use paravane_abi::crash::CrashRecord;
use paravane_abi::registry::*;
use paravane_abi::rng::RNG_FILL_MAX;

use super::Verdict;
use super::guest::{Call, Guest, MEMORY_END, offered};

pub(super) fn pv_conf_1_every_call_of_an_offered_facility_is_carried_out() -> Verdict {
    // Arguments that no call takes: what it answers to them differs, but it knows the call.
    let calls: Vec<_> = CALLS
        .iter()
        .map(|id| Call::new(id.0, &[u64::MAX; 6]))
        .collect();
    for facilities in ["", "-console", "clock,crash"] {
        let guest = Guest {
            facilities,
            ..Guest::default()
        };
        let set = offered(facilities)?;
        let results = guest.run(&calls)?.results(&calls)?;
        for (id, result) in CALLS.iter().zip(results) {
            let known = result != Err(Status::NotSupported);
            check_eq!(
                known,
                set.has(id.facility()),
                "{id:?} with --pv={facilities}"
            );
        }
    }
    Ok(())
}

/// Calls whose ranges are not wholly in guest memory.
fn stray_calls() -> Vec<Call> {
    let record = size_of::<CrashRecord>() as u64;
    let mut calls = Vec::new();
    for (address, length) in [
        (u64::MAX, 1),
        (u64::MAX - 4095, 4096),
        (u64::MAX - 4095, 8192),
        (u64::MAX - 15, CONSOLE_WRITE_MAX),
        (MEMORY_END - 1, 2),
        (MEMORY_END, 1),
        (0xc000_0000, 1),
        (0xfee0_0000, 16),
        (1 << 63, 4096),
    ] {
        calls.push(Call::new(CALL_CONSOLE_WRITE, &[address, length]));
        calls.push(Call::new(
            CALL_RNG_FILL,
            &[address, length.min(RNG_FILL_MAX)],
        ));
    }
    for address in [
        u64::MAX - 7,
        u64::MAX - record + 1,
        MEMORY_END - record + 8,
        0xfee0_0000,
        1 << 63,
    ] {
        calls.push(Call::new(CALL_CRASH_REPORT, &[address, record]));
    }
    calls
}

pub(super) fn pv_sec_4_no_range_reaches_beyond_guest_memory() -> Verdict {
    let calls = stray_calls();
    let ran = Guest::default().run(&calls)?;
    for (call, result) in calls.iter().zip(ran.results(&calls)?) {
        check_eq!(result, Err(Status::BadAddress), "{call:x?}");
    }
    check_eq!(ran.console, b"", "something has been printed");
    let (rings, length) = (CONSOLE_PAGE + 4096, 0x1_1000);
    let at = usize::try_from(rings)?;
    check!(
        ran.bytes(rings, length)? == ran.before[at..at + length],
        "the console's buffers have changed"
    );
    Ok(())
}

pub(super) fn pv_sec_2_a_neighbour_is_not_written_to() -> Verdict {
    // Another machine of the same process, with the pattern of an unused memory everywhere.
    let bystander = crate::memory::Memory::new(crate::conformance::guest::MEMORY_MIB)?;
    let mut text = vec![0x5a; usize::try_from(MEMORY_END)?];
    bystander.write(0, &text)?;
    let calls = stray_calls();
    Guest::default().run(&calls)?.results(&calls)?;
    let expected = text.clone();
    bystander.read(0, &mut text)?;
    check!(text == expected, "a call has written to another machine");
    Ok(())
}
