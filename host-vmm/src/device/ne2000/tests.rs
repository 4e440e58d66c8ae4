//! The card, as Linux's driver speaks to it, and as none should.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::*;
use crate::snapshot::Saved as _;

const RING: u8 = 0x4c;
const STOP: u8 = 0x80;
const NO_REMOTE: u8 = command::ABORT;

struct Pc {
    card: Ne2000,
    pci: Pci,
    irq: EventFd,
    wire: UnixStream,
}

impl Pc {
    fn new() -> Self {
        let (ours, wire) = UnixStream::pair().unwrap();
        let net = Net::over(ours).unwrap();
        wire.set_nonblocking(true).unwrap();
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let ended = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let card = Ne2000::new(net, irq.try_clone().unwrap(), ended);
        let pci = Pci::new(vec![card.function()]);
        Self {
            card,
            pci,
            irq,
            wire,
        }
    }

    fn write(&self, register: u16, value: u8) {
        assert!(self.card.write(&self.pci, BASE + register, &[value]));
    }

    fn read(&self, register: u16) -> u8 {
        let mut value = [0xff];
        assert!(self.card.read(&self.pci, BASE + register, &mut value));
        value[0]
    }

    fn remote(&self, address: u16, count: u16, command: u8) {
        self.write(0, NO_REMOTE | command::START);
        self.write(7, interrupt::REMOTE_DONE);
        for (register, value) in [(0x8, address), (0xa, count)] {
            let [low, high] = value.to_le_bytes();
            self.write(register, low);
            self.write(register + 1, high);
        }
        self.write(0, command | command::START);
    }

    fn take(&self, address: u16, count: u16) -> Vec<u8> {
        self.remote(address, count, command::REMOTE_READ);
        let mut data = vec![0; count.into()];
        assert!(self.card.read(&self.pci, BASE + DATA, &mut data));
        assert_ne!(self.read(7) & interrupt::REMOTE_DONE, 0);
        data
    }

    /// What Linux's `NS8390_init` does, with the card's own address.
    fn start(&self, mac: [u8; 6]) {
        self.write(0, NO_REMOTE | command::STOP);
        self.write(0xe, 0x49);
        for (register, value) in [(1, RING), (4, 0x40), (3, STOP - 1), (2, STOP)] {
            self.write(register, value);
        }
        self.write(7, 0xff);
        self.write(0xf, 0);
        self.write(0, 1 << 6 | NO_REMOTE | command::STOP);
        for (register, byte) in (1..).zip(mac) {
            self.write(register, byte);
        }
        self.write(7, RING);
        self.write(0, NO_REMOTE | command::START);
        self.write(0xc, BROADCAST);
        self.write(0xd, 0);
        self.write(7, 0xff);
        self.write(0xf, 0x3f);
    }

    fn arrive(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap();
        self.wire.write_all(&length.to_be_bytes()).unwrap();
        self.wire.write_all(frame).unwrap();
        self.card.deliver();
    }

    fn current(&self) -> u8 {
        self.write(0, 1 << 6 | NO_REMOTE | command::START);
        let current = self.read(7);
        self.write(0, NO_REMOTE | command::START);
        current
    }
}

#[test]
fn a_driver_finds_the_card_and_its_address() {
    let pc = Pc::new();
    pc.card.read(&pc.pci, BASE + 0x1f, &mut [0]);
    assert_ne!(pc.read(7) & interrupt::RESET, 0);
    // The register that the driver tells a card by: a counter, in page 0.
    pc.write(0, 1 << 6 | NO_REMOTE | command::STOP);
    pc.write(0xd, 0xff);
    pc.write(0, NO_REMOTE | command::STOP);
    assert_eq!(pc.read(0xd), 0);
    assert_eq!((pc.read(0xa), pc.read(0xb)), (b'P', b'C'));
    // Linux reads the PROM a byte an access, from a card that is set to words.
    pc.write(0xe, 0x49);
    pc.remote(0, 32, command::REMOTE_READ);
    let prom: Vec<u8> = (0..16).map(|_| pc.read(DATA)).collect();
    assert_eq!(prom[..6], crate::net::NetSpec::User.mac());
    assert_eq!(prom[14..], [WORD_WIDE; 2]);
}

#[test]
fn frames_go_out() {
    let mut pc = Pc::new();
    pc.start([2; 6]);
    let frame: Vec<u8> = (0..100).collect();
    pc.remote(0x4000, 100, command::REMOTE_WRITE);
    // Words and double words, as `outsw` and `outsl` bring them.
    assert!(pc.card.write(&pc.pci, BASE + DATA, &frame[..96]));
    assert!(pc.card.write(&pc.pci, BASE + DATA, &frame[96..]));
    assert_eq!(pc.irq.read().unwrap_or(0), 0);
    for (register, value) in [(4, 0x40), (5, 100), (6, 0)] {
        pc.write(register, value);
    }
    pc.write(0, NO_REMOTE | command::START | command::TRANSMIT);
    assert_eq!(pc.irq.read().unwrap_or(0), 1);
    assert_eq!(pc.read(7), interrupt::TRANSMITTED | interrupt::REMOTE_DONE);
    assert_eq!(pc.read(0) & command::TRANSMIT, 0, "it has been sent");
    // The line is a level: it comes again until the reason has gone.
    pc.card.resample();
    assert_eq!(pc.irq.read().unwrap_or(0), 1);
    pc.write(7, 0xff);
    pc.card.resample();
    assert_eq!(pc.irq.read().unwrap_or(0), 0);
    let mut packet = [0; 104];
    pc.wire.read_exact(&mut packet).unwrap();
    assert_eq!(packet[4..], frame);
    // What would leave the card's memory is not sent.
    for (page, count) in [(0x3f, 60), (0xbf, 300), (0, 60), (0xff, 60)] {
        let [low, high] = u16::to_le_bytes(count);
        for (register, value) in [(4, page), (5, low), (6, high)] {
            pc.write(register, value);
        }
        pc.write(0, NO_REMOTE | command::START | command::TRANSMIT);
    }
    assert!(pc.wire.read(&mut packet).is_err());
}

#[test]
fn frames_come_in_to_whom_they_are_for() {
    let mut pc = Pc::new();
    pc.arrive(&[0xff; 60]);
    assert_eq!(pc.irq.read().unwrap_or(0), 0, "it has not been started");
    pc.start([2; 6]);
    pc.arrive(&[0xff; 60]);
    assert_eq!(pc.irq.read().unwrap_or(0), 1);
    assert_eq!(pc.current(), RING + 1);
    let header = pc.take(u16::from(RING) << 8, 4);
    assert_eq!(header, [INTACT | TO_GROUP, RING + 1, 64, 0]);
    pc.arrive(&[4; 60]);
    pc.arrive(&[3; 60]);
    assert_eq!(pc.current(), RING + 1, "for another card, and for a group");
    pc.write(7, 0xff);
    let long: Vec<u8> = [[2; 6].as_slice(), &[7; 994]].concat();
    pc.arrive(&long);
    assert_eq!(pc.irq.read().unwrap_or(0), 1);
    assert_eq!(pc.current(), RING + 1 + 4);
    let bytes = pc.take(u16::from(RING + 1) << 8, 1004);
    assert_eq!(bytes[..4], [INTACT, RING + 5, 0xec, 3]);
    assert_eq!(bytes[4..], long);
}

#[test]
fn a_saved_card_goes_on_with_its_frames() {
    let (mut pc, copy) = (Pc::new(), Pc::new());
    pc.start([2; 6]);
    for number in 0..17_u8 {
        pc.arrive(&[[2; 6].as_slice(), &[number; 594]].concat());
    }
    // Sixteen are in the ring, and the last one has no room.
    let state = pc.card.save().unwrap();
    copy.card.restore(state.clone()).unwrap();
    copy.card.go_on();
    assert_eq!(copy.irq.read().unwrap_or(0), 1, "the line is a level");
    assert_eq!(copy.current(), RING + 48);
    let at = (u16::from(RING) << 8) + 3 * 256 + 4;
    assert_eq!(copy.take(at, 600)[6..], [1; 594]);
    copy.write(3, RING + 2);
    assert_eq!(copy.current(), RING + 51, "there is room now");
    assert_eq!(copy.take(at + 45 * 256, 600)[6..], [16; 594]);
    for (name, bad) in [("ram", vec![0; 1]), ("held", vec![0; FRAME_MAX + 1])] {
        let mut state = state.clone();
        state[name] = bad.into();
        assert!(copy.card.restore(state).is_err(), "{name}");
    }
}

#[test]
fn a_full_ring_waits_for_the_guest_and_loses_nothing() {
    let mut pc = Pc::new();
    pc.start([2; 6]);
    for number in 0..100_u8 {
        pc.arrive(&[[2; 6].as_slice(), &[number; 594]].concat());
    }
    // Three pages each, of 52 with one left free.
    assert_eq!(pc.current(), RING + 48);
    let mut next = RING;
    for number in 0..100_u8 {
        let header = pc.take(u16::from(next) << 8, 4);
        assert_eq!(header[2..], [0x5c, 2], "{number}");
        // The end of a frame may lie at the beginning of the ring.
        let bytes = pc.take((u16::from(next) << 8) + 4, 600);
        assert!(bytes[6..].iter().all(|byte| *byte == number), "{number}");
        next = header[1];
        // As Linux does, also where that is before the ring.
        pc.write(3, next - 1);
    }
    assert_eq!(pc.current(), next);
}

#[test]
fn a_driver_that_stops_half_way_is_told_of_the_rest() {
    let mut pc = Pc::new();
    pc.start([2; 6]);
    for _ in 0..20 {
        pc.arrive(&[[2; 6].as_slice(), &[0; 1508]].concat());
    }
    let mut read = 0;
    while pc.irq.read().unwrap_or(0) > 0 {
        // One frame an interrupt, and only then is it acknowledged.
        let next = pc.read(3) + 1;
        let page = if next == STOP { RING } else { next };
        let header = pc.take(u16::from(page) << 8, 4);
        // Linux's commands that change the page start nothing, and stop nothing.
        pc.write(0, 1 << 6 | NO_REMOTE);
        pc.write(0, NO_REMOTE);
        pc.write(3, header[1] - 1);
        pc.write(7, interrupt::RECEIVED);
        read += 1;
    }
    assert_eq!(read, 20);
    assert_eq!(pc.read(7) & interrupt::RECEIVED, 0);
}

/// An access that a guest can make.
fn access() -> impl Strategy<Value = (u16, bool, Vec<u8>)> {
    let value = prop_oneof![
        any::<u8>(),
        Just(command::START | command::REMOTE_READ),
        Just(command::START | command::REMOTE_WRITE),
        Just(command::START | command::TRANSMIT),
        Just(0x40),
        Just(0xc0),
    ];
    let data = prop_oneof![
        value.prop_map(|value| vec![value]),
        proptest::collection::vec(any::<u8>(), 1..600),
    ];
    (0..PORTS, any::<bool>(), data)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn no_guest_breaks_the_card(accesses in proptest::collection::vec(access(), 1..200)) {
        let mut pc = Pc::new();
        for (index, (register, is_write, mut data)) in accesses.into_iter().enumerate() {
            if is_write {
                pc.card.write(&pc.pci, BASE + register, &data);
            } else {
                pc.card.read(&pc.pci, BASE + register, &mut data);
            }
            if index % 8 == 0 && index < 160 {
                pc.arrive(&[0xff; 700]);
            }
        }
        pc.card.write(&pc.pci, BASE + RESET, &[0]);
        pc.start([2; 6]);
        prop_assert_eq!(pc.read(0) & command::STOP, 0);
    }
}

#[test]
fn frames_that_nobody_wants_do_not_hold_the_card() {
    const OTHERS: usize = 1000;
    let mut pc = Pc::new();
    let mac = crate::net::NetSpec::User.mac();
    pc.start(mac);
    let frame = |to: [u8; 6]| {
        let mut bytes = 60_u32.to_be_bytes().to_vec();
        bytes.extend(to);
        bytes.extend([0x5a; 54]);
        bytes
    };
    let mut wire = frame([0x02, 0, 0, 0, 0, 1]).repeat(OTHERS);
    wire.extend(frame(mac));
    pc.wire.write_all(&wire).unwrap();
    let mut turns = 1;
    pc.card.deliver();
    while pc.card.resample() {
        assert_eq!(pc.current(), RING, "after {turns} turns");
        turns += 1;
        pc.card.deliver();
    }
    assert!(turns > 2, "{turns} turns");
    assert_ne!(pc.current(), RING);
}
