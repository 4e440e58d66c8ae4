//! A driver with one queue, and the device that it drives.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use paravane_reference_host::or_skipped;
use vmm_sys_util::tempfile::TempFile;

pub(super) use crate::disk::tests::image as numbered;
use crate::disk::uring::Uring;
use crate::disk::{Disk, DiskSpec};
use crate::memory::Memory;
use crate::pause::Pause;
use crate::virtio::block::Block;
use crate::virtio::poll::Poll;
use crate::virtio::queue::{QueueError, QueueSetup};
use crate::virtio::unit::{Interrupt, Unit};
use crate::virtio::{COMMON_FEATURES, Device};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

pub(super) const QUEUE: QueueSetup = QueueSetup {
    size: 16,
    ready: true,
    descriptors: 0x1000,
    available: 0x2000,
    used: 0x3000,
};
pub(super) const HEADER: u64 = 0x4000;
pub(super) const STATUS: u64 = 0x5000;
pub(super) const DATA: u64 = 0x8000;
/// What a status byte is before the device writes it.
pub(super) const UNTOUCHED: u8 = 0xee;
/// What is waited for comes at once, or never.
const PATIENCE: Duration = Duration::from_secs(20);

/// Counts what it is told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) used: AtomicU32,
    pub(super) broken: AtomicU32,
    /// The word that it is told last of the configuration.
    pub(super) config: AtomicU32,
}

impl Interrupt for Arc<Told> {
    fn queue_used(&self) {
        self.used.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self) {
        self.broken.fetch_add(1, Ordering::SeqCst);
    }

    fn config_changed(&self, _at: usize, word: u32) {
        self.config.store(word, Ordering::SeqCst);
    }
}

pub(super) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} has not come");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A descriptor: address, length, flags, next.
pub(super) type Descriptor = (u64, u32, u16, u16);

pub(super) struct Driver {
    pub(super) memory: Memory,
    pub(super) unit: Arc<Unit>,
    pub(super) told: Arc<Told>,
    pub(super) pause: Arc<Pause>,
    pub(super) image: TempFile,
    available: u16,
}

/// One by one and, where this host gives rings, many at once.
pub(super) fn both_ways() -> impl Iterator<Item = Option<Uring>> {
    [None]
        .into_iter()
        .chain(or_skipped(Uring::made()).map(Some))
}

impl Driver {
    /// With a disk of so many sectors, each full of its own number.
    pub(super) fn new(sectors: u8, read_only: bool) -> Self {
        Self::polled(sectors, read_only, Poll::Off)
    }

    /// With a device that looks at its queue.
    pub(super) fn polled(sectors: u8, read_only: bool, poll: Poll) -> Self {
        Self::on(numbered(sectors), read_only, poll, None)
    }

    /// At work with all features: one whose requests are carried out one by one, and one that has many under way (`aio=io_uring`).
    pub(super) fn both(sectors: u8, read_only: bool) -> impl Iterator<Item = Self> {
        both_ways().map(move |uring| {
            let mut driver = Self::on(numbered(sectors), read_only, Poll::Off, uring);
            driver.start().unwrap();
            driver
        })
    }

    /// With a disk that is `image`.
    pub(super) fn on(image: TempFile, read_only: bool, poll: Poll, uring: Option<Uring>) -> Self {
        let spec = DiskSpec {
            uring,
            ..DiskSpec::of(image.as_path().to_owned(), read_only)
        };
        let memory = Memory::new(32).unwrap();
        let told = Arc::<Told>::default();
        let device = Box::new(Block::new(Disk::open(&spec).unwrap(), 0, 1));
        let interrupt = Box::new(Arc::clone(&told));
        Self::with(device, interrupt, memory, (image, told), poll)
    }

    pub(super) fn with(
        device: Box<dyn Device>,
        interrupt: Box<dyn Interrupt>,
        memory: Memory,
        (image, told): (TempFile, Arc<Told>),
        poll: Poll,
    ) -> Self {
        let pause = Arc::<Pause>::default();
        let unit = Unit::new(device, memory.clone(), interrupt, Arc::clone(&pause)).unwrap();
        Self {
            memory,
            unit: Arc::new(unit.polling(poll)),
            told,
            pause,
            image,
            available: 0,
        }
    }

    /// The same, at work with all features.
    pub(super) fn started(sectors: u8, read_only: bool) -> Self {
        let mut driver = Self::new(sectors, read_only);
        driver.start().unwrap();
        driver
    }

    /// Sets the rings up anew, and the device to work.
    pub(super) fn start(&mut self) -> Result<(), QueueError> {
        self.memory.write(QUEUE.descriptors, &[0; 0x3000]).unwrap();
        self.available = 0;
        self.unit.start(self.unit.features(), &[QUEUE])
    }

    /// The rings have been cleared.
    pub(super) fn forget(&mut self) {
        self.available = 0;
    }

    pub(super) fn start_with(&self, features: u64) -> Result<(), QueueError> {
        self.unit.start(COMMON_FEATURES | features, &[QUEUE])
    }

    pub(super) fn put(&self, index: u16, descriptor: Descriptor) {
        self.put_at(QUEUE.descriptors, index, descriptor);
    }

    /// A descriptor of an indirect table.
    pub(super) fn put_at(&self, table: u64, index: u16, (at, length, flags, next): Descriptor) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let place = table + u64::from(index) * 16;
        self.memory.write(place, &bytes).unwrap();
    }

    /// Makes the chain at `head` available.
    pub(super) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % QUEUE.size);
        let ring = QUEUE.available + 4 + slot * 2;
        self.memory.write(ring, &head.to_le_bytes()).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    pub(super) fn set_available(&self, index: u16) {
        let at = QUEUE.available + 2;
        self.memory.write(at, &index.to_le_bytes()).unwrap();
    }

    pub(super) fn ring(&self) {
        self.unit.doorbells()[0].write(1).unwrap();
    }

    /// Whether the device wants to be told of the last request that was made available.
    pub(super) fn wants_ring(&self) -> bool {
        let mut event = [0; 2];
        let at = QUEUE.used + 4 + 8 * u64::from(QUEUE.size);
        std::sync::atomic::fence(Ordering::SeqCst);
        self.memory.read(at, &mut event).unwrap();
        u16::from_le_bytes(event) == self.available.wrapping_sub(1)
    }

    /// Whether the side that writes a ring wants to be left alone (1) or told (0).
    pub(super) fn flags(&self, ring: u64) -> u16 {
        self.memory.read_obj(ring).unwrap()
    }

    pub(super) fn set_flags(&self, ring: u64, flags: u16) {
        self.memory.write_obj(ring, &flags).unwrap();
    }

    pub(super) fn used(&self) -> u16 {
        let mut index = [0; 2];
        self.memory.read(QUEUE.used + 2, &mut index).unwrap();
        u16::from_le_bytes(index)
    }

    /// Bytes that the device has written to the last request.
    pub(super) fn written(&self) -> u32 {
        let slot = u64::from(self.used().wrapping_sub(1) % QUEUE.size);
        let mut length = [0; 4];
        let at = QUEUE.used + 4 + slot * 8 + 4;
        self.memory.read(at, &mut length).unwrap();
        u32::from_le_bytes(length)
    }

    pub(super) fn header(&self, what: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&what.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.write(HEADER, &header).unwrap();
        self.memory.write(STATUS, &[UNTOUCHED]).unwrap();
    }

    pub(super) fn status(&self) -> u8 {
        let mut status = [0];
        self.memory.read(STATUS, &mut status).unwrap();
        status[0]
    }

    /// Writes header and chain of a request with one piece of data.
    pub(super) fn prepare(&self, what: u32, sector: u64, length: u32, data: u16) {
        self.header(what, sector);
        self.put(0, (HEADER, 16, NEXT, 1));
        if length == 0 {
            self.put(1, (STATUS, 1, WRITE, 0));
        } else {
            self.put(1, (DATA, length, NEXT | data, 2));
            self.put(2, (STATUS, 1, WRITE, 0));
        }
    }

    /// Makes the request, and waits for its status; `data`: [`WRITE`], or 0 where the device reads.
    pub(super) fn request(&mut self, what: u32, sector: u64, length: u32, data: u16) -> u8 {
        self.prepare(what, sector, length, data);
        let before = self.used();
        self.offer(0);
        self.ring();
        wait_for("an answer", || self.used() != before);
        self.status()
    }

    pub(super) fn data(&self, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.read(DATA, &mut data).unwrap();
        data
    }

    /// What the file has from that sector on.
    pub(super) fn sector(&self, sector: u64) -> [u8; 512] {
        let mut bytes = [0; 512];
        self.image
            .as_file()
            .read_exact_at(&mut bytes, sector * 512)
            .unwrap();
        bytes
    }
}
