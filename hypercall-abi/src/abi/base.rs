// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facility `base`: version, probing, power.
//!
//! # Background
//!
//! A legacy PC has no single way to go off: a kernel tries ACPI, the keyboard controller, the
//! BIOS and at last a triple fault. Here it is one call that also says why.
//!
//! Spec: PV-BASE-1 to PV-BASE-7

use super::registry::*;

/// What `base.power` shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerAction {
    /// The machine goes off.
    Off,
    /// The machine starts again.
    Reboot,
    /// The machine stops because its kernel has failed.
    Crash,
}

impl PowerAction {
    /// From argument 0 of `base.power`; `None` for a number the registry does not have.
    #[must_use]
    pub const fn from_arg(arg: u64) -> Option<Self> {
        match arg {
            POWER_OFF => Some(Self::Off),
            POWER_REBOOT => Some(Self::Reboot),
            POWER_CRASH => Some(Self::Crash),
            _ => None,
        }
    }
}

/// Why `base.power` was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerReason {
    /// None given, or an orderly request of user space.
    None,
    /// Kernel panic.
    Panic,
    /// Emergency restart.
    Emergency,
}

impl PowerReason {
    /// From argument 1 of `base.power`; `None` for a number the registry does not have.
    #[must_use]
    pub const fn from_arg(arg: u64) -> Option<Self> {
        match arg {
            POWER_REASON_NONE => Some(Self::None),
            POWER_REASON_PANIC => Some(Self::Panic),
            POWER_REASON_EMERGENCY => Some(Self::Emergency),
            _ => None,
        }
    }
}
