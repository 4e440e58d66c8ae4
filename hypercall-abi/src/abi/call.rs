// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! The call: ids, status, and the registers of transport T0.
//!
//! # How it works
//!
//! A call crosses from guest to host with a call id and up to six arguments, and comes back with
//! a [`Status`] and one value. What a call means does not depend on how it crossed. On T0, the
//! PIO doorbell, the guest executes `out dx, eax` with
//!
//! | register | before | after |
//! |---|---|---|
//! | EAX | call id | RAX: status, signed 64 bit |
//! | DX | doorbell port (leaf base + 2, ECX) | RDX: value |
//! | RDI, RSI, R8, R9, R10, R11 | arguments 0 to 5; unused ones zero | unchanged |
//!
//! All other registers and RFLAGS are unchanged. The guest executes it in 64-bit mode; which of
//! its code may do so is up to its own I/O permissions (IOPL, TSS bitmap), as for every port, and
//! not to the host: the kernel of a deprivileged guest is not at CPL 0, and asking KVM for the
//! privilege level would cost every call a copy of the special registers.
//!
//! # Why this form
//!
//! An OUT to an unclaimed port reaches user space on every KVM, software ones included; VMCALL
//! does not. `KVM_CAP_SYNC_REGS` puts the registers in the shared run page, so a call costs the
//! exit and not one register ioctl more.
//!
//! Spec: PV-CALL-1 to PV-CALL-11

use super::registry::*;

/// The most arguments a call takes.
pub const MAX_ARGS: usize = 6;

/// Which call: facility in bits 31:16, function in bits 15:0. Any `u32` is a possible value; a
/// hostile guest sends them all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct CallId(pub u32);

impl CallId {
    /// The facility that the call belongs to (see `FACILITY_…`).
    #[must_use]
    pub const fn facility(self) -> u32 {
        self.0 >> 16
    }

    /// The function within the facility.
    #[must_use]
    pub const fn function(self) -> u32 {
        self.0 & 0xffff
    }

    /// The call's name as in the specification, `None` where the registry has no such call.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            CALL_BASE_VERSION => "base.version",
            CALL_BASE_FACILITIES => "base.facilities",
            CALL_BASE_PROBE => "base.probe",
            CALL_BASE_NOP => "base.nop",
            CALL_BASE_POWER => "base.power",
            CALL_CONSOLE_WRITE => "console.write",
            CALL_CONSOLE_NOTIFY => "console.notify",
            CALL_CONSOLE_EVENT => "console.event",
            CALL_CLOCK_WALL => "clock.wall",
            CALL_CLOCK_EVENT => "clock.event",
            CALL_SMP_START => "smp.start",
            CALL_SMP_STOP => "smp.stop",
            CALL_SMP_STATE => "smp.state",
            CALL_SMP_EVENT => "smp.event",
            CALL_MEM_REPORT => "mem.report",
            CALL_MEM_EVENT => "mem.event",
            CALL_RNG_FILL => "rng.fill",
            CALL_DEV_START => "dev.start",
            CALL_DEV_STOP => "dev.stop",
            CALL_CRASH_REPORT => "crash.report",
            CALL_RING_REGISTER => "ring.register",
            CALL_RING_UNREGISTER => "ring.unregister",
            CALL_RING_SUBMIT => "ring.submit",
            _ => return None,
        })
    }
}

impl core::fmt::Debug for CallId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({:#010x})", self.0),
            None => write!(f, "unknown call {:#010x}", self.0),
        }
    }
}

/// All calls of this version, for probing and for tests.
pub const CALLS: &[CallId] = &[
    CallId(CALL_BASE_VERSION),
    CallId(CALL_BASE_FACILITIES),
    CallId(CALL_BASE_PROBE),
    CallId(CALL_BASE_NOP),
    CallId(CALL_BASE_POWER),
    CallId(CALL_CONSOLE_WRITE),
    CallId(CALL_CONSOLE_NOTIFY),
    CallId(CALL_CONSOLE_EVENT),
    CallId(CALL_CLOCK_WALL),
    CallId(CALL_CLOCK_EVENT),
    CallId(CALL_SMP_START),
    CallId(CALL_SMP_STOP),
    CallId(CALL_SMP_STATE),
    CallId(CALL_SMP_EVENT),
    CallId(CALL_MEM_REPORT),
    CallId(CALL_MEM_EVENT),
    CallId(CALL_RNG_FILL),
    CallId(CALL_DEV_START),
    CallId(CALL_DEV_STOP),
    CallId(CALL_CRASH_REPORT),
    CallId(CALL_RING_REGISTER),
    CallId(CALL_RING_UNREGISTER),
    CallId(CALL_RING_SUBMIT),
];

/// Why a call was not carried out. The numbers are `STATUS_…` in the registry; success is not an
/// error and has no variant here. Spec: PV-CALL-9
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i64)]
pub enum Status {
    /// No such call, or its facility is switched off.
    NotSupported = STATUS_NOT_SUPPORTED,
    /// An argument is out of its range, or a reserved bit or register is not zero.
    InvalidParam = STATUS_INVALID_PARAM,
    /// An address range is not wholly in guest memory, or is misaligned.
    BadAddress = STATUS_BAD_ADDRESS,
    /// The call is known, but not allowed from here or now.
    Denied = STATUS_DENIED,
    /// The host cannot serve the call now; the guest may try again.
    Busy = STATUS_BUSY,
    /// The host failed. Also what a guest makes of a number it does not know.
    HostError = STATUS_HOST_ERROR,
}

/// What a call gives: its one value, or the [`Status`] that says why not.
pub type CallResult = core::result::Result<u64, Status>;

impl Status {
    /// The number that crosses, for RAX.
    #[must_use]
    pub const fn code(self) -> i64 {
        self as i64
    }

    /// What `(rax, rdx)` of a finished call mean. A status this version does not know counts as
    /// [`Status::HostError`]. Spec: PV-CALL-5
    ///
    /// # Errors
    ///
    /// The status, where `rax` is not `STATUS_OK`.
    pub const fn decode(rax: i64, rdx: u64) -> CallResult {
        match rax {
            STATUS_OK => Ok(rdx),
            STATUS_NOT_SUPPORTED => Err(Status::NotSupported),
            STATUS_INVALID_PARAM => Err(Status::InvalidParam),
            STATUS_BAD_ADDRESS => Err(Status::BadAddress),
            STATUS_DENIED => Err(Status::Denied),
            STATUS_BUSY => Err(Status::Busy),
            _ => Err(Status::HostError),
        }
    }

    /// `(rax, rdx)` for a result: the value is zero where the call failed.
    #[must_use]
    pub const fn encode(result: CallResult) -> (i64, u64) {
        match result {
            Ok(value) => (STATUS_OK, value),
            Err(status) => (status.code(), 0),
        }
    }
}
