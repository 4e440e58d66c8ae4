//! A core of the guest: an ELF file that gdb and crash open beside its `vmlinux`.
//!
//! # What is in it
//!
//! - a note `NT_PRSTATUS` for each vCPU: its registers. gdb's threads are the vCPUs, in their order;
//! - a segment for each region of guest memory, at its physical address;
//! - a segment for each run of pages that the boot processor's page tables map in the kernel's half, at its virtual address.
//!   They share the bytes of the first ones, and are what makes stacks in vmalloc's area readable.
//!
//! Memory that is all zero is a hole of the file.
//!
//! # Whom it trusts
//!
//! Not the page tables: they are read to a bounded number, and what does not lie in guest memory is left out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{kvm_regs, kvm_sregs};
use object::elf;
use object::endian::{LittleEndian as LE, U16, U32, U64};
use object::pod::bytes_of;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::Memory;
use crate::vm::Machine;

const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;
/// An ELF header counts no more program headers than this.
const SEGMENTS_MAX: usize = 0xfff0;
/// Tables that are read of one core: 128 GiB in small pages.
const TABLES_MAX: usize = 1 << 16;
/// CR4: page tables of five levels.
const CR4_LA57: u64 = 1 << 12;
const PRESENT: u64 = 1;
/// The entry maps a page that is larger than 4 KiB.
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bytes of the kernel's `elf_prstatus`, and where its process id and its registers lie.
const PRSTATUS_BYTES: usize = 336;
const PRSTATUS_PID: usize = 32;
const PRSTATUS_REGISTERS: usize = 112;

/// A part of the file, and the addresses that it is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    virtual_start: u64,
    physical_start: u64,
    bytes: u64,
}

/// The file of a core that is written where the guest dies. Dropping it removes a file that was made for it and not needed.
#[derive(Debug)]
pub struct CoreFile {
    path: PathBuf,
    file: File,
    /// It was not there before.
    made: bool,
    written: AtomicBool,
}

/// A core's file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("the core `{}` cannot be written: {reason}; its folder must exist and let you write", path.display())]
pub struct CoreFileError {
    path: PathBuf,
    reason: io::Error,
}

impl CoreFile {
    /// Opens it. What is in it stays there until a core is written.
    ///
    /// # Errors
    ///
    /// [`CoreFileError`].
    pub fn create(path: &Path) -> Result<Self, CoreFileError> {
        let made = !path.exists();
        let opened = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        Ok(Self {
            path: path.to_owned(),
            file: opened.map_err(|reason| CoreFileError {
                path: path.to_owned(),
                reason,
            })?,
            made,
            written: AtomicBool::new(false),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// [`write()`]s a core into it.
    ///
    /// # Errors
    ///
    /// The file's.
    pub fn write(&self, machine: &Machine) -> io::Result<u64> {
        self.written.store(true, Ordering::Relaxed);
        self.file.set_len(0)?;
        write(machine, &self.file)
    }
}

impl Drop for CoreFile {
    fn drop(&mut self) {
        if self.made && !self.written.load(Ordering::Relaxed) {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes a core of a machine that stands still. A vCPU that is stuck in KVM is left out. Returns the file's length.
///
/// # Errors
///
/// The file's.
pub fn write(machine: &Machine, file: &File) -> io::Result<u64> {
    let registers = machine.vcpus().iter().enumerate().filter_map(|(id, fd)| {
        let fd = fd.try_lock().ok()?;
        Some((id, fd.get_regs().ok()?, fd.get_sregs().ok()?))
    });
    let registers: Vec<_> = registers.collect();
    let memory = machine.memory();
    let mut segments: Vec<Segment> = memory
        .mmap()
        .iter()
        .map(|region| Segment {
            virtual_start: region.start_addr().raw_value(),
            physical_start: region.start_addr().raw_value(),
            bytes: region.len(),
        })
        .collect();
    let regions = segments.clone();
    if let Some((_, _, sregs)) = registers.first() {
        segments.extend(mapped(memory, sregs));
    }
    segments.truncate(SEGMENTS_MAX);

    let notes: Vec<u8> = registers
        .iter()
        .flat_map(|(id, regs, sregs)| note(*id, regs, sregs))
        .collect();
    let headers = size_of::<elf::FileHeader64<LE>>()
        + (segments.len() + 1) * size_of::<elf::ProgramHeader64<LE>>();
    let memory_starts = ((headers + notes.len()) as u64).next_multiple_of(PAGE);
    // Where in the file a physical address is.
    let offset = |physical: u64| {
        let mut at = memory_starts;
        for region in &regions {
            if (region.physical_start..region.physical_start + region.bytes).contains(&physical) {
                return at + physical - region.physical_start;
            }
            at += region.bytes;
        }
        at
    };
    let mut head = Vec::with_capacity(headers + notes.len());
    head.extend_from_slice(bytes_of(&file_header(segments.len() + 1)));
    let note_header = program_header(elf::PT_NOTE, headers as u64, 0, 0, notes.len() as u64);
    head.extend_from_slice(bytes_of(&note_header));
    for s in &segments {
        let at = offset(s.physical_start);
        let header = program_header(elf::PT_LOAD, at, s.virtual_start, s.physical_start, s.bytes);
        head.extend_from_slice(bytes_of(&header));
    }
    head.extend_from_slice(&notes);
    file.set_len(0)?;
    file.write_all_at(&head, 0)?;

    memory.filled_blocks(|at, block| file.write_all_at(block, memory_starts + at))?;
    let length = memory_starts + regions.iter().map(|region| region.bytes).sum::<u64>();
    file.set_len(length)?;
    Ok(length)
}

fn file_header(segments: usize) -> elf::FileHeader64<LE> {
    let size = |bytes: usize| U16::new(LE, u16::try_from(bytes).unwrap_or(u16::MAX));
    let header = size_of::<elf::FileHeader64<LE>>();
    elf::FileHeader64 {
        e_ident: elf::Ident {
            magic: elf::ELFMAG,
            class: elf::ELFCLASS64,
            data: elf::ELFDATA2LSB,
            version: elf::EV_CURRENT,
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(LE, elf::ET_CORE),
        e_machine: U16::new(LE, elf::EM_X86_64),
        e_version: U32::new(LE, elf::EV_CURRENT.0.into()),
        e_entry: U64::new(LE, 0),
        e_phoff: U64::new(LE, header as u64),
        e_shoff: U64::new(LE, 0),
        e_flags: U32::new(LE, elf::FileFlags(0)),
        e_ehsize: size(header),
        e_phentsize: size(size_of::<elf::ProgramHeader64<LE>>()),
        e_phnum: size(segments),
        e_shentsize: U16::new(LE, 0),
        e_shnum: U16::new(LE, 0),
        e_shstrndx: U16::new(LE, elf::SHN_UNDEF),
    }
}

fn program_header(
    kind: elf::ProgramType,
    offset: u64,
    virtual_start: u64,
    physical_start: u64,
    bytes: u64,
) -> elf::ProgramHeader64<LE> {
    let word = |value| U64::new(LE, value);
    elf::ProgramHeader64 {
        p_type: U32::new(LE, kind),
        p_flags: U32::new(LE, elf::PF_R | elf::PF_W | elf::PF_X),
        p_offset: word(offset),
        p_vaddr: word(virtual_start),
        p_paddr: word(physical_start),
        p_filesz: word(bytes),
        p_memsz: word(bytes),
        p_align: word(1),
    }
}

/// A note with the registers of a vCPU, as Linux writes them of a thread.
fn note(id: usize, r: &kvm_regs, s: &kvm_sregs) -> Vec<u8> {
    const NAME: &[u8; 8] = b"CORE\0\0\0\0";
    let registers = [
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.rbp,
        r.rbx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.rax,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        u64::MAX, // no system call is under way
        r.rip,
        s.cs.selector.into(),
        r.rflags,
        r.rsp,
        s.ss.selector.into(),
        s.fs.base,
        s.gs.base,
        s.ds.selector.into(),
        s.es.selector.into(),
        s.fs.selector.into(),
        s.gs.selector.into(),
    ];
    let mut status = [0; PRSTATUS_BYTES];
    let pid = u32::try_from(id + 1).unwrap_or(u32::MAX);
    status[PRSTATUS_PID..PRSTATUS_PID + 4].copy_from_slice(&pid.to_le_bytes());
    let room = status[PRSTATUS_REGISTERS..].chunks_exact_mut(8);
    for (register, room) in registers.iter().zip(room) {
        room.copy_from_slice(&register.to_le_bytes());
    }
    let mut note = Vec::new();
    for word in [5, 336, elf::NT_PRSTATUS.0] {
        note.extend_from_slice(&u32::to_le_bytes(word));
    }
    note.extend_from_slice(NAME);
    note.extend_from_slice(&status);
    note
}

/// What the page tables map in the upper half of the address space and lies in guest memory, in runs.
fn mapped(memory: &Memory, s: &kvm_sregs) -> Vec<Segment> {
    let levels = if s.cr4 & CR4_LA57 == 0 { 4 } else { 5 };
    let mut walk = Walk {
        memory,
        found: Vec::new(),
        tables: 0,
    };
    let canonical = u64::MAX << (9 * levels + 12);
    walk.table(s.cr3 & ADDRESS, levels, canonical, 256);
    walk.found
}

struct Walk<'a> {
    memory: &'a Memory,
    found: Vec<Segment>,
    tables: usize,
}

impl Walk<'_> {
    /// Goes through a table of level `level`, whose first entry maps what is at `base`, from the entry `first` on.
    fn table(&mut self, at: u64, level: u32, base: u64, first: usize) {
        let mut bytes = [0; PAGE_BYTES];
        self.tables += 1;
        if self.tables > TABLES_MAX || self.memory.read(at, &mut bytes).is_err() {
            return;
        }
        let span = PAGE << (9 * (level - 1));
        let (entries, _) = bytes.as_chunks();
        for (index, entry) in (0..).zip(entries).skip(first) {
            let entry = u64::from_le_bytes(*entry);
            let start = base + span * index;
            if entry & PRESENT == 0 {
                continue;
            }
            if level == 1 || entry & LARGE != 0 && level <= 3 {
                self.page(start, entry & ADDRESS & !(span - 1), span);
            } else {
                self.table(entry & ADDRESS, level - 1, start, 0);
            }
        }
    }

    fn page(&mut self, virtual_start: u64, physical_start: u64, bytes: u64) {
        // A large page can reach beyond the end of memory.
        let end = self.memory.end_of_region(physical_start);
        let Some(bytes) = end.map(|end| bytes.min(end - physical_start)) else {
            return;
        };
        if let Some(last) = self.found.last_mut()
            && last.virtual_start.wrapping_add(last.bytes) == virtual_start
            && last.physical_start + last.bytes == physical_start
            && self.memory.end_of_region(last.physical_start) == end
        {
            last.bytes += bytes;
        } else if self.found.len() < SEGMENTS_MAX {
            self.found.push(Segment {
                virtual_start,
                physical_start,
                bytes,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use object::Object;
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    fn memory() -> Memory {
        Memory::new(32).unwrap()
    }

    fn put(memory: &Memory, table: u64, index: u64, entry: u64) {
        memory
            .write(table + 8 * index, &entry.to_le_bytes())
            .unwrap();
    }

    fn root(cr3: u64) -> kvm_sregs {
        kvm_sregs {
            cr3,
            ..Default::default()
        }
    }

    #[test]
    fn pages_that_follow_one_another_are_one_segment() {
        let memory = memory();
        put(&memory, 0x1000, 256, 0x2000 | PRESENT);
        put(&memory, 0x2000, 0, 0x3000 | PRESENT);
        // The last large page of memory, and one beyond.
        put(&memory, 0x3000, 0, 30 << 20 | LARGE | PRESENT);
        put(&memory, 0x3000, 1, 32 << 20 | LARGE | PRESENT);
        put(&memory, 0x3000, 2, 0x4000 | PRESENT);
        for (index, page) in [0x8000, 0x9000, 0xb000].into_iter().enumerate() {
            put(&memory, 0x4000, index as u64, page | PRESENT);
        }
        // The lower half is users'.
        put(&memory, 0x1000, 0, 0x2000 | PRESENT);
        let base = 0xffff_8000_0000_0000;
        let segment = |virtual_start, physical_start, bytes| Segment {
            virtual_start,
            physical_start,
            bytes,
        };
        assert_eq!(
            mapped(&memory, &root(0x1000)),
            [
                segment(base, 30 << 20, 2 << 20),
                segment(base + (4 << 20), 0x8000, 0x2000),
                segment(base + (4 << 20) + 0x2000, 0xb000, 0x1000),
            ]
        );
    }

    #[test]
    fn tables_that_lead_into_themselves_come_to_an_end() {
        let memory = memory();
        for index in 0..512 {
            put(&memory, 0x1000, index, 0x1000 | PRESENT);
        }
        let found = mapped(&memory, &root(0x1000));
        assert!(found.len() <= SEGMENTS_MAX);
        assert!(mapped(&memory, &root(ADDRESS)).is_empty());
    }

    #[test]
    fn the_headers_are_those_of_a_core() {
        let file = TempFile::new().unwrap();
        let mut bytes = bytes_of(&file_header(1)).to_vec();
        let note = note(2, &kvm_regs::default(), &kvm_sregs::default());
        let header = program_header(elf::PT_NOTE, 120, 0, 0, note.len() as u64);
        bytes.extend_from_slice(bytes_of(&header));
        assert_eq!(bytes.len(), 120);
        bytes.extend_from_slice(&note);
        file.as_file().write_all_at(&bytes, 0).unwrap();
        let parsed = object::File::parse(bytes.as_slice()).unwrap();
        assert_eq!(parsed.kind(), object::ObjectKind::Core);
        assert_eq!(note.len(), 12 + 8 + PRSTATUS_BYTES);
    }
}
