//! The tables of `SPEC.md`, between `<!-- gen:name -->` and `<!-- /gen -->`.

use anyhow::{Context, Result, bail};

use crate::spec::clauses::Clause;
use crate::spec::model::{Constant, Model};

const OPEN: &str = "<!-- gen:";
const CLOSE: &str = "<!-- /gen -->";

/// `spec` with every generated part made anew.
pub(crate) fn fill(spec: &str, model: &Model, clauses: &[Clause]) -> Result<String> {
    let mut text = String::new();
    let mut rest = spec;
    while let Some(start) = rest.find(OPEN) {
        let (before, mark) = rest.split_at(start);
        let (name, inner) = mark[OPEN.len()..]
            .split_once(" -->")
            .context("a gen mark in SPEC.md without an end")?;
        let end = inner
            .find(CLOSE)
            .with_context(|| format!("gen:{name} in SPEC.md has no {CLOSE}"))?;
        text += before;
        text += &format!("{OPEN}{name} -->");
        text += &part(name, model, clauses)?;
        text += CLOSE;
        rest = &inner[end + CLOSE.len()..];
    }
    Ok(text + rest)
}

fn part(name: &str, model: &Model, clauses: &[Clause]) -> Result<String> {
    let constants = |prefix: &str| registry(model, |c| c.name.starts_with(prefix));
    let module = |module: &str| registry(model, |c| c.module == module);
    let table = match name {
        "version" => return model.version(),
        "discovery" => constants("CPUID_"),
        "calls" => constants("CALL_"),
        "status" => constants("STATUS_"),
        "transports" => constants("TRANSPORT_"),
        "facilities" => constants("FACILITY_"),
        "power" => constants("POWER_"),
        "limits" => registry(model, |c| {
            let elsewhere = [
                "CPUID_",
                "CALL_",
                "STATUS_",
                "TRANSPORT_",
                "FACILITY_",
                "POWER_",
            ];
            let own_chapter = [
                "boot_info",
                "clock",
                "crash",
                "console",
                "cpu",
                "cpuid",
                "delegate",
                "dev",
                "mem",
                "ring",
                "rng",
                "smp",
            ];
            !elsewhere.iter().any(|prefix| c.name.starts_with(prefix))
                && !own_chapter.contains(&c.module.as_str())
        }),
        "boot_info" | "clock" | "console" | "cpu" | "cpuid" | "crash" | "delegate" | "dev"
        | "mem" | "rng" | "smp" | "ring" => module(name) + &structs(model, name),
        "checklist" => checklist(clauses),
        other => bail!("SPEC.md asks for gen:{other}, which is not known"),
    };
    Ok(format!("\n{table}"))
}

fn registry(model: &Model, belongs: impl Fn(&Constant) -> bool) -> String {
    let rows: String = model
        .constants
        .iter()
        .filter(|constant| belongs(constant))
        .map(|c| format!("| `{}` | `{}` | {} |\n", c.name, c.text(), cell(&c.doc)))
        .collect();
    if rows.is_empty() {
        return rows;
    }
    format!("| name | value | meaning |\n|---|---|---|\n{rows}")
}

fn structs(model: &Model, module: &str) -> String {
    let mut text = String::new();
    for of in model.structs.iter().filter(|of| of.module == module) {
        text += &format!(
            "\n`{}`, {} bytes: {}\n\n| offset | field | type | meaning |\n|---|---|---|---|\n",
            of.name,
            of.size,
            cell(&of.doc)
        );
        for field in &of.fields {
            text += &format!(
                "| {} | `{}` | `{}` | {} |\n",
                field.offset,
                field.name,
                field.rust_type(),
                cell(&field.doc)
            );
        }
    }
    text
}

fn checklist(clauses: &[Clause]) -> String {
    let mut text = "| clause | host | guest |\n|---|---|---|\n".to_owned();
    let tick = |yes| if yes { "x" } else { "" };
    for clause in clauses {
        text += &format!(
            "| {} | {} | {} |\n",
            clause.id,
            tick(clause.binds("host")),
            tick(clause.binds("guest"))
        );
    }
    text
}

fn cell(doc: &str) -> String {
    doc.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Model {
        Model {
            constants: Vec::new(),
            structs: Vec::new(),
        }
    }

    #[test]
    fn an_unknown_mark_is_an_error() {
        let error = fill("a <!-- gen:nothing --> b <!-- /gen -->", &empty(), &[]).unwrap_err();
        assert!(error.to_string().contains("gen:nothing"));
    }

    #[test]
    fn a_mark_without_an_end_is_an_error() {
        assert!(fill("<!-- gen:status --> and no more", &empty(), &[]).is_err());
    }

    #[test]
    fn filling_twice_changes_nothing() {
        let model = Model {
            constants: vec![Constant {
                module: "registry".to_owned(),
                name: "STATUS_OK".to_owned(),
                kind: "i64".to_owned(),
                value: 0,
                hexadecimal: false,
                doc: "Done | well.".to_owned(),
            }],
            structs: Vec::new(),
        };
        let once = fill("x\n<!-- gen:status -->old<!-- /gen -->\ny", &model, &[]).unwrap();
        assert!(once.contains("| `STATUS_OK` | `0` | Done \\| well. |"));
        assert!(!once.contains("old"));
        assert_eq!(fill(&once, &model, &[]).unwrap(), once);
    }
}
