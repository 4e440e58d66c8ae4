// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facility `console`: bytes out and in through shared rings.
//!
//! # Background
//!
//! On a UART every character is an exit (two, with the status register). Here characters go into
//! memory, and a crossing is needed only to wake a host that is not looking.
//!
//! # How it works
//!
//! [`ConsoleInfo::address`] is the guest physical address of a [`ConsolePage`]; the output buffer
//! follows it at the next page, the input buffer follows the output buffer. Both sizes are powers
//! of two. All four indices run freely (modulo 2^32) and are masked on use:
//! `head - tail` bytes are in a ring, never more than its size.
//!
//! *Output.* The guest writes bytes, then publishes `out_head` (release), then, after a full
//! barrier, reads `host_looks`. Zero: it calls `console.notify`. Otherwise the host has promised to
//! look by itself within a few milliseconds. The host, before it stops looking, clears
//! `host_looks`, makes a full barrier and looks once more; so no byte is left behind.
//! A guest that finds the ring full calls `console.notify`, which drains it before it returns.
//!
//! *Input.* The host writes bytes, publishes `in_head`, and raises the event that
//! `console.event` asked for. The guest consumes and publishes `in_tail`.
//!
//! Indices from the other side are hostile: one that says that a ring holds more than its size
//! makes the host treat the ring as empty and move `out_tail` to `out_head`.
//!
//! Spec: PV-CONSOLE-1 to PV-CONSOLE-15

/// The console part of the boot-info page. Writer: host. Spec: PV-CONSOLE-2
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
pub struct ConsoleInfo {
    /// Guest physical address of the [`ConsolePage`], page-aligned.
    pub address: u64,
    /// Bytes in the output buffer, a power of two, at least one page.
    pub out_size: u32,
    /// Bytes in the input buffer, a power of two, at least one page.
    pub in_size: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

/// The indices, each on its own cache line, so that neither side's write takes the other's line
/// away. Spec: PV-CONSOLE-3
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
pub struct ConsolePage {
    /// Bytes ever written to the output ring. Writer: guest.
    pub out_head: u32,
    /// Zero.
    pub reserved0: [u32; 15],
    /// Bytes ever taken from the output ring. Writer: host.
    pub out_tail: u32,
    /// Not zero while the host looks at the output ring by itself. Writer: host.
    pub host_looks: u32,
    /// Zero.
    pub reserved1: [u32; 14],
    /// Bytes ever written to the input ring. Writer: host.
    pub in_head: u32,
    /// Zero.
    pub reserved2: [u32; 15],
    /// Bytes ever taken from the input ring. Writer: guest.
    pub in_tail: u32,
    /// Zero.
    pub reserved3: [u32; 15],
}

const _: () = {
    assert!(core::mem::size_of::<ConsoleInfo>() == 32);
    assert!(core::mem::size_of::<ConsolePage>() == 256);
    assert!(core::mem::offset_of!(ConsolePage, out_tail) == 64);
    assert!(core::mem::offset_of!(ConsolePage, host_looks) == 68);
    assert!(core::mem::offset_of!(ConsolePage, in_head) == 128);
    assert!(core::mem::offset_of!(ConsolePage, in_tail) == 192);
};

/// Bytes in a ring, `None` where the indices cannot be true. Spec: PV-CONSOLE-4
#[must_use]
pub const fn ring_used(head: u32, tail: u32, size: u32) -> Option<u32> {
    let used = head.wrapping_sub(tail);
    if used <= size {
        Some(used)
    } else {
        None
    }
}
