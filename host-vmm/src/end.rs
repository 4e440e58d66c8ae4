//! How a run ends, and who has said so first.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::stats::Outcome;
use crate::sync::lock;

/// The outcome, and more about it for people.
pub type Ended = (Outcome, Option<String>);

/// The end of a machine's run: any thread may bring it about, all look whether it has come.
#[derive(Debug)]
pub struct End {
    stopped: EventFd,
    stopping: AtomicBool,
    how: Mutex<Option<Ended>>,
}

impl End {
    /// One that has not come.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            stopped: EventFd::new(libc::EFD_NONBLOCK)?,
            stopping: AtomicBool::new(false),
            how: Mutex::new(None),
        })
    }

    /// Whether it has come.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Whether it has come, and in this way.
    #[must_use]
    pub fn is(&self, outcome: Outcome) -> bool {
        let how = lock(&self.how);
        how.as_ref().is_some_and(|(how, _)| *how == outcome)
    }

    /// Ends the run; the first to say so is the one who is believed.
    pub fn stop(&self, outcome: Outcome, message: Option<String>) {
        let mut how = lock(&self.how);
        how.get_or_insert((outcome, message));
        self.stopping.store(true, Ordering::Release);
        // A full event counter means that it has been signalled already.
        let _ = self.stopped.write(1);
    }

    /// Becomes readable when it comes.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.stopped.as_raw_fd()
    }

    /// How it came.
    pub fn take(&self) -> Option<Ended> {
        let mut how = lock(&self.how);
        how.take()
    }
}
