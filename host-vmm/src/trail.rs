//! A vCPU's trail: its last exits to the VMM, for who explains its death.
//!
//! A word each, in a ring that only the vCPU's thread writes: on the exit path it costs two stores, and nothing is shared.

use std::sync::atomic::{AtomicU64, Ordering};

use paravane_abi::call::CallId;

/// How many are remembered.
const LENGTH: usize = 16;
/// The kind's place in a word; zero is no exit.
const KIND_SHIFT: u32 = 60;
const DETAIL: u64 = (1 << KIND_SHIFT) - 1;
const VALUE_BITS: u32 = 32;
/// A write to memory.
const WRITE: u64 = 1 << 59;

/// An exit, as far as it is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// IN from a port.
    In(u16),
    /// OUT to a port, and the first four bytes of what.
    Out(u16, u32),
    /// A read at an address without memory.
    Read(u64),
    /// A write there.
    Write(u64),
    /// A call.
    Call(CallId),
    /// Whatever else.
    Other,
}

impl Step {
    /// An OUT.
    #[must_use]
    pub fn out(port: u16, data: &[u8]) -> Self {
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().zip(data) {
            *to = *from;
        }
        Self::Out(port, u32::from_le_bytes(value))
    }

    fn pack(self) -> u64 {
        let (kind, detail) = match self {
            Self::In(port) => (1, port.into()),
            Self::Out(port, value) => (2, u64::from(port) << VALUE_BITS | u64::from(value)),
            Self::Read(address) => (3, address & !WRITE),
            Self::Write(address) => (3, address | WRITE),
            Self::Call(id) => (4, id.0.into()),
            Self::Other => (5, 0),
        };
        kind << KIND_SHIFT | detail & DETAIL
    }

    fn text(word: u64) -> Option<String> {
        let detail = word & DETAIL;
        Some(match word >> KIND_SHIFT {
            1 => format!("in {detail:#x}"),
            2 => {
                let value = detail & u64::from(u32::MAX);
                format!("out {:#x} {value:#x}", detail >> VALUE_BITS)
            }
            3 if detail & WRITE == 0 => format!("read {detail:#x}"),
            3 => format!("write {:#x}", detail & !WRITE),
            4 => {
                let id = CallId(u32::try_from(detail).ok()?);
                id.name().map_or_else(
                    || format!("call {:#x}", id.0),
                    |name| format!("call {name}"),
                )
            }
            5 => "another".to_owned(),
            _ => return None,
        })
    }
}

/// The trail of one vCPU.
#[derive(Debug, Default)]
pub struct Trail {
    steps: [AtomicU64; LENGTH],
    /// Steps ever taken.
    count: AtomicU64,
}

impl Trail {
    fn place(count: u64) -> usize {
        usize::try_from(count % LENGTH as u64).unwrap_or(0)
    }

    /// Remembers an exit.
    pub fn push(&self, step: Step) {
        let count = self.count.load(Ordering::Relaxed);
        self.steps[Self::place(count)].store(step.pack(), Ordering::Relaxed);
        self.count.store(count.wrapping_add(1), Ordering::Relaxed);
    }

    /// The last exits, newest last. Of a vCPU that runs, some of them can be newer than others.
    #[must_use]
    pub fn last(&self) -> Vec<String> {
        let count = self.count.load(Ordering::Relaxed);
        let from = count.saturating_sub(LENGTH as u64);
        let words = (from..count).map(|n| self.steps[Self::place(n)].load(Ordering::Relaxed));
        words.filter_map(Step::text).collect()
    }
}

#[cfg(test)]
mod tests {
    use paravane_abi::registry::CALL_BASE_NOP;

    use super::*;

    #[test]
    fn the_last_ones_are_remembered_in_their_order() {
        let trail = Trail::default();
        assert!(trail.last().is_empty());
        for port in 0..100 {
            trail.push(Step::In(port));
        }
        let last = trail.last();
        assert_eq!(last.len(), LENGTH);
        assert_eq!(last[0], "in 0x54");
        assert_eq!(last[LENGTH - 1], "in 0x63");
    }

    #[test]
    fn each_kind_says_what_it_was() {
        let trail = Trail::default();
        for step in [
            Step::out(0x3f8, b"A"),
            Step::out(0xcf8, &[1, 2, 3, 4, 5, 6]),
            Step::Read(0xd000_0000),
            Step::Write(u64::MAX),
            Step::Call(CallId(CALL_BASE_NOP)),
            Step::Call(CallId(u32::MAX)),
            Step::Other,
        ] {
            trail.push(step);
        }
        assert_eq!(
            trail.last(),
            [
                "out 0x3f8 0x41",
                "out 0xcf8 0x4030201",
                "read 0xd0000000",
                "write 0x7ffffffffffffff",
                "call base.nop",
                "call 0xffffffff",
                "another",
            ]
        );
    }
}
