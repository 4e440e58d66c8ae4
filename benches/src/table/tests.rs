//! Tables of made-up samples.

use super::*;
use crate::sample::{Origin, Outcome, Sample};

fn add(samples: &mut Samples, job: &str, arm: &str, launch: u32, outcome: Outcome) {
    let origin = Origin {
        job: job.into(),
        arm: arm.into(),
        launch,
        ..Origin::default()
    };
    samples.add(Sample { origin, outcome });
}

fn value(metric: &str, value: u64) -> Outcome {
    Outcome::Value {
        metric: metric.into(),
        unit: String::new(),
        value,
    }
}

fn heading(costs: Option<ExitCosts>) -> Heading {
    Heading {
        arms: vec!["full".into(), "para".into()],
        jobs: crate::job::suite("boot").cloned().collect(),
        host: "reference".into(),
        seed: 1,
        costs,
    }
}

fn boots(launches: u32) -> Samples {
    let mut samples = Samples::default();
    for launch in 1..=launches {
        for (arm, time, exits) in [
            ("full", 5_000_000_000, 20_000),
            ("para", 2_000_000_000, 500),
        ] {
            add(
                &mut samples,
                "boot",
                arm,
                launch,
                value("boot_to_init_ns", time),
            );
            add(
                &mut samples,
                "boot",
                arm,
                launch,
                value("user_exits_to_init", exits),
            );
        }
    }
    samples
}

#[test]
fn a_row_has_both_medians_the_ratio_and_its_interval() {
    let text = draw(&boots(6), &heading(None), Look::Markdown);
    let row = text
        .lines()
        .find(|line| line.contains("boot to init"))
        .unwrap();
    let cells: Vec<&str> = row
        .split('|')
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect();
    assert_eq!(
        cells,
        ["boot to init", "5.00 s", "2.00 s", "0.400", "0.400–0.400"]
    );
    assert!(!text.contains("not meaningful"), "{text}");
}

#[test]
fn few_launches_have_no_interval() {
    let text = draw(&boots(2), &heading(None), Look::Markdown);
    let row = text
        .lines()
        .find(|line| line.contains("boot to init"))
        .unwrap();
    assert!(row.contains("n = 2"), "{row}");
    assert!(text.contains("not meaningful"), "{text}");
}

#[test]
fn the_costs_of_exits_predict_and_leave_a_residual() {
    let mut samples = boots(5);
    for (arm, exits) in [("full", 24_000), ("para", 1_500)] {
        for launch in 1..=5 {
            add(
                &mut samples,
                "boot",
                arm,
                launch,
                value("exits_to_init", exits),
            );
        }
    }
    let costs = ExitCosts {
        to_vmm: 100_000.0,
        in_kvm: 50_000.0,
    };
    let text = draw(&samples, &heading(Some(costs)), Look::Terminal);
    for part in [
        // 20,000 x 100 µs + 4,000 x 50 µs
        "full: 20,000 exits to the VMM and 4,000 in KVM explain 2.20 s of 5.00 s (44 %), 1.786 times the floor",
        // 500 x 100 µs + 1,000 x 50 µs
        "para: 500 exits to the VMM and 1,000 in KVM explain 100 ms of 2.00 s (5 %), 1.053 times the floor",
        "3.00 s saved, of which the exits saved predict 2.10 s. The residual of 900 ms",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let floor = text.lines().find(|line| line.contains("were exits free"));
    assert!(
        floor.is_some_and(|row| row.contains("2.80 s") && row.contains("1.90 s")),
        "{text}"
    );
}

#[test]
fn a_failed_arm_is_a_reason_and_never_a_number() {
    let mut samples = Samples::default();
    add(&mut samples, "boot", "full", 1, value("boot_to_init_ns", 5));
    add(
        &mut samples,
        "boot",
        "para",
        1,
        Outcome::Failed {
            failed: "outcome watchdog".into(),
        },
    );
    let text = draw(&samples, &heading(None), Look::Markdown);
    let row = text
        .lines()
        .find(|line| line.contains("boot to init"))
        .unwrap();
    let cells: Vec<&str> = row
        .split('|')
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect();
    assert_eq!(cells, ["boot to init", "5.00 ns", "–", "–", "–"]);
    assert!(
        text.contains("para: 1 launch failed: outcome watchdog"),
        "{text}"
    );
}

#[test]
fn bytes_per_exit_leave_out_launches_without_exits() {
    let mut samples = Samples::default();
    for (launch, bytes, exits) in [(1, 1000, 10), (2, 1000, 0)] {
        add(
            &mut samples,
            "console",
            "para",
            launch,
            value("out_bytes", bytes),
        );
        add(
            &mut samples,
            "console",
            "para",
            launch,
            value("exits", exits),
        );
    }
    let quotients = quotient(&samples, "console", "out_bytes", "exits").unwrap();
    assert_eq!(quotients["para"], BTreeMap::from([(1, 100.0)]));
}

#[test]
fn numbers_have_three_digits_and_units() {
    for (number, kind, text) in [
        (5.4321e9, Kind::Time, "5.43 s"),
        (82_000.0, Kind::Time, "82.0 µs"),
        (1_234_567.0, Kind::Count, "1,234,567"),
        (12.0, Kind::Count, "12"),
        (0.12345, Kind::Count, "0.123"),
    ] {
        assert_eq!(write(number, kind), text);
    }
}

#[test]
fn a_narrow_interval_has_as_many_digits_as_tell_its_ends_apart() {
    let shown = |value, low, high| {
        let pairs = 5;
        let ratio = Ratio {
            value,
            low,
            high,
            pairs,
        };
        ratio_and_ends(ratio).join(" ")
    };
    assert_eq!(shown(1.0012, 1.0008, 1.0017), "1.0012 1.0008 1.0017");
    assert_eq!(shown(1.048, 1.045, 1.051), "1.048 1.045 1.051");
    assert_eq!(shown(0.4631, 0.3571, 0.4633), "0.463 0.357 0.463");
    assert_eq!(shown(0.9993, 0.9991, 1.0), "0.9993 0.9991 1.0000");
    assert_eq!(shown(12.0, 11.999, 12.001), "12.0 12.0 12.0");
    assert_eq!(shown(1.0, 1.0, 1.0), "1.00 1.00 1.00");
}
