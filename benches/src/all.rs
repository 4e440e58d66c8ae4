//! `paravane bench --all`: every suite in one go, and its report.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use crate::boot::{LAUNCHES_OF_ALL, experiment};
use crate::experiment::{Experiment, Saved};
use crate::host::Host;
use crate::job::{Job, suite};
use crate::ops;
use crate::peer;
use crate::report::{ReportArgs, report};
use crate::session::{CommonArgs, session};

/// Arguments of `paravane bench --all`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct AllArgs {
    /// Run every suite, and make their report.
    #[arg(long)]
    pub all: bool,
    /// With --all: the folder for raw samples and report. What is there already is gone on with.
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "paravane-bench",
        requires = "all"
    )]
    pub out: PathBuf,
    /// With --all: what every suite takes.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// What the peers are compared in: jobs that need no mark, and no VMM of ours.
const PEER_JOBS: [(&str, &str); 6] = [
    ("boot", "boot"),
    ("boot", "boot-quiet"),
    ("os", "null"),
    ("os", "switch"),
    ("os", "fork"),
    ("os", "fault"),
];

/// The suite that runs here while the others run on the reference host.
const NATIVE: &str = "native";

/// The suite that has the textbook's disk.
const PIO: &str = "pio";

/// The suite that wants a root file system.
const APPS: &str = "apps";

/// Runs every suite, and makes the report. `unfit` is the reason why this machine's KVM cannot run the guests, if it
/// cannot; `direct_here`, that it can run the direct one; `root` makes the root file system of suite apps.
///
/// # Errors
///
/// As [`session`] and [`report`]; a launch that failed does not keep the report from being made.
pub fn all(
    args: &AllArgs,
    facilities: &[&str],
    unfit: Option<&str>,
    direct_here: bool,
    root: impl FnOnce() -> anyhow::Result<PathBuf>,
) -> anyhow::Result<()> {
    let mut common = args.common.clone();
    ensure!(
        args.all,
        "name a suite, or say --all for every one: `paravane bench --help` lists them"
    );
    ensure!(
        common.json.is_none() && common.markdown.is_none() && common.resume.is_none(),
        "with --all the files have names of their own in the folder of --out, and what is there is gone on with"
    );
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("the folder `{}` cannot be made", args.out.display()))?;
    let class = Host::choose(common.host, unfit);
    common.host = Some(class);
    let native = direct_here && class != Host::here();
    let mut suites = experiments(&common, class, native, facilities)?;
    if common.files.root.is_none() {
        match root() {
            Ok(root) => common.files.root = Some(root),
            Err(error) => {
                eprintln!(
                    "Suite {APPS} is left out, since there is no root file system: {error:#}"
                );
                suites.retain(|one| one.suite != APPS);
            }
        }
    }
    let common = &common;
    let count = suites.len();
    let mut files = Vec::new();
    let mut whole = true;
    for (index, planned) in suites.into_iter().enumerate() {
        let name = planned.suite.clone();
        let path = args.out.join(format!("{name}.jsonl"));
        eprintln!("Suite {name}, {} of {count}", index + 1);
        let begun = path.exists();
        if !begun || Saved::read(&path)?.record("complete").is_none() {
            let common = CommonArgs {
                host: if name == NATIVE {
                    Some(Host::Kvm)
                } else {
                    common.host
                },
                json: (!begun).then(|| path.clone()),
                resume: begun.then(|| path.clone()),
                ..common.clone()
            };
            whole &= session(&common, |_| Ok(planned), unfit)?;
        }
        files.push(path);
    }
    let file = |name: &str| Some(args.out.join(name));
    report(&ReportArgs {
        files,
        html: file("report.html"),
        markdown: file("report.md"),
        csv: file("report.csv"),
    })?;
    eprintln!("The report: {}", args.out.join("report.html").display());
    ensure!(
        whole,
        "launches failed; the report has them with their reasons"
    );
    Ok(())
}

fn peer_jobs() -> Vec<Job> {
    let find = |of: &str, name: &str| suite(of).find(|job| job.name == name).cloned();
    PEER_JOBS
        .iter()
        .filter_map(|(of, name)| find(of, name))
        .collect()
}

/// The suites in their order: what is wanted most comes first. `native`: what a host whose KVM is software can run is among
/// them, the direct guest beside binary translation.
fn experiments(
    common: &CommonArgs,
    class: Host,
    native: bool,
    facilities: &[&str],
) -> anyhow::Result<Vec<Experiment>> {
    let seed = common.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let common = CommonArgs {
        seed: Some(seed),
        launches: Some(
            common
                .launches
                .unwrap_or(if common.smoke { 1 } else { LAUNCHES_OF_ALL }),
        ),
        ..common.clone()
    };
    let peer_arms = ["full", "kvm-pv", "para"].into_iter().chain(peer::names());
    let peer_arms: Vec<&str> = peer_arms.collect();
    let twin = "full,full,kvm-pv,para";
    // And where its devices are served elsewhere.
    let places = "full,full,kvm-pv,para,para@kernel,para@driver-domain,para@poll";
    // A disk without DMA takes minutes for what the others do in seconds, so that it makes one job.
    let pio = suite("io").filter(|job| job.name == "read").cloned();
    let operations = suite(ops::SUITE).cloned().collect();
    let of_class = |name, arms: &str, jobs| experiment(&common, class, name, arms, jobs);
    let mut suites = vec![
        of_class("boot", twin, suite("boot").cloned().collect()),
        // And what the patched kernel costs by itself: a processor as QEMU emulates it minds where code lies.
        of_class(
            "os",
            "full,full,kvm-pv,kvm-pv@patched,para",
            suite("os").cloned().collect(),
        ),
        of_class("sched", twin, suite("sched").cloned().collect()),
        of_class("io", places, suite("io").cloned().collect()),
        ops::experiment(&common, class, operations, facilities)?,
        of_class(APPS, twin, suite(APPS).cloned().collect()),
        of_class(PIO, "full@pio,full,kvm-pv,para", pio.collect()),
        of_class(
            "neighbours",
            "full,para",
            suite("neighbours").cloned().collect(),
        ),
        of_class("peers", &peer_arms.join(","), peer_jobs()),
    ];
    if native {
        suites.push(experiment(
            &common,
            Host::Kvm,
            NATIVE,
            "direct,direct,qemu-tcg",
            peer_jobs(),
        ));
    }
    Ok(suites)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_is_run_with_a_twin_and_its_peers() {
        let plan = |native| {
            let common = CommonArgs::default();
            experiments(&common, Host::Counted, native, &["console"]).unwrap()
        };
        assert_eq!(plan(true).len(), 10);
        let all = plan(false);
        let names: Vec<&str> = all.iter().map(|one| one.suite.as_str()).collect();
        assert_eq!(
            names,
            [
                "boot",
                "os",
                "sched",
                "io",
                "ops",
                "apps",
                "pio",
                "neighbours",
                "peers"
            ]
        );
        for one in &all {
            assert!(one.arms().is_ok() && one.kinds.iter().all(|kind| kind.launches > 4));
        }
        let peers = all.iter().find(|one| one.suite == "peers").unwrap();
        let jobs: usize = peers.kinds.iter().map(|kind| kind.jobs.len()).sum();
        assert_eq!(jobs, PEER_JOBS.len());
        assert!(peers.arms.iter().any(|arm| arm == "qemu-tcg"));
    }
}
