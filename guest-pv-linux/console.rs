// SPDX-License-Identifier: GPL-2.0-only

//! Facility `console`: bytes out and in through shared rings.
//!
//! They replace the UART, where every byte is one or two exits. The early console (registered as
//! soon as the host is found) and hvc0 write to the same output ring; a doorbell is rung only
//! when the host does not look at the ring by itself. `abi::console` has the protocol.
//!
//! The indices that are ours are kept here and only published in the shared page, so a host that
//! overwrites them there confuses nobody but itself. Those that are the host's are checked at
//! every use.

use crate::{
    abi::{
        boot_info::BootInfo,
        console::{ring_used, ConsoleInfo, ConsolePage},
        registry::*,
    },
    checks,
    detect::host,
    kernel_c,
    once::Once,
    shared_page::{full_barrier, SharedRange},
};
use core::{
    mem::offset_of,
    slice,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
use kernel::prelude::*;

const OUT_HEAD: usize = offset_of!(ConsolePage, out_head);
const OUT_TAIL: usize = offset_of!(ConsolePage, out_tail);
const HOST_LOOKS: usize = offset_of!(ConsolePage, host_looks);
const IN_HEAD: usize = offset_of!(ConsolePage, in_head);
const IN_TAIL: usize = offset_of!(ConsolePage, in_tail);

/// The rings.
struct Console {
    indices: SharedRange,
    out: SharedRange,
    out_size: u32,
    input: SharedRange,
    in_size: u32,
    /// Bytes ever written to the output ring. Under the output lock.
    out_head: AtomicU32,
    /// Bytes ever taken from the input ring. Under the lock of hvc0.
    in_tail: AtomicU32,
}

static CONSOLE: Once<Console> = Once::new();

/// How often bytes were published without ringing the doorbell.
static DOORBELLS_SAVED: AtomicU64 = AtomicU64::new(0);

/// How often bytes were published without ringing the doorbell.
pub(crate) fn doorbells_saved() -> u64 {
    DOORBELLS_SAVED.load(Ordering::Relaxed)
}

/// The lock of the output ring, with interrupts off.
struct OutputLock {
    flags: Option<usize>,
}

impl OutputLock {
    /// Takes the lock. A kernel that is dying goes on without it rather than wait for ever: then
    /// bytes may be mixed up, but stay in the ring.
    fn take() -> Self {
        let mut flags = 0;
        // SAFETY: `flags` is ours.
        let taken = unsafe { kernel_c::paravane_lock_output(&mut flags) };
        Self {
            flags: taken.then_some(flags),
        }
    }
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        if let Some(flags) = self.flags {
            // SAFETY: `take` has taken the lock and given these flags.
            unsafe { kernel_c::paravane_unlock_output(flags) };
        }
    }
}

impl Console {
    #[link_section = ".init.text"]
    fn new(info: &ConsoleInfo) -> Option<Self> {
        if !checks::console(info) {
            return None;
        }
        let page = PAGE_SIZE as u64;
        let out = info.address.checked_add(page)?;
        let input = out.checked_add(u64::from(info.out_size))?;
        let console = Self {
            indices: SharedRange::new(info.address, page)?,
            out: SharedRange::new(out, u64::from(info.out_size))?,
            out_size: info.out_size,
            input: SharedRange::new(input, u64::from(info.in_size))?,
            in_size: info.in_size,
            out_head: AtomicU32::new(0),
            in_tail: AtomicU32::new(0),
        };
        // A kernel that was started by another one (kexec) goes on where that one stopped.
        let head = console.indices.load_acquire(OUT_HEAD);
        let tail = console.indices.load_acquire(IN_TAIL);
        console.out_head.store(head, Ordering::Relaxed);
        console.in_tail.store(tail, Ordering::Relaxed);
        Some(console)
    }

    /// Rings the doorbell: the host takes what is in the output ring before it returns.
    fn notify(&self) -> bool {
        // SAFETY: `console.notify` takes no address.
        host().is_some_and(|host| unsafe { host.call(CALL_CONSOLE_NOTIFY, [0; 3]) }.is_ok())
    }

    /// Free bytes of the output ring; `None` where the host's index cannot be true.
    fn room(&self) -> Option<u32> {
        let head = self.out_head.load(Ordering::Relaxed);
        let tail = self.indices.load_acquire(OUT_TAIL);
        ring_used(head, tail, self.out_size).map(|used| self.out_size - used)
    }

    /// Puts as many of `bytes` into the output ring as there is room for, without publishing
    /// them; how many.
    fn fill(&self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room().unwrap_or(0) as usize);
        let head = self.out_head.load(Ordering::Relaxed);
        let start = (head & (self.out_size - 1)) as usize;
        let first = count.min(self.out_size as usize - start);
        self.out.copy_in(start, &bytes[..first]);
        self.out.copy_in(0, &bytes[first..count]);
        self.out_head
            .store(head.wrapping_add(count as u32), Ordering::Relaxed);
        count
    }

    /// Publishes what was put into the output ring.
    fn publish(&self) {
        self.indices
            .store_release(OUT_HEAD, self.out_head.load(Ordering::Relaxed));
    }

    /// Publishes, and rings the doorbell if the host does not look by itself.
    fn publish_and_wake(&self) {
        self.publish();
        full_barrier();
        if self.indices.load_acquire(HOST_LOOKS) == 0 {
            self.notify();
        } else {
            DOORBELLS_SAVED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts all of `bytes` into the output ring, without waking the host for the last of them. A
    /// full ring is drained by the doorbell. Where there is no room even then, the bytes are lost:
    /// nobody shall wait for such a host.
    fn write(&self, mut bytes: &[u8]) {
        loop {
            let done = self.fill(bytes);
            bytes = &bytes[done..];
            if bytes.is_empty() {
                return;
            }
            self.publish();
            if !self.notify() || self.room().unwrap_or(0) == 0 {
                return;
            }
        }
    }

    /// Takes bytes from the input ring; how many.
    fn read(&self, bytes: &mut [u8]) -> usize {
        let tail = self.in_tail.load(Ordering::Relaxed);
        let head = self.indices.load_acquire(IN_HEAD);
        let Some(used) = ring_used(head, tail, self.in_size) else {
            // The host's index cannot be true: treat the ring as empty.
            self.in_tail.store(head, Ordering::Relaxed);
            self.indices.store_release(IN_TAIL, head);
            return 0;
        };
        let count = bytes.len().min(used as usize);
        if count == 0 {
            return 0;
        }
        let start = (tail & (self.in_size - 1)) as usize;
        let first = count.min(self.in_size as usize - start);
        self.input.copy_out(start, &mut bytes[..first]);
        self.input.copy_out(0, &mut bytes[first..count]);
        let tail = tail.wrapping_add(count as u32);
        self.in_tail.store(tail, Ordering::Relaxed);
        self.indices.store_release(IN_TAIL, tail);
        count
    }
}

/// Takes the console's part of the boot-info page.
///
/// # Safety
///
/// Only the boot processor runs, and calls this once.
#[link_section = ".init.text"]
pub(crate) unsafe fn init(info: &BootInfo) {
    if !info.has(FACILITY_CONSOLE) {
        return;
    }
    match Console::new(&info.console) {
        // SAFETY: By the function's requirement.
        Some(console) => unsafe { CONSOLE.set(console) },
        None => pr_warn!(
            "console: rings of {} and {} bytes at {:#x} cannot be; not used\n",
            info.console.out_size,
            info.console.in_size,
            info.console.address
        ),
    }
}

/// Whether the host has facility `console`.
#[no_mangle]
extern "C" fn paravane_has_console() -> bool {
    CONSOLE.get().is_some()
}

/// Writes `count` bytes of kernel messages, each line feed with a carriage return before it.
///
/// # Safety
///
/// `bytes` points to `count` bytes.
#[no_mangle]
unsafe extern "C" fn paravane_console_print(bytes: *const u8, count: u32) {
    let Some(console) = CONSOLE.get() else {
        return;
    };
    // SAFETY: By the function's requirement.
    let bytes = unsafe { slice::from_raw_parts(bytes, count as usize) };
    let _lock = OutputLock::take();
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(line) => {
                console.write(line);
                console.write(b"\r\n");
            }
            None => {
                console.write(line);
            }
        }
    }
    console.publish_and_wake();
}

/// `hv_ops.put_chars`: writes `count` bytes; how many were taken, which is all.
///
/// # Safety
///
/// `bytes` points to `count` bytes.
#[no_mangle]
unsafe extern "C" fn paravane_console_put(_vtermno: u32, bytes: *const u8, count: usize) -> isize {
    let Some(console) = CONSOLE.get() else {
        return 0;
    };
    // SAFETY: By the function's requirement.
    let bytes = unsafe { slice::from_raw_parts(bytes, count) };
    let _lock = OutputLock::take();
    console.write(bytes);
    console.publish_and_wake();
    count as isize
}

/// `hv_ops.get_chars`: reads up to `count` bytes; how many there were. hvc calls it under its
/// lock.
///
/// # Safety
///
/// `bytes` points to `count` bytes that nobody else uses.
#[no_mangle]
unsafe extern "C" fn paravane_console_get(_vtermno: u32, bytes: *mut u8, count: usize) -> isize {
    let Some(console) = CONSOLE.get() else {
        return 0;
    };
    // SAFETY: By the function's requirement.
    let bytes = unsafe { slice::from_raw_parts_mut(bytes, count) };
    console.read(bytes) as isize
}

/// Asks the host to raise `vector` on the processor `apic_id` when input arrives; whether it will.
#[no_mangle]
extern "C" fn paravane_console_listen(vector: u32, apic_id: u32) -> bool {
    let arguments = [u64::from(vector), u64::from(apic_id), 0];
    // SAFETY: `console.event` takes no address, and `helpers.c` has a handler for the vector.
    host().is_some_and(|host| unsafe { host.call(CALL_CONSOLE_EVENT, arguments) }.is_ok())
}
