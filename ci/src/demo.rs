//! Task `demo`: the main job. The entry point `ci/demo` has shown what `paravane doctor` says before it
//! builds this crate: there is something to see within the first two minutes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::Workspace;
use crate::{Arm, initramfs, kernel, run, tools};

/// Task `demo`: `bench` are further arguments for `paravane bench boot`.
pub(crate) fn run(workspace: &Workspace, bench: &[String]) -> Result<()> {
    let paravane = build_paravane(workspace)?;

    heading("What the builds need (ci/setup)");
    tools::setup(workspace, false)?;

    heading("Both kernels from one source tree (minutes the first time)");
    let full = kernel::build(workspace, Arm::Full, None)?;
    let para = kernel::build(workspace, Arm::Para, None)?;
    let initramfs = initramfs::build(workspace)?;
    if prefers_direct(&paravane)? {
        heading("The direct guest on this host's own KVM (paravane bench boot --arms direct)");
        let mut command = Command::new(&paravane);
        run::show(command.args("bench boot --arms direct --host kvm --launches 5".split(' ')))?;
    }
    reference_host()?;

    heading("The pair (paravane bench boot)");
    let samples = workspace.cache_dir("bench")?.join("boot.jsonl");
    let mut command = Command::new(&paravane);
    command.args(["bench", "boot", "--json"]).arg(&samples);
    run::show(command.args(bench))?;

    heading("Where things are");
    for (what, path) in [
        ("raw samples", &samples),
        ("full kernel", &full),
        ("para kernel", &para),
        ("initramfs", &initramfs),
        ("paravane", &paravane),
    ] {
        println!("{what:12} {}", path.display());
    }
    println!("\nBoot one by hand:");
    for (guest, kernel) in [("full", &full), ("para", &para), ("direct", &para)] {
        println!(
            "  {} run --guest {guest} --kernel {} --initrd {}",
            paravane.display(),
            kernel.join("vmlinux").display(),
            initramfs.display()
        );
    }
    Ok(())
}

/// Task `reference-host`.
pub(crate) fn reference_host() -> Result<()> {
    let appliance = paravane_reference_host::build(&|step| eprintln!("reference host: {step}"))?;
    println!("reference host: {}", appliance.initrd.display());
    Ok(())
}

/// Task `image`: the Debian image with Debian's own kernel is in the cache afterwards, and a copy of it in `target`.
pub(crate) fn image(workspace: &Workspace) -> Result<()> {
    let mut paravane = Command::new(build_paravane(workspace)?);
    let output = workspace.root.join("target/debian.img");
    run::show(
        paravane
            .args(["image", "debian", "--kernel", "--force", "--output"])
            .arg(output),
    )
}

/// A Debian's programs once in a full and once in a para guest, as `paravane bench apps` measures them.
pub(crate) fn programs(workspace: &Workspace) -> Result<()> {
    let mut paravane = Command::new(build_paravane(workspace)?);
    let arguments = "bench apps --smoke --launches=1 --arms=full,para --no-doctor";
    run::show(paravane.args(arguments.split(' ')))
}

/// Whether this host's KVM runs the direct guest and no other.
pub(crate) fn prefers_direct(paravane: &Path) -> Result<bool> {
    let mut doctor = Command::new(paravane);
    let report = run::read(doctor.args(["doctor", "--json", "--quick"]))?;
    let report: Value = serde_json::from_str(&report).context("doctor's report is not JSON")?;
    let runs = |profile: &str| report["profiles"][profile]["runs"] == true;
    Ok(runs("direct") && !runs("para"))
}

/// Builds the VMM; returns the program's path.
pub(crate) fn build_paravane(workspace: &Workspace) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command
        .current_dir(&workspace.root)
        .args(["build", "--release", "--package", "paravane"])
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.output().context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("paravane does not build; the compiler's messages are above");
    }
    program_of(&String::from_utf8_lossy(&output.stdout))
}

/// The program that cargo's messages name.
pub(crate) fn program_of(messages: &str) -> Result<PathBuf> {
    let program = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    };
    let found = messages.lines().filter_map(program).next_back();
    found.context("cargo has built no program")
}

fn heading(text: &str) {
    println!("\n=== {text}\n");
}
