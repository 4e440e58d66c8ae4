//! The network device of the host's kernel: vhost-net moves frames between the driver's queues and a TAP device, and this
//! process is not on their way.
//!
//! The doorbells are eventfds that KVM rings and vhost-net waits for; the interrupt is one that vhost-net writes and KVM
//! turns into an interrupt. What the kernel does is counted as this process's time.

use std::fmt;
use std::io;
use std::sync::Arc;

use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Io, QUEUE_MAX, QueueError, QueueSetup};
use super::{COMMON_FEATURES, CONFIG_MAX, Device, Lent, Server};
use crate::memory::Memory;
use crate::net::{self, NetError};

const QUEUES: usize = 2;
/// vhost-net takes away and puts on the header before each frame, as the TAP device has none.
const VHOST_NET_F_VIRTIO_NET_HDR: u64 = 1 << 27;

/// The device.
pub struct VhostNet {
    kernel: Net<Arc<GuestMemoryMmap>>,
    /// Its TAP device.
    tap: net::Net,
    features: u64,
    is_owner: bool,
    /// Where the kernel goes on in each queue.
    next: [u16; QUEUES],
    /// The kernel says here that a driver has broken the rules.
    error: EventFd,
}

impl fmt::Debug for VhostNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostNet")
            .field("tap", &self.tap)
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

impl VhostNet {
    /// A device on a TAP device, for a guest with this memory.
    ///
    /// # Errors
    ///
    /// [`NetError::Kernel`].
    pub fn new(tap: net::Net, memory: &Memory) -> Result<Self, NetError> {
        let refused = |error| NetError::Kernel(failed(error));
        let kernel = Net::new(Arc::new(memory.mmap().clone())).map_err(refused)?;
        Ok(Self {
            features: kernel.get_features().map_err(refused)?,
            kernel,
            tap,
            is_owner: false,
            next: [0; QUEUES],
            error: EventFd::new(libc::EFD_NONBLOCK).map_err(NetError::Kernel)?,
        })
    }

    fn prepare(&mut self, lent: &Lent<'_>) -> vhost::Result<()> {
        if !self.is_owner {
            self.kernel.set_owner()?;
            self.is_owner = true;
        }
        let agreed = lent.features & COMMON_FEATURES;
        self.kernel
            .set_features(agreed | VHOST_NET_F_VIRTIO_NET_HDR)?;
        let regions = lent.memory.iter().map(|region| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            ..Default::default()
        });
        self.kernel.set_mem_table(&regions.collect::<Vec<_>>())?;
        for (index, (setup, doorbell)) in lent.queues.iter().zip(lent.doorbells).enumerate() {
            self.kernel.set_vring_num(index, setup.size)?;
            self.kernel
                .set_vring_base(index, self.next.get(index).copied().unwrap_or(0))?;
            self.kernel.set_vring_addr(index, &rings(setup))?;
            self.kernel.set_vring_call(index, lent.interrupt)?;
            self.kernel.set_vring_err(index, &self.error)?;
            self.kernel.set_vring_kick(index, doorbell)?;
        }
        for index in 0..QUEUES {
            self.kernel.set_backend(index, self.tap.tap())?;
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

impl Server for VhostNet {
    fn begin(&mut self, lent: &Lent<'_>) -> io::Result<()> {
        self.prepare(lent).map_err(failed)
    }

    fn end(&mut self, _lent: &Lent<'_>) -> io::Result<()> {
        for (index, next) in self.next.iter_mut().enumerate() {
            self.kernel.set_backend(index, None).map_err(failed)?;
            let base = self.kernel.get_vring_base(index).map_err(failed)?;
            // An index of 16 bits.
            *next = u16::try_from(base & 0xffff).unwrap_or(0);
        }
        Ok(())
    }
}

impl Device for VhostNet {
    fn kind(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> &'static str {
        "net"
    }

    fn common_features(&self) -> u64 {
        COMMON_FEATURES & self.features
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
    }

    fn queues(&self) -> usize {
        QUEUES
    }

    fn config(&self) -> [u8; CONFIG_MAX] {
        let mut config = [0; CONFIG_MAX];
        config[..6].copy_from_slice(&self.tap.mac());
        config
    }

    fn begin(&mut self, _features: u64) {
        self.next = [0; QUEUES];
        let _ = self.error.read();
    }

    fn backend(&self) -> Option<std::os::fd::RawFd> {
        Some(std::os::fd::AsRawFd::as_raw_fd(&self.error))
    }

    fn server(&mut self) -> Option<&mut dyn Server> {
        Some(self)
    }

    fn serve(&mut self, _queue: usize, _io: &mut Io<'_>) -> Result<(), QueueError> {
        Ok(())
    }
}
