//! A network whose other side is a socket of ours: each frame has its length before it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::driver::{NEXT, Told, WRITE, wait_for};
use super::rings::{SIZE, setup_at};
use crate::memory::Memory;
use crate::net::{FRAME_MAX, Net};
use crate::pause::Pause;
use crate::virtio::net::NetDevice;
use crate::virtio::unit::Unit;

const RECEIVE: u64 = 0x1_0000;
const TRANSMIT: u64 = 0x2_0000;
const HEADER: usize = 12;

struct Card {
    memory: Memory,
    unit: Unit,
    wire: UnixStream,
}

impl Card {
    fn new() -> Self {
        let (ours, wire) = UnixStream::pair().unwrap();
        wire.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let device = Box::new(NetDevice::new(Net::over(ours).unwrap()));
        let memory = Memory::new(32).unwrap();
        let told = Box::new(Arc::<Told>::default());
        let unit = Unit::new(device, memory.clone(), told, Arc::<Pause>::default()).unwrap();
        let queues = [setup_at(RECEIVE), setup_at(TRANSMIT)];
        unit.start(unit.features(), &queues).unwrap();
        Self { memory, unit, wire }
    }

    /// Makes the buffer number `index` of a queue available: a header and `length` bytes behind it.
    fn offer(&self, base: u64, index: u16, length: usize, flags: u16) {
        let at = base + 0x4000 + u64::from(index) * 0x800;
        let mut table = Vec::new();
        for (at, length, flags, next) in [
            (at, HEADER, flags | NEXT, index * 2 + 1),
            (at + HEADER as u64, length, flags, 0),
        ] {
            table.extend(at.to_le_bytes());
            table.extend(u32::try_from(length).unwrap().to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend(next.to_le_bytes());
        }
        let slot = u64::from(index);
        self.memory.write(base + slot * 32, &table).unwrap();
        let head = (index * 2).to_le_bytes();
        self.memory.write(base + 0x1004 + slot * 2, &head).unwrap();
        let available = (index + 1).to_le_bytes();
        self.memory.write(base + 0x1002, &available).unwrap();
        self.unit.doorbells()[usize::from(base == TRANSMIT)]
            .write(1)
            .unwrap();
    }

    fn used(&self, base: u64) -> u16 {
        let mut index = [0; 2];
        self.memory.read(base + 0x2002, &mut index).unwrap();
        u16::from_le_bytes(index)
    }

    /// What the buffer number `index` has, its header first.
    fn buffer(&self, index: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + length];
        let at = RECEIVE + 0x4000 + index * 0x800;
        self.memory.read(at, &mut bytes).unwrap();
        bytes
    }

    fn put_on_the_wire(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.wire.write_all(&[&length, frame].concat()).unwrap();
    }
}

#[test]
fn a_frame_that_comes_is_given_whole_and_with_an_empty_header() {
    let mut card = Card::new();
    // One frame before there is a buffer for it, and one after.
    card.put_on_the_wire(&[0xa5; 60]);
    for index in 0..2 {
        card.offer(RECEIVE, index, FRAME_MAX, WRITE);
    }
    card.put_on_the_wire(&[0x5a; FRAME_MAX]);
    wait_for("two frames", || card.used(RECEIVE) == 2);
    let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let expected = |byte, length| [&header[..], &vec![byte; length]].concat();
    assert_eq!(card.buffer(0, 60), expected(0xa5, 60));
    assert_eq!(card.buffer(1, FRAME_MAX), expected(0x5a, FRAME_MAX));
}

#[test]
fn frames_wait_for_buffers_and_keep_their_order() {
    let mut card = Card::new();
    for number in 0..SIZE / 2 {
        card.put_on_the_wire(&[number.to_le_bytes()[0]; 100]);
    }
    for number in 0..SIZE / 2 {
        card.offer(RECEIVE, number, FRAME_MAX, WRITE);
        wait_for("a frame", || card.used(RECEIVE) == number + 1);
        let frame = card.buffer(number.into(), 100);
        assert_eq!(frame[HEADER..], [number.to_le_bytes()[0]; 100]);
    }
}

#[test]
fn what_is_sent_is_on_the_wire_and_what_is_no_frame_is_lost() {
    let mut card = Card::new();
    let at = TRANSMIT + 0x4000 + HEADER as u64;
    card.memory.write(at, &[0x11; 0x700]).unwrap();
    card.memory.write(at + 0x800, &[0x22; 64]).unwrap();
    card.offer(TRANSMIT, 0, FRAME_MAX + 1, 0);
    card.offer(TRANSMIT, 1, 64, 0);
    let mut frame = [0; 68];
    card.wire.read_exact(&mut frame).unwrap();
    assert_eq!(frame[..4], 64_u32.to_be_bytes());
    assert_eq!(frame[4..], [0x22; 64]);
    wait_for("both", || card.used(TRANSMIT) == 2);
    assert!(!card.unit.needs_reset());
}

#[test]
fn a_buffer_without_room_ends_the_device_s_work() {
    let mut card = Card::new();
    card.offer(RECEIVE, 0, 64, WRITE);
    card.put_on_the_wire(&[0; 65]);
    wait_for("the end", || card.unit.needs_reset());
    card.unit.stop();
}

#[test]
fn a_network_that_is_gone_leaves_the_device_at_work() {
    let card = Card::new();
    card.offer(RECEIVE, 0, FRAME_MAX, WRITE);
    card.wire.shutdown(std::net::Shutdown::Both).unwrap();
    for index in 0..4 {
        card.offer(TRANSMIT, index, 64, 0);
        wait_for("an answer", || card.used(TRANSMIT) == index + 1);
    }
    assert_eq!(card.used(RECEIVE), 0);
    assert!(!card.unit.needs_reset());
}
