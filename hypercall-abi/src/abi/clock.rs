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
//! Spec: PV-CLOCK-1 to PV-CLOCK-6

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
    /// Zero.
    pub reserved1: u64,
}

const _: () = assert!(core::mem::size_of::<ClockInfo>() == 48);
