// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facility `rng`: random numbers of the host.
//!
//! # Background
//!
//! A kernel that has just started has measured little that nobody can know, and whoever needs a
//! key waits until it has, for seconds on a machine without devices. After a restore it is worse:
//! two machines go on with the same generator. The host has random numbers.
//!
//! # How it works
//!
//! [`RngInfo`] says where a seed lies, which the guest takes at its start, and wipes. Later, and
//! above all after a restore, `rng.fill` gives more. Whether such bits count as entropy is for the
//! guest to decide: the host could know them.
//!
//! Spec: PV-RNG-1 to PV-RNG-6

/// Fewest bytes of a seed. Spec: PV-RNG-1
pub const RNG_SEED_MIN: u32 = 32;
/// Most bytes that one `rng.fill` writes. Spec: PV-RNG-4
pub const RNG_FILL_MAX: u64 = 256;

/// The random-number part of the boot-info page. Writer: host. Spec: PV-RNG-1
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
pub struct RngInfo {
    /// Guest physical address of the seed, page-aligned; nothing else is in that page.
    pub address: u64,
    /// Bytes of the seed; zero: there is none.
    pub length: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(core::mem::size_of::<RngInfo>() == 16);
