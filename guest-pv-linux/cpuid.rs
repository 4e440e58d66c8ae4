// SPDX-License-Identifier: GPL-2.0-only

//! Facility `cpuid`: CPUID from the host's table instead of by a trap.
//!
//! The kernel's `__cpuid()` comes here (`helpers.c`). The first look, long before the hypervisor
//! is detected, finds the CPUID block and copies the table: most of a kernel's CPUIDs are those of
//! its first milliseconds. What the table does not know is asked of the processor.
//!
//! At that time there is no memory map yet, so where the table lies cannot be checked against it:
//! below 1 MiB, where anything can be read, has to do.

use crate::{
    abi::{boot_info::*, cpuid::*, registry::*},
    checks, kernel_c,
    shared_page::SharedRange,
};
use core::{
    cell::UnsafeCell,
    mem::size_of,
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

/// Most entries that are kept.
const ENTRIES_MAX: usize = 256;
/// Leaf 1, ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;

/// A host's block in CPUID.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Its first leaf; 0: there is none.
    pub(crate) base: u32,
    /// Address of the boot-info page.
    pub(crate) boot_info: u64,
    /// Port of the doorbell.
    pub(crate) port: u32,
}

/// What the first look has found.
struct Found {
    block: Block,
    table: [CpuidEntry; ENTRIES_MAX],
    count: usize,
}

/// A place for [`Found`] that the boot processor fills.
///
/// # Invariants
///
/// Written only while `STATE` is `LOOKING`, and by the boot processor alone; only read later.
struct Place(UnsafeCell<Found>);

// SAFETY: By the type invariant nobody writes while others read.
unsafe impl Sync for Place {}

#[link_section = ".data..ro_after_init"]
static PLACE: Place = Place(UnsafeCell::new(Found {
    block: Block {
        base: 0,
        boot_info: 0,
        port: 0,
    },
    table: [CpuidEntry {
        leaf: 0,
        subleaf: 0,
        flags: 0,
        reserved: 0,
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    }; ENTRIES_MAX],
    count: 0,
}));

const NOT_YET: u32 = 0;
const LOOKING: u32 = 1;
const DONE: u32 = 2;

#[link_section = ".data..ro_after_init"]
static STATE: AtomicU32 = AtomicU32::new(NOT_YET);

/// CPUID leaf `leaf` by the instruction.
fn cpuid(leaf: u32) -> [u32; 4] {
    let mut registers = [0; 4];
    // SAFETY: `registers` has room for the four.
    unsafe { kernel_c::paravane_cpuid(leaf, registers.as_mut_ptr()) };
    registers
}

/// Looks for the block. Bases are tried in order, and the first hit ends the search: behind a host
/// every CPUID is an exit.
fn find_block() -> Option<Block> {
    if cpuid(1)[2] & HYPERVISOR == 0 {
        return None;
    }
    let mut base = CPUID_BASE_FIRST;
    while base < CPUID_BASE_END {
        let [last, ebx, ecx, edx] = cpuid(base + CPUID_LEAF_SIGNATURE);
        if ebx == CPUID_SIGNATURE_EBX
            && ecx == CPUID_SIGNATURE_ECX
            && edx == CPUID_SIGNATURE_EDX
            && last >= base + CPUID_LEAF_BOOT
        {
            let [low, high, port, _] = cpuid(base + CPUID_LEAF_BOOT);
            return Some(Block {
                base,
                boot_info: u64::from(high) << 32 | u64::from(low),
                port,
            });
        }
        base += CPUID_BASE_STEP;
    }
    None
}

/// Copies the table of the page at `boot_info`; how many entries.
fn read_table(boot_info: u64, table: &mut [CpuidEntry; ENTRIES_MAX]) -> Option<usize> {
    let page = SharedRange::early(boot_info, PAGE_SIZE as u64)?;
    // SAFETY: Any bytes make a valid `BootInfo`: it has integers only.
    let info: BootInfo = unsafe { page.read(0) };
    let filled = info.size as usize >= size_of::<BootInfo>();
    if info.magic != BOOT_INFO_MAGIC || !filled || !info.has(FACILITY_CPUID) {
        return None;
    }
    let count = (info.cpuid.count as usize).min(ENTRIES_MAX);
    let bytes = count * size_of::<CpuidEntry>();
    let shared = SharedRange::early(info.cpuid.address, bytes as u64)?;
    for (index, entry) in table.iter_mut().take(count).enumerate() {
        // SAFETY: Any bytes make a valid `CpuidEntry`: it has integers only.
        *entry = unsafe { shared.read(index * size_of::<CpuidEntry>()) };
    }
    Some(checks::cpuid_count(&table[..count]))
}

/// What the first look has found.
fn found() -> Option<&'static Found> {
    match STATE.load(Ordering::Acquire) {
        DONE => {}
        NOT_YET => {
            STATE.store(LOOKING, Ordering::Relaxed);
            // SAFETY: The kernel executes its first CPUID while only the boot processor runs, and
            // what is called here comes back only as `LOOKING`; nobody has a reference yet.
            let place = unsafe { &mut *PLACE.0.get() };
            if let Some(block) = find_block() {
                place.block = block;
                place.count = read_table(block.boot_info, &mut place.table).unwrap_or(0);
            }
            STATE.store(DONE, Ordering::Release);
        }
        _ => return None,
    }
    // SAFETY: `STATE` is `DONE`: by the type invariant nobody writes any more.
    Some(unsafe { &*PLACE.0.get() })
}

/// The host's block, where there is one.
pub(crate) fn block() -> Option<Block> {
    found().map(|found| found.block).filter(|block| block.base != 0)
}

/// What the table has for `leaf` and `subleaf`: EAX, EBX, ECX, EDX. False: only CPUID knows.
///
/// # Safety
///
/// `registers` has room for four.
#[no_mangle]
unsafe extern "C" fn paravane_cpuid_find(leaf: u32, subleaf: u32, registers: *mut u32) -> bool {
    let Some(found) = found() else {
        return false;
    };
    let Some(table) = found.table.get(..found.count) else {
        return false;
    };
    let Some(values) = cpuid_find(table, leaf, subleaf) else {
        return false;
    };
    // SAFETY: By the function's requirement; arrays of four and pointers to the first agree.
    unsafe { ptr::write(registers.cast::<[u32; 4]>(), values) };
    true
}
