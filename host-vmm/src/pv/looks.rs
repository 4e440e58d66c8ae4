//! How a host stops looking at a ring without losing a doorbell.
//!
//! # Background
//!
//! A guest that sees `host_looks` set does not ring. A host that clears it just then, having seen an
//! empty ring just before, would leave bytes or entries behind for ever.
//!
//! # How it works
//!
//! Each side makes a store, a full barrier, and a load of what the other side stores:
//!
//! | guest | host |
//! |---|---|
//! | publishes `head` | clears `host_looks` |
//! | full barrier | full barrier |
//! | reads `host_looks`: zero, so it rings | reads `head`: something there, so it goes on |
//!
//! At least one of the two sees the other's store. The console's rings and the submission rings share
//! the host's end, which is here; `tests/wakeup.rs` checks it in all interleavings that the memory
//! model allows, and that it fails without either barrier.
//!
//! Spec: PV-CONSOLE-13, PV-RING-21

use std::sync::atomic::{Ordering, fence};

/// A ring that the host looks at by itself.
pub trait Looked {
    /// Why guest memory cannot be reached.
    type Error;

    /// Stores `host_looks`.
    ///
    /// # Errors
    ///
    /// The page is not in guest memory.
    fn tell(&mut self, looks: bool) -> Result<(), Self::Error>;

    /// Takes what is in the ring; returns how much.
    ///
    /// # Errors
    ///
    /// The ring is not in guest memory.
    fn take(&mut self) -> Result<u32, Self::Error>;

    /// The full barrier.
    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

/// Takes the promise to look back. Returns whether the host has stopped looking: not where
/// something came at the last moment.
///
/// # Errors
///
/// The ring is not in guest memory.
pub fn stop_looking<R: Looked>(ring: &mut R) -> Result<bool, R::Error> {
    ring.tell(false)?;
    ring.barrier();
    if ring.take()? == 0 {
        return Ok(true);
    }
    ring.tell(true)?;
    Ok(false)
}
