//! The C header `include/paravane.h`.

use crate::spec::model::{Constant, Field, Model, Struct};

/// The header's text.
pub(crate) fn write(model: &Model) -> String {
    let mut text = String::from(
        "/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */\n\
         /*\n * The Paravane ABI. Made from hypercall-abi/src/abi by `cargo ci spec --write`: change\n \
         * that, and not this file. SPEC.md says what the numbers mean.\n */\n\
         #ifndef PARAVANE_ABI_H\n#define PARAVANE_ABI_H\n\n\
         #ifdef __KERNEL__\n#include <linux/stddef.h>\n#include <linux/types.h>\n\
         #else\n#include <stddef.h>\n#include <stdint.h>\n#endif\n\n\
         #ifdef __cplusplus\n#define PARAVANE_ASSERT(expr) static_assert(expr, #expr)\n\
         #else\n#define PARAVANE_ASSERT(expr) _Static_assert(expr, #expr)\n#endif\n",
    );
    let mut module = "";
    for constant in &model.constants {
        if module != constant.module {
            module = &constant.module;
            text += &format!("\n/* --- {module} --- */\n");
        }
        text += &format!(
            "\n{}#define {} {}\n",
            comment("", &constant.doc),
            macro_name(&constant.name),
            value(constant)
        );
    }
    for of in &model.structs {
        text += &structure(of);
    }
    text + "\n#endif /* PARAVANE_ABI_H */\n"
}

/// A constant's name in C.
pub(crate) fn macro_name(name: &str) -> String {
    format!("PARAVANE_{name}")
}

/// A structure's tag in C.
pub(crate) fn tag(name: &str) -> String {
    let mut text = "paravane".to_owned();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

fn value(constant: &Constant) -> String {
    let text = constant.text();
    match constant.kind.as_str() {
        "u64" => format!("{text}ULL"),
        "i64" => format!("({text}LL)"),
        "usize" => format!("{text}UL"),
        _ => format!("{text}U"),
    }
}

fn structure(of: &Struct) -> String {
    let tag = tag(&of.name);
    let mut text = format!("\n{}struct {tag} {{\n", comment("", &of.doc));
    for field in &of.fields {
        text += &comment("\t", &field.doc);
        text += &format!("\t{};\n", declaration(field));
    }
    text += "};\n\n";
    text += &format!("PARAVANE_ASSERT(sizeof(struct {tag}) == {});\n", of.size);
    for Field { name, offset, .. } in &of.fields {
        text += &format!("PARAVANE_ASSERT(offsetof(struct {tag}, {name}) == {offset});\n");
    }
    text
}

fn declaration(field: &Field) -> String {
    let kind = match field.kind.as_str() {
        "u8" | "u16" | "u32" | "u64" => format!("uint{}_t", &field.kind[1..]),
        "i32" | "i64" => format!("int{}_t", &field.kind[1..]),
        other => format!("struct {}", tag(other)),
    };
    let count = field.count.as_ref().map_or(String::new(), |count| {
        let length = match &count.name {
            Some(name) => macro_name(name),
            None => count.value.to_string(),
        };
        format!("[{length}]")
    });
    format!("{kind} {}{count}", field.name)
}

fn comment(indent: &str, doc: &str) -> String {
    let mut lines = vec![String::new()];
    for word in doc.split_whitespace() {
        let last = lines.last().map_or(0, String::len);
        if last != 0 && last + word.len() > 88 {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    if let [line] = lines.as_slice() {
        return format!("{indent}/* {line} */\n");
    }
    let body: String = lines
        .iter()
        .map(|line| format!("{indent} * {line}\n"))
        .collect();
    format!("{indent}/*\n{body}{indent} */\n")
}

#[cfg(test)]
mod tests {
    //! The header and the Rust source, each compiled by its own compiler, have to say the same.

    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::*;
    use crate::run;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../hypercall-abi")
    }

    /// What a C or C++ compiler makes of the header: a line for each number.
    fn in_c(model: &Model, compiler: &str, language: &str) -> String {
        let mut source =
            "#include <stdio.h>\n#include \"paravane.h\"\nint main(void) {\n".to_owned();
        for Constant { name, .. } in &model.constants {
            let name_in_c = macro_name(name);
            source += &format!("printf(\"{name} %lld\\n\", (long long)({name_in_c}));\n");
        }
        for of in &model.structs {
            let tag = tag(&of.name);
            source += &format!("printf(\"{} %zu\\n\", sizeof(struct {tag}));\n", of.name);
            for Field { name, .. } in &of.fields {
                source += &format!(
                    "printf(\"{}.{name} %zu\\n\", offsetof(struct {tag}, {name}));\n",
                    of.name
                );
            }
        }
        source += "return 0;\n}\n";
        let mut command = Command::new(compiler);
        command
            .args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-x"])
            .arg(language.trim_end_matches(|c: char| c.is_ascii_digit()))
            .arg(format!("-std={language}"))
            .arg("-I")
            .arg(folder().join("include"));
        printed(&format!("{compiler}-{language}"), &source, command)
    }

    /// What rustc makes of the ABI's source.
    fn in_rust(model: &Model) -> String {
        let abi = folder().join("src/abi/mod.rs");
        let mut source = format!(
            "#![allow(dead_code, unexpected_cfgs)]\n#[path = {abi:?}]\nmod abi;\nfn main() {{\n"
        );
        for Constant { name, module, .. } in &model.constants {
            source += &format!("println!(\"{name} {{}}\", abi::{module}::{name} as i64);\n");
        }
        for of in &model.structs {
            let path = format!("abi::{}::{}", of.module, of.name);
            source += &format!("println!(\"{} {{}}\", size_of::<{path}>());\n", of.name);
            for Field { name, .. } in &of.fields {
                source += &format!(
                    "println!(\"{}.{name} {{}}\", core::mem::offset_of!({path}, {name}));\n",
                    of.name
                );
            }
        }
        source += "}\n";
        let mut command = Command::new("rustc");
        command.args(["--edition", "2024"]);
        printed("rustc", &source, command)
    }

    /// What this module works out for itself.
    fn computed(model: &Model) -> String {
        let mut text = String::new();
        for constant in &model.constants {
            // As 64 bits, whatever a language takes their sign for.
            let bits = u64::try_from(constant.value & i128::from(u64::MAX)).unwrap();
            let value = bits.cast_signed();
            text += &format!("{} {value}\n", constant.name);
        }
        for of in &model.structs {
            text += &format!("{} {}\n", of.name, of.size);
            for field in &of.fields {
                text += &format!("{}.{} {}\n", of.name, field.name, field.offset);
            }
        }
        text
    }

    /// Compiles a source and returns what the program prints.
    fn printed(name: &str, source: &str, mut compile: Command) -> String {
        let folder = std::env::temp_dir().join(format!("paravane-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (input, program) = (folder.join("numbers"), folder.join("program"));
        fs::write(&input, source).unwrap();
        run::read(compile.arg("-o").arg(&program).arg(&input)).unwrap();
        let text = run::read(&mut Command::new(program)).unwrap();
        fs::remove_dir_all(folder).unwrap();
        text
    }

    #[test]
    fn all_languages_see_the_same_numbers() {
        let model = Model::read(&folder().join("src/abi")).unwrap();
        assert!(model.constants.len() > 50 && model.structs.len() > 4);
        let expected = in_rust(&model);
        assert_eq!(computed(&model), expected);
        assert_eq!(in_c(&model, "gcc", "c11"), expected);
        assert_eq!(in_c(&model, "gcc", "c++17"), expected);
        assert_eq!(in_c(&model, "clang-19", "c11"), expected);
        assert_eq!(in_c(&model, "clang-19", "c++17"), expected);
    }

    #[test]
    fn long_comments_are_wrapped() {
        let text = comment("\t", &"word ".repeat(40));
        assert!(text.starts_with("\t/*\n\t * word"));
        assert!(text.lines().all(|line| line.len() < 96));
        assert_eq!(comment("", "short"), "/* short */\n");
    }

    #[test]
    fn tags_are_in_the_kernels_style() {
        assert_eq!(tag("BootInfo"), "paravane_boot_info");
    }
}
