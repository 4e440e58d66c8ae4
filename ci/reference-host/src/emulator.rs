//! The emulator: a QEMU that does not lose wake-ups, from Debian's backports, unpacked without installing anything.
//!
//! # Why not the installed one
//!
//! QEMU before 9.1 does not load the interrupt shadow at VMRUN (its commit 1a150d331d9b). A guest whose processor is taken away
//! between STI and HLT, which happens to one boot in some hundreds, then takes the interrupt that it was to wait for
//! before it waits, and sleeps until its next timer, or for good. Debian 12 has 7.2, and a newer one in its backports.
//! What that needs is installed with Debian's own; a machine that does not reach the backports uses the installed one, and is told.
//! Of its own faults, two are taken out of the unpacked one ([`mend`](crate::mend)).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::appliance::{ApplianceError, Package, at, tool};
use crate::mend::mend;

/// What is installed.
pub(crate) const INSTALLED: &str = "qemu-system-x86_64";

/// In an appliance's folder: the files of the emulator's packages, where it is not the installed one.
const FOLDER: &str = "emulator";

/// The emulator, its devices' code, and its BIOS.
const PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

/// The first version without the fault.
const FIXED: (u32, u32) = (9, 1);

/// A QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emulator {
    /// The program.
    pub program: PathBuf,
    /// Where it looks for its data, unless where it was built for.
    pub data: Vec<PathBuf>,
}

impl Emulator {
    /// That of the appliance in `folder`.
    pub(crate) fn of(folder: &Path) -> Self {
        let root = folder.join(FOLDER).join("usr");
        let program = root.join("bin").join(INSTALLED);
        if !program.exists() {
            return Self {
                program: INSTALLED.into(),
                data: Vec::new(),
            };
        }
        let data = ["qemu", "seabios"].map(|name| root.join("share").join(name));
        Self {
            program,
            data: data.into(),
        }
    }

    /// Whether it starts here.
    fn starts(&self) -> Result<(), ApplianceError> {
        tool(Command::new(&self.program).arg("--version")).map(drop)
    }
}

/// The packages of Debian's backports.
pub(crate) struct Backport {
    packages: Vec<Package>,
    options: Vec<String>,
}

impl Backport {
    /// The newest one; `None`: the installed one is good, or the better one cannot be had, and `progress` is told so.
    pub(crate) fn newest(cache: &Path, progress: &dyn Fn(&str)) -> Option<Self> {
        if is_good() {
            return None;
        }
        progress("looking for a newer QEMU in Debian's backports");
        Self::find(&cache.join("backports"))
            .inspect_err(|error| {
                progress(&format!(
                    "the installed QEMU is used, under which a guest sleeps for good now and then: {error}"
                ));
            })
            .ok()
    }

    /// The archive's lists are apt's own, in `folder`; they are fetched once a day, and where that fails the old ones are good.
    fn find(folder: &Path) -> Result<Self, ApplianceError> {
        let lists = folder.join("lists");
        let sources = folder.join("sources.list");
        let cached = |what: &str| folder.join(what).display().to_string();
        let options: Vec<String> = [
            format!("Dir::Etc::SourceList={}", sources.display()),
            "Dir::Etc::SourceParts=/dev/null".into(),
            format!("Dir::State::Lists={}", lists.display()),
            format!("Dir::Cache::pkgcache={}", cached("packages.bin")),
            format!("Dir::Cache::srcpkgcache={}", cached("sources.bin")),
            format!("Dir::Cache::Archives={}", cached("archives")),
            // Without its sandbox user, apt may write to a folder that is ours alone.
            "APT::Sandbox::User=root".into(),
            "Acquire::Retries=2".into(),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect();
        let listed = |options: &[String]| {
            let packages = PACKAGES.iter();
            let packages = packages.map(|name| Package::candidate(name, options));
            packages.collect::<Result<Vec<_>, _>>()
        };
        let mut packages = listed(&options);
        if packages.is_err() || !is_of_today(&sources) {
            fs::create_dir_all(&lists).map_err(at(&lists))?;
            fs::write(&sources, source()?).map_err(at(&sources))?;
            let mut update = Command::new("apt-get");
            update
                .args(&options)
                .args(["-q", "update", "--error-on=any"]);
            packages = match (tool(&mut update), listed(&options)) {
                (Err(error), Err(_)) => Err(error),
                (_, packages) => packages,
            };
        }
        let packages = packages?;
        Ok(Self { packages, options })
    }

    /// What says which it is.
    pub(crate) fn id(&self) -> String {
        let ids: Vec<String> = self.packages.iter().map(Package::hashed).collect();
        ids.join(", ")
    }

    /// Puts it into the appliance in `made`.
    pub(crate) fn unpack(
        &self,
        work: &Path,
        made: &Path,
        progress: &dyn Fn(&str),
    ) -> Result<(), ApplianceError> {
        for package in &self.packages {
            let folder = work.join(&package.name);
            fs::create_dir(&folder).map_err(at(&folder))?;
            package.fetch(&folder, &self.options, &made.join(FOLDER), progress)?;
        }
        let emulator = Emulator::of(made);
        for fault in mend(&emulator.program)? {
            progress(&format!("this QEMU is not mended: it {fault}"));
        }
        emulator.starts()
    }
}

/// Whether the file was written within a day.
fn is_of_today(path: &Path) -> bool {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let written = fs::metadata(path).and_then(|file| file.modified());
    written.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < DAY))
}

/// Whether the installed one is new enough.
fn is_good() -> bool {
    let version = tool(Command::new(INSTALLED).arg("--version")).unwrap_or_default();
    let words = version.split_whitespace();
    let version = words.skip_while(|word| *word != "version").nth(1);
    let mut numbers = version.unwrap_or_default().split('.');
    let mut number = || numbers.next()?.parse().ok();
    number().zip(number()) >= Some(FIXED)
}

/// Apt's description of the backports, on the mirror that Debian's own packages come from.
fn source() -> Result<String, ApplianceError> {
    let release = Path::new("/etc/os-release");
    let text = fs::read_to_string(release).map_err(at(release))?;
    let codename = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.unwrap_or("bookworm");
    let mirrors = tool(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Component: main",
        &format!("Codename: {codename}"),
    ]))?;
    let mirror = mirrors.lines().next();
    let mirror = mirror.unwrap_or("http://deb.debian.org/debian/");
    let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
    Ok(format!(
        "deb [signed-by={key}] {mirror} {codename}-backports main\n"
    ))
}
