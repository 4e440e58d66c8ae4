//! Task `artefact`: what a reader needs to check a report, as one archive.
//!
//! Raw samples, the report made from them, a manifest with the hash of each file and the commit, and a script that takes
//! the same measurements again. The archive's bytes depend on its content only.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::workspace::Workspace;
use crate::{hash, run};

/// What is put beside the results.
const MANIFEST: &str = "MANIFEST.json";
const SCRIPT: &str = "rerun.sh";

/// Packs the results in `folder`, which `paravane bench --all` made, into `output`.
pub(crate) fn build(workspace: &Workspace, folder: &Path, output: &Path) -> Result<()> {
    let results = results(folder)?;
    ensure!(
        results.keys().any(|name| name.ends_with(".jsonl")),
        "there are no raw samples in {}; make them with `paravane bench --all --out {}`",
        folder.display(),
        folder.display()
    );
    let commit = commit(workspace)?;
    let seed = results
        .iter()
        .filter(|(name, _)| name.ends_with(".jsonl"))
        .find_map(|(_, path)| seed(path));
    let mut hashes = BTreeMap::new();
    for (name, path) in &results {
        hashes.insert(name.clone(), hash::file(path)?);
    }
    let manifest = json!({ "commit": commit, "seed": seed, "sha256": hashes });

    let stage = workspace.cache_dir("artefact")?.join("paravane-artefact");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    fs::create_dir_all(&stage)?;
    for (name, path) in &results {
        fs::copy(path, stage.join(name)).with_context(|| format!("cannot copy {path:?}"))?;
    }
    fs::write(
        stage.join(MANIFEST),
        serde_json::to_string_pretty(&manifest)? + "\n",
    )?;
    let mut hosts = results.values().filter_map(|path| host(path));
    let host = hosts.find(|host| host != NATIVE);
    fs::write(stage.join(SCRIPT), script(&commit, seed, host))?;
    let output = std::path::absolute(output)?;
    let mut tar = Command::new("tar");
    tar.current_dir(stage.parent().context("the cache has no folder")?)
        .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0"])
        .args(["--numeric-owner", "--mode=u=rwX,go=rX"])
        .arg("--use-compress-program=gzip -n")
        .arg("-cf")
        .arg(&output)
        .arg("paravane-artefact");
    run::read(&mut tar)?;
    println!("artefact: {}", output.display());
    Ok(())
}

/// The files of a folder, by name; what an older artefact left is none of them.
fn results(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let entries = fs::read_dir(folder)
        .with_context(|| format!("the results in {} cannot be listed", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && ![MANIFEST, SCRIPT].contains(&name.as_str()) {
            files.insert(name, entry.path());
        }
    }
    Ok(files)
}

/// The commit that the tree is at; a tree with changes says so.
fn commit(workspace: &Workspace) -> Result<String> {
    let mut git = Command::new("git");
    git.current_dir(&workspace.root)
        .args(["describe", "--always", "--dirty", "--abbrev=40"]);
    Ok(run::read(&mut git)?.trim().to_owned())
}

/// The seed in the first line of a result.
fn seed(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let first: Value = serde_json::from_str(text.lines().next()?).ok()?;
    first.get("seed")?.as_u64()
}

/// A machine's own KVM, which is taken wherever it can be.
const NATIVE: &str = "kvm";

/// The class of host that a result is of.
fn host(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    let machine = lines.find(|line| line.contains("\"record\":\"machine\""))?;
    let machine: Value = serde_json::from_str(machine).ok()?;
    Some(machine.get("host")?.as_str()?.to_owned())
}

fn script(commit: &str, seed: Option<u64>, host: Option<String>) -> String {
    let host = host.map_or(String::new(), |host| format!(" --host {host}"));
    let seed = seed.map_or(String::new(), |seed| format!(" --seed {seed}"));
    format!(
        "#!/bin/sh\n\
         # Takes the measurements of this archive again, in a checkout of Paravane at commit\n\
         # {commit}\n\
         # and compares nothing: look at both reports. On Debian 12, as root or with sudo:\n\
         set -eu\n\
         ci/setup\n\
         cargo build --release\n\
         cargo ci kernel full\n\
         cargo ci kernel para\n\
         cargo ci initramfs\n\
         cargo ci reference-host\n\
         target/release/paravane bench --all{host}{seed} --out rerun\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_takes_the_same_seed_at_the_same_commit() {
        let plain = script("abc", Some(7), None);
        assert!(plain.contains("\n# abc\n") && plain.contains("--all --seed 7 --out rerun\n"));
        let counted = script("abc", Some(7), Some("counted".into()));
        assert!(counted.contains("--all --host counted --seed 7 "));
    }

    #[test]
    fn results_are_files_and_have_a_seed() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("folder")).unwrap();
        fs::write(folder.path().join("MANIFEST.json"), "{}").unwrap();
        let boot = folder.path().join("boot.jsonl");
        fs::write(&boot, "{\"record\":\"experiment\",\"seed\":5}\n{}\n").unwrap();
        let results = results(folder.path()).unwrap();
        assert_eq!(results.keys().collect::<Vec<_>>(), ["boot.jsonl"]);
        assert_eq!(seed(&boot), Some(5));
        assert_eq!(host(&boot), None);
        let machine = "{}\n{\"host\":\"counted\",\"record\":\"machine\"}\n";
        fs::write(&boot, machine).unwrap();
        assert_eq!(host(&boot).as_deref(), Some("counted"));
    }
}
