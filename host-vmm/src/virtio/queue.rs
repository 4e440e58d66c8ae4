//! Queues: chains of descriptors become slices of guest memory.

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::unit::Link;
use crate::disk::SEGMENTS_MAX;

/// The most requests that a queue can hold.
pub const QUEUE_MAX: u16 = 256;
/// The most descriptors of a request: data, and what stands before and behind them.
pub const CHAIN_MAX: usize = SEGMENTS_MAX + 2;

/// How a driver has broken the rules.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Features that cannot be.
    #[error(
        "the driver agrees to features {agreed:#x} of {offered:#x}, and must to those of virtio 1"
    )]
    Features {
        /// What it agrees to.
        agreed: u64,
        /// What there is.
        offered: u64,
    },
    /// A queue that is not set up.
    #[error("queue {0} is not set up")]
    NotReady(usize),
    /// What the queue's own checks say.
    #[error("a queue cannot be: {0}")]
    Queue(#[from] virtio_queue::Error),
    /// Rings that are not in guest memory.
    #[error("a queue's rings are not in guest memory")]
    Rings,
    /// A chain without an end.
    #[error("the chain at descriptor {0} has no end, or leaves its table")]
    Endless(u16),
    /// A chain that is too long.
    #[error("the chain at descriptor {0} has more than {CHAIN_MAX} descriptors")]
    Long(u16),
    /// A descriptor, or a page that a request names, which is not in guest memory.
    #[error("the driver names {length} bytes at {address:#x} that are not in guest memory")]
    Memory {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// Something to read after something to write.
    #[error("the chain at descriptor {0} has a part to read behind a part to write")]
    Order(u16),
    /// A device that is started twice.
    #[error("the device works already, and must be reset first")]
    Busy,
    /// The host has no thread for it.
    #[error("the host has no thread left: {0}")]
    Host(std::io::Error),
    /// Who serves the queues in the device's place cannot.
    #[error("the queues cannot be lent: {0}")]
    Server(std::io::Error),
    /// Who serves the queues has found a request that cannot be.
    #[error("the driver has broken the rules, says who serves its queues")]
    Refused,
    /// A request of more than the device takes.
    #[error("the chain at descriptor {0} has more to read than the device takes")]
    Large(u16),
    /// A request that is too short to be one.
    #[error("the chain at descriptor {0} has no room for a request")]
    Short(u16),
}

/// What a driver says of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct QueueSetup {
    /// Requests that it holds.
    pub size: u16,
    /// Whether the driver has set it up.
    pub ready: bool,
    /// Guest physical address of the descriptor table.
    pub descriptors: u64,
    /// Of the ring of available requests.
    pub available: u64,
    /// Of the ring of used ones.
    pub used: u64,
}

/// A queue in a snapshot.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedQueue {
    pub(super) setup: QueueSetup,
    event_idx: bool,
    /// The next request that the device takes, and where it leaves the next that it has done.
    next_avail: u16,
    next_used: u16,
}

/// A queue that is set up.
#[derive(Debug)]
pub struct Virtqueue(Queue);

impl Virtqueue {
    /// The queue number `index`, as the driver has set it up.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: what is wrong with it.
    pub fn new(
        index: usize,
        setup: &QueueSetup,
        features: u64,
        memory: &GuestMemoryMmap,
    ) -> Result<Self, QueueError> {
        if !setup.ready {
            return Err(QueueError::NotReady(index));
        }
        let begins = SavedQueue {
            setup: *setup,
            event_idx: features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
            next_avail: 0,
            next_used: 0,
        };
        Self::of(begins, memory)
    }

    /// A queue as a snapshot has it.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: what is wrong with it.
    pub(super) fn of(saved: SavedQueue, memory: &GuestMemoryMmap) -> Result<Self, QueueError> {
        let queue = Queue::try_from(QueueState {
            max_size: QUEUE_MAX,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx,
            size: saved.setup.size,
            ready: true,
            desc_table: saved.setup.descriptors,
            avail_ring: saved.setup.available,
            used_ring: saved.setup.used,
        })?;
        if !queue.is_valid(memory) {
            return Err(QueueError::Rings);
        }
        Ok(Self(queue))
    }

    /// What a snapshot has of it.
    pub(super) fn save(&self) -> SavedQueue {
        let state = self.0.state();
        SavedQueue {
            setup: QueueSetup {
                size: state.size,
                ready: state.ready,
                descriptors: state.desc_table,
                available: state.avail_ring,
                used: state.used_ring,
            },
            event_idx: state.event_idx_enabled,
            next_avail: state.next_avail,
            next_used: state.next_used,
        }
    }

    /// The next request, if there is one.
    fn next<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        chain: &mut Chain<'m>,
    ) -> Result<bool, QueueError> {
        let Some(descriptors) = self.0.iter(memory)?.next() else {
            return Ok(false);
        };
        chain.clear(descriptors.head_index());
        let (mut ended, mut count) = (false, 0);
        for descriptor in descriptors {
            ended = !descriptor.has_next();
            count += 1;
            if count > CHAIN_MAX {
                return Err(QueueError::Long(chain.head));
            }
            chain.add(memory, &descriptor)?;
        }
        if ended {
            Ok(true)
        } else {
            Err(QueueError::Endless(chain.head))
        }
    }
}

/// One request: the parts of guest memory that the device reads, then those that it writes. It is filled again for
/// each request, without an allocation.
#[derive(Debug)]
pub struct Chain<'m> {
    head: u16,
    /// How many of `readable` have been taken.
    taken: usize,
    readable: Vec<VolatileSlice<'m>>,
    writable: Vec<VolatileSlice<'m>>,
}

impl<'m> Chain<'m> {
    fn new() -> Self {
        Self {
            head: 0,
            taken: 0,
            readable: Vec::with_capacity(CHAIN_MAX),
            writable: Vec::with_capacity(CHAIN_MAX),
        }
    }

    fn clear(&mut self, head: u16) {
        self.head = head;
        self.taken = 0;
        self.readable.clear();
        self.writable.clear();
    }

    fn add(
        &mut self,
        memory: &'m GuestMemoryMmap,
        descriptor: &virtio_queue::desc::split::Descriptor,
    ) -> Result<(), QueueError> {
        let list = match (descriptor.is_write_only(), self.writable.is_empty()) {
            (true, _) => &mut self.writable,
            (false, true) => &mut self.readable,
            (false, false) => return Err(QueueError::Order(self.head)),
        };
        let (GuestAddress(address), length) = (descriptor.addr(), descriptor.len());
        let outside = QueueError::Memory { address, length };
        let Ok(bytes) = usize::try_from(length) else {
            return Err(outside);
        };
        if bytes > 0 {
            let slice = memory.get_slice(descriptor.addr(), bytes);
            list.push(slice.map_err(|_| outside)?);
        }
        Ok(())
    }

    /// What is left for the device to read.
    #[must_use]
    pub fn readable(&self) -> &[VolatileSlice<'m>] {
        &self.readable[self.taken..]
    }

    /// What is left for the device to write.
    #[must_use]
    pub fn writable(&self) -> &[VolatileSlice<'m>] {
        &self.writable
    }

    /// Bytes that are left to read.
    #[must_use]
    pub fn readable_bytes(&self) -> usize {
        self.readable().iter().map(VolatileSlice::len).sum()
    }

    /// Copies the next bytes to be read, and takes them away.
    ///
    /// # Errors
    ///
    /// [`QueueError::Short`].
    pub fn take(&mut self, mut into: &mut [u8]) -> Result<(), QueueError> {
        while !into.is_empty() {
            let short = QueueError::Short(self.head);
            let first = self.readable.get_mut(self.taken).ok_or(short)?;
            let count = first.copy_to(into);
            match first.offset(count) {
                Ok(rest) if !rest.is_empty() => *first = rest,
                _ => self.taken += 1,
            }
            into = &mut into[count..];
        }
        Ok(())
    }

    /// Takes away the last byte to be written: a request's status.
    ///
    /// # Errors
    ///
    /// [`QueueError::Short`].
    pub fn take_status(&mut self) -> Result<VolatileSlice<'m>, QueueError> {
        let last = self.writable.pop().ok_or(QueueError::Short(self.head))?;
        let (rest, status) = last
            .split_at(last.len() - 1)
            .map_err(|_| QueueError::Short(self.head))?;
        if !rest.is_empty() {
            self.writable.push(rest);
        }
        Ok(status)
    }

    /// That it has no room for what the device has to say.
    #[must_use]
    pub fn too_short(&self) -> QueueError {
        QueueError::Short(self.head)
    }

    /// That it has more than the device takes.
    #[must_use]
    pub fn too_long(&self) -> QueueError {
        QueueError::Large(self.head)
    }

    /// Copies `bytes` to where the device may write, as far as there is room; how many.
    pub fn fill(&self, mut bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.writable {
            let count = slice.write(bytes, 0).unwrap_or(0);
            bytes = &bytes[count..];
            done += count;
        }
        done
    }
}

/// What has become of a request.
#[derive(Debug)]
pub enum Served<'m> {
    /// It is done, and so many bytes have been written to it.
    Done(u32),
    /// It is under way by this number, and [`Io::end`] ends it with a status in this byte.
    UnderWay(usize, VolatileSlice<'m>),
}

/// A request under way.
#[derive(Debug)]
struct UnderWay<'m> {
    queue: usize,
    head: u16,
    status: VolatileSlice<'m>,
}

/// What a device works with: guest memory, its queues, and the way to the driver.
#[derive(Debug)]
pub struct Io<'m> {
    memory: &'m GuestMemoryMmap,
    queues: Vec<Virtqueue>,
    chain: Chain<'m>,
    link: &'m Link,
    /// Requests under way, by their numbers.
    under_way: Vec<Option<UnderWay<'m>>>,
    /// A bit for each queue that has more requests, and had its turn.
    again: u32,
    /// A bit for each queue with requests that are done, and the driver may not know of.
    news: u32,
    /// Whether the device's thread looks at the queues by itself, until [`Io::rest`].
    looks: bool,
    /// Then a bit for each queue that had no more requests.
    dry: u32,
}

impl<'m> Io<'m> {
    pub(super) fn new(
        memory: &'m GuestMemoryMmap,
        queues: Vec<Virtqueue>,
        link: &'m Link,
        looks: bool,
    ) -> Self {
        Self {
            memory,
            // What was made available before the device began.
            again: (1 << queues.len()) - 1,
            queues,
            chain: Chain::new(),
            link,
            under_way: Vec::new(),
            news: 0,
            looks,
            dry: 0,
        }
    }

    /// Has all queues served once more.
    pub(super) fn look(&mut self) {
        self.again = (1 << self.queues.len()) - 1;
    }

    /// The thread is about to wait: has the doorbells rung again. Whether something has come meanwhile.
    pub(super) fn rest(&mut self) -> Result<bool, QueueError> {
        let dry = std::mem::take(&mut self.dry);
        for (index, Virtqueue(ring)) in self.queues.iter_mut().enumerate() {
            if dry & 1 << index != 0 && ring.enable_notification(self.memory)? {
                self.again |= 1 << index;
            }
        }
        Ok(self.again != 0)
    }

    /// Whether the thread shall park, or end.
    pub(super) fn is_wanted_back(&self) -> bool {
        self.link.is_wanted_back()
    }

    /// Between two requests, where nothing is under way: parks where a pause is wanted. False: the thread is to end.
    pub(super) fn may_go_on(&self) -> bool {
        self.link.may_go_on(&self.queues)
    }

    /// The queues to be served without a doorbell, a bit each; they are forgotten here.
    pub(super) fn take_again(&mut self) -> u32 {
        std::mem::take(&mut self.again)
    }

    /// Whether [`Io::take_again`] has something.
    pub(super) fn has_more(&self) -> bool {
        self.again != 0
    }

    /// Gives each request of `queue` to `serve`, which returns how many bytes it has written to it.
    ///
    /// # Errors
    ///
    /// The driver has not kept to the rules; the request stays unanswered.
    pub fn each(
        &mut self,
        queue: usize,
        mut serve: impl FnMut(&mut Chain<'m>) -> Result<u32, QueueError>,
    ) -> Result<(), QueueError> {
        let Some(Virtqueue(ring)) = self.queues.get_mut(queue) else {
            return Ok(());
        };
        ring.disable_notification(self.memory)?;
        // A driver that makes more and more available gets no more than its turn.
        for _ in 0..QUEUE_MAX {
            if !self.next(queue)? {
                self.flush(queue)?;
                if self.looks {
                    self.dry |= 1 << queue;
                    return Ok(());
                }
                let Virtqueue(ring) = &mut self.queues[queue];
                if !ring.enable_notification(self.memory)? {
                    return Ok(());
                }
                ring.disable_notification(self.memory)?;
                continue;
            }
            let written = serve(&mut self.chain)?;
            self.done(queue, self.chain.head, written)?;
            if self.is_wanted_back() {
                break;
            }
        }
        self.again |= 1 << queue;
        self.flush(queue)
    }

    /// Gives the next request of `queue` to `serve`, as [`Io::each`] does. False: there is none, and the doorbell will be rung
    /// for the next one. The driver learns of it by [`Io::flush`].
    ///
    /// # Errors
    ///
    /// The driver has not kept to the rules.
    pub fn one(
        &mut self,
        queue: usize,
        serve: impl FnOnce(&mut Chain<'m>) -> Result<u32, QueueError>,
    ) -> Result<bool, QueueError> {
        self.begin(queue, |chain| serve(chain).map(Served::Done))
    }

    /// The same, where the request may be under way for a while.
    ///
    /// # Errors
    ///
    /// The driver has not kept to the rules.
    pub fn begin(
        &mut self,
        queue: usize,
        serve: impl FnOnce(&mut Chain<'m>) -> Result<Served<'m>, QueueError>,
    ) -> Result<bool, QueueError> {
        if !self.next_or_rest(queue)? {
            return Ok(false);
        }
        let head = self.chain.head;
        match serve(&mut self.chain)? {
            Served::Done(written) => self.done(queue, head, written)?,
            Served::UnderWay(number, status) => {
                let most = self.under_way.len().max(number + 1);
                self.under_way.resize_with(most, || None);
                self.under_way[number] = Some(UnderWay {
                    queue,
                    head,
                    status,
                });
            }
        }
        Ok(true)
    }

    /// Ends the request that is under way by `number`: `end` writes its status, and says how many bytes were written to it. The driver
    /// learns of it by [`Io::flush`].
    ///
    /// # Errors
    ///
    /// The rings cannot be reached.
    pub fn end(
        &mut self,
        number: usize,
        end: impl FnOnce(&VolatileSlice<'m>) -> u32,
    ) -> Result<(), QueueError> {
        let ended = self.under_way.get_mut(number).and_then(Option::take);
        let Some(ended) = ended else { return Ok(()) };
        let written = end(&ended.status);
        self.done(ended.queue, ended.head, written)
    }

    /// Gives the next request of `queue` to `look`, and leaves it there: the next look finds it again.
    ///
    /// # Errors
    ///
    /// The driver has not kept to the rules.
    pub fn peek(
        &mut self,
        queue: usize,
        look: impl FnOnce(&mut Chain<'m>) -> Result<(), QueueError>,
    ) -> Result<(), QueueError> {
        if !self.next_or_rest(queue)? {
            return Ok(());
        }
        let Virtqueue(ring) = &mut self.queues[queue];
        ring.set_next_avail(ring.next_avail().wrapping_sub(1));
        look(&mut self.chain)
    }

    /// Takes the next request of `queue`; where there is none, the doorbell will be rung for it.
    fn next_or_rest(&mut self, queue: usize) -> Result<bool, QueueError> {
        // The doorbell of a queue that the driver has left out.
        if queue >= self.queues.len() {
            return Ok(false);
        }
        if self.next(queue)? {
            return Ok(true);
        }
        if self.looks {
            self.dry |= 1 << queue;
            return Ok(false);
        }
        let Virtqueue(ring) = &mut self.queues[queue];
        Ok(ring.enable_notification(self.memory)? && self.next(queue)?)
    }

    /// Tells the driver what [`Io::one`] and [`Io::end`] have done in any queue, if it wants to know.
    ///
    /// # Errors
    ///
    /// The rings cannot be reached.
    pub fn flush_all(&mut self) -> Result<(), QueueError> {
        (0..self.queues.len()).try_for_each(|queue| self.flush(queue))
    }

    /// The same of one queue.
    ///
    /// # Errors
    ///
    /// The rings cannot be reached.
    pub fn flush(&mut self, queue: usize) -> Result<(), QueueError> {
        let news = self.news & 1 << queue != 0;
        self.news &= !(1 << queue);
        let Virtqueue(ring) = &mut self.queues[queue];
        if news && ring.needs_notification(self.memory)? {
            self.link.queue_used();
        }
        Ok(())
    }

    /// Has the device serve `queue` once more, when the others have had their turn.
    pub fn again(&mut self, queue: usize) {
        self.again |= 1 << queue;
    }

    /// Takes the next request of `queue`, if there is one.
    fn next(&mut self, queue: usize) -> Result<bool, QueueError> {
        self.queues[queue].next(self.memory, &mut self.chain)
    }

    /// Gives the request at `head` back to the driver, with so many bytes written.
    fn done(&mut self, queue: usize, head: u16, written: u32) -> Result<(), QueueError> {
        let Virtqueue(ring) = &mut self.queues[queue];
        ring.add_used(self.memory, head, written)?;
        self.news |= 1 << queue;
        self.link.counts.request();
        Ok(())
    }
}
