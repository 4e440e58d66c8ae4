//! What a VMM holds of its host: memory, threads, descriptors. What it does again and again must not make it hold more.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

/// A mapping of so many KiB is guest memory: the least that tasks give a guest is twice as much.
const GUEST_KIB: u64 = 32 << 10;
/// What a VMM may have more late than early, in the median: a device's thread comes and goes.
const MORE_KIB: u64 = 1024;
const MORE_THREADS: u64 = 1;
const MORE_DESCRIPTORS: u64 = 4;

/// What a VMM has at a time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Holds {
    /// Without guest memory, and without pages of files, which come and go with what is executed.
    kib: u64,
    threads: u64,
    descriptors: u64,
}

impl Holds {
    /// None where the process has just ended.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let maps = fs::read_to_string(folder.join("smaps")).ok()?;
        let status = fs::read_to_string(folder.join("status")).ok()?;
        Some(Self {
            kib: anonymous(&maps),
            threads: number(&status, "Threads:")?,
            descriptors: fs::read_dir(folder.join("fd")).ok()?.count() as u64,
        })
        .filter(|holds| holds.kib > 0)
    }

    /// The medians of the second quarter and of the last one.
    pub(crate) fn early_and_late(samples: &[Self]) -> (Self, Self) {
        let quarter = samples.len() / 4;
        let median = |part: &[Self]| {
            let of = |get: fn(&Self) -> u64| {
                let mut all: Vec<u64> = part.iter().map(get).collect();
                all.sort_unstable();
                all.get(all.len() / 2).copied().unwrap_or(0)
            };
            Self {
                kib: of(|holds| holds.kib),
                threads: of(|holds| holds.threads),
                descriptors: of(|holds| holds.descriptors),
            }
        };
        let late = samples.len() - quarter;
        (
            median(&samples[quarter..2 * quarter]),
            median(&samples[late..]),
        )
    }

    pub(crate) fn grown_since(self, early: Self) -> Option<String> {
        let grown = self.kib > early.kib + MORE_KIB
            || self.threads > early.threads + MORE_THREADS
            || self.descriptors > early.descriptors + MORE_DESCRIPTORS;
        // Too short a run has no quarters.
        (grown && early.threads > 0).then(|| format!("it has grown from {early:?} to {self:?}"))
    }
}

/// The number behind a name.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// KiB of all mappings that are no file's, but for guest memory, which is larger than any other.
fn anonymous(maps: &str) -> u64 {
    let (mut sum, mut counted) = (0, true);
    for line in maps.lines() {
        if let Some(size) = number(line, "Size:") {
            counted = size < GUEST_KIB;
        } else if let Some(rss) = number(line, "Anonymous:").filter(|_| counted) {
            sum += rss;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::{Holds, anonymous};

    #[test]
    fn guest_memory_is_not_the_vmms() {
        let maps = "Size: 65536 kB\nAnonymous: 60000 kB\nSize: 8 kB\nAnonymous: 4 kB\nSize: 12 kB\nAnonymous: 12 kB\n";
        assert_eq!(anonymous(maps), 16);
    }

    #[test]
    fn what_grows_is_told() {
        let holds = |kib, threads, descriptors| Holds {
            kib,
            threads,
            descriptors,
        };
        let samples: Vec<_> = (0..40).map(|n| holds(4000 + 100 * n, 3, 20)).collect();
        let (early, late) = Holds::early_and_late(&samples);
        assert!(late.grown_since(early).is_some());
        assert!(holds(4000, 3, 60).grown_since(holds(4000, 3, 20)).is_some());
        assert!(holds(4100, 4, 21).grown_since(holds(4000, 3, 20)).is_none());
    }
}
