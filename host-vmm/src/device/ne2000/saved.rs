//! The card's state in a snapshot: registers, memory, and a frame that waits for room. Whom the guest was connected with is not in it.

use serde::{Deserialize, Serialize};

use super::{Chip, Ne2000, Registers};
use crate::snapshot::{PartError, Saved, State, from_state, to_state};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SavedCard {
    registers: Registers,
    ram: Vec<u8>,
    held: Option<Vec<u8>>,
}

impl Chip {
    fn restore(&mut self, saved: SavedCard) -> Result<(), PartError> {
        if saved.ram.len() != self.ram.len() {
            return Err(PartError::because("its card has another memory"));
        }
        self.ram.copy_from_slice(&saved.ram);
        if let Some(frame) = &saved.held {
            let room = self.frame.get_mut(..frame.len());
            let room = room.ok_or_else(|| PartError::because("its card has too long a frame"))?;
            room.copy_from_slice(frame);
        }
        self.held = saved.held.map(|frame| frame.len());
        self.registers = saved.registers;
        Ok(())
    }
}

impl Saved for Ne2000 {
    fn save(&self) -> Result<State, PartError> {
        let chip = self.chip();
        to_state(&SavedCard {
            registers: chip.registers.clone(),
            ram: chip.ram.to_vec(),
            held: chip.held.map(|length| chip.frame[..length].to_vec()),
        })
    }

    fn restore(&self, state: State) -> Result<(), PartError> {
        self.chip().restore(from_state(state)?)
    }

    /// The line is not in KVM's state.
    fn go_on(&self) {
        self.chip().assert_line();
    }
}
