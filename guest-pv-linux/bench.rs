// SPDX-License-Identifier: GPL-2.0-only

//! The module `pvbench.ko`: what each privileged operation costs in this guest, in cycles, and
//! what the kernel does in its place.
//!
//! # How it works
//!
//! Loading it measures everything that `bench_ops` lists, one operation after the other, on
//! processor 0. Each round is timed by the TSC by itself, the rounds are sorted, and their median
//! and tail go to `/sys/kernel/debug/pvbench/results`, one JSON object a line. Before the first
//! round of an operation and after the last one a byte goes to the mark port (0x84), at which the
//! VMM notes its exits: so exits per round are told by the side that counts them.
//!
//! The same image, hence the same module, runs as every guest. Operations that a guest does not
//! have are reported as absent, never as a number.
//!
//! # Reading order
//!
//! `bench_ops.rs` (the list), `bench_native.rs` (instructions), `bench_ring.rs` (a batch of calls),
//! `bench_helpers.c` (what is C).

use core::{
    ffi::c_void,
    fmt::{self, Write},
    slice,
};
use kernel::prelude::*;

pub mod abi;

mod bench_c;
mod bench_native;
mod bench_ops;
mod bench_ring;
mod once;

use abi::call::{CallResult, Status, MAX_ARGS};
use bench_ops::{Operation, OPERATIONS};
use once::Once;

module! {
    type: Bench,
    name: "pvbench",
    author: "Paravane maintainers",
    description: "Cycles of privileged operations and of what replaces them",
    license: "GPL",
}

/// The mark port of the VMM, and the marks: an operation's number on top of the first, and the end.
const MARK_PORT: u16 = 0x84;
const MARK_FIRST: u8 = 0x40;
const MARK_END: u8 = 0x3f;

/// Rounds whose time is not kept, before those whose time is.
pub(crate) const WARM_UP: usize = 8;
/// Most rounds of an operation: so many samples fit in two pages.
pub(crate) const ROUNDS_MAX: usize = 1000;
const SAMPLES_ORDER: u32 = 1;

/// What came of an operation.
#[derive(Clone, Copy)]
pub(crate) enum Outcome {
    /// Cycles of a round.
    Cycles {
        n: usize,
        min: u64,
        median: u64,
        p90: u64,
        p99: u64,
    },
    /// This guest has no such thing.
    Absent(&'static str),
    /// It should have worked.
    Failed,
}

static RESULTS: Once<[Outcome; OPERATIONS.len()]> = Once::new();

/// Makes a call of the ABI through the kernel, which counts it.
///
/// # Safety
///
/// As for `Doorbell::call`: addresses among the arguments are those of memory that the host may
/// access.
pub(crate) unsafe fn call(id: u32, arguments: &[u64]) -> CallResult {
    let mut all = [0; MAX_ARGS];
    for (to, from) in all.iter_mut().zip(arguments) {
        *to = *from;
    }
    let mut value = 0;
    // SAFETY: Six arguments and a place for the value; the rest by the function's requirement.
    let status = unsafe { bench_c::paravane_bench_call(id, all.as_ptr(), &mut value) };
    Status::decode(status, value)
}

/// The rounds of one operation.
pub(crate) struct Rounds<'a> {
    samples: &'a mut [u64],
    mark: u8,
    taken: usize,
}

impl Rounds<'_> {
    /// Calls `round`, which returns its cycles, `n` times. False: a round has failed.
    pub(crate) fn each(&mut self, n: usize, mut round: impl FnMut() -> Option<u64>) -> bool {
        for _ in 0..WARM_UP.min(n) {
            if round().is_none() {
                return false;
            }
        }
        self.mark(self.mark);
        let mut all_well = true;
        for sample in self.samples.iter_mut().take(n) {
            let Some(cycles) = round() else {
                all_well = false;
                break;
            };
            *sample = cycles;
            self.taken += 1;
        }
        self.mark(MARK_END);
        all_well
    }

    fn mark(&self, code: u8) {
        // SAFETY: The VMM notes it; on a PC it is a port that nothing is behind.
        unsafe { bench_native::write_port(MARK_PORT, code) };
    }

    fn outcome(&mut self) -> Outcome {
        let n = self.taken;
        let samples = &mut self.samples[..n];
        // SAFETY: So many numbers, which nobody else looks at.
        unsafe { bench_c::pvbench_sort(samples.as_mut_ptr(), n) };
        let quantile = |percent: usize| samples.get(n * percent / 100).copied().unwrap_or(0);
        Outcome::Cycles {
            n,
            min: quantile(0),
            median: quantile(50),
            p90: quantile(90),
            p99: quantile(99),
        }
    }
}

/// Measures everything.
fn measure(samples: &mut [u64]) -> [Outcome; OPERATIONS.len()] {
    let mut results = [Outcome::Failed; OPERATIONS.len()];
    for ((operation, result), mark) in OPERATIONS.iter().zip(&mut results).zip(MARK_FIRST..) {
        if let Some(why) = operation.needs.missing() {
            *result = Outcome::Absent(why);
            continue;
        }
        let mut rounds = Rounds {
            samples: &mut *samples,
            mark,
            taken: 0,
        };
        if (operation.run)(&mut rounds) {
            *result = rounds.outcome();
        } else {
            pr_warn!("{} failed\n", operation.name);
        }
    }
    results
}

/// A `struct seq_file` while it is shown.
struct SeqFile(*mut c_void);

impl Write for SeqFile {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: The pointer came from the kernel for the time of this show.
        unsafe { bench_c::pvbench_seq_write(self.0, text.as_ptr().cast(), text.len()) };
        Ok(())
    }
}

// `write_str` never fails: a seq_file that overflows is shown again with a larger buffer.

/// Shows the results.
///
/// # Safety
///
/// `file` is a `struct seq_file` that is being shown.
#[no_mangle]
unsafe extern "C" fn pvbench_show(file: *mut c_void) {
    let mut file = SeqFile(file);
    // SAFETY: No requirements.
    let khz = unsafe { bench_c::pvbench_tsc_khz() };
    let count = OPERATIONS.len();
    let _ = writeln!(
        file,
        "{{\"pvbench\":1,\"tsc_khz\":{khz},\"operations\":{count}}}"
    );
    let Some(results) = RESULTS.get() else {
        return;
    };
    for ((operation, outcome), mark) in OPERATIONS.iter().zip(results).zip(MARK_FIRST..) {
        let Operation {
            name,
            facility,
            what,
            ..
        } = operation;
        let _ = write!(
            file,
            "{{\"op\":\"{name}\",\"facility\":\"{facility}\",\"what\":\"{what}\",\"mark\":{mark},"
        );
        let _ = match outcome {
            Outcome::Cycles {
                n,
                min,
                median,
                p90,
                p99,
            } => writeln!(
                file,
                "\"n\":{n},\"min\":{min},\"median\":{median},\"p90\":{p90},\"p99\":{p99}}}"
            ),
            Outcome::Absent(why) => writeln!(file, "\"absent\":\"{why}\"}}"),
            Outcome::Failed => writeln!(file, "\"failed\":true}}"),
        };
    }
}

/// The module.
struct Bench;

impl kernel::Module for Bench {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: No requirements.
        let memory = unsafe { bench_c::pvbench_alloc(SAMPLES_ORDER) };
        if memory.is_null() {
            return Err(ENOMEM);
        }
        // SAFETY: Two pages of our own, aligned to their size.
        let samples = unsafe {
            memory.cast::<u8>().write_bytes(0, ROUNDS_MAX * 8);
            slice::from_raw_parts_mut(memory.cast::<u64>(), ROUNDS_MAX)
        };
        // SAFETY: Concerns the calling task alone.
        let results = unsafe {
            if !bench_c::pvbench_pin() {
                bench_c::pvbench_free(memory, SAMPLES_ORDER);
                return Err(EBUSY);
            }
            let results = measure(samples);
            bench_c::pvbench_unpin();
            bench_c::pvbench_free(memory, SAMPLES_ORDER);
            results
        };
        // SAFETY: A module is initialised once.
        unsafe { RESULTS.set(results) };
        // Removes the directory again where the file cannot be made.
        let module = Self;
        // SAFETY: `pvbench_show` stays until `drop` has removed the file.
        if !unsafe { bench_c::pvbench_debugfs() } {
            return Err(ENOMEM);
        }
        Ok(module)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: Removes what `pvbench_debugfs` has made.
        unsafe { bench_c::pvbench_debugfs_remove() };
    }
}
