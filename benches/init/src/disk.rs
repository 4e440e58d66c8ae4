//! Requests to a disk past the page cache: each goes to the device.

use core::ffi::CStr;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::PAGE;
use crate::jobs::Watch;
use crate::sys::{self, Errno, Fd};
use crate::task::{Gate, Mapping, Threads};

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

/// Makes `rounds` requests in all, so many at a time: each by a thread of its own where there are several.
pub(crate) fn request(
    watch: &mut Watch<'_>,
    what: Request,
    rounds: usize,
    tasks: usize,
) -> Result<(), Errno> {
    let disk = open()?;
    let piece = if what == Request::Scan { CHUNK } else { PAGE };
    let pieces = disk.size()? / piece;
    if pieces == 0 {
        return Err(sys::ENOSPC);
    }
    let (number, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let gate = Gate::new()?;
    let work = || {
        let mine = number.fetch_add(1, Ordering::Relaxed);
        let share = rounds / tasks + usize::from(mine < rounds % tasks);
        let done = Mapping::private(piece).and_then(|buffer| {
            buffer.touch(0);
            if tasks > 1 {
                gate.wait();
            }
            let places = Places(0x2026 + mine as u64);
            requests(disk, what, (pieces, places), buffer, share)?;
            buffer.unmap()
        });
        if let Err(errno) = done {
            failed.store(errno.0, Ordering::Relaxed);
        }
    };
    if tasks == 1 {
        watch.time(|| {
            work();
            Ok(())
        })?;
    } else {
        let threads = Threads::start(tasks, &work)?;
        watch.time(|| {
            gate.open(tasks)?;
            threads.wait()
        })?;
        threads.unmap()?;
    }
    gate.close();
    disk.close();
    match failed.into_inner() {
        0 => Ok(()),
        errno => Err(Errno(errno)),
    }
}

/// Makes `rounds` requests, each for a whole buffer.
fn requests(
    disk: Fd,
    what: Request,
    (pieces, mut places): (usize, Places),
    buffer: Mapping,
    rounds: usize,
) -> Result<(), Errno> {
    for round in 1..=rounds {
        let place = match what {
            Request::Scan => round % pieces,
            _ => places.below(pieces),
        } * buffer.length();
        match what {
            Request::Read | Request::Scan => buffer.read_at(disk, place),
            Request::Write => buffer.write_at(disk, place),
            Request::Sync => {
                buffer.write_at(disk, place)?;
                disk.sync()
            }
        }?;
    }
    Ok(())
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
