// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Draft: facilities `cpu` and `mmu`, for kernels that do not run at privilege level zero.
//!
//! # Background
//!
//! The numbers are reserved, so that nobody else takes them, and can still change. No host carries
//! out one of these calls: none is in [`CALLS`](super::call::CALLS), and `base.probe` says no. The
//! chapters of `SPEC.md` that are marked Draft say what is intended.

/// Draft: `cpu.page(address)`: this processor's `DraftCpuPage` lies there.
pub const DRAFT_CALL_CPU_PAGE: u32 = 0x000e_0000;
/// Draft: `cpu.traps(address, limit)`: the interrupt descriptor table.
pub const DRAFT_CALL_CPU_TRAPS: u32 = 0x000e_0001;
/// Draft: `cpu.syscall(64-bit entry, 32-bit entry)`: where SYSCALL goes.
pub const DRAFT_CALL_CPU_SYSCALL: u32 = 0x000e_0002;
/// Draft: `cpu.return()`: goes on with the frame at the stack pointer; does not return.
pub const DRAFT_CALL_CPU_RETURN: u32 = 0x000e_0003;
/// Draft: `cpu.events()`: delivers what is pending.
pub const DRAFT_CALL_CPU_EVENTS: u32 = 0x000e_0004;
/// Draft: `cpu.idle()`: unmasks events and waits for one.
pub const DRAFT_CALL_CPU_IDLE: u32 = 0x000e_0005;
/// Draft: `cpu.base(which, value)`: FS, GS or user GS base: 0, 1, 2.
pub const DRAFT_CALL_CPU_BASE: u32 = 0x000e_0006;
/// Draft: `cpu.debug(number, value)`: a debug register.
pub const DRAFT_CALL_CPU_DEBUG: u32 = 0x000e_0007;
/// Draft: `cpu.read_msr(number) -> value`: a model-specific register.
pub const DRAFT_CALL_CPU_READ_MSR: u32 = 0x000e_0008;
/// Draft: `cpu.write_msr(number, value)`: the same.
pub const DRAFT_CALL_CPU_WRITE_MSR: u32 = 0x000e_0009;
/// Draft: `cpu.control(number, value)`: CR0 or CR4: 0 or 4.
pub const DRAFT_CALL_CPU_CONTROL: u32 = 0x000e_000a;
/// Draft: `cpu.descriptor(index, value)`: a thread-local-storage descriptor.
pub const DRAFT_CALL_CPU_DESCRIPTOR: u32 = 0x000e_000b;

/// Draft: `mmu.base(kernel root, user root)`: this processor's page tables.
pub const DRAFT_CALL_MMU_BASE: u32 = 0x000f_0000;
/// Draft: `mmu.update(address, count) -> entries done`: a batch of entry addresses and
/// values.
pub const DRAFT_CALL_MMU_UPDATE: u32 = 0x000f_0001;
/// Draft: `mmu.flush_page(virtual address)`: one page, on this processor.
pub const DRAFT_CALL_MMU_FLUSH_PAGE: u32 = 0x000f_0002;
/// Draft: `mmu.flush_range(virtual address, count, stride)`: so many pages.
pub const DRAFT_CALL_MMU_FLUSH_RANGE: u32 = 0x000f_0003;
/// Draft: `mmu.flush_all()`: this root's entries.
pub const DRAFT_CALL_MMU_FLUSH_ALL: u32 = 0x000f_0004;
/// Draft: `mmu.flush_global()`: all roots' entries.
pub const DRAFT_CALL_MMU_FLUSH_GLOBAL: u32 = 0x000f_0005;
/// Draft: `mmu.flush_many(address of bitmap, bits, form, virtual address, count, stride)`:
/// one of these on many processors.
pub const DRAFT_CALL_MMU_FLUSH_MANY: u32 = 0x000f_0006;

/// Draft: what a processor of a deprivileged guest shares with the switcher. Writers: see the
/// fields.
#[cfg_attr(
    feature = "zerocopy",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DraftCpuPage {
    /// Not zero while events are masked: the virtual interrupt flag, inverted. Writers: both.
    pub masked: u8,
    /// Not zero while an event waits. Writer: switcher.
    pub pending: u8,
    /// Zero.
    pub reserved0: [u8; 6],
    /// The address of the last page fault. Writer: switcher.
    pub fault_address: u64,
    /// What DR6 is on hardware. Writer: switcher.
    pub debug_status: u64,
    /// The GS base of user code; what SWAPGS swaps. Writers: both.
    pub user_gs_base: u64,
    /// Page-table root of kernel code. Writer: guest.
    pub kernel_root: u64,
    /// Page-table root of user code. Writer: guest.
    pub user_root: u64,
    /// Stack for events that interrupt user code. Writer: guest.
    pub stack: u64,
    /// Zero.
    pub reserved1: u64,
    /// A bit for each interrupt vector that waits. Writer: switcher.
    pub vectors: [u64; 4],
    /// Zero.
    pub reserved2: [u64; 4],
}

const _: () = {
    assert!(core::mem::size_of::<DraftCpuPage>() == 128);
    assert!(core::mem::offset_of!(DraftCpuPage, vectors) == 64);
};
