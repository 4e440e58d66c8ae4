//! Whether a device's thread looks at its queues again by itself, or waits for a doorbell.
//!
//! While it looks, drivers see that they need not ring: a request then costs the guest no exit. What that costs the host is
//! the thread's time, so [`Poll::Auto`] looks for no longer than it has paid lately. It is what KVM does before it
//! lets a halted vCPU go: the time grows when a doorbell comes soon after the thread has begun to wait, and shrinks when it
//! comes late.

use std::time::{Duration, Instant};

/// `--poll`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Poll {
    /// Device threads wait for doorbells.
    #[default]
    Off,
    /// They look at their queues under load, and wait for a doorbell otherwise.
    Auto,
    /// They look all the time: a processor of the host for each device.
    On,
}

/// The first time to look for, and the least.
const SHORTEST: Duration = Duration::from_micros(20);
/// The longest. Whoever asks for less often can afford a doorbell.
const LONGEST: Duration = Duration::from_millis(2);

/// How long one device's thread goes on looking.
#[derive(Debug)]
pub(super) struct Poller {
    poll: Poll,
    window: Duration,
    /// Requests that it had seen at its last look.
    requests: u64,
    /// When it had something to do for the last time.
    busy: Instant,
}

impl Poller {
    pub(super) fn new(poll: Poll) -> Self {
        Self {
            poll,
            window: Duration::ZERO,
            requests: 0,
            busy: Instant::now(),
        }
    }

    /// Whether it ever looks.
    pub(super) fn looks(&self) -> bool {
        self.poll != Poll::Off
    }

    /// After a look, when so many requests have been done in all: whether to look again.
    pub(super) fn goes_on(&mut self, requests: u64) -> bool {
        match self.poll {
            Poll::Off => false,
            Poll::On => true,
            Poll::Auto => {
                if self.requests != requests {
                    self.requests = requests;
                    self.busy = Instant::now();
                    return self.window > Duration::ZERO;
                }
                self.busy.elapsed() < self.window
            }
        }
    }

    /// It has waited for so long until somebody had something to do.
    pub(super) fn waited(&mut self, time: Duration) {
        self.window = if time < LONGEST {
            (self.window * 2).clamp(SHORTEST, LONGEST)
        } else if self.window > SHORTEST {
            self.window / 2
        } else {
            Duration::ZERO
        };
        self.busy = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_for_longer_under_load_and_not_at_all_without() {
        let mut poller = Poller::new(Poll::Auto);
        assert!(!poller.goes_on(1), "nothing is known yet");
        poller.waited(Duration::from_micros(100));
        assert_eq!(poller.window, SHORTEST);
        assert!(poller.goes_on(2), "a request has come");
        for _ in 0..20 {
            poller.waited(Duration::from_micros(100));
        }
        assert_eq!(poller.window, LONGEST);
        for _ in 0..20 {
            poller.waited(Duration::from_secs(1));
        }
        assert!(!poller.goes_on(3) && poller.window == Duration::ZERO);
    }

    #[test]
    fn off_and_on_do_not_tune() {
        for (poll, looks) in [(Poll::Off, false), (Poll::On, true)] {
            let mut poller = Poller::new(poll);
            poller.waited(Duration::from_micros(1));
            assert_eq!(poller.goes_on(0), looks);
        }
    }
}
