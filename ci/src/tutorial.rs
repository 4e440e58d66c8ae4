//! Task `tutorial`: does what `hypercall-abi/TUTORIAL.md` says, to the letter, in a copy of the tree.
//!
//! The tutorial's code blocks say in the word after their language which file they are:
//!
//! | block | what is done |
//! |---|---|
//! | `diff FILE` | lines that begin with `-` are replaced by those with `+`; the others have to be there |
//! | `append FILE` | the lines are added; `LOCK` is the hash that a command has printed |
//! | any other language, `FILE` | the file is written |
//! | `sh` | the commands are run, and have to succeed |
//! | `sh fails` | they have to fail |
//! | `sh kvm` | they are run where there is a `/dev/kvm` |
//! | `sh by-hand` | they are left to the reader |

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};
use regex::Regex;
use walkdir::WalkDir;

use crate::run;
use crate::workspace::{self, Workspace};

/// The tutorial.
const TEXT: &str = "hypercall-abi/TUTORIAL.md";

/// A code block.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    language: String,
    /// The file, or how commands are run.
    argument: String,
    text: String,
}

/// Task `tutorial`.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let text = fs::read_to_string(workspace.root.join(TEXT))
        .with_context(|| format!("cannot read {TEXT}"))?;
    let blocks = blocks(&text);
    let copy = Copy::new(workspace)?;
    let mut lock = String::new();
    for (number, block) in blocks.iter().enumerate() {
        let result = match block.language.as_str() {
            "sh" => copy.commands(block, &mut lock),
            _ => copy.edit(block, &lock),
        };
        result.with_context(|| {
            let Block {
                language, argument, ..
            } = block;
            format!(
                "{TEXT} does not work any more: block {} of {}, `{language} {argument}`; \
                 the copy is in {}",
                number + 1,
                blocks.len(),
                copy.root.display()
            )
        })?;
    }
    println!("tutorial: all {} blocks work", blocks.len());
    workspace::remove(&copy.root)
}

/// The blocks that say what they are.
fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for event in Parser::new(text) {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                let (language, argument) = info.split_once(' ').unwrap_or((&info, ""));
                open = Some(Block {
                    language: language.to_owned(),
                    argument: argument.to_owned(),
                    text: String::new(),
                });
            }
            Event::Text(text) => {
                if let Some(block) = &mut open {
                    block.text.push_str(&text);
                }
            }
            Event::End(TagEnd::CodeBlock) => blocks.extend(open.take()),
            _ => {}
        }
    }
    blocks
}

/// A copy of the tree.
#[derive(Debug)]
struct Copy {
    root: PathBuf,
    /// What is built in it. Not shared with the tree's own builds: Cargo tells the two by their paths
    /// inside the workspace, which are the same.
    target: PathBuf,
}

impl Copy {
    fn new(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.root.join("target/tutorial");
        let copy = Self {
            root: folder.join("tree"),
            target: folder.join("target"),
        };
        if copy.root.exists() {
            workspace::remove(&copy.root)?;
        }
        let walk = WalkDir::new(&workspace.root).into_iter();
        let kept = |name: &str| name != "target" && name != ".git";
        for entry in walk.filter_entry(|entry| entry.file_name().to_str().is_some_and(kept)) {
            let entry = entry?;
            let to = copy.root.join(entry.path().strip_prefix(&workspace.root)?);
            if entry.file_type().is_dir() {
                fs::create_dir_all(&to).with_context(|| format!("cannot create {to:?}"))?;
            } else {
                fs::copy(entry.path(), &to).with_context(|| format!("cannot write {to:?}"))?;
            }
        }
        Ok(copy)
    }

    /// Writes or changes a file.
    fn edit(&self, block: &Block, lock: &str) -> Result<()> {
        let path = self.root.join(&block.argument);
        let text = match block.language.as_str() {
            "diff" => changed(&read(&path)?, &block.text)?,
            "append" => read(&path)? + &block.text.replace("LOCK", lock),
            _ if path.exists() => bail!("{} is there already", block.argument),
            _ => block.text.clone(),
        };
        fs::write(&path, text).with_context(|| format!("cannot write {path:?}"))
    }

    /// Runs commands, and finds the hash of `abi.lock` in what they print.
    fn commands(&self, block: &Block, lock: &mut String) -> Result<()> {
        match block.argument.as_str() {
            "by-hand" => return Ok(()),
            "kvm" if !Path::new("/dev/kvm").exists() => {
                println!("skipped: there is no /dev/kvm");
                return Ok(());
            }
            "" | "fails" | "kvm" => {}
            other => bail!("`sh {other}` is not known"),
        }
        let printed = run::read(
            Command::new("sh")
                .args(["-e", "-c", &format!("exec 2>&1\n{}", block.text)])
                .current_dir(&self.root)
                .env("CARGO_TARGET_DIR", &self.target)
                .env("CARGO_PROFILE_DEV_DEBUG", "0")
                .env("CARGO_TERM_COLOR", "never"),
        );
        let (text, failed) = match printed {
            Ok(text) => (text, false),
            Err(error) => (format!("{error:#}"), true),
        };
        if failed != (block.argument == "fails") {
            bail!("it {}:\n{text}", if failed { "fails" } else { "succeeds" });
        }
        if let Some(found) = Regex::new(r"\(lock ([0-9a-f]+)\)")?.captures(&text) {
            found[1].clone_into(lock);
        }
        for line in text.lines().filter(|line| line.starts_with("cycles of")) {
            println!("tutorial: {line}");
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path:?}"))
}

/// `text` after the change.
fn changed(text: &str, change: &str) -> Result<String> {
    let (mut old, mut new) = (String::from("\n"), String::from("\n"));
    for line in change.lines() {
        let (sign, rest) = line.split_at_checked(1).unwrap_or((" ", ""));
        let rest = format!("{rest}\n");
        match sign {
            "-" => old += &rest,
            "+" => new += &rest,
            " " => {
                old += &rest;
                new += &rest;
            }
            _ => bail!("{line:?} begins neither with a blank nor with + or -"),
        }
    }
    let text = format!("\n{text}");
    let starts = text.match_indices('\n').map(|(at, _)| &text[at..]);
    match starts.filter(|rest| rest.starts_with(&old)).count() {
        1 => Ok(text.replacen(&old, &new, 1)[1..].to_owned()),
        count => bail!("these lines are there {count} times, and not once:{old}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read() {
        let found = blocks("Do\n\n```diff a/b.rs\n a\n+b\n```\n\nand\n\n```sh\nls\n```\n");
        let expected = [("diff", "a/b.rs", " a\n+b\n"), ("sh", "", "ls\n")];
        assert_eq!(found.len(), expected.len());
        for (found, (language, argument, text)) in found.iter().zip(expected) {
            assert_eq!(
                (
                    found.language.as_str(),
                    found.argument.as_str(),
                    found.text.as_str()
                ),
                (language, argument, text)
            );
        }
    }

    #[test]
    fn a_change_is_made_once_or_not_at_all() {
        assert_eq!(
            changed("a\nb\nc\n", " a\n-b\n+x\n+y\n").unwrap(),
            "a\nx\ny\nc\n"
        );
        assert_eq!(changed("a\nb\n", "+x\n a\n").unwrap(), "x\na\nb\n");
        for (text, change) in [
            ("a\nb\n", " c\n+x\n"),
            ("a\na\n", " a\n+x\n"),
            ("a\n", "?a\n"),
        ] {
            assert!(changed(text, change).is_err(), "{text:?} {change:?}");
        }
    }
}
