//! Learning that the host's clock has been stepped.
//!
//! Linux cancels a timer of the time of day when somebody sets the clock, if the timer has asked for it
//! (`TFD_TIMER_CANCEL_ON_SET`). Ours is so far away that it never expires: being cancelled is all that it is for.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// When the timer would expire, seconds since 1970: in the year 36812, which the kernel's nanoseconds cannot reach.
const NEVER: libc::time_t = 1 << 40;

/// A timer that never expires.
#[derive(Debug)]
pub struct ClockWatch(File);

impl ClockWatch {
    /// Watches from now on.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: timerfd_create has no pointers; the descriptor that it gives is ours alone.
        let file = unsafe {
            let fd =
                libc::timerfd_create(libc::CLOCK_REALTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(fd)
        };
        let zero = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let time = libc::itimerspec {
            it_interval: zero,
            it_value: libc::timespec {
                tv_sec: NEVER,
                tv_nsec: 0,
            },
        };
        let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
        // SAFETY: the descriptor is open, `time` lives, and no old value is asked for.
        let set = unsafe {
            libc::timerfd_settime(
                file.as_raw_fd(),
                flags,
                &raw const time,
                std::ptr::null_mut(),
            )
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(file))
    }

    /// Becomes readable when the clock has been stepped.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Whether the clock has been stepped since this was asked last.
    pub fn has_stepped(&mut self) -> bool {
        let read = self.0.read(&mut [0; 8]);
        read.is_err_and(|e| e.raw_os_error() == Some(libc::ECANCELED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_nobody_sets_has_not_stepped() {
        let mut watch = ClockWatch::new().unwrap();
        assert!(!watch.has_stepped());
    }
}
