//! Task `patches`: every step of the series applies, builds, and is clean for checkpatch.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::kernel::build::Tree;
use crate::kernel::overlay::Overlay;
use crate::kernel::source::{Source, Unpacked};
use crate::kernel::{self, config};
use crate::workspace::{Workspace, remove};
use crate::{Arm, hash, run, tools};

/// Checks the series; the result is kept under the hash of all that it depends on.
pub(crate) fn check(workspace: &Workspace, build: bool) -> Result<()> {
    let source = Source::find(workspace, None)?;
    let overlay = Overlay::read(workspace)?;
    if overlay.patches.is_empty() {
        bail!("patches/linux-6.12/series names no patch");
    }
    let fragments = config::fragments(workspace, Arm::Para)?;
    let inputs = (
        build,
        &source.origin,
        overlay.hashes(),
        config::hashes(&fragments)?,
        tools::kernel_toolchain(workspace)?,
    );
    let key = hash::bytes(&serde_json::to_vec(&inputs)?);
    let note = workspace.cache_dir("patches")?.join(hash::short(&key));
    if note.is_file() {
        println!("patches: unchanged since they were last checked");
        return Ok(());
    }

    // The last step's build is the para kernel itself; the steps before it are built in its tree.
    if build {
        kernel::build(workspace, Arm::Para, None)?;
    }
    let _lock = workspace.lock("kernel")?;
    let unpacked = source.unpack(workspace)?;
    let scratch = workspace.cache_dir("patches")?.join("scratch");
    remove(&scratch)?;
    let guest = scratch.join("guest");
    overlay.lay_files(&guest)?;
    run::read(
        checkpatch(&unpacked)
            .arg("--file")
            .args(overlay.file_names())
            .current_dir(&guest),
    )
    .context("checkpatch --strict has complaints about guest-pv-linux or hypercall-abi/src/abi")?;
    println!("patches: the guest code and the ABI: clean");
    for (index, patch) in overlay.patches.iter().enumerate() {
        let step = format!("{} of {}: {}", index + 1, overlay.patches.len(), patch.name);
        run::read(
            Command::new("perl")
                .arg(unpacked.path.join("scripts/checkpatch.pl"))
                .args([
                    "--strict",
                    "--no-tree",
                    "--no-summary",
                    "--terse",
                    "--show-types",
                ])
                .arg("--root")
                .arg(&unpacked.path)
                .arg(&patch.path),
        )
        .with_context(|| format!("checkpatch --strict has complaints about {}", patch.name))?;
        let upto = overlay.up_to(index + 1);
        if build {
            let tree = Tree::prepare(workspace, Arm::Para, &unpacked)?;
            upto.apply(&unpacked.path, &tree.path)?;
            let last = index + 1 == overlay.patches.len();
            tree.configure(&fragments, last)?;
            tree.make(&["vmlinux", "modules"])
                .with_context(|| format!("step {step}"))?;
        } else {
            let tree = scratch.join("tree");
            fs::create_dir_all(&tree)?;
            upto.apply(&unpacked.path, &tree)
                .with_context(|| format!("step {step}"))?;
        }
        println!("patches: {step}: clean");
    }
    remove(&scratch)?;
    fs::write(&note, "")?;
    Ok(())
}

/// The source's own checkpatch, in its strict mode.
fn checkpatch(source: &Unpacked) -> Command {
    let mut command = Command::new("perl");
    command
        .arg(source.path.join("scripts/checkpatch.pl"))
        .args([
            "--strict",
            "--no-tree",
            "--no-summary",
            "--terse",
            "--show-types",
        ])
        .arg("--root")
        .arg(&source.path);
    command
}
