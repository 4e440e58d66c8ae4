// SPDX-License-Identifier: GPL-2.0-only

//! A small submission ring (transports T1 and T2) in a page of the module's own, for a batch of
//! eight calls. `abi/ring.rs` has the protocol.

use crate::{
    abi::{call::*, registry::*, ring::*},
    bench_c,
    bench_native::tsc,
    call,
};
use core::{
    ffi::c_void,
    mem::offset_of,
    ptr,
    sync::atomic::{fence, Ordering},
};

/// Calls of a batch, and entries of the ring.
pub(crate) const BATCH: u32 = 8;
/// Cycles after which a host that looks is given up: a wait that does not end is no measurement.
const PATIENCE: u64 = 1 << 34;

const HEAD: u64 = offset_of!(RingHeader, head) as u64;
const TAIL: u64 = offset_of!(RingHeader, tail) as u64;
const HOST_LOOKS: u64 = offset_of!(RingHeader, host_looks) as u64;

/// The ring of this processor.
///
/// # Invariants
///
/// `page` is a page of this module, and the host has been told of it as the ring of the processor
/// `apic_id`.
pub(crate) struct Ring {
    page: *mut c_void,
    apic_id: u64,
    head: u32,
}

impl Ring {
    /// Registers a ring; `exitless`: that the host looks at by itself. `None` where it refuses.
    pub(crate) fn new(exitless: bool) -> Option<Self> {
        // SAFETY: No requirements.
        let (page, apic_id) = unsafe { (bench_c::pvbench_alloc(0), bench_c::pvbench_apic_id()) };
        if page.is_null() {
            return None;
        }
        // SAFETY: The page is ours, all of it. The host reads entries only after `head` has moved.
        let address = unsafe {
            ptr::write_bytes(page.cast::<u8>(), 0, PAGE_SIZE);
            bench_c::pvbench_pa(page)
        };
        let flags = if exitless { RING_EXITLESS } else { 0 };
        let apic_id = u64::from(apic_id);
        let arguments = [apic_id, address, u64::from(BATCH), flags];
        // SAFETY: The page is the host's until `drop`.
        if unsafe { call(CALL_RING_REGISTER, &arguments) }.is_err() {
            // SAFETY: Allocated above; the host has refused it.
            unsafe { bench_c::pvbench_free(page, 0) };
            return None;
        }
        // INVARIANT: The host has taken it.
        Some(Self {
            page,
            apic_id,
            head: 0,
        })
    }

    /// The word at `offset`.
    fn word(&self, offset: u64) -> *mut u32 {
        // SAFETY: All offsets are those of fields of the header, and the page is longer.
        unsafe { self.page.cast::<u8>().add(offset as usize).cast() }
    }

    /// Puts a batch of null calls into the ring and publishes it.
    fn fill(&mut self) {
        for index in 0..BATCH {
            let offset = entry_offset(self.head.wrapping_add(index), BATCH);
            let entry = RingEntry {
                call: CALL_BASE_VERSION,
                status: i32::MIN,
                ..RingEntry::default()
            };
            // SAFETY: The entry lies in the page, and the host does not look at it before `head`
            // has moved.
            unsafe { ptr::write_volatile(self.word(offset).cast::<RingEntry>(), entry) };
        }
        self.head = self.head.wrapping_add(BATCH);
        fence(Ordering::Release);
        // SAFETY: A word of the page.
        unsafe { ptr::write_volatile(self.word(HEAD), self.head) };
    }

    /// Whether all calls of the last batch were carried out.
    fn is_done(&self) -> bool {
        // SAFETY: A word of the page.
        let tail = unsafe { ptr::read_volatile(self.word(TAIL)) };
        fence(Ordering::Acquire);
        tail == self.head
            && (0..BATCH).all(|index| {
                let offset = entry_offset(index, BATCH);
                // SAFETY: An entry of the page, of integers only.
                let entry: RingEntry = unsafe { ptr::read_volatile(self.word(offset).cast()) };
                entry.result().is_ok()
            })
    }

    fn submit(&self) -> CallResult {
        // SAFETY: The ring is registered, and its entries have no addresses.
        unsafe { call(CALL_RING_SUBMIT, &[self.apic_id]) }
    }

    /// A batch for one doorbell. False: it went wrong.
    pub(crate) fn batch(&mut self) -> bool {
        self.fill();
        self.submit() == Ok(u64::from(BATCH)) && self.is_done()
    }

    /// A batch without a doorbell, where the host looks. False: it went wrong.
    pub(crate) fn exitless_batch(&mut self) -> bool {
        self.fill();
        fence(Ordering::SeqCst);
        // SAFETY: A word of the page.
        if unsafe { ptr::read_volatile(self.word(HOST_LOOKS)) } == 0 && self.submit().is_err() {
            return false;
        }
        let begin = tsc();
        while !self.is_done() {
            if tsc().wrapping_sub(begin) > PATIENCE {
                return false;
            }
            core::hint::spin_loop();
        }
        true
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: `ring.unregister` takes no address; by the type invariant the page is ours
        // again when it has succeeded, and a host that keeps it keeps it for good.
        unsafe {
            if call(CALL_RING_UNREGISTER, &[self.apic_id]).is_ok() {
                bench_c::pvbench_free(self.page, 0);
            }
        }
    }
}
