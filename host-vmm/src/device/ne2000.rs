//! The network card of a legacy PC: an NE2000 on the PCI bus, as Realtek's RTL8029.
//!
//! # How it works
//!
//! The card has 32 KiB of memory that only it can reach. A frame to be sent is put there through the data port (*remote DMA*:
//! an exit for each access, or for each page of a string instruction), and then one register sends it. Received frames lie in
//! a ring of 256-byte pages, each with a header of four bytes; the guest fetches them through the data port again, and moves
//! the boundary on.
//!
//! Received frames are put into the ring as long as there is room; the others wait on the host, as if the wire were longer.
//!
//! Source: National Semiconductor DP8390D data sheet; Realtek RTL8029AS data sheet.

mod saved;
#[cfg(test)]
mod tests;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::pci::{Function, Pci, Slot};
use crate::net::{FRAME_MAX, Net};
use crate::sync::lock;

/// The interrupt line.
pub const IRQ: u8 = 11;

const BAR: usize = 0;
const BASE: u16 = 0xc020;
const PORTS: u16 = 32;
/// From here to the end of them: the data port, and behind it the reset port.
const DATA: u16 = 0x10;
const RESET: u16 = 0x18;

/// Where the card's memory begins and ends, in its own address space; before it is the PROM with the card's address.
const RAM: usize = 0x4000;
const RAM_END: usize = 0xc000;
const PAGE: usize = 256;
const PROM: usize = 32;
/// How many frames of the host's are looked at while the guest waits.
const TURN: usize = 256;
/// In the PROM: this card transfers words.
const WORD_WIDE: u8 = 0x57;

/// Command register.
mod command {
    pub(super) const STOP: u8 = 0x01;
    pub(super) const START: u8 = 0x02;
    pub(super) const TRANSMIT: u8 = 0x04;
    pub(super) const REMOTE: u8 = 0x38;
    pub(super) const REMOTE_READ: u8 = 0x08;
    pub(super) const REMOTE_WRITE: u8 = 0x10;
    pub(super) const ABORT: u8 = 0x20;
}

/// Interrupt status register.
mod interrupt {
    pub(super) const RECEIVED: u8 = 0x01;
    pub(super) const TRANSMITTED: u8 = 0x02;
    pub(super) const REMOTE_DONE: u8 = 0x40;
    pub(super) const RESET: u8 = 0x80;
}

/// Receive configuration register: broadcasts, multicasts, everything; check only.
const BROADCAST: u8 = 0x04;
const MULTICAST: u8 = 0x08;
const PROMISCUOUS: u8 = 0x10;
const MONITOR: u8 = 0x20;
/// Receive status register: intact; to a group.
const INTACT: u8 = 0x01;
const TO_GROUP: u8 = 0x20;
/// Transmit status register: sent.
const SENT: u8 = 0x01;
/// Transmit configuration register: what is sent comes back.
const LOOPBACK: u8 = 0x06;
/// Data configuration register: words.
const WORDS: u8 = 0x01;

/// Least bytes of a frame, without its check sum.
const FRAME_MIN: usize = 60;
/// Bytes of a frame's header in the ring, and of the check sum behind it.
const HEADER: usize = 4;
const CHECK_SUM: usize = 4;

/// The card's registers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    command: u8,
    /// It has been started, and not stopped.
    running: bool,
    /// First page of the ring and first page behind it.
    start: u8,
    stop: u8,
    /// The page before the first one that the guest has not read, and the one that the next frame goes to.
    boundary: u8,
    current: u8,
    transmit_page: u8,
    transmit_status: u8,
    transmit_count: u16,
    remote_address: u16,
    remote_count: u16,
    status: u8,
    mask: u8,
    receive: u8,
    receive_status: u8,
    transmit: u8,
    data: u8,
    address: [u8; 6],
    groups: [u8; 8],
}

/// The card's registers and memory.
#[derive(Debug)]
struct Chip {
    registers: Registers,
    prom: [u8; PROM],
    ram: Box<[u8; RAM_END - RAM]>,
    irq: EventFd,
    /// KVM tells by it that an interrupt has ended, and the card that it has had its turn.
    ended: Arc<EventFd>,
    /// More may wait than the last turn has seen.
    has_more: bool,
    net: Net,
    /// A frame that has found no room, and its length.
    held: Option<usize>,
    frame: Box<[u8; FRAME_MAX]>,
    /// The network has gone.
    gone: bool,
}

impl Chip {
    fn new(net: Net, irq: EventFd, ended: Arc<EventFd>) -> Self {
        let mut prom = [WORD_WIDE; PROM];
        // Each byte twice, as a word-wide card has it.
        for (pair, byte) in prom.chunks_exact_mut(2).zip(net.mac()) {
            pair.fill(byte);
        }
        Self {
            registers: Registers {
                command: command::STOP | command::ABORT,
                status: interrupt::RESET,
                ..Registers::default()
            },
            prom,
            ram: Box::new([0; RAM_END - RAM]),
            irq,
            ended,
            has_more: false,
            net,
            held: None,
            frame: Box::new([0; FRAME_MAX]),
            gone: false,
        }
    }

    fn reset(&mut self) {
        self.registers.command = command::STOP | command::ABORT;
        self.registers.running = false;
        self.registers.remote_count = 0;
        self.registers.status = interrupt::RESET;
        self.registers.mask = 0;
    }

    fn is_asserted(&self) -> bool {
        self.registers.status & self.registers.mask & !interrupt::RESET != 0
    }

    /// Changes the interrupt registers.
    fn interrupts(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.is_asserted();
        change(self);
        if !before {
            self.assert_line();
        }
    }

    /// The line is a level that KVM takes back when the guest ends the interrupt ([`Ne2000::resample`]).
    fn assert_line(&self) {
        if self.is_asserted() {
            // One that cannot be raised is one that the guest does not get.
            let _ = self.irq.write(1);
        }
    }

    fn page(&self) -> u8 {
        self.registers.command >> 6
    }

    fn write(&mut self, register: u16, value: u8) {
        let index = usize::from(register);
        match (self.page(), register) {
            (_, 0) => self.write_command(value),
            (0, 0x1) => self.registers.start = value,
            (0, 0x2) => self.registers.stop = value,
            (0, 0x3) => {
                self.registers.boundary = value;
                if self.held.is_some() {
                    self.deliver();
                }
            }
            (0, 0x4) => self.registers.transmit_page = value,
            (0, 0x5) => set_low(&mut self.registers.transmit_count, value),
            (0, 0x6) => set_high(&mut self.registers.transmit_count, value),
            (0, 0x7) => self.acknowledge(value),
            (0, 0x8) => set_low(&mut self.registers.remote_address, value),
            (0, 0x9) => set_high(&mut self.registers.remote_address, value),
            (0, 0xa) => set_low(&mut self.registers.remote_count, value),
            (0, 0xb) => set_high(&mut self.registers.remote_count, value),
            (0, 0xc) => self.registers.receive = value,
            (0, 0xd) => self.registers.transmit = value,
            (0, 0xe) => self.registers.data = value,
            (0, 0xf) => self.interrupts(|chip| chip.registers.mask = value),
            (1, 0x1..=0x6) => self.registers.address[index - 1] = value,
            (1, 0x7) => self.registers.current = value,
            (1, 0x8..=0xf) => self.registers.groups[index - 8] = value,
            _ => {}
        }
    }

    fn read(&self, register: u16) -> u8 {
        let index = usize::from(register);
        let [remote_low, remote_high] = self.registers.remote_address.to_le_bytes();
        match (self.page(), register) {
            (_, 0) => self.registers.command,
            (0, 0x3) => self.registers.boundary,
            (0, 0x4) => self.registers.transmit_status,
            (0, 0x7) => self.registers.status,
            (0, 0x8) => remote_low,
            (0, 0x9) => remote_high,
            // What tells an RTL8029.
            (0, 0xa) => b'P',
            (0, 0xb) => b'C',
            (0, 0xc) => self.registers.receive_status,
            (1, 0x1..=0x6) => self.registers.address[index - 1],
            (1, 0x7) => self.registers.current,
            (1, 0x8..=0xf) => self.registers.groups[index - 8],
            (2, 0x1) => self.registers.start,
            (2, 0x2) => self.registers.stop,
            (2, 0x4) => self.registers.transmit_page,
            (2, 0xc) => self.registers.receive,
            (2, 0xd) => self.registers.transmit,
            (2, 0xe) => self.registers.data,
            (2, 0xf) => self.registers.mask,
            // Collisions and errors: there are none.
            _ => 0,
        }
    }

    /// The guest has seen these interrupts. Linux's driver says so of received frames after it has fetched some of them, so a
    /// chip that took it at its word would keep the others until the next one comes.
    fn acknowledge(&mut self, seen: u8) {
        self.interrupts(|chip| chip.registers.status &= !(seen & !interrupt::RESET));
        let next = self.registers.boundary.wrapping_add(1);
        let first = if next == self.registers.stop {
            self.registers.start
        } else {
            next
        };
        if seen & interrupt::RECEIVED != 0
            && self.registers.running
            && (self.held.is_some() || first != self.registers.current)
        {
            self.interrupts(|chip| chip.registers.status |= interrupt::RECEIVED);
        }
    }

    fn write_command(&mut self, value: u8) {
        self.registers.command = value & !command::TRANSMIT;
        if value & command::STOP != 0 {
            self.registers.running = false;
            self.interrupts(|chip| chip.registers.status |= interrupt::RESET);
            return;
        }
        // A command without either bit, as Linux's to change the page, leaves a card that runs running.
        let starts = value & command::START != 0 && !self.registers.running;
        self.registers.running |= starts;
        if !self.registers.running {
            return;
        }
        self.interrupts(|chip| chip.registers.status &= !interrupt::RESET);
        let is_remote = value & command::REMOTE != 0 && value & command::ABORT == 0;
        if is_remote && self.registers.remote_count == 0 {
            self.interrupts(|chip| chip.registers.status |= interrupt::REMOTE_DONE);
        }
        if value & command::TRANSMIT != 0 {
            self.send();
        }
        if starts {
            self.deliver();
        }
    }

    /// Sends what lies at the transmit page.
    fn send(&mut self) {
        let from = usize::from(self.registers.transmit_page) * PAGE;
        let to = from + usize::from(self.registers.transmit_count);
        if self.registers.transmit & LOOPBACK == 0
            && let Some(frame) = from
                .checked_sub(RAM)
                .and_then(|at| self.ram.get(at..to - RAM))
            && !self.gone
        {
            self.gone = self.net.send(frame).is_err();
        }
        self.registers.transmit_status = SENT;
        self.interrupts(|chip| chip.registers.status |= interrupt::TRANSMITTED);
    }

    /// The byte at an address of the card's own; what is neither PROM nor memory reads as all ones.
    fn byte(&self, address: u16) -> u8 {
        let at = usize::from(address);
        let ram = at.checked_sub(RAM).and_then(|at| self.ram.get(at));
        *self.prom.get(at).or(ram).unwrap_or(&0xff)
    }

    fn set_byte(&mut self, address: u16, value: u8) {
        let at = usize::from(address).checked_sub(RAM);
        if let Some(byte) = at.and_then(|at| self.ram.get_mut(at)) {
            *byte = value;
        }
    }

    /// How many bytes of the card an access of `length` moves: a byte of a word-wide card is half of a word.
    fn stride(&self, length: usize) -> u16 {
        if self.registers.data & WORDS != 0 && length == 1 {
            2
        } else {
            1
        }
    }

    /// The remote address moves on; in the ring it goes from the end to the beginning.
    fn advance(&mut self, bytes: u16) {
        self.registers.remote_address = self.registers.remote_address.wrapping_add(bytes);
        if self.registers.remote_address == u16::from(self.registers.stop) << 8 {
            self.registers.remote_address = u16::from(self.registers.start) << 8;
        }
        self.registers.remote_count = self.registers.remote_count.saturating_sub(bytes);
        if self.registers.remote_count == 0 {
            self.interrupts(|chip| chip.registers.status |= interrupt::REMOTE_DONE);
        }
    }

    fn read_data(&mut self, data: &mut [u8]) {
        let stride = self.stride(data.len());
        for byte in data {
            if self.registers.command & command::REMOTE != command::REMOTE_READ
                || self.registers.remote_count == 0
            {
                return;
            }
            *byte = self.byte(self.registers.remote_address);
            self.advance(stride);
        }
    }

    fn write_data(&mut self, data: &[u8]) {
        let stride = self.stride(data.len());
        for byte in data {
            if self.registers.command & command::REMOTE != command::REMOTE_WRITE
                || self.registers.remote_count == 0
            {
                return;
            }
            self.set_byte(self.registers.remote_address, *byte);
            self.advance(stride);
        }
    }

    /// Whether the guest wants this frame; then the status that it gets.
    fn wants(&self, frame: &[u8]) -> Option<u8> {
        let to: &[u8; 6] = frame.first_chunk()?;
        if self.registers.receive & MONITOR != 0 {
            return None;
        }
        let is_group = to[0] & 1 != 0;
        let wanted = self.registers.receive & PROMISCUOUS != 0
            || match (to, is_group) {
                ([0xff, 0xff, 0xff, 0xff, 0xff, 0xff], _) => {
                    self.registers.receive & BROADCAST != 0
                }
                (_, true) => {
                    let bit = group(to);
                    let set = self.registers.groups[usize::from(bit >> 3)] >> (bit & 7) & 1 != 0;
                    self.registers.receive & MULTICAST != 0 && set
                }
                (to, false) => *to == self.registers.address,
            };
        let status = INTACT | if is_group { TO_GROUP } else { 0 };
        wanted.then_some(status)
    }

    /// Puts the frames that wait on the host into the ring, as far as there is room; no more than a turn.
    fn deliver(&mut self) {
        self.has_more = false;
        for _ in 0..TURN {
            if !self.registers.running || self.gone {
                return;
            }
            let length = match self.held.take() {
                Some(length) => length,
                None => match self.net.receive(&mut self.frame) {
                    Ok(Some(length)) => length,
                    Ok(None) => return,
                    Err(_) => {
                        self.gone = true;
                        return;
                    }
                },
            };
            let Some(status) = self.wants(&self.frame[..length]) else {
                continue;
            };
            if !self.put(length, status) {
                self.held = Some(length);
                return;
            }
        }
        self.has_more = true;
        // A counter that is full has told it.
        let _ = self.ended.write(1);
    }

    /// Puts the frame into the ring; false: there is no room.
    fn put(&mut self, length: usize, status: u8) -> bool {
        let (start, stop) = (
            usize::from(self.registers.start),
            usize::from(self.registers.stop),
        );
        let (current, boundary) = (
            usize::from(self.registers.current),
            usize::from(self.registers.boundary),
        );
        let ring = start..stop;
        let in_ram = start * PAGE >= RAM && stop * PAGE <= RAM_END;
        if !in_ram || !ring.contains(&current) {
            // A ring that makes no sense has no room.
            return false;
        }
        let padded = length.max(FRAME_MIN);
        let total = HEADER + padded + CHECK_SUM;
        let pages = total.div_ceil(PAGE);
        let size = stop - start;
        // Linux's boundary before the first page of the ring is the page before it, and not the ring's last one.
        let free = match boundary.checked_sub(current) {
            None | Some(0) => size.saturating_sub(current - boundary),
            Some(free) => free,
        };
        // The page at the boundary stays free: a full ring is not an empty one.
        if pages >= free {
            return false;
        }
        let next = start + (current - start + pages) % size;
        self.frame[length..padded].fill(0);
        // Pages have a byte, and a frame is short.
        let count = u16::try_from(padded + CHECK_SUM).unwrap_or(0).to_le_bytes();
        let header = [status, u8::try_from(next).unwrap_or(0), count[0], count[1]];
        let bytes = header.iter().chain(&self.frame[..padded]);
        let mut at = current * PAGE - RAM;
        for byte in bytes {
            self.ram[at] = *byte;
            at += 1;
            if at == stop * PAGE - RAM {
                at = start * PAGE - RAM;
            }
        }
        self.registers.current = header[1];
        self.registers.receive_status = status;
        self.interrupts(|chip| chip.registers.status |= interrupt::RECEIVED);
        true
    }
}

fn set_low(register: &mut u16, value: u8) {
    *register = *register & 0xff00 | u16::from(value);
}

fn set_high(register: &mut u16, value: u8) {
    *register = *register & 0x00ff | u16::from(value) << 8;
}

/// Which bit of the group registers an address is: the upper six of its check sum.
fn group(address: &[u8; 6]) -> u8 {
    let mut sum = u32::MAX;
    for byte in address {
        for bit in 0..8 {
            let carry = sum >> 31 != u32::from(byte >> bit & 1);
            sum <<= 1;
            if carry {
                sum ^= 0x04c1_1db7;
            }
        }
    }
    sum.to_be_bytes()[0] >> 2
}

/// The card.
#[derive(Debug)]
pub struct Ne2000 {
    chip: Mutex<Chip>,
    ended: Arc<EventFd>,
}

impl Ne2000 {
    /// A card on `net`, which raises `irq`; KVM tells by `ended` that it has taken that back.
    #[must_use]
    pub fn new(net: Net, irq: EventFd, ended: EventFd) -> Self {
        let ended = Arc::new(ended);
        let chip = Mutex::new(Chip::new(net, irq, Arc::clone(&ended)));
        Self { chip, ended }
    }

    fn chip(&self) -> MutexGuard<'_, Chip> {
        // A device whose thread panicked is in some state that a device may be in: the guest's problem.
        lock(&self.chip)
    }

    /// What it is on the PCI bus.
    #[must_use]
    pub fn function(&self) -> (Slot, Function) {
        let function = Function::new(0x10ec, 0x8029, 0x02_00_00)
            .with_ports(BAR, BASE, PORTS)
            .with_interrupt(IRQ);
        (Slot::NETWORK, function)
    }

    /// Becomes readable when the guest has ended an interrupt, or a turn has left frames: time for [`Ne2000::resample`].
    #[must_use]
    pub fn ended_fd(&self) -> RawFd {
        self.ended.as_raw_fd()
    }

    /// Asserts the line again, if there is still a reason. Whether it is time for [`Ne2000::deliver`].
    pub fn resample(&self) -> bool {
        // Emptied so that the next end is told, too; nothing to do on failure.
        let _ = self.ended.read();
        let chip = self.chip();
        chip.assert_line();
        chip.has_more
    }

    /// Becomes readable when there are frames for [`Ne2000::deliver`].
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.chip().net.fd()
    }

    /// Puts the frames that wait on the host into the card, as far as there is room; the guest's reading brings the others.
    pub fn deliver(&self) {
        self.chip().deliver();
    }

    /// A write; whether the port is one of the card's.
    pub fn write(&self, pci: &Pci, port: u16, data: &[u8]) -> bool {
        let Some(offset) = pci.claims(Slot::NETWORK, BAR, PORTS, port) else {
            return false;
        };
        match (offset, data) {
            (DATA..RESET, _) => self.chip().write_data(data),
            (RESET.., _) => self.chip().reset(),
            (register, [value]) => self.chip().write(register, *value),
            _ => {}
        }
        true
    }

    /// A read into `data`, which is all ones already; whether the port is one of the card's.
    pub fn read(&self, pci: &Pci, port: u16, data: &mut [u8]) -> bool {
        let Some(offset) = pci.claims(Slot::NETWORK, BAR, PORTS, port) else {
            return false;
        };
        match (offset, data) {
            (DATA..RESET, data) => self.chip().read_data(data),
            (RESET.., _) => self.chip().reset(),
            (register, [value]) => *value = self.chip().read(register),
            _ => {}
        }
        true
    }
}
