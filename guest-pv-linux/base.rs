// SPDX-License-Identifier: GPL-2.0-only

//! Facility `base`: power off, restart, emergency restart.
//!
//! They replace what `machine_ops` does on a PC: ACPI, the keyboard controller, the BIOS, a
//! triple fault. A call that comes back has failed; then `helpers.c` goes the native way.

use crate::{abi::registry::*, detect::host};

/// The machine does `action`; returns only where the host refuses.
pub(crate) fn power(action: u64, reason: u64) {
    if let Some(host) = host() {
        // SAFETY: `base.power` takes no address.
        let _ = unsafe { host.call(CALL_BASE_POWER, [action, reason, 0]) };
    }
}

/// Powers off; returns only where the host refuses.
#[no_mangle]
extern "C" fn paravane_power_off() {
    power(POWER_OFF, POWER_REASON_NONE);
}

/// Restarts in an orderly way; returns only where the host refuses. The command that user space
/// may have given means nothing to the host.
#[no_mangle]
extern "C" fn paravane_restart(_command: *mut core::ffi::c_char) {
    power(POWER_REBOOT, POWER_REASON_NONE);
}

/// Restarts at once; returns only where the host refuses.
#[no_mangle]
extern "C" fn paravane_emergency_restart() {
    power(POWER_REBOOT, POWER_REASON_EMERGENCY);
}
