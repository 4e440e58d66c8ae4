// SPDX-License-Identifier: GPL-2.0-only

//! Facility `dev`: virtio devices that the host names in a table.
//!
//! A device is started by one call when its driver is ready, and its doorbell is a port that the
//! host's kernel listens to. `virtio.c` has what the kernel's drivers call.

use crate::{
    abi::{boot_info::BootInfo, dev::*, registry::*},
    checks,
    detect::host,
    kernel_c,
    once::Once,
    shared_page::SharedRange,
};
use core::{
    mem::{offset_of, size_of},
    slice,
};
use kernel::prelude::*;

/// The table, as far as it makes sense.
struct Table {
    page: SharedRange,
    count: u32,
    port: u16,
}

static TABLE: Once<Table> = Once::new();

/// `struct paravane_dev`: what the kernel's drivers want to know of a device.
#[repr(C)]
struct About {
    kind: u32,
    queues: u32,
    queue_max: u32,
    features: u64,
}

/// Takes the devices' part of the boot-info page.
///
/// # Safety
///
/// Only the boot processor runs, and calls this once.
#[link_section = ".init.text"]
pub(crate) unsafe fn init(info: &BootInfo) {
    let DevInfo {
        address,
        count,
        doorbell_port,
    } = info.dev;
    if !info.has(FACILITY_DEV) || count == 0 {
        return;
    }
    let page = SharedRange::new(address, PAGE_SIZE as u64);
    let port = u16::try_from(doorbell_port);
    match (page, port) {
        (Some(page), Ok(port)) if count as usize <= DEV_MAX => {
            // SAFETY: By the function's requirement.
            unsafe { TABLE.set(Table { page, count, port }) };
        }
        _ => pr_warn!(
            "dev: a table of {count} at {address:#x}, doorbell {doorbell_port:#x}, cannot be; not used\n"
        ),
    }
}

/// How many devices there are.
#[no_mangle]
extern "C" fn paravane_dev_count() -> u32 {
    TABLE.get().map_or(0, |table| table.count)
}

/// The table, and where it has device `number`.
fn find(number: u32) -> Option<(&'static Table, usize)> {
    let table = TABLE.get().filter(|table| number < table.count)?;
    Some((table, number as usize * size_of::<DevEntry>()))
}

fn word(number: u32, field: usize) -> u32 {
    find(number).map_or(0, |(table, at)| table.page.load_acquire(at + field))
}

/// What device `number` is; false where it cannot be.
///
/// # Safety
///
/// `about` can be written to.
#[no_mangle]
unsafe extern "C" fn paravane_dev_describe(number: u32, about: *mut About) -> bool {
    let Some((table, at)) = find(number) else {
        return false;
    };
    // SAFETY: Any bytes make a valid `DevEntry`: it has integers only.
    let entry: DevEntry = unsafe { table.page.read(at) };
    if !checks::device(&entry) {
        pr_warn!(
            "dev: device {number} has {} queues of {}; not used\n",
            entry.queues,
            entry.queue_max
        );
        return false;
    }
    let found = About {
        kind: entry.kind,
        queues: entry.queues,
        queue_max: entry.queue_max,
        features: entry.features,
    };
    // SAFETY: By the function's requirement.
    unsafe { about.write(found) };
    true
}

/// Copies a part of the configuration of device `number`; what lies beyond its end is zero.
///
/// # Safety
///
/// `length` bytes at `buffer` can be written to.
#[no_mangle]
unsafe extern "C" fn paravane_dev_config(number: u32, offset: u32, buffer: *mut u8, length: u32) {
    // SAFETY: By the function's requirement; any bytes are valid ones.
    let buffer = unsafe { slice::from_raw_parts_mut(buffer, length as usize) };
    buffer.fill(0);
    let Some((table, at)) = find(number) else {
        return;
    };
    let offset = (offset as usize).min(DEV_CONFIG_BYTES);
    let count = buffer.len().min(DEV_CONFIG_BYTES - offset);
    let from = at + offset_of!(DevEntry, config) + offset;
    table.page.copy_out(from, &mut buffer[..count]);
}

/// Changes with the configuration.
#[no_mangle]
extern "C" fn paravane_dev_generation(number: u32) -> u32 {
    word(number, offset_of!(DevEntry, generation))
}

/// Whether the host has stopped serving device `number`.
#[no_mangle]
extern "C" fn paravane_dev_needs_reset(number: u32) -> bool {
    word(number, offset_of!(DevEntry, state)) & DEV_NEEDS_RESET != 0
}

/// Starts device `number`; whether the host has.
///
/// # Safety
///
/// A `DevStart` lies at the physical address `start`, and its queues are the device's until
/// `paravane_dev_stop`.
#[no_mangle]
unsafe extern "C" fn paravane_dev_start(number: u32, start: u64) -> bool {
    let Some(host) = host() else {
        return false;
    };
    // SAFETY: By the function's requirement the host writes to the driver's queues only.
    match unsafe { host.call(CALL_DEV_START, [u64::from(number), start]) } {
        Ok(_) => true,
        Err(status) => {
            pr_err!("dev: device {number} does not start: {status:?}\n");
            false
        }
    }
}

/// Stops device `number`: the host does not access its queues any more.
#[no_mangle]
extern "C" fn paravane_dev_stop(number: u32) {
    if let Some(host) = host() {
        // SAFETY: `dev.stop` takes no address.
        if let Err(status) = unsafe { host.call(CALL_DEV_STOP, [u64::from(number)]) } {
            pr_err!("dev: device {number} does not stop: {status:?}\n");
        }
    }
}

/// Tells the host that queue `queue` of device `number` has something.
#[no_mangle]
extern "C" fn paravane_dev_ring(number: u32, queue: u32) {
    if let Some(table) = TABLE.get() {
        let what = number | queue << DEV_DOORBELL_QUEUE_SHIFT;
        // SAFETY: The host says that the port is the doorbell, and a doorbell changes no memory
        // but that of the queue, which is the host's.
        unsafe { kernel_c::paravane_out(table.port, what) };
    }
}
