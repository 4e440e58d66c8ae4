//! Snapshots: a machine in a file, from which any number of runs go on.
//!
//! # How it works
//!
//! `paravane ctl SOCKET snapshot FILE` brings the machine to a stand and writes its memory and its state ([`mod@file`]); it goes on
//! afterwards. `paravane run --restore FILE` builds a machine of the same kind, maps the file's memory (privately: a page is
//! read at its first touch, and a write is the run's own), puts the state back, and starts.
//!
//! Each mechanism gives and takes its own part of the state, under its own name ([`Saved`]): nobody else knows what is in it. A
//! machine that has a part which cannot be saved now is not saved, and the part is named.
//!
//! Whoever goes on is a copy, since nobody knows who else does: the guest gets another generation (PV-STATE-2).
//!
//! # Whom it trusts
//!
//! Whoever can write the file decides what the guest does, and names the files that it uses, as on the command line. The VMM believes
//! nothing of it all the same: damage is found by checksums, each field is checked where it is put to use, and what does not fit this
//! VMM, this host or its files is refused before anything runs.

pub mod file;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

use kvm_bindings::{kvm_irqchip, kvm_pit_state2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::file::Extent;
use crate::config::{Config, Entry, FacilitySet, Profile};
use crate::disk::{DiskSpec, Format, QUEUES};
use crate::kvm::KvmError;
use crate::kvm::vcpu_state::VcpuState;
use crate::memory::{Memory, MemoryError};
use crate::net::NetSpec;
use crate::switcher::Users;

/// A part's state, in whatever form the part likes.
pub type State = serde_json::Value;

/// Why a part cannot be saved, or not be what a snapshot says.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PartError(pub String);

impl PartError {
    /// For this reason.
    pub fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// A part of a machine with a state of its own; as it stands here, one that has none. It is asked while the machine stands still.
pub trait Saved {
    /// Gives its state.
    ///
    /// # Errors
    ///
    /// Why it cannot be saved now.
    fn save(&self) -> Result<State, PartError> {
        Ok(State::Null)
    }

    /// Takes on a state, in a machine that has not run, whose memory and vCPUs have theirs already.
    ///
    /// # Errors
    ///
    /// Why this state cannot be.
    fn restore(&self, state: State) -> Result<(), PartError> {
        from_state(state)
    }

    /// The machine begins to run, or goes on: what works by itself begins here.
    fn go_on(&self) {}
}

/// The state of a structure.
///
/// # Errors
///
/// Never, for a structure of numbers and lists.
pub fn to_state(value: &impl Serialize) -> Result<State, PartError> {
    serde_json::to_value(value).map_err(|e| PartError(e.to_string()))
}

/// The structure of a state.
///
/// # Errors
///
/// What is wrong with it.
pub fn from_state<T: DeserializeOwned>(state: State) -> Result<T, PartError> {
    serde_json::from_value(state).map_err(|e| PartError(e.to_string()))
}

/// Why there is no snapshot, or none to go on from.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A machine that cannot be saved.
    #[error("the guest cannot be saved now: its {part} {reason}")]
    Cannot {
        /// What of it.
        part: String,
        /// Why.
        reason: PartError,
    },
    /// The file.
    #[error("its file has failed: {0}")]
    File(io::Error),
    /// Some other file.
    #[error("this is no snapshot, or one that was not finished")]
    NotOne,
    /// Another form.
    #[error(
        "it is of form {format}, and this VMM reads form {}: take it again",
        file::FORMAT
    )]
    Format {
        /// Of the file.
        format: u32,
    },
    /// Something is missing, or too much.
    #[error("it has {length} bytes and should have {end}: it was cut off, or is not whole yet")]
    Length {
        /// What it has.
        length: u64,
        /// What its header says.
        end: u64,
    },
    /// A wrong checksum.
    #[error("its {0} has been altered: a checksum is wrong")]
    Altered(&'static str),
    /// A state that is none.
    #[error("its state cannot be: {0}")]
    State(PartError),
    /// Something that is not what it was.
    #[error("its {what} was {was}, and here it is {is}; {mend}")]
    Differs {
        /// What.
        what: &'static str,
        /// When it was taken.
        was: String,
        /// Now.
        is: String,
        /// What to do about it.
        mend: &'static str,
    },
    /// A part whose state cannot be.
    #[error("the state of its {part} cannot be: {reason}")]
    Part {
        /// Which.
        part: String,
        /// Why.
        reason: PartError,
    },
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl From<io::Error> for SnapshotError {
    /// As part of the message, and not as a source, which would be told twice.
    fn from(reason: io::Error) -> Self {
        Self::File(reason)
    }
}

/// `--restore`: which file, and whether its memory is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreSpec {
    /// The snapshot.
    pub path: PathBuf,
    /// Its memory's checksums are left alone, and so is what of it the guest does not touch.
    pub unchecked: bool,
}

impl FromStr for RestoreSpec {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, unchecked) = match text.strip_suffix(",unchecked") {
            Some(path) => (path, true),
            None => (text, false),
        };
        if path.is_empty() {
            return Err("a snapshot is a file: use --restore FILE, or --restore FILE,unchecked");
        }
        let path = path.into();
        Ok(Self { path, unchecked })
    }
}

/// A file that a guest's life hangs on: it must be the one that it was. Of a block device, its length and its time say nothing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Named {
    path: PathBuf,
    bytes: u64,
    /// When it was last written to, since 1970.
    modified: Duration,
}

impl Named {
    /// The file as it is now.
    pub(crate) fn look(path: &Path) -> io::Result<Self> {
        // Not opened: a VMM that is confined may not.
        let metadata = path.metadata()?;
        let modified = metadata.modified()?;
        Ok(Self {
            path: std::path::absolute(path)?,
            bytes: metadata.len(),
            modified: modified.duration_since(UNIX_EPOCH).unwrap_or_default(),
        })
    }

    /// Which file to use: this one, if nobody has written to it, or another one that somebody gives for it.
    fn find(
        &self,
        given: Option<&Path>,
        what: &'static str,
        mend: &'static str,
    ) -> Result<PathBuf, SnapshotError> {
        let path = given.unwrap_or(&self.path);
        let differs = |was: String, is: String| SnapshotError::Differs {
            what,
            was,
            is,
            mend,
        };
        let name = path.display();
        let now = Self::look(path).map_err(|e| {
            let was = format!("`{}`", self.path.display());
            differs(was, format!("not to be had: `{name}`: {e}"))
        })?;
        if now.bytes != self.bytes {
            let was = format!("{} bytes long", self.bytes);
            return Err(differs(was, format!("`{name}` of {} bytes", now.bytes)));
        }
        if given.is_none() && now.modified != self.modified {
            let was = format!("`{name}` as it was then");
            return Err(differs(was, "written to since".to_owned()));
        }
        Ok(path.to_owned())
    }
}

/// What a restored run is given instead of what the snapshot says.
#[derive(Clone, Debug, Default)]
pub struct Instead {
    /// The kernel's file, for symbols and restarts.
    pub kernel: Option<PathBuf>,
    /// Disks, all of them.
    pub disks: Vec<DiskSpec>,
    /// The network.
    pub net: Option<NetSpec>,
}

/// A disk.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SavedDisk {
    file: Named,
    read_only: bool,
    #[serde(default)]
    format: Format,
    queues: u8,
}

/// The run that a machine is of.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedConfig {
    guest: Profile,
    memory_mib: u64,
    vcpus: u8,
    dedicated: bool,
    users: Users,
    facilities: String,
    kernel: Named,
    initrd: Option<PathBuf>,
    cmdline: String,
    entry: Entry,
    disks: Vec<SavedDisk>,
    net: Option<String>,
    rng: bool,
    balloon: bool,
}

impl SavedConfig {
    /// That of a run that stands still.
    pub(crate) fn of(config: &Config) -> Result<Self, SnapshotError> {
        // All are named, so that a new one is thought of.
        let Config {
            profile,
            kernel,
            initrd,
            cmdline,
            memory_mib,
            prealloc: _,
            vcpus,
            dedicated,
            users,
            complete,
            facilities,
            entry,
            disks,
            net,
            open_net: _,
            rng,
            balloon,
            vsock,
            ports,
            io: _,
            poll: _,
            watchdog: _,
            awkward: _,
            lies: _,
        } = config;
        // What completion has changed in the guest's kernel is not in a snapshot. Sockets are refused even where no driver has
        // taken them: the copy would have a device less.
        for (is_so, part, why) in [
            (
                *complete,
                "kernel",
                "has instructions that the VMM completes (--complete)",
            ),
            (
                !ports.is_empty(),
                "port",
                "is connected to a program of this host (--port)",
            ),
            (
                vsock.is_some(),
                "vsock",
                "is served by the host's kernel (--vsock)",
            ),
        ] {
            if is_so {
                return Err(SnapshotError::Cannot {
                    part: part.to_owned(),
                    reason: PartError::because(why),
                });
            }
        }
        let look = |part: &str, path: &Path| {
            let gone = |e| PartError(format!("is not there any more: {e}"));
            Named::look(path).map_err(|e| SnapshotError::Cannot {
                part: part.to_owned(),
                reason: gone(e),
            })
        };
        let disk = |spec: &DiskSpec| {
            if spec.format == Format::Qcow2 && !spec.read_only {
                return Err(SnapshotError::Cannot {
                    part: "disk".to_owned(),
                    reason: PartError::because(
                        "is a qcow2 image, of which a part is in this process; `qemu-img convert -O raw` makes a raw one",
                    ),
                });
            }
            Ok(SavedDisk {
                file: look("disk", &spec.path)?,
                read_only: spec.read_only,
                format: spec.format,
                queues: spec.queues,
            })
        };
        let disks = disks.iter().map(disk);
        Ok(Self {
            guest: *profile,
            memory_mib: *memory_mib,
            vcpus: *vcpus,
            dedicated: *dedicated,
            users: *users,
            facilities: facilities.to_string(),
            kernel: look("kernel", kernel)?,
            initrd: initrd.as_ref().map(std::path::absolute).transpose()?,
            cmdline: cmdline.clone(),
            entry: *entry,
            disks: disks.collect::<Result<_, SnapshotError>>()?,
            net: net.as_ref().map(ToString::to_string),
            rng: *rng,
            balloon: *balloon,
        })
    }

    /// The run that goes on from it.
    fn config(&self, instead: &Instead) -> Result<Config, SnapshotError> {
        let state = |reason: String| SnapshotError::State(PartError(reason));
        let kernel = self.kernel.find(
            instead.kernel.as_deref(),
            "guest's kernel",
            "say where it is (--kernel), or take the snapshot again",
        )?;
        let disks_mend = "give a copy of each disk that was made when the snapshot was (--disk)";
        if !instead.disks.is_empty() && instead.disks.len() != self.disks.len() {
            return Err(SnapshotError::Differs {
                what: "number of disks",
                was: self.disks.len().to_string(),
                is: instead.disks.len().to_string(),
                mend: disks_mend,
            });
        }
        let mut disks = Vec::new();
        for (index, disk) in self.disks.iter().enumerate() {
            let given = instead.disks.get(index);
            let path = given.map(|spec| &*spec.path);
            let path = disk.file.find(path, "disk", disks_mend)?;
            let read_only = given.map_or(disk.read_only, |spec| spec.read_only);
            if read_only != disk.read_only {
                let text = |read_only| if read_only { "read-only" } else { "writable" }.to_owned();
                return Err(SnapshotError::Differs {
                    what: "disk",
                    was: text(disk.read_only),
                    is: text(read_only),
                    mend: disks_mend,
                });
            }
            let faults = given.and_then(|spec| spec.faults.clone());
            let format = given.map_or(disk.format, |spec| spec.format);
            if !QUEUES.contains(&disk.queues) {
                return Err(state(format!("a disk has no {} queues", disk.queues)));
            }
            disks.push(DiskSpec {
                path,
                read_only,
                format,
                faults,
                queues: disk.queues,
                uring: given.and_then(|spec| spec.uring.clone()),
            });
        }
        let net = match (&self.net, &instead.net) {
            (None, Some(_)) => {
                return Err(SnapshotError::Differs {
                    what: "network card",
                    was: "missing".to_owned(),
                    is: "wanted".to_owned(),
                    mend: "leave --net out",
                });
            }
            (None, None) => None,
            (Some(_), Some(given)) => Some(given.clone()),
            (Some(text), None) => Some(text.parse().map_err(|e| state(format!("{e}")))?),
        };
        let config = Config {
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            dedicated: self.dedicated,
            users: self.users,
            facilities: FacilitySet::parse(&self.facilities).map_err(|e| state(e.to_string()))?,
            cmdline: self.cmdline.clone(),
            entry: self.entry,
            disks,
            net,
            rng: self.rng,
            balloon: self.balloon,
            ..Config::of(self.guest, kernel)
        };
        config.validate().map_err(|e| state(e.to_string()))?;
        // Only a restart wants it.
        let initrd = self.initrd.clone();
        Ok(Config { initrd, ..config })
    }
}

/// The interrupt controllers and the timer of a PC, which are in KVM.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Chips {
    pub(crate) irqchips: [kvm_irqchip; 3],
    pub(crate) pit: kvm_pit_state2,
}

/// All of a machine but its memory.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Content {
    /// The VMM's version.
    pub(crate) vmm: String,
    pub(crate) config: SavedConfig,
    /// What CPUID says on the first vCPU: function, index, flags and four registers.
    pub(crate) cpuid: Vec<[u32; 7]>,
    pub(crate) tsc_khz: u32,
    /// KVM's clock, nanoseconds.
    pub(crate) clock: u64,
    pub(crate) chips: Option<Chips>,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) parts: BTreeMap<String, State>,
    pub(crate) memory: Vec<Extent>,
}

/// A snapshot that has been read and checked.
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    config: Config,
    pub(crate) content: Content,
}

impl Snapshot {
    /// Reads the file, and checks what can be checked without KVM.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]: what is wrong with it.
    pub fn open(spec: &RestoreSpec, instead: &Instead) -> Result<Self, SnapshotError> {
        let file = File::open(&spec.path)?;
        let (bytes, memory_bytes) = file::read_state(&file)?;
        let content = read(&bytes, memory_bytes)?;
        if !spec.unchecked {
            file::check_memory(&file, memory_bytes, &content.memory)?;
        }
        let config = content.config.config(instead)?;
        Ok(Self {
            file,
            config,
            content,
        })
    }

    /// The run that goes on.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its memory: mapped, and read where somebody touches it.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Map`].
    pub fn memory(&self) -> Result<Memory, MemoryError> {
        Memory::of_file(self.config.memory_mib, &self.file, file::MEMORY_AT)
    }
}

/// The content of a state, as far as it can be checked by itself; memory has so many bytes.
fn read(state: &[u8], memory_bytes: u64) -> Result<Content, SnapshotError> {
    let wrong = |reason: String| SnapshotError::State(PartError(reason));
    // The version comes first, since another one's state may be anything else.
    #[derive(Deserialize)]
    struct Version {
        vmm: String,
    }
    let version: Version = serde_json::from_slice(state).map_err(|e| wrong(e.to_string()))?;
    let here = env!("CARGO_PKG_VERSION");
    if version.vmm != here {
        return Err(SnapshotError::Differs {
            what: "VMM's version",
            was: version.vmm,
            is: here.to_owned(),
            mend: "take it again, or go on with the VMM that took it",
        });
    }
    let content: Content = serde_json::from_slice(state).map_err(|e| wrong(e.to_string()))?;
    let config = &content.config;
    if config.memory_mib.checked_mul(1 << 20) != Some(memory_bytes) {
        return Err(wrong(format!(
            "it is of {} MiB of memory, and has {memory_bytes} bytes",
            config.memory_mib
        )));
    }
    if content.vcpus.len() != usize::from(config.vcpus) {
        return Err(wrong("not all vCPUs are there".to_owned()));
    }
    if content.chips.is_some() != config.guest.has_legacy_devices() {
        return Err(wrong(
            "its interrupt controllers are another guest's".to_owned(),
        ));
    }
    Ok(content)
}

/// Whether these bytes are a state; for a fuzzer.
///
/// # Errors
///
/// [`SnapshotError`].
pub fn check(state: &[u8], memory_bytes: u64) -> Result<(), SnapshotError> {
    read(state, memory_bytes).map(drop)
}

#[cfg(test)]
mod tests;
