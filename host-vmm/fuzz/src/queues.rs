//! Virtqueues in hostile memory, served by a disk, a network, a source of random numbers, a port or a balloon.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use paravane::disk::{Disk, DiskSpec};
use paravane::memory::Memory;
use paravane::net::Net;
use paravane::pause::Pause;
use paravane::port::PortSpec;
use paravane::virtio::Device;
use paravane::virtio::balloon::Balloon;
use paravane::virtio::block::Block;
use paravane::virtio::console::Port;
use paravane::virtio::net::NetDevice;
use paravane::virtio::queue::QueueSetup;
use paravane::virtio::rng::Rng;
use paravane::virtio::unit::{Interrupt, Unit};
use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

const MEMORY_MIB: u64 = 1;
/// What a device has not done by then it does while it is stopped.
const PATIENCE: Duration = Duration::from_millis(2);
const VERSION_1: u64 = 1 << 32;

/// A driver.
#[derive(Arbitrary, Debug, Default)]
struct Driver {
    /// Which device it drives.
    device: u8,
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

fn disk() -> Box<dyn Device> {
    let file = TempFile::new().expect("a file can be had");
    let length = file.as_file().set_len(1 << 16);
    length.expect("the file takes a length");
    let path = file.as_path().to_owned();
    let disk = Disk::open(&DiskSpec::of(path, false));
    Box::new(Block::new(disk.expect("the file is a disk"), 0, 4))
}

/// With two frames that have come.
fn network() -> (Box<dyn Device>, Option<UnixStream>) {
    let (ours, mut wire) = UnixStream::pair().expect("sockets can be had");
    wire.set_nonblocking(true).expect("a socket need not block");
    let net = Net::over(ours).expect("a socket is a network");
    let frame = [&60_u32.to_be_bytes()[..], &[0x55; 60]].concat();
    wire.write_all(&frame.repeat(2))
        .expect("a socket has room for two frames");
    (Box::new(NetDevice::new(net)), Some(wire))
}

/// With a client.
fn port() -> (Box<dyn Device>, Option<UnixStream>) {
    let folder = TempDir::new().expect("a folder can be had");
    let path = folder.as_path().join("socket");
    let spec: Result<PortSpec, _> = format!("fuzz={}", path.display()).parse();
    let spec = spec.expect("it is a port");
    let port = Port::new(&spec).expect("its socket can be made");
    let mut client = UnixStream::connect(path).expect("the port lets a client in");
    client
        .write_all(b"x")
        .expect("a socket has room for a byte");
    (Box::new(port), Some(client))
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
    // The wire's other end has to live as long as the device.
    let (device, _wire) = match driver.device % 5 {
        0 => (disk(), None),
        1 => network(),
        2 => (Box::new(Rng) as Box<dyn Device>, None),
        3 => port(),
        _ => {
            let balloon = Balloon::new(memory.clone(), Arc::default());
            (Box::new(balloon) as Box<dyn Device>, None)
        }
    };
    let pause = Arc::new(Pause::new(1));
    let unit = Unit::new(device, memory.clone(), Box::new(Nobody), pause);
    let unit = unit.expect("descriptors can be had");
    let setup = QueueSetup {
        size: 1 << (driver.size % 9),
        ready: driver.size < 0xf0,
        descriptors: u64::from(driver.descriptors) << 4,
        available: u64::from(driver.available) << 1,
        used: u64::from(driver.used) << 2,
    };
    // The parts of the second queue and the third lie behind those of the first and the last.
    let behind = QueueSetup {
        descriptors: setup.descriptors + 0x1000,
        available: setup.available + 0x100,
        used: setup.used + 0x100,
        ..setup
    };
    let features = driver.features & unit.features() | VERSION_1;
    if unit
        .start(features, &[setup, behind, behind, setup])
        .is_ok()
    {
        let deadline = Instant::now() + PATIENCE;
        driver.late.iter().for_each(store);
        for doorbell in unit.doorbells() {
            let _ = doorbell.write(1);
        }
        while unit.stats().wakes == 0 && !unit.needs_reset() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
    unit.stop();
}
