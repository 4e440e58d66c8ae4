//! Locks. What a thread held that has panicked is in some state that it may be in: nobody else ends for that.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for news, without the lock meanwhile.
pub(crate) fn wait<'a, T>(news: &Condvar, held: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    news.wait(held).unwrap_or_else(PoisonError::into_inner)
}

/// The same, while the condition holds, but no longer than that.
pub(crate) fn wait_while<'a, T>(
    news: &Condvar,
    held: MutexGuard<'a, T>,
    most: Duration,
    condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    let waited = news.wait_timeout_while(held, most, condition);
    waited.unwrap_or_else(PoisonError::into_inner).0
}
