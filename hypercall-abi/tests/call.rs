//! Calls and their status: the numbers, read from the registry's own source, and what they decode to.

use paravane_abi::base::{PowerAction, PowerReason};
use paravane_abi::call::{CallId, Status, CALLS};
use paravane_abi::registry::*;

const ALL: [Status; 6] = [
    Status::NotSupported,
    Status::InvalidParam,
    Status::BadAddress,
    Status::Denied,
    Status::Busy,
    Status::HostError,
];

/// Name and number of each constant of the registry's source that begins with `prefix`.
fn registry(prefix: &str) -> Vec<(String, i64)> {
    let mut found = Vec::new();
    for line in include_str!("../src/abi/registry.rs").lines() {
        let Some(rest) = line.strip_prefix("pub const ") else {
            continue;
        };
        let (name, rest) = rest.split_once(": ").unwrap();
        let (_, value) = rest.split_once(" = ").unwrap();
        let value = value.trim_end_matches(';').replace('_', "");
        if let Some(name) = name.strip_prefix(prefix) {
            let number = match value.strip_prefix("0x") {
                Some(digits) => i64::from_str_radix(digits, 16),
                None => value.parse(),
            };
            found.push((name.to_lowercase(), number.unwrap()));
        }
    }
    assert!(!found.is_empty(), "no constant begins with {prefix}");
    found
}

#[test]
fn pv_call_9_a_status_survives_the_crossing() {
    for status in ALL {
        assert_eq!(Status::encode(Err(status)), (status.code(), 0));
        assert_eq!(Status::decode(status.code(), 0), Err(status));
        assert_eq!(
            Status::decode(status.code(), 7),
            Err(status),
            "a failed call has no value"
        );
    }
    for value in [0, 1, u64::MAX] {
        let (rax, rdx) = Status::encode(Ok(value));
        assert_eq!(rax, STATUS_OK);
        assert_eq!(Status::decode(rax, rdx), Ok(value));
    }
}

#[test]
fn pv_call_9_every_status_of_the_registry_has_a_variant() {
    let mut numbers: Vec<i64> = ALL.iter().map(|status| status.code()).collect();
    numbers.push(STATUS_OK);
    let mut registered: Vec<i64> = registry("STATUS_").into_iter().map(|row| row.1).collect();
    numbers.sort_unstable();
    registered.sort_unstable();
    assert_eq!(numbers, registered);
}

#[test]
fn pv_call_5_an_unknown_status_is_a_host_error() {
    for rax in [1, -7, i64::MIN, i64::MAX, 0xffff_ffff] {
        assert_eq!(Status::decode(rax, 1), Err(Status::HostError));
    }
}

#[test]
fn every_call_of_the_registry_has_its_name() {
    let registered = registry("CALL_");
    assert_eq!(registered.len(), CALLS.len());
    for (name, number) in registered {
        let id = CallId(u32::try_from(number).unwrap());
        assert!(CALLS.contains(&id), "{name} is not in CALLS");
        assert_eq!(id.name().unwrap().replace('.', "_"), name);
        assert!(format!("{id:?}").starts_with(id.name().unwrap()));
    }
}

#[test]
fn a_call_id_is_facility_and_function() {
    let facilities = registry("FACILITY_");
    for &id in CALLS {
        assert_eq!(id.facility() << 16 | id.function(), id.0);
        let name = id.name().unwrap();
        let (facility, _) = name.split_once('.').unwrap();
        let row = facilities.iter().find(|row| row.0 == facility).unwrap();
        assert_eq!(i64::from(id.facility()), row.1);
    }
}

#[test]
fn an_unknown_call_has_no_name() {
    for number in [0, 0x0001_0005, 0x0002_ffff, 0xbfff_0000, u32::MAX] {
        assert_eq!(CallId(number).name(), None);
        assert!(format!("{:?}", CallId(number)).contains("unknown"));
    }
}

#[test]
fn pv_base_7_only_the_registrys_actions_and_reasons_are_known() {
    let numbers = |prefix: &str, without: &str| -> Vec<u64> {
        registry(prefix)
            .into_iter()
            .filter(|row| without.is_empty() || !row.0.starts_with(without))
            .map(|row| u64::try_from(row.1).unwrap())
            .collect()
    };
    let actions = numbers("POWER_", "reason_");
    let reasons = numbers("POWER_REASON_", "");
    for number in (0..100).chain([1 << 32, u64::MAX]) {
        assert_eq!(
            PowerAction::from_arg(number).is_some(),
            actions.contains(&number)
        );
        assert_eq!(
            PowerReason::from_arg(number).is_some(),
            reasons.contains(&number)
        );
    }
}
