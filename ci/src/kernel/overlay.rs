//! What is laid over the source for `para`: the patch series, the guest code and the ABI.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tree::{self, Files};
use crate::workspace::{Workspace, remove};
use crate::{hash, run};

/// Where the guest code lives in the kernel's tree.
const GUEST: &str = "arch/x86/paravane";
/// The file in a build tree that lists what has been laid over it.
const LIST: &str = ".paravane-overlay";

/// One patch.
#[derive(Clone, Debug)]
pub(crate) struct Patch {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    text: String,
}

impl Patch {
    /// The files that it changes, adds or removes.
    fn touches(&self) -> BTreeSet<PathBuf> {
        let side = |line: &str| {
            let rest = line.strip_prefix("--- ").or(line.strip_prefix("+++ "))?;
            let path = rest.split(['\t', ' ']).next()?;
            let path = path.strip_prefix("a/").or(path.strip_prefix("b/"))?;
            Some(PathBuf::from(path))
        };
        self.text.lines().filter_map(side).collect()
    }
}

/// Patches, and files beside them.
#[derive(Clone, Debug)]
pub(crate) struct Overlay {
    pub(crate) patches: Vec<Patch>,
    files: Files,
}

impl Overlay {
    /// Nothing: the untouched source.
    pub(crate) fn empty() -> Self {
        Self {
            patches: Vec::new(),
            files: Files::new(),
        }
    }

    /// The series, the guest code and the ABI of this repository.
    pub(crate) fn read(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.root.join("patches/linux-6.12");
        let series = folder.join("series");
        let text = fs::read_to_string(&series)
            .with_context(|| format!("the patch series {series:?} cannot be read"))?;
        let mut patches = Vec::new();
        for name in text.lines().map(str::trim) {
            if name.is_empty() || name.starts_with('#') {
                continue;
            }
            let path = folder.join(name);
            let text = fs::read_to_string(&path).with_context(|| {
                format!("the patch {path:?}, named in the series, cannot be read")
            })?;
            patches.push(Patch {
                path,
                name: name.to_owned(),
                text,
            });
        }
        let mut files = Files::new();
        for (from, to) in [
            ("guest-pv-linux", GUEST.to_owned()),
            ("hypercall-abi/src/abi", format!("{GUEST}/abi")),
        ] {
            for (path, content) in tree::read(&workspace.root.join(from))? {
                files.insert(Path::new(&to).join(path), content);
            }
        }
        Ok(Self { patches, files })
    }

    /// The same with only the first `count` patches, and no file beside them: the last one has these built.
    pub(crate) fn up_to(&self, count: usize) -> Self {
        Self {
            patches: self.patches[..count].to_vec(),
            files: Files::new(),
        }
    }

    /// The files beside the patches that checkpatch knows, relative to the kernel's tree.
    pub(crate) fn file_names(&self) -> impl Iterator<Item = &Path> {
        let prose = |path: &Path| path.extension().is_some_and(|kind| kind == "md");
        self.files
            .keys()
            .map(PathBuf::as_path)
            .filter(move |path| !prose(path))
    }

    /// Writes the files beside the patches into `folder`.
    pub(crate) fn lay_files(&self, folder: &Path) -> Result<()> {
        tree::lay_over(folder, &self.files)
    }

    /// Hash by name, for the manifest.
    pub(crate) fn hashes(&self) -> BTreeMap<String, String> {
        let mut hashes: BTreeMap<String, String> = self
            .patches
            .iter()
            .map(|patch| (patch.name.clone(), hash::bytes(patch.text.as_bytes())))
            .collect();
        if !self.files.is_empty() {
            hashes.insert(GUEST.to_owned(), tree::hash(&self.files));
        }
        hashes
    }

    /// Makes `tree` the source in `pristine` with this overlay, whatever overlay it had before.
    pub(crate) fn apply(&self, pristine: &Path, tree: &Path) -> Result<()> {
        let patched = self.patched(pristine, &tree.with_extension("patching"))?;
        let list = tree.join(LIST);
        let mut before: BTreeSet<PathBuf> = fs::read_to_string(&list)
            .unwrap_or_default()
            .lines()
            .map(PathBuf::from)
            .collect();
        let mut now = self.files.clone();
        now.extend(patched);
        if before.is_empty() && now.is_empty() {
            return Ok(());
        }
        let listed = |paths: &BTreeSet<PathBuf>| {
            let lines: Vec<_> = paths
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            lines.join("\n")
        };
        // First the list with both, so that an interrupted run can be mended by the next.
        let stale: Vec<PathBuf> = before
            .iter()
            .filter(|path| !now.contains_key(*path))
            .cloned()
            .collect();
        before.extend(now.keys().cloned());
        fs::write(&list, listed(&before))?;
        for path in stale {
            match fs::read(pristine.join(&path)) {
                Ok(content) => tree::lay_over(tree, &Files::from([(path, content)]))?,
                Err(_) => remove(&tree.join(path))?,
            }
        }
        tree::lay_over(tree, &now)?;
        fs::write(&list, listed(&now.keys().cloned().collect()))?;
        Ok(())
    }

    /// The files that the patches touch, patched, made in the folder `scratch`.
    fn patched(&self, pristine: &Path, scratch: &Path) -> Result<Files> {
        let mut result = Files::new();
        if self.patches.is_empty() {
            return Ok(result);
        }
        remove(scratch)?;
        fs::create_dir_all(scratch)?;
        let touched: BTreeSet<PathBuf> = self.patches.iter().flat_map(Patch::touches).collect();
        let mut original = Files::new();
        for path in &touched {
            if let Ok(content) = fs::read(pristine.join(path)) {
                original.insert(path.clone(), content);
            }
        }
        tree::lay_over(scratch, &original)?;
        for patch in &self.patches {
            // Without fuzz: a hunk that fits only nearly is a patch to be made anew.
            let mut command = Command::new("patch");
            command
                .args([
                    "-p1",
                    "--fuzz=0",
                    "--no-backup-if-mismatch",
                    "--batch",
                    "-d",
                ])
                .arg(scratch)
                .arg("-i")
                .arg(&patch.path);
            run::read(&mut command).with_context(|| {
                format!(
                    "{} does not apply; refresh it against this source",
                    patch.name
                )
            })?;
        }
        for path in touched {
            match fs::read(scratch.join(&path)) {
                Ok(content) => {
                    result.insert(path, content);
                }
                Err(_) if pristine.join(&path).exists() => {
                    bail!(
                        "the series removes {}, which is not supported",
                        path.display()
                    )
                }
                Err(_) => {}
            }
        }
        remove(scratch)?;
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str =
        "Words.\n---\n--- a/Kconfig\n+++ b/Kconfig\n@@ -1,2 +1,3 @@\n one\n+half\n two\n";
    const SECOND: &str = "--- /dev/null\n+++ b/new/file\n@@ -0,0 +1 @@\n+added\n";

    struct Place {
        folder: tempfile::TempDir,
        overlay: Overlay,
    }

    impl Place {
        /// A source of two files, a tree of hard links to it, and two patches.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            fs::create_dir(at("pristine")).unwrap();
            fs::create_dir(at("tree")).unwrap();
            for (name, text) in [("Kconfig", "one\ntwo\n"), ("Makefile", "all:\n")] {
                fs::write(at("pristine").join(name), text).unwrap();
                fs::hard_link(at("pristine").join(name), at("tree").join(name)).unwrap();
            }
            let patch = |name: &str, text: &str| {
                fs::write(at(name), text).unwrap();
                Patch {
                    path: at(name),
                    name: name.to_owned(),
                    text: text.to_owned(),
                }
            };
            let overlay = Overlay {
                patches: vec![patch("1.patch", FIRST), patch("2.patch", SECOND)],
                files: Files::from([(Path::new(GUEST).join("x.rs"), b"guest".to_vec())]),
            };
            Self { folder, overlay }
        }

        fn apply(&self, overlay: &Overlay) -> Result<()> {
            let folder = self.folder.path();
            overlay.apply(&folder.join("pristine"), &folder.join("tree"))
        }

        fn text(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.folder.path().join(name)).ok()
        }
    }

    #[test]
    fn a_patch_names_what_it_touches() {
        let place = Place::new();
        let touched = |index: usize| place.overlay.patches[index].touches();
        assert_eq!(touched(0), BTreeSet::from(["Kconfig".into()]));
        assert_eq!(touched(1), BTreeSet::from(["new/file".into()]));
    }

    #[test]
    fn the_tree_is_patched_and_the_source_is_not() {
        let place = Place::new();
        place.apply(&place.overlay).unwrap();
        assert_eq!(place.text("tree/Kconfig").unwrap(), "one\nhalf\ntwo\n");
        assert_eq!(place.text("tree/new/file").unwrap(), "added\n");
        assert_eq!(place.text("tree/arch/x86/paravane/x.rs").unwrap(), "guest");
        assert_eq!(place.text("pristine/Kconfig").unwrap(), "one\ntwo\n");
    }

    #[test]
    fn going_back_restores_what_was_patched() {
        let place = Place::new();
        place.apply(&place.overlay).unwrap();
        place.apply(&place.overlay.up_to(1)).unwrap();
        assert_eq!(place.text("tree/new/file"), None);
        assert_eq!(place.text("tree/arch/x86/paravane/x.rs"), None);
        assert_eq!(place.text("tree/Kconfig").unwrap(), "one\nhalf\ntwo\n");
        place.apply(&Overlay::empty()).unwrap();
        assert_eq!(place.text("tree/Kconfig").unwrap(), "one\ntwo\n");
        assert_eq!(place.text("tree/arch/x86/paravane/x.rs"), None);
    }

    #[test]
    fn applying_again_leaves_the_times() {
        let place = Place::new();
        let stamp = || {
            let path = place.folder.path().join("tree/Kconfig");
            fs::metadata(path).unwrap().modified().unwrap()
        };
        place.apply(&place.overlay).unwrap();
        let before = stamp();
        place.apply(&place.overlay).unwrap();
        assert_eq!(stamp(), before);
    }

    #[test]
    fn a_patch_that_does_not_apply_is_named() {
        let place = Place::new();
        let kconfig = place.folder.path().join("pristine/Kconfig");
        fs::write(kconfig, "something else\n").unwrap();
        let error = place.apply(&place.overlay).unwrap_err().to_string();
        assert!(error.contains("1.patch does not apply"), "{error}");
    }
}
