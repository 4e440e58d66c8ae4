//! Task `twins`: what the benchmarks find where there is nothing to find, and what they miss.
//!
//! # How it works
//!
//! The same benchmark is run again and again, each time with another seed and three arms: one guest, the same guest under
//! another name, and the same guest with a slowdown planted (`ARM~5` does five percent more rounds than it says). The
//! twin's interval is to hold 1 in 19 of 20 runs, as a 95 % interval promises, and the planted arm is to be called a loss.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Deserialize;

use crate::progress::{Effort, Progress};
use crate::workspace::Workspace;
use crate::{demo, run};

/// What a run takes, for the first estimate.
const SECONDS_EACH: f64 = 30.0;

/// Options of `cargo ci twins`.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct TwinsArgs {
    /// How often the benchmark is run
    #[arg(long, value_name = "N", default_value_t = 20)]
    runs: u32,
    /// The guest [default: direct on this host's KVM where that is software, else para]
    #[arg(long)]
    arm: Option<String>,
    /// The class of host, as `paravane bench` takes it; on `counted` there is no noise [default: kvm for direct, else what fits]
    #[arg(long)]
    host: Option<String>,
    /// The job of suite `os`
    #[arg(long, default_value = "null")]
    job: String,
    /// Launches of each arm in a run
    #[arg(long, default_value_t = 10)]
    launches: u32,
    /// Percent of the planted slowdown
    #[arg(long, default_value_t = 5)]
    planted: u32,
    /// Write the table here, as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Keep the raw samples here, a file for each run
    #[arg(long, value_name = "FOLDER")]
    samples: Option<PathBuf>,
}

/// A line of `paravane bench report --csv`.
#[derive(Debug, Deserialize)]
struct Row {
    host: String,
    arm: String,
    ratio: Option<f64>,
    low_95: Option<f64>,
    high_95: Option<f64>,
    verdict: String,
}

impl Row {
    fn interval(&self) -> Result<(f64, f64, f64)> {
        let all = (self.ratio, self.low_95, self.high_95);
        let (Some(ratio), Some(low), Some(high)) = all else {
            anyhow::bail!("{} has no interval: too few launches", self.arm);
        };
        Ok((ratio, low, high))
    }
}

/// What one run has shown.
#[derive(Debug)]
struct Shown {
    twin: (f64, f64, f64),
    planted: (f64, f64, f64),
    found: bool,
}

impl Shown {
    fn holds(&self) -> bool {
        self.twin.1 <= 1.0 && self.twin.2 >= 1.0
    }

    fn of(csv: &str) -> Result<(Self, String)> {
        let mut reader = csv::Reader::from_reader(csv.as_bytes());
        let rows: Vec<Row> = reader.deserialize().collect::<Result<_, _>>()?;
        let [_, twin, planted] = rows.as_slice() else {
            anyhow::bail!("there are {} arms in the report, and not three", rows.len());
        };
        let shown = Self {
            twin: twin.interval()?,
            planted: planted.interval()?,
            found: planted.verdict == "loss",
        };
        Ok((shown, twin.host.clone()))
    }
}

pub(crate) fn run(workspace: &Workspace, args: &TwinsArgs) -> Result<()> {
    ensure!(args.runs > 0, "--runs must be at least 1");
    let paravane = demo::build_paravane(workspace)?;
    let arm = match &args.arm {
        Some(arm) => arm.clone(),
        None if here(args) && demo::prefers_direct(&paravane)? => "direct".to_owned(),
        None => "para".to_owned(),
    };
    let folder = match &args.samples {
        Some(folder) => folder.clone(),
        None => workspace.cache_dir("twins")?,
    };
    fs::create_dir_all(&folder)
        .with_context(|| format!("the folder `{}` cannot be made", folder.display()))?;
    let guess = Effort {
        steps: u64::from(args.runs),
        seconds: f64::from(args.runs) * SECONDS_EACH,
    };
    let mut progress = Progress::start("twins", &folder.join("effort"), guess);
    let mut all = Vec::new();
    let mut class = String::new();
    for seed in 1..=args.runs {
        let shown = once(&paravane, args, &arm, seed, &folder)?;
        class = shown.1;
        all.push(shown.0);
        progress.step();
    }
    progress.finish(true);
    let text = table(&all, args, &arm, &class);
    print!("{text}");
    if let Some(path) = &args.markdown {
        fs::write(path, &text)
            .with_context(|| format!("the table `{}` cannot be written", path.display()))?;
    }
    Ok(())
}

/// Whether it may run on this host's own KVM.
fn here(args: &TwinsArgs) -> bool {
    args.host.as_ref().is_none_or(|host| host == "kvm")
}

fn once(
    paravane: &Path,
    args: &TwinsArgs,
    arm: &str,
    seed: u32,
    folder: &Path,
) -> Result<(Shown, String)> {
    let samples = folder.join(format!("run-{seed}.jsonl"));
    let csv = folder.join(format!("run-{seed}.csv"));
    let mut bench = Command::new(paravane);
    bench
        // A tenth of the rounds: it is the instrument that is measured here.
        .args(["bench", "os", "--smoke", "--no-doctor", "--jobs", &args.job])
        .arg(format!("--arms={arm},{arm},{arm}~{}", args.planted))
        .arg(format!("--launches={}", args.launches))
        .arg(format!("--seed={seed}"))
        .arg("--json")
        .arg(&samples);
    match &args.host {
        Some(host) => drop(bench.args(["--host", host])),
        None if arm == "direct" => drop(bench.arg("--host=kvm")),
        None => {}
    }
    run::read(&mut bench)?;
    let mut report = Command::new(paravane);
    run::read(
        report
            .args(["bench", "report"])
            .arg(&samples)
            .arg("--csv")
            .arg(&csv),
    )?;
    let text = fs::read_to_string(&csv)
        .with_context(|| format!("the figures `{}` cannot be read", csv.display()))?;
    Shown::of(&text)
}

fn table(all: &[Shown], args: &TwinsArgs, arm: &str, class: &str) -> String {
    let mut out = format!(
        "# The same benchmark {} times: job `{}`, guest `{arm}`, host class `{class}`\n\n\
         {} launches of each arm in each run, a seed a run; made by `cargo ci twins`.\n\n\
         | seed | twin/arm, 95 % | holds 1 | {} % more work, 95 % | found |\n|---|---|---|---|---|\n",
        all.len(),
        args.job,
        args.launches,
        args.planted
    );
    let word = |yes: bool| if yes { "yes" } else { "no" };
    let interval =
        |(ratio, low, high): (f64, f64, f64)| format!("{ratio:.3} ({low:.3} to {high:.3})");
    for (seed, shown) in (1..).zip(all) {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {seed} | {} | {} | {} | {} |",
            interval(shown.twin),
            word(shown.holds()),
            interval(shown.planted),
            word(shown.found)
        );
    }
    let count = |wanted: fn(&Shown) -> bool| all.iter().filter(|shown| wanted(shown)).count();
    let _ = writeln!(
        out,
        "\nThe twin's interval holds 1 in {} of {}; the planted slowdown is found in {}.",
        count(Shown::holds),
        all.len(),
        count(|shown| shown.found)
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = "host,suite,job,facility,arm,base,metric,unit,launches,median,ratio,low_95,high_95,pairs,verdict,exits,exits_to_vmm\n\
        kvm,os,null,none,direct,direct,time_ns,ns,10,81,,,,,base,15,1\n\
        kvm,os,null,none,direct#2,direct,time_ns,ns,10,79,0.97,0.95,1.02,10,A/A twin,15,1\n\
        kvm,os,null,none,direct~5,direct,time_ns,ns,10,85,1.05,1.03,1.07,10,loss,15,1\n";

    #[test]
    fn a_run_shows_whether_the_twin_holds_and_the_slowdown_is_found() {
        let (shown, class) = Shown::of(CSV).unwrap();
        assert!(shown.holds() && shown.found && class == "kvm");
        let (shown, _) = Shown::of(&CSV.replace("0.95,1.02", "0.95,0.99")).unwrap();
        assert!(!shown.holds());
        let (shown, _) = Shown::of(&CSV.replace("loss", "no difference shown")).unwrap();
        assert!(!shown.found);
        assert!(
            Shown::of(&CSV.replace("0.95,1.02", ",")).is_err(),
            "no interval"
        );
    }
}
