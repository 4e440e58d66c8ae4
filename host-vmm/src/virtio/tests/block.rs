//! Requests of a driver that keeps to the rules.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use paravane_reference_host::or_skipped;
use virtio_bindings::virtio_blk::*;
use vmm_sys_util::tempfile::TempFile;

use super::driver::*;
use super::rings::{Rings, base};
use crate::disk::uring::Uring;
use crate::disk::{Disk, DiskSpec};
use crate::memory::Memory;
use crate::pause::{Holder, Pause};
use crate::virtio::COMMON_FEATURES;
use crate::virtio::block::Block;
use crate::virtio::poll::Poll;
use crate::virtio::queue::QueueError;

const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn range(sector: u64, count: u32, flags: u32) -> [u8; 16] {
    let mut range = [0; 16];
    range[..8].copy_from_slice(&sector.to_le_bytes());
    range[8..12].copy_from_slice(&count.to_le_bytes());
    range[12..].copy_from_slice(&flags.to_le_bytes());
    range
}

#[test]
fn what_is_written_is_on_the_disk_and_is_read_again() {
    for mut driver in Driver::both(16, false) {
        driver.memory.write(DATA, &[0xa5; 1024]).unwrap();
        assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 3, 1024, 0), OK);
        assert_eq!(driver.written(), 1);
        assert_eq!(driver.request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), OK);
        assert_eq!([driver.sector(3), driver.sector(4)], [[0xa5; 512]; 2]);
        assert_eq!([driver.sector(2), driver.sector(5)], [[2; 512], [5; 512]]);
        assert_eq!(driver.request(VIRTIO_BLK_T_IN, 4, 1024, WRITE), OK);
        assert_eq!(driver.written(), 1025);
        assert_eq!(driver.data(512), [0xa5; 512]);
        assert_eq!(driver.data(1024)[512..], [5; 512]);
        let stats = driver.unit.stats();
        assert_eq!((stats.requests, stats.broken), (3, None));
    }
}

#[test]
fn a_device_that_looks_needs_no_doorbell_and_misses_none_that_it_wants() {
    for (poll, rings) in [
        (Poll::On, 0..=1),
        (Poll::Auto, 0..=300),
        // The next one can come before the device has begun to wait, where the host is busy.
        (Poll::Off, 2..=300),
    ] {
        let mut driver = Driver::polled(16, false, poll);
        driver.start().unwrap();
        let mut rung = 0;
        for round in 0..300_u64 {
            driver.prepare(VIRTIO_BLK_T_IN, 4, 512, WRITE);
            let before = driver.used();
            driver.offer(0);
            if driver.wants_ring() {
                driver.ring();
                rung += 1;
            }
            wait_for("an answer", || driver.used() != before);
            assert_eq!(driver.status(), OK);
            // At all distances around those at which it begins to wait.
            std::thread::sleep(Duration::from_micros(round % 7 * 500));
        }
        assert!(rings.contains(&rung), "{poll:?}: {rung}");
        let pause = driver.pause.pause(Holder::Client, Duration::from_secs(20));
        assert_eq!(pause, Ok(()), "{poll:?}");
        driver.pause.resume(Holder::Client);
        driver.unit.stop();
        assert_eq!(driver.unit.stats().requests, 300);
    }
}

#[test]
fn a_request_may_lie_in_memory_in_any_pieces() {
    for mut driver in Driver::both(16, false) {
        driver.header(VIRTIO_BLK_T_IN, 7);
        let table = 0x6000;
        // Header in two parts; the last data byte and the status are one part.
        driver.put_at(table, 0, (HEADER, 9, NEXT, 1));
        driver.put_at(table, 1, (HEADER + 9, 7, NEXT, 2));
        driver.put_at(table, 2, (DATA, 0, NEXT | WRITE, 3));
        driver.put_at(table, 3, (DATA, 511, NEXT | WRITE, 4));
        driver.put_at(table, 4, (DATA + 511, 2, WRITE, 0));
        driver.put(5, (table, 5 * 16, INDIRECT, 0));
        driver.memory.write(DATA + 512, &[UNTOUCHED]).unwrap();
        driver.offer(5);
        driver.ring();
        wait_for("an answer", || driver.used() == 1);
        assert_eq!(driver.data(512), [7; 512]);
        assert_eq!(driver.data(513)[512], OK);
    }
}

#[test]
fn a_request_that_cannot_be_gets_a_status_and_does_nothing() {
    for mut driver in Driver::both(16, false) {
        driver.memory.write(DATA, &[0xa5; 1024]).unwrap();
        for (what, sector, length, data, status) in [
            (VIRTIO_BLK_T_OUT, 15, 1024, 0, FAILED),
            (VIRTIO_BLK_T_OUT, u64::MAX, 512, 0, FAILED),
            (VIRTIO_BLK_T_OUT, u64::MAX / 512, 512, 0, FAILED),
            (VIRTIO_BLK_T_OUT, 3, 511, 0, FAILED),
            (VIRTIO_BLK_T_IN, 16, 512, WRITE, FAILED),
            (VIRTIO_BLK_T_IN, 3, 513, WRITE, FAILED),
            (VIRTIO_BLK_T_DISCARD, 0, 15, 0, FAILED),
            (VIRTIO_BLK_T_SCSI_CMD, 0, 512, 0, UNSUPPORTED),
            (u32::MAX, 0, 512, WRITE, UNSUPPORTED),
        ] {
            let answer = driver.request(what, sector, length, data);
            assert_eq!(answer, status, "{what} {sector} {length}");
        }
        assert_eq!(driver.data(1024), [0xa5; 1024]);
        for sector in 0..16 {
            let expected = u8::try_from(sector).unwrap();
            assert_eq!(driver.sector(sector), [expected; 512]);
        }
        assert!(!driver.unit.needs_reset());
    }
}

#[test]
fn a_disk_says_what_it_is() {
    let mut driver = Driver::started(16, false);
    assert_eq!(driver.request(VIRTIO_BLK_T_GET_ID, 0, 20, WRITE), OK);
    assert_eq!(driver.data(20), *b"paravane-disk0\0\0\0\0\0\0");
    assert_eq!(driver.unit.config()[..8], 16_u64.to_le_bytes());
}

#[test]
fn ranges_are_discarded_and_zeroed_all_or_none() {
    let mut driver = Driver::started(64, false);
    let mut ranges = |what, list: &[[u8; 16]]| {
        let bytes = list.as_flattened();
        driver.memory.write(DATA, bytes).unwrap();
        driver.request(what, 0, u32::try_from(bytes.len()).unwrap(), 0)
    };
    const UNMAP: u32 = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    let (discard, zero) = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES);
    assert_eq!(ranges(discard, &[range(8, 8, 0), range(32, 8, 0)]), OK);
    assert_eq!(ranges(zero, &[range(2, 1, 0)]), OK);
    assert_eq!(ranges(zero, &[range(4, 1, UNMAP)]), OK);
    for (what, second, status) in [
        (discard, range(63, 2, 0), FAILED),
        (discard, range(u64::MAX, 2, 0), FAILED),
        (discard, range(50, 1, UNMAP), UNSUPPORTED),
        (discard, range(50, u32::MAX, 0), FAILED),
        (zero, range(50, 1, 0), FAILED),
    ] {
        assert_eq!(ranges(what, &[range(40, 8, 0), second]), status);
    }
    assert_eq!(ranges(zero, &[range(50, 1, 2)]), UNSUPPORTED);
    assert_eq!(ranges(discard, &[range(50, 1, 0); 33]), FAILED);
    for sector in 0..64 {
        let is_zero =
            [2, 4].contains(&sector) || (8..16).contains(&sector) || (32..40).contains(&sector);
        let expected = if is_zero {
            0
        } else {
            u8::try_from(sector).unwrap()
        };
        assert_eq!(driver.sector(sector), [expected; 512], "{sector}");
    }
}

/// A file that cannot be told to be zero is written, and a pause waits for that.
#[test]
fn no_request_zeroes_more_than_the_disk_says() {
    let image = TempFile::new().unwrap();
    image.as_file().set_len(64 << 20).unwrap();
    let mut driver = Driver::on(image, false, Poll::Off, None);
    driver.start().unwrap();
    let config = driver.unit.config();
    let most = u32::from_le_bytes(config[48..52].try_into().unwrap());
    assert!(most <= 32 << 10 && config[52..56] == [1, 0, 0, 0]);
    for (count, status) in [(most, OK), (most + 1, FAILED)] {
        driver.memory.write(DATA, &range(0, count, 0)).unwrap();
        let answer = driver.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, 0);
        assert_eq!(answer, status, "{count}");
    }
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    for mut driver in Driver::both(4, true) {
        driver.memory.write(DATA, &range(0, 1, 0)).unwrap();
        assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 0, 512, 0), FAILED);
        for what in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(driver.request(what, 0, 16, 0), FAILED);
        }
        assert_eq!(driver.request(VIRTIO_BLK_T_IN, 1, 512, WRITE), OK);
        assert_eq!(driver.sector(0), [0; 512]);
        let features = driver.unit.features();
        assert_ne!(features & 1 << VIRTIO_BLK_F_RO, 0);
        assert_eq!(features & 1 << VIRTIO_BLK_F_DISCARD, 0);
    }
}

/// The driver names the used request from which on it wants to be told.
fn tell_me_after(driver: &Driver, used: u16) {
    let at = QUEUE.available + 4 + u64::from(QUEUE.size) * 2;
    driver.memory.write(at, &used.to_le_bytes()).unwrap();
}

#[test]
fn an_interrupt_comes_only_where_the_driver_wants_it() {
    let mut driver = Driver::started(16, false);
    let told = |driver: &Driver| driver.told.used.load(Ordering::SeqCst);
    tell_me_after(&driver, 2);
    for _ in 0..2 {
        assert_eq!(driver.request(VIRTIO_BLK_T_IN, 0, 512, WRITE), OK);
    }
    assert_eq!(told(&driver), 0);
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 0, 512, WRITE), OK);
    wait_for("the interrupt", || told(&driver) == 1);
}

#[test]
fn many_requests_have_one_interrupt() {
    let mut driver = Driver::new(16, false);
    driver.prepare(VIRTIO_BLK_T_IN, 1, 512, WRITE);
    for _ in 0..16 {
        driver.offer(0);
    }
    driver.start_with(0).unwrap();
    wait_for("the interrupt", || {
        driver.told.used.load(Ordering::SeqCst) == 1
    });
    assert_eq!(driver.used(), 16);
}

#[test]
fn a_reset_returns_when_the_device_has_ended_and_it_begins_anew() {
    for mut driver in Driver::both(16, false) {
        for _ in 0..3 {
            assert_eq!(driver.request(VIRTIO_BLK_T_IN, 1, 512, WRITE), OK);
            assert!(matches!(driver.start_with(0), Err(QueueError::Busy)));
            driver.unit.stop();
            driver.unit.stop();
            driver.memory.write(QUEUE.used, &[0; 64]).unwrap();
            driver.offer(0);
            driver.ring();
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(driver.used(), 0);
            driver.start().unwrap();
        }
    }
}

#[test]
fn a_paused_machine_has_idle_devices_and_can_be_ended() {
    for mut driver in Driver::both(16, false) {
        assert_eq!(driver.request(VIRTIO_BLK_T_IN, 1, 512, WRITE), OK);
        driver
            .pause
            .pause(Holder::Client, Duration::from_secs(20))
            .unwrap();
        driver.prepare(VIRTIO_BLK_T_IN, 2, 512, WRITE);
        driver.offer(0);
        driver.ring();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((driver.used(), driver.status()), (1, UNTOUCHED));
        driver.pause.resume(Holder::Client);
        wait_for("an answer", || driver.used() == 2);
        driver
            .pause
            .pause(Holder::Client, Duration::from_secs(20))
            .unwrap();
        driver.pause.end();
        driver.unit.stop();
    }
}

#[test]
fn a_device_that_a_pause_holds_can_be_reset() {
    let driver = Driver::started(16, false);
    let (go, gone) = std::sync::mpsc::channel();
    let vcpu = {
        let (pause, unit) = (driver.pause.clone(), driver.unit.clone());
        pause.begin(Pause::vcpu(0));
        std::thread::spawn(move || {
            gone.recv().unwrap();
            unit.stop();
            pause.rest(Pause::vcpu(0));
        })
    };
    driver.pause.want(Holder::Client);
    let work = || driver.pause.pause(Holder::Core, Duration::ZERO);
    wait_for("the device's stand", || work() == Err(1));
    go.send(()).unwrap();
    wait_for("the reset", || vcpu.is_finished());
    assert_eq!(work(), Ok(()));
}

#[test]
fn features_that_are_not_there_are_not_agreed_to() {
    let driver = Driver::new(16, false);
    for features in [0, 1 << VIRTIO_BLK_F_FLUSH, COMMON_FEATURES | 1 << 63] {
        let result = driver.unit.start(features, &[QUEUE]);
        assert!(matches!(result, Err(QueueError::Features { .. })));
    }
    assert!(!driver.unit.needs_reset());
}

/// A disk of 16 sectors with four queues, and a driver of all.
fn with_queues(uring: Option<Uring>) -> (Rings, TempFile) {
    let image = numbered(16);
    let spec = DiskSpec {
        uring,
        ..DiskSpec::of(image.as_path().to_owned(), false)
    };
    let device = Box::new(Block::new(Disk::open(&spec).unwrap(), 0, 4));
    (Rings::new(device, Memory::new(32).unwrap()), image)
}

/// Reads sector `sector` by way of `queue`, to where no other one does.
fn read_by(rings: &mut Rings, queue: u16, sector: u8) -> u8 {
    let (table, used) = (base(queue), rings.used(queue));
    let write = |at, bytes: &[u8]| rings.memory.write(table + at, bytes).unwrap();
    let descriptor = |at: u64, length: u32, flags: u16, next: u16| {
        let (at, length) = ((table + at).to_le_bytes(), length.to_le_bytes());
        [&at[..], &length, &flags.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    write(0x4008, &u64::from(sector).to_le_bytes());
    write(0x5000, &[0; 512]);
    let parts = [
        descriptor(0x4000, 16, NEXT, 1),
        descriptor(0x5000, 512, NEXT | WRITE, 2),
        descriptor(0x6000, 1, WRITE, 0),
    ];
    // An indirect table.
    write(0x7000, &parts.concat());
    rings.offer(queue, table + 0x7000, 48, INDIRECT);
    wait_for("an answer", || rings.used(queue) != used);
    let mut data = [0; 512];
    rings.memory.read(table + 0x5000, &mut data).unwrap();
    assert_eq!(data, [data[0]; 512]);
    data[0]
}

#[test]
fn each_queue_has_its_own_requests_and_a_driver_may_leave_some_out() {
    for uring in both_ways() {
        let (mut rings, _image) = with_queues(uring);
        assert_ne!(rings.unit.features() & 1 << VIRTIO_BLK_F_MQ, 0);
        assert_eq!(rings.unit.config()[34..36], [4, 0]);
        for sector in 0..16 {
            let queue = u16::from(sector % 4);
            assert_eq!(read_by(&mut rings, queue, sector), sector);
            assert_eq!(rings.used(queue), u16::from(sector / 4) + 1);
        }
        rings.unit.stop();
        let before = rings.used(3);
        rings.start_with(rings.unit.features(), 2);
        // Nobody serves what is not set up.
        rings.offer(3, 0, 16, NEXT);
        assert_eq!(read_by(&mut rings, 1, 7), 7);
        assert_eq!(read_by(&mut rings, 0, 8), 8);
        assert_eq!((rings.used(3), rings.unit.needs_reset()), (before, false));
        rings.unit.stop();
        assert!(rings.unit.start(rings.unit.features(), &[]).is_err());
    }
}

#[test]
fn a_request_that_breaks_the_rules_in_any_queue_ends_all_until_a_reset() {
    for uring in both_ways() {
        let (mut rings, _image) = with_queues(uring);
        for queue in 0..4 {
            for (at, length, flags) in [
                (32 << 20, 16, 0),
                (0, u32::MAX, 0),
                (0, 16, NEXT),
                (0, 8, 0),
            ] {
                rings.offer(queue, at, length, flags);
                wait_for("the device's end", || rings.unit.needs_reset());
                assert_eq!(rings.used(queue), 0);
                rings.unit.stop();
                rings.start();
            }
            assert_eq!(read_by(&mut rings, queue, 5), 5);
        }
    }
}

/// Puts `count` reads of a MiB each into the queue, from a file of so much that is not in the host's cache.
fn reads(driver: &mut Driver, count: u16) {
    for number in 0..count {
        let at = u64::from(number);
        let header = [
            &VIRTIO_BLK_T_IN.to_le_bytes()[..],
            &[0; 4],
            &(at << 11).to_le_bytes(),
        ];
        let memory = &driver.memory;
        memory.write(HEADER + at * 16, &header.concat()).unwrap();
        memory.write(STATUS + at, &[UNTOUCHED]).unwrap();
        let table = 0x6000 + at * 48;
        driver.put_at(table, 0, (HEADER + at * 16, 16, NEXT, 1));
        driver.put_at(table, 1, ((at + 1) << 20, 1 << 20, NEXT | WRITE, 2));
        driver.put_at(table, 2, (STATUS + at, 1, WRITE, 0));
        driver.put(number, (table, 48, INDIRECT, 0));
        driver.offer(number);
    }
    driver.ring();
}

#[test]
fn pv_dev_11_memory_stands_still_after_a_stop_and_a_pause_with_reads_under_way() {
    const COUNT: u16 = 16;
    let Some(uring) = or_skipped(Uring::made()) else {
        return;
    };
    let bytes = usize::from(COUNT) << 20;
    let content: Vec<u8> = (0..bytes >> 3).flat_map(usize::to_le_bytes).collect();
    let image = TempFile::new().unwrap();
    image.as_file().write_all(&content).unwrap();
    image.as_file().sync_all().unwrap();
    let mut driver = Driver::on(image, false, Poll::Off, Some(uring));
    let mut before = vec![0; bytes];
    let mut after = before.clone();
    for round in 0..20 {
        driver.start().unwrap();
        let file = driver.image.as_file().as_raw_fd();
        // SAFETY: advice about a file's cache; no memory is named.
        unsafe { libc::posix_fadvise(file, 0, 0, libc::POSIX_FADV_DONTNEED) };
        driver.memory.write(1 << 20, &vec![0xa5; bytes]).unwrap();
        reads(&mut driver, COUNT);
        std::thread::sleep(Duration::from_micros(round * 200));
        if round % 2 == 0 {
            driver.unit.stop();
        } else {
            let paused = driver.pause.pause(Holder::Client, Duration::from_secs(20));
            assert_eq!(paused, Ok(()));
        }
        driver.memory.read(1 << 20, &mut before).unwrap();
        let used = driver.used();
        std::thread::sleep(Duration::from_millis(20));
        driver.memory.read(1 << 20, &mut after).unwrap();
        assert!(before == after && driver.used() == used, "round {round}");
        // What has an answer is there, and nothing else is anywhere.
        for (number, part) in before.chunks_exact(1 << 20).enumerate() {
            let mut status = [0];
            driver
                .memory
                .read(STATUS + number as u64, &mut status)
                .unwrap();
            let expected = if status == [OK] {
                &content[number << 20..][..1 << 20]
            } else {
                &[0xa5; 1 << 20]
            };
            assert!(part == expected, "round {round}, read {number}: {status:?}");
        }
        driver.pause.resume(Holder::Client);
        if round % 2 != 0 {
            wait_for("all answers", || driver.used() == COUNT);
            driver.unit.stop();
        }
    }
    assert_eq!(driver.unit.stats().broken, None);
}
