//! Task `initramfs`: what both guests run in user space.
//!
//! Our init, Debian's static busybox, and the para kernel's modules where it has been built. One
//! archive serves all profiles, so that nothing but the kernel differs between two arms.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::kernel::MODULES;
use crate::workspace::{Workspace, prune, relink};
use crate::{demo, hash, run};

/// Debian's package `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";
/// How many archives stay in the cache.
const KEEP: usize = 4;

/// Builds the archive, or finds it in the cache; returns its path.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let _lock = workspace.lock("initramfs")?;
    let init = read(&build_init(workspace)?)?;
    let mut archive = Archive::guest()?;
    archive.add("init", ModeFileType::Regular, 0o755, &init)?;
    for name in MODULES {
        if let Ok(module) = fs::read(workspace.cache.join("kernel/para").join(name)) {
            let path = format!("lib/modules/{name}");
            archive.add(&path, ModeFileType::Regular, 0o644, &module)?;
        }
    }
    let bytes = archive.finish()?;

    let folder = workspace.cache_dir("initramfs")?;
    let name = format!("{}.cpio", hash::short(&hash::bytes(&bytes)));
    let finished = folder.join(&name);
    if !finished.is_file() {
        let fresh = finished.with_extension("new");
        fs::write(&fresh, &bytes).with_context(|| format!("cannot write {fresh:?}"))?;
        fs::rename(&fresh, &finished)?;
    }
    relink(&folder.join("guest.cpio"), &name)?;
    prune(&folder, KEEP, |name| name.ends_with(".cpio"))?;
    Ok(finished)
}

/// Builds our init with cargo, stripped; returns the program's path.
fn build_init(workspace: &Workspace) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command
        .current_dir(&workspace.root)
        .args(["build", "--release", "--package", "paravane-init"])
        .args([
            "--config",
            "profile.release.package.paravane-init.strip='symbols'",
        ])
        .arg("--message-format=json-render-diagnostics");
    demo::program_of(&run::read(&mut command)?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {path:?}"))
}

/// A `newc` archive whose bytes depend on its content only: no times, no owners.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// What every guest has: folders, the console's node, busybox.
    pub(crate) fn guest() -> Result<Self> {
        let Ok(busybox) = fs::read(BUSYBOX) else {
            bail!("{BUSYBOX} is missing; ci/setup installs the package busybox-static");
        };
        let mut archive = Self::default();
        for folder in [
            "bin",
            "dev",
            "lib",
            "lib/modules",
            "mnt",
            "proc",
            "root",
            "run",
            "sys",
            "tmp",
        ] {
            archive.add(folder, ModeFileType::Directory, 0o755, b"")?;
        }
        archive.add_console()?;
        archive.add("bin/busybox", ModeFileType::Regular, 0o755, &busybox)?;
        Ok(archive)
    }

    fn entry(&mut self, name: &str, kind: ModeFileType, mode: u32) -> Builder {
        self.entries += 1;
        Builder::new(name)
            .ino(self.entries)
            .nlink(1)
            .mode(mode)
            .set_mode_file_type(kind)
    }

    pub(crate) fn add(
        &mut self,
        name: &str,
        kind: ModeFileType,
        mode: u32,
        content: &[u8],
    ) -> Result<()> {
        let size = u32::try_from(content.len())
            .with_context(|| format!("{name} is too big for an initramfs"))?;
        let mut writer = self.entry(name, kind, mode).write(&mut self.bytes, size);
        std::io::Write::write_all(&mut writer, content)?;
        writer.finish()?;
        Ok(())
    }

    /// The device node that the kernel opens before init runs.
    fn add_console(&mut self) -> Result<()> {
        let entry = self.entry("dev/console", ModeFileType::Char, 0o600);
        entry
            .rdev_major(5)
            .rdev_minor(1)
            .write(&mut self.bytes, 0)
            .finish()?;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        trailer(&mut self.bytes)?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::io::Read as _;

    #[test]
    fn an_archive_reads_back() {
        let mut archive = Archive::default();
        archive
            .add("bin", ModeFileType::Directory, 0o755, b"")
            .unwrap();
        archive
            .add("bin/odd", ModeFileType::Regular, 0o755, b"12345")
            .unwrap();
        archive.add_console().unwrap();
        let bytes = archive.finish().unwrap();

        let reader = Reader::new(bytes.as_slice()).unwrap();
        assert_eq!(
            (reader.entry().name(), reader.entry().mode()),
            ("bin", 0o040_755)
        );
        let mut reader = Reader::new(reader.finish().unwrap()).unwrap();
        assert_eq!(
            (reader.entry().name(), reader.entry().mode()),
            ("bin/odd", 0o100_755)
        );
        let mut content = String::new();
        reader.read_to_string(&mut content).unwrap();
        assert_eq!(content, "12345");
        let reader = Reader::new(reader.finish().unwrap()).unwrap();
        let console = reader.entry();
        assert_eq!((console.name(), console.mode()), ("dev/console", 0o020_600));
        assert_eq!((console.rdev_major(), console.rdev_minor()), (5, 1));
        assert!(
            Reader::new(reader.finish().unwrap())
                .unwrap()
                .entry()
                .is_trailer()
        );
    }
}
