//! A driver with several queues, and the device that it drives.

use std::sync::Arc;

use super::driver::{Told, WRITE, wait_for};
use crate::memory::Memory;
use crate::pause::Pause;
use crate::virtio::poll::Poll;
use crate::virtio::queue::QueueSetup;
use crate::virtio::unit::{Interrupt, Unit};
use crate::virtio::{Device, QUEUES_MAX};

pub(super) const SIZE: u16 = 16;

/// Where the queue number `queue` is, and its buffers.
pub(super) fn base(queue: u16) -> u64 {
    0x10_0000 * (u64::from(queue) + 1)
}

pub(super) fn setup(queue: u16) -> QueueSetup {
    setup_at(base(queue))
}

/// A queue of [`SIZE`] buffers at `base`, a page for each of its parts.
pub(super) fn setup_at(base: u64) -> QueueSetup {
    QueueSetup {
        size: SIZE,
        ready: true,
        descriptors: base,
        available: base + 0x1000,
        used: base + 0x2000,
    }
}

pub(super) fn buffer(queue: u16, number: u16) -> u64 {
    base(queue) + 0x1_0000 + u64::from(number % SIZE) * 0x1000
}

pub(super) struct Rings {
    pub(super) memory: Memory,
    pub(super) unit: Unit,
    pub(super) told: Arc<Told>,
    pub(super) pause: Arc<Pause>,
    /// Buffers that were made available, and those of them that were looked at, of each queue.
    pub(super) offered: [u16; QUEUES_MAX],
    seen: [u16; QUEUES_MAX],
}

impl Rings {
    pub(super) fn new(device: Box<dyn Device>, memory: Memory) -> Self {
        Self::polled(device, memory, Poll::Off)
    }

    /// With a device that looks at its queues.
    pub(super) fn polled(device: Box<dyn Device>, memory: Memory, poll: Poll) -> Self {
        let told = Arc::<Told>::default();
        let interrupt = Box::new(Arc::clone(&told));
        Self::with(device, (interrupt, told), memory, poll)
    }

    pub(super) fn with(
        device: Box<dyn Device>,
        (interrupt, told): (Box<dyn Interrupt>, Arc<Told>),
        memory: Memory,
        poll: Poll,
    ) -> Self {
        let pause = Arc::<Pause>::default();
        let unit = Unit::new(device, memory.clone(), interrupt, Arc::clone(&pause));
        let unit = unit.unwrap().polling(poll);
        let mut rings = Self {
            memory,
            unit,
            told,
            pause,
            offered: [0; QUEUES_MAX],
            seen: [0; QUEUES_MAX],
        };
        rings.start();
        rings
    }

    /// Sets up all queues, and takes all features.
    pub(super) fn start(&mut self) {
        let count = u16::try_from(self.unit.doorbells().len()).unwrap();
        self.start_with(self.unit.features(), count);
    }

    pub(super) fn start_with(&mut self, features: u64, count: u16) {
        for queue in 0..count {
            self.memory.write(base(queue), &[0; 0x3000]).unwrap();
        }
        (self.offered, self.seen) = ([0; QUEUES_MAX], [0; QUEUES_MAX]);
        let setups: Vec<_> = (0..count).map(setup).collect();
        self.unit.start(features, &setups).unwrap();
    }

    /// Makes a buffer of `queue` available.
    pub(super) fn offer(&mut self, queue: u16, at: u64, length: u32, flags: u16) {
        let index = usize::from(queue);
        let number = self.offered[index];
        let mut descriptor = at.to_le_bytes().to_vec();
        descriptor.extend(length.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend([0; 2]);
        let slot = u64::from(number % SIZE);
        let write = |at, bytes: &[u8]| self.memory.write(base(queue) + at, bytes).unwrap();
        write(slot * 16, &descriptor);
        write(0x1004 + slot * 2, &(number % SIZE).to_le_bytes());
        write(0x1002, &(number + 1).to_le_bytes());
        self.offered[index] += 1;
        self.unit.doorbells()[index].write(1).unwrap();
    }

    pub(super) fn send(&mut self, queue: u16, bytes: &[u8]) {
        let at = buffer(queue, self.offered[usize::from(queue)]);
        self.memory.write(at, bytes).unwrap();
        self.offer(queue, at, u32::try_from(bytes.len()).unwrap(), 0);
    }

    /// Gives the device empty buffers of so many bytes.
    pub(super) fn empty(&mut self, queue: u16, count: u16, length: u32) {
        for _ in 0..count {
            let at = buffer(queue, self.offered[usize::from(queue)]);
            self.offer(queue, at, length, WRITE);
        }
    }

    pub(super) fn used(&self, queue: u16) -> u16 {
        let mut index = [0; 2];
        self.memory.read(base(queue) + 0x2002, &mut index).unwrap();
        u16::from_le_bytes(index)
    }

    /// What the next buffer of `queue` has that the device gives back.
    pub(super) fn get(&mut self, queue: u16) -> Vec<u8> {
        let number = self.seen[usize::from(queue)];
        wait_for("a buffer", || self.used(queue) > number);
        let mut length = [0; 4];
        let entry = base(queue) + 0x2004 + u64::from(number % SIZE) * 8 + 4;
        self.memory.read(entry, &mut length).unwrap();
        let mut bytes = vec![0; usize::try_from(u32::from_le_bytes(length)).unwrap()];
        let at = buffer(queue, number);
        self.memory.read(at, &mut bytes).unwrap();
        self.seen[usize::from(queue)] += 1;
        bytes
    }
}
