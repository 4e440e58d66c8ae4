//! The IDE controller of a legacy PC: two channels of up to two disks, as in Intel's PIIX3.
//!
//! # How it works
//!
//! A channel is the eight *command block* registers, one *control block* register and an interrupt line. The driver
//! writes parameters, then a command; data pass through a register, two or four bytes an access and an exit each on the
//! way to the disk ([`transfer`]), or straight between disk and guest memory ([`bus_master`]). A kernel that finds the
//! PCI function takes the latter; Linux's `libata.dma=0` has it take the former.
//!
//! The work is done while the vCPU waits in its exit, so that BSY is hardly ever seen. What a real disk would do
//! meanwhile, the guest cannot: that, too, is full virtualization.
//!
//! # What a guest may rely on
//!
//! The disks have a write cache: what has been written is in the host's page cache, FLUSH CACHE brings it to the host's disk.
//!
//! Source: ATA/ATAPI-6 (T13/1410D); Intel 82371SB (PIIX3), chapter 2.5.

mod bus_master;
mod identify;
mod saved;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use self::bus_master::BusMaster;
use self::transfer::{BLOCK_MAX, Transfer};
use super::pci::{Function, Pci, Slot};
use crate::disk::Disk;
use crate::memory::Memory;
use crate::sync::lock;

/// Disks of one controller.
pub const DISKS_MAX: usize = 4;
/// Interrupt lines of the channels.
pub const IRQS: [u32; 2] = [14, 15];

/// The base address register of the bus master's ports, where they are at first, and how many there are.
const BUS_MASTER_BAR: usize = 4;
const BUS_MASTER_BASE: u16 = 0xc000;
const BUS_MASTER_PORTS: u16 = 16;
/// First command block register, and the control block register, of each channel.
const COMMAND_BLOCKS: [u16; 2] = [0x1f0, 0x170];
const CONTROL_BLOCKS: [u16; 2] = [0x3f6, 0x376];
/// The PIIX3's timing registers, a word a channel; what a guest times does not matter.
const TIMING: usize = 0x40;
/// Timing register, upper byte: the channel is decoded.
const DECODED: u8 = 0x80;

/// Registers of the command block.
mod register {
    pub(super) const DATA: u16 = 0;
    /// Read: error. Written: features.
    pub(super) const ERROR: u16 = 1;
    pub(super) const LBA_HIGH: u16 = 5;
    pub(super) const DEVICE: u16 = 6;
    /// Read: status. Written: command.
    pub(super) const STATUS: u16 = 7;
}

/// Status register.
mod status {
    pub(super) const ERR: u8 = 0x01;
    pub(super) const DRQ: u8 = 0x08;
    pub(super) const SEEK_COMPLETE: u8 = 0x10;
    pub(super) const FAULT: u8 = 0x20;
    pub(super) const READY: u8 = 0x40;
    pub(super) const BUSY: u8 = 0x80;
}

/// Error register.
mod error {
    /// After a diagnostic: passed.
    pub(super) const PASSED: u8 = 0x01;
    pub(super) const ABORTED: u8 = 0x04;
    pub(super) const NOT_FOUND: u8 = 0x10;
    pub(super) const UNCORRECTABLE: u8 = 0x40;
}

/// Control register: no interrupts; the channel is in reset; the registers read what was written before last.
const NO_INTERRUPT: u8 = 0x02;
const RESET: u8 = 0x04;
const READ_PREVIOUS: u8 = 0x80;
/// Device register: the second disk; the address is in sectors.
const SECOND: u8 = 0x10;
const LBA: u8 = 0x40;

const READ_SECTORS: u8 = 0x20;
const READ_SECTORS_EXT: u8 = 0x24;
const READ_DMA_EXT: u8 = 0x25;
const READ_MULTIPLE_EXT: u8 = 0x29;
const WRITE_SECTORS: u8 = 0x30;
const WRITE_SECTORS_EXT: u8 = 0x34;
const WRITE_DMA_EXT: u8 = 0x35;
const WRITE_MULTIPLE_EXT: u8 = 0x39;
const READ_VERIFY: u8 = 0x40;
const READ_VERIFY_EXT: u8 = 0x42;
const DIAGNOSE: u8 = 0x90;
const READ_MULTIPLE: u8 = 0xc4;
const WRITE_MULTIPLE: u8 = 0xc5;
const SET_MULTIPLE: u8 = 0xc6;
const READ_DMA: u8 = 0xc8;
const WRITE_DMA: u8 = 0xca;
const STANDBY_NOW: u8 = 0xe0;
const IDLE_NOW: u8 = 0xe1;
const STANDBY: u8 = 0xe2;
const IDLE: u8 = 0xe3;
const CHECK_POWER: u8 = 0xe5;
const FLUSH: u8 = 0xe7;
const FLUSH_EXT: u8 = 0xea;
const IDENTIFY: u8 = 0xec;
const SET_FEATURES: u8 = 0xef;

/// Features that can be set: write cache on, transfer mode, read look-ahead on.
const WRITE_CACHE_ON: u8 = 0x02;
const TRANSFER_MODE: u8 = 0x03;
const LOOK_AHEAD_ON: u8 = 0xaa;
/// CHECK POWER: the disk is active.
const ACTIVE: u8 = 0xff;

/// The bytes of the parameter registers, the previous ones for 48-bit commands included.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct TaskFile {
    /// Features, count, and the address's three bytes: what was written last, and before that.
    now: [u8; 5],
    previous: [u8; 5],
    device: u8,
}

impl TaskFile {
    fn write(&mut self, register: u16, value: u8) {
        let index = usize::from(register - register::ERROR);
        self.previous[index] = self.now[index];
        self.now[index] = value;
    }

    /// After a reset: that of a disk.
    fn signature() -> Self {
        Self {
            now: [0, 1, 1, 0, 0],
            ..Self::default()
        }
    }

    /// First sector and number of sectors.
    fn range(&self, is_48_bit: bool) -> (u64, u64) {
        let [_, count, low, middle, high] = self.now;
        let [_, count_before, low_before, middle_before, high_before] = self.previous;
        let (address, count, most) = if is_48_bit {
            let before = [low_before, middle_before, high_before, 0, 0];
            let [b0, b1, b2, ..] = before;
            let address = u64::from_le_bytes([low, middle, high, b0, b1, b2, 0, 0]);
            (
                address,
                u64::from(count_before) << 8 | u64::from(count),
                1 << 16,
            )
        } else {
            let top = self.device & 0x0f;
            let address = u64::from_le_bytes([low, middle, high, top, 0, 0, 0, 0]);
            (address, u64::from(count), 1 << 8)
        };
        (address, if count == 0 { most } else { count })
    }
}

/// A disk of a channel.
#[derive(Debug)]
struct Drive {
    disk: Disk,
    /// Its number, for its name.
    number: usize,
    /// Sectors of a block of READ and WRITE MULTIPLE; 0: not set.
    multiple: u8,
    /// What SET FEATURES has chosen: a mode of multiword DMA.
    dma_mode: u8,
}

/// One channel.
#[derive(Debug)]
struct Channel {
    drives: [Option<Drive>; 2],
    registers: TaskFile,
    status: u8,
    error: u8,
    control: u8,
    transfer: Option<Transfer>,
    block: Box<[u8; BLOCK_MAX]>,
    bus_master: BusMaster,
    irq: EventFd,
    /// The drive asks for an interrupt.
    interrupts: bool,
    memory: Memory,
}

/// How a command ends that needs no data, or why it cannot begin: bits of the error register.
type Outcome = Result<(), u8>;

impl Channel {
    fn new(drives: [Option<Drive>; 2], irq: EventFd, memory: Memory) -> Self {
        let mut channel = Self {
            drives,
            registers: TaskFile::default(),
            status: 0,
            error: 0,
            control: 0,
            transfer: None,
            block: Box::new([0; BLOCK_MAX]),
            bus_master: BusMaster::default(),
            irq,
            interrupts: false,
            memory,
        };
        channel.reset();
        channel
    }

    fn is_empty(&self) -> bool {
        self.drives.iter().all(Option::is_none)
    }

    /// Which disk the device register means.
    fn selected(&self) -> usize {
        usize::from(self.registers.device & SECOND != 0)
    }

    fn drive(&mut self) -> Option<&mut Drive> {
        self.drives[self.selected()].as_mut()
    }

    fn reset(&mut self) {
        self.registers = TaskFile::signature();
        self.status = status::READY | status::SEEK_COMPLETE;
        self.error = error::PASSED;
        self.transfer = None;
        self.interrupts = false;
        for drive in self.drives.iter_mut().flatten() {
            drive.multiple = 0;
        }
    }

    /// The drive asks for an interrupt. The line is edge-triggered, and an interrupt that cannot be raised is one that
    /// the guest does not get.
    fn interrupt(&mut self) {
        let rises = !self.interrupts;
        self.interrupts = true;
        if rises {
            self.raise();
        }
    }

    fn raise(&mut self) {
        if self.control & NO_INTERRUPT == 0 {
            self.bus_master.note_interrupt();
            let _ = self.irq.write(1);
        }
    }

    fn write(&mut self, register: u16, value: u8) {
        if self.control & RESET != 0 {
            return;
        }
        match register {
            register::ERROR..=register::LBA_HIGH => self.registers.write(register, value),
            register::DEVICE => self.registers.device = value,
            register::STATUS => self.command(value),
            _ => {}
        }
    }

    fn write_control(&mut self, value: u8) {
        let before = std::mem::replace(&mut self.control, value);
        if value & RESET != 0 {
            self.interrupts = false;
            self.transfer = None;
            self.status = status::BUSY;
        } else if before & RESET != 0 {
            self.reset();
        } else if before & NO_INTERRUPT != 0 && self.interrupts {
            self.raise();
        }
    }

    fn read(&mut self, register: u16) -> u8 {
        // A disk that is not there answers nothing; the other one pulls the lines down for it.
        if self.drive().is_none() {
            return 0;
        }
        match register {
            register::ERROR => self.error,
            register::DEVICE => self.registers.device,
            register::STATUS => {
                self.interrupts = false;
                self.status
            }
            _ => {
                let index = usize::from(register - register::ERROR);
                let registers = &self.registers;
                match self.control & READ_PREVIOUS {
                    0 => registers.now[index],
                    _ => registers.previous[index],
                }
            }
        }
    }

    fn alternate_status(&mut self) -> u8 {
        if self.drive().is_none() {
            return 0;
        }
        self.status
    }

    /// The end of a command: status, then the interrupt.
    fn end(&mut self, outcome: Outcome) {
        self.transfer = None;
        self.status = status::READY | status::SEEK_COMPLETE;
        self.error = 0;
        if let Err(bits) = outcome {
            self.error = bits;
            self.status |= status::ERR;
            if bits & error::UNCORRECTABLE != 0 {
                self.status |= status::FAULT;
            }
        }
        self.interrupt();
    }

    fn command(&mut self, command: u8) {
        self.interrupts = false;
        if command == DIAGNOSE {
            // For both disks, whichever is selected.
            self.reset();
            self.interrupt();
            return;
        }
        if self.drive().is_none() {
            return;
        }
        let outcome = match command {
            IDENTIFY => self.identify(),
            READ_SECTORS | 0x21 | READ_MULTIPLE | READ_SECTORS_EXT | READ_MULTIPLE_EXT => {
                self.begin_read(command)
            }
            WRITE_SECTORS | 0x31 | WRITE_MULTIPLE | WRITE_SECTORS_EXT | WRITE_MULTIPLE_EXT => {
                self.begin_write(command)
            }
            READ_DMA | 0xc9 | READ_DMA_EXT | WRITE_DMA | 0xcb | WRITE_DMA_EXT => {
                self.begin_dma(command)
            }
            _ => {
                let outcome = self.without_data(command);
                self.end(outcome);
                return;
            }
        };
        if let Err(bits) = outcome {
            self.end(Err(bits));
        }
    }

    /// First sector and number of sectors of a command, if they are on the disk.
    fn range(&self, command: u8) -> Result<(u64, u64), u8> {
        let is_48_bit = matches!(
            command,
            READ_SECTORS_EXT
                | READ_MULTIPLE_EXT
                | READ_DMA_EXT
                | READ_VERIFY_EXT
                | WRITE_SECTORS_EXT
                | WRITE_MULTIPLE_EXT
                | WRITE_DMA_EXT
        );
        // Addresses by cylinder and head are of a time before this controller's.
        if self.registers.device & LBA == 0 {
            return Err(error::ABORTED);
        }
        let (first, count) = self.registers.range(is_48_bit);
        let drive = self.drives[self.selected()].as_ref();
        match drive {
            Some(drive) if first + count <= drive.disk.sectors() => Ok((first, count)),
            _ => Err(error::NOT_FOUND),
        }
    }

    /// A command that moves no data.
    fn without_data(&mut self, command: u8) -> Outcome {
        let [features, count, ..] = self.registers.now;
        if matches!(command, READ_VERIFY | 0x41 | READ_VERIFY_EXT) {
            return self.range(command).map(|_| ());
        }
        if command == CHECK_POWER {
            self.registers.now[1] = ACTIVE;
            return Ok(());
        }
        let drive = self.drive().ok_or(error::ABORTED)?;
        match command {
            SET_MULTIPLE
                if count <= transfer::MULTIPLE_MAX && (count == 0 || count.is_power_of_two()) =>
            {
                drive.multiple = count;
                Ok(())
            }
            // A disk that forgot what it had promised must not say so lightly.
            FLUSH | FLUSH_EXT if drive.disk.is_read_only() => Ok(()),
            FLUSH | FLUSH_EXT => drive.disk.flush().map_err(|_| error::UNCORRECTABLE),
            SET_FEATURES => match (features, count) {
                (WRITE_CACHE_ON | LOOK_AHEAD_ON, _) => Ok(()),
                // Programmed I/O of any speed; multiword DMA, modes 0 to 2.
                (TRANSFER_MODE, 0..0x10) => Ok(()),
                (TRANSFER_MODE, 0x20..=0x22) => {
                    drive.dma_mode = count & 7;
                    Ok(())
                }
                _ => Err(error::ABORTED),
            },
            // Power is the host's matter, and so is where a head stands.
            STANDBY_NOW | IDLE_NOW | STANDBY | IDLE | 0x10..=0x1f => Ok(()),
            _ => Err(error::ABORTED),
        }
    }
}

/// The controller.
#[derive(Debug)]
pub struct Ide {
    channels: [Mutex<Channel>; 2],
    /// Whether a channel has a disk: its ports are decoded.
    decoded: [bool; 2],
}

impl Ide {
    /// A controller of at most [`DISKS_MAX`] `disks`, which raises `irqs`.
    #[must_use]
    pub fn new(disks: Vec<Disk>, irqs: [EventFd; 2], memory: &Memory) -> Self {
        let mut drives = disks.into_iter().enumerate().map(|(number, disk)| Drive {
            disk,
            number,
            multiple: 0,
            dma_mode: 2,
        });
        let channels = irqs.map(|irq| {
            let two = [drives.next(), drives.next()];
            Mutex::new(Channel::new(two, irq, memory.clone()))
        });
        let decoded = [0, 1].map(|index: usize| !lock(&channels[index]).is_empty());
        Self { channels, decoded }
    }

    /// What it is on the PCI bus: a function of the bridge to the ISA bus, where its command blocks are.
    #[must_use]
    pub fn functions(&self) -> [(Slot, Function); 2] {
        let bridge = Function::new(0x8086, 0x7000, 0x06_01_00).first_of_several();
        let timing = self.decoded.map(|is| if is { DECODED } else { 0 });
        let ide = Function::new(0x8086, 0x7010, 0x01_01_80)
            .with_ports(BUS_MASTER_BAR, BUS_MASTER_BASE, BUS_MASTER_PORTS)
            .with_registers(TIMING, &[0, timing[0], 0, timing[1], 0]);
        [(Slot::ISA_BRIDGE, bridge), (Slot::IDE, ide)]
    }

    fn channel(&self, index: usize) -> MutexGuard<'_, Channel> {
        lock(&self.channels[index])
    }

    /// Which channel's command block a port is in, and which register it is.
    fn command_block(&self, port: u16) -> Option<(usize, u16)> {
        let find = |base: &u16| (*base..*base + 8).contains(&port);
        let index = COMMAND_BLOCKS.iter().position(find)?;
        self.decoded[index].then(|| (index, port - COMMAND_BLOCKS[index]))
    }

    fn control_block(&self, port: u16) -> Option<usize> {
        let index = CONTROL_BLOCKS.iter().position(|base| *base == port)?;
        self.decoded[index].then_some(index)
    }

    /// Which channel's bus master a port belongs to, and which of its registers it is.
    fn bus_master(pci: &Pci, port: u16) -> Option<(usize, u16)> {
        let offset = pci.claims(Slot::IDE, BUS_MASTER_BAR, BUS_MASTER_PORTS, port)?;
        Some((usize::from(offset >= 8), offset % 8))
    }

    /// A write; whether the port is one of the controller's.
    pub fn write(&self, pci: &Pci, port: u16, data: &[u8]) -> bool {
        if let Some((index, register)) = self.command_block(port) {
            match (register, data) {
                (register::DATA, _) => self.channel(index).write_data(data),
                (_, [value]) => self.channel(index).write(register, *value),
                _ => {}
            }
        } else if let Some(index) = self.control_block(port) {
            if let [value] = *data {
                self.channel(index).write_control(value);
            }
        } else if let Some((index, register)) = Self::bus_master(pci, port) {
            self.channel(index).write_bus_master(register, data);
        } else {
            return false;
        }
        true
    }

    /// A read into `data`, which is all ones already; whether the port is one of the controller's.
    pub fn read(&self, pci: &Pci, port: u16, data: &mut [u8]) -> bool {
        if let Some((index, register)) = self.command_block(port) {
            match (register, data) {
                (register::DATA, data) => self.channel(index).read_data(data),
                (_, [value]) => *value = self.channel(index).read(register),
                _ => {}
            }
        } else if let Some(index) = self.control_block(port) {
            if let [value] = data {
                *value = self.channel(index).alternate_status();
            }
        } else if let Some((index, register)) = Self::bus_master(pci, port) {
            self.channel(index).bus_master.read(register, data);
        } else {
            return false;
        }
        true
    }
}
