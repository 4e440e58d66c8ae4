//! Rules of the specification that need more than its clauses: words, examples, the table of
//! statuses, and tests that name a clause that there is not.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use regex::Regex;
use walkdir::WalkDir;

use crate::spec::clauses::Clause;
use crate::spec::model::Model;
use crate::workspace::Workspace;

/// Faults of the document.
pub(crate) fn faults_of_text(spec: &str, model: &Model) -> Result<Vec<String>> {
    let mut faults = lower_case_words(spec)?;
    faults.extend(calls_without_statuses(spec, model));
    faults.extend(unknown_names(spec, model)?);
    Ok(faults)
}

/// BCP 14's other words: `must`, `shall` and `should` are [`clauses`](super::clauses)'s.
fn lower_case_words(spec: &str) -> Result<Vec<String>> {
    let word = Regex::new(r"\b(may|required|recommended|optional)\b")?;
    let generated = Regex::new("(?s)<!-- gen:.*?<!-- /gen -->")?;
    let mut faults = Vec::new();
    for paragraph in prose(&generated.replace_all(spec, "")) {
        if let Some(found) = word.find(paragraph) {
            let line = paragraph.lines().next().unwrap_or_default();
            faults.push(format!(
                "a word of BCP 14 in lower case, {:?}: {line}",
                found.as_str()
            ));
        }
    }
    Ok(faults)
}

/// Paragraphs that are neither tables nor code.
fn prose(spec: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    spec.split("\n\n").filter(move |paragraph| {
        let starts_inside = inside;
        let fences = paragraph.lines().filter(|line| line.starts_with("```"));
        inside ^= fences.count() % 2 == 1;
        !starts_inside && !paragraph.starts_with("|") && !paragraph.starts_with("```")
    })
}

/// Every call has a row that says what it answers.
fn calls_without_statuses(spec: &str, model: &Model) -> Vec<String> {
    let calls = model.constants.iter().filter_map(|constant| {
        let name = constant.name.strip_prefix("CALL_")?;
        Some(name.to_lowercase().replacen('_', ".", 1))
    });
    calls
        .filter(|call| !spec.contains(&format!("\n| `{call}` |")))
        .map(|call| format!("SPEC.md has no row `| `{call}` | … |` that says what it answers"))
        .collect()
}

/// A constant that the text names has to exist.
fn unknown_names(spec: &str, model: &Model) -> Result<Vec<String>> {
    let families: BTreeSet<&str> = model
        .constants
        .iter()
        .filter_map(|constant| constant.name.split_once('_'))
        .map(|(family, _)| family)
        .collect();
    let name = Regex::new("`([A-Z][A-Z0-9]*)_([A-Z0-9_]+)`")?;
    let mut faults = Vec::new();
    for found in name.captures_iter(spec) {
        let text = found[0].trim_matches('`');
        if families.contains(&found[1]) && model.constant(text).is_err() {
            faults.push(format!("SPEC.md names {text}, which the ABI does not have"));
        }
    }
    Ok(faults)
}

/// The version stands in places that are not generated: the list of versions, and how to cite.
pub(crate) fn faults_of_version(
    workspace: &Workspace,
    spec: &str,
    model: &Model,
) -> Result<Vec<String>> {
    let version = model.version()?;
    let citation = fs::read_to_string(workspace.root.join("hypercall-abi/CITATION.cff"))?;
    let changes = fs::read_to_string(workspace.root.join("hypercall-abi/CHANGELOG.md"))?;
    let mut faults = Vec::new();
    for (name, text, line) in [
        ("SPEC.md's versions", spec, format!("\n| {version} | ")),
        (
            "SPEC.md's BibTeX entry",
            spec,
            format!("{{Version {version}, "),
        ),
        (
            "CITATION.cff",
            &citation,
            format!("\nversion: \"{version}\"\n"),
        ),
        ("CITATION.cff", &citation, format!("\"Version {version}, ")),
        ("CHANGELOG.md", &changes, format!("\n## {version}, ")),
    ] {
        if !text.contains(&line) {
            faults.push(format!(
                "{name} lacks {:?}: the version is {version}",
                line.trim()
            ));
        }
    }
    Ok(faults)
}

/// Tests that are named for a clause, and clauses that are cited, where there is no such clause:
/// in the files that [`clauses`](super::clauses) does not read.
pub(crate) fn faults_of_names(workspace: &Workspace, clauses: &[Clause]) -> Result<Vec<String>> {
    let test = Regex::new(r"\bfn pv_([a-z]+)_([0-9]+)_")?;
    let citation = Regex::new(r"\bPV-[A-Z]+-[0-9]+\b")?;
    let known = |id: &str| clauses.iter().any(|clause| clause.id == id);
    let mut faults = Vec::new();
    for folder in ["hypercall-abi", "host-vmm", "benches"] {
        let walk = WalkDir::new(workspace.root.join(folder)).into_iter();
        for entry in walk.filter_entry(|entry| entry.file_name() != "target") {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_none_or(|kind| kind != "rs") {
                continue;
            }
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {path:?}"))?;
            for found in test.captures_iter(&text) {
                let id = format!("PV-{}-{}", found[1].to_uppercase(), &found[2]);
                if !known(&id) {
                    let place = path.strip_prefix(&workspace.root)?.display();
                    faults.push(format!("{place} has a test of {id}, which there is not"));
                }
            }
        }
    }
    for name in ["README.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(workspace.root.join(name))?;
        for found in citation.find_iter(&text).filter(|id| !known(id.as_str())) {
            let id = found.as_str();
            faults.push(format!("{name} cites {id}, which SPEC.md does not have"));
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::model::Constant;

    fn model() -> Model {
        let constant = |name: &str| Constant {
            module: "registry".to_owned(),
            name: name.to_owned(),
            kind: "u32".to_owned(),
            value: 1,
            hexadecimal: false,
            doc: "One.".to_owned(),
        };
        Model {
            constants: vec![constant("CALL_BASE_NOP"), constant("STATUS_OK")],
            structs: Vec::new(),
        }
    }

    #[test]
    fn a_good_text_has_no_fault() {
        let spec = "It answers `STATUS_OK`.\n\n| call |\n|---|\n| `base.nop` | `STATUS_OK` |\n\n\
                    ```\nit may\n\nbe code\n```\n\n<!-- gen:x -->\nmay\n<!-- /gen -->";
        assert_eq!(
            faults_of_text(spec, &model()).unwrap(),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_rule_finds_its_breach() {
        for (spec, expected) in [
            ("The host may.\n| `base.nop` |", "\"may\""),
            ("An optional part.\n| `base.nop` |", "\"optional\""),
            ("Nothing.", "no row `| `base.nop`"),
            ("`STATUS_GONE`\n| `base.nop` |", "STATUS_GONE"),
        ] {
            let found = faults_of_text(spec, &model()).unwrap();
            assert!(
                found.len() == 1 && found[0].contains(expected),
                "{spec}: {found:?}"
            );
        }
    }

    #[test]
    fn names_of_other_projects_are_not_ours() {
        let spec = "`VIRTIO_F_EVENT_IDX`\n| `base.nop` |";
        assert_eq!(
            faults_of_text(spec, &model()).unwrap(),
            Vec::<String>::new()
        );
    }
}
