//! The zero page of Linux's 64-bit boot protocol: `boot_params`.
//!
//! Source: Documentation/arch/x86/zero-page.rst and boot.rst.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress};

use super::Loaded;
use crate::config::{Config, Profile};
use crate::memory::{self, Memory, MemoryError};
use crate::switcher;

/// `boot_flag` and `header` of the setup header.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// "Undefined" boot loader.
const LOADER_TYPE: u8 = 0xff;
/// E820 type: usable RAM.
pub(super) const E820_RAM: u32 = 1;
/// E820 type: reserved.
pub(super) const E820_RESERVED: u32 = 2;

/// The memory map: start, bytes, E820 type.
pub(super) fn memory_map(config: &Config, memory: &Memory) -> Vec<(u64, u64, u32)> {
    let reserved_from = |start| {
        vec![
            (0, start, E820_RAM),
            (start, memory::HIGH_RAM - start, E820_RESERVED),
        ]
    };
    let mut map = match config.profile {
        // A legacy PC: the last KiB of base memory is the EBDA with the MP table, then video
        // memory and ROMs.
        Profile::Full | Profile::KvmPv => vec![
            (0, memory::EBDA, E820_RAM),
            (memory::EBDA, memory::HIGH_RAM - memory::EBDA, E820_RESERVED),
        ],
        Profile::Para => reserved_from(memory::PV_AREA),
        Profile::Direct => reserved_from(switcher::MEMORY),
    };
    map.push((
        memory::HIGH_RAM,
        memory.low_end() - memory::HIGH_RAM,
        E820_RAM,
    ));
    if memory.high_bytes() > 0 {
        map.push((memory::ABOVE_4G, memory.high_bytes(), E820_RAM));
    }
    map
}

pub(super) fn write(config: &Config, memory: &Memory, loaded: &Loaded) -> Result<(), MemoryError> {
    let mut params = boot_params::default();
    if let Some(header) = loaded.header {
        params.hdr = header;
    }
    params.hdr.type_of_loader = LOADER_TYPE;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    // Addresses in the zero page's first fields have 32 bits; all of these lie below 4 GiB.
    let low = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    params.hdr.cmd_line_ptr = low(memory::CMDLINE);
    params.hdr.cmdline_size = low(memory::CMDLINE_MAX as u64);
    if let Some((address, bytes)) = loaded.initrd {
        params.hdr.ramdisk_image = low(address);
        params.hdr.ramdisk_size = low(bytes);
    }
    let map = memory_map(config, memory);
    for (slot, (addr, size, kind)) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: *addr,
            size: *size,
            r#type: *kind,
        };
    }
    params.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    memory
        .mmap()
        .write_obj(params, GuestAddress(memory::ZERO_PAGE))
        .map_err(|_| MemoryError::Range {
            address: memory::ZERO_PAGE,
            length: size_of::<boot_params>(),
        })
}
