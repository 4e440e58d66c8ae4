//! Task `kernel`: both guest kernels from one source tree.
//!
//! # How it works
//!
//! The source is unpacked once and never written ([`source`]). `full` is built in a tree of hard
//! links to it, and after the build every source file is compared with its hash from before: that
//! kernel is built from the untouched tree. `para` starts from a copy of `full`'s tree with its
//! objects, so that make compiles only what the patches, the guest code and the configuration
//! change; what is laid over the source is computed apart ([`overlay`]), and a file is written
//! only when it differs.
//!
//! A finished kernel lies in `kernel/<arm>-<hash>` of the cache, with a manifest of all that went
//! into the hash.

pub(crate) mod build;
pub(crate) mod config;
pub(crate) mod overlay;
pub(crate) mod source;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::kernel::build::{Tree, Use};
use crate::kernel::overlay::Overlay;
use crate::kernel::source::Source;
use crate::workspace::{Workspace, prune, relink, remove};
use crate::{Arm, hash, tools};

/// The modules of the para kernel.
pub(crate) const MODULES: [&str; 2] = ["paravane.ko", "pvbench.ko"];
/// How many finished kernels of an arm stay in the cache.
const KEEP: usize = 4;

/// What a kernel was made from, and what came out.
#[derive(Debug, Serialize)]
struct Manifest {
    arm: &'static str,
    /// Hash over everything below but `outputs`: the cache key.
    key: String,
    source: source::Origin,
    /// Hash by name: patches, guest code, ABI.
    overlay: BTreeMap<String, String>,
    /// Hash by name: configuration fragments.
    config: BTreeMap<String, String>,
    toolchain: BTreeMap<&'static str, String>,
    /// Hash by name: what was built.
    outputs: BTreeMap<&'static str, String>,
}

/// Builds the kernel of `arm`, or finds it in the cache; returns its folder.
pub(crate) fn build(workspace: &Workspace, arm: Arm, source: Option<&Path>) -> Result<PathBuf> {
    let _lock = workspace.lock("kernel")?;
    build_locked(workspace, arm, source)
}

fn build_locked(workspace: &Workspace, arm: Arm, from: Option<&Path>) -> Result<PathBuf> {
    let source = Source::find(workspace, from)?;
    let overlay = match arm {
        Arm::Full => Overlay::empty(),
        Arm::Para => Overlay::read(workspace)?,
    };
    let fragments = config::fragments(workspace, arm)?;
    let mut manifest = Manifest {
        arm: arm.name(),
        key: String::new(),
        source: source.origin.clone(),
        overlay: overlay.hashes(),
        config: config::hashes(&fragments)?,
        toolchain: tools::kernel_toolchain(workspace)?.into_iter().collect(),
        outputs: BTreeMap::new(),
    };
    manifest.key = hash::bytes(&serde_json::to_vec(&manifest)?);

    let kernels = workspace.cache_dir("kernel")?;
    let name = format!("{}-{}", arm.name(), hash::short(&manifest.key));
    let finished = kernels.join(&name);
    if !finished.join("manifest.json").is_file() {
        let unpacked = source.unpack(workspace)?;
        if arm == Arm::Para {
            // The copy below starts from full's objects.
            build_locked(workspace, Arm::Full, from)?;
        }
        let tree = Tree::prepare(workspace, Use::Kernel(arm), &unpacked)?;
        overlay.apply(&unpacked.path, &tree.path)?;
        tree.configure(&fragments, true)?;
        tree.make(&["vmlinux", "modules"])?;
        if arm == Arm::Full {
            eprintln!("full kernel: comparing the built tree with the untouched source");
            unpacked.inventory.verify(&tree.path)?;
        }
        store(&tree, &finished, manifest)?;
    }
    relink(&kernels.join(arm.name()), &name)?;
    let prefix = format!("{}-", arm.name());
    prune(&kernels, KEEP, |name| name.starts_with(&prefix))?;
    Ok(finished)
}

/// Copies what was built into the cache; the folder appears whole or not at all.
fn store(tree: &Tree, finished: &Path, mut manifest: Manifest) -> Result<()> {
    let mut outputs = vec![
        ("vmlinux", PathBuf::from("vmlinux")),
        ("System.map", PathBuf::from("System.map")),
        ("config", PathBuf::from(".config")),
    ];
    if tree.of == Use::Kernel(Arm::Para) {
        for name in MODULES {
            let module = Path::new("arch/x86/paravane").join(name);
            if tree.path.join(&module).is_file() {
                outputs.push((name, module));
            } else {
                eprintln!("para kernel: no {name} was built; does para.config ask for it with =m?");
            }
        }
    }
    let fresh = finished.with_extension("new");
    remove(&fresh)?;
    fs::create_dir_all(&fresh)?;
    for (name, path) in outputs {
        let path = tree.path.join(path);
        if !path.is_file() {
            bail!("the build ended well, but {} is missing", path.display());
        }
        fs::copy(&path, fresh.join(name)).with_context(|| format!("cannot copy {path:?}"))?;
        manifest.outputs.insert(name, hash::file(&path)?);
    }
    let text = serde_json::to_string_pretty(&manifest)? + "\n";
    fs::write(fresh.join("manifest.json"), text)?;
    remove(finished)?;
    fs::rename(&fresh, finished).with_context(|| format!("cannot create {finished:?}"))
}
