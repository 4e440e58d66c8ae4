//! Where things are: the repository, and the cache.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The repository and the cache.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The repository's root.
    pub(crate) root: PathBuf,
    /// The cache's root.
    pub(crate) cache: PathBuf,
}

impl Workspace {
    /// Finds the repository that this program was built from, and the cache.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the task crate is not in a workspace")?
            .to_path_buf();
        if !root.join("hypercall-abi/src/abi").is_dir() {
            bail!(
                "{} is not the repository any more; start from its folder with `cargo ci`",
                root.display()
            );
        }
        Ok(Self {
            root,
            cache: cache_root()?,
        })
    }

    /// A folder of the cache, created if need be.
    pub(crate) fn cache_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.cache.join(name);
        fs::create_dir_all(&path).with_context(|| {
            format!(
                "the cache folder {} cannot be created; set PARAVANE_CACHE to one that can",
                path.display()
            )
        })?;
        Ok(path)
    }

    /// Takes a lock for as long as the returned file lives; waits while another process has it.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let path = self.cache_dir("lock")?.join(name);
        let file = File::create(&path).with_context(|| format!("cannot create {path:?}"))?;
        if file.try_lock().is_err() {
            eprintln!(
                "waiting for another `cargo ci` that holds {}",
                path.display()
            );
            file.lock()
                .with_context(|| format!("cannot lock {path:?}"))?;
        }
        Ok(file)
    }
}

fn cache_root() -> Result<PathBuf> {
    let Some(path) = paravane_reference_host::cache_folder() else {
        bail!("neither PARAVANE_CACHE nor HOME is set, so there is no place for the cache");
    };
    std::path::absolute(&path).with_context(|| format!("cannot resolve {path:?}"))
}

/// Points the symlink `link` at `target`, a name in the same folder, atomically.
pub(crate) fn relink(link: &Path, target: &str) -> Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == Path::new(target)) {
        return Ok(());
    }
    let fresh = link.with_extension(format!("new-{}", std::process::id()));
    remove(&fresh)?;
    symlink(target, &fresh).with_context(|| format!("cannot create {fresh:?}"))?;
    fs::rename(&fresh, link).with_context(|| format!("cannot replace {link:?}"))
}

/// Removes a file, symlink or whole folder; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    result.with_context(|| format!("cannot remove {path:?}"))
}

/// Keeps the `keep` newest of the entries of `folder` that `belongs` chooses, and those that a
/// symlink in it points at.
pub(crate) fn prune(folder: &Path, keep: usize, belongs: impl Fn(&str) -> bool) -> Result<()> {
    let mut linked = Vec::new();
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {folder:?}"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Ok(target) = fs::read_link(entry.path()) {
            linked.push(target);
        } else if belongs(&name) {
            found.push((entry.metadata()?.modified()?, name));
        }
    }
    found.sort();
    found.reverse();
    for (_, name) in found.into_iter().skip(keep) {
        if !linked.iter().any(|target| target == Path::new(&name)) {
            remove(&folder.join(name))?;
        }
    }
    Ok(())
}
