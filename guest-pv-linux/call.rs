// SPDX-License-Identifier: GPL-2.0-only

//! The call: the only assembly of this folder.
//!
//! # How it works
//!
//! Transport T0, the PIO doorbell: `out dx, eax` with the call id in EAX and the arguments in
//! registers; the host answers in RAX (status) and RDX (value). `abi::call` has the table.
//!
//! Every call is counted, so that what a guest saves can be told from what it does
//! (`paravane.ko` shows the counters).

use crate::abi::call::{CallId, CallResult, Status, CALLS, MAX_ARGS};
use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering},
};

/// How often each call of [`CALLS`] was made.
static COUNTS: [AtomicU64; CALLS.len()] = [const { AtomicU64::new(0) }; CALLS.len()];

/// The doorbell of transport T0.
///
/// # Invariants
///
/// A Paravane host answers on `port`.
pub(crate) struct Doorbell {
    port: u16,
}

impl Doorbell {
    /// The doorbell at `port`.
    ///
    /// # Safety
    ///
    /// This machine's host is a Paravane host and has announced `port` as its doorbell.
    pub(crate) const unsafe fn new(port: u16) -> Self {
        // INVARIANT: By the function's requirement.
        Self { port }
    }

    /// Makes the call `id` with up to six arguments; the others are zero.
    ///
    /// # Safety
    ///
    /// What `id` does with the arguments must be sound: an address among them must be that of
    /// memory which the host may access as the call says.
    pub(crate) unsafe fn call<const N: usize>(&self, id: u32, arguments: [u64; N]) -> CallResult {
        let mut all = [0; MAX_ARGS];
        for (to, from) in all.iter_mut().zip(arguments) {
            *to = from;
        }
        if let Some(index) = CALLS.iter().position(|&known| known == CallId(id)) {
            COUNTS[index].fetch_add(1, Ordering::Relaxed);
        }
        let status: i64;
        let value: u64;
        // SAFETY: By the type invariant a Paravane host answers on this port. It changes RAX and
        // RDX and, by the function's requirement, only memory that it may change; the compiler
        // takes an `asm!` without options to access any memory.
        unsafe {
            asm!(
                "out dx, eax",
                inlateout("rax") u64::from(id) => status,
                inlateout("rdx") u64::from(self.port) => value,
                in("rdi") all[0],
                in("rsi") all[1],
                in("r8") all[2],
                in("r9") all[3],
                in("r10") all[4],
                in("r11") all[5],
                options(nostack, preserves_flags),
            );
        }
        Status::decode(status, value)
    }
}

/// How often call number `index` of [`CALLS`] was made; 0 where there is no such number.
pub(crate) fn count(index: usize) -> u64 {
    COUNTS
        .get(index)
        .map_or(0, |count| count.load(Ordering::Relaxed))
}
