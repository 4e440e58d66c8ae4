//! Drivers that break the rules: the device needs a reset, nothing is written, and it works again after one.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use super::driver::*;
use crate::virtio::queue::{CHAIN_MAX, QueueError, QueueSetup};

const END: u64 = 32 << 20;

/// Lets the device meet what `spoil` has made of a good request, and sees that it gives up, and that a reset mends it.
fn breaks(why: &str, spoil: impl FnOnce(&mut Driver)) {
    let mut driver = Driver::started(16, false);
    driver.prepare(VIRTIO_BLK_T_IN, 1, 512, WRITE);
    driver.memory.write(DATA, &[0xa5; 512]).unwrap();
    spoil(&mut driver);
    driver.ring();
    wait_for(why, || driver.unit.needs_reset());
    assert_eq!(driver.told.broken.load(Ordering::SeqCst), 1, "{why}");
    assert_eq!((driver.used(), driver.status()), (0, UNTOUCHED), "{why}");
    assert_eq!(driver.data(512), [0xa5; 512], "{why}");
    assert!(driver.unit.stats().broken.is_some());
    driver.unit.stop();
    assert!(!driver.unit.needs_reset());
    driver.start().unwrap();
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 1, 512, WRITE), 0, "{why}");
    assert_eq!(driver.data(512), [1; 512], "{why}");
}

#[test]
fn a_chain_that_is_none_ends_the_device_s_work() {
    breaks("a loop", |driver| {
        driver.put(2, (STATUS, 1, WRITE | NEXT, 2));
        driver.offer(0);
    });
    breaks("a head outside of the table", |driver| {
        driver.offer(QUEUE.size)
    });
    breaks("a descriptor outside of the table", |driver| {
        driver.put(1, (DATA, 512, WRITE | NEXT, QUEUE.size));
        driver.offer(0);
    });
    breaks("something to read behind something to write", |driver| {
        driver.put(2, (HEADER, 16, NEXT, 3));
        driver.put(3, (STATUS, 1, WRITE, 0));
        driver.offer(0);
    });
    breaks("no place for a status", |driver| {
        driver.put(0, (HEADER, 16, 0, 0));
        driver.offer(0);
    });
    breaks("half a header", |driver| {
        driver.put(0, (HEADER, 15, NEXT, 1));
        driver.offer(0);
    });
    breaks("more requests than a queue holds", |driver| {
        driver.set_available(QUEUE.size + 1);
    });
}

#[test]
fn memory_that_is_not_there_ends_the_device_s_work() {
    for (at, length) in [
        (END, 512),
        (END - 511, 512),
        (u64::MAX - 511, 512),
        (u64::MAX, 1),
        (DATA, u32::MAX),
        (0xd000_0000, 512),
    ] {
        breaks("data outside of memory", |driver| {
            driver.put(1, (at, length, WRITE | NEXT, 2));
            driver.offer(0);
        });
        breaks("a status outside of memory", |driver| {
            driver.put(2, (at, length, WRITE, 0));
            driver.offer(0);
        });
    }
    breaks("two halves of all addresses", |driver| {
        driver.put(1, (0, 1 << 31, WRITE | NEXT, 2));
        driver.put(2, (0, 1 << 31, WRITE, 0));
        driver.offer(0);
    });
}

#[test]
fn an_indirect_table_that_is_none_ends_the_device_s_work() {
    let table = 0x6000;
    let empty = |driver: &mut Driver, length| {
        driver.put(0, (table, length, INDIRECT, 0));
        driver.offer(0);
    };
    for length in [0, 15, 17, !15] {
        breaks("a table of no descriptors", |driver| empty(driver, length));
    }
    breaks("a table in a table", |driver| {
        driver.put_at(table, 0, (table, 16, INDIRECT, 0));
        empty(driver, 16);
    });
    breaks("a table outside of memory", |driver| {
        driver.put(0, (END - 8, 16, INDIRECT, 0));
        driver.offer(0);
    });
    breaks("a table of too many descriptors", |driver| {
        let count = u16::try_from(CHAIN_MAX + 1).unwrap();
        driver.put_at(table, 0, (HEADER, 16, NEXT, 1));
        for index in 1..count {
            driver.put_at(table, index, (DATA, 0, NEXT | WRITE, index + 1));
        }
        driver.put_at(table, count, (STATUS, 1, WRITE, 0));
        empty(driver, u32::from(count + 1) * 16);
    });
}

#[test]
fn queues_that_cannot_be_are_refused() {
    let driver = Driver::new(16, false);
    for queue in [
        QueueSetup::default(),
        QueueSetup {
            ready: false,
            ..QUEUE
        },
        QueueSetup { size: 0, ..QUEUE },
        QueueSetup { size: 3, ..QUEUE },
        QueueSetup { size: 512, ..QUEUE },
        QueueSetup {
            descriptors: 0x1008,
            ..QUEUE
        },
        QueueSetup {
            available: 0x2001,
            ..QUEUE
        },
        QueueSetup {
            used: 0x3002,
            ..QUEUE
        },
        QueueSetup {
            descriptors: END - 128,
            ..QUEUE
        },
        QueueSetup {
            available: END - 16,
            ..QUEUE
        },
        QueueSetup {
            used: u64::MAX - 3,
            ..QUEUE
        },
    ] {
        let result = driver.unit.start(driver.unit.features(), &[queue]);
        assert!(result.is_err(), "{queue:?}");
    }
    let none = driver.unit.start(driver.unit.features(), &[]);
    assert!(matches!(none, Err(QueueError::NotReady(0))));
    assert_eq!(
        driver
            .memory
            .load_u32(QUEUE.used, Ordering::SeqCst)
            .unwrap(),
        0
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever lies in the rings, and however it changes meanwhile: the device lives, writes nothing outside of
    /// what the descriptors name, and works again after a reset.
    #[test]
    fn no_rings_harm_the_host(
        table in proptest::collection::vec(
            (prop_oneof![0x4000_u64..0x9000, Just(END - 4), any::<u64>()],
             prop_oneof![0_u32..1024, any::<u32>()], 0_u16..8, 0_u16..20), 16),
        heads in proptest::collection::vec(0_u16..20, 16),
        available in prop_oneof![0_u16..17, any::<u16>()],
        later in proptest::collection::vec((0_u16..16, 0x4000_u64..0x9000, 0_u32..1024, 0_u16..4), 8),
        header in any::<[u8; 16]>(),
    ) {
        let mut driver = Driver::started(16, false);
        driver.memory.write(HEADER, &header).unwrap();
        for (index, descriptor) in (0..).zip(&table) {
            // Nothing names the guard below.
            let (at, length, flags, next) = *descriptor;
            let safe = at >= 0x10000 || u64::from(length) < 1024;
            driver.put(index, if safe { (at, length, flags, next) } else { (0x4000, 1, flags, next) });
        }
        let guard = vec![0x77_u8; 0x1000];
        let high = 0x20_0000;
        driver.memory.write(high, &guard).unwrap();
        for head in &heads {
            driver.offer(*head);
        }
        driver.set_available(available);
        driver.ring();
        for (index, at, length, flags) in later {
            driver.put(index, (at, length, flags, 0));
            driver.ring();
        }
        driver.unit.stop();
        let mut after = vec![0; guard.len()];
        driver.memory.read(high, &mut after).unwrap();
        let named = table.iter().any(|(at, length, ..)| {
            *at < high + 0x1000 && at.saturating_add(u64::from(*length)) > high
        });
        prop_assert!(named || after == guard);
        prop_assert!(driver.image.as_file().metadata().unwrap().len() == 16 * 512);
        driver.start().unwrap();
        prop_assert_eq!(driver.request(VIRTIO_BLK_T_IN, 1, 512, WRITE), 0);
    }
}
