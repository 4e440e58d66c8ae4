//! A port whose other side is a socket of ours, and the driver's messages about it.

use std::io::{Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::tempdir::TempDir;

use super::driver::{NEXT, wait_for};
use super::rings::{Rings, SIZE};
use crate::memory::Memory;
use crate::port::PortSpec;
use crate::virtio::console::Port;
use crate::virtio::poll::Poll;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;
const READY: u16 = 0;
const ADD: u16 = 1;
const PORT_READY: u16 = 3;
const OPEN: u16 = 6;
const NAME: u16 = 7;

/// Device and driver.
struct Guest {
    rings: Rings,
    spec: PortSpec,
    _folder: TempDir,
}

impl Guest {
    fn new() -> Self {
        Self::polled(Poll::Off)
    }

    fn polled(poll: Poll) -> Self {
        let folder = TempDir::new().unwrap();
        let spec = format!("agent={}", folder.as_path().join("socket").display());
        let spec: PortSpec = spec.parse().unwrap();
        let device = Box::new(Port::new(&spec).unwrap());
        Self {
            rings: Rings::polled(device, Memory::new(32).unwrap(), poll),
            spec,
            _folder: folder,
        }
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(self.spec.path()).unwrap();
        let patience = Some(Duration::from_secs(20));
        client.set_read_timeout(patience).unwrap();
        client
    }

    fn say(&mut self, event: u16, value: u16) {
        let parts = [[0; 2], [0; 2], event.to_le_bytes(), value.to_le_bytes()];
        self.send(CONTROL_TRANSMIT, &parts.concat());
    }

    /// The next message: event, value, and what is behind.
    fn hear(&mut self) -> (u16, u16, Vec<u8>) {
        let message = self.get(CONTROL_RECEIVE);
        let [0, 0, 0, 0, a, b, c, d, rest @ ..] = &message[..] else {
            panic!("no message of port 0: {message:?}");
        };
        let [event, value] = [[*a, *b], [*c, *d]].map(u16::from_le_bytes);
        (event, value, rest.to_vec())
    }

    /// As Linux does it, until a program has opened the port.
    fn open(&mut self) {
        self.empty(CONTROL_RECEIVE, SIZE, 64);
        self.say(READY, 1);
        assert_eq!(self.hear(), (ADD, 0, vec![]));
        self.say(PORT_READY, 1);
        assert_eq!(self.hear(), (NAME, 0, b"agent".to_vec()));
        self.say(OPEN, 1);
    }
}

impl Deref for Guest {
    type Target = Rings;

    fn deref(&self) -> &Rings {
        &self.rings
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Rings {
        &mut self.rings
    }
}

#[test]
fn bytes_go_both_ways_once_both_sides_have_opened_the_port() {
    for poll in [Poll::Off, Poll::Auto, Poll::On] {
        bytes_go_both_ways(poll);
    }
}

fn bytes_go_both_ways(poll: Poll) {
    let mut guest = Guest::polled(poll);
    let mut client = guest.connect();
    // Before the guest has anything.
    client.write_all(b"question").unwrap();
    guest.open();
    assert_eq!(guest.hear(), (OPEN, 1, vec![]));
    // Buffers that are too small for all of it.
    guest.empty(RECEIVE, 2, 5);
    assert_eq!(guest.get(RECEIVE), b"quest");
    assert_eq!(guest.get(RECEIVE), b"ion");
    guest.send(TRANSMIT, b"answer");
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    drop(client);
    assert_eq!(guest.hear(), (OPEN, 0, vec![]));
    // Nobody has it: what is written is lost, and not kept for the next one.
    guest.send(TRANSMIT, b"anybody?");
    wait_for("the write", || guest.used(TRANSMIT) == 2);
    let mut next = guest.connect();
    assert_eq!(guest.hear(), (OPEN, 1, vec![]));
    guest.send(TRANSMIT, b"hello");
    let mut hello = [0; 5];
    next.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
}

#[test]
fn a_client_that_does_not_read_holds_the_guest_up_and_nothing_is_lost() {
    let mut guest = Guest::new();
    let mut client = guest.connect();
    guest.open();
    guest.hear();
    let piece: Vec<u8> = (0..0x1000_u32).flat_map(|n| n.to_le_bytes()).collect();
    let mut sent = 0;
    // More than any socket holds; at most a queue's worth is on its way.
    for round in 0..2000_u16 {
        let before = guest.used(TRANSMIT);
        if guest.offered[1] - before == SIZE {
            break;
        }
        let at = 0x100_0000;
        guest.memory.write(at, &piece).unwrap();
        guest.offer(TRANSMIT, at, 0x4000, 0);
        sent += 1;
        // The device gets its turn; it need not take one.
        let turn = std::time::Instant::now();
        while guest.used(TRANSMIT) == before && turn.elapsed() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        assert!(round < 1999, "it takes everything");
    }
    for number in 0..sent {
        let mut got = vec![0; piece.len()];
        client.read_exact(&mut got).unwrap();
        assert!(got == piece, "piece {number} of {sent}");
    }
    wait_for("the last write", || guest.used(TRANSMIT) == sent);
    assert_eq!(guest.unit.stats().broken, None);
}

#[test]
fn one_client_at_a_time_has_the_port() {
    let mut guest = Guest::new();
    let first = guest.connect();
    let mut second = guest.connect();
    guest.open();
    assert_eq!(guest.hear(), (OPEN, 1, vec![]));
    second.write_all(b"mine").unwrap();
    drop(first);
    // The driver may hear of the change at once, or of both steps.
    while guest.hear() != (OPEN, 1, vec![]) {}
    guest.empty(RECEIVE, 1, 64);
    assert_eq!(guest.get(RECEIVE), b"mine");
}

#[test]
fn a_driver_that_breaks_the_rules_loses_the_device_until_a_reset() {
    let mut guest = Guest::new();
    let mut client = guest.connect();
    let hostile: [fn(&mut Guest); 6] = [
        |guest| guest.send(CONTROL_TRANSMIT, &[0; 7]),
        |guest| guest.offer(TRANSMIT, 32 << 20, 1, 0),
        |guest| guest.offer(TRANSMIT, 0, (1 << 20) + 1, 0),
        |guest| guest.offer(TRANSMIT, 0, 1, NEXT),
        // No room for a message, or for a byte.
        |guest| {
            guest.empty(CONTROL_RECEIVE, 1, 7);
            guest.say(READY, 1);
        },
        |guest| {
            guest.open();
            guest.send(RECEIVE, b"");
        },
    ];
    for (number, break_the_rules) in hostile.into_iter().enumerate() {
        client.write_all(b"x").unwrap();
        break_the_rules(&mut guest);
        wait_for("the device's end", || guest.unit.needs_reset());
        assert!(guest.unit.stats().broken.is_some(), "{number}");
        guest.unit.stop();
        guest.start();
    }
    // Ports that are not there, events that are none, the same again and again: no answer grows.
    for round in 0..200 {
        guest.send(CONTROL_TRANSMIT, &[1, 0, 0, 0, 3, 0, 1, 0]);
        guest.say(0xffff, 1);
        guest.say(READY, 1);
        wait_for("the messages", || {
            guest.used(CONTROL_TRANSMIT) == 3 * (round + 1)
        });
    }
    guest.unit.stop();
    guest.start();
    guest.open();
    assert_eq!(guest.hear(), (OPEN, 1, vec![]));
}
