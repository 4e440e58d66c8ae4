// SPDX-License-Identifier: GPL-2.0-only

//! A bit for each page of memory, from address zero on: whether it is fresh, see `mem`. Nothing
//! here needs the kernel: the tests are `hypercall-abi/tests/guest.rs`.

use crate::abi::{mem::MemRange, registry::PAGE_SIZE};
use core::sync::atomic::{AtomicU64, Ordering};

const PAGE: u64 = PAGE_SIZE as u64;

/// The bits of word `word` that pages `first` to `end - 1` have there.
fn mask(word: u64, first: u64, end: u64) -> u64 {
    let below = |page: u64| match page.saturating_sub(word * 64) {
        bits @ 0..=63 => (1 << bits) - 1,
        _ => u64::MAX,
    };
    below(end) & !below(first)
}

/// Sets the bits of all pages that lie wholly in `range`.
pub(crate) fn set(bits: &[AtomicU64], range: MemRange) {
    let first = range.address.div_ceil(PAGE);
    let known = bits.len() as u64 * 64;
    let end = known.min(range.address.saturating_add(range.size) / PAGE);
    for word in first / 64..end.div_ceil(64) {
        bits[word as usize].fetch_or(mask(word, first, end), Ordering::Relaxed);
    }
}

/// Clears the bits of all pages that the range touches; whether all were set.
pub(crate) fn take(bits: &[AtomicU64], address: u64, size: u64) -> bool {
    let first = address / PAGE;
    let end = address.saturating_add(size).div_ceil(PAGE);
    let mut all = true;
    for word in first / 64..end.div_ceil(64) {
        let Some(bits) = bits.get(word as usize) else {
            return false;
        };
        let mask = mask(word, first, end);
        let fresh = bits.load(Ordering::Relaxed) & mask;
        all &= fresh == mask;
        // Most pages are not, and their word is then only read.
        if fresh != 0 {
            bits.fetch_and(!mask, Ordering::Relaxed);
        }
    }
    all
}
