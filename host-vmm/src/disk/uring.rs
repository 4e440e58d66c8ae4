//! Transfers that the host's kernel has under way, many at once (`--disk FILE,aio=io_uring`; `io_uring(7)`).
//!
//! What is begun together goes to the kernel by one system call, and ends in any order. The ring's descriptor is readable when something has
//! ended. A ring is made before the process is confined and stays where the machine starts again, since a confined process makes none. It knows
//! no operation but a disk's: by it, a guest that has broken in can do no more than by the calls that a device's thread has anyway.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, types};

use super::{Content, Disk, DiskError, Segments};
use crate::sync::lock;

/// The most transfers under way at once; the kernel's rings have room for them all.
const TRANSFERS_MAX: u16 = 128;

/// Which ring a disk uses: it has none before it is opened for the first time, and while it is open.
#[derive(Clone, Debug, Default)]
pub struct Uring(Arc<Mutex<Option<Ring>>>);

impl Uring {
    /// One whose ring is made now.
    ///
    /// # Errors
    ///
    /// [`DiskError::Uring`].
    pub fn made() -> Result<Self, DiskError> {
        let uring = Self::default();
        uring.keep(uring.take()?);
        Ok(uring)
    }

    pub(super) fn take(&self) -> Result<Ring, DiskError> {
        let kept = lock(&self.0).take();
        kept.map_or_else(|| Ring::new().map_err(DiskError::Uring), Ok)
    }

    pub(super) fn keep(&self, ring: Ring) {
        *lock(&self.0) = Some(ring);
    }
}

/// What is done with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Guest memory is filled.
    Read,
    /// Guest memory is written.
    Write,
    /// The same, and what is written is on the host's disk at its end.
    WriteThrough,
    /// All writes that had ended when it began are brought to the host's disk.
    Flush,
}

/// A transfer under way.
#[derive(Debug)]
struct Slot {
    what: Transfer,
    at: u64,
    /// Guest memory, mapped as long as this is under way ([`Ring::begin`]).
    segments: Segments<'static>,
}

/// A ring of the kernel's, and what it has under way.
///
/// # Invariants
///
/// A slot is in `free`, or its number is with the kernel or with whoever has been told that it has ended.
pub(super) struct Ring {
    kernel: IoUring,
    slots: Box<[Slot]>,
    free: Vec<usize>,
    under_way: usize,
}

// SAFETY: the pointers in the slots are to guest memory, which all threads share, and that stays mapped as long as they are used.
unsafe impl Send for Ring {}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ring = f.debug_struct("Ring");
        ring.field("under_way", &self.under_way)
            .finish_non_exhaustive()
    }
}

impl Ring {
    fn new() -> io::Result<Self> {
        let kernel = IoUring::builder()
            .setup_r_disabled()
            .build(TRANSFERS_MAX.into())?;
        let operations = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
        ];
        let submitter = kernel.submitter();
        submitter.register_restrictions(&mut operations.map(Restriction::sqe_op))?;
        submitter.register_enable_rings()?;
        let slot = |_| Slot {
            what: Transfer::Flush,
            at: 0,
            segments: Segments::default(),
        };
        Ok(Self {
            kernel,
            slots: (0..TRANSFERS_MAX).map(slot).collect(),
            free: (0..TRANSFERS_MAX.into()).collect(),
            under_way: 0,
        })
    }

    /// Begins a transfer with the next [`Ring::submit`], and returns its number.
    ///
    /// # Safety
    ///
    /// The segments stay mapped, without a reference to their bytes, until [`Ring::next`] has had that number.
    unsafe fn begin(
        &mut self,
        file: RawFd,
        what: Transfer,
        at: u64,
        segments: &Segments<'_>,
    ) -> Result<usize, DiskError> {
        let number = self
            .free
            .pop()
            .ok_or(io::Error::from(io::ErrorKind::WouldBlock))?;
        let slot = &mut self.slots[number];
        (slot.what, slot.at) = (what, at);
        let count = segments.count;
        slot.segments.iovecs[..count].copy_from_slice(&segments.iovecs[..count]);
        (slot.segments.count, slot.segments.bytes) = (count, segments.bytes);
        let (file, iovecs) = (types::Fd(file), slot.segments.iovecs.as_ptr());
        // At most SEGMENTS_MAX.
        let count = u32::try_from(count).unwrap_or(0);
        let write = |flags| {
            let write = opcode::Writev::new(file, iovecs, count).offset(at);
            write.rw_flags(flags).build()
        };
        let entry = match what {
            Transfer::Read => opcode::Readv::new(file, iovecs, count).offset(at).build(),
            Transfer::Write => write(0),
            Transfer::WriteThrough => write(libc::RWF_DSYNC),
            Transfer::Flush => opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        };
        let entry = entry.user_data(number as u64);
        // SAFETY: the slot stays where it is, and unchanged, until the number is free again; its memory stays mapped, says the caller.
        let pushed = unsafe { self.kernel.submission().push(&entry) };
        // There are as many places as slots.
        pushed.map_err(io::Error::other)?;
        self.under_way += 1;
        Ok(number)
    }

    /// Gives the kernel what was begun; with `wait`, waits until something has ended.
    fn submit(&mut self, wait: bool) {
        loop {
            let wants = usize::from(wait && self.kernel.completion().is_empty());
            if wants == 0 && self.kernel.submission().is_empty() {
                return;
            }
            // Only a signal or want of memory comes in between: then it is tried again.
            let _ = self.kernel.submit_and_wait(wants);
        }
    }

    /// The next transfer that has ended, and how. `None` in that place: by halves, and it is to be carried out anew. Its slot stays in use.
    fn next(&mut self) -> Option<(usize, Option<io::Result<()>>)> {
        let entry = self.kernel.completion().next()?;
        self.under_way -= 1;
        // It is one of ours: the kernel gives back what it got.
        let number = usize::try_from(entry.user_data()).unwrap_or(0);
        let ended = match entry.result() {
            error if error < 0 => {
                let error = io::Error::from_raw_os_error(-error);
                let again = [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock];
                (!again.contains(&error.kind())).then_some(Err(error))
            }
            done => {
                (u64::try_from(done) == Ok(self.slots[number].segments.bytes)).then_some(Ok(()))
            }
        };
        Some((number, ended))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        while self.is_under_way() {
            self.ended(true, |_, _| ());
        }
        if let Some((ring, uring)) = self.ring.take() {
            uring.keep(ring);
        }
    }
}

impl Disk {
    /// What becomes readable when a transfer that was begun has ended; none where transfers are made one by one.
    #[must_use]
    pub fn ring(&self) -> Option<RawFd> {
        self.ring.as_ref().map(|(ring, _)| ring.kernel.as_raw_fd())
    }

    /// Whether no transfer can be begun before another one has ended.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.ring
            .as_ref()
            .is_none_or(|(ring, _)| ring.free.is_empty())
    }

    /// Whether any has been begun, and not ended.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        let ring = self.ring.as_ref();
        ring.is_some_and(|(ring, _)| ring.under_way > 0)
    }

    /// Whether a single one has, and the kernel does not know of it yet.
    #[must_use]
    pub fn is_alone(&mut self) -> bool {
        let ring = self.ring.as_mut();
        ring.is_some_and(|(ring, _)| ring.under_way == 1 && ring.kernel.submission().len() == 1)
    }

    /// Begins a transfer, with the next [`Disk::ended`], and returns its number.
    ///
    /// # Safety
    ///
    /// The segments stay mapped, without a reference to their bytes, until [`Disk::ended`] has told that number.
    ///
    /// # Errors
    ///
    /// Those of [`Disk::read`] and [`Disk::write`], and nothing was begun.
    pub unsafe fn begin(
        &mut self,
        what: Transfer,
        at: u64,
        segments: &Segments<'_>,
    ) -> Result<usize, DiskError> {
        match what {
            Transfer::Read => self.check(at, segments.bytes)?,
            Transfer::Write | Transfer::WriteThrough => self.check_write(at, segments.bytes)?,
            Transfer::Flush => {}
        }
        let (Content::Raw(file), Some((ring, _))) = (&self.content, &mut self.ring) else {
            return Err(DiskError::NoUring);
        };
        // SAFETY: the caller says so.
        unsafe { ring.begin(file.as_raw_fd(), what, at, segments) }
    }

    /// Has the kernel begin what was begun, waits with `wait` until something has ended, and tells all that has: its number, and
    /// how many bytes of guest memory were filled.
    pub fn ended(&mut self, wait: bool, mut tell: impl FnMut(usize, Result<u64, DiskError>)) {
        if let Some((ring, _)) = &mut self.ring {
            ring.submit(wait);
        }
        while let Some((number, ended)) = self.ring.as_mut().and_then(|(ring, _)| ring.next()) {
            let result = ended.map_or_else(|| self.anew(number), |ended| Ok(ended?));
            let Some((ring, _)) = &mut self.ring else {
                return;
            };
            let slot = &ring.slots[number];
            let filled = match slot.what {
                Transfer::Read => slot.segments.bytes,
                _ => 0,
            };
            ring.free.push(number);
            tell(number, result.map(|()| filled));
        }
    }

    /// Carries out a transfer that has ended by halves.
    fn anew(&self, number: usize) -> Result<(), DiskError> {
        let Some((ring, _)) = &self.ring else {
            return Ok(());
        };
        let slot = &ring.slots[number];
        let (at, segments) = (slot.at, slot.segments.clone());
        match slot.what {
            Transfer::Read => self.read(at, segments),
            Transfer::Write => self.write(at, segments),
            Transfer::WriteThrough => self.write(at, segments).and_then(|()| self.flush()),
            Transfer::Flush => self.flush(),
        }
    }
}
