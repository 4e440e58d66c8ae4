//! Facility `base`.

use paravane::stats::Outcome;
use paravane_abi::call::{CALLS, Status};
use paravane_abi::registry::*;

use crate::guest::{Call, Guest, result, results};

#[test]
fn pv_base_1_version() {
    assert!(result(CALL_BASE_VERSION, &[]).is_none_or(|r| r == Ok(u64::from(ABI_VERSION))));
}

#[test]
fn pv_base_2_facilities() {
    let call = [Call::new(CALL_BASE_FACILITIES, &[])];
    let bits = |ids: &[u32]| ids.iter().fold(0, |word, id| word | 1u64 << id);
    for (facilities, word) in [
        (
            "",
            bits(&[
                FACILITY_BASE,
                FACILITY_CONSOLE,
                FACILITY_CLOCK,
                FACILITY_CRASH,
            ]),
        ),
        ("-clock,-crash", bits(&[FACILITY_BASE, FACILITY_CONSOLE])),
        ("clock", bits(&[FACILITY_BASE, FACILITY_CLOCK])),
    ] {
        let guest = Guest {
            facilities,
            ..Guest::default()
        };
        let Some(ran) = guest.run(&call) else { return };
        assert_eq!(ran.results(&call), [Ok(word)], "--pv={facilities}");
    }
}

#[test]
fn pv_base_3_probe_finds_what_is_there() {
    let guest = Guest {
        facilities: "-clock",
        ..Guest::default()
    };
    let mut probes: Vec<_> = CALLS
        .iter()
        .map(|id| {
            (
                u64::from(id.0),
                Ok(u64::from(id.facility() != FACILITY_CLOCK)),
            )
        })
        .collect();
    probes.extend([
        (0, Ok(0)),
        (u64::from(CALL_BASE_POWER) + 1, Ok(0)),
        (u64::from(FACILITY_TIMER) << 16, Ok(0)),
        (u64::from(u32::MAX), Ok(0)),
        (1 << 32, Err(Status::InvalidParam)),
        (
            1 << 32 | u64::from(CALL_BASE_NOP),
            Err(Status::InvalidParam),
        ),
        (u64::MAX, Err(Status::InvalidParam)),
    ]);
    let calls: Vec<_> = probes
        .iter()
        .map(|(id, _)| Call::new(CALL_BASE_PROBE, &[*id]))
        .collect();
    let Some(ran) = guest.run(&calls) else { return };
    for ((id, expected), found) in probes.iter().zip(ran.results(&calls)) {
        assert_eq!(found, *expected, "probe of {id:#x}");
    }
}

#[test]
fn pv_base_4_nop_gives_its_argument_back() {
    let values = [0, 1, u64::from(u32::MAX) + 1, 1 << 63, u64::MAX];
    let calls = values.map(|value| Call::new(CALL_BASE_NOP, &[value]));
    assert!(results(&calls).is_none_or(|results| results == values.map(Ok)));
}

#[test]
fn pv_base_5_each_power_action_ends_the_run() {
    for (action, outcome) in [
        (POWER_OFF, Outcome::PowerOff),
        (POWER_REBOOT, Outcome::Reboot),
        (POWER_CRASH, Outcome::Crash),
    ] {
        for reason in [
            POWER_REASON_NONE,
            POWER_REASON_PANIC,
            POWER_REASON_EMERGENCY,
        ] {
            let calls = [
                Call::new(CALL_BASE_NOP, &[1]),
                Call::new(CALL_BASE_POWER, &[action, reason]),
                Call::new(CALL_BASE_NOP, &[2]),
            ];
            let Some(ran) = Guest::default().run(&calls) else {
                return;
            };
            assert_eq!(
                ran.stats.outcome, outcome,
                "action {action}, reason {reason}"
            );
            assert_eq!(ran.after[0].result(), Ok(1));
            assert_eq!(ran.stats.hypercalls.get("base.nop"), Some(&1), "it went on");
        }
    }
}

#[test]
fn pv_base_5_unknown_actions_and_reasons_do_nothing() {
    let calls = [
        [POWER_CRASH + 1, POWER_REASON_NONE],
        [u64::MAX, POWER_REASON_NONE],
        [1 << 32, POWER_REASON_NONE],
        [POWER_OFF, POWER_REASON_EMERGENCY + 1],
        [POWER_OFF, u64::MAX],
    ]
    .map(|args| Call::new(CALL_BASE_POWER, &args));
    let Some(results) = results(&calls) else {
        return;
    };
    assert_eq!(results, [Err(Status::InvalidParam); 5]);
}
