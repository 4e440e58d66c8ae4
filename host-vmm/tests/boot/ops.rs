//! What `pvbench.ko` measures: that it measures everything, and that the exits are where they must be. How long anything
//! takes is not looked at.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::launch_or_skip;
use crate::launches::{Launch, launches};

/// The module's lines by operation; `None` where the initramfs has no module.
fn operations(launch: &Launch) -> Option<BTreeMap<String, Value>> {
    let missing = "/lib/modules/pvbench.ko cannot be loaded: errno 2";
    if launch.console.contains(missing) {
        println!(
            "skipped: the initramfs was built without pvbench.ko; `cargo ci initramfs` after the para kernel"
        );
        return None;
    }
    assert_eq!(launch.code, 0, "{launch}");
    let objects: Vec<Value> = launch
        .console
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let head = objects
        .iter()
        .find(|object| object["pvbench"] == 1)
        .unwrap_or_else(|| panic!("no results: {launch}"));
    let operations: BTreeMap<String, Value> = objects
        .iter()
        .filter_map(|object| Some((object["op"].as_str()?.to_owned(), object.clone())))
        .collect();
    assert_eq!(head["operations"], operations.len(), "{launch}");
    Some(operations)
}

/// Exits of an operation's rounds, and how many rounds there were.
fn exits(launch: &Launch, operation: &Value) -> (u64, u64) {
    let number = |key: &str| {
        operation[key]
            .as_u64()
            .unwrap_or_else(|| panic!("no {key}: {operation}"))
    };
    (launch.exits_after(number("mark")), number("n"))
}

#[test]
fn every_operation_is_measured_and_its_tail_is_not_below_its_median() {
    let (para, full) = (
        launch_or_skip!("para-ops"),
        launch_or_skip!("para-image-as-full-ops"),
    );
    // What a guest without a Paravane host does not have.
    for (launch, without) in [
        (para, &[][..]),
        (full, &["call", "exitless-8", "ring-8"][..]),
    ] {
        let Some(operations) = operations(launch) else {
            return;
        };
        let absent: Vec<&str> = operations
            .iter()
            .filter(|(_, operation)| operation.get("absent").is_some())
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(absent, without, "{launch}");
        for (name, operation) in operations
            .iter()
            .filter(|(name, _)| !absent.contains(&name.as_str()))
        {
            let of = |key: &str| operation[key].as_u64();
            let quantiles = [of("min"), of("median"), of("p90"), of("p99")];
            assert!(quantiles.iter().all(Option::is_some), "{name}: {operation}");
            assert!(quantiles.is_sorted(), "{name}: {operation}");
        }
    }
}

#[test]
fn a_null_call_is_counted_on_both_sides() {
    let para = launch_or_skip!("para-ops");
    let Some(operations) = operations(para) else {
        return;
    };
    let (_, rounds) = exits(para, &operations["call"]);
    let counted = para
        .console
        .lines()
        .find_map(|line| line.strip_prefix("base.nop ")?.trim().parse().ok());
    assert_eq!(counted, Some(para.call("base.nop")), "{para}");
    assert!(para.call("base.nop") >= rounds, "{para}");
}

#[test]
fn an_operation_exits_where_it_is_native_and_not_where_it_is_replaced() {
    let (para, full) = (
        launch_or_skip!("para-ops"),
        launch_or_skip!("para-image-as-full-ops"),
    );
    let (Some(in_para), Some(in_full)) = (operations(para), operations(full)) else {
        return;
    };
    for name in ["cpuid", "pio", "uart-byte", "call"] {
        let (exits, rounds) = exits(para, &in_para[name]);
        assert!(exits >= rounds, "para, {name}: {exits} of {rounds}");
    }
    for name in ["cpuid-kernel", "console-line"] {
        let (in_para, rounds) = exits(para, &in_para[name]);
        let (in_full, _) = exits(full, &in_full[name]);
        assert!(in_full >= rounds, "full, {name}: {in_full} of {rounds}");
        assert!(
            in_para * 4 < in_full,
            "{name}: para {in_para}, full {in_full}"
        );
    }
    // Eight calls in a ring cost about the exits of one; a busy host's own interrupts are exits, too.
    let (batches, rounds) = exits(para, &in_para["ring-8"]);
    assert!(batches < 4 * rounds, "{batches} of {rounds}");
}
