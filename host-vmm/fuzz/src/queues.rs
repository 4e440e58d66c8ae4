//! A virtqueue in hostile memory, served by a block device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use paravane::disk::{Disk, DiskSpec};
use paravane::memory::Memory;
use paravane::pause::Pause;
use paravane::virtio::block::Block;
use paravane::virtio::queue::QueueSetup;
use paravane::virtio::unit::{Interrupt, Unit};
use vmm_sys_util::tempfile::TempFile;

const MEMORY_MIB: u64 = 1;
/// What a device has not done by then it does while it is stopped.
const PATIENCE: Duration = Duration::from_millis(2);
const VERSION_1: u64 = 1 << 32;

/// A driver.
#[derive(Arbitrary, Debug, Default)]
struct Driver {
    features: u64,
    size: u8,
    descriptors: u16,
    available: u16,
    used: u16,
    stores: Vec<(u16, u64)>,
    /// Stores while the device works.
    late: Vec<(u16, u64)>,
}

#[derive(Debug)]
struct Nobody;

impl Interrupt for Nobody {
    fn queue_used(&self) {}
    fn needs_reset(&self) {}
}

/// Entry.
pub fn run(data: &[u8]) {
    let driver: Driver = super::arbitrary(data);
    let memory = Memory::new(MEMORY_MIB).expect("a megabyte can be had");
    let store = |(at, value): &(u16, u64)| {
        // It need not fit.
        let _ = memory.write_obj(u64::from(*at) << 3, value);
    };
    driver.stores.iter().for_each(store);
    let file = TempFile::new().expect("a file can be had");
    file.as_file()
        .set_len(1 << 16)
        .expect("the file takes a length");
    let path = file.as_path().to_owned();
    let disk = Disk::open(&DiskSpec {
        path,
        read_only: false,
    });
    let device = Block::new(disk.expect("the file is a disk"), 0);
    let pause = Arc::new(Pause::new(1));
    let unit = Unit::new(Box::new(device), memory.clone(), Box::new(Nobody), pause);
    let unit = unit.expect("descriptors can be had");
    let setup = QueueSetup {
        size: 1 << (driver.size % 9),
        ready: driver.size < 0xf0,
        descriptors: u64::from(driver.descriptors) << 4,
        available: u64::from(driver.available) << 1,
        used: u64::from(driver.used) << 2,
    };
    let features = driver.features & unit.features() | VERSION_1;
    if unit.start(features, &[setup]).is_ok() {
        let deadline = Instant::now() + PATIENCE;
        driver.late.iter().for_each(store);
        let _ = unit.doorbells()[0].write(1);
        while unit.stats().wakes == 0 && !unit.needs_reset() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
    unit.stop();
}
