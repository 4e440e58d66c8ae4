// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facility `clock`: frequencies and the time of day, told instead of measured.
//!
//! # Background
//!
//! An unmodified kernel counts TSC ticks against a PIT channel, and LAPIC timer ticks against
//! jiffies, by reading device registers in loops, each read an exit; then it reads the CMOS clock
//! register by register until a second turns over. The host knows all of these.
//!
//! # How it works
//!
//! [`ClockInfo`] has the frequencies, and one pair (wall clock, TSC) taken at the same moment. The
//! time of day at TSC value `t` is
//! `wall_ns + (t - wall_tsc) * 10^9 / tsc_hz`; where the TSC is not reliable, `clock.wall` tells.
//!
//! That pair is of the start. A host whose own clock is stepped, or that goes on with a saved or a
//! migrated machine, says so in the [`ClockPage`], which has the pair of now: it changes
//! `disruption`, and raises the event that `clock.event` has asked for. Where the machine is a copy
//! `generation` changes as well. The page is written under a sequence lock: `sequence` is odd while
//! the host writes, and a guest that finds it odd, or changed, reads again.
//!
//! Spec: PV-CLOCK-1 to PV-CLOCK-14

/// [`ClockInfo::flags`]: all processors' TSCs count together, at `tsc_hz`, and never stop.
pub const CLOCK_TSC_RELIABLE: u32 = 0x0000_0001;

/// The clock part of the boot-info page. Writer: host. Spec: PV-CLOCK-1
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
pub struct ClockInfo {
    /// TSC frequency, Hz.
    pub tsc_hz: u64,
    /// Frequency at which the LAPIC timer counts with divide configuration 1, Hz.
    pub apic_timer_hz: u64,
    /// Nanoseconds since 1970-01-01 00:00:00 UTC when the TSC read `wall_tsc`.
    pub wall_ns: u64,
    /// The guest's TSC at `wall_ns`.
    pub wall_tsc: u64,
    /// `CLOCK_…` flags; undefined bits are zero.
    pub flags: u32,
    /// Zero.
    pub reserved0: u32,
    /// Guest physical address of the [`ClockPage`], page-aligned; zero: there is none.
    pub page: u64,
}

/// What a running guest has to know of its clock; the rest of its page is zero. Writer: host.
/// Spec: PV-CLOCK-7
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
pub struct ClockPage {
    /// Odd while the host writes to the page; another even number afterwards.
    pub sequence: u32,
    /// `CLOCK_…` flags, as in `ClockInfo`.
    pub flags: u32,
    /// Changes when the time of day does not follow from the pair of before.
    pub disruption: u64,
    /// `BootInfo::generation`.
    pub generation: u64,
    /// TSC frequency, Hz.
    pub tsc_hz: u64,
    /// Nanoseconds since 1970-01-01 00:00:00 UTC when the TSC read `wall_tsc`.
    pub wall_ns: u64,
    /// The guest's TSC at `wall_ns`.
    pub wall_tsc: u64,
    /// Zero: leap seconds and TAI are not known.
    pub reserved: [u64; 2],
}

const _: () = {
    assert!(core::mem::size_of::<ClockInfo>() == 48);
    assert!(core::mem::offset_of!(ClockInfo, page) == 40);
    assert!(core::mem::size_of::<ClockPage>() == 64);
    assert!(core::mem::offset_of!(ClockPage, disruption) == 8);
};
