//! What a run is: the guest's profile, its kernel and its size.

mod facilities;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use paravane_abi::dev::DEV_MAX;
use paravane_abi::registry as reg;

use crate::device::ide::DISKS_MAX;
use crate::disk::DiskSpec;
use crate::driver_domain::channel;
use crate::lies::Lie;
use crate::memory::{MAX_MEMORY_MIB, MIN_MEMORY_MIB};
use crate::net::{Net, NetSpec};
use crate::port::PortSpec;
use crate::switcher::{self, Users};
use crate::virtio::mmio::{self, MmioBus};
use crate::virtio::poll::Poll;
pub use facilities::{FACILITIES, FacilitySet, slot};

/// The most vCPUs of one guest.
pub const MAX_VCPUS: u8 = 64;

/// How a guest is virtualized.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub enum Profile {
    /// Full virtualization: an unmodified kernel on a legacy PC, no paravirtual CPUID leaf at all.
    Full,
    /// An unmodified kernel that finds KVM's own paravirtual features: what clouds run.
    KvmPv,
    /// Paravirtualization: a patched kernel that finds Paravane.
    Para,
    /// The same without privilege: the patched kernel at CPL 3, behind the switcher.
    Direct,
}

impl Profile {
    /// The name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::KvmPv => "kvm-pv",
            Self::Para => "para",
            Self::Direct => "direct",
        }
    }

    /// Whether the guest has the legacy PC's devices (PIC, IOAPIC, PIT, UART, RTC, i8042).
    #[must_use]
    pub const fn has_legacy_devices(self) -> bool {
        !self.is_paravane()
    }

    /// Whether the guest finds Paravane.
    #[must_use]
    pub const fn is_paravane(self) -> bool {
        matches!(self, Self::Para | Self::Direct)
    }

    /// How many virtio devices the guest can have.
    const fn devices_max(self) -> usize {
        match self {
            Self::Full => 0,
            Self::KvmPv => mmio::DEVICES_MAX,
            Self::Para | Self::Direct => DEV_MAX,
        }
    }

    /// How many disks the guest's devices can show it.
    #[must_use]
    pub const fn disks_max(self) -> usize {
        match self {
            Self::Full => DISKS_MAX,
            // A place is left for a network.
            _ => self.devices_max() - 1,
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a guest's devices are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Io {
    /// In this process: a request goes from the guest to the VMM, and from there to the host's operating system.
    #[default]
    Hosted,
    /// In the host's kernel, as in a hypervisor that has its drivers: the network only, over a TAP device (vhost-net).
    Kernel,
    /// In another guest that owns them, as under a microkernel hypervisor: disks and network.
    DriverDomain,
}

/// How the kernel is entered.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Deserialize,
    serde::Serialize,
)]
pub enum Entry {
    /// The 64-bit entry of Linux's boot protocol: page tables and long mode are set up already.
    #[default]
    Linux64,
    /// The PVH entry of an ELF kernel: 32-bit protected mode, `hvm_start_info`.
    Pvh,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Config {
    /// How the guest is virtualized.
    pub profile: Profile,
    /// ELF `vmlinux` or `bzImage`.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// The user's part of the kernel command line; the profile's own comes before it.
    pub cmdline: String,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// The host allocates guest memory before the guest runs.
    pub prealloc: bool,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Each vCPU has a processor of the host for itself; only kvm-pv and para can be told.
    pub dedicated: bool,
    /// Facilities of a para guest; ignored otherwise.
    pub facilities: FacilitySet,
    /// How the kernel is entered.
    pub entry: Entry,
    /// The VMM carries out what KVM cannot emulate.
    pub complete: bool,
    /// Where users of a direct guest are.
    pub users: Users,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<DiskSpec>,
    /// The network that the guest is connected to.
    pub net: Option<NetSpec>,
    /// The same, where it is open already: it stays when the guest starts again.
    pub open_net: Option<Net>,
    /// Whether there is a source of random numbers.
    pub rng: bool,
    /// Whether there is a balloon: memory that the guest gives back when it is asked, or does not use.
    pub balloon: bool,
    /// The guest's address as a machine that has sockets to this host.
    pub vsock: Option<u32>,
    /// Streams between programs of the guest's and of this host's.
    pub ports: Vec<PortSpec>,
    /// Where the devices are served.
    pub io: Io,
    /// Whether threads look at virtio devices' queues by themselves.
    pub poll: Poll,
    /// Stop the guest after this long.
    pub watchdog: Option<Duration>,
    /// The seed of an awkward host, which takes all the liberties of the specification.
    pub awkward: Option<u64>,
    /// What a para guest is told that is not true.
    pub lies: Vec<&'static Lie>,
}

/// A run that makes no sense, found before anything is started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Too little or too much memory.
    #[error(
        "{mib} MiB of guest memory cannot be: use {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB (--memory)"
    )]
    Memory {
        /// What was asked for.
        mib: u64,
    },
    /// Too few or too many vCPUs.
    #[error("{vcpus} vCPUs cannot be: use 1 to {MAX_VCPUS} (--cpus)")]
    Vcpus {
        /// What was asked for.
        vcpus: u8,
    },
    /// A facility nobody has heard of.
    #[error("there is no facility `{name}`; --pv knows {known}")]
    UnknownFacility {
        /// What was asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// `--pv=-base`.
    #[error(
        "facility `base` cannot be switched off: without it there is no Paravane; use --guest full"
    )]
    MandatoryFacility,
    /// More processors than a direct guest can have.
    #[error(
        "{vcpus} vCPUs cannot be: a direct guest has 1 to {} (--cpus)",
        switcher::MAX_VCPUS
    )]
    DirectVcpus {
        /// What was asked for.
        vcpus: u8,
    },
    /// `--guest direct --pv=-smp` with several processors.
    #[error(
        "a direct guest starts its other processors by facility smp: give it that (--pv), or one vCPU (--cpus 1)"
    )]
    DirectWithoutSmp,
    /// `--guest direct --entry pvh`.
    #[error("a direct guest is entered in 64-bit mode, at CPL 3; use --entry linux64")]
    DirectEntry,
    /// `--no-user-isolation` of a guest whose kernel has privilege.
    #[error(
        "only a direct guest can do without the isolation of its users (--no-user-isolation): use --guest direct"
    )]
    UserIsolation,
    /// `--awkward` or `--lies` without a guest that would notice.
    #[error("an awkward host (--awkward, --lies) is awkward to calls: use --guest para")]
    Awkward,
    /// `--pv=-dev --disk`.
    #[error(
        "this guest finds its devices (disks, network and so on) by facility dev; leave it on (--pv), or give it none"
    )]
    NoDev,
    /// `--io kernel` for a guest without such a device.
    #[error(
        "--io kernel is for a virtio network device: use --guest kvm-pv or para with --net tap=NAME"
    )]
    NoKernelIo,
    /// `--io driver-domain` for a guest without such a device.
    #[error(
        "--io driver-domain is for virtio disks and networks: use --guest kvm-pv, para or direct with --disk FILE or --net user"
    )]
    NoDomainIo,
    /// A disk with a ring, served by what uses none.
    #[error(
        "aio=io_uring is for virtio disks that the VMM serves: use --guest kvm-pv, para or direct without --io driver-domain, or leave it out"
    )]
    NoUring,
    /// More memory than a driver domain can reach.
    #[error("a driver domain reaches {} MiB of its guest's memory; use no more (--memory)", channel::WINDOW_MAX >> 20)]
    DomainMemory,
    /// `--rng`, `--balloon`, `--vsock` or `--port` for a guest without virtio.
    #[error(
        "--rng, --balloon, --vsock and --port are virtio devices, and a full guest has none: use --guest kvm-pv, para or direct"
    )]
    NoVirtio,
    /// `--balloon` for a guest that gives memory back by facility mem.
    #[error(
        "facility mem is this guest's balloon: leave --balloon out, or the facility (--pv=-mem)"
    )]
    TwoBalloons,
    /// More devices than a guest has places for.
    #[error(
        "{devices} devices cannot be: this guest takes {most} (--disk, --net, --rng, --balloon, --vsock, --port)"
    )]
    TooManyDevices {
        /// What was asked for.
        devices: usize,
        /// Its places.
        most: usize,
    },
    /// More disks than a guest has places for.
    #[error("{disks} disks cannot be: a {profile} guest takes {most} (--disk)")]
    TooManyDisks {
        /// What was asked for.
        disks: usize,
        /// The guest.
        profile: Profile,
        /// Its places.
        most: usize,
    },
    /// A file that cannot be read.
    #[error("the {what} `{}` cannot be read: {reason}; {mend}", path.display())]
    File {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system says.
        reason: std::io::Error,
        /// What to do about it.
        mend: &'static str,
    },
    /// A file without content.
    #[error("the {what} `{}` is empty: its build was probably interrupted; build it again", path.display())]
    Empty {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
}

fn check_file(what: &'static str, path: &Path, mend: &'static str) -> Result<(), ConfigError> {
    let fail = |reason| ConfigError::File {
        what,
        path: path.to_owned(),
        reason,
        mend,
    };
    let file = std::fs::File::open(path).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    if meta.is_dir() {
        return Err(fail(std::io::ErrorKind::IsADirectory.into()));
    }
    if !meta.is_file() {
        return Err(fail(std::io::Error::other("it is no file")));
    }
    if meta.len() == 0 {
        return Err(ConfigError::Empty {
            what,
            path: path.to_owned(),
        });
    }
    Ok(())
}

impl Config {
    /// The run of a kernel with nothing else: one vCPU, 32 MiB, no device that is asked for, and no limit of time.
    #[must_use]
    pub fn of(profile: Profile, kernel: PathBuf) -> Self {
        Self {
            profile,
            kernel,
            initrd: None,
            cmdline: String::new(),
            memory_mib: 32,
            prealloc: false,
            vcpus: 1,
            dedicated: false,
            facilities: FacilitySet::default(),
            entry: Entry::Linux64,
            complete: false,
            users: Users::default(),
            disks: Vec::new(),
            net: None,
            open_net: None,
            rng: false,
            balloon: false,
            vsock: None,
            ports: Vec::new(),
            io: Io::default(),
            poll: Poll::default(),
            watchdog: None,
            awkward: None,
            lies: Vec::new(),
        }
    }

    /// Checks what can be checked without KVM.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(ConfigError::Memory {
                mib: self.memory_mib,
            });
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus { vcpus: self.vcpus });
        }
        if self.profile == Profile::Direct && self.vcpus > switcher::MAX_VCPUS {
            return Err(ConfigError::DirectVcpus { vcpus: self.vcpus });
        }
        if self.profile == Profile::Direct
            && self.vcpus > 1
            && !self.facilities.has(reg::FACILITY_SMP)
        {
            return Err(ConfigError::DirectWithoutSmp);
        }
        if self.profile == Profile::Direct && self.entry != Entry::Linux64 {
            return Err(ConfigError::DirectEntry);
        }
        if self.users != Users::Isolated && self.profile != Profile::Direct {
            return Err(ConfigError::UserIsolation);
        }
        let is_awkward = self.awkward.is_some() || !self.lies.is_empty();
        if is_awkward && self.profile != Profile::Para {
            return Err(ConfigError::Awkward);
        }
        let has_dev = self.facilities.has(reg::FACILITY_DEV);
        if self.virtio_devices() > 0 && self.profile.is_paravane() && !has_dev {
            return Err(ConfigError::NoDev);
        }
        let has_tap = matches!(self.net, Some(NetSpec::Tap { .. }));
        if self.io == Io::Kernel && (self.profile == Profile::Full || !has_tap) {
            return Err(ConfigError::NoKernelIo);
        }
        if self.io == Io::DriverDomain {
            let has_none = self.disks.is_empty() && self.net.is_none();
            if self.profile == Profile::Full || has_none {
                return Err(ConfigError::NoDomainIo);
            }
            if self.memory_mib > channel::WINDOW_MAX >> 20 {
                return Err(ConfigError::DomainMemory);
            }
        }
        let is_served = self.profile != Profile::Full && self.io != Io::DriverDomain;
        if !is_served && self.disks.iter().any(|disk| disk.uring.is_some()) {
            return Err(ConfigError::NoUring);
        }
        let others = self.other_devices();
        if others > 0 && self.profile == Profile::Full {
            return Err(ConfigError::NoVirtio);
        }
        let has_mem = self.profile.is_paravane() && self.facilities.has(reg::FACILITY_MEM);
        if self.balloon && has_mem {
            return Err(ConfigError::TwoBalloons);
        }
        let (devices, most) = (self.virtio_devices(), self.profile.devices_max());
        if others > 0 && devices > most {
            return Err(ConfigError::TooManyDevices { devices, most });
        }
        let (disks, most) = (self.disks.len(), self.profile.disks_max());
        if disks > most {
            let profile = self.profile;
            return Err(ConfigError::TooManyDisks {
                disks,
                profile,
                most,
            });
        }
        check_file(
            "kernel",
            &self.kernel,
            "build one with `cargo ci kernel full` or `cargo ci kernel para`",
        )?;
        if let Some(initrd) = &self.initrd {
            check_file("initrd", initrd, "build one with `cargo ci initramfs`")?;
        }
        Ok(())
    }

    /// The whole kernel command line: the profile's own part, then the user's. What follows `--` in the user's part goes to init.
    #[must_use]
    pub fn full_cmdline(&self) -> String {
        let ours = match self.profile {
            // No ACPI and no BIOS: the keyboard controller is this PC's way to restart.
            Profile::Full | Profile::KvmPv => "console=ttyS0 reboot=k panic=-1",
            Profile::Para | Profile::Direct if self.has_uart() => "console=ttyS0 panic=-1",
            Profile::Para | Profile::Direct => "console=hvc0 panic=-1",
        };
        let root = self.root();
        let devices = match self.profile {
            Profile::KvmPv => MmioBus::cmdline(self.virtio_devices()),
            _ => String::new(),
        };
        // Completion knows the standard form of extended state alone.
        let known = if self.complete {
            " clearcpuid=xsavec,xsaves"
        } else {
            ""
        };
        // Huge pages: left to itself, Linux reports only where it has 128 MiB free.
        let reports = if self.balloon {
            " page_reporting.page_reporting_order=9"
        } else {
            ""
        };
        format!("{ours}{root}{devices}{reports}{known} {}", self.cmdline)
            .trim_end()
            .to_owned()
    }

    /// How many virtio devices the guest has.
    fn virtio_devices(&self) -> usize {
        self.disks.len() + usize::from(self.net.is_some()) + self.other_devices()
    }

    /// Those of them that a PC has nothing alike for.
    fn other_devices(&self) -> usize {
        let others = [self.rng, self.balloon, self.vsock.is_some()];
        others.map(usize::from).iter().sum::<usize>() + self.ports.len()
    }

    /// The root file system, where nobody says another: the first disk, under the name that it has in this guest. An
    /// initrd mounts what it likes.
    fn root(&self) -> String {
        let is_root = |word: &str| word.starts_with("root=");
        let (None, Some(disk)) = (&self.initrd, self.disks.first()) else {
            return String::new();
        };
        if self.cmdline.split_whitespace().any(is_root) {
            return String::new();
        }
        let name = if self.profile == Profile::Full {
            "sda"
        } else {
            "vda"
        };
        let mode = if disk.read_only { "ro" } else { "rw" };
        format!(" root=/dev/{name} {mode}")
    }

    /// Whether the guest has a PCI bus: a full guest with something to put on it. Scanning a bus costs a boot exits.
    #[must_use]
    pub fn has_pci(&self) -> bool {
        self.profile == Profile::Full && (!self.disks.is_empty() || self.net.is_some())
    }

    /// Whether the guest has a UART: a legacy PC, and a para guest without the console facility,
    /// which would be mute otherwise.
    #[must_use]
    pub const fn has_uart(&self) -> bool {
        self.profile.has_legacy_devices() || !self.facilities.has(reg::FACILITY_CONSOLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_disk_is_the_root_unless_somebody_says_otherwise() {
        let mut config = Config {
            cmdline: "quiet".to_owned(),
            disks: vec!["a.img".parse().unwrap()],
            ..Config::of(Profile::Full, PathBuf::new())
        };
        assert!(config.full_cmdline().ends_with(" root=/dev/sda rw quiet"));
        config.profile = Profile::Para;
        config.disks[0].read_only = true;
        assert!(config.full_cmdline().ends_with(" root=/dev/vda ro quiet"));
        config.initrd = Some("guest.cpio".into());
        assert!(!config.full_cmdline().contains("root="));
        config.initrd = None;
        config.cmdline = "root=/dev/sdb".to_owned();
        assert!(config.full_cmdline().ends_with("panic=-1 root=/dev/sdb"));
    }
}
