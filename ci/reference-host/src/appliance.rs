//! The appliance: L1's kernel and initramfs, and its emulator, made from Debian packages without installing anything.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cpio::newc;
use ruzstd::decoding::StreamingDecoder;
use sha2::{Digest, Sha256};

use crate::emulator::{Backport, Emulator};

/// Debian's name for the newest cloud kernel of the series.
const META_PACKAGE: &str = "linux-image-6.12-cloud-amd64";

/// What makes `/dev/kvm`, `/dev/net/tun`, `/dev/vhost-net` and `/dev/vhost-vsock`; what they depend on is found out.
const MODULES: [&str; 4] = ["kvm-amd", "tun", "vhost-net", "vhost-vsock"];

const BUSYBOX: &str = "/bin/busybox";
const INIT: &str = include_str!("init.sh");

/// Changed when the same inputs make a different appliance.
const RECIPE: &str = "7";

/// The reference host's kernel and initramfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appliance {
    /// The kernel: the ELF file, for QEMU starts that without the emulated unpacking.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// Debian's kernel package and its version.
    pub package: String,
    /// What emulates the machine.
    pub emulator: Emulator,
}

/// Why there is no appliance.
#[derive(Debug, thiserror::Error)]
pub enum ApplianceError {
    /// None was built yet.
    #[error("the reference host is not built: {} is missing; run `cargo ci reference-host`", path.display())]
    NotBuilt {
        /// The file that is missing.
        path: PathBuf,
    },
    /// There is no place for the cache.
    #[error("there is no place for the cache; set HOME or PARAVANE_CACHE")]
    NoCache,
    /// A tool of Debian's failed.
    #[error(
        "`{command}` failed ({status}); run `ci/setup`, and see that Debian's package archive can be reached:\n{errors}"
    )]
    Tool {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it printed.
        errors: String,
    },
    /// The metapackage does not name a kernel.
    #[error("Debian's package {META_PACKAGE} names no kernel; run `apt-get update`")]
    NoKernel,
    /// The kernel package lacks a file.
    #[error("{package} has no {what}")]
    Lacking {
        /// The package.
        package: String,
        /// What it lacks.
        what: String,
    },
    /// Busybox cannot run in an initramfs.
    #[error(
        "{BUSYBOX} is not linked statically; run `ci/setup`, or install Debian's busybox-static"
    )]
    DynamicBusybox,
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Appliance {
    /// The appliance that was built last.
    ///
    /// # Errors
    ///
    /// When none was built.
    pub fn find() -> Result<Self, ApplianceError> {
        Self::open(&cache()?.join("current"))
    }

    fn open(folder: &Path) -> Result<Self, ApplianceError> {
        let package = folder.join("package");
        // Where the link leads now: a build may change it during a run.
        let folder = &fs::canonicalize(folder).map_err(|_missing| ApplianceError::NotBuilt {
            path: folder.to_path_buf(),
        })?;
        let found = Self {
            kernel: folder.join("vmlinux"),
            initrd: folder.join("initrd"),
            package: fs::read_to_string(&package)
                .map_err(|_missing| ApplianceError::NotBuilt { path: package })?
                .trim()
                .into(),
            emulator: Emulator::of(folder),
        };
        for path in [&found.kernel, &found.initrd] {
            if !path.exists() {
                return Err(ApplianceError::NotBuilt { path: path.clone() });
            }
        }
        Ok(found)
    }
}

/// Where all of Paravane's tools keep what they have built: `PARAVANE_CACHE`, or `paravane` in the user's cache folder.
/// `None` where the environment names neither that nor a home.
#[must_use]
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("PARAVANE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("paravane")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/paravane")))
}

/// What the task `cargo ci {task}` has put into the cache under that name; the very file, also where the name is a link.
///
/// # Errors
///
/// That there is no cache, or that it is not built, and by which task it is; in words.
pub fn built(name: &str, task: &str) -> Result<PathBuf, String> {
    let cache =
        cache_folder().ok_or("there is no place for the cache; set HOME or PARAVANE_CACHE")?;
    let path = cache.join(name);
    path.canonicalize()
        .map_err(|_| format!("{} is not built; run `cargo ci {task}`", path.display()))
}

/// A program of Debian's package e2fsprogs, which is not in every user's `PATH`.
///
/// # Errors
///
/// That it is not there, in words.
pub fn e2fsprogs(name: &str) -> Result<PathBuf, String> {
    let paths = ["/sbin", "/usr/sbin"].map(|folder| Path::new(folder).join(name));
    let found = paths.into_iter().find(|path| path.exists());
    found.ok_or_else(|| format!("there is no {name}; `apt-get install e2fsprogs` (ci/setup does)"))
}

/// The cache's folder of appliances.
fn cache() -> Result<PathBuf, ApplianceError> {
    let cache = cache_folder().ok_or(ApplianceError::NoCache)?;
    Ok(cache.join("reference-host"))
}

/// Builds the appliance, unless the same one is there already, and makes it the current one. `progress` is told each step.
///
/// # Errors
///
/// When Debian's archive cannot be reached, a tool is missing or the disk is full.
pub fn build(progress: &dyn Fn(&str)) -> Result<Appliance, ApplianceError> {
    let cache = cache()?;
    fs::create_dir_all(&cache).map_err(at(&cache))?;
    // Two builders at once would download twice.
    let lock_path = cache.join("lock");
    let lock = File::create(&lock_path).map_err(at(&lock_path))?;
    lock.lock().map_err(at(&lock_path))?;

    progress("looking for Debian's newest 6.12 cloud kernel");
    let package = Package::newest()?;
    let backport = Backport::newest(&cache, progress);
    let emulator = backport.as_ref().map(Backport::id).unwrap_or_default();
    let busybox = fs::read(BUSYBOX).map_err(at(Path::new(BUSYBOX)))?;
    if busybox.windows(10).any(|bytes| bytes == b"/ld-linux-") {
        return Err(ApplianceError::DynamicBusybox);
    }
    let mut hash = Sha256::new();
    for input in [
        RECIPE.as_bytes(),
        package.hashed().as_bytes(),
        emulator.as_bytes(),
        INIT.as_bytes(),
        &busybox,
    ] {
        hash.update(Sha256::digest(input));
    }
    let hash: String = hash
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();

    let folder = cache.join(&hash);
    if Appliance::open(&folder).is_err() {
        let work = tempfile::Builder::new()
            .prefix("build-")
            .tempdir_in(&cache)
            .map_err(at(&cache))?;
        let unpacked = work.path().join("unpacked");
        package.fetch(work.path(), &[], &unpacked, progress)?;
        let made = work.path().join("made");
        fs::create_dir(&made).map_err(at(&made))?;
        if let Some(backport) = &backport {
            backport.unpack(work.path(), &made, progress)?;
        }
        progress("making the initramfs");
        let modules = modules(&package.name, &unpacked)?;
        let initrd = made.join("initrd");
        write_initrd(&initrd, &busybox, &modules).map_err(at(&initrd))?;
        let kernel = find(&unpacked.join("boot"), &|name| name.starts_with("vmlinuz-"))
            .ok_or_else(|| package.lacking("kernel"))?;
        progress("unpacking the kernel image");
        let image = fs::read(&kernel).map_err(at(&kernel))?;
        let elf = unpack_kernel(&image)
            .ok_or_else(|| package.lacking("kernel that is packed with zstd"))?;
        fs::write(made.join("vmlinux"), elf).map_err(at(&made))?;
        fs::write(made.join("package"), package.id()).map_err(at(&made))?;
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(at(&folder))?;
        }
        fs::rename(&made, &folder).map_err(at(&folder))?;
    }
    let current = cache.join("current");
    let next = cache.join("next");
    let _ = fs::remove_file(&next);
    symlink(&hash, &next).map_err(at(&next))?;
    fs::rename(&next, &current).map_err(at(&current))?;
    Appliance::open(&current)
}

/// A package of Debian's archive.
pub(crate) struct Package {
    pub(crate) name: String,
    version: String,
    sha256: String,
}

impl Package {
    fn newest() -> Result<Self, ApplianceError> {
        let depends = tool(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
        let name = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"))
            .ok_or(ApplianceError::NoKernel)?;
        Self::candidate(name, &[])
    }

    /// The newest version that apt knows of, with these options of its.
    pub(crate) fn candidate(name: &str, options: &[String]) -> Result<Self, ApplianceError> {
        let mut show = Command::new("apt-cache");
        show.args(options).args(["show", "--no-all-versions", name]);
        let record = tool(&mut show)?;
        let field = |key: &str| {
            let value = record
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
            value
                .map(String::from)
                .ok_or_else(|| ApplianceError::Lacking {
                    package: name.into(),
                    what: format!("{key} in apt's lists"),
                })
        };
        Ok(Self {
            name: name.into(),
            version: field("Version")?,
            sha256: field("SHA256")?,
        })
    }

    fn id(&self) -> String {
        format!("{} {}", self.name, self.version)
    }

    fn lacking(&self, what: impl Into<String>) -> ApplianceError {
        ApplianceError::Lacking {
            package: self.id(),
            what: what.into(),
        }
    }

    /// The package to the last bit.
    pub(crate) fn hashed(&self) -> String {
        format!("{} {}", self.id(), self.sha256)
    }

    /// Downloads into `work` with these options of apt's, and puts the package's files into `unpacked`.
    pub(crate) fn fetch(
        &self,
        work: &Path,
        options: &[String],
        unpacked: &Path,
        progress: &dyn Fn(&str),
    ) -> Result<(), ApplianceError> {
        progress(&format!("downloading {}", self.id()));
        let wanted = format!("{}={}", self.name, self.version);
        // Without its sandbox user, apt may write to a folder that is ours alone.
        tool(
            Command::new("apt-get")
                .args(options)
                .args(["-q", "-o", "APT::Sandbox::User=root", "download", &wanted])
                .current_dir(work),
        )?;
        let archive =
            find(work, &|name| name.ends_with(".deb")).ok_or_else(|| self.lacking("archive"))?;
        progress(&format!("unpacking {}", self.name));
        tool(
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(&archive)
                .arg(unpacked),
        )?;
        Ok(())
    }
}

/// A kernel module: its file's name and contents.
type Module = (String, Vec<u8>);

/// The modules to load, in the order to load them in.
fn modules(package: &str, unpacked: &Path) -> Result<Vec<Module>, ApplianceError> {
    let mut order: Vec<Module> = Vec::new();
    let mut wanted = VecDeque::from(MODULES.map(String::from));
    while let Some(name) = wanted.pop_front() {
        // File names have either `-` or `_`.
        let same = |file: &str| {
            let stem = file.split('.').next().unwrap_or_default();
            stem.replace('_', "-") == name.replace('_', "-") && file.contains(".ko")
        };
        let path = find(unpacked, &same).ok_or_else(|| ApplianceError::Lacking {
            package: package.into(),
            what: format!("module {name}"),
        })?;
        let bytes = match path.extension().and_then(OsStr::to_str) {
            Some("xz") => tool_bytes(Command::new(BUSYBOX).arg("xzcat").arg(&path))?,
            Some("gz") => tool_bytes(Command::new(BUSYBOX).arg("zcat").arg(&path))?,
            _ => fs::read(&path).map_err(at(&path))?,
        };
        wanted.extend(dependencies(&bytes));
        // Loaded before everything that asked for it.
        order.retain(|(known, _)| *known != name);
        order.insert(0, (name, bytes));
    }
    Ok(order)
}

/// What a module depends on: the field `depends` of its `.modinfo` section, names parted by commas.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(start) = module.windows(key.len()).position(|bytes| bytes == key) else {
        return Vec::new();
    };
    let value = module[start + key.len()..]
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value
        .split(',')
        .filter(|name| !name.is_empty())
        .map(String::from)
        .collect()
}

/// The ELF kernel in a bzImage. The setup header says where the packed kernel is, counted from the end of the real-mode
/// sectors ("The Linux/x86 Boot Protocol": `setup_sects`, `payload_offset`, `payload_length`).
fn unpack_kernel(image: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let setup_sectors = usize::from(*image.get(0x1f1)?);
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let packed = image.get(start..start.checked_add(word(0x24c)?)?)?;
    let mut elf = Vec::new();
    StreamingDecoder::new(packed)
        .ok()?
        .read_to_end(&mut elf)
        .ok()?;
    Some(elf)
}

fn write_initrd(path: &Path, busybox: &[u8], modules: &[Module]) -> io::Result<()> {
    let mut archive = io::BufWriter::new(File::create(path)?);
    for folder in [
        "bin",
        "dev",
        "lib",
        "lib/modules",
        "proc",
        "root",
        "sys",
        "tmp",
    ] {
        add(&mut archive, folder, 0o040_755, &[])?;
    }
    add(&mut archive, "init", 0o100_755, INIT.as_bytes())?;
    add(&mut archive, "bin/busybox", 0o100_755, busybox)?;
    let mut order = String::new();
    for (name, bytes) in modules {
        add(
            &mut archive,
            &format!("lib/modules/{name}.ko"),
            0o100_644,
            bytes,
        )?;
        order.push_str(&format!("{name}.ko\n"));
    }
    add(
        &mut archive,
        "lib/modules/order",
        0o100_644,
        order.as_bytes(),
    )?;
    newc::trailer(&mut archive)?.flush()
}

fn add(archive: &mut impl Write, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut file = newc::Builder::new(name)
        .mode(mode)
        .nlink(1)
        .write(archive, size);
    file.write_all(bytes)?;
    file.finish()?;
    Ok(())
}

/// The first file below `folder` whose name fits.
fn find(folder: &Path, fits: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let found = if is_folder {
            find(&path, fits)
        } else {
            fits(&entry.file_name().to_string_lossy()).then_some(path)
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

pub(crate) fn tool(command: &mut Command) -> Result<String, ApplianceError> {
    Ok(String::from_utf8_lossy(&tool_bytes(command)?).into_owned())
}

fn tool_bytes(command: &mut Command) -> Result<Vec<u8>, ApplianceError> {
    let failed = |command: &Command, status: String, errors: &[u8]| ApplianceError::Tool {
        command: format!("{command:?}"),
        status,
        errors: String::from_utf8_lossy(errors).trim().into(),
    };
    command.env("LC_ALL", "C").stdin(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => Err(failed(command, output.status.to_string(), &output.stderr)),
        Err(error) => Err(failed(command, error.to_string(), b"")),
    }
}

pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> ApplianceError {
    let path = path.to_path_buf();
    move |source| ApplianceError::File {
        path: path.clone(),
        source,
    }
}
