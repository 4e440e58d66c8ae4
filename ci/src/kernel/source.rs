//! Where the kernel's source comes from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::tree::Inventory;
use crate::workspace::{Workspace, prune, remove};
use crate::{hash, run};

/// Debian's package of the source.
const PACKAGE: &str = "linux-source-6.12";
/// What that package installs.
const TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";
/// How many unpacked sources stay in the cache.
const KEEP: usize = 2;

/// What the manifest says about the source.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Origin {
    /// Debian package and version, or the folder's kernel version.
    pub(crate) name: String,
    /// Hash of the tarball, or of the folder's inventory.
    pub(crate) sha256: String,
}

/// A source that has been found, not yet unpacked.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) origin: Origin,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Tarball,
    Folder(PathBuf),
}

/// A source in the cache. Nothing writes to it.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) path: PathBuf,
    pub(crate) inventory: Inventory,
    /// Names the source in marks that build trees carry.
    pub(crate) name: String,
}

impl Source {
    /// Debian's tarball, or the folder that the user named.
    pub(crate) fn find(workspace: &Workspace, folder: Option<&Path>) -> Result<Self> {
        match folder {
            None => Self::debian(workspace),
            Some(folder) => Self::folder(folder),
        }
    }

    fn debian(workspace: &Workspace) -> Result<Self> {
        let Ok(meta) = fs::metadata(TARBALL) else {
            bail!("{TARBALL} is missing; ci/setup installs the package {PACKAGE}");
        };
        let version =
            run::read(Command::new("dpkg-query").args(["-W", "-f", "${Version}", PACKAGE]))
                .unwrap_or_else(|_| "of unknown version".to_owned());
        // Hashing the tarball takes a second; its size and time tell whether it is still the same.
        let stamp = format!("{} {:?}", meta.len(), meta.modified()?);
        let note = workspace.cache_dir("linux")?.join("tarball.sha256");
        let noted = fs::read_to_string(&note).unwrap_or_default();
        let sha256 = match noted.split_once('\n') {
            Some((sha256, of)) if of == stamp => sha256.to_owned(),
            _ => {
                let sha256 = hash::file(Path::new(TARBALL))?;
                fs::write(&note, format!("{sha256}\n{stamp}"))?;
                sha256
            }
        };
        Ok(Self {
            origin: Origin {
                name: format!("Debian {PACKAGE} {version}"),
                sha256,
            },
            place: Place::Tarball,
        })
    }

    fn folder(folder: &Path) -> Result<Self> {
        let folder = fs::canonicalize(folder)
            .with_context(|| format!("the kernel source {folder:?} cannot be opened"))?;
        let makefile = fs::read_to_string(folder.join("Makefile")).unwrap_or_default();
        let field = |name: &str| {
            let mut lines = makefile.lines();
            lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(" =")?.trim()))
        };
        let version = [field("VERSION"), field("PATCHLEVEL"), field("SUBLEVEL")];
        let [Some("6"), Some("12"), sublevel] = version else {
            bail!(
                "{} is not a Linux 6.12 source tree, for which the patch series is: its Makefile \
                 gives version {}",
                folder.display(),
                version.map(|part| part.unwrap_or("(none)")).join(".")
            );
        };
        if folder.join(".config").exists() || folder.join("vmlinux").exists() {
            bail!(
                "{} has been built in, so it is not the untouched source; run `make mrproper` \
                 there, or name a clean checkout",
                folder.display()
            );
        }
        eprintln!("hashing {}", folder.display());
        Ok(Self {
            origin: Origin {
                name: format!("Linux 6.12.{}", sublevel.unwrap_or_default()),
                sha256: Inventory::of(&folder)?.hash(),
            },
            place: Place::Folder(folder),
        })
    }

    /// The source in the cache, unpacked if need be, with the hash of every file in it.
    pub(crate) fn unpack(&self, workspace: &Workspace) -> Result<Unpacked> {
        let sources = workspace.cache_dir("linux")?;
        let name = hash::short(&self.origin.sha256).to_owned();
        let path = sources.join(&name);
        let inventory = sources.join(format!("{name}.inventory"));
        if !(inventory.is_file() && path.is_dir()) {
            eprintln!("unpacking {} (half a minute)", self.origin.name);
            prune(&sources, KEEP - 1, |name| !name.contains('.'))?;
            remove(&path)?;
            let fresh = sources.join(format!("{name}.new"));
            remove(&fresh)?;
            fs::create_dir_all(&fresh)?;
            let mut command = match &self.place {
                Place::Tarball => {
                    let mut command = Command::new("tar");
                    command.args(["-xf", TARBALL, "--strip-components=1", "-C"]);
                    command.arg(&fresh);
                    command
                }
                Place::Folder(folder) => {
                    let mut command = Command::new("cp");
                    command.args(["-a", "--reflink=auto"]);
                    command.arg(folder.join(".")).arg(&fresh);
                    command
                }
            };
            run::read(&mut command)?;
            remove(&fresh.join(".git"))?;
            let text = Inventory::of(&fresh)?.text();
            fs::rename(&fresh, &path)?;
            fs::write(&inventory, text)?;
        }
        Ok(Unpacked {
            path,
            inventory: Inventory::parse(&fs::read_to_string(&inventory)?)?,
            name,
        })
    }
}
