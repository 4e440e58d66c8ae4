//! The clauses of `SPEC.md`: their ids, their words, who cites them, which test has them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail};
use regex::Regex;
use walkdir::WalkDir;

use crate::workspace::Workspace;

/// Where clauses without a test are listed, with the reason.
const UNTESTED: &str = "hypercall-abi/tests/untested.txt";
/// A citation of a clause in code.
const CITATION: &str = r"\bPV-[A-Z]+-[0-9]+\b";

/// A clause.
#[derive(Clone, Debug)]
pub(crate) struct Clause {
    pub(crate) id: String,
    text: String,
}

impl Clause {
    /// Whether an obligation of the clause has this side as its subject.
    pub(crate) fn binds(&self, side: &str) -> bool {
        let text = self.text.to_lowercase();
        text.contains("each side must") || text.contains(&format!("the {side} m"))
    }

    /// What its tests' names begin with.
    fn test_prefix(&self) -> String {
        self.id.to_lowercase().replace('-', "_")
    }
}

/// All clauses, in the order of the document.
pub(crate) fn read(spec: &str) -> Result<Vec<Clause>> {
    let start = Regex::new(r"^\*\*\[(PV-[A-Z]+-[0-9]+)\]\*\* ")?;
    let mut clauses: Vec<Clause> = Vec::new();
    for paragraph in spec.split("\n\n") {
        if let Some(found) = start.captures(paragraph) {
            let id = found[1].to_owned();
            if clauses.iter().any(|clause| clause.id == id) {
                bail!("SPEC.md has two clauses {id}");
            }
            let text = paragraph[found[0].len()..].replace('\n', " ");
            clauses.push(Clause { id, text });
        }
    }
    Ok(clauses)
}

/// Faults of the document itself.
pub(crate) fn faults_of_text(spec: &str, clauses: &[Clause]) -> Vec<String> {
    let mut faults = Vec::new();
    // Constant patterns: one that does not compile is seen by the tests below.
    let (Ok(lower), Ok(normative), Ok(not_prose), Ok(digit), Ok(citation)) = (
        Regex::new(r"\b(must|shall|should)\b"),
        Regex::new(r"\b(MUST|SHALL|SHOULD)\b"),
        Regex::new(r"`[^`]*`|64-bit|\bC?R[0-9]+\b|PV-[A-Z]+-[0-9]+"),
        Regex::new("[0-9]"),
        Regex::new(CITATION),
    ) else {
        return vec!["a pattern of the checker is wrong".to_owned()];
    };
    for paragraph in spec.split("\n\n") {
        let line = paragraph.lines().next().unwrap_or_default();
        // Tables are generated from doc comments, whose words are not normative.
        if paragraph.starts_with("<!-- gen:") || paragraph.starts_with('|') {
            continue;
        }
        if lower.is_match(paragraph) {
            faults.push(format!("a normative word in lower case: {line}"));
        }
        let defines_the_words = paragraph.contains("BCP 14");
        if normative.is_match(paragraph) && !paragraph.starts_with("**[PV-") && !defines_the_words {
            faults.push(format!("an obligation without a clause id: {line}"));
        }
    }
    for Clause { id, text } in clauses {
        if digit.is_match(&not_prose.replace_all(text, "")) {
            faults.push(format!("{id} has a number in its prose; name the constant"));
        }
        let binds_guest = text.contains("The guest") || text.contains("Each side");
        if binds_guest && !text.contains("*Breach:*") {
            faults.push(format!("{id} binds the guest and has no *Breach:*"));
        }
        let obligations = normative.find_iter(text).count();
        if obligations != 1 {
            faults.push(format!(
                "{id} has {obligations} obligations; a clause has one"
            ));
        }
    }
    for found in citation.find_iter(spec) {
        if !clauses.iter().any(|clause| clause.id == found.as_str()) {
            faults.push(format!(
                "SPEC.md cites {}, which does not exist",
                found.as_str()
            ));
        }
    }
    faults
}

/// Faults of what the code says about clauses.
pub(crate) fn faults_of_code(workspace: &Workspace, clauses: &[Clause]) -> Result<Vec<String>> {
    let citation = Regex::new(CITATION)?;
    let test = Regex::new(r"\bfn (pv_[a-z]+_[0-9]+)_")?;
    let mut faults = Vec::new();
    let mut tested = BTreeSet::new();
    for folder in [
        "hypercall-abi",
        "host-vmm",
        "guest-pv-linux",
        "benches",
        "patches",
    ] {
        let walk = WalkDir::new(workspace.root.join(folder)).into_iter();
        // The tutorial has a clause that is only there for who does what it says.
        let skipped = |name: &str| ["target", "TUTORIAL.md"].contains(&name);
        for entry in walk.filter_entry(|entry| !entry.file_name().to_str().is_some_and(skipped)) {
            let entry = entry?;
            let path = entry.path();
            let kind = path.extension().unwrap_or_default();
            if !["rs", "c", "h", "patch", "md"]
                .iter()
                .any(|known| kind == *known)
            {
                continue;
            }
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {path:?}"))?;
            for found in citation.find_iter(&text) {
                if !clauses.iter().any(|clause| clause.id == found.as_str()) {
                    let place = path.strip_prefix(&workspace.root)?.display();
                    let id = found.as_str();
                    faults.push(format!("{place} cites {id}, which SPEC.md does not have"));
                }
            }
            tested.extend(test.captures_iter(&text).map(|found| found[1].to_owned()));
        }
    }
    let excused = excuses(workspace)?;
    for clause in clauses {
        match (
            tested.contains(&clause.test_prefix()),
            excused.get(&clause.id),
        ) {
            (false, None) => faults.push(format!(
                "{} has no test; name one {}_…, or list it in {UNTESTED} with the reason",
                clause.id,
                clause.test_prefix()
            )),
            (true, Some(_)) => faults.push(format!(
                "{} has a test now; take it off {UNTESTED}",
                clause.id
            )),
            _ => {}
        }
    }
    for id in excused.keys() {
        if !clauses.iter().any(|clause| clause.id == *id) {
            faults.push(format!("{UNTESTED} has {id}, which SPEC.md does not have"));
        }
    }
    Ok(faults)
}

fn excuses(workspace: &Workspace) -> Result<BTreeMap<String, String>> {
    let path = workspace.root.join(UNTESTED);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}"))?;
    let mut excuses = BTreeMap::new();
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (id, reason) = line
            .split_once(": ")
            .with_context(|| format!("{UNTESTED}: {line:?} is not `id: reason`"))?;
        if reason.trim().is_empty() {
            bail!("{UNTESTED}: {id} has no reason");
        }
        excuses.insert(id.to_owned(), reason.to_owned());
    }
    Ok(excuses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: &str) -> Vec<String> {
        faults_of_text(spec, &read(spec).unwrap())
    }

    #[test]
    fn a_good_clause_has_no_fault() {
        let spec = "**[PV-X-1]** The guest MUST add `1` in R8. *Breach:* the host adds it.";
        assert_eq!(faults(spec), Vec::<String>::new());
    }

    #[test]
    fn each_rule_finds_its_breach() {
        for (spec, expected) in [
            ("The host must add.", "lower case"),
            ("The host MUST add.", "without a clause id"),
            ("**[PV-X-1]** The host MUST add 12.", "number in its prose"),
            ("**[PV-X-1]** The guest MUST add.", "no *Breach:*"),
            ("**[PV-X-1]** The host MUST obey PV-X-2.", "cites PV-X-2"),
            ("**[PV-X-1]** The host MAY add.", "0 obligations"),
            (
                "**[PV-X-1]** The host MUST add, and MUST NOT divide.",
                "2 obligations",
            ),
        ] {
            let found = faults(spec);
            assert!(
                found.len() == 1 && found[0].contains(expected),
                "{spec}: {found:?}"
            );
        }
    }

    #[test]
    fn an_id_is_used_once() {
        assert!(read("**[PV-X-1]** The host MAY.\n\n**[PV-X-1]** The host MAY not.").is_err());
    }

    #[test]
    fn the_checklist_knows_the_sides() {
        let spec = "**[PV-X-1]** The host MUST add.\n\n**[PV-X-2]** Each side MUST add.";
        let clauses = read(spec).unwrap();
        assert!(clauses[0].binds("host") && !clauses[0].binds("guest"));
        assert!(clauses[1].binds("host") && clauses[1].binds("guest"));
    }
}
