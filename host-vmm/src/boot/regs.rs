//! Registers and page tables of a guest's first instruction.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::Loaded;
use crate::config::Entry;
use crate::memory::{self, Memory, MemoryError};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NX: u64 = 1 << 11;
/// Present, writable.
const TABLE: u64 = 0x3;
/// Present, writable, 2 MiB.
const LARGE: u64 = 0x83;
/// Page directories: 1 GiB of identity map each.
const DIRECTORIES: u64 = 4;
const ENTRIES: u64 = 512;
const PAGE: u64 = 0x1000;

/// Flat segments at the selectors that boot.rst asks for (`__BOOT_CS` 0x10, `__BOOT_DS` 0x18), and a
/// TSS because VMX wants one.
const GDT: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];
/// The 32-bit code segment of the PVH entry.
const CODE32: u64 = 0x00cf_9b00_0000_ffff;

/// Writes the GDT and the identity map of the first 4 GiB.
pub(super) fn write_tables(memory: &Memory) -> Result<(), MemoryError> {
    for (at, descriptor) in (memory::GDT..).step_by(8).zip(GDT) {
        memory.write(at, &descriptor.to_le_bytes())?;
    }
    let pdpt = memory::PAGE_TABLES + PAGE;
    memory.write(memory::PAGE_TABLES, &(pdpt | TABLE).to_le_bytes())?;
    for directory in 0..DIRECTORIES {
        let at = pdpt + PAGE * (directory + 1);
        memory.write(pdpt + 8 * directory, &(at | TABLE).to_le_bytes())?;
        for entry in 0..ENTRIES {
            let page = (directory * ENTRIES + entry) << 21;
            memory.write(at + 8 * entry, &(page | LARGE).to_le_bytes())?;
        }
    }
    Ok(())
}

/// A descriptor as KVM wants it.
pub(crate) fn segment(descriptor: u64, selector: u16) -> kvm_segment {
    let byte = |shift: u32| u8::try_from(descriptor >> shift & 0xff).unwrap_or(0);
    let (access, flags) = (byte(40), byte(52));
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: access & 0xf,
        s: access >> 4 & 1,
        dpl: access >> 5 & 3,
        present: access >> 7,
        avl: flags & 1,
        l: flags >> 1 & 1,
        db: flags >> 2 & 1,
        g: flags >> 3 & 1,
        unusable: 0,
        padding: 0,
    }
}

/// Sets `sregs` up for the entry.
pub fn special(sregs: &mut kvm_sregs, mode: Entry) {
    let data = segment(GDT[3], 0x18);
    sregs.ds = data;
    sregs.es = data;
    sregs.ss = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.tr = kvm_segment {
        limit: 0x67,
        g: 0,
        ..segment(GDT[4], 0x20)
    };
    sregs.gdt.base = memory::GDT;
    sregs.gdt.limit = u16::try_from(size_of_val(&GDT) - 1).unwrap_or(0);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    match mode {
        Entry::Linux64 => {
            sregs.cs = segment(GDT[2], 0x10);
            sregs.cr3 = memory::PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        Entry::Pvh => {
            sregs.cs = segment(CODE32, 0x10);
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
    }
}

/// Sets `sregs` up for a processor that another one starts, with the page tables at `root`.
pub fn started(sregs: &mut kvm_sregs, root: u64) {
    special(sregs, Entry::Linux64);
    sregs.cr3 = root;
    sregs.efer |= EFER_NX;
}

/// The general registers at the entry.
#[must_use]
pub fn general(loaded: &Loaded) -> kvm_regs {
    let base = kvm_regs {
        rip: loaded.entry,
        rflags: 2,
        ..Default::default()
    };
    match loaded.mode {
        Entry::Linux64 => kvm_regs {
            rsi: memory::ZERO_PAGE,
            rsp: memory::BOOT_STACK,
            rbp: memory::BOOT_STACK,
            ..base
        },
        Entry::Pvh => kvm_regs {
            rbx: memory::PVH_INFO,
            ..base
        },
    }
}
