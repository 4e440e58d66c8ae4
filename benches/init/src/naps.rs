//! Timers: many short sleeps, each compared with the clock.

use core::fmt::Write as _;

use crate::jobs::Watch;
use crate::sys::{self, Errno, Fd};
use crate::task;
use crate::text::Text;

/// Shortest nap, nanoseconds; each of the next is longer, up to [`LONGEST`], and then again.
const SHORTEST: u64 = 200_000;
const LONGEST: u64 = 5_000_000;
/// No divisor of a tick, so that naps end at all phases of one.
const STEP: u64 = 371_000;
/// How late, in powers of two of a microsecond: below 1, below 2, below 4, …
const BUCKETS: usize = 16;

/// What became of the naps.
#[derive(Default)]
struct Naps {
    /// Ended before their time: a clock or a timer is wrong.
    early: u64,
    /// Ended in time or later, by how much.
    late: [u64; BUCKETS],
}

impl Naps {
    fn count(&mut self, took: u64, wanted: u64) {
        let Some(late) = took.checked_sub(wanted) else {
            self.early += 1;
            return;
        };
        let bucket = (late / 1000).checked_ilog2().map_or(0, |log| log + 1);
        let index = usize::try_from(bucket).unwrap_or(BUCKETS);
        if let Some(count) = self.late.get_mut(index.min(BUCKETS - 1)) {
            *count += 1;
        }
    }
}

/// Takes `rounds` naps and prints `PARAVANE-NAPS {json}`: how many were early, and how late the others.
pub(crate) fn take(watch: &mut Watch<'_>, rounds: usize, console: Fd) -> Result<(), Errno> {
    let mut naps = Naps::default();
    watch.time(|| {
        let mut length = SHORTEST;
        for _ in 0..rounds {
            let before = sys::clock_ns(sys::CLOCK_MONOTONIC)?;
            task::sleep_ns(length)?;
            let after = sys::clock_ns(sys::CLOCK_MONOTONIC)?;
            naps.count(after.saturating_sub(before), length);
            length = if length > LONGEST {
                SHORTEST
            } else {
                length + STEP
            };
        }
        Ok(())
    })?;
    let mut line = Text::<256>::new();
    let _ = write!(
        line,
        "PARAVANE-NAPS {{\"early\":{},\"late_us_log2\":[",
        naps.early
    );
    let mut separator = "";
    for count in naps.late {
        let _ = write!(line, "{separator}{count}");
        separator = ",";
    }
    line.push(b"]}\n");
    console.write_all(line.as_bytes())
}
