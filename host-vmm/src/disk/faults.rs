//! A disk that fails now and then because it was asked to (`--disk FILE,fail=SEED`), to see what a guest makes of it.
//!
//! A request that fails so is not carried out. The seed and the order of requests say which ones; each run begins anew.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::DiskError;
use crate::random::Random;
use crate::sync::lock;

/// One request in so many fails.
const ODDS: u64 = 16;

/// What is asked for, and what has come of it.
#[derive(Clone, Debug)]
pub struct Faults {
    seed: u64,
    failed: Arc<AtomicU64>,
}

impl Faults {
    /// Those of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let failed = Arc::default();
        Self { seed, failed }
    }

    /// How many requests have failed since the disk was last opened.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Begins anew.
    pub(super) fn begin(&self) -> Failing {
        self.failed.store(0, Ordering::Relaxed);
        Failing {
            random: Mutex::new(Random::new(self.seed)),
            failed: Arc::clone(&self.failed),
        }
    }
}

/// Those of an open disk.
#[derive(Debug)]
pub(super) struct Failing {
    random: Mutex<Random>,
    failed: Arc<AtomicU64>,
}

impl Failing {
    /// Whether the next request may be carried out.
    pub(super) fn request(&self) -> Result<(), DiskError> {
        if lock(&self.random).one_in(ODDS) {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return Err(DiskError::Asked);
        }
        Ok(())
    }
}
