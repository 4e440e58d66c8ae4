// SPDX-License-Identifier: GPL-2.0-only

//! Detection: CPUID block, boot-info page, facilities.
//!
//! # How it works
//!
//! `cpuid` has found the block when the kernel executed its first CPUID. The boot-info page has all
//! that leaf base + 1 has, so that leaf is not read.
//!
//! What the host says is checked here and then copied; nothing reads the page again.

use crate::{
    abi::{
        boot_info::*,
        call::{CallResult, Status},
        registry::*,
    },
    call::Doorbell,
    checks, clock, console, cpuid, dev, mem,
    once::Once,
    shared_page::SharedRange,
    smp,
};
use kernel::prelude::*;

/// The host, as detection found it.
pub(crate) struct Host {
    doorbell: Doorbell,
    /// The boot-info page, checked; parts beyond its `size` are zero.
    pub(crate) info: BootInfo,
}

/// How often a call is made while the host is busy or has failed.
const TRIES: u32 = 100;

static HOST: Once<Host> = Once::new();

/// The host, `None` where there is no Paravane host.
pub(crate) fn host() -> Option<&'static Host> {
    HOST.get()
}

impl Host {
    /// Makes a call, see [`Doorbell::call`].
    ///
    /// A host that is busy, or has failed, is asked again, but not for ever.
    ///
    /// # Safety
    ///
    /// As for [`Doorbell::call`].
    pub(crate) unsafe fn call<const N: usize>(&self, id: u32, arguments: [u64; N]) -> CallResult {
        let mut result = Err(Status::Busy);
        for _ in 0..TRIES {
            // SAFETY: The requirement is the same.
            result = unsafe { self.doorbell.call(id, arguments) };
            if !matches!(result, Err(Status::Busy | Status::HostError)) {
                break;
            }
        }
        result
    }
}

/// Reads and checks the boot-info page; the doorbell port is in its low 16 bits.
#[link_section = ".init.text"]
fn read_boot_info(address: u64, port: u32) -> Option<BootInfo> {
    let Some(page) = SharedRange::new(address, PAGE_SIZE as u64) else {
        pr_warn!("boot-info page at {address:#x} is not in reserved memory below 1 MiB\n");
        return None;
    };
    // SAFETY: Any bytes make a valid `BootInfo`: it has integers only.
    let page: BootInfo = unsafe { page.read(0) };
    let info = checks::boot_info(&page, port);
    if info.is_none() {
        pr_warn!(
            "boot info: magic {:#x}, size {}, facilities {:#x}, transports {:#x}, port {:#x}\n",
            page.magic,
            page.size,
            page.facilities,
            page.transports,
            page.doorbell_port
        );
    }
    info
}

/// Looks for a Paravane host: the base of its CPUID block, or 0.
///
/// Called once, by the boot processor, from `x86_hyper_paravane.detect`, where CPUID says that
/// there is a hypervisor.
#[no_mangle]
#[link_section = ".init.text"]
extern "C" fn paravane_detect() -> u32 {
    let Some(block) = cpuid::block() else {
        return 0;
    };
    let Some(info) = read_boot_info(block.boot_info, block.port) else {
        pr_err!("found a Paravane host that cannot be used; booting as on bare hardware\n");
        return 0;
    };
    // SAFETY: The signature is there, and CPUID and the boot-info page agree about the port,
    // which is at most 0xffff.
    let doorbell = unsafe { Doorbell::new(block.port as u16) };
    // SAFETY: Only the boot processor runs, and it calls this function once.
    unsafe { HOST.set(Host { doorbell, info }) };
    // SAFETY: As above.
    unsafe {
        clock::init(&info);
        console::init(&info);
        smp::init(&info);
        mem::init(&info);
        dev::init(&info);
    }
    block.base
}

/// Processors of the machine, at least one.
#[no_mangle]
extern "C" fn paravane_vcpu_count() -> u32 {
    host().map_or(1, |host| host.info.vcpu_count.max(1))
}
