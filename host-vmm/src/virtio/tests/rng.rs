//! Random numbers for a driver, good and hostile.

use std::sync::Arc;

use vmm_sys_util::tempfile::TempFile;

use super::driver::*;
use crate::memory::Memory;
use crate::virtio::poll::Poll;
use crate::virtio::rng::Rng;

fn started() -> Driver {
    let told = Arc::<Told>::default();
    let (interrupt, memory) = (Box::new(Arc::clone(&told)), Memory::new(32).unwrap());
    let parts = (TempFile::new().unwrap(), told);
    let mut driver = Driver::with(Box::new(Rng), interrupt, memory, parts, Poll::Off);
    driver.start().unwrap();
    driver
}

#[test]
fn a_driver_gets_as_many_numbers_as_it_has_room_for_and_others_each_time() {
    let mut driver = started();
    let mut before = vec![0; 64];
    for (number, length) in [64, 64, 1 << 20].into_iter().enumerate() {
        driver.memory.write(DATA, &[0; 128]).unwrap();
        driver.put(0, (DATA, length, WRITE, 0));
        driver.offer(0);
        driver.ring();
        wait_for("an answer", || usize::from(driver.used()) > number);
        assert!((64..=length).contains(&driver.written()));
        assert_ne!(driver.data(64), before);
        before = driver.data(64);
        let behind = driver.data(128)[64..].to_vec();
        assert_eq!(behind == [0; 64], length == 64, "what it has not asked for");
    }
}

#[test]
fn a_request_that_is_none_ends_the_device_s_work_until_a_reset() {
    let mut driver = started();
    for chain in [
        (DATA, 64, 0, 0),
        (32 << 20, 64, WRITE, 0),
        (DATA, 0, WRITE, 0),
    ] {
        driver.put(0, chain);
        driver.offer(0);
        driver.ring();
        wait_for("the device's end", || driver.unit.needs_reset());
        assert_eq!(driver.used(), 0);
        driver.unit.stop();
        driver.start().unwrap();
    }
}
