//! A qcow2 image: which of its bytes a sector is, and room for what is written, by the library `imago`.
//!
//! The library's buffers are Rust's memory. Guest memory is not, since a guest changes it at any moment: a transfer is copied, at
//! most [`COPY_MAX`] bytes at once. An image is one file: a backing file is refused, because whoever made the image would choose
//! which of the host's files the guest reads.
//!
//! Where a sector is stays in this process until the guest flushes: what it has not flushed may be gone if the process is killed.

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};
use vm_memory::VolatileSlice;

/// The most bytes that are copied at once.
const COPY_MAX: usize = 1 << 20;

/// An open image.
#[derive(Debug)]
pub(super) struct Qcow2Image {
    image: FormatAccess<imago::file::File>,
    /// What is copied; it has grown as far as a transfer needed.
    copy: Mutex<Vec<u8>>,
}

impl Qcow2Image {
    /// Opens the image in `file`.
    pub(super) fn open(file: File, write: bool) -> io::Result<Self> {
        let file = imago::file::File::try_from(file)?;
        let image = imago::qcow2::Qcow2::<imago::file::File>::builder(file)
            .write(write)
            .open(DenyImplicitOpenGate::default())?;
        Ok(Self {
            image: FormatAccess::new(image),
            copy: Mutex::default(),
        })
    }

    /// The disk's size.
    pub(super) fn bytes(&self) -> u64 {
        self.image.size()
    }

    /// Fills the beginning of `into` with what is at byte `at`; how many bytes that are. See [`super::Segments`] for what `into` is.
    pub(super) fn read(&self, at: u64, into: &[libc::iovec]) -> io::Result<usize> {
        self.copied(into, |copy, slices| {
            self.image.read(&mut *copy, at)?;
            let mut rest = &copy[..];
            for slice in slices {
                let (now, later) = rest.split_at(slice.len());
                slice.copy_from(now);
                rest = later;
            }
            Ok(())
        })
    }

    /// Writes the beginning of `from` to byte `at`; how many bytes that are.
    pub(super) fn write(&self, at: u64, from: &[libc::iovec]) -> io::Result<usize> {
        self.copied(from, |copy, slices| {
            let mut rest = &mut *copy;
            for slice in slices {
                let (now, later) = rest.split_at_mut(slice.len());
                slice.copy_to(now);
                rest = later;
            }
            self.image.write(&*copy, at)
        })
    }

    /// Gives `transfer` memory for as much of `iovecs` as is copied at once, and those pieces of guest memory.
    fn copied<'m>(
        &self,
        iovecs: &'m [libc::iovec],
        transfer: impl FnOnce(&mut [u8], &mut dyn Iterator<Item = VolatileSlice<'m>>) -> io::Result<()>,
    ) -> io::Result<usize> {
        let all: usize = iovecs.iter().map(|iovec| iovec.iov_len).sum();
        let bytes = all.min(COPY_MAX);
        let mut copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        if copy.len() < bytes {
            copy.resize(bytes, 0);
        }
        let mut left = bytes;
        let mut slices = iovecs.iter().map_while(|iovec| {
            let length = iovec.iov_len.min(left);
            left -= length;
            // SAFETY: entries are mapped guest memory without references to it (invariant of `Segments`).
            (length > 0).then(|| unsafe { VolatileSlice::new(iovec.iov_base.cast(), length) })
        });
        transfer(&mut copy[..bytes], &mut slices)?;
        Ok(bytes)
    }

    /// The same into memory of our own.
    pub(super) fn read_bytes(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.image.read(into, at)
    }

    /// The same from memory of our own.
    pub(super) fn write_bytes(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.image.write(from, at)
    }

    /// Makes these bytes zero, and gives back whole clusters.
    pub(super) fn write_zeroes(&self, at: u64, bytes: u64) -> io::Result<()> {
        self.image.write_zeroes(at, bytes)
    }

    /// Brings what was written, and where it is, to the host's disk.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.image.flush()?;
        self.image.sync()
    }
}
