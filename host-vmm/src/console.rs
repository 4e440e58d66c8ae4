//! Where a guest's console output goes: a terminal or a file, buffered.
//!
//! UART and console ring print on the same [`Console`], so full and para guests pay the same price
//! behind the crossing. A byte is on its way at the latest when the event loop next flushes, a few
//! milliseconds after it was written; `flush` of [`Write`] is therefore a no-op.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// Bytes that are buffered before a write happens at once.
const BUFFER: usize = 4096;
/// Bytes that are remembered of what has been put out, for who explains a guest's death.
const TAIL: usize = 2048;

#[derive(Debug)]
enum Sink {
    Stdout(io::Stdout),
    File(File),
    Memory(Vec<u8>),
}

#[derive(Debug)]
struct Inner {
    sink: Sink,
    buffer: Vec<u8>,
    tail: Vec<u8>,
    bytes: u64,
    wake: EventFd,
}

/// A console that may be shared and cloned.
#[derive(Clone, Debug)]
pub struct Console(Arc<Mutex<Inner>>);

impl Inner {
    /// A sink that has gone away (a closed pipe) swallows what comes: the guest is not to blame.
    fn drain(&mut self) {
        let _ = match &mut self.sink {
            Sink::Stdout(out) => out.write_all(&self.buffer).and_then(|()| out.flush()),
            Sink::File(file) => file.write_all(&self.buffer),
            Sink::Memory(all) => {
                all.extend_from_slice(&self.buffer);
                Ok(())
            }
        };
        let new = self.buffer.len().min(TAIL);
        let old = (self.tail.len() + new).saturating_sub(TAIL);
        self.tail.drain(..old);
        self.tail.extend(&self.buffer[self.buffer.len() - new..]);
        self.buffer.clear();
    }
}

impl Console {
    fn new(sink: Sink) -> io::Result<Self> {
        let wake = EventFd::new(libc::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Mutex::new(Inner {
            sink,
            buffer: Vec::with_capacity(BUFFER),
            tail: Vec::new(),
            bytes: 0,
            wake,
        }))))
    }

    /// Prints on standard output.
    ///
    /// # Errors
    ///
    /// No event descriptor left.
    pub fn stdout() -> io::Result<Self> {
        Self::new(Sink::Stdout(io::stdout()))
    }

    /// Writes to a new file.
    ///
    /// # Errors
    ///
    /// The file cannot be created.
    pub fn file(path: &Path) -> io::Result<Self> {
        Self::new(Sink::File(File::create(path)?))
    }

    /// Keeps everything in memory, for tests.
    ///
    /// # Errors
    ///
    /// No event descriptor left.
    pub fn memory() -> io::Result<Self> {
        Self::new(Sink::Memory(Vec::new()))
    }

    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes bytes from the guest.
    pub fn put(&self, bytes: &[u8]) {
        self.with(|inner| {
            let was_empty = inner.buffer.is_empty();
            inner.buffer.extend_from_slice(bytes);
            inner.bytes += bytes.len() as u64;
            if inner.buffer.len() >= BUFFER {
                inner.drain();
            } else if was_empty {
                // A full event counter means that the loop is awake anyway.
                let _ = inner.wake.write(1);
            }
        });
    }

    /// Writes what is buffered; returns whether anything was.
    pub fn flush_now(&self) -> bool {
        self.with(|inner| {
            let any = !inner.buffer.is_empty();
            if any {
                inner.drain();
            }
            any
        })
    }

    /// Bytes ever taken from the guest.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.with(|inner| inner.bytes)
    }

    /// The last of what it has taken.
    #[must_use]
    pub fn tail(&self) -> Vec<u8> {
        self.flush_now();
        self.with(|inner| inner.tail.clone())
    }

    /// What a [`Console::memory`] has taken; empty for others.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        self.flush_now();
        self.with(|inner| match &inner.sink {
            Sink::Memory(all) => all.clone(),
            Sink::Stdout(_) | Sink::File(_) => Vec::new(),
        })
    }

    /// Becomes readable when the buffer stops being empty.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn wake_fd(&self) -> io::Result<EventFd> {
        self.with(|inner| inner.wake.try_clone())
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
