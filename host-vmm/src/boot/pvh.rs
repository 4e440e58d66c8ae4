//! The PVH entry's `hvm_start_info`.
//!
//! Source: Xen's public header `arch-x86/hvm/start_info.h`; Linux `arch/x86/platform/pvh`.

use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{Loaded, params};
use crate::config::Config;
use crate::memory::{self, Memory, MemoryError};

const START_MAGIC: u32 = 0x336e_c578;

pub(super) fn write(config: &Config, memory: &Memory, loaded: &Loaded) -> Result<(), MemoryError> {
    let mut next = memory::PVH_INFO + size_of::<hvm_start_info>() as u64;
    let mut info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        cmdline_paddr: memory::CMDLINE,
        ..Default::default()
    };
    if let Some((paddr, size)) = loaded.initrd {
        info.nr_modules = 1;
        info.modlist_paddr = next;
        put(
            memory,
            &mut next,
            hvm_modlist_entry {
                paddr,
                size,
                ..Default::default()
            },
        )?;
    }
    info.memmap_paddr = next;
    for (addr, size, type_) in params::memory_map(config, memory) {
        put(
            memory,
            &mut next,
            hvm_memmap_table_entry {
                addr,
                size,
                type_,
                reserved: 0,
            },
        )?;
        info.memmap_entries += 1;
    }
    let mut start = memory::PVH_INFO;
    put(memory, &mut start, info)
}

/// Writes `value` at `*at` and moves `*at` behind it.
fn put<T: ByteValued>(memory: &Memory, at: &mut u64, value: T) -> Result<(), MemoryError> {
    let (address, length) = (*at, size_of::<T>());
    *at += length as u64;
    memory
        .mmap()
        .write_obj(value, GuestAddress(address))
        .map_err(|_| MemoryError::Range { address, length })
}
