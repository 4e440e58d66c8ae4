// SPDX-License-Identifier: GPL-2.0-only

//! Facility `smp`: processors are started in 64-bit mode and stopped by a call.
//!
//! How many the host wants on stands in a page of its own, which is looked at when the event comes
//! and at any other: `smp_hooks.c` starts and stops processors until so many are on.

use crate::{
    abi::{
        boot_info::BootInfo,
        call::Status,
        registry::*,
        smp::{smp_wish, SmpPage},
    },
    detect::host,
    once::Once,
    shared_page::SharedRange,
};
use core::mem::offset_of;
use kernel::prelude::*;

/// The page with the host's wish.
static PAGE: Once<SharedRange> = Once::new();

/// Takes the processors' part of the boot-info page.
///
/// # Safety
///
/// Only the boot processor runs, and calls this once.
#[link_section = ".init.text"]
pub(crate) unsafe fn init(info: &BootInfo) {
    if !info.has(FACILITY_SMP) || info.smp.address == 0 {
        return;
    }
    match SharedRange::new(info.smp.address, PAGE_SIZE as u64) {
        // SAFETY: By the function's requirement.
        Some(page) => unsafe { PAGE.set(page) },
        None => pr_warn!(
            "smp: the page at {:#x} cannot be; not used\n",
            info.smp.address
        ),
    }
}

/// How many processors the host wants on; 0: it has no wish, or one that cannot be followed.
#[no_mangle]
extern "C" fn paravane_wanted_cpus() -> u32 {
    let (Some(host), Some(page)) = (host(), PAGE.get()) else {
        return 0;
    };
    let wanted = page.load_acquire(offset_of!(SmpPage, wanted));
    smp_wish(wanted, host.info.vcpu_count).unwrap_or(0)
}

/// Asks the host to raise `vector` on the processor `apic_id` when its wish changes; whether it
/// will.
#[no_mangle]
extern "C" fn paravane_smp_listen(vector: u32, apic_id: u32) -> bool {
    if PAGE.get().is_none() {
        return false;
    }
    let arguments = [u64::from(vector), u64::from(apic_id)];
    // SAFETY: `smp.event` takes no address, and `helpers.c` has a handler for the vector.
    host().is_some_and(|host| unsafe { host.call(CALL_SMP_EVENT, arguments) }.is_ok())
}

/// Whether the host has facility `smp`.
#[no_mangle]
extern "C" fn paravane_has_smp() -> bool {
    host().is_some_and(|host| host.info.has(FACILITY_SMP))
}

/// How often a start is asked for. A processor that was just taken off line is on until its
/// `smp.stop`, a moment after the kernel takes it for dead; a host refuses to start it before that.
const STARTS: u32 = 10_000;

/// Starts the processor with that APIC id at `rip`, with the stack at `rsp`, the page tables at
/// `root`, and `argument` in RDI. False: the host has refused.
///
/// # Safety
///
/// The kernel's start of a secondary processor is at `rip`, and `root` maps it.
#[no_mangle]
unsafe extern "C" fn paravane_start_cpu(
    apic_id: u32,
    rip: u64,
    rsp: u64,
    root: u64,
    argument: u64,
) -> bool {
    let Some(host) = host() else {
        return false;
    };
    let arguments = [u64::from(apic_id), rip, rsp, root, argument];
    let mut result = Err(Status::Denied);
    for _ in 0..STARTS {
        // SAFETY: By the function's requirement the processor runs the kernel's own code.
        result = unsafe { host.call(CALL_SMP_START, arguments) };
        if result != Err(Status::Denied) {
            break;
        }
    }
    match result {
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
