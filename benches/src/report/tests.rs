//! Reports of made-up samples.

use std::path::Path;

use super::model::{ArmFigures, Figures, Part, Report, Verdict};
use super::*;
use crate::experiment::Experiment;
use crate::experiment::tests::experiment;
use crate::job::{Counts, kinds, suite};
use crate::ops::OPERATIONS;
use crate::ops_results::tests as ops_results;
use crate::sample::{Origin, Outcome, Sample};
use crate::statistics::float;
use crate::table::{Kind, ratio_and_ends, write};

/// A result of `launches` launches whose boots take what `time` says of an arm and a launch.
fn result(launches: u32, time: impl Fn(&str, u32) -> u64) -> Saved {
    let mut text = begin(&experiment());
    text += "{\"record\":\"absent\",\"arm\":\"firecracker\",\"why\":\"not in PATH\"}\n";
    for launch in 1..=launches {
        for arm in ["full", "full#2", "para"] {
            text += &line("boot", arm, launch, "boot_to_init_ns", time(arm, launch));
            text += &line("boot", arm, launch, "exits_to_init", 7);
        }
    }
    Saved::parse(&text).unwrap()
}

/// A result of ten launches of each job of a suite, which take what `time` says of a job, an arm and a launch.
fn suite_result(name: &str, arms: &[&str], time: impl Fn(&str, &str, u32) -> u64) -> Saved {
    let experiment = Experiment {
        suite: name.to_owned(),
        arms: arms.iter().map(|arm| (*arm).to_owned()).collect(),
        kinds: kinds(suite(name).cloned(), 10),
        ..experiment()
    };
    let mut text = begin(&experiment);
    for job in suite(name) {
        for launch in 1..=10 {
            for arm in arms {
                text += &line(
                    &job.name,
                    arm,
                    launch,
                    "time_ns",
                    time(&job.name, arm, launch),
                );
            }
        }
    }
    Saved::parse(&text).unwrap()
}

fn begin(experiment: &Experiment) -> String {
    let machine = "{\"record\":\"machine\",\"host\":\"reference\",\"cpu\":\"an <emulated> one\",\"program\":\"aa\"}";
    let launched = crate::experiment::launched(0);
    format!("{}\n{machine}\n{launched}\n", experiment.record().unwrap())
}

fn line(job: &str, arm: &str, launch: u32, metric: &str, value: u64) -> String {
    let origin = Origin {
        suite: "boot".into(),
        job: job.into(),
        arm: arm.into(),
        host: "reference".into(),
        launch,
        seed: 1,
        ..Origin::default()
    };
    let outcome = Outcome::Value {
        metric: metric.into(),
        unit: "ns".into(),
        value,
    };
    serde_json::to_string(&Sample { origin, outcome }).unwrap() + "\n"
}

/// One percent of noise, by a rule that has no pattern within a pair.
fn noise(arm: &str, launch: u32) -> u64 {
    let salt = u64::try_from(arm.len()).unwrap();
    let mut random = fastrand::Rng::with_seed(u64::from(launch) * 31 + salt);
    random.u64(9_900_000..10_100_000)
}

fn verdict(saved: Saved, arm: &str) -> Verdict {
    let report = Report::of(vec![saved]);
    report.find("boot", "boot", arm).next().unwrap().2.verdict
}

#[test]
fn a_planted_slowdown_of_five_percent_is_found() {
    let planted = |arm: &str, launch| match arm {
        "para" => noise(arm, launch) * 105 / 100,
        _ => noise(arm, launch),
    };
    assert_eq!(verdict(result(10, planted), "para"), Verdict::Loss);
    assert_eq!(verdict(result(10, noise), "para"), Verdict::Same);
    assert_eq!(verdict(result(10, planted), "full#2"), Verdict::Twin);
    assert_eq!(verdict(result(3, planted), "para"), Verdict::Few);
}

#[test]
fn a_gain_within_the_twin_s_interval_is_none() {
    // The twin is as far from the base as para is, so that both differences may be the same noise.
    let drifting = |arm: &str, launch: u32| {
        let even = u64::from(launch.is_multiple_of(2));
        match arm {
            "full" => 10_000_000,
            "full#2" => 9_000_000 + even * 2_000_000,
            _ => 9_500_000,
        }
    };
    assert_eq!(verdict(result(10, drifting), "para"), Verdict::Same);
    let faster = |arm: &str, launch| match arm {
        "para" => noise(arm, launch) / 2,
        _ => noise(arm, launch),
    };
    assert_eq!(verdict(result(10, faster), "para"), Verdict::Gain);
}

#[test]
fn the_page_needs_nothing_else_and_trusts_nothing() {
    let page = html::page(&Report::of(vec![result(10, noise)]));
    for outside in ["<script", "src=", "@import", "url(", "http://", "https://"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(!page.contains("<emulated>") && page.contains("&lt;emulated&gt;"));
    for part in [
        "prefers-color-scheme: dark",
        "width=device-width",
        "firecracker is absent",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // Each figure's link leads to its raw samples.
    let links: Vec<&str> = page
        .split("href=\"#")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(links.len() > 3);
    for link in links {
        assert!(page.contains(&format!("id=\"{link}\"")), "{link}");
    }
}

#[test]
fn every_claim_has_a_row_and_a_verdict() {
    let report = Report::of(vec![result(10, noise)]);
    let (page, text) = (html::page(&report), markdown::text(&report));
    for number in 1..=9 {
        assert!(page.contains(&format!("id=\"H{number}\"")), "H{number}");
        assert!(text.contains(&format!("**H{number}**")), "H{number}");
    }
    assert!(text.contains("not yet testable"));
}

fn claim(report: &Report, id: &str) -> (String, String) {
    let claim = claims::claims(report)
        .into_iter()
        .find(|claim| claim.id == id)
        .unwrap();
    let rows: Vec<String> = claim.evidence.into_iter().map(|row| row.text).collect();
    (rows.join("\n"), claim.verdict)
}

#[test]
fn trouble_is_compared_with_a_neighbour_that_makes_none() {
    let time = |job: &str, arm: &str, launch| {
        noise(arm, launch)
            * match job {
                "alone" => 1,
                "crashing-guest" => 3,
                _ => 2,
            }
    };
    let report = Report::of(vec![suite_result("neighbours", &["full", "para"], time)]);
    let (rows, verdict) = claim(&report, "H3");
    assert!(
        rows.contains(
            "para: 1.50 (1.50 to 1.50) of its time beside a busy guest; 0 of 10 launches failed"
        ),
        "{rows}"
    );
    assert!(
        rows.contains("full: 2.00 (2.00 to 2.00) of its time alone"),
        "{rows}"
    );
    assert!(
        verdict.starts_with("no crash of a neighbour ended a guest"),
        "{verdict}"
    );
    let none = Report::of(vec![result(10, noise)]);
    assert!(claim(&none, "H3").1.starts_with("not yet testable"));
}

#[test]
fn places_of_drivers_are_compared_with_each_other() {
    let slow = |_: &str, arm: &str, launch| noise("", launch) * if arm == "para" { 2 } else { 1 };
    let of = |time: &dyn Fn(&str, &str, u32) -> u64| {
        Report::of(vec![suite_result("io", &["para", "para@kernel"], time)])
    };
    let report = of(&slow);
    let (rows, verdict) = claim(&report, "H1");
    assert!(
        rows.contains("para/para@kernel 2.00 (2.00 to 2.00)"),
        "{rows}"
    );
    assert!(verdict.starts_with("holds: 2.00"), "{verdict}");
    assert!(claim(&report, "H4").1.starts_with("holds: 0.500"));
    assert!(claim(&report, "H5").1.starts_with("not yet testable"));
    let same = of(&|_, arm, launch| noise(arm, launch));
    assert!(claim(&same, "H1").1.starts_with("not shown here"));
    let fast = of(&|_, arm, launch| noise("", launch) * if arm == "para" { 1 } else { 2 });
    assert!(claim(&fast, "H1").1.starts_with("does not hold here"));
}

#[test]
fn drivers_are_credited_with_their_part_of_the_saving() {
    let time = |_: &str, arm: &str, launch| {
        noise("", launch)
            * match arm {
                "full" => 4,
                "kvm-pv" => 2,
                _ => 1,
            }
    };
    let report = Report::of(vec![suite_result("io", &["full", "kvm-pv", "para"], time)]);
    let (rows, verdict) = claim(&report, "H8");
    assert!(
        rows.contains("takes 0.500 (0.500 to 0.500), the changed one 0.250"),
        "{rows}"
    );
    // Half of the time of three quarters.
    assert!(verdict.contains("67 % to 67 %"), "{verdict}");
}

#[test]
fn the_csv_has_a_line_for_each_arm_of_each_job() {
    let text = csv::text(&Report::of(vec![result(10, noise)])).unwrap();
    assert_eq!(text.lines().count(), 1 + 3, "{text}");
    assert!(text.lines().all(|line| line.split(',').count() == 17));
}

#[test]
fn results_that_cannot_be_compared_are_refused() {
    let files = [PathBuf::from("a"), PathBuf::from("b")];
    let one = || result(10, noise);
    let same = check(&[one(), one()], &files).unwrap_err().to_string();
    assert!(same.contains("same suite"), "{same}");
    let mut other = one();
    other.experiment.suite = "os".to_owned();
    assert!(check(&[one(), other.clone()], &files).is_ok());
    other.machine =
        Some(serde_json::json!({ "record": "machine", "host": "reference", "program": "bb" }));
    let differs = check(&[one(), other.clone()], &files)
        .unwrap_err()
        .to_string();
    assert!(differs.contains("program: bb, aa"), "{differs}");
    other.machine =
        Some(serde_json::json!({ "record": "machine", "host": "kvm", "program": "bb" }));
    assert!(
        check(&[one(), other], &files).is_ok(),
        "another class stands beside it"
    );
}

#[test]
fn the_operations_stand_in_the_page_and_in_the_text() {
    let value = ops_results::line(OPERATIONS, "para", 1, "cpuid.median", 1234);
    let report = Report::of(vec![ops_results::saved([value])]);
    assert!(report.parts.is_empty(), "its jobs have tables of their own");
    let page = html::page(&report);
    assert!(page.contains("CPUID &lt;as asked&gt;") && page.contains("id=\"operations\""));
    assert!(markdown::text(&report).contains("| CPUID <as asked>"));
}

/// A row of README's table of results: what the committed samples say of a job.
fn readme_row(label: &str, figures: &Figures) -> String {
    let job = &figures.job;
    let rounds = if job.work.is_some() {
        float(job.rounds)
    } else {
        1.0
    };
    let exits = |arm: &ArmFigures| {
        let of = |count: Option<f64>| write(count.unwrap() / rounds, Kind::Count);
        let (all, to_vmm) = (of(arm.exits), of(arm.user_exits));
        format!("{all} exits, {to_vmm} to the VMM")
    };
    let base = figures.arms.first().unwrap();
    let mut cells = vec![match job.counts {
        Some(Counts::Exits) => exits(base),
        _ => format!(
            "{}; {}",
            write(base.median / rounds, job.number()),
            exits(base)
        ),
    }];
    for arm in ["kvm-pv", "para"].map(|name| figures.arm(name).unwrap()) {
        let ratio = arm.ratio.unwrap();
        let [value, low, high] = ratio_and_ends(ratio);
        let verdict = match arm.verdict {
            Verdict::Same => ", no difference shown",
            Verdict::Loss => ", **a loss**",
            _ => "",
        };
        cells.push(format!(
            "{value} ({low} to {high}){verdict}; {}",
            exits(arm)
        ));
    }
    format!("| {label} | {} |", cells.join(" | "))
}

#[test]
fn readme_says_what_the_committed_samples_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = std::fs::read_dir(root.join("benches/reports")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let samples = files.filter(|path| path.extension().is_some_and(|end| end == "jsonl"));
    let report = Report::of(samples.map(|path| Saved::read(&path).unwrap()).collect());
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let (mut there, mut expected) = (Vec::new(), Vec::new());
    for line in readme.lines() {
        // | `host/suite`, the job's title and more | …
        let Some((place, rest)) = line.strip_prefix("| `").and_then(|l| l.split_once("`, ")) else {
            continue;
        };
        let Some((host, suite)) = place.split_once('/') else {
            continue;
        };
        let Some((name, _)) = rest.split_once(" | ") else {
            continue;
        };
        let part = |part: &&Part| part.suite == suite && part.host == host;
        let part = report.parts.iter().find(part);
        let jobs = part.into_iter().flat_map(|part| &part.jobs);
        let named = jobs.filter(|figures| name.starts_with(&figures.job.title));
        let Some(figures) = named.max_by_key(|figures| figures.job.title.len()) else {
            continue;
        };
        there.push(line.to_owned());
        expected.push(readme_row(&format!("`{place}`, {name}"), figures));
    }
    assert!(there.len() >= 8, "{there:#?}");
    assert_eq!(there.join("\n"), expected.join("\n"));
}
