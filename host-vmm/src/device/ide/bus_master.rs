//! Data straight between disk and guest memory: the bus master of a channel.
//!
//! The guest writes a table of regions of its memory, tells where it is and which way the data go, gives a command to the
//! disk, and starts the master. Table, addresses and lengths are the guest's word: what is not guest memory ends the
//! transfer with an error.
//!
//! Source: Programming Interface for Bus Master IDE Controller, revision 1.0.

use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::transfer::{Transfer, Way};
use super::{Channel, Outcome, READ_DMA, READ_DMA_EXT, WRITE_DMA, WRITE_DMA_EXT, error, status};
use crate::disk::{SECTOR, SEGMENTS_MAX, Segments};

/// Command register: run; from disk to memory.
const START: u8 = 0x01;
const TO_MEMORY: u8 = 0x08;
/// Status register: the master runs; it has failed; the disk's interrupt has come.
const ACTIVE: u8 = 0x01;
const FAILED: u8 = 0x02;
const INTERRUPT: u8 = 0x04;
/// Status register: what software notes about the disks.
const CAPABLE: u8 = 0x60;

const COMMAND: u16 = 0;
const STATUS: u16 = 2;
const TABLE: u16 = 4;

/// Entries of a table, which fills at most 64 KiB.
const ENTRIES_MAX: u32 = 0x1_0000 / 8;
/// In an entry's second word: it is the last one.
const LAST: u32 = 1 << 31;

/// The registers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BusMaster {
    command: u8,
    status: u8,
    table: u32,
}

impl BusMaster {
    pub(super) fn note_interrupt(&mut self) {
        self.status |= INTERRUPT;
    }

    /// Bytes from `register` on; those that lie behind the last one stay as they are.
    pub(super) fn read(&self, register: u16, data: &mut [u8]) {
        let mut bytes = [0; 8];
        bytes[usize::from(COMMAND)] = self.command;
        bytes[usize::from(STATUS)] = self.status;
        bytes[usize::from(TABLE)..].copy_from_slice(&self.table.to_le_bytes());
        for (byte, value) in data.iter_mut().zip(&bytes[usize::from(register)..]) {
            *byte = *value;
        }
    }
}

impl Channel {
    pub(super) fn write_bus_master(&mut self, register: u16, data: &[u8]) {
        match (register, data) {
            (COMMAND, [value]) => {
                self.bus_master.command = value & (START | TO_MEMORY);
                if value & START == 0 {
                    self.bus_master.status &= !ACTIVE;
                } else if self.bus_master.status & ACTIVE == 0 {
                    self.bus_master.status |= ACTIVE;
                    self.run_dma();
                }
            }
            (STATUS, [value]) => {
                let master = &mut self.bus_master;
                let cleared = value & (FAILED | INTERRUPT);
                master.status = master.status & !(cleared | CAPABLE) | value & CAPABLE;
            }
            (TABLE, &[a, b, c, d]) => {
                self.bus_master.table = u32::from_le_bytes([a, b, c, d]) & !3;
            }
            _ => {}
        }
    }

    pub(super) fn begin_dma(&mut self, command: u8) -> Outcome {
        let way = match command {
            READ_DMA | 0xc9 | READ_DMA_EXT => Way::In,
            _ => Way::Out,
        };
        debug_assert!(way == Way::In || [WRITE_DMA, 0xcb, WRITE_DMA_EXT].contains(&command));
        let range = self.range(command)?;
        if way == Way::Out && self.drive().is_none_or(|drive| drive.disk.is_read_only()) {
            return Err(error::ABORTED);
        }
        self.transfer = Some(Transfer::direct(way, range));
        self.error = 0;
        self.status = status::READY | status::SEEK_COMPLETE | status::DRQ;
        if self.bus_master.status & ACTIVE != 0 {
            self.run_dma();
        }
        Ok(())
    }

    /// Both the disk and the master are ready, or one of them still waits for the other.
    fn run_dma(&mut self) {
        let Some(transfer) = self.transfer.take_if(|transfer| transfer.is_direct()) else {
            return;
        };
        let outcome = self.carry_out(&transfer);
        // That the disk could not is for the disk to say.
        if outcome.is_err_and(|bits| bits != error::UNCORRECTABLE) {
            self.bus_master.status |= FAILED;
        }
        self.bus_master.status &= !ACTIVE;
        self.end(outcome);
    }

    fn carry_out(&self, transfer: &Transfer) -> Outcome {
        let master = &self.bus_master;
        // Both sides have to mean the same direction.
        if (master.command & TO_MEMORY != 0) != (transfer.way == Way::In) {
            return Err(error::ABORTED);
        }
        let drive = self.drives[self.selected()].as_ref();
        let disk = &drive.ok_or(error::ABORTED)?.disk;
        let mut at = transfer.sector * SECTOR;
        let mut left = transfer.left * SECTOR;
        let mut segments = Segments::default();
        let mut count = 0;
        for index in 0..ENTRIES_MAX {
            let entry = u64::from(master.table) + 8 * u64::from(index);
            let [address, word]: [u32; 2] =
                self.memory.read_obj(entry).map_err(|_| error::ABORTED)?;
            let length = match u64::from(word & 0xfffe) {
                0 => 0x1_0000,
                length => length,
            };
            // What the last region has too much is not touched.
            let length = usize::try_from(length.min(left)).map_err(|_| error::ABORTED)?;
            let region = self
                .memory
                .mmap()
                .get_slice(GuestAddress(address.into()), length);
            let pushed = segments.push(region.map_err(|_| error::ABORTED)?);
            pushed.map_err(|_| error::ABORTED)?;
            count += 1;
            left -= length as u64;
            if left == 0 || count == SEGMENTS_MAX {
                let bytes = segments.bytes();
                let all = std::mem::take(&mut segments);
                let done = match transfer.way {
                    Way::In => disk.read(at, all),
                    Way::Out => disk.write(at, all),
                };
                done.map_err(|_| error::UNCORRECTABLE)?;
                at += bytes;
                count = 0;
            }
            if left == 0 {
                return Ok(());
            }
            if word & LAST != 0 {
                break;
            }
        }
        // The table has room for less than the command asked for.
        Err(error::ABORTED)
    }
}
