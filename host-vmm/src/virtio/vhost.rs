//! Devices of the host's kernel: it serves the driver's queues, and this process is not on their way.
//!
//! The doorbells are eventfds that KVM rings and the kernel's device waits for; the interrupt is one that it writes and KVM
//! turns into an interrupt. What the kernel does is counted as this process's time.

pub mod net;
pub mod vsock;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{QUEUE_MAX, QueueSetup};
use super::{COMMON_FEATURES, Lent};

/// The queues that the kernel serves; a device's others are nobody's.
const QUEUES: usize = 2;

/// A device in the kernel, and where it stands.
struct Kernel<D> {
    device: D,
    /// What it knows.
    features: u64,
    is_owner: bool,
    /// Where it goes on in each queue.
    next: [u16; QUEUES],
    /// It says here that a driver has broken the rules.
    error: EventFd,
}

impl<D> fmt::Debug for Kernel<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("features", &self.features)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

fn failed(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::IoctlError(error) | vhost::Error::VhostOpen(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

impl<D: VhostBackend> Kernel<D> {
    fn new(device: D) -> io::Result<Self> {
        Ok(Self {
            features: device.get_features().map_err(failed)?,
            device,
            is_owner: false,
            next: [0; QUEUES],
            error: EventFd::new(libc::EFD_NONBLOCK)?,
        })
    }

    /// The driver has set up its queues anew.
    fn begin(&mut self) {
        self.next = [0; QUEUES];
        let _ = self.error.read();
    }

    fn error(&self) -> RawFd {
        self.error.as_raw_fd()
    }

    fn common_features(&self) -> u64 {
        COMMON_FEATURES & self.features
    }

    /// Tells the kernel all of the queues; `own`: what the device offers beside the common features, and what only the kernel knows of.
    fn lend(&mut self, lent: &Lent<'_>, own: u64) -> vhost::Result<()> {
        if !self.is_owner {
            self.device.set_owner()?;
            self.is_owner = true;
        }
        let agreed = lent.features & COMMON_FEATURES;
        self.device.set_features(agreed | own)?;
        let regions = lent.memory.iter().map(|region| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            ..Default::default()
        });
        self.device.set_mem_table(&regions.collect::<Vec<_>>())?;
        let queues = lent.queues.iter().zip(lent.doorbells).zip(self.next);
        for (index, ((setup, doorbell), next)) in queues.enumerate() {
            self.device.set_vring_num(index, setup.size)?;
            self.device.set_vring_base(index, next)?;
            self.device.set_vring_addr(index, &rings(setup))?;
            self.device.set_vring_call(index, lent.interrupt)?;
            self.device.set_vring_err(index, &self.error)?;
            self.device.set_vring_kick(index, doorbell)?;
        }
        Ok(())
    }

    /// Learns where a device that has stopped goes on.
    fn take_back(&mut self) -> vhost::Result<()> {
        for (index, next) in self.next.iter_mut().enumerate() {
            let base = self.device.get_vring_base(index)?;
            // An index of 16 bits.
            *next = u16::try_from(base & 0xffff).unwrap_or(0);
        }
        Ok(())
    }
}

fn rings(setup: &QueueSetup) -> VringConfigData {
    VringConfigData {
        queue_max_size: QUEUE_MAX,
        queue_size: setup.size,
        flags: 0,
        desc_table_addr: setup.descriptors,
        used_ring_addr: setup.used,
        avail_ring_addr: setup.available,
        log_addr: None,
    }
}
