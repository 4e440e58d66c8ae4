//! The event loop: terminal input, signals, the watchdog, steps of the clock, frames for a network card, the looks at the console ring, and
//! once the memory that starting has taken.
//!
//! One thread for all that is not a vCPU. It sleeps without a timeout unless something is under way; in a pause nothing is.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::clock_watch::ClockWatch;
use crate::pause::Pause;
use crate::pv::console::LOOK_INTERVAL;
use crate::resident;
use crate::stats::Outcome;
use crate::terminal;
use crate::vm::Machine;

/// How long console output may stay in the buffer.
const FLUSH_AFTER: Duration = Duration::from_millis(4);
/// How often input that found no room is tried again.
const RETRY_INPUT: Duration = Duration::from_millis(10);
/// Bytes of input that wait for room before no more are read, but from a terminal: its further keys are lost, and still read, since
/// Ctrl-A x may be among them. What a pipe has waits in the pipe.
const BACKLOG_FULL: usize = 0x1_0000;
/// Bytes that are read at once.
const PIECE: usize = 256;
/// By then a guest has booted, and the VMM does what it will go on doing.
const SETTLED_AFTER: Duration = Duration::from_secs(5);
/// The key that leaves an interactive guest, after Ctrl-A, as in QEMU.
const ESCAPE: u8 = 0x01;

const STDIN: u64 = 0;
const WAKE: u64 = 1;
const STOPPED: u64 = 2;
const SIGNAL: u64 = 3;
const CLOCK: u64 = 4;
const NETWORK: u64 = 5;
const INTERRUPT_ENDED: u64 = 6;
const WATCHDOG: u64 = 7;

/// A descriptor that becomes readable on SIGINT, SIGTERM, SIGHUP or SIGQUIT.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals in this thread, and in all that it starts, and watches for them. A file that may not grow (`ulimit -f`) is
    /// an error for who writes to it, and no signal.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn block() -> io::Result<Self> {
        // SAFETY: `sigset_t` is plain data that sigemptyset initialises; the calls read and write
        // only that set, a signal that is ignored has no handler, and signalfd gives a descriptor that is ours alone.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }
}

/// How terminal input stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stdin {
    /// Its next byte wakes the loop.
    Watched,
    /// The backlog is full: it waits.
    Full,
    /// There is none, or no more.
    Ended,
}

/// What the loop watches.
#[derive(Debug)]
pub struct EventLoop<'a> {
    machine: &'a Machine,
    epoll: Epoll,
    wake: EventFd,
    console_wake: EventFd,
    clock: ClockWatch,
    /// The clock has been stepped, and the guest does not know yet.
    stepped: bool,
    /// There are frames that the network card has not been told of.
    frames: bool,
    stdin: Stdin,
    escaped: bool,
    looking: bool,
    dirty: bool,
    /// There is a pause, whose end wakes the loop.
    held: bool,
    backlog: VecDeque<u8>,
    _watchdog: Option<TimerFd>,
    /// When what starting has touched is given back; none once it is.
    settled: Option<Instant>,
}

/// Has `epoll` tell by `token` when there is something to read.
pub(crate) fn watch(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    epoll.ctl(
        ControlOperation::Add,
        fd,
        EpollEvent::new(EventSet::IN, token),
    )
}

impl<'a> EventLoop<'a> {
    /// Prepares to watch over `machine`; `stdin`: terminal input goes to the guest.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn new(
        machine: &'a Machine,
        signals: Option<&Signals>,
        stdin: bool,
        watchdog: Option<Duration>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let wake = machine.wake_fd()?;
        let console_wake = machine.console().wake_fd()?;
        watch(&epoll, wake.as_raw_fd(), WAKE)?;
        watch(&epoll, console_wake.as_raw_fd(), WAKE)?;
        watch(&epoll, machine.stopped_fd(), STOPPED)?;
        let clock = ClockWatch::new()?;
        watch(&epoll, clock.fd(), CLOCK)?;
        if let Some(card) = machine.ports().network() {
            // Once for what is new: what the card has no room for stays in the descriptor, and the card comes back for it.
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, NETWORK);
            epoll.ctl(ControlOperation::Add, card.fd(), event)?;
            watch(&epoll, card.ended_fd(), INTERRUPT_ENDED)?;
        }
        if let Some(signals) = signals {
            watch(&epoll, signals.0.as_raw_fd(), SIGNAL)?;
        }
        let watchdog = watchdog.map(|limit| {
            let mut timer = TimerFd::new()?;
            // No time at all would be no timer.
            timer.reset(limit.max(Duration::from_nanos(1)), None)?;
            watch(&epoll, timer.as_raw_fd(), WATCHDOG)?;
            Ok::<_, io::Error>(timer)
        });
        let watchdog = watchdog.transpose()?;
        let signal = signals.map(|signals| signals.0.as_raw_fd());
        let timer = watchdog.as_ref().map(AsRawFd::as_raw_fd);
        let ends: Vec<RawFd> = signal.into_iter().chain(timer).collect();
        machine.console().ends_with(&ends)?;
        // A regular file or /dev/null cannot be watched, and has nothing to say that could wait.
        let stdin = stdin && watch(&epoll, libc::STDIN_FILENO, STDIN).is_ok();
        Ok(Self {
            machine,
            epoll,
            wake,
            console_wake,
            clock,
            stepped: false,
            frames: false,
            stdin: if stdin { Stdin::Watched } else { Stdin::Ended },
            escaped: false,
            looking: false,
            dirty: false,
            held: false,
            backlog: VecDeque::new(),
            _watchdog: watchdog,
            settled: Some(Instant::now() + SETTLED_AFTER),
        })
    }

    fn timeout(&self) -> Option<Duration> {
        [
            (self.looking && !self.held).then_some(LOOK_INTERVAL),
            self.dirty.then_some(FLUSH_AFTER),
            (!self.backlog.is_empty() && !self.held).then_some(RETRY_INPUT),
            self.settled
                .map(|at| at.saturating_duration_since(Instant::now())),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Runs until the machine has stopped.
    pub fn run(mut self) {
        let mut next = Instant::now();
        loop {
            let timeout = self.timeout();
            let milliseconds = timeout.map_or(-1, |t| {
                i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
            });
            let mut events = [EpollEvent::default(); 4];
            let count = match self.epoll.wait(milliseconds, &mut events) {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                Err(_) => return,
            };
            for event in &events[..count] {
                match event.data() {
                    STDIN => self.input(),
                    WAKE => {
                        // Emptied so that the next byte wakes us again; nothing to do on failure.
                        let _ = self.wake.read();
                        let _ = self.console_wake.read();
                        self.looking = true;
                        self.dirty = true;
                        next = Instant::now() + LOOK_INTERVAL;
                    }
                    NETWORK => self.frames = true,
                    INTERRUPT_ENDED => {
                        if let Some(card) = self.machine.ports().network() {
                            self.frames |= card.resample();
                        }
                    }
                    CLOCK => self.stepped |= self.clock.has_stepped(),
                    SIGNAL => self.machine.stop(Outcome::Interrupted, None),
                    WATCHDOG => {
                        let why = "the watchdog's time is over (--watchdog)";
                        self.machine.pull_the_plug(Outcome::Watchdog, why);
                        return;
                    }
                    _ => return,
                }
            }
            let now = Instant::now();
            let looks = now >= next && (self.looking || self.dirty);
            // During a pause the guest's memory stays as it is; what waits there waits on.
            self.held = !self.machine.pause().try_begin(Pause::event_loop());
            if !self.held {
                if std::mem::take(&mut self.stepped) {
                    self.machine.clock_has_jumped();
                }
                if std::mem::take(&mut self.frames)
                    && let Some(card) = self.machine.ports().network()
                {
                    card.deliver();
                }
                if looks {
                    self.looking = self.machine.look_at_console();
                }
                self.offer_input();
                self.machine.pause().rest(Pause::event_loop());
            }
            if looks {
                self.dirty = self.machine.console().flush_now();
                next = now + LOOK_INTERVAL;
            }
            self.watch_stdin(self.backlog.len() < BACKLOG_FULL || terminal::is_attended());
            if self.settled.take_if(|at| now >= *at).is_some() {
                resident::give_back();
            }
        }
    }

    /// Begins or stops to watch the terminal, unless its end has come.
    fn watch_stdin(&mut self, wanted: bool) {
        let (operation, after) = match (self.stdin, wanted) {
            (Stdin::Watched, false) => (ControlOperation::Delete, Stdin::Full),
            (Stdin::Full, true) => (ControlOperation::Add, Stdin::Watched),
            _ => return,
        };
        let event = EpollEvent::new(EventSet::IN, STDIN);
        if self.epoll.ctl(operation, libc::STDIN_FILENO, event).is_ok() {
            self.stdin = after;
        }
    }

    fn input(&mut self) {
        let mut buffer = [0; PIECE];
        // Not by `Stdin`, which reads more than it is asked for: nobody would be woken for the rest.
        let file = io::stdin().as_fd().try_clone_to_owned().map(File::from);
        let count = match file.and_then(|mut file| file.read(&mut buffer)) {
            Ok(count) if count > 0 => count,
            // Somebody else, who has the terminal, too, has read it, or the signal of a pause has come late.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return;
            }
            _ => {
                // End of input: stop watching, or epoll would report it for ever.
                self.watch_stdin(false);
                self.stdin = Stdin::Ended;
                return;
            }
        };
        for byte in &buffer[..count] {
            match (self.escaped, byte) {
                (false, &ESCAPE) if terminal::is_attended() => self.escaped = true,
                (true, b'x' | b'X') => {
                    self.machine
                        .pull_the_plug(Outcome::Interrupted, "Ctrl-A x was pressed");
                    return;
                }
                (_, byte) => {
                    self.escaped = false;
                    if self.backlog.len() < BACKLOG_FULL + PIECE {
                        self.backlog.push_back(*byte);
                    }
                }
            }
        }
    }

    /// Gives the guest what it has room for.
    fn offer_input(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        let taken = self.machine.input(self.backlog.make_contiguous());
        self.backlog.drain(..taken);
    }
}
