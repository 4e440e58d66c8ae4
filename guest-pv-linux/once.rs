// SPDX-License-Identifier: GPL-2.0-only

//! A value that is set once at boot.

use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, Ordering},
};

/// A value that is set at most once, by the boot processor while it is the only one, and only read
/// afterwards.
///
/// # Invariants
///
/// `value` is written only before `is_set` becomes true, and never again.
pub(crate) struct Once<T> {
    is_set: AtomicBool,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: A reference to the value is given out only after the last write to it (see the type
// invariant), so what threads share is a plain `&T`.
unsafe impl<T: Send + Sync> Sync for Once<T> {}

impl<T> Once<T> {
    /// Without a value.
    pub(crate) const fn new() -> Self {
        // INVARIANT: `is_set` is false and nothing has been written.
        Self {
            is_set: AtomicBool::new(false),
            value: UnsafeCell::new(None),
        }
    }

    /// Sets the value; a second call changes nothing.
    ///
    /// # Safety
    ///
    /// No other call of `set` on the same object runs at the same time.
    pub(crate) unsafe fn set(&self, value: T) {
        if self.is_set.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: By the type invariant nobody has a reference while `is_set` is false, and by
        // the function's requirement nobody else writes.
        unsafe { *self.value.get() = Some(value) };
        // INVARIANT: The write is over.
        self.is_set.store(true, Ordering::Release);
    }

    /// The value, `None` before it is set.
    pub(crate) fn get(&self) -> Option<&T> {
        if !self.is_set.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: `is_set` is true, hence by the type invariant there are no further writes.
        unsafe { (*self.value.get()).as_ref() }
    }
}
