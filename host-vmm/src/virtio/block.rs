//! The block device: a disk of sectors.
//!
//! A request is a header (what, which sector), data, and a byte for the status. All its data go with one system call
//! between guest memory and the disk's file; where the disk has a ring (`aio=io_uring`), those of all requests that are there, and their
//! answers come in the order in which they end. What the driver has been told is written may be in the host's cache until it
//! flushes; a driver that knows no flush gets each write on the disk before its answer.
//!
//! Each processor of a guest can have a queue of its own, so that it waits for no other one to make its requests. One
//! thread serves them all: the driver may give any request to any queue.

use std::os::fd::RawFd;

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Bytes, VolatileSlice};

use super::queue::{Chain, Io, QUEUE_MAX, QueueError, Served};
use super::{CONFIG_MAX, Device};
use crate::disk::uring::Transfer;
use crate::disk::{Disk, DiskError, SECTOR, SEGMENTS_MAX, Segments};

/// Bytes of a request's header: type, a reserved word, sector.
const HEADER: usize = 16;
/// Bytes of a range to discard or to zero: sector, number of sectors, flags.
const RANGE: usize = 16;
/// The most ranges of one request.
const RANGES_MAX: usize = 32;
/// The most sectors of a range to discard: 1 GiB.
const DISCARD_SECTORS_MAX: u32 = 1 << 21;
/// The most sectors of the range to zero, of which a request has one: 16 MiB. A file that cannot be told to be zero is written, and
/// a pause or a reset waits for the request's end.
const ZERO_SECTORS_MAX: u32 = 1 << 15;
/// Bytes of a disk's name.
const ID: usize = 20;

/// How a request ends that is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The disk cannot.
    Failed,
    /// There is no such request.
    Unsupported,
}

impl From<DiskError> for Refusal {
    fn from(_: DiskError) -> Self {
        Self::Failed
    }
}

/// The device.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    id: [u8; ID],
    write_through: bool,
    queues: usize,
}

impl Block {
    /// The disk number `index`, with so many queues.
    #[must_use]
    pub fn new(disk: Disk, index: usize, queues: u8) -> Self {
        let mut id = [0; ID];
        let name = format!("paravane-disk{index}");
        let length = name.len().min(ID);
        id[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self {
            disk,
            id,
            write_through: true,
            queues: usize::from(queues.max(1)),
        }
    }

    /// Carries out a request; how many bytes of the chain have been written.
    fn request(&self, chain: &mut Chain<'_>) -> Result<u32, QueueError> {
        let (what, at, status) = decode(chain)?;
        let result = self.result(what, at, chain)?;
        Ok(answer(&status, result))
    }

    /// Begins a request where the disk's ring takes it, and carries it out otherwise.
    fn begin<'m>(&mut self, chain: &mut Chain<'m>) -> Result<Served<'m>, QueueError> {
        let (what, at, status) = decode(chain)?;
        let transfer = match what {
            blk::VIRTIO_BLK_T_IN => self.start(Transfer::Read, at, chain.writable()),
            blk::VIRTIO_BLK_T_OUT if self.write_through => {
                self.start(Transfer::WriteThrough, at, chain.readable())
            }
            blk::VIRTIO_BLK_T_OUT => self.start(Transfer::Write, at, chain.readable()),
            // Of the writes whose answers the driver had when it made this request, and no others (5.2.6.2).
            blk::VIRTIO_BLK_T_FLUSH => self.start(Transfer::Flush, 0, &[]),
            _ => {
                let result = self.result(what, at, chain)?;
                return Ok(Served::Done(answer(&status, result)));
            }
        };
        Ok(match transfer {
            Ok(number) => Served::UnderWay(number, status),
            Err(refusal) => Served::Done(answer(&status, Err(refusal))),
        })
    }

    fn start(
        &mut self,
        what: Transfer,
        sector: u64,
        slices: &[VolatileSlice<'_>],
    ) -> Result<usize, Refusal> {
        let (at, segments) = transfer(sector, slices)?;
        // SAFETY: the slices are parts of guest memory, to which there are no references, and the device's thread keeps that mapped until
        // the device has settled.
        Ok(unsafe { self.disk.begin(what, at, &segments) }?)
    }

    /// Answers what has ended, after a wait where nothing has and `wait` says so.
    fn end(&mut self, io: &mut Io<'_>, wait: bool) -> Result<(), QueueError> {
        let mut ended = Ok(());
        self.disk.ended(wait, |number, result| {
            let result = result.map_err(Refusal::from).and_then(bytes);
            let answered = io.end(number, |status| answer(status, result));
            ended = std::mem::replace(&mut ended, Ok(())).and(answered);
        });
        ended?;
        io.flush_all()
    }

    fn result(
        &self,
        what: u32,
        at: u64,
        chain: &mut Chain<'_>,
    ) -> Result<Result<usize, Refusal>, QueueError> {
        Ok(match what {
            blk::VIRTIO_BLK_T_IN => self.read(at, chain.writable()),
            blk::VIRTIO_BLK_T_OUT => self.write(at, chain.readable()),
            blk::VIRTIO_BLK_T_FLUSH => self.flush(),
            blk::VIRTIO_BLK_T_GET_ID => Ok(chain.fill(&self.id)),
            blk::VIRTIO_BLK_T_DISCARD => self.ranges(chain, false)?,
            blk::VIRTIO_BLK_T_WRITE_ZEROES => self.ranges(chain, true)?,
            _ => Err(Refusal::Unsupported),
        })
    }

    fn read(&self, sector: u64, into: &[VolatileSlice<'_>]) -> Result<usize, Refusal> {
        let (at, segments) = transfer(sector, into)?;
        let filled = segments.bytes();
        self.disk.read(at, segments)?;
        bytes(filled)
    }

    fn write(&self, sector: u64, from: &[VolatileSlice<'_>]) -> Result<usize, Refusal> {
        let (at, segments) = transfer(sector, from)?;
        self.disk.write(at, segments)?;
        self.written()
    }

    /// A write is done: now, or on the disk.
    fn written(&self) -> Result<usize, Refusal> {
        if self.write_through {
            self.disk.flush()?;
        }
        Ok(0)
    }

    fn flush(&self) -> Result<usize, Refusal> {
        self.disk.flush()?;
        Ok(0)
    }

    /// Discards or zeroes the ranges of a request, all or, where one cannot be, none.
    fn ranges(
        &self,
        chain: &mut Chain<'_>,
        zero: bool,
    ) -> Result<Result<usize, Refusal>, QueueError> {
        let bytes = chain.readable_bytes();
        let most = if zero { 1 } else { RANGES_MAX };
        if bytes == 0 || !bytes.is_multiple_of(RANGE) || bytes > RANGE * most {
            return Ok(Err(Refusal::Failed));
        }
        let mut list = [0; RANGE * RANGES_MAX];
        chain.take(&mut list[..bytes])?;
        let ranges = list[..bytes].chunks_exact(RANGE);
        Ok(self.carry_out(ranges, zero))
    }

    fn carry_out<'a>(
        &self,
        ranges: impl Iterator<Item = &'a [u8]> + Clone,
        zero: bool,
    ) -> Result<usize, Refusal> {
        let (known, most) = if zero {
            (blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, ZERO_SECTORS_MAX)
        } else {
            (0, DISCARD_SECTORS_MAX)
        };
        let decode = |range: &[u8]| {
            let sector = u64::from(word(range, 0)) | u64::from(word(range, 4)) << 32;
            (sector, word(range, 8), word(range, 12))
        };
        for (sector, count, flags) in ranges.clone().map(decode) {
            if flags & !known != 0 {
                return Err(Refusal::Unsupported);
            }
            let end = sector.checked_add(u64::from(count));
            if count > most || end.is_none_or(|end| end > self.disk.sectors()) {
                return Err(Refusal::Failed);
            }
        }
        for (sector, count, flags) in ranges.map(decode) {
            let (at, bytes) = (sector * SECTOR, u64::from(count) * SECTOR);
            if zero {
                self.disk.write_zeroes(at, bytes, flags != 0)?;
            } else {
                self.disk.discard(at, bytes)?;
            }
        }
        self.written()
    }
}

/// What a request is: type, sector, and where its status goes.
fn decode<'m>(chain: &mut Chain<'m>) -> Result<(u32, u64, VolatileSlice<'m>), QueueError> {
    let mut header = [0; HEADER];
    chain.take(&mut header)?;
    let at = u64::from(word(&header, 8)) | u64::from(word(&header, 12)) << 32;
    Ok((word(&header, 0), at, chain.take_status()?))
}

/// Writes a request's status; how many bytes of the chain have been written.
fn answer(status: &VolatileSlice<'_>, result: Result<usize, Refusal>) -> u32 {
    let code = match result {
        Ok(_) => blk::VIRTIO_BLK_S_OK,
        Err(Refusal::Failed) => blk::VIRTIO_BLK_S_IOERR,
        Err(Refusal::Unsupported) => blk::VIRTIO_BLK_S_UNSUPP,
    };
    // The slice has that one byte.
    let _ = status.write(&code.to_le_bytes()[..1], 0);
    u32::try_from(result.unwrap_or(0) + 1).unwrap_or(u32::MAX)
}

fn bytes(filled: u64) -> Result<usize, Refusal> {
    usize::try_from(filled).map_err(|_| Refusal::Failed)
}

/// Where a transfer begins, and its memory: whole sectors.
fn transfer<'m>(sector: u64, slices: &[VolatileSlice<'m>]) -> Result<(u64, Segments<'m>), Refusal> {
    let mut segments = Segments::default();
    for slice in slices {
        segments.push(*slice)?;
    }
    if !segments.bytes().is_multiple_of(SECTOR) {
        return Err(Refusal::Failed);
    }
    let at = sector.checked_mul(SECTOR).ok_or(Refusal::Failed)?;
    Ok((at, segments))
}

/// The little-endian word at `at`.
fn word(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map_or(0, u32::from_le_bytes)
}

impl Device for Block {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &'static str {
        "block"
    }

    fn features(&self) -> u64 {
        let always = 1 << blk::VIRTIO_BLK_F_SEG_MAX
            | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
            | 1 << blk::VIRTIO_BLK_F_FLUSH;
        always
            | u64::from(self.queues > 1) << blk::VIRTIO_BLK_F_MQ
            | if self.disk.is_read_only() {
                1 << blk::VIRTIO_BLK_F_RO
            } else {
                1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    fn queues(&self) -> usize {
        self.queues
    }

    /// A driver with fewer processors uses fewer.
    fn queues_needed(&self, _features: u64) -> usize {
        1
    }

    /// `struct virtio_blk_config`.
    fn config(&self) -> [u8; CONFIG_MAX] {
        let mut config = [0; CONFIG_MAX];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let segments = u32::try_from(SEGMENTS_MAX).unwrap_or(1);
        let ranges = u32::try_from(RANGES_MAX).unwrap_or(1);
        put(0, &self.disk.sectors().to_le_bytes());
        put(12, &segments.to_le_bytes());
        put(20, &u32::try_from(SECTOR).unwrap_or(0).to_le_bytes());
        put(34, &u16::try_from(self.queues).unwrap_or(1).to_le_bytes());
        // max_discard_sectors, max_discard_seg, discard_sector_alignment.
        put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
        put(40, &ranges.to_le_bytes());
        put(44, &1_u32.to_le_bytes());
        // max_write_zeroes_sectors, max_write_zeroes_seg, write_zeroes_may_unmap.
        put(48, &ZERO_SECTORS_MAX.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        config
    }

    fn begin(&mut self, features: u64) {
        self.write_through = features & 1 << blk::VIRTIO_BLK_F_FLUSH == 0;
    }

    fn serve(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), QueueError> {
        if self.disk.ring().is_none() {
            return io.each(queue, |chain| self.request(chain));
        }
        for _ in 0..QUEUE_MAX {
            if io.is_wanted_back() {
                break;
            }
            if self.disk.is_full() {
                self.end(io, true)?;
            }
            if !io.begin(queue, |chain| self.begin(chain))? {
                // Waiting for the only one costs a wake-up less, and those that come meanwhile are more than one.
                let is_alone = self.disk.is_alone();
                return self.end(io, is_alone);
            }
        }
        io.again(queue);
        self.end(io, false)
    }

    fn backend(&self) -> Option<RawFd> {
        self.disk.ring()
    }

    fn serve_backend(&mut self, io: &mut Io<'_>) -> Result<(), QueueError> {
        self.end(io, false)
    }

    fn settle(&mut self, io: &mut Io<'_>) -> Result<(), QueueError> {
        let mut ended = Ok(());
        while self.disk.is_under_way() {
            ended = ended.and(self.end(io, true));
        }
        ended
    }
}
