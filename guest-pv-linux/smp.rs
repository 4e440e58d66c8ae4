// SPDX-License-Identifier: GPL-2.0-only

//! Facility `smp`: processors are started in 64-bit mode and stopped by a call.

use crate::{abi::registry::*, detect::host};
use kernel::prelude::*;

/// Whether the host has facility `smp`.
#[no_mangle]
extern "C" fn paravane_has_smp() -> bool {
    host().is_some_and(|host| host.info.has(FACILITY_SMP))
}

/// Starts the processor with that APIC id at `rip`, with the page tables at `root`. False: the host
/// has refused.
///
/// # Safety
///
/// The kernel's start of a secondary processor is at `rip`, and `root` maps it.
#[no_mangle]
unsafe extern "C" fn paravane_start_cpu(apic_id: u32, rip: u64, root: u64) -> bool {
    let Some(host) = host() else {
        return false;
    };
    // SAFETY: By the function's requirement the processor runs the kernel's own code.
    match unsafe { host.call(CALL_SMP_START, [u64::from(apic_id), rip, 0, root]) } {
        Ok(_) => true,
        Err(status) => {
            pr_warn!("smp: processor {apic_id} is not started: {status:?}\n");
            false
        }
    }
}

/// Switches this processor off; returns where the host refuses.
#[no_mangle]
extern "C" fn paravane_stop_cpu() {
    if let Some(host) = host() {
        // SAFETY: `smp.stop` takes no address; the kernel has taken this processor off line.
        let _ = unsafe { host.call(CALL_SMP_STOP, []) };
    }
}
