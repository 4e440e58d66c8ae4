//! Where a guest's console output goes: a terminal or a file, buffered.
//!
//! UART and console ring print on the same [`Console`], so full and para guests pay the same price
//! behind the crossing. A byte is on its way at the latest when the event loop next flushes, a few
//! milliseconds after it was written; `flush` of [`Write`] is therefore a no-op.
//!
//! A sink that takes nothing for now holds the guest up, as long as nobody wants the run to end ([`Console::ends_with`]).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::sync::lock;

/// Bytes that are buffered before a write happens at once.
const BUFFER: usize = 4096;
/// Bytes that are remembered of what has been put out, for who explains a guest's death.
const TAIL: usize = 2048;

/// Bytes that a pipe takes at once where it has said that it takes some.
const PIECE: usize = libc::PIPE_BUF;

#[derive(Debug)]
enum Sink {
    File(File),
    Memory(Vec<u8>),
}

#[derive(Debug)]
struct Inner {
    sink: Sink,
    buffer: Vec<u8>,
    tail: Vec<u8>,
    /// Readable where somebody wants the run to end.
    end: Option<Epoll>,
}

/// What is looked at without the lock, which a writer has for as long as its sink takes nothing.
#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    bytes: AtomicU64,
    wake: EventFd,
    let_go: EventFd,
}

/// A console that may be shared and cloned.
#[derive(Clone, Debug)]
pub struct Console(Arc<Shared>);

/// Writes all bytes. A descriptor that blocks, or is shared with programs that may not expect another, is asked first.
fn write_all(mut file: &File, bytes: &[u8], end: Option<&Epoll>) -> io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        wait_for_room(file, end)?;
        match file.write(&left[..left.len().min(PIECE)]) {
            Ok(count) => left = &left[count..],
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Waits until the file takes bytes, or has an error to tell; an error where the run is to end meanwhile.
fn wait_for_room(file: &File, end: Option<&Epoll>) -> io::Result<()> {
    let watch = |fd, events| libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // A negative descriptor is none.
    let end = end.map_or(-1, AsRawFd::as_raw_fd);
    let mut fds = [
        watch(file.as_raw_fd(), libc::POLLOUT),
        watch(end, libc::POLLIN),
    ];
    loop {
        // SAFETY: there are two structures, which the kernel reads and writes during the call.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        match ready {
            // Signals of ours, to look at something that can wait.
            ..=0 => {}
            _ if fds[0].revents != 0 => return Ok(()),
            _ => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Inner {
    /// A sink that has gone away (a closed pipe) swallows what comes: the guest is not to blame.
    fn drain(&mut self) {
        let _ = match &mut self.sink {
            Sink::File(file) => write_all(file, &self.buffer, self.end.as_ref()),
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
        Ok(Self(Arc::new(Shared {
            inner: Mutex::new(Inner {
                sink,
                buffer: Vec::with_capacity(BUFFER),
                tail: Vec::new(),
                end: None,
            }),
            bytes: AtomicU64::new(0),
            wake: EventFd::new(libc::EFD_NONBLOCK)?,
            let_go: EventFd::new(libc::EFD_NONBLOCK)?,
        })))
    }

    /// Prints on standard output.
    ///
    /// # Errors
    ///
    /// No event descriptor left.
    pub fn stdout() -> io::Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        Self::new(Sink::File(stdout.into()))
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
        f(&mut lock(&self.0.inner))
    }

    /// Takes bytes from the guest.
    pub fn put(&self, bytes: &[u8]) {
        self.with(|inner| {
            let was_empty = inner.buffer.is_empty();
            inner.buffer.extend_from_slice(bytes);
            self.0
                .bytes
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if inner.buffer.len() >= BUFFER {
                inner.drain();
            } else if was_empty {
                // A full event counter means that the loop is awake anyway.
                let _ = self.0.wake.write(1);
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
        self.0.bytes.load(Ordering::Relaxed)
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
            Sink::File(_) => Vec::new(),
        })
    }

    /// Becomes readable when the buffer stops being empty.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn wake_fd(&self) -> io::Result<EventFd> {
        self.0.wake.try_clone()
    }

    /// A run begins that is to end where one of these becomes readable, or by [`Console::let_go`]: what finds no room in the sink
    /// then is lost.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn ends_with(&self, fds: &[RawFd]) -> io::Result<()> {
        // Somebody may have let go of the run before. It is empty otherwise.
        let _ = self.0.let_go.read();
        let end = Epoll::new()?;
        for fd in fds.iter().chain([&self.0.let_go.as_raw_fd()]) {
            let event = EpollEvent::new(EventSet::IN, 0);
            end.ctl(ControlOperation::Add, *fd, event)?;
        }
        self.with(|inner| inner.end = Some(end));
        Ok(())
    }

    /// Whoever waits for room in the sink waits no longer, and never again in this run.
    pub fn let_go(&self) {
        // A full event counter says the same.
        let _ = self.0.let_go.write(1);
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
