// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! The boot-info page: what a guest would otherwise find out by probing.
//!
//! # How it works
//!
//! The host fills the page before the first instruction and does not write it again until a reset
//! or a restore, when [`BootInfo::generation`] changes. It lies in memory that the memory map
//! reports as reserved. Leaf base + 2 has its address. A guest reads it once, checks the header,
//! and ignores what lies beyond [`BootInfo::size`].
//!
//! Spec: PV-BOOT-1 to PV-BOOT-9

use super::clock::ClockInfo;
use super::console::ConsoleInfo;
use super::cpuid::CpuidInfo;
use super::delegate::DelegateInfo;
use super::dev::DevInfo;
use super::mem::MemInfo;
use super::rng::RngInfo;
use super::smp::SmpInfo;

/// `PARAVANE` in memory order. Spec: PV-BOOT-2
pub const BOOT_INFO_MAGIC: u64 = 0x454e_4156_4152_4150;

/// The boot-info page; the rest of its 4096 bytes is zero. Writer: host. Spec: PV-BOOT-1
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
pub struct BootInfo {
    /// [`BOOT_INFO_MAGIC`].
    pub magic: u64,
    /// ABI version, as `base.version` gives it.
    pub version: u32,
    /// Bytes of this structure that the host has filled.
    pub size: u32,
    /// Facility word: bit n = facility n.
    pub facilities: u64,
    /// Transport bits.
    pub transports: u32,
    /// Doorbell port of transport T0, 0 to 0xffff.
    pub doorbell_port: u32,
    /// Changes with every restore of a snapshot; 0 at first.
    pub generation: u64,
    /// Processors of the machine; their APIC ids are 0 to `vcpu_count` - 1.
    pub vcpu_count: u32,
    /// Zero.
    pub reserved0: u32,
    /// Facility `clock`; zero without it.
    pub clock: ClockInfo,
    /// Facility `console`; zero without it.
    pub console: ConsoleInfo,
    /// Facility `cpuid`; zero without it.
    pub cpuid: CpuidInfo,
    /// Facilities that are KVM's; zero where there is none.
    pub delegate: DelegateInfo,
    /// Facility `smp`; zero without it.
    pub smp: SmpInfo,
    /// Facility `mem`; zero without it.
    pub mem: MemInfo,
    /// Facility `rng`; zero without it.
    pub rng: RngInfo,
    /// Facility `dev`; zero without it.
    pub dev: DevInfo,
}

const _: () = {
    assert!(core::mem::size_of::<BootInfo>() == 304);
    assert!(core::mem::offset_of!(BootInfo, facilities) == 16);
    assert!(core::mem::offset_of!(BootInfo, generation) == 32);
    assert!(core::mem::offset_of!(BootInfo, clock) == 48);
    assert!(core::mem::offset_of!(BootInfo, console) == 96);
    assert!(core::mem::offset_of!(BootInfo, cpuid) == 128);
    assert!(core::mem::offset_of!(BootInfo, delegate) == 144);
    assert!(core::mem::offset_of!(BootInfo, smp) == 160);
    assert!(core::mem::offset_of!(BootInfo, mem) == 176);
    assert!(core::mem::offset_of!(BootInfo, rng) == 272);
    assert!(core::mem::offset_of!(BootInfo, dev) == 288);
};

impl BootInfo {
    /// Whether the page has facility `id`.
    #[must_use]
    pub const fn has(&self, id: u32) -> bool {
        id < 64 && self.facilities & (1 << id) != 0
    }
}
