//! Facility `base`.

use crate::stats::Outcome;
use paravane_abi::call::{CALLS, Status};
use paravane_abi::registry::*;

use super::Verdict;
use super::guest::{Call, Guest, offered, result, results};

pub(super) fn pv_base_1_version() -> Verdict {
    check_eq!(result(CALL_BASE_VERSION, &[])?, Ok(u64::from(ABI_VERSION)));
    Ok(())
}

pub(super) fn pv_base_2_facilities() -> Verdict {
    let call = [Call::new(CALL_BASE_FACILITIES, &[])];
    let bits = |ids: &[u32]| ids.iter().fold(0, |word, id| word | 1u64 << id);
    for (facilities, word) in [
        ("", offered("")?.word()),
        ("console", bits(&[FACILITY_BASE, FACILITY_CONSOLE])),
        ("clock", bits(&[FACILITY_BASE, FACILITY_CLOCK])),
    ] {
        let guest = Guest {
            facilities,
            ..Guest::default()
        };
        let ran = guest.run(&call)?;
        check_eq!(ran.results(&call)?, [Ok(word)], "--pv={facilities}");
    }
    Ok(())
}

pub(super) fn pv_base_3_probe_finds_what_is_there() -> Verdict {
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
    ]);
    let calls: Vec<_> = probes
        .iter()
        .map(|(id, _)| Call::new(CALL_BASE_PROBE, &[*id]))
        .collect();
    let ran = guest.run(&calls)?;
    for ((id, expected), found) in probes.iter().zip(ran.results(&calls)?) {
        check_eq!(found, *expected, "probe of {id:#x}");
    }
    Ok(())
}

pub(super) fn pv_base_4_nop_gives_its_argument_back() -> Verdict {
    let values = [0, 1, u64::from(u32::MAX) + 1, 1 << 63, u64::MAX];
    let calls = values.map(|value| Call::new(CALL_BASE_NOP, &[value]));
    check_eq!(results(&calls)?, values.map(Ok));
    Ok(())
}

pub(super) fn pv_base_5_each_power_action_ends_the_run() -> Verdict {
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
            let ran = Guest::default().run(&calls)?;
            check_eq!(
                ran.stats.outcome,
                outcome,
                "action {action}, reason {reason}"
            );
            check_eq!(ran.after[0].result()?, Ok(1));
            check_eq!(ran.stats.hypercalls.get("base.nop"), Some(&1), "it went on");
        }
    }
    Ok(())
}

pub(super) fn pv_base_7_unknown_actions_and_reasons_do_nothing() -> Verdict {
    let calls = [
        [POWER_CRASH + 1, POWER_REASON_NONE],
        [u64::MAX, POWER_REASON_NONE],
        [1 << 32, POWER_REASON_NONE],
        [POWER_OFF, POWER_REASON_EMERGENCY + 1],
        [POWER_OFF, u64::MAX],
    ]
    .map(|args| Call::new(CALL_BASE_POWER, &args));
    let results = results(&calls)?;
    check_eq!(results, [Err(Status::InvalidParam); 5]);
    Ok(())
}

pub(super) fn pv_base_6_an_id_has_32_bits() -> Verdict {
    let calls = [1 << 32, 1 << 32 | u64::from(CALL_BASE_NOP), u64::MAX]
        .map(|id| Call::new(CALL_BASE_PROBE, &[id]));
    check_eq!(results(&calls)?, [Err(Status::InvalidParam); 3]);
    Ok(())
}
