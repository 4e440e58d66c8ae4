//! A disk and a network that a driver domain serves: a real one, on this host's KVM. Where there is none, the tests print `skipped: reason`.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use paravane_reference_host::or_skipped;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_sys_util::eventfd::EventFd;

use super::driver::*;
use super::rings::Rings;
use crate::config::{Config, Io, Profile};
use crate::disk::DiskSpec;
use crate::disk::faults::Faults;
use crate::driver_domain::DriverDomain;
use crate::memory::Memory;
use crate::net::{FRAME_MAX, Net};
use crate::pause::Holder;
use crate::virtio::Device;
use crate::virtio::poll::Poll;
use crate::virtio::unit::Interrupt;

const SECTORS: u8 = 16;
/// How often the two sides meet.
const ROUNDS: u16 = 1_000;

/// An interrupt that others can raise.
#[derive(Debug)]
struct Line(Arc<Told>, Arc<EventFd>);

impl Interrupt for Line {
    fn line(&self) -> Option<&EventFd> {
        Some(&self.1)
    }

    fn queue_used(&self) {
        self.0.queue_used();
    }

    fn needs_reset(&self) {
        self.0.needs_reset();
    }
}

/// A driver's interrupt, and what it is told by.
type Interrupted = (Box<Line>, Arc<Told>, Arc<EventFd>);

/// The first device of a domain that is started with `config`, and a guest's memory.
fn start(config: &Config) -> (Box<dyn Device>, Memory, Interrupted) {
    let memory = Memory::new(32).unwrap();
    let domain = DriverDomain::start(config, &memory).unwrap();
    let told = Arc::<Told>::default();
    let line = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let interrupt = Box::new(Line(Arc::clone(&told), Arc::clone(&line)));
    (domain.devices().remove(0), memory, (interrupt, told, line))
}

/// A driver of a domain's disk, and its interrupt.
fn served() -> Option<(Driver, Arc<EventFd>)> {
    served_with(None)
}

/// The same of a disk that fails.
fn served_with(faults: Option<Faults>) -> Option<(Driver, Arc<EventFd>)> {
    or_skipped(crate::kvm::open())?;
    let image = numbered(SECTORS);
    let mut spec = DiskSpec::of(image.as_path().to_owned(), false);
    spec.faults = faults;
    let config = Config {
        disks: vec![spec],
        io: Io::DriverDomain,
        ..Config::of(Profile::Para, "/".into())
    };
    let (device, memory, (interrupt, told, line)) = start(&config);
    let mut driver = Driver::with(device, interrupt, memory, (image, told), Poll::Off);
    driver.start().unwrap();
    Some((driver, line))
}

#[test]
fn a_domain_reads_and_writes_its_disk_for_the_guest() {
    let Some((mut driver, line)) = served() else {
        return;
    };
    assert_eq!(
        driver.unit.features() & 1 << VIRTIO_F_VERSION_1,
        1 << VIRTIO_F_VERSION_1
    );
    driver.memory.write(DATA, &[0xa5; 1024]).unwrap();
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 3, 1024, 0), 0);
    assert_eq!(driver.request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), 0);
    assert_eq!([driver.sector(3), driver.sector(4)], [[0xa5; 512]; 2]);
    // More than the ring has places for.
    for round in 0..40_u64 {
        let sector = 5 + round % 8;
        assert_eq!(driver.request(VIRTIO_BLK_T_IN, sector, 512, WRITE), 0);
        assert_eq!(driver.written(), 513);
        assert_eq!(
            driver.data(512),
            [5 + u8::try_from(round % 8).unwrap(); 512]
        );
    }
    wait_for("an interrupt", || line.read().is_ok());
    assert_eq!(
        driver.request(VIRTIO_BLK_T_IN, SECTORS.into(), 512, WRITE),
        1,
        "beyond its end"
    );
}

#[test]
fn a_request_that_fails_has_done_nothing_and_the_others_go_on() {
    let faults = Faults::new(7);
    let Some((mut driver, _line)) = served_with(Some(faults.clone())) else {
        return;
    };
    for round in 0..64_u8 {
        let sector = u64::from(round % SECTORS);
        let (was, before) = (driver.sector(sector), faults.failed());
        driver.memory.write(DATA, &[0x80 | round; 512]).unwrap();
        let written = driver.request(VIRTIO_BLK_T_OUT, sector, 512, 0);
        let is = [[0x80 | round; 512], was][usize::from(written)];
        assert_eq!(driver.sector(sector), is, "round {round}");
        let read = driver.request(VIRTIO_BLK_T_IN, sector, 512, WRITE);
        assert!(read == 1 || driver.data(512) == is, "round {round}");
        let failed = u64::from(written) + u64::from(read);
        assert_eq!(faults.failed() - before, failed, "round {round}");
    }
    assert!((1..64).contains(&faults.failed()));
    assert!(!driver.unit.needs_reset());
}

/// As Linux's driver: it rings only where it is asked to, and asks to be told only where it has nothing else to do.
#[test]
fn neither_side_sleeps_through_what_the_other_has_done() {
    let Some((mut driver, line)) = served() else {
        return;
    };
    driver.header(VIRTIO_BLK_T_GET_ID, 0);
    for head in (0..QUEUE.size).step_by(2) {
        driver.put(head, (HEADER, 16, NEXT, head + 1));
        driver.put(head + 1, (STATUS, 1, WRITE, 0));
    }
    let mut asked = 0_u16;
    for round in 0..ROUNDS {
        for number in 0..=round * 5 % (QUEUE.size / 2) {
            driver.offer(2 * number);
            asked = asked.wrapping_add(1);
        }
        fence(Ordering::SeqCst);
        if driver.flags(QUEUE.used) == 0 {
            driver.ring();
        }
        // Anywhere in the domain's work.
        for _ in 0..u32::from(round) * 97 % 20_011 {
            std::hint::spin_loop();
        }
        driver.set_flags(QUEUE.available, 0);
        fence(Ordering::SeqCst);
        while driver.used() != asked {
            assert!(is_readable(&line), "round {round}: no interrupt");
            line.read().unwrap();
        }
        driver.set_flags(QUEUE.available, 1);
    }
}

/// Whether the eventfd is written to, now or within twenty seconds.
fn is_readable(eventfd: &EventFd) -> bool {
    let mut what = libc::pollfd {
        fd: eventfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, which is ours.
    unsafe { libc::poll(&raw mut what, 1, 20_000) == 1 }
}

#[test]
fn a_paused_guests_memory_stands_still_and_its_requests_go_on_afterwards() {
    let Some((mut driver, _line)) = served() else {
        return;
    };
    for _ in 0..3 {
        assert_eq!(driver.request(VIRTIO_BLK_T_IN, 4, 512, WRITE), 0);
        let pause = driver.pause.pause(Holder::Client, Duration::from_secs(30));
        assert_eq!(pause, Ok(()));
        let before = driver.used();
        driver.prepare(VIRTIO_BLK_T_IN, 7, 512, WRITE);
        driver.offer(0);
        driver.ring();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(driver.used(), before);
        driver.pause.resume(Holder::Client);
        wait_for("an answer", || driver.used() != before);
        assert_eq!((driver.status(), driver.data(512)), (0, vec![7; 512]));
    }
}

#[test]
fn a_guest_that_breaks_the_rules_loses_the_device_until_a_reset() {
    let Some((mut driver, _line)) = served() else {
        return;
    };
    let end = driver.memory.bytes();
    // Out of memory, at its end, around the address space, a table, a loop, a head that is none.
    let chains: [&[Descriptor]; 6] = [
        &[(end, 16, 0, 0)],
        &[(end - 8, 16, 0, 0)],
        &[(u64::MAX - 8, 16, 0, 0)],
        &[(0x6000, 32, INDIRECT, 0)],
        &[(HEADER, 16, NEXT, 0)],
        &[(HEADER, 16, NEXT, QUEUE.size)],
    ];
    for chain in chains {
        for (index, descriptor) in (0..).zip(chain) {
            driver.put(index, *descriptor);
        }
        driver.offer(0);
        driver.ring();
        wait_for("the device's end", || driver.unit.needs_reset());
        assert_eq!(driver.used(), 0, "{chain:?}");
        driver.unit.stop();
        driver.start().unwrap();
        assert_eq!(
            driver.request(VIRTIO_BLK_T_IN, 4, 512, WRITE),
            0,
            "{chain:?}"
        );
        driver.unit.stop();
        driver.start().unwrap();
    }
    driver.set_available(QUEUE.size + 1);
    driver.ring();
    wait_for("the device's end", || driver.unit.needs_reset());
}

/// A driver of a domain's network, and the other end of the wire.
fn connected() -> Option<(Rings, UnixStream)> {
    or_skipped(crate::kvm::open())?;
    let (ours, wire) = UnixStream::pair().unwrap();
    wire.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let config = Config {
        open_net: Some(Net::over(ours).unwrap()),
        io: Io::DriverDomain,
        ..Config::of(Profile::Para, "/".into())
    };
    let (device, memory, (interrupt, told, _line)) = start(&config);
    let rings = Rings::with(device, (interrupt, told), memory, Poll::Off);
    Some((rings, wire))
}

/// Before a frame in guest memory, and before one on the wire.
const EMPTY: [u8; 12] = [0; 12];
const LENGTH: u32 = 64;

/// A frame full of `byte` comes and another one goes.
fn exchange(rings: &mut Rings, wire: &mut UnixStream, byte: u8) {
    let frame = [byte; LENGTH as usize];
    assert_eq!(rings.get(0)[EMPTY.len()..], frame);
    rings.send(1, &[&EMPTY[..], &frame].concat());
    let mut sent = [0; 4 + LENGTH as usize];
    wire.read_exact(&mut sent).unwrap();
    assert_eq!(
        (&sent[..4], &sent[4..]),
        (&LENGTH.to_be_bytes()[..], &frame[..])
    );
}

fn put_on(wire: &mut UnixStream, byte: u8) {
    let frame = [&LENGTH.to_be_bytes()[..], &[byte; LENGTH as usize]].concat();
    wire.write_all(&frame).unwrap();
}

#[test]
fn frames_go_both_ways_and_no_buffer_is_lost_by_a_pause_or_a_reset() {
    let Some((mut rings, mut wire)) = connected() else {
        return;
    };
    let room = u32::try_from(EMPTY.len() + FRAME_MAX).unwrap();
    for _ in 0..2 {
        // Most of them wait for a frame through all that comes.
        rings.empty(0, 8, room);
        for byte in 0..4 {
            let pause = rings.pause.pause(Holder::Client, Duration::from_secs(30));
            assert_eq!(pause, Ok(()));
            put_on(&mut wire, byte);
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(rings.used(0), u16::from(byte), "a paused guest's memory");
            rings.pause.resume(Holder::Client);
            exchange(&mut rings, &mut wire, byte);
        }
        rings.offer(1, rings.memory.bytes(), LENGTH, 0);
        wait_for("the device's end", || rings.unit.needs_reset());
        rings.unit.stop();
        rings.start();
    }
}
