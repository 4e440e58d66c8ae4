// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facility `ring`: many calls for one crossing, or for none.
//!
//! # Background
//!
//! A call through the doorbell costs an exit, whatever it does. Xen's multicall and the rep calls
//! of Hyper-V spread one exit over many operations; a ring that the host watches needs none.
//!
//! # How it works
//!
//! A guest gives each processor that wants one a ring: `ring.register` with the APIC id, the
//! page-aligned address of a [`RingHeader`], the number of [`RingEntry`]s that follow it at once,
//! and flags. Both indices run freely (modulo 2^32) and are masked on use: `head - tail` entries
//! wait, never more than there are.
//!
//! *Batch (transport T1).* The guest fills entries, publishes `head` (release) and calls
//! `ring.submit`. The host takes entry by entry: it copies the entry, carries the call out, writes
//! status and value into the entry, and publishes `tail` (release). Each entry has its own status:
//! one that fails does not keep the next from being carried out. An entry that stops the machine
//! is the last. An entry with a call of this facility is refused: rings do not nest.
//!
//! *Exitless (transport T2).* With [`RING_EXITLESS`] the host looks at the ring by itself while
//! `host_looks` is not zero. The guest publishes `head`, makes a full barrier, and reads
//! `host_looks`. Zero: it calls `ring.submit`. Otherwise it waits for `tail`. The host, before it
//! stops looking, clears `host_looks`, makes a full barrier and looks once more; so no entry is
//! left behind. The protocol is that of `console.rs`.
//!
//! `head` from the guest is hostile: one that says that more entries wait than there are makes the
//! host treat the ring as empty and move `tail` to `head`.
//!
//! Spec: PV-RING-1 to PV-RING-24

use super::call::{CallResult, Status, MAX_ARGS};

/// Flag of `ring.register`: the host looks at the ring by itself. Spec: PV-RING-12
pub const RING_EXITLESS: u64 = 0x1;
/// Most entries of one ring. Spec: PV-RING-2
pub const RING_ENTRIES_MAX: u32 = 256;

/// The indices, each side's on its own cache line; the entries follow. Spec: PV-RING-10
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
pub struct RingHeader {
    /// Entries ever published. Writer: guest.
    pub head: u32,
    /// Zero.
    pub reserved0: [u32; 15],
    /// Entries ever completed. Writer: host.
    pub tail: u32,
    /// Not zero while the host looks at the ring by itself. Writer: host.
    pub host_looks: u32,
    /// Zero.
    pub reserved1: [u32; 14],
}

/// One call of a ring, on a cache line of its own. Spec: PV-RING-6
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
pub struct RingEntry {
    /// Call id. Writer: guest.
    pub call: u32,
    /// `STATUS_…`, when the entry has been completed. Writer: host.
    pub status: i32,
    /// The call's value, when the entry has been completed. Writer: host.
    pub value: u64,
    /// Arguments; unused ones zero. Writer: guest.
    pub args: [u64; MAX_ARGS],
}

const _: () = {
    assert!(core::mem::size_of::<RingHeader>() == 128);
    assert!(core::mem::offset_of!(RingHeader, tail) == 64);
    assert!(core::mem::offset_of!(RingHeader, host_looks) == 68);
    assert!(core::mem::size_of::<RingEntry>() == 64);
    assert!(core::mem::offset_of!(RingEntry, status) == 4);
    assert!(core::mem::offset_of!(RingEntry, value) == 8);
    assert!(core::mem::offset_of!(RingEntry, args) == 16);
};

impl RingEntry {
    /// What a completed entry's call gave. Spec: PV-CALL-5
    ///
    /// # Errors
    ///
    /// The status, where it is not `STATUS_OK`.
    pub const fn result(&self) -> CallResult {
        Status::decode(self.status as i64, self.value)
    }
}

/// Whether a ring can have so many entries. Spec: PV-RING-2
#[must_use]
pub const fn is_ring_size(entries: u32) -> bool {
    entries.is_power_of_two() && entries <= RING_ENTRIES_MAX
}

/// Bytes of a ring with so many entries, header included.
#[must_use]
pub const fn ring_bytes(entries: u32) -> u64 {
    core::mem::size_of::<RingHeader>() as u64
        + entries as u64 * core::mem::size_of::<RingEntry>() as u64
}

/// Where the entry with the free-running `index` lies, from the header's first byte. `entries` is a
/// power of two.
#[must_use]
pub const fn entry_offset(index: u32, entries: u32) -> u64 {
    ring_bytes(index & (entries - 1))
}
