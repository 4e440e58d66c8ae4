//! Data through the data register: programmed I/O, a block at a time.
//!
//! The disk fills or empties a block; DRQ says that the guest may take or give it, the interrupt that it may look. A block
//! is a sector, or for the MULTIPLE commands as many as SET MULTIPLE said.

use serde::{Deserialize, Serialize};

use super::{
    Channel, Outcome, READ_MULTIPLE, READ_MULTIPLE_EXT, WRITE_MULTIPLE, WRITE_MULTIPLE_EXT, error,
    identify, status,
};
use crate::disk::SECTOR;

/// The most sectors of a block.
pub(super) const MULTIPLE_MAX: u8 = 16;
/// The most bytes of a block.
pub(super) const BLOCK_MAX: usize = 0x2000;

const _: () = assert!(BLOCK_MAX as u64 == MULTIPLE_MAX as u64 * SECTOR);

/// Where the data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum Way {
    /// To the guest.
    In,
    /// To the disk.
    Out,
}

/// A command whose data are under way.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Transfer {
    pub(super) way: Way,
    /// The next sector that is to be read or written, and how many are left from there.
    pub(super) sector: u64,
    pub(super) left: u64,
    /// Most sectors of a block.
    block: u64,
    /// The block in the buffer: how far the guest has come, and where it ends.
    position: usize,
    end: usize,
}

impl Transfer {
    /// One that does not pass through the data register.
    pub(super) fn direct(way: Way, (sector, left): (u64, u64)) -> Self {
        Self {
            way,
            sector,
            left,
            block: 0,
            position: 0,
            end: 0,
        }
    }

    /// Whether the data do not pass through the data register.
    pub(super) fn is_direct(&self) -> bool {
        self.block == 0
    }

    /// Whether the data register takes part, and which way.
    fn is_through(&self, way: Way) -> bool {
        !self.is_direct() && self.way == way
    }

    /// Whether this can be a transfer of a disk of so many sectors.
    pub(super) fn is_sound(&self, sectors: u64) -> bool {
        let is_in_block = self.position <= self.end && self.end <= BLOCK_MAX;
        let end = self.sector.checked_add(self.left);
        is_in_block
            && self.block <= u64::from(MULTIPLE_MAX)
            && end.is_some_and(|end| end <= sectors)
            && (self.way == Way::In || self.end as u64 <= self.left * SECTOR)
    }

    /// Begins the next block.
    fn next_block(&mut self) {
        let sectors = self.left.min(self.block);
        self.position = 0;
        // At most BLOCK_MAX.
        self.end = usize::try_from(sectors * SECTOR).unwrap_or(0);
    }

    /// The sectors of the block are done with.
    fn advance(&mut self) {
        let sectors = self.end as u64 / SECTOR;
        self.sector += sectors;
        self.left -= sectors;
    }
}

impl Channel {
    /// Sectors of a block of `command`.
    fn block_of(&mut self, command: u8) -> Result<u64, u8> {
        let multiple = [
            READ_MULTIPLE,
            READ_MULTIPLE_EXT,
            WRITE_MULTIPLE,
            WRITE_MULTIPLE_EXT,
        ];
        match self.drive() {
            Some(drive) if multiple.contains(&command) => match drive.multiple {
                0 => Err(error::ABORTED),
                sectors => Ok(u64::from(sectors)),
            },
            _ => Ok(1),
        }
    }

    /// The block that the guest may take or give.
    fn offer(&mut self) {
        self.error = 0;
        self.status = status::READY | status::SEEK_COMPLETE | status::DRQ;
    }

    pub(super) fn identify(&mut self) -> Outcome {
        let words = identify::words(self.drive().ok_or(error::ABORTED)?);
        for (bytes, word) in self.block.chunks_exact_mut(2).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        self.transfer = Some(Transfer {
            block: 1,
            end: 2 * words.len(),
            ..Transfer::direct(Way::In, (0, 0))
        });
        self.offer();
        self.interrupt();
        Ok(())
    }

    pub(super) fn begin_read(&mut self, command: u8) -> Outcome {
        let block = self.block_of(command)?;
        let mut transfer = Transfer {
            block,
            ..Transfer::direct(Way::In, self.range(command)?)
        };
        self.read_block(&mut transfer)?;
        self.transfer = Some(transfer);
        Ok(())
    }

    fn read_block(&mut self, transfer: &mut Transfer) -> Outcome {
        transfer.next_block();
        let selected = self.selected();
        let drive = self.drives[selected].as_ref().ok_or(error::ABORTED)?;
        let into = &mut self.block[..transfer.end];
        let read = drive.disk.read_bytes(transfer.sector * SECTOR, into);
        read.map_err(|_| error::UNCORRECTABLE)?;
        transfer.advance();
        self.offer();
        self.interrupt();
        Ok(())
    }

    pub(super) fn begin_write(&mut self, command: u8) -> Outcome {
        let block = self.block_of(command)?;
        let range = self.range(command)?;
        if self.drive().is_none_or(|drive| drive.disk.is_read_only()) {
            return Err(error::ABORTED);
        }
        let mut transfer = Transfer {
            block,
            ..Transfer::direct(Way::Out, range)
        };
        transfer.next_block();
        self.transfer = Some(transfer);
        // The first block is asked for without an interrupt.
        self.offer();
        Ok(())
    }

    fn write_block(&mut self, transfer: &mut Transfer) -> Outcome {
        let selected = self.selected();
        let drive = self.drives[selected].as_ref().ok_or(error::ABORTED)?;
        let from = &self.block[..transfer.end];
        let written = drive.disk.write_bytes(transfer.sector * SECTOR, from);
        written.map_err(|_| error::UNCORRECTABLE)?;
        transfer.advance();
        if transfer.left > 0 {
            transfer.next_block();
            self.offer();
            self.interrupt();
        }
        Ok(())
    }

    /// The guest takes bytes; without a block to take from they stay all ones.
    pub(super) fn read_data(&mut self, data: &mut [u8]) {
        let mut rest = data;
        while !rest.is_empty() {
            let Some(mut transfer) = self.transfer.take_if(|t| t.is_through(Way::In)) else {
                return;
            };
            let there = &self.block[transfer.position..transfer.end];
            let count = there.len().min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&there[..count]);
            rest = later;
            transfer.position += count;
            if transfer.position < transfer.end {
                self.transfer = Some(transfer);
            } else if transfer.left == 0 {
                // The last block needs no interrupt.
                self.status &= !status::DRQ;
            } else {
                match self.read_block(&mut transfer) {
                    Ok(()) => self.transfer = Some(transfer),
                    Err(bits) => self.end(Err(bits)),
                }
            }
        }
    }

    /// The guest gives bytes; without a block to fill they are lost.
    pub(super) fn write_data(&mut self, data: &[u8]) {
        let mut rest = data;
        while !rest.is_empty() {
            let Some(mut transfer) = self.transfer.take_if(|t| t.is_through(Way::Out)) else {
                return;
            };
            let room = &mut self.block[transfer.position..transfer.end];
            let count = room.len().min(rest.len());
            room[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            transfer.position += count;
            if transfer.position < transfer.end {
                self.transfer = Some(transfer);
                continue;
            }
            match self.write_block(&mut transfer) {
                Ok(()) if transfer.left > 0 => self.transfer = Some(transfer),
                outcome => self.end(outcome),
            }
        }
    }
}
