//! The one way that locks are taken here. In: a mutex. Out: its guard, also after a panic of another thread.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks. Every critical section of this crate leaves whole values behind, so a panic elsewhere spoils nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
