// SPDX-License-Identifier: GPL-2.0-only

//! Facility `crash`: a guest's last words.
//!
//! A kernel that panics on a PC says what it can on a serial line and then waits to be killed.
//! Here the host gets a record, which it can print and symbolise, and then the machine stops.

use crate::{
    abi::{crash::*, registry::*},
    base, detect, kernel_c,
};
use core::{
    cell::UnsafeCell,
    ffi::{c_char, CStr},
    mem::size_of,
    sync::atomic::{AtomicBool, Ordering},
};

/// The one record of this kernel.
struct Record(UnsafeCell<CrashRecord>);

// SAFETY: Only the first caller of `paravane_crash` touches the record.
unsafe impl Sync for Record {}

static RECORD: Record = Record(UnsafeCell::new(CrashRecord {
    magic: CRASH_MAGIC,
    size: size_of::<CrashRecord>() as u32,
    cpu: 0,
    rip: 0,
    rsp: 0,
    cr2: 0,
    cr3: 0,
    backtrace_len: 0,
    message_len: 0,
    log_len: 0,
    reserved0: 0,
    backtrace: [0; CRASH_BACKTRACE_MAX],
    message: [0; CRASH_MESSAGE_MAX],
    log: [0; CRASH_LOG_MAX],
}));

static USED: AtomicBool = AtomicBool::new(false);

fn fill(record: &mut CrashRecord, message: &[u8]) {
    let mut registers = [0; 4];
    // SAFETY: `registers` has room for the four.
    unsafe { kernel_c::paravane_crash_registers(registers.as_mut_ptr()) };
    [record.rip, record.rsp, record.cr2, record.cr3] = registers;
    // SAFETY: No requirements.
    record.cpu = unsafe { kernel_c::paravane_apic_id() };

    let entries = record.backtrace.as_mut_ptr();
    // SAFETY: `entries` has room for that many.
    let count = unsafe { kernel_c::paravane_crash_backtrace(entries, CRASH_BACKTRACE_MAX as u32) };
    record.backtrace_len = count.min(CRASH_BACKTRACE_MAX as u32);

    let length = message.len().min(CRASH_MESSAGE_MAX);
    record.message[..length].copy_from_slice(&message[..length]);
    record.message_len = length as u32;

    // SAFETY: `log` has room for that many.
    let length =
        unsafe { kernel_c::paravane_crash_log(record.log.as_mut_ptr(), CRASH_LOG_MAX as u32) };
    record.log_len = length.min(CRASH_LOG_MAX as u32);
}

/// Reports a panic to the host, if it has facility `crash`, and stops the machine; returns only
/// where the host refuses.
///
/// # Safety
///
/// `message` is a C string.
#[no_mangle]
unsafe extern "C" fn paravane_crash(message: *const c_char) {
    let Some(host) = detect::host() else {
        return;
    };
    if host.info.has(FACILITY_CRASH) && !USED.swap(true, Ordering::AcqRel) {
        // SAFETY: By the function's requirement.
        let message = unsafe { CStr::from_ptr(message.cast()) };
        let record = RECORD.0.get();
        // SAFETY: `USED` has let nobody else here.
        fill(unsafe { &mut *record }, message.to_bytes());
        // SAFETY: `record` is a static object.
        let address = unsafe { kernel_c::paravane_pa(record.cast_const().cast()) };
        let size = size_of::<CrashRecord>() as u64;
        // SAFETY: The host only reads the record, and nobody writes it any more.
        let _ = unsafe { host.call(CALL_CRASH_REPORT, [address, size, 0]) };
    }
    base::power(POWER_CRASH, POWER_REASON_PANIC);
}
