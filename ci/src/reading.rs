//! A test of ARCHITECTURE.md's reading order: the files are there, and as long as it says.

use std::fs;
use std::path::{Path, PathBuf};

use crate::workspace::Workspace;

/// What a word of the table stands for.
fn files(root: &Path, word: &str) -> Vec<PathBuf> {
    let Some((folder, suffix)) = word.split_once("/*") else {
        return vec![root.join(word)];
    };
    let entries = fs::read_dir(root.join(folder)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.to_str().is_some_and(|path| path.ends_with(suffix)))
        .collect()
}

#[test]
fn a_weekend_s_reading_is_as_long_as_architecture_md_says() {
    let root = Workspace::find().unwrap().root;
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let (_, table) = text.split_once("| part | files | lines |\n").unwrap();
    let rows = table.lines().skip(1).take_while(|row| row.starts_with('|'));
    let mut count = 0;
    for row in rows {
        let [_, part, names, lines, _] = row.split('|').collect::<Vec<_>>()[..] else {
            panic!("a row with other columns: {row}");
        };
        let said: usize = lines.trim().replace(',', "").parse().unwrap();
        let names = names.split_whitespace().map(|name| name.trim_matches('`'));
        let lengths = names.flat_map(|name| files(&root, name)).map(|file| {
            let text = fs::read_to_string(&file);
            let text = text.unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            text.lines().count()
        });
        let is: usize = lengths.sum();
        assert!(
            said.abs_diff(is) * 10 <= said,
            "ARCHITECTURE.md says {said} lines of:{part}and there are {is}"
        );
        count += 1;
    }
    assert!(count > 4);
}
