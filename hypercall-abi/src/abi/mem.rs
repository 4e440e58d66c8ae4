// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facility `mem`: which memory is zero, and memory given back.
//!
//! # Background
//!
//! A kernel that has just started takes its memory for what a PC's is: full of what was there
//! before. It clears each page before somebody uses it. A virtual machine's memory is fresh from
//! the host's operating system, which has cleared it already, or will at the first touch.
//!
//! # How it works
//!
//! [`MemInfo::fresh`] names ranges in which every byte is zero before the guest's first
//! instruction: all but what the loader has written. The guest need not clear there what it has
//! never used. What it has used, also for a moment, is its own to clear.
//!
//! `mem.report` gives memory back that the guest does not use now: a batch of ranges, huge pages
//! where possible, for one call. Nobody asks for it back. The guest uses it again when it likes,
//! and finds zeros.
//!
//! A balloon is memory that the guest keeps from itself. [`MemPage::wanted`] says how much the host
//! would like it to keep, [`MemPage::kept`] how much it does; what is in it has been reported.
//! [`MemPage::needed`] is the guest's working set, for a host that looks for who can do with less.
//!
//! Spec: PV-MEM-1 to PV-MEM-15

/// Most ranges in [`MemInfo::fresh`].
pub const MEM_FRESH_MAX: usize = 4;
/// Most ranges of one `mem.report`.
pub const MEM_REPORT_MAX: usize = 256;

/// A range of guest memory.
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
pub struct MemRange {
    /// Guest physical address of the first byte, page-aligned.
    pub address: u64,
    /// Bytes, a multiple of the page size.
    pub size: u64,
}

/// The memory part of the boot-info page. Writer: host. Spec: PV-MEM-1
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
pub struct MemInfo {
    /// Memory that is zero at the start; entries that are not needed have size zero.
    pub fresh: [MemRange; MEM_FRESH_MAX],
    /// Guest physical address of the [`MemPage`].
    pub page: u64,
    /// Zero.
    pub reserved: [u64; 3],
}

/// How much memory the guest keeps from itself. Spec: PV-MEM-9
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
pub struct MemPage {
    /// Pages that the host would like the guest to keep from itself. Writer: host.
    pub wanted: u32,
    /// Zero.
    pub reserved0: [u32; 15],
    /// Pages that the guest keeps from itself and has reported. Writer: guest.
    pub kept: u32,
    /// Pages that the guest uses and would miss; zero: it does not say. Writer: guest. Spec:
    /// PV-MEM-14
    pub needed: u32,
    /// Zero.
    pub reserved1: [u32; 14],
}

const _: () = {
    assert!(core::mem::size_of::<MemRange>() == 16);
    assert!(core::mem::size_of::<MemInfo>() == 96);
    assert!(core::mem::size_of::<MemPage>() == 128);
    assert!(core::mem::offset_of!(MemPage, kept) == 64);
};
