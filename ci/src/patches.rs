//! Task `patches`: every step of the series applies, builds, and is clean for checkpatch.
//!
//! Most steps touch a header that all of the kernel includes, so that a step is most of a kernel's build: hours for the
//! series. A step that was built is remembered under the hash of what it was built from, and where time is limited,
//! what does not fit is left for the next run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::kernel::build::{Tree, Use};
use crate::kernel::overlay::Overlay;
use crate::kernel::source::{Source, Unpacked};
use crate::kernel::{self, config};
use crate::workspace::{Workspace, remove};
use crate::{Arm, hash, run, tools};

/// How many steps were built, now or before, and how many there was no time for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Steps {
    pub(crate) built: u32,
    pub(crate) left: u32,
}

/// Checks all that needs no build: takes seconds.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let overlay = series(workspace)?;
    let _lock = workspace.lock("kernel")?;
    let unpacked = Source::find(workspace, None)?.unpack(workspace)?;
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
    let tree = scratch.join("tree");
    fs::create_dir_all(&tree)?;
    for (index, patch) in overlay.patches.iter().enumerate() {
        let step = step(&overlay, index);
        run::read(checkpatch(&unpacked).arg(&patch.path))
            .with_context(|| format!("checkpatch --strict has complaints about {}", patch.name))?;
        overlay
            .up_to(index + 1)
            .apply(&unpacked.path, &tree)
            .with_context(|| format!("step {step}"))?;
        println!("patches: {step}: clean");
    }
    remove(&scratch)
}

/// Builds each step that was not built before. A step that would not be done by `until`, as far as the last build tells,
/// is left out, and so are those after it.
pub(crate) fn build(workspace: &Workspace, until: Option<Instant>) -> Result<Steps> {
    let overlay = series(workspace)?;
    // The last step's build is the para kernel itself.
    kernel::build(workspace, Arm::Para, None)?;
    let mut steps = Steps { built: 1, left: 0 };
    let source = Source::find(workspace, None)?;
    let fragments = config::fragments(workspace, Arm::Para)?;
    let config = config::hashes(&fragments)?;
    let toolchain = tools::kernel_toolchain(workspace)?;
    let notes = workspace.cache_dir("patches")?;
    let _lock = workspace.lock("kernel")?;
    for index in 0..overlay.patches.len() - 1 {
        let upto = overlay.up_to(index + 1);
        let step = step(&overlay, index);
        let inputs = (&source.origin, upto.hashes(), &config, &toolchain);
        let note = notes.join(hash::short(&hash::bytes(&serde_json::to_vec(&inputs)?)));
        if !note.is_file() {
            if steps.left > 0 {
                steps.left += 1;
                continue;
            }
            let unpacked = source.unpack(workspace)?;
            let tree = Tree::prepare(workspace, Use::Steps, &unpacked)?;
            if until.is_some_and(|until| Instant::now() + tree.expected() > until) {
                steps.left += 1;
                continue;
            }
            build_step(&tree, &unpacked.path, &upto, &fragments)
                .with_context(|| format!("step {step}"))?;
            fs::write(&note, &step)?;
        }
        steps.built += 1;
        println!("patches: {step}: builds");
    }
    Ok(steps)
}

fn build_step(tree: &Tree, source: &Path, upto: &Overlay, fragments: &[PathBuf]) -> Result<()> {
    upto.apply(source, &tree.path)?;
    tree.configure(fragments, false)?;
    tree.make(&["vmlinux", "modules"])
}

fn series(workspace: &Workspace) -> Result<Overlay> {
    let overlay = Overlay::read(workspace)?;
    if overlay.patches.is_empty() {
        bail!("patches/linux-6.12/series names no patch");
    }
    Ok(overlay)
}

/// What the step with the patch at `index` is called.
fn step(overlay: &Overlay, index: usize) -> String {
    let patches = &overlay.patches;
    format!(
        "{} of {}: {}",
        index + 1,
        patches.len(),
        patches[index].name
    )
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
