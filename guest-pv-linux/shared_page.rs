// SPDX-License-Identifier: GPL-2.0-only

//! Memory that the host writes while we look at it.
//!
//! A Rust reference promises that nobody else writes, and the host promises nothing; so shared
//! memory is only ever a raw pointer here, read and written by volatile accesses of fixed width or
//! by copies into memory of our own.

use crate::kernel_c;
use core::{
    mem::size_of,
    ptr,
    sync::atomic::{fence, Ordering},
};

/// End of the memory in which a shared range may lie. Linux keeps the first MiB out of its
/// allocators and has it mapped from the first instruction on, which no other place is.
const SHARED_END: u64 = 1 << 20;

/// A range of memory shared with the host.
///
/// # Invariants
///
/// `base` is the kernel's mapping of `size` bytes, aligned to 8, that the memory map reports as
/// reserved, or that are not written to through this range: no kernel object is harmed.
pub(crate) struct SharedRange {
    base: *mut u8,
    size: usize,
}

// SAFETY: The pointer is only used for volatile accesses and raw copies, which never form a
// reference; what threads do to each other is the business of the ring's lock.
unsafe impl Send for SharedRange {}
// SAFETY: As above.
unsafe impl Sync for SharedRange {}

impl SharedRange {
    /// The range at the guest physical address `address`, `None` where it is not in reserved
    /// memory below 1 MiB or not page-aligned.
    #[link_section = ".init.text"]
    pub(crate) fn new(address: u64, size: u64) -> Option<Self> {
        let range = Self::early(address, size)?;
        // SAFETY: Runs during boot: its callers are reached from `paravane_detect` only.
        unsafe { kernel_c::paravane_is_reserved(address, size) }.then_some(range)
    }

    /// The same before there is a memory map: a range that is read, and not written to.
    pub(crate) fn early(address: u64, size: u64) -> Option<Self> {
        let end = address.checked_add(size)?;
        if size == 0 || end > SHARED_END || address % crate::abi::registry::PAGE_SIZE as u64 != 0 {
            return None;
        }
        // SAFETY: `address` is below 1 MiB.
        let base = unsafe { kernel_c::paravane_va(address) };
        // INVARIANT: Checked above and by the caller; `size` is at most 1 MiB.
        Some(Self {
            base: base.cast(),
            size: size as usize,
        })
    }

    /// Pointer to `length` bytes at `offset`.
    ///
    /// # Panics
    ///
    /// Where they are not wholly inside the range. Offsets come from our own arithmetic, never
    /// from the host, so this is a bug of ours.
    fn at(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(length <= self.size && offset <= self.size - length);
        // SAFETY: `offset` is at most `size`, and the range is one mapping (type invariant).
        unsafe { self.base.add(offset) }
    }

    /// Reads a `T` at `offset`, which is a multiple of `T`'s alignment.
    ///
    /// # Safety
    ///
    /// Any bytes make a valid `T`.
    pub(crate) unsafe fn read<T: Copy>(&self, offset: usize) -> T {
        let pointer = self.at(offset, size_of::<T>()).cast::<T>();
        assert!(pointer.is_aligned());
        // SAFETY: Inside the mapping and aligned, and by the requirement any bytes are a `T`.
        unsafe { ptr::read_volatile(pointer) }
    }

    /// Reads the word at `offset`; later accesses come after it.
    pub(crate) fn load_acquire(&self, offset: usize) -> u32 {
        // SAFETY: Any bytes make a valid `u32`.
        let value = unsafe { self.read(offset) };
        fence(Ordering::Acquire);
        value
    }

    /// Writes the word at `offset`; earlier accesses come before it.
    pub(crate) fn store_release(&self, offset: usize, value: u32) {
        let pointer = self.at(offset, size_of::<u32>()).cast::<u32>();
        assert!(pointer.is_aligned());
        fence(Ordering::Release);
        // SAFETY: Inside the mapping and aligned; no kernel object lies there (type invariant).
        unsafe { ptr::write_volatile(pointer, value) };
    }

    /// Copies `bytes` to `offset`.
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: Inside the mapping, where no kernel object lies, hence not where `bytes` is.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies from `offset` to `bytes`.
    pub(crate) fn copy_out(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: As in `copy_in`; any bytes make a valid `u8`.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }
}

/// All our accesses before come before all after, as the host sees them.
pub(crate) fn full_barrier() {
    fence(Ordering::SeqCst);
}
