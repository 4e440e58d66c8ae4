//! A disk's content: an image file, or a block device, of this host.
//!
//! # How it works
//!
//! What a guest calls a sector is [`SECTOR`] bytes of a raw file, in order. Devices (`virtio/block`, `device/`) give
//! guest memory to be filled or taken from ([`Segments`]), and one system call does the transfer: nothing is copied
//! in between. A qcow2 image ([`qcow2`]) is a library's work, and what it reads and writes is copied once. With `aio=io_uring` ([`uring`]) many
//! transfers are under way at once.
//! A file is open for one writer, or for readers: a lock keeps others out, and is gone with the process.
//!
//! The format is what the user says it is, and is never found out: a guest may write any header to a raw disk.
//!
//! # What a guest may rely on
//!
//! A write that has returned is in the host's page cache, and survives the death of this process.
//! [`Disk::flush`] brings it to the host's disk. That is what a disk with a write cache promises.

pub mod faults;
mod qcow2;
pub mod uring;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vm_memory::VolatileSlice;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use self::faults::{Failing, Faults};
use self::uring::{Ring, Uring};
use qcow2::Qcow2Image;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// The most segments of one transfer.
pub const SEGMENTS_MAX: usize = 128;

/// How many queues a disk can have: as many as facility dev gives a device.
pub(crate) const QUEUES: RangeInclusive<u8> = 1..=4;

/// What is written where a file cannot be told to be zero.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// What an image file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk's bytes in order. Block devices are, too.
    #[default]
    Raw,
    /// QEMU's format, which has room only for what was written (QEMU, docs/interop/qcow2.txt).
    Qcow2,
}

/// `--disk`: which file, whether the guest may write to it, whether it fails, and how many queues it has.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// The image file, or block device.
    pub path: PathBuf,
    /// The guest may not write.
    pub read_only: bool,
    /// What the file holds.
    pub format: Format,
    /// Requests fail now and then.
    pub faults: Option<Faults>,
    /// Queues of a virtio device that shows it.
    pub queues: u8,
    /// A virtio device has many of its transfers under way at once.
    pub uring: Option<Uring>,
}

impl DiskSpec {
    /// A disk that does what it is told.
    #[must_use]
    pub fn of(path: PathBuf, read_only: bool) -> Self {
        Self {
            path,
            read_only,
            format: Format::Raw,
            faults: None,
            queues: 1,
            uring: None,
        }
    }
}

impl FromStr for DiskSpec {
    type Err = DiskError;

    fn from_str(text: &str) -> Result<Self, DiskError> {
        let mut spec = Self::of(PathBuf::new(), false);
        let mut path = text;
        // A name may have a comma.
        while let Some((rest, option)) = path.rsplit_once(',') {
            match option.split_once('=') {
                None if option == "readonly" => spec.read_only = true,
                Some(("format", "raw")) => spec.format = Format::Raw,
                Some(("format", "qcow2")) => spec.format = Format::Qcow2,
                Some(("fail", seed)) => {
                    let seed = seed.parse().map_err(|_| DiskError::Seed(seed.to_owned()))?;
                    spec.faults = Some(Faults::new(seed));
                }
                Some(("aio", "io_uring")) => spec.uring = Some(Uring::default()),
                Some(("queues", count)) => {
                    let queues = count.parse().ok().filter(|n| QUEUES.contains(n));
                    spec.queues = queues.ok_or_else(|| DiskError::Queues(count.to_owned()))?;
                }
                _ => break,
            }
            path = rest;
        }
        if path.is_empty() {
            return Err(DiskError::NoPath);
        }
        if spec.uring.is_some() && (spec.faults.is_some() || spec.format != Format::Raw) {
            return Err(DiskError::NoUring);
        }
        spec.path = path.into();
        Ok(spec)
    }
}

/// Why a disk cannot be used, or a transfer was not made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// `--disk` without a file.
    #[error(
        "a disk is a file: use --disk FILE, with ,readonly or ,format=qcow2 behind it where that is so"
    )]
    NoPath,
    /// `,fail=` without a number.
    #[error("`{0}` is no seed: use a number, as in --disk FILE,fail=7")]
    Seed(String),
    /// `,queues=` with too many, or none.
    #[error("`{0}` queues cannot be: use 1 to 4, as in --disk FILE,queues=4")]
    Queues(String),
    /// `,aio=io_uring` of a disk whose transfers are not the kernel's.
    #[error(
        "a qcow2 image, and a disk that is asked to fail, have one transfer at a time: leave ,aio=io_uring out, or format= and fail="
    )]
    NoUring,
    /// A host without `io_uring`.
    #[error(
        "this host's kernel gives no ring for a disk's transfers: {0}; Linux 5.10 and later have them (io_uring), where the sysctl \
         kernel.io_uring_disabled is 0 and no container's filter of system calls is in the way; leave ,aio=io_uring out otherwise"
    )]
    Uring(io::Error),
    /// A file that cannot be opened.
    #[error("the disk `{}` cannot be opened: {reason}; {mend}", path.display())]
    Open {
        /// Where.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
        /// What to do about it.
        mend: &'static str,
    },
    /// Another process has it.
    #[error(
        "the disk `{}` is in use by another process; end that one, give this guest a copy, or give it to both as --disk FILE,readonly",
        path.display()
    )]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// A qcow2 image that cannot be used.
    #[error(
        "`{}` cannot be used as a qcow2 image: {reason}; `qemu-img check FILE` says whether it is whole, and `qemu-img convert -O qcow2 FILE NEW` makes one that needs no other file",
        path.display()
    )]
    Qcow2 {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        reason: io::Error,
    },
    /// A size that no disk has.
    #[error(
        "the disk `{}` has {bytes} bytes, and a disk has whole sectors, at least one; `truncate --size=%{SECTOR} FILE` fills the last one up",
        path.display()
    )]
    Size {
        /// Where.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A transfer that is not wholly on the disk.
    #[error("{bytes} bytes at byte {at} are not on a disk of {size} bytes")]
    Range {
        /// Where it begins.
        at: u64,
        /// Its length.
        bytes: u64,
        /// The disk's.
        size: u64,
    },
    /// More segments than [`SEGMENTS_MAX`].
    #[error("a transfer has more than {SEGMENTS_MAX} segments")]
    Segments,
    /// A write to a disk that may not be written to.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A request that fails because it was asked to.
    #[error("the disk was asked to fail (--disk FILE,fail=SEED)")]
    Asked,
    /// The host's file failed.
    #[error("the disk's file has failed: {0}")]
    Io(#[from] io::Error),
}

/// Guest memory that a transfer fills, or is taken from, in order.
///
/// # Invariants
///
/// Each of the first `count` entries of `iovecs` is a part of guest memory that stays mapped for `'m`, and to whose bytes
/// there is no reference.
#[derive(Clone, Debug)]
pub struct Segments<'m> {
    iovecs: [libc::iovec; SEGMENTS_MAX],
    count: usize,
    bytes: u64,
    memory: PhantomData<VolatileSlice<'m>>,
}

impl Default for Segments<'_> {
    fn default() -> Self {
        const NOTHING: libc::iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            iovecs: [NOTHING; SEGMENTS_MAX],
            count: 0,
            bytes: 0,
            memory: PhantomData,
        }
    }
}

impl<'m> Segments<'m> {
    /// Adds a piece of guest memory.
    ///
    /// # Errors
    ///
    /// [`DiskError::Segments`].
    pub fn push(&mut self, slice: VolatileSlice<'m>) -> Result<(), DiskError> {
        let place = self.iovecs.get_mut(self.count).ok_or(DiskError::Segments)?;
        // INVARIANT: a `VolatileSlice<'m>` is memory that is mapped for `'m`; guest bytes never become references.
        *place = libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        };
        self.count += 1;
        self.bytes = self.bytes.saturating_add(slice.len() as u64);
        Ok(())
    }

    /// Bytes in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Carries out `transfer` until all bytes are done: it gets what is left, and the place on the disk, and returns
    /// how many bytes it has done.
    fn transfer(
        mut self,
        mut at: u64,
        transfer: impl Fn(&[libc::iovec], u64) -> io::Result<usize>,
    ) -> Result<(), DiskError> {
        let mut left = &mut self.iovecs[..self.count];
        while !left.is_empty() {
            let mut done = match transfer(left, at) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                done => done?,
            };
            if done == 0 && left.iter().any(|iovec| iovec.iov_len > 0) {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            at += done as u64;
            let whole = left.iter().take_while(|iovec| {
                let is_done = iovec.iov_len <= done;
                done -= if is_done { iovec.iov_len } else { 0 };
                is_done
            });
            let whole = whole.count();
            left = &mut left[whole..];
            if let Some(first) = left.first_mut() {
                // SAFETY: `done` is less than the segment's length, so this stays inside it.
                first.iov_base = unsafe { first.iov_base.cast::<u8>().add(done) }.cast();
                first.iov_len -= done;
            }
        }
        Ok(())
    }
}

/// Where a disk's content is.
#[derive(Debug)]
enum Content {
    Raw(File),
    Qcow2(Qcow2Image),
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    content: Content,
    bytes: u64,
    read_only: bool,
    failing: Option<Failing>,
    /// What its transfers go by, and where that stays when the disk is closed.
    ring: Option<(Ring, Uring)>,
}

impl Disk {
    /// Opens and locks the file.
    ///
    /// # Errors
    ///
    /// [`DiskError::Open`], [`DiskError::InUse`], [`DiskError::Size`], [`DiskError::Uring`].
    pub fn open(spec: &DiskSpec) -> Result<Self, DiskError> {
        let path = &spec.path;
        let fail = |reason| open_error(path, reason);
        let mut file = OpenOptions::new()
            .read(true)
            .write(!spec.read_only)
            .open(path)
            .map_err(fail)?;
        if file.metadata().map_err(fail)?.is_dir() {
            return Err(fail(io::ErrorKind::IsADirectory.into()));
        }
        let locked = if spec.read_only {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        locked.map_err(|e| match e {
            TryLockError::WouldBlock => DiskError::InUse { path: path.clone() },
            TryLockError::Error(reason) => fail(reason),
        })?;
        // A block device's metadata does not tell its size.
        let mut bytes = file.seek(SeekFrom::End(0)).map_err(fail)?;
        let content = match spec.format {
            Format::Raw => Content::Raw(file),
            Format::Qcow2 => {
                let image = Qcow2Image::open(file, !spec.read_only).map_err(|reason| {
                    let path = path.clone();
                    DiskError::Qcow2 { path, reason }
                })?;
                bytes = image.bytes();
                Content::Qcow2(image)
            }
        };
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            let path = path.clone();
            return Err(DiskError::Size { path, bytes });
        }
        Ok(Self {
            content,
            bytes,
            read_only: spec.read_only,
            failing: spec.faults.as_ref().map(Faults::begin),
            ring: match &spec.uring {
                Some(uring) => Some((uring.take()?, uring.clone())),
                None => None,
            },
        })
    }

    /// Size, in sectors of [`SECTOR`] bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.bytes / SECTOR
    }

    /// Whether the guest may not write.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn check(&self, at: u64, bytes: u64) -> Result<(), DiskError> {
        let size = self.bytes;
        match at.checked_add(bytes) {
            Some(end) if end <= size => self.may_fail(),
            _ => Err(DiskError::Range { at, bytes, size }),
        }
    }

    fn may_fail(&self) -> Result<(), DiskError> {
        self.failing.as_ref().map_or(Ok(()), Failing::request)
    }

    fn check_write(&self, at: u64, bytes: u64) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        self.check(at, bytes)
    }

    /// Fills guest memory with what is on the disk from byte `at`.
    ///
    /// # Errors
    ///
    /// [`DiskError::Range`]; [`DiskError::Io`], and then some of the memory may have been filled.
    pub fn read(&self, at: u64, segments: Segments<'_>) -> Result<(), DiskError> {
        self.check(at, segments.bytes)?;
        let file = match &self.content {
            Content::Raw(file) => file.as_raw_fd(),
            Content::Qcow2(image) => return segments.transfer(at, |to, at| image.read(at, to)),
        };
        // SAFETY: the entries are mapped guest memory to which there is no reference (invariant of `Segments`), so that
        // the kernel may write there.
        segments.transfer(at, |to, at| unsafe { vectored(libc::preadv, file, to, at) })
    }

    /// Writes guest memory to the disk from byte `at`. The guest may change it meanwhile; then either is written.
    ///
    /// # Errors
    ///
    /// [`DiskError::Range`], [`DiskError::ReadOnly`]; [`DiskError::Io`], and then some of it may have been written.
    pub fn write(&self, at: u64, segments: Segments<'_>) -> Result<(), DiskError> {
        self.check_write(at, segments.bytes)?;
        let file = match &self.content {
            Content::Raw(file) => file.as_raw_fd(),
            Content::Qcow2(image) => {
                return segments.transfer(at, |from, at| image.write(at, from));
            }
        };
        // SAFETY: the entries are mapped guest memory (invariant of `Segments`), which the kernel reads.
        segments.transfer(at, |from, at| unsafe {
            vectored(libc::pwritev, file, from, at)
        })
    }

    /// The same into memory of our own, for devices whose data pass through a register.
    ///
    /// # Errors
    ///
    /// [`DiskError::Range`], [`DiskError::Io`].
    pub fn read_bytes(&self, at: u64, into: &mut [u8]) -> Result<(), DiskError> {
        self.check(at, into.len() as u64)?;
        match &self.content {
            Content::Raw(file) => file.read_exact_at(into, at)?,
            Content::Qcow2(image) => image.read_bytes(at, into)?,
        }
        Ok(())
    }

    /// The same from memory of our own.
    ///
    /// # Errors
    ///
    /// [`DiskError::Range`], [`DiskError::ReadOnly`], [`DiskError::Io`].
    pub fn write_bytes(&self, at: u64, from: &[u8]) -> Result<(), DiskError> {
        self.check_write(at, from.len() as u64)?;
        match &self.content {
            Content::Raw(file) => file.write_all_at(from, at)?,
            Content::Qcow2(image) => image.write_bytes(at, from)?,
        }
        Ok(())
    }

    /// Brings all writes that have returned to the host's disk.
    ///
    /// # Errors
    ///
    /// [`DiskError::Io`]: nobody knows then what is there.
    pub fn flush(&self) -> Result<(), DiskError> {
        self.may_fail()?;
        match &self.content {
            Content::Raw(file) => file.sync_data()?,
            Content::Qcow2(image) => image.flush()?,
        }
        Ok(())
    }

    /// Gives the room of these bytes back to the host; they read as zero from then on, or as they were on a
    /// host that cannot.
    ///
    /// # Errors
    ///
    /// [`DiskError::Range`], [`DiskError::ReadOnly`], [`DiskError::Io`].
    pub fn discard(&self, at: u64, bytes: u64) -> Result<(), DiskError> {
        self.check_write(at, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let file = match &self.content {
            Content::Raw(file) => file,
            Content::Qcow2(image) => return Ok(image.write_zeroes(at, bytes)?),
        };
        match fallocate(file, FallocateMode::PunchHole, true, at, bytes) {
            Err(e) if e.errno() != libc::EOPNOTSUPP => Err(io::Error::from(e).into()),
            _ => Ok(()),
        }
    }

    /// Makes these bytes zero, whatever the host can do; `may_discard`: their room may be given back.
    ///
    /// # Errors
    ///
    /// [`DiskError::Range`], [`DiskError::ReadOnly`]; [`DiskError::Io`], and then some of them may be zero.
    pub fn write_zeroes(&self, at: u64, bytes: u64, may_discard: bool) -> Result<(), DiskError> {
        self.check_write(at, bytes)?;
        let file = match &self.content {
            Content::Raw(file) => file,
            Content::Qcow2(image) => return Ok(image.write_zeroes(at, bytes)?),
        };
        let by = |mode| bytes > 0 && fallocate(file, mode, true, at, bytes).is_ok();
        if may_discard && by(FallocateMode::PunchHole) || by(FallocateMode::ZeroRange) {
            return Ok(());
        }
        let mut done = 0;
        while done < bytes {
            let part = usize::try_from(bytes - done).map_or(ZEROS.len(), |n| n.min(ZEROS.len()));
            file.write_all_at(&ZEROS[..part], at + done)?;
            done += part as u64;
        }
        Ok(())
    }
}

/// `preadv` or `pwritev`: how many bytes it has done.
///
/// # Safety
///
/// The call may do to the entries' memory what it does.
unsafe fn vectored(
    call: unsafe extern "C" fn(i32, *const libc::iovec, i32, libc::off_t) -> libc::ssize_t,
    file: RawFd,
    iovecs: &[libc::iovec],
    at: u64,
) -> io::Result<usize> {
    let offset = libc::off_t::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
    // At most SEGMENTS_MAX.
    let count = libc::c_int::try_from(iovecs.len()).unwrap_or(0);
    // SAFETY: the slice lives, and the caller vouches for what it names.
    let done = unsafe { call(file, iovecs.as_ptr(), count, offset) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// What to do about a file that cannot be opened.
fn open_error(path: &Path, reason: io::Error) -> DiskError {
    let mend = match reason.kind() {
        io::ErrorKind::NotFound => "make one with `truncate --size=1G FILE` and `mkfs.ext4 FILE`",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "you must be allowed to write to it, or give it as --disk FILE,readonly"
        }
        io::ErrorKind::IsADirectory => {
            "a disk is a file; `mkfs.ext4 -d FOLDER FILE SIZE` makes one of a folder"
        }
        _ => "use an image file, or a block device",
    };
    let path = path.to_owned();
    DiskError::Open { path, reason, mend }
}

#[cfg(test)]
pub(crate) mod tests;
