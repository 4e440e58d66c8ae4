//! The register protocol of virtio-mmio.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;

use super::driver::*;
use crate::virtio::mmio::MmioDevice;

const BEGUN: u32 =
    VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;

/// A driver's device behind registers.
struct Bus {
    driver: Driver,
    device: MmioDevice,
}

impl Bus {
    fn new() -> Self {
        let driver = Driver::new(16, false);
        let device = MmioDevice::new(Arc::clone(&driver.unit), Arc::new(AtomicU32::new(0)));
        Self { driver, device }
    }

    fn get(&self, register: u32) -> u32 {
        let mut value = [0; 4];
        self.device.read(register, &mut value);
        u32::from_le_bytes(value)
    }

    fn set(&self, register: u32, value: u32) {
        self.device.write(register, value);
    }

    /// Adds a bit to the status; what the device makes of it.
    fn advance(&self, bit: u32) -> u32 {
        self.set(VIRTIO_MMIO_STATUS, self.get(VIRTIO_MMIO_STATUS) | bit);
        self.get(VIRTIO_MMIO_STATUS)
    }

    /// Up to the queues, with all features but `without`; the status.
    fn begin(&self, without: u64) -> u32 {
        self.advance(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.advance(VIRTIO_CONFIG_S_DRIVER);
        for half in 0..2 {
            self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            let offered = self.get(VIRTIO_MMIO_DEVICE_FEATURES);
            let left = u32::try_from(without >> (32 * half) & u64::from(u32::MAX)).unwrap();
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, offered & !left);
        }
        self.advance(VIRTIO_CONFIG_S_FEATURES_OK)
    }

    fn set_up_queue(&self, descriptors: u32) {
        self.set(VIRTIO_MMIO_QUEUE_SEL, 0);
        self.set(VIRTIO_MMIO_QUEUE_NUM, 16);
        self.set(VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors);
        self.set(VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2000);
        self.set(VIRTIO_MMIO_QUEUE_USED_LOW, 0x3000);
        self.set(VIRTIO_MMIO_QUEUE_READY, 1);
    }
}

#[test]
fn a_driver_finds_its_way() {
    let mut bus = Bus::new();
    assert_eq!(bus.get(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(bus.get(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(bus.get(VIRTIO_MMIO_DEVICE_ID), 2);
    assert_eq!(bus.get(VIRTIO_MMIO_CONFIG), 16);
    for _ in 0..3 {
        bus.driver.memory.write(0x1000, &[0; 0x3000]).unwrap();
        assert_eq!(bus.begin(0), BEGUN);
        assert_eq!(bus.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 256);
        bus.set_up_queue(0x1000);
        assert_eq!(bus.get(VIRTIO_MMIO_QUEUE_READY), 1);
        let status = bus.advance(VIRTIO_CONFIG_S_DRIVER_OK);
        assert_eq!(status, BEGUN | VIRTIO_CONFIG_S_DRIVER_OK);
        bus.driver.forget();
        assert_eq!(bus.driver.request(VIRTIO_BLK_T_IN, 1, 512, WRITE), 0);
        bus.set(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(bus.get(VIRTIO_MMIO_STATUS), 0);
        assert_eq!(bus.get(VIRTIO_MMIO_QUEUE_READY), 0);
    }
}

#[test]
fn what_cannot_be_is_refused_and_a_reset_mends_it() {
    let bus = Bus::new();
    let version_1 = 1 << VIRTIO_F_VERSION_1;
    assert_eq!(
        bus.begin(version_1),
        BEGUN & !VIRTIO_CONFIG_S_FEATURES_OK,
        "a driver of before virtio 1"
    );
    for descriptors in [0x1008, 32 << 20] {
        bus.set(VIRTIO_MMIO_STATUS, 0);
        bus.begin(0);
        bus.set_up_queue(descriptors);
        let status = bus.advance(VIRTIO_CONFIG_S_DRIVER_OK);
        assert_ne!(status & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    }
    bus.set(VIRTIO_MMIO_STATUS, 0);
    bus.begin(0);
    let status = bus.advance(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_ne!(status & VIRTIO_CONFIG_S_NEEDS_RESET, 0, "no queue");
    bus.set(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(bus.get(VIRTIO_MMIO_STATUS), 0);
}

#[test]
fn registers_that_are_not_there_are_no_matter() {
    let bus = Bus::new();
    for offset in (0..0x1000).step_by(3) {
        for length in [1, 2, 4, 8] {
            let mut value = vec![0xff; length];
            bus.device.read(offset, &mut value);
        }
        if offset != VIRTIO_MMIO_STATUS {
            bus.set(offset, u32::MAX);
        }
    }
    bus.set(VIRTIO_MMIO_QUEUE_SEL, u32::MAX);
    bus.set(VIRTIO_MMIO_QUEUE_NUM, u32::MAX);
    assert_eq!(bus.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    assert_eq!(bus.get(VIRTIO_MMIO_STATUS), 0);
}
