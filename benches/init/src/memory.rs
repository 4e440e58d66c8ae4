//! Memory that is used, given up, and used once more.
//!
//! New memory must be zero each time, whoever had it before. Between the two uses is time enough for the kernel to give
//! memory back to its host, which it does some seconds after it was freed.

use core::fmt::Write as _;
use core::sync::atomic::Ordering;

use crate::jobs::Watch;
use crate::sys::{Errno, Fd};
use crate::task::{self, Mapping};
use crate::text::Text;

/// A word that no kernel fills memory with.
const PATTERN: u32 = 0x5a5a_5a5a;
/// How long memory is held, and how long it is left to the kernel then, nanoseconds.
const HELD: u64 = 3_000_000_000;
const LEFT: u64 = 6_000_000_000;

/// Uses `mib` MiB twice, and prints `PARAVANE-MEMORY {first} {second} words were not zero`.
pub(crate) fn use_twice(watch: &mut Watch<'_>, mib: usize, console: Fd) -> Result<(), Errno> {
    let bytes = mib.saturating_mul(1 << 20);
    let mut dirty = [0; 2];
    watch.time(|| {
        dirty[0] = use_memory(bytes, HELD)?;
        task::sleep_ns(LEFT)?;
        dirty[1] = use_memory(bytes, 0)?;
        Ok(())
    })?;
    let mut line = Text::<128>::new();
    let [first, second] = dirty;
    let _ = writeln!(line, "PARAVANE-MEMORY {first} {second} words were not zero");
    console.write_all(line.as_bytes())
}

/// Takes memory from the kernel, counts the words that are not zero, fills it, and gives it up after so long.
fn use_memory(bytes: usize, nanoseconds: u64) -> Result<usize, Errno> {
    let memory = Mapping::private(bytes)?;
    let mut dirty = 0;
    for offset in (0..bytes).step_by(size_of::<u32>()) {
        let word = memory.word(offset);
        dirty += usize::from(word.load(Ordering::Relaxed) != 0);
        word.store(PATTERN, Ordering::Relaxed);
    }
    task::sleep_ns(nanoseconds)?;
    memory.unmap()?;
    Ok(dirty)
}
