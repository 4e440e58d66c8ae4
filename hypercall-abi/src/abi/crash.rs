// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facility `crash`: a guest's last words.
//!
//! # How it works
//!
//! A kernel that panics fills one [`CrashRecord`] and calls `crash.report` with its address; the
//! host copies it, symbolises the addresses with the kernel's ELF file and prints it. Then the
//! guest calls `base.power(POWER_CRASH, POWER_REASON_PANIC)`.
//!
//! Spec: PV-CRASH-1 to PV-CRASH-3

/// `PVCRASH1` in memory order.
pub const CRASH_MAGIC: u64 = 0x3148_5341_5243_5650;
/// Most return addresses in a record.
pub const CRASH_BACKTRACE_MAX: usize = 32;
/// Most bytes of message in a record.
pub const CRASH_MESSAGE_MAX: usize = 256;
/// Most bytes of kernel log in a record.
pub const CRASH_LOG_MAX: usize = 2048;

/// A panic record. Writer: guest. Spec: PV-CRASH-2
#[cfg_attr(
    feature = "zerocopy",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CrashRecord {
    /// [`CRASH_MAGIC`].
    pub magic: u64,
    /// Bytes of this structure.
    pub size: u32,
    /// APIC id of the processor that panicked.
    pub cpu: u32,
    /// Where it was executing, a guest virtual address.
    pub rip: u64,
    /// Its stack pointer.
    pub rsp: u64,
    /// CR2, the last page fault's address.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// Valid entries of `backtrace`.
    pub backtrace_len: u32,
    /// Valid bytes of `message`.
    pub message_len: u32,
    /// Valid bytes of `log`.
    pub log_len: u32,
    /// Zero.
    pub reserved0: u32,
    /// Return addresses, innermost first.
    pub backtrace: [u64; CRASH_BACKTRACE_MAX],
    /// The panic's message, UTF-8 as far as the guest knows.
    pub message: [u8; CRASH_MESSAGE_MAX],
    /// The newest part of the kernel log.
    pub log: [u8; CRASH_LOG_MAX],
}

const _: () = {
    assert!(core::mem::size_of::<CrashRecord>() == 2624);
    assert!(core::mem::offset_of!(CrashRecord, backtrace) == 64);
    assert!(core::mem::offset_of!(CrashRecord, message) == 320);
    assert!(core::mem::offset_of!(CrashRecord, log) == 576);
};
