//! The round trip: bindgen reads the C header that was made from the Rust source, and its Rust has
//! to have the same numbers and layouts. A kernel or a VMM that takes the header this way gets the
//! ABI.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::run;
use crate::spec::header::{macro_name, tag};
use crate::spec::model::{Constant, Field, Model, Struct};
use crate::tools;
use crate::workspace::Workspace;

/// A line for each number, with the value that `number` gives it.
fn listed(model: &Model, number: impl Fn(&str, i128) -> String) -> String {
    let mut text = String::new();
    for Constant { name, value, .. } in &model.constants {
        text += &number(&macro_name(name), *value);
    }
    for Struct {
        name, size, align, ..
    } in &model.structs
    {
        let tag = tag(name);
        text += &number(
            &format!("size_of::<{tag}>()"),
            i128::try_from(*size).unwrap(),
        );
        text += &number(
            &format!("align_of::<{tag}>()"),
            i128::try_from(*align).unwrap(),
        );
    }
    for of in &model.structs {
        for Field { name, offset, .. } in &of.fields {
            let offset = i128::try_from(*offset).unwrap();
            text += &number(
                &format!("core::mem::offset_of!({}, {name})", tag(&of.name)),
                offset,
            );
        }
    }
    text
}

/// The low 64 bits.
fn bits(value: i128) -> u64 {
    u64::try_from(value & i128::from(u64::MAX)).unwrap()
}

#[test]
fn bindgen_gives_the_same_numbers_back() {
    let workspace = Workspace::find().unwrap();
    let abi = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hypercall-abi");
    let model = Model::read(&abi.join("src/abi")).unwrap();
    let folder = std::env::temp_dir().join(format!("paravane-bindgen-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();

    let bindgen = tools::bindgen(&workspace).unwrap();
    let bindings = run::read(
        Command::new(bindgen)
            .args(["--allowlist-item", "paravane_.*|PARAVANE_.*"])
            .arg(abi.join("include/paravane.h"))
            .args(["--", "-std=c11"]),
    )
    .unwrap();
    let printed = listed(&model, |expression, _| {
        format!("println!(\"{{}} {{}}\", {expression:?}, ({expression}) as i128 as u64);\n")
    });
    let source = folder.join("program.rs");
    let program = folder.join("program");
    fs::write(
        &source,
        format!(
            "#![allow(dead_code, non_camel_case_types)]\nuse bindings::*;\n\
             mod bindings {{ {bindings} }}\nfn main() {{\n{printed}}}\n"
        ),
    )
    .unwrap();
    run::read(
        Command::new("rustc")
            .args(["--edition", "2024", "-o"])
            .arg(&program)
            .arg(&source),
    )
    .unwrap();
    let found = run::read(&mut Command::new(&program)).unwrap();
    fs::remove_dir_all(folder).unwrap();
    let expected = listed(&model, |expression, value| {
        // Bindgen takes what is above the signed numbers for negative; the bits are the same.
        format!("{expression} {}\n", bits(value))
    });
    assert_eq!(found, expected);
    assert!(found.lines().count() > 100);
}
