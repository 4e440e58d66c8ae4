// SPDX-License-Identifier: GPL-2.0-only

//! The module `paravane.ko`: what the host offers and how much of it is used, in debugfs.
//!
//! | file below `/sys/kernel/debug/paravane` | has |
//! |---|---|
//! | `version` | ABI version |
//! | `facilities` | names of the facilities that the host offers, one a line |
//! | `transports` | names of the transports |
//! | `generation` | changes when the machine is restored from a snapshot |
//! | `calls` | calls made since boot, by name, and doorbells that were not needed |

use core::{
    ffi::{c_char, c_void},
    fmt::{self, Write},
    ptr::NonNull,
};
use kernel::{c_str, prelude::*, str::CStr};

pub mod abi;

use abi::{call::CALLS, registry::*};

module! {
    type: Paravane,
    name: "paravane",
    author: "Paravane maintainers",
    description: "State and counters of a Paravane guest",
    license: "GPL",
}

extern "C" {
    fn paravane_value(which: u32) -> u64;
    fn paravane_call_count(index: u32) -> u64;
    fn paravane_debugfs_dir() -> *mut c_void;
    fn paravane_debugfs_file(
        dir: *mut c_void,
        name: *const c_char,
        show: unsafe extern "C" fn(*mut c_void),
    ) -> bool;
    fn paravane_debugfs_remove(dir: *mut c_void);
    fn paravane_seq_write(file: *mut c_void, bytes: *const c_void, count: usize);
}

/// What the built-in part tells; the numbers are those of `paravane_rust_value`.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Value {
    Present = 0,
    Version = 1,
    Facilities = 2,
    Transports = 3,
    Generation = 4,
    DoorbellsSaved = 5,
}

impl Value {
    fn get(self) -> u64 {
        // SAFETY: No requirements.
        unsafe { paravane_value(self as u32) }
    }
}

const FACILITIES: [(u32, &str); 17] = [
    (FACILITY_BASE, "base"),
    (FACILITY_CONSOLE, "console"),
    (FACILITY_CLOCK, "clock"),
    (FACILITY_TIMER, "timer"),
    (FACILITY_IRQ, "irq"),
    (FACILITY_IPI, "ipi"),
    (FACILITY_TLB, "tlb"),
    (FACILITY_SCHED, "sched"),
    (FACILITY_SMP, "smp"),
    (FACILITY_MEM, "mem"),
    (FACILITY_RNG, "rng"),
    (FACILITY_DEV, "dev"),
    (FACILITY_CRASH, "crash"),
    (FACILITY_CPU, "cpu"),
    (FACILITY_MMU, "mmu"),
    (FACILITY_RING, "ring"),
    (FACILITY_CPUID, "cpuid"),
];

const TRANSPORTS: [(u32, &str); 4] = [
    (TRANSPORT_DOORBELL, "doorbell"),
    (TRANSPORT_RING, "ring"),
    (TRANSPORT_EXITLESS, "exitless"),
    (TRANSPORT_VMCALL, "vmcall"),
];

/// A `struct seq_file` while it is shown.
struct SeqFile(*mut c_void);

impl Write for SeqFile {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: The pointer came from the kernel for the time of this show.
        unsafe { paravane_seq_write(self.0, text.as_ptr().cast(), text.len()) };
        Ok(())
    }
}

// `write_str` never fails: a seq_file that overflows is shown again with a larger buffer.

unsafe extern "C" fn show_version(file: *mut c_void) {
    let version = Value::Version.get();
    let _ = writeln!(SeqFile(file), "{}.{}", version >> 16, version & 0xffff);
}

unsafe extern "C" fn show_facilities(file: *mut c_void) {
    let word = Value::Facilities.get();
    for (id, name) in FACILITIES {
        if word & (1 << id) != 0 {
            let _ = writeln!(SeqFile(file), "{name}");
        }
    }
}

unsafe extern "C" fn show_transports(file: *mut c_void) {
    let word = Value::Transports.get();
    for (bit, name) in TRANSPORTS {
        if word & u64::from(bit) != 0 {
            let _ = writeln!(SeqFile(file), "{name}");
        }
    }
}

unsafe extern "C" fn show_generation(file: *mut c_void) {
    let _ = writeln!(SeqFile(file), "{}", Value::Generation.get());
}

unsafe extern "C" fn show_calls(file: *mut c_void) {
    for (index, call) in (0..).zip(CALLS) {
        // SAFETY: No requirements.
        let count = unsafe { paravane_call_count(index) };
        let _ = writeln!(SeqFile(file), "{} {count}", call.name().unwrap_or("?"));
    }
    let saved = Value::DoorbellsSaved.get();
    let _ = writeln!(SeqFile(file), "doorbells-saved {saved}");
}

type Show = unsafe extern "C" fn(*mut c_void);

/// The module.
struct Paravane {
    dir: NonNull<c_void>,
}

// SAFETY: The pointer is only handed back to debugfs, which has its own locks.
unsafe impl Send for Paravane {}
// SAFETY: As above.
unsafe impl Sync for Paravane {}

impl kernel::Module for Paravane {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        if Value::Present.get() == 0 {
            return Err(ENODEV);
        }
        // SAFETY: No requirements.
        let dir = NonNull::new(unsafe { paravane_debugfs_dir() }).ok_or(ENODEV)?;
        // Removes the directory again where a file cannot be made.
        let module = Self { dir };
        let files: [(&CStr, Show); 5] = [
            (c_str!("version"), show_version),
            (c_str!("facilities"), show_facilities),
            (c_str!("transports"), show_transports),
            (c_str!("generation"), show_generation),
            (c_str!("calls"), show_calls),
        ];
        for (name, show) in files {
            // SAFETY: `dir` is a directory, `name` a C string; debugfs stops calling `show` before
            // `drop` is through.
            if !unsafe { paravane_debugfs_file(dir.as_ptr(), name.as_char_ptr().cast(), show) } {
                return Err(ENOMEM);
            }
        }
        Ok(module)
    }
}

impl Drop for Paravane {
    fn drop(&mut self) {
        // SAFETY: `init` has made the directory; nobody else removes it.
        unsafe { paravane_debugfs_remove(self.dir.as_ptr()) };
    }
}
