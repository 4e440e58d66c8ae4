//! Task `spec`: what is generated from the ABI's source, and the specification's own rules.
//!
//! The numbers and layouts are in `hypercall-abi/src/abi` only ([`model`] reads them). From there come the C header
//! ([`header`]), the tables of `SPEC.md` ([`tables`]) and `abi.lock`, whose hash has to be in the change log.
//! [`clauses`] and [`rules`] check the text: ids, normative words, citations in code, a test for every clause, a row
//! of statuses for every call. [`publish`] makes HTML and PDF of it.

#[cfg(test)]
mod bindgen;
mod clauses;
mod header;
mod ids;
mod model;
mod publish;
mod rules;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::hash;
use crate::spec::model::Model;
use crate::workspace::Workspace;

/// Where the published form goes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Published {
    /// As HTML.
    pub(crate) html: Option<PathBuf>,
    /// As PDF.
    pub(crate) pdf: Option<PathBuf>,
}

/// Task `spec`.
pub(crate) fn run(workspace: &Workspace, write: bool, published: &Published) -> Result<()> {
    let folder = workspace.root.join("hypercall-abi");
    let model = Model::read(&folder.join("src/abi"))?;
    let spec_path = folder.join("SPEC.md");
    let spec = text(&spec_path)?;
    let clauses = clauses::read(&spec)?;
    let lock = model.lock();
    // Missing at first, as any generated file can be.
    let ids = fs::read_to_string(folder.join("clauses.lock")).unwrap_or_default();

    let mut differ = Vec::new();
    for (name, content) in [
        ("include/paravane.h", header::write(&model)),
        ("SPEC.md", tables::fill(&spec, &model, &clauses)?),
        ("abi.lock", lock.clone()),
        ("clauses.lock", ids::add(&ids, &clauses)),
    ] {
        let path = folder.join(name);
        if fs::read_to_string(&path).is_ok_and(|old| old == content) {
            continue;
        }
        if write {
            fs::write(&path, content).with_context(|| format!("cannot write {path:?}"))?;
            println!("spec: wrote hypercall-abi/{name}");
        } else {
            differ.push(name);
        }
    }
    if !differ.is_empty() {
        bail!(
            "hypercall-abi/{} differs from what hypercall-abi/src/abi gives; `cargo ci spec \
             --write` writes it",
            differ.join(" and hypercall-abi/")
        );
    }

    let mut faults = Vec::new();
    let lock_hash = hash::bytes(lock.as_bytes());
    if !text(&folder.join("CHANGELOG.md"))?.contains(hash::short(&lock_hash)) {
        faults.push(format!(
            "abi.lock has changed: add a line that says what has, with (lock {}), to \
             hypercall-abi/CHANGELOG.md",
            hash::short(&lock_hash)
        ));
    }
    faults.extend(ids::faults(&ids, &clauses));
    faults.extend(clauses::faults_of_text(&spec, &clauses));
    faults.extend(clauses::faults_of_code(workspace, &clauses)?);
    faults.extend(rules::faults_of_text(&spec, &model)?);
    faults.extend(rules::faults_of_version(workspace, &spec, &model)?);
    faults.extend(rules::faults_of_names(workspace, &clauses)?);
    if !faults.is_empty() {
        bail!(
            "the specification has faults:\n    {}",
            faults.join("\n    ")
        );
    }
    println!(
        "spec: {} clauses, lock {}",
        clauses.len(),
        hash::short(&lock_hash)
    );
    let spec = text(&spec_path)?;
    if let Some(file) = &published.html {
        publish::write_html(&spec, file)?;
    }
    if let Some(file) = &published.pdf {
        publish::write_pdf(&spec, file)?;
    }
    Ok(())
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path:?}"))
}
