//! Requests to a disk, one at a time, past the page cache: each goes to the device.

use core::ffi::CStr;

use crate::PAGE;
use crate::jobs::Watch;
use crate::sys::{self, Errno, Fd};
use crate::task::Mapping;

/// What one sequential read asks for.
const CHUNK: usize = 128 * 1024;

/// What a round does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// A page is read, anywhere.
    Read,
    /// A page is written, anywhere.
    Write,
    /// A page is written, anywhere, and is on the disk for good.
    Sync,
    /// A piece of 128 KiB is read, one after the other.
    Scan,
}

/// Where disks are: virtio's first, then IDE's.
const DISKS: [&CStr; 2] = [c"/dev/vda", c"/dev/sda"];

fn open() -> Result<Fd, Errno> {
    let flags = sys::O_RDWR | sys::O_DIRECT;
    match sys::open(DISKS[0], flags) {
        Err(sys::ENOENT) => sys::open(DISKS[1], flags),
        opened => opened,
    }
}

/// Makes `rounds` requests.
pub(crate) fn request(watch: &mut Watch<'_>, what: Request, rounds: usize) -> Result<(), Errno> {
    let disk = open()?;
    let piece = if what == Request::Scan { CHUNK } else { PAGE };
    let pieces = disk.size()? / piece;
    let buffer = Mapping::private(piece)?;
    buffer.touch(0);
    let mut places = Places(0x2026);
    let mut next = 0;
    let result = if pieces == 0 {
        Err(sys::ENOSPC)
    } else {
        watch.each(rounds, || {
            let place = match what {
                Request::Scan => {
                    next += 1;
                    next % pieces
                }
                _ => places.below(pieces),
            };
            match what {
                Request::Read | Request::Scan => buffer.read_at(disk, place * piece),
                Request::Write => buffer.write_at(disk, place * piece),
                Request::Sync => {
                    buffer.write_at(disk, place * piece)?;
                    disk.sync()
                }
            }
        })
    };
    buffer.unmap()?;
    disk.close();
    result
}

/// The same places in each guest (xorshift).
struct Places(u64);

impl Places {
    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 1).unwrap_or(0) % count
    }
}
