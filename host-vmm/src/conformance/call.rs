//! The call itself: registers, status, privilege.

use crate::pv::DOORBELL_PORT;
use crate::stats::Outcome;
use paravane_abi::call::{CALLS, CallId, Status};
use paravane_abi::registry::*;
use paravane_abi::ring::RING_EXITLESS;

use super::Verdict;
use super::guest::{After, Call, DATA, Guest, Mode, result, results};

pub(super) fn pv_call_1_an_out_to_the_doorbell_is_a_call() -> Verdict {
    let value = 0x1234_5678_9abc_def0;
    check_eq!(result(CALL_BASE_NOP, &[value])?, Ok(value));
    Ok(())
}

pub(super) fn pv_call_7_another_width_is_not_a_call() -> Verdict {
    // EAX has the whole id each time, so that the width alone decides.
    let narrow = |width| Call {
        width,
        ..Call::new(CALL_BASE_NOP, &[7])
    };
    let calls = [narrow(1), narrow(2), narrow(4)];
    let ran = Guest::default().run(&calls)?;
    for after in &ran.after[..2] {
        let [rax, rdx, ..] = after.registers;
        check_eq!(rax, u64::from(CALL_BASE_NOP), "RAX as it was");
        check_eq!(rdx, u64::from(DOORBELL_PORT), "RDX as it was");
    }
    check_eq!(ran.after[2].result()?, Ok(7));
    check_eq!(ran.stats.hypercalls.get("base.nop"), Some(&1));
    Ok(())
}

pub(super) fn pv_call_1_another_port_is_not_a_call() -> Verdict {
    let other = Call {
        port: DOORBELL_PORT + 4,
        ..Call::new(CALL_BASE_NOP, &[7])
    };
    let ran = Guest::default().run(&[other])?;
    check_eq!(ran.after[0].registers[0], u64::from(CALL_BASE_NOP));
    check_eq!(ran.stats.hypercalls.get("base.nop"), None);
    Ok(())
}

pub(super) fn pv_call_7_strings_and_reads_are_not_calls() -> Verdict {
    // The string instruction's count is where the width stands otherwise.
    let guest = Guest {
        mode: Mode::OtherAccesses,
        ..Guest::default()
    };
    for count in [1, 2, 16] {
        let string = Call {
            width: count,
            ..Call::new(CALL_BASE_NOP, &[7])
        };
        let ran = guest.run(&[string])?;
        check_eq!(
            ran.stats.outcome,
            Outcome::TripleFault,
            "the guest's own end"
        );
        check_eq!(ran.stats.hypercalls.get("base.nop"), None, "{count} words");
        let [_, rdx, ..] = ran.after[0].registers;
        check_eq!(rdx, u64::from(DOORBELL_PORT), "RDX as it was");
    }
    Ok(())
}

pub(super) fn pv_call_2_other_registers_stay() -> Verdict {
    // `results` compares them, for each call and its arguments.
    let calls = [
        Call::new(CALL_BASE_NOP, &[u64::MAX]),
        Call::new(CALL_BASE_NOP, &[1, 2, 3, 4, 5, 6]),
        Call::new(0xffff_ffff, &[1, 2, 3, 4, 5, 6]),
        Call::new(CALL_CONSOLE_WRITE, &[DATA, 16]),
    ];
    results(&calls)?;
    Ok(())
}

pub(super) fn pv_call_3_unused_arguments_are_zero() -> Verdict {
    let uses = |id: CallId| match id.0 {
        CALL_BASE_VERSION | CALL_BASE_FACILITIES | CALL_CONSOLE_NOTIFY | CALL_CLOCK_WALL
        | CALL_SMP_STOP => 0,
        CALL_BASE_PROBE | CALL_BASE_NOP | CALL_RING_UNREGISTER | CALL_RING_SUBMIT
        | CALL_SMP_STATE => 1,
        CALL_RING_REGISTER => 4,
        CALL_SMP_START => 5,
        _ => 2,
    };
    let mut calls = Vec::new();
    for &id in CALLS {
        for unused in uses(id)..6 {
            let mut args = [0; 6];
            args[unused] = 1 << (7 * unused + unused);
            calls.push(Call::new(id.0, &args));
        }
    }
    let results = results(&calls)?;
    for (call, result) in calls.iter().zip(results) {
        check_eq!(result, Err(Status::InvalidParam), "{call:?}");
    }
    Ok(())
}

pub(super) fn pv_call_4_unknown_calls_are_not_supported() -> Verdict {
    let unknown = [
        0,
        1,
        CALL_BASE_POWER + 1,
        CALL_CONSOLE_EVENT + 1,
        CALL_CLOCK_EVENT + 1,
        CALL_CRASH_REPORT + 1,
        CALL_RING_SUBMIT + 1,
        FACILITY_TIMER << 16,
        FACILITY_MMU << 16,
        (FACILITY_VENDOR_FIRST - 1) << 16,
        FACILITY_VENDOR_FIRST << 16 | 3,
        // A facility number that is one modulo 64.
        (FACILITY_BASE + 64) << 16,
        u32::MAX,
    ];
    // Whatever the arguments.
    let calls: Vec<_> = unknown
        .iter()
        .flat_map(|id| [Call::new(*id, &[]), Call::new(*id, &[1, 2, 3, 4, 5, 6])])
        .collect();
    let results = results(&calls)?;
    for (call, result) in calls.iter().zip(results) {
        check_eq!(result, Err(Status::NotSupported), "{call:?}");
    }
    Ok(())
}

pub(super) fn pv_conf_2_a_facility_that_is_off_is_not_supported() -> Verdict {
    for (off, facility) in [
        ("-console", FACILITY_CONSOLE),
        ("-clock", FACILITY_CLOCK),
        ("-crash", FACILITY_CRASH),
        ("-ring", FACILITY_RING),
        ("-rng", FACILITY_RNG),
        ("-dev", FACILITY_DEV),
    ] {
        let guest = Guest {
            facilities: off,
            ..Guest::default()
        };
        let calls: Vec<_> = CALLS
            .iter()
            .filter(|id| id.facility() == facility)
            .flat_map(|id| [Call::new(id.0, &[]), Call::new(id.0, &[DATA, 1, 2])])
            .collect();
        let ran = guest.run(&calls)?;
        for (call, result) in calls.iter().zip(ran.results(&calls)?) {
            check_eq!(result, Err(Status::NotSupported), "{off}: {call:?}");
        }
        check_eq!(ran.console, b"", "{off}");
    }
    Ok(())
}

pub(super) fn pv_call_11_calls_from_cpl3_are_carried_out_where_the_guest_opens_the_port() -> Verdict
{
    let guest = Guest {
        mode: Mode::Cpl3,
        ..Guest::default()
    };
    let calls = [
        Call::new(CALL_BASE_NOP, &[7]),
        Call::new(CALL_CONSOLE_WRITE, &[DATA, 0]),
        Call::new(CALL_BASE_POWER, &[POWER_OFF, u64::MAX]),
        Call::new(u32::MAX, &[1]),
    ];
    let ran = guest.run(&calls)?;
    check_eq!(
        ran.stats.outcome,
        Outcome::TripleFault,
        "the guest's own end"
    );
    let results: Vec<_> = ran
        .after
        .iter()
        .map(After::result)
        .collect::<Result<_, _>>()?;
    check_eq!(
        results,
        [
            Ok(7),
            Ok(0),
            Err(Status::InvalidParam),
            Err(Status::NotSupported)
        ]
    );
    Ok(())
}

pub(super) fn pv_call_6_the_host_takes_what_the_registers_of_32_bit_code_hold() -> Verdict {
    let guest = Guest {
        mode: Mode::Bits32,
        ..Guest::default()
    };
    let ran = guest.run(&[Call::new(CALL_BASE_VERSION, &[])])?;
    check_eq!(
        ran.stats.outcome,
        Outcome::TripleFault,
        "the guest's own end"
    );
    // 32-bit code sees the lower halves.
    let [eax, edx, ..] = ran.after[0].registers;
    let ok = STATUS_OK.cast_unsigned() & u64::from(u32::MAX);
    check_eq!((eax, edx), (ok, u64::from(ABI_VERSION)));
    Ok(())
}

pub(super) fn pv_call_8_arguments_are_taken_in_their_order() -> Verdict {
    // Each argument of this call means something else, and none of them suits another's place.
    let right = [1, DATA, 8, RING_EXITLESS];
    let mut orders = vec![right];
    for turn in 1..4 {
        let mut turned = right;
        turned.rotate_left(turn);
        orders.push(turned);
    }
    let calls: Vec<_> = orders
        .iter()
        .rev()
        .map(|order| Call::new(CALL_RING_REGISTER, order))
        .collect();
    let guest = Guest {
        vcpus: 2,
        ..Guest::default()
    };
    let bad = Err(Status::InvalidParam);
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [bad, bad, bad, Ok(0)]);
    Ok(())
}
