//! The switcher of a direct guest: the little code at CPL 0, its tables, and the address spaces that
//! keep it from users.
//!
//! # How it works
//!
//! [`install`] puts a region for each processor into reserved guest memory, and makes two trees of page
//! tables that both end at the regions. In the *kernel's* tree every page is a user's page, since the
//! kernel runs at CPL 3; in the *users'* tree every page is a supervisor's, but for the one page of
//! code that SYSCALL may lead to. A kernel puts the entry of the one into its own root page tables,
//! and of the other into those of users. [`boot_tables`] makes the first root, and [`special`] the
//! registers of the first instruction, which is at CPL 3 already.
//!
//! With [`Users::Shared`] there is one tree for both, and users are in the kernel's hands: no root is
//! loaded on the way from one to the other, and where SYSCALL is a jump it needs no switcher.
//!
//! [`area`] says what kernel and switcher have to do with each other.

pub mod area;
mod code;

use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use paravane_abi::registry as reg;

use self::area::{
    Area, CODE_SELECTOR, Crossings, DATA_SELECTOR, Frame, GDT_OFFSET, HALT_IDT_OFFSET, IDT_OFFSET,
    LAYOUT, REGION_STRIDE, REGIONS_SLOT, Routines, SWITCHER_CS, SYSCALL_PAGE, USER_IDT_OFFSET,
    region,
};
use self::code::{
    CODE_OFFSET, HALT_HANDLERS_OFFSET, HANDLER_STRIDE, HANDLERS_OFFSET, SHARED_SYSCALL, pieces,
};
use crate::boot::regs::segment;
use crate::config::FacilitySet;
use crate::doctor::host::{Host, HostClass};
use crate::kvm::{KvmError, refused};
use crate::memory::{Memory, MemoryError};

/// Where the switcher begins in guest memory: with the page tables of the regions.
pub const MEMORY: u64 = 0x9_0000;
/// The first byte after it.
pub const MEMORY_END: u64 = 0xe_0000;
/// The code, which all regions share: each instruction finds the area relative to itself.
const CODE: u64 = MEMORY + 6 * PAGE;
/// What a processor has of its own: the pages of its region before the code, where the page of
/// interrupt descriptors is the kernel's; then that of users.
const AREAS: u64 = CODE + SYSCALL_PAGE + PAGE - CODE_OFFSET;
const AREA_SIZE: u64 = CODE_OFFSET + PAGE;
const USER_IDT: u64 = CODE_OFFSET;
/// The most processors of a direct guest.
pub const MAX_VCPUS: u8 = 12;
/// Bytes of a region.
const REGION_SIZE: u64 = USER_IDT_OFFSET + PAGE;
/// A root page table with the tables below it, for the boot processor's first instruction.
pub const BOOT_ROOT: u64 = crate::memory::PAGE_TABLES;

const PAGE: u64 = 0x1000;
const ENTRIES: u64 = 512;
/// The page tables of the regions, three each: the kernel's tree, and the users'.
const KERNEL_TREE: u64 = MEMORY;
const USER_TREE: u64 = MEMORY + 3 * PAGE;
const WRITABLE: u64 = 0x2;
/// Present, writable.
const SUPERVISOR: u64 = 0x3;
/// Present, writable, user.
const USER: u64 = 0x7;
/// Maps 2 MiB.
const LARGE: u64 = 0x80;

/// Descriptors by selector: 0x10 and 0x18 are the switcher's, 0x23 to 0x33 the guest's.
const GDT: [u64; 16] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
];
const TSS_SELECTOR: u16 = 0x40;
/// The task state segment lies behind the descriptors.
const TSS_OFFSET: u64 = GDT_OFFSET + 0x400;
const TSS_LIMIT: u32 = 0x67;
const TSS_IST: u64 = 0x24;
/// The stacks of the interrupt stack table: events in user mode, and in the kernel.
const USER_STACK: u8 = 1;
const KERNEL_STACK: u8 = 2;

/// Gate types.
const INTERRUPT_GATE: u64 = 0xe;

const VECTOR_BREAKPOINT: usize = 3;
const VECTOR_OVERFLOW: usize = 4;
const VECTOR_PAGE_FAULT: usize = 14;

/// Flags of the first instruction: interrupts on. The kernel's own flag is off.
pub const RFLAGS: u64 = 0x202;

const CR0: u64 = 0x8005_0033;
/// PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18;
/// SCE, LME, LMA, NXE.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;

/// The model-specific registers that SYSCALL needs.
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
/// All flags that a kernel must not inherit.
const SYSCALL_FLAGS: u64 = 0x25_7fd5;
const INTERRUPT_FLAG: u64 = 0x200;

/// What SYSCALL does on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Syscall {
    /// It goes to CPL 0, as the manuals say.
    RaisesPrivilege,
    /// It jumps and stays at CPL 3: KVM is software.
    Jumps,
}

const _: () = assert!(area_address(MAX_VCPUS) <= MEMORY_END);
const _: () = assert!(MAX_VCPUS as u64 * REGION_STRIDE <= ENTRIES * PAGE);

/// An entry of an interrupt descriptor table.
fn gate(target: u64, stack: u8, dpl: u64) -> [u64; 2] {
    let low = target & 0xffff
        | SWITCHER_CS << 16
        | u64::from(stack) << 32
        | (0x80 | dpl << 5 | INTERRUPT_GATE) << 40
        | (target >> 16 & 0xffff) << 48;
    [low, target >> 32]
}

fn write_words(memory: &Memory, at: u64, words: &[u64]) -> Result<(), MemoryError> {
    for (at, word) in (at..).step_by(8).zip(words) {
        memory.write(at, &word.to_le_bytes())?;
    }
    Ok(())
}

/// Guest physical address of a processor's area.
#[must_use]
pub const fn area_address(vcpu: u8) -> u64 {
    AREAS + AREA_SIZE * vcpu as u64
}

/// What a processor has counted of its crossings.
///
/// # Errors
///
/// [`MemoryError::Range`] where there is no switcher.
pub fn crossings(memory: &Memory, vcpu: u8) -> Result<Crossings, MemoryError> {
    memory.read_obj(area_address(vcpu) + core::mem::offset_of!(Area, crossings) as u64)
}

/// Where users of a direct guest are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub enum Users {
    /// In address spaces of their own, which hide the kernel and the switcher from them.
    #[default]
    Isolated,
    /// In the kernel's, where each can do what the kernel can.
    Shared,
}

/// Puts the regions of `vcpus` processors into guest memory, with their page tables.
///
/// # Errors
///
/// [`MemoryError::Range`] where guest memory is too small.
pub fn install(memory: &Memory, vcpus: u8, users: Users) -> Result<(), MemoryError> {
    let code = usize::try_from(CODE_OFFSET).unwrap_or(usize::MAX);
    memory.write(CODE, &code::image()[code..])?;
    if users == Users::Shared {
        memory.write(
            CODE + HANDLERS_OFFSET - CODE_OFFSET,
            code::shared_handlers(),
        )?;
    }
    for tree in [KERNEL_TREE, USER_TREE] {
        write_words(memory, tree, &[(tree + PAGE) | USER])?;
        write_words(memory, tree + PAGE, &[(tree + 2 * PAGE) | USER])?;
    }
    for vcpu in 0..vcpus {
        install_area(memory, vcpu, users)?;
        for offset in (0..REGION_SIZE).step_by(4096) {
            let is_code = (CODE_OFFSET..USER_IDT_OFFSET).contains(&offset);
            let page = match offset {
                _ if is_code => CODE + offset - CODE_OFFSET,
                USER_IDT_OFFSET => area_address(vcpu) + USER_IDT,
                _ => area_address(vcpu) + offset,
            };
            let user_page = if offset == IDT_OFFSET {
                area_address(vcpu) + USER_IDT
            } else {
                page
            };
            let kernel_flags = if is_code { USER & !WRITABLE } else { USER };
            let user_flags = if offset == SYSCALL_PAGE {
                USER & !WRITABLE
            } else {
                SUPERVISOR
            };
            let entry = (u64::from(vcpu) * REGION_STRIDE + offset) / PAGE * 8;
            for (tree, value) in [
                (KERNEL_TREE, page | kernel_flags),
                (USER_TREE, user_page | user_flags),
            ] {
                write_words(memory, tree + 2 * PAGE + entry, &[value])?;
            }
        }
    }
    Ok(())
}

fn install_area(memory: &Memory, vcpu: u8, users: Users) -> Result<(), MemoryError> {
    let base = region(u32::from(vcpu));
    let at = area_address(vcpu);
    let pieces = pieces();
    let stack_end = |frame: usize| base + (frame + size_of::<Frame>()) as u64;
    let limit = 256 * 16 - 1;
    let distances = pieces.routines;
    let is_shared = users == Users::Shared;
    let (leave, syscall_rip) = if is_shared {
        (pieces.shared_leave, SHARED_SYSCALL)
    } else {
        (distances.leave, SYSCALL_PAGE + 1)
    };
    let routines = Routines {
        leave: base + leave,
        breakpoint: base + distances.breakpoint,
        halt: base + distances.halt,
        load_root: base + distances.load_root,
        flush_page: base + distances.flush_page,
        read_msr: base + distances.read_msr,
        write_msr: base + distances.write_msr,
        doorbell: base + distances.doorbell,
        output_byte: base + distances.output_byte,
        debug_control: base + distances.debug_control,
        debug_addresses: base + distances.debug_addresses,
        debug_status: base + distances.debug_status,
        cpuid: base + distances.cpuid,
        store: base + distances.store,
        reserved: [0; 2],
    };
    let idtr = |offset: u64| [limit << 48, base + offset];
    let area = Area {
        swap: BOOT_ROOT,
        idtr: idtr(IDT_OFFSET),
        halt_idtr: idtr(HALT_IDT_OFFSET),
        kernel_slot: KERNEL_TREE | USER,
        user_slot: USER_TREE | USER,
        syscall_rip: base + syscall_rip,
        routines,
        layout: LAYOUT.into(),
        user_idtr: idtr(USER_IDT_OFFSET),
        user_isolation: (!is_shared).into(),
        ..Area::default()
    };
    memory.write_obj(at, &area)?;

    write_words(memory, at + GDT_OFFSET, &GDT)?;
    let tss = base + TSS_OFFSET;
    let descriptor =
        u64::from(TSS_LIMIT) | (tss & 0xff_ffff) << 16 | 0x8b << 40 | (tss >> 24 & 0xff) << 56;
    let tss_entry = at + GDT_OFFSET + u64::from(TSS_SELECTOR);
    write_words(memory, tss_entry, &[descriptor, tss >> 32])?;
    let stacks = [
        stack_end(core::mem::offset_of!(Area, user_frame)),
        stack_end(core::mem::offset_of!(Area, kernel_frame)),
    ];
    for (ist, stack) in (at + TSS_OFFSET + TSS_IST..).step_by(8).zip(stacks) {
        memory.write(ist, &stack.to_le_bytes())?;
    }
    // No I/O permission bitmap.
    memory.write(at + TSS_OFFSET + 0x66, &0x68_u16.to_le_bytes())?;

    for vector in 0..256_usize {
        let handler = base + HANDLERS_OFFSET + HANDLER_STRIDE * vector as u64;
        let dpl = if matches!(vector, VECTOR_BREAKPOINT | VECTOR_OVERFLOW) {
            3
        } else {
            0
        };
        let entry = 16 * vector as u64;
        let user = gate(handler, USER_STACK, dpl);
        write_words(memory, at + USER_IDT + entry, &user)?;
        let handler = base + HALT_HANDLERS_OFFSET + HANDLER_STRIDE * vector as u64;
        let halt = gate(handler, USER_STACK, 0);
        write_words(memory, at + HALT_IDT_OFFSET + entry, &halt)?;
    }
    for (vector, target, dpl) in [
        (VECTOR_BREAKPOINT, routines.breakpoint, 3),
        (VECTOR_PAGE_FAULT, base + pieces.kernel_page_fault, 0),
    ] {
        let entry = at + IDT_OFFSET + 16 * vector as u64;
        write_words(memory, entry, &gate(target, KERNEL_STACK, dpl))?;
    }
    Ok(())
}

/// Makes the root page table of the first instruction: identity for the first 4 GiB, the kernel's
/// image 2 GiB below the end, and the regions; all of it the kernel's.
///
/// # Errors
///
/// [`MemoryError::Range`] where guest memory is too small.
pub fn boot_tables(memory: &Memory) -> Result<(), MemoryError> {
    let pdpt = BOOT_ROOT + PAGE;
    let directory = |n: u64| pdpt + PAGE * (n + 1);
    let high = directory(4);
    write_words(memory, BOOT_ROOT, &[pdpt | USER])?;
    write_words(memory, BOOT_ROOT + 8 * REGIONS_SLOT, &[KERNEL_TREE | USER])?;
    write_words(memory, BOOT_ROOT + 8 * 511, &[high | USER])?;
    for gib in 0..4 {
        write_words(memory, pdpt + 8 * gib, &[directory(gib) | USER])?;
        for entry in 0..ENTRIES {
            let page = (gib * ENTRIES + entry) << 21;
            write_words(memory, directory(gib) + 8 * entry, &[page | LARGE | USER])?;
        }
    }
    write_words(memory, high + 8 * 510, &[directory(0) | USER])
}

/// Sets `sregs` for processor `vcpu` to begin in the kernel, at CPL 3, with the page tables at `root`.
pub fn special(sregs: &mut kvm_sregs, vcpu: u8, root: u64) {
    let base = region(u32::from(vcpu));
    let selector = |value: u64| u16::try_from(value).unwrap_or(0);
    let null = kvm_segment {
        unusable: 1,
        ..Default::default()
    };
    let table = |offset: u64, limit: u16| kvm_dtable {
        base: base + offset,
        limit,
        ..Default::default()
    };
    sregs.cs = segment(GDT[6], selector(CODE_SELECTOR));
    sregs.ss = segment(GDT[5], selector(DATA_SELECTOR));
    (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (null, null, null, null);
    sregs.tr = kvm_segment {
        base: base + TSS_OFFSET,
        limit: TSS_LIMIT,
        selector: TSS_SELECTOR,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.ldt = null;
    sregs.gdt = table(GDT_OFFSET, 128 - 1);
    sregs.idt = table(IDT_OFFSET, 4095);
    sregs.cr0 = CR0;
    sregs.cr3 = root;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
}

/// The facilities that a direct guest can have: what is delegated to KVM is for a kernel at CPL 0.
#[must_use]
pub fn facilities(set: FacilitySet) -> FacilitySet {
    let can = [
        reg::FACILITY_BASE,
        reg::FACILITY_CONSOLE,
        reg::FACILITY_CLOCK,
        reg::FACILITY_CPUID,
        reg::FACILITY_CRASH,
        reg::FACILITY_SMP,
        reg::FACILITY_RNG,
        reg::FACILITY_DEV,
    ];
    let others = (0..u64::BITS).filter(|id| !can.contains(id));
    others.fold(set, FacilitySet::without)
}

/// Sets the model-specific registers that processor `vcpu` needs before its first instruction.
///
/// # Errors
///
/// [`KvmError::Ioctl`] where KVM refuses.
pub fn set_msrs(fd: &VcpuFd, vcpu: u8, users: Users) -> Result<(), KvmError> {
    let syscall = match Host::examine(true).class {
        HostClass::Software => Syscall::Jumps,
        _ => Syscall::RaisesPrivilege,
    };
    let entries = msrs(vcpu, syscall, users).map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let list = Msrs::from_entries(&entries).map_err(|_| KvmError::Capability("MSR lists"))?;
    fd.set_msrs(&list).map_err(refused("set a vCPU's MSRs"))?;
    Ok(())
}

/// Index and value of the model-specific registers of processor `vcpu`.
fn msrs(vcpu: u8, syscall: Syscall, users: Users) -> [(u32, u64); 3] {
    let base = region(u32::from(vcpu));
    let entry = match (syscall, users) {
        (Syscall::Jumps, Users::Isolated) => SYSCALL_PAGE,
        (Syscall::Jumps, Users::Shared) => SHARED_SYSCALL,
        (Syscall::RaisesPrivilege, Users::Isolated) => pieces().syscall,
        (Syscall::RaisesPrivilege, Users::Shared) => pieces().shared_syscall,
    };
    // What jumps does not get the interrupt flag back without the switcher.
    let flags = match (syscall, users) {
        (Syscall::Jumps, Users::Shared) => SYSCALL_FLAGS & !INTERRUPT_FLAG,
        _ => SYSCALL_FLAGS,
    };
    [
        (MSR_STAR, 0x23 << 48 | SWITCHER_CS << 32),
        (MSR_LSTAR, base + entry),
        (MSR_SFMASK, flags),
    ]
}
