//! Folders of files: listing, hashing, and laying one over another.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use crate::hash;

/// File contents by path relative to the root of a tree.
pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

/// All regular files below `folder`, without names that begin with a dot.
pub(crate) fn read(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    let visible = |name: &str| !name.starts_with('.');
    for entry in WalkDir::new(folder)
        .into_iter()
        .filter_entry(|e| e.depth() == 0 || e.file_name().to_str().is_some_and(visible))
    {
        let entry = entry.with_context(|| format!("cannot list {folder:?}"))?;
        if entry.file_type().is_file() {
            let content = fs::read(entry.path())
                .with_context(|| format!("cannot read {:?}", entry.path()))?;
            files.insert(entry.path().strip_prefix(folder)?.to_path_buf(), content);
        }
    }
    Ok(files)
}

/// One hash for all of `files`, names included.
pub(crate) fn hash(files: &Files) -> String {
    let mut list = String::new();
    for (path, content) in files {
        list += &format!("{}  {}\n", hash::bytes(content), path.display());
    }
    hash::bytes(list.as_bytes())
}

/// Lays `files` over `tree`: writes only those whose content differs, so that the times of the
/// others stay and make does no more than it must.
pub(crate) fn lay_over(tree: &Path, files: &Files) -> Result<()> {
    for (path, content) in files {
        let path = tree.join(path);
        if fs::read(&path).is_ok_and(|old| old == *content) {
            continue;
        }
        let folder = path.parent().context("a file without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {folder:?}"))?;
        // Never through an old hard link: the other name of the file is the pristine source.
        let mode = fs::metadata(&path)
            .ok()
            .map(|meta| meta.permissions().mode());
        let fresh = path.with_extension("paravane-new");
        fs::write(&fresh, content).with_context(|| format!("cannot write {fresh:?}"))?;
        if let Some(mode) = mode {
            fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))?;
        }
        fs::rename(&fresh, &path).with_context(|| format!("cannot write {path:?}"))?;
    }
    Ok(())
}

/// The hashes of all files of a source tree, as lines `hash  path`: what "untouched" means.
#[derive(Debug)]
pub(crate) struct Inventory(BTreeMap<PathBuf, String>);

impl Inventory {
    /// Hashes the tree.
    pub(crate) fn of(tree: &Path) -> Result<Self> {
        let mut hashes = BTreeMap::new();
        for entry in WalkDir::new(tree)
            .into_iter()
            .filter_entry(|e| e.file_name() != ".git")
        {
            let entry = entry.with_context(|| format!("cannot list {tree:?}"))?;
            if entry.file_type().is_file() {
                let path = entry.path().strip_prefix(tree)?.to_path_buf();
                hashes.insert(path, hash::file(entry.path())?);
            }
        }
        Ok(Self(hashes))
    }

    /// Reads what [`Inventory::text`] wrote.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let line = |line: &str| {
            let (hash, path) = line.split_once("  ").context("not an inventory line")?;
            Ok((PathBuf::from(path), hash.to_owned()))
        };
        Ok(Self(text.lines().map(line).collect::<Result<_>>()?))
    }

    /// One line a file, in the form of `sha256sum`.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (path, hash) in &self.0 {
            text += &format!("{hash}  {}\n", path.display());
        }
        text
    }

    /// One hash for the whole tree.
    pub(crate) fn hash(&self) -> String {
        hash::bytes(self.text().as_bytes())
    }

    /// Fails if a file of the inventory is missing from `tree` or has another content there.
    pub(crate) fn verify(&self, tree: &Path) -> Result<()> {
        for (path, expected) in &self.0 {
            if hash::file(&tree.join(path))? != *expected {
                bail!(
                    "{} in {} is not as it was unpacked, so this would not be the untouched \
                     source; delete the folders `build` and `linux` of the cache and start again",
                    path.display(),
                    tree.display()
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_finds_a_changed_and_a_missing_file() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("a b"), "1").unwrap();
        fs::create_dir(tree.path().join("d")).unwrap();
        fs::write(tree.path().join("d/c"), "2").unwrap();
        let inventory = Inventory::parse(&Inventory::of(tree.path()).unwrap().text()).unwrap();
        inventory.verify(tree.path()).unwrap();
        fs::write(tree.path().join("object.o"), "new files are no change").unwrap();
        inventory.verify(tree.path()).unwrap();

        fs::write(tree.path().join("d/c"), "3").unwrap();
        let error = inventory.verify(tree.path()).unwrap_err().to_string();
        assert!(error.contains("d/c"), "{error}");
        fs::remove_file(tree.path().join("d/c")).unwrap();
        assert!(inventory.verify(tree.path()).is_err());
    }

    #[test]
    fn laying_over_never_writes_through_a_hard_link() {
        let tree = tempfile::tempdir().unwrap();
        let (pristine, built) = (tree.path().join("pristine"), tree.path().join("built"));
        fs::write(&pristine, "old").unwrap();
        fs::hard_link(&pristine, &built).unwrap();
        lay_over(
            tree.path(),
            &Files::from([("built".into(), b"new".to_vec())]),
        )
        .unwrap();
        assert_eq!(fs::read_to_string(built).unwrap(), "new");
        assert_eq!(fs::read_to_string(pristine).unwrap(), "old");
    }
}
