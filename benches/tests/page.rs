//! The report's page in a real browser: Chromium without a screen, as wide as a phone, light and dark.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use paravane_benches::experiment::{Experiment, launched};
use paravane_benches::job::{kinds, suite};
use paravane_benches::sample::{Origin, Outcome, Sample};
use paravane_benches::{ReportArgs, report};

/// A phone's width in CSS pixels. Chromium's own windows are never narrower than 500, so the page is put in a frame.
const PHONE: u32 = 390;

/// What is asked of the page in the frame: whether it is wider than the frame, whether a link to raw samples opens
/// them, and the colours.
const QUESTIONS: &str = "<script>onload = () => {
    const page = document.querySelector('iframe').contentDocument;
    const root = page.documentElement;
    const style = page.defaultView.getComputedStyle(page.body);
    const link = page.querySelector('th.job a');
    link.click();
    setTimeout(() => {
        const target = page.querySelector(link.getAttribute('href'));
        document.title = [root.scrollWidth, target.closest('details').open, style.backgroundColor,
            page.querySelectorAll('svg.row').length, page.querySelectorAll('article.claim').length].join(' ');
    }, 200);
}</script>";

/// A result of every suite's jobs with made-up times.
fn result(name: &str) -> String {
    let arms = ["full", "full#2", "kvm-pv", "para"];
    let experiment = Experiment {
        suite: name.into(),
        arms: ["full", "full", "kvm-pv", "para"].map(str::to_owned).into(),
        kinds: kinds(suite(name).cloned(), 6),
        seed: 1,
        memory_mib: 128,
        cpus: 1,
        watchdog: 60,
        doctor: false,
        until: None,
        smoke: false,
    };
    let mut text = experiment.record().unwrap() + "\n";
    text += "{\"record\":\"machine\",\"host\":\"reference\",\"cpu\":\"an emulated processor with a rather long name\"}\n";
    for job in suite(name) {
        for launch in 1..=6_u32 {
            for (arm, time) in arms.into_iter().zip([100, 101, 90, 60]) {
                let origin = Origin {
                    suite: name.into(),
                    job: job.name.clone(),
                    arm: arm.into(),
                    launch,
                    ..Origin::default()
                };
                let outcome = Outcome::Value {
                    metric: job.metric().into(),
                    unit: "ns".into(),
                    value: (time + u64::from(launch % 3)) * 1_000_000,
                };
                let line = serde_json::to_string(&Sample { origin, outcome }).unwrap();
                let _ = writeln!(text, "{line}");
            }
        }
    }
    text + &launched(0) + "\n"
}

/// What the page answers in a browser.
fn ask(folder: &Path, dark: bool) -> Vec<String> {
    let frame = folder.join("frame.html");
    let html = format!(
        "<!DOCTYPE html><title>?</title><iframe src=page.html width={PHONE} height=800 style=border:0></iframe>{QUESTIONS}"
    );
    fs::write(&frame, html).unwrap();
    let mut command = Command::new("chromium");
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]);
    if dark {
        command.args([
            "--force-dark-mode",
            "--blink-settings=preferredColorScheme=0",
        ]);
    }
    let output = command
        .arg(format!(
            "--user-data-dir={}",
            folder.join("profile").display()
        ))
        .arg(format!("file://{}", frame.display()))
        .output()
        .expect("chromium is installed by ci/setup");
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let title = dom
        .split_once("<title>")
        .and_then(|(_, rest)| rest.split_once("</title>"))
        .unwrap_or_else(|| panic!("no page: {}", String::from_utf8_lossy(&output.stderr)));
    // The colour has blanks of its own.
    title
        .0
        .replace(", ", ",")
        .split(' ')
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_phone_shows_the_page_in_light_and_in_dark() {
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<_> = ["boot", "os", "sched"]
        .into_iter()
        .map(|name| {
            let path = folder.path().join(format!("{name}.jsonl"));
            fs::write(&path, result(name)).unwrap();
            path
        })
        .collect();
    report(&ReportArgs {
        files,
        html: Some(folder.path().join("page.html")),
        ..ReportArgs::default()
    })
    .unwrap();

    let light = ask(folder.path(), false);
    let [width, open, ground, pictures, claims] = light.as_slice() else {
        panic!("{light:?}");
    };
    let width: u32 = width.parse().unwrap();
    assert!(width <= PHONE, "the page is {width} pixels wide on a phone");
    assert_eq!(open, "true", "a figure's link opens its raw samples");
    assert_eq!(claims, "9");
    // A picture for each of three arms of each job, and three axes.
    let jobs: usize = ["boot", "os", "sched"]
        .map(|name| suite(name).count())
        .iter()
        .sum();
    assert_eq!(*pictures, (jobs * 3 + 3).to_string());

    let dark = ask(folder.path(), true);
    assert_ne!(dark.get(2), Some(ground), "dark is not light");
}
