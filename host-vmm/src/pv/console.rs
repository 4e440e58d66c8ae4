//! Facility `console`, host side: the rings. ABI: `hypercall-abi/src/abi/console.rs`.
//!
//! # How it works
//!
//! A vCPU that notifies drains the output ring itself, then promises that the event loop will look
//! for a while (`host_looks`), so that a guest that keeps printing does not cross again. The loop
//! looks every [`LOOK_INTERVAL`]; after [`IDLE_LOOKS`] looks in a row that find nothing it takes the
//! promise back, with a last look after a full barrier. A ring that is full makes the guest notify
//! again, and the vCPU drains it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::{CallResult, Status};
use paravane_abi::console::{ConsoleInfo, ConsolePage, ring_used};
use paravane_abi::registry as reg;
use vmm_sys_util::eventfd::EventFd;

use super::event::{Event, EventTarget};
use super::looks::{Looked, stop_looking};
use super::{Args, CONSOLE_PAGE, Facility, Reply, take};
use crate::console::Console;
use crate::memory::{Memory, MemoryError};
use crate::snapshot::{self, PartError, Saved, from_state, to_state};
use crate::sync::lock;

/// How often the event loop looks at the output ring while it has promised to.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(4);
/// Looks without a byte after which the promise ends.
const IDLE_LOOKS: u32 = 2;
/// Bytes of the output buffer.
pub const OUT_SIZE: u32 = 0x1_0000;
/// Bytes of the input buffer.
pub const IN_SIZE: u32 = 0x1000;

const PAGE: u64 = reg::PAGE_SIZE as u64;
const OUT_BUFFER: u64 = CONSOLE_PAGE + PAGE;
const IN_BUFFER: u64 = OUT_BUFFER + OUT_SIZE as u64;
const OUT_HEAD: u64 = CONSOLE_PAGE + std::mem::offset_of!(ConsolePage, out_head) as u64;
const OUT_TAIL: u64 = CONSOLE_PAGE + std::mem::offset_of!(ConsolePage, out_tail) as u64;
const HOST_LOOKS: u64 = CONSOLE_PAGE + std::mem::offset_of!(ConsolePage, host_looks) as u64;
const IN_HEAD: u64 = CONSOLE_PAGE + std::mem::offset_of!(ConsolePage, in_head) as u64;
const IN_TAIL: u64 = CONSOLE_PAGE + std::mem::offset_of!(ConsolePage, in_tail) as u64;

#[derive(Debug, Default)]
struct State {
    /// Host's own copies: the page's are for the guest to read, and it may write what it likes.
    out_tail: u32,
    in_head: u32,
    idle_looks: u32,
    looking: bool,
}

/// The facility.
#[derive(Debug)]
pub struct RingConsole {
    memory: Memory,
    console: Console,
    state: Mutex<State>,
    event: Event,
    vcpus: u8,
    wake: EventFd,
    in_bytes: AtomicU64,
}

impl RingConsole {
    /// Rings in `memory` that print on `console`; `wake` wakes the event loop.
    #[must_use]
    pub fn new(memory: Memory, console: Console, vcpus: u8, wake: EventFd) -> Self {
        Self {
            memory,
            console,
            state: Mutex::default(),
            event: Event::default(),
            vcpus,
            wake,
            in_bytes: AtomicU64::new(0),
        }
    }

    /// Takes all bytes from the output ring; returns how many. Spec: PV-CONSOLE-4
    fn drain(&self, state: &mut State) -> Result<u32, MemoryError> {
        self.drain_some(state, OUT_SIZE)
    }

    /// Takes up to `most` bytes.
    fn drain_some(&self, state: &mut State, most: u32) -> Result<u32, MemoryError> {
        let head = self.memory.load_u32(OUT_HEAD, Ordering::Acquire)?;
        // A head that cannot be true empties the ring: nothing of it is printed.
        let held = ring_used(head, state.out_tail, OUT_SIZE);
        let used = held.unwrap_or(0).min(most);
        let end = held.map_or(head, |_| state.out_tail.wrapping_add(used));
        let start = state.out_tail & (OUT_SIZE - 1);
        let first = used.min(OUT_SIZE - start);
        let mut chunk = [0; 4096];
        for (at, length) in [(start, first), (0, used - first)] {
            let mut done = 0;
            while done < length {
                let part = (length - done).min(4096);
                let bytes = &mut chunk[..part as usize];
                self.memory.read(OUT_BUFFER + u64::from(at + done), bytes)?;
                self.console.put(bytes);
                done += part;
            }
        }
        state.out_tail = end;
        self.memory.store_u32(OUT_TAIL, end, Ordering::Release)?;
        Ok(used)
    }

    /// Spec: PV-CONSOLE-5
    fn notify(&self) -> Result<u64, MemoryError> {
        let mut state = lock(&self.state);
        self.drain(&mut state)?;
        if !state.looking {
            state.looking = true;
            state.idle_looks = 0;
            self.memory.store_u32(HOST_LOOKS, 1, Ordering::Relaxed)?;
            // A full event counter means that the loop is awake anyway.
            let _ = self.wake.write(1);
        }
        Ok(0)
    }

    /// The event loop's look. Returns whether it wants to look again. Spec: PV-CONSOLE-12
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`]: never, for a guest that has the page.
    pub fn look(&self) -> Result<bool, MemoryError> {
        let mut state = lock(&self.state);
        if !state.looking {
            return Ok(false);
        }
        if self.drain(&mut state)? > 0 {
            state.idle_looks = 0;
            return Ok(true);
        }
        state.idle_looks += 1;
        if state.idle_looks < IDLE_LOOKS {
            return Ok(true);
        }
        let stopped = stop_looking(&mut Output {
            console: self,
            state: &mut state,
        })?;
        state.looking = !stopped;
        state.idle_looks = 0;
        Ok(!stopped)
    }

    /// Takes what is left when the guest has stopped.
    pub fn last_look(&self) {
        let _ = self.drain(&mut lock(&self.state));
    }

    /// A look that takes up to `most` bytes and ends no promise: that of an awkward host.
    ///
    /// # Errors
    ///
    /// As for [`Self::look`].
    pub fn look_at_some(&self, most: u32) -> Result<u32, MemoryError> {
        let mut state = lock(&self.state);
        if !state.looking {
            return Ok(0);
        }
        self.drain_some(&mut state, most)
    }

    /// Begins to look though nobody has notified.
    ///
    /// # Errors
    ///
    /// As for [`Self::look`].
    pub fn look_unasked(&self) -> Result<(), MemoryError> {
        self.notify().map(|_| ())
    }

    /// Puts terminal input into the ring, as far as there is room. Returns the event to raise, and
    /// how many bytes the ring took. Spec: PV-CONSOLE-7
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`]: never, for a guest that has the page.
    pub fn input(&self, bytes: &[u8]) -> Result<(Option<EventTarget>, usize), MemoryError> {
        let mut state = lock(&self.state);
        let tail = self.memory.load_u32(IN_TAIL, Ordering::Acquire)?;
        // A tail that cannot be true: the guest has spoilt its own input; the ring counts as full.
        let room = ring_used(state.in_head, tail, IN_SIZE).map_or(0, |used| IN_SIZE - used);
        let mut written = 0;
        for byte in bytes {
            if written == room {
                break;
            }
            let at = state.in_head.wrapping_add(written) & (IN_SIZE - 1);
            self.memory
                .write(IN_BUFFER + u64::from(at), std::slice::from_ref(byte))?;
            written += 1;
        }
        if written > 0 {
            state.in_head = state.in_head.wrapping_add(written);
            self.in_bytes.fetch_add(written.into(), Ordering::Relaxed);
            self.memory
                .store_u32(IN_HEAD, state.in_head, Ordering::Release)?;
        }
        let target = (written > 0).then(|| self.event_target()).flatten();
        Ok((target, written as usize))
    }

    /// Bytes that have gone to the guest.
    #[must_use]
    pub fn in_bytes(&self) -> u64 {
        self.in_bytes.load(Ordering::Relaxed)
    }

    /// The event that the guest has asked for.
    #[must_use]
    pub fn event_target(&self) -> Option<EventTarget> {
        self.event.target()
    }

    /// Spec: PV-CONSOLE-1
    fn write(&self, args: &Args) -> CallResult {
        let [address, length] = take(args)?;
        if length > reg::CONSOLE_WRITE_MAX {
            return Err(Status::InvalidParam);
        }
        let bytes = usize::try_from(length).map_err(|_| Status::InvalidParam)?;
        if !self.memory.contains(address, bytes) {
            return Err(Status::BadAddress);
        }
        let mut chunk = [0; 4096];
        let mut at = address;
        let mut left = bytes;
        // Bytes in the ring came first.
        self.drain(&mut lock(&self.state))
            .map_err(|_| Status::HostError)?;
        while left > 0 {
            let part = left.min(chunk.len());
            self.memory
                .read(at, &mut chunk[..part])
                .map_err(|_| Status::BadAddress)?;
            self.console.put(&chunk[..part]);
            at += part as u64;
            left -= part;
        }
        Ok(length)
    }
}

/// The output ring, while the state is locked.
struct Output<'a> {
    console: &'a RingConsole,
    state: &'a mut State,
}

impl Looked for Output<'_> {
    type Error = MemoryError;

    fn tell(&mut self, looks: bool) -> Result<(), MemoryError> {
        let memory = &self.console.memory;
        memory.store_u32(HOST_LOOKS, u32::from(looks), Ordering::Relaxed)
    }

    fn take(&mut self) -> Result<u32, MemoryError> {
        self.console.drain(self.state)
    }
}

/// What a snapshot has of it: `out_tail`, `in_head`, whether the host looks, event.
type SavedConsole = (u32, u32, bool, u64);

impl Saved for std::sync::Arc<RingConsole> {
    fn save(&self) -> Result<snapshot::State, PartError> {
        let state = lock(&self.state);
        let saved: SavedConsole = (
            state.out_tail,
            state.in_head,
            state.looking,
            self.event.word(),
        );
        to_state(&saved)
    }

    fn restore(&self, state: snapshot::State) -> Result<(), PartError> {
        let saved: SavedConsole = from_state(state)?;
        self.event.set_word(saved.3, self.vcpus)?;
        let mut state = lock(&self.state);
        (state.out_tail, state.in_head, state.looking) = (saved.0, saved.1, saved.2);
        if state.looking {
            // A full event counter means that the loop is awake anyway.
            let _ = self.wake.write(1);
        }
        Ok(())
    }
}

impl Facility for std::sync::Arc<RingConsole> {
    fn id(&self) -> u32 {
        reg::FACILITY_CONSOLE
    }

    fn describe(&self, _memory: &Memory, info: &mut BootInfo) -> Result<(), MemoryError> {
        info.console = ConsoleInfo {
            address: CONSOLE_PAGE,
            out_size: OUT_SIZE,
            in_size: IN_SIZE,
            reserved: [0; 2],
        };
        Ok(())
    }

    fn call(&self, function: u32, args: &Args) -> Reply {
        const FIRST: u32 = reg::FACILITY_CONSOLE << 16;
        Reply::Resume(match FIRST | function {
            reg::CALL_CONSOLE_WRITE => self.write(args),
            reg::CALL_CONSOLE_NOTIFY => {
                take(args).and_then(|[]| self.notify().map_err(|_| Status::HostError))
            }
            reg::CALL_CONSOLE_EVENT => self.event.name(args, self.vcpus),
            _ => Err(Status::NotSupported),
        })
    }
}
