//! The controller's state in a snapshot: registers, and a transfer that is under way.

use serde::{Deserialize, Serialize};

use super::bus_master::BusMaster;
use super::transfer::{MULTIPLE_MAX, Transfer};
use super::{Channel, Ide, TaskFile, lock};
use crate::snapshot::{PartError, Saved, State, from_state, to_state};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SavedChannel {
    registers: TaskFile,
    status: u8,
    error: u8,
    control: u8,
    transfer: Option<Transfer>,
    /// The block that the guest takes or gives.
    block: Vec<u8>,
    bus_master: BusMaster,
    interrupts: bool,
    /// What has been set of each disk: sectors of a block, and the mode of DMA.
    drives: [Option<(u8, u8)>; 2],
}

impl Channel {
    fn save(&self) -> SavedChannel {
        let drive = |index: usize| {
            let drive = self.drives[index].as_ref()?;
            Some((drive.multiple, drive.dma_mode))
        };
        let through = self.transfer.as_ref().filter(|t| !t.is_direct());
        SavedChannel {
            registers: self.registers,
            status: self.status,
            error: self.error,
            control: self.control,
            transfer: self.transfer.clone(),
            block: through.map_or_else(Vec::new, |_| self.block.to_vec()),
            bus_master: self.bus_master.clone(),
            interrupts: self.interrupts,
            drives: [0, 1].map(drive),
        }
    }

    fn restore(&mut self, saved: SavedChannel) -> Result<(), PartError> {
        self.registers = saved.registers;
        let disk = self.drives[self.selected()].as_ref().map(|d| &d.disk);
        let sectors = disk.map_or(0, crate::disk::Disk::sectors);
        if saved
            .transfer
            .as_ref()
            .is_some_and(|t| !t.is_sound(sectors))
        {
            return Err(PartError::because("an IDE transfer is not on its disk"));
        }
        let block = self.block.get_mut(..saved.block.len());
        let block = block.ok_or_else(|| PartError::because("an IDE block is too long"))?;
        block.copy_from_slice(&saved.block);
        for (here, saved) in self.drives.iter_mut().zip(saved.drives) {
            match (here, saved) {
                (Some(drive), Some((multiple, dma_mode))) if multiple <= MULTIPLE_MAX => {
                    drive.multiple = multiple;
                    drive.dma_mode = dma_mode;
                }
                (None, None) => {}
                _ => return Err(PartError::because("an IDE channel has other disks")),
            }
        }
        self.status = saved.status;
        self.error = saved.error;
        self.control = saved.control;
        self.transfer = saved.transfer;
        self.bus_master = saved.bus_master;
        self.interrupts = saved.interrupts;
        Ok(())
    }
}

impl Saved for Ide {
    fn save(&self) -> Result<State, PartError> {
        to_state(&[0, 1].map(|index| self.channel(index).save()))
    }

    fn restore(&self, state: State) -> Result<(), PartError> {
        let saved: [SavedChannel; 2] = from_state(state)?;
        let mut channels = self.channels.iter().zip(saved);
        channels.try_for_each(|(channel, saved)| lock(channel).restore(saved))
    }

    /// The last edge may have been under way to KVM's interrupt controller when that was saved. One too many harms nobody.
    fn go_on(&self) {
        for channel in &self.channels {
            let mut channel = lock(channel);
            if channel.interrupts {
                channel.raise();
            }
        }
    }
}
