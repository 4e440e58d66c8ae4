//! What lies in memory, and in the registers, before a guest's first instruction.
//!
//! A kernel is an ELF `vmlinux` or a `bzImage`; it is entered through Linux's 64-bit boot protocol
//! (Documentation/arch/x86/boot.rst, section 1.16) or, ELF only, through PVH.

pub mod image;
pub mod mptable;
pub mod params;
pub mod pvh;
pub mod regs;

use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::config::{Config, Entry, Profile};
use crate::device::ne2000;
use crate::device::pci::Slot;
use image::Image;

use crate::memory::{self, Memory, MemoryError};
use crate::switcher;
use crate::switcher::area::LAYOUT;

/// Why a kernel could not be put into memory.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be read.
    #[error("`{}` cannot be read: {reason}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// Neither ELF nor bzImage.
    #[error(
        "`{}` is not a kernel that can be booted: it begins like neither an x86-64 ELF file (`vmlinux`) nor a bzImage",
        path.display()
    )]
    Format {
        /// Which file.
        path: PathBuf,
    },
    /// The loader refused the file.
    #[error(
        "the kernel `{}` cannot be loaded into {memory_mib} MiB of guest memory: {reason}; the file may be cut short, or the guest may need more memory (--memory)",
        path.display()
    )]
    Load {
        /// Which file.
        path: PathBuf,
        /// Guest memory, MiB.
        memory_mib: u64,
        /// What the loader says.
        reason: String,
    },
    /// Kernel and initrd do not fit together.
    #[error(
        "{memory_mib} MiB of guest memory are too little for the kernel (which ends at {kernel_end:#x}) and an initrd of {initrd_bytes} bytes; use more (--memory)"
    )]
    TooSmall {
        /// Guest memory, MiB.
        memory_mib: u64,
        /// First address after the kernel.
        kernel_end: u64,
        /// Bytes of the initrd.
        initrd_bytes: u64,
    },
    /// `--entry pvh` with a kernel that has none.
    #[error("`{}` has no PVH entry: only an ELF kernel built with CONFIG_PVH has; use --entry linux64", path.display())]
    NoPvhEntry {
        /// Which file.
        path: PathBuf,
    },
    /// A kernel for `--guest direct` that would unpack itself first.
    #[error("`{}` is a bzImage, whose decompressor needs privilege; --guest direct takes the ELF file (`vmlinux`)", path.display())]
    Compressed {
        /// Which file.
        path: PathBuf,
    },
    /// A kernel for `--guest direct` that was built for another switcher, or for none.
    #[error(
        "`{}` cannot run without privilege: it was built {}, and this VMM's switcher has layout {}; \
         build a kernel of this VMM's own sources (`cargo ci kernel para`), or use --guest para",
        path.display(),
        layout.map_or("without CONFIG_PARAVANE_DIRECT".to_owned(), |layout| format!("for a switcher of layout {layout}")),
        LAYOUT
    )]
    Switcher {
        /// Which file.
        path: PathBuf,
        /// The layout that it was built for.
        layout: Option<u32>,
    },
    /// The command line is too long.
    #[error("the kernel command line has {length} bytes; at most {} fit", memory::CMDLINE_MAX - 1)]
    Cmdline {
        /// Its bytes.
        length: usize,
    },
    /// Something does not fit into memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What has been loaded where.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// Address of the first instruction.
    pub entry: u64,
    /// How it is entered.
    pub mode: Entry,
    /// Address and bytes of the initrd.
    pub initrd: Option<(u64, u64)>,
    /// Lowest address that the loader has written for the kernel.
    pub kernel_start: u64,
    /// First address after the kernel, and after what it needs to unpack itself.
    pub kernel_end: u64,
    /// The setup header of a bzImage.
    header: Option<setup_header>,
}

/// Loads kernel, initrd and command line, and writes the memory map for them.
///
/// # Errors
///
/// See [`BootError`]; each names the file and the mend.
pub fn load(config: &Config, memory: &Memory) -> Result<Loaded, BootError> {
    let mut loaded = load_kernel(config, memory)?;
    if let Some(path) = &config.initrd {
        loaded.initrd = Some(load_initrd(config, memory, path, loaded.kernel_end)?);
    }
    let cmdline = config.full_cmdline();
    if cmdline.len() >= memory::CMDLINE_MAX {
        return Err(BootError::Cmdline {
            length: cmdline.len(),
        });
    }
    memory.write(memory::CMDLINE, cmdline.as_bytes())?;
    memory.write(memory::CMDLINE + cmdline.len() as u64, &[0])?;
    match loaded.mode {
        Entry::Linux64 => params::write(config, memory, &loaded)?,
        Entry::Pvh => pvh::write(config, memory, &loaded)?,
    }
    if config.profile == Profile::Direct {
        switcher::install(memory, config.vcpus, config.users)?;
        switcher::boot_tables(memory)?;
    } else {
        regs::write_tables(memory)?;
    }
    if config.profile.has_legacy_devices() {
        let card = mptable::Pin {
            device: Slot::NETWORK.device(),
            line: ne2000::IRQ,
        };
        let pins = &[card][..usize::from(config.net.is_some())];
        mptable::write(memory, config.vcpus, config.has_pci().then_some(pins))?;
    }
    Ok(loaded)
}

fn load_kernel(config: &Config, memory: &Memory) -> Result<Loaded, BootError> {
    let path = &config.kernel;
    let read_error = |reason| BootError::Read {
        path: path.clone(),
        reason,
    };
    let mut file = File::open(path).map_err(read_error)?;
    let mut magic = [0; 4];
    let format = BootError::Format { path: path.clone() };
    file.read_exact(&mut magic).map_err(|_| format)?;
    file.rewind().map_err(read_error)?;
    let start = Some(GuestAddress(memory::KERNEL_MIN));
    let load_error = |e: linux_loader::loader::Error| BootError::Load {
        path: path.clone(),
        memory_mib: config.memory_mib,
        reason: e.to_string(),
    };
    if magic == *b"\x7fELF" {
        let result = Elf::load(memory.mmap(), None, &mut file, start).map_err(load_error)?;
        let entry = match (config.entry, result.pvh_boot_cap) {
            (Entry::Linux64, _) => result.kernel_load.raw_value(),
            (Entry::Pvh, PvhBootCapability::PvhEntryPresent(address)) => address.raw_value(),
            (Entry::Pvh, _) => return Err(BootError::NoPvhEntry { path: path.clone() }),
        };
        let image = Image::of(&file);
        let layout = image.switcher_layout();
        if config.profile == Profile::Direct && layout != Some(LAYOUT) {
            let path = path.clone();
            return Err(BootError::Switcher { path, layout });
        }
        return Ok(Loaded {
            entry,
            mode: config.entry,
            initrd: None,
            kernel_start: image.start().unwrap_or(memory::HIGH_RAM),
            kernel_end: result.kernel_end,
            header: None,
        });
    }
    if config.entry == Entry::Pvh {
        return Err(BootError::NoPvhEntry { path: path.clone() });
    }
    if config.profile == Profile::Direct {
        return Err(BootError::Compressed { path: path.clone() });
    }
    let result = BzImage::load(memory.mmap(), None, &mut file, start).map_err(|e| {
        if e.to_string().contains("Invalid bzImage") {
            BootError::Format { path: path.clone() }
        } else {
            load_error(e)
        }
    })?;
    // The decompressor runs in place and needs `init_size` bytes from where it is told to go.
    let (preferred, needs) = result
        .setup_header
        .map_or((0, 0), |h| (h.pref_address, u64::from(h.init_size)));
    Ok(Loaded {
        // boot.rst, 1.16: the 64-bit entry lies 0x200 after the start of the protected-mode code.
        entry: result.kernel_load.raw_value() + 0x200,
        mode: Entry::Linux64,
        initrd: None,
        kernel_start: memory::HIGH_RAM,
        kernel_end: result.kernel_end.max(preferred.saturating_add(needs)),
        header: result.setup_header,
    })
}

/// Puts the initrd as high as it goes, where no kernel has to move it.
fn load_initrd(
    config: &Config,
    memory: &Memory,
    path: &PathBuf,
    kernel_end: u64,
) -> Result<(u64, u64), BootError> {
    let read_error = |reason| BootError::Read {
        path: path.clone(),
        reason,
    };
    let mut file = File::open(path).map_err(read_error)?;
    let bytes = file.metadata().map_err(read_error)?.len();
    let too_small = BootError::TooSmall {
        memory_mib: config.memory_mib,
        kernel_end,
        initrd_bytes: bytes,
    };
    let at = memory.low_end().checked_sub(bytes).map(|a| a & !0xfff);
    let (Some(at), Ok(length)) = (at.filter(|a| *a >= kernel_end), usize::try_from(bytes)) else {
        return Err(too_small);
    };
    memory
        .mmap()
        .read_exact_volatile_from(GuestAddress(at), &mut file, length)
        .map_err(|e| match e {
            vm_memory::GuestMemoryError::IOError(reason) => read_error(reason),
            other => read_error(std::io::Error::other(other.to_string())),
        })?;
    Ok((at, bytes))
}
