//! How much of its memory the guest is to use: facility mem, or virtio's balloon, whichever it has.

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::Machine;
use crate::pv::mem::MemoryUse;
use crate::virtio::balloon::{self, BalloonState};
use crate::virtio::unit::Unit;

impl Machine {
    /// What the guest says of its memory, where it has facility mem or a balloon.
    #[must_use]
    pub fn memory_use(&self) -> Option<MemoryUse> {
        let mem = self.mem.as_ref().map(|mem| mem.memory_use());
        mem.or_else(|| Some(self.balloon.as_ref()?.memory_use()))
    }

    /// Tells the guest to do with `mib` MiB of its memory, and to keep the rest from itself; it follows as far as it can. False
    /// where it has neither facility mem nor a balloon, or has not that much memory.
    #[must_use]
    pub fn set_memory_target(&self, mib: u64) -> bool {
        let Some(kept) = self.config.memory_mib.checked_sub(mib) else {
            return false;
        };
        let kept = kept << 20;
        if let Some(mem) = &self.mem {
            let event = mem.want(kept);
            event
                .iter()
                .flatten()
                .for_each(|target| self.raise(*target));
            return event.is_ok();
        }
        if let Some(balloon) = &self.balloon {
            balloon.want(kept);
            self.tell_balloon();
        }
        self.balloon.is_some()
    }

    /// The balloon's device, and what this VMM knows of it.
    fn balloon(&self) -> Option<(&Unit, &BalloonState)> {
        let dev = self.dev.iter().flat_map(|dev| dev.units());
        let mut units = self.virtio.units().chain(dev);
        let unit = units.find(|unit| unit.kind() == VIRTIO_ID_BALLOON)?;
        Some((unit, self.balloon.as_deref()?))
    }

    /// Tells the balloon's driver what is wanted of it.
    pub(super) fn tell_balloon(&self) {
        if let Some((unit, state)) = self.balloon() {
            unit.configure(balloon::WANTED, state.wanted_pages());
        }
    }

    /// Has the balloon's driver tell how the guest's memory is used, unless it stands still.
    pub fn ask_balloon(&self) {
        if let Some((unit, state)) = self.balloon()
            && !self.pause.is_wanted()
        {
            state.ask(unit);
        }
    }
}
