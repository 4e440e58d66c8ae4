//! The network device of the host's kernel: vhost-net moves frames between the driver's queues and a TAP device.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;
use vm_memory::GuestMemoryMmap;

use super::{Kernel, QUEUES, failed};
use crate::memory::Memory;
use crate::net::{self, NetError};
use crate::virtio::{CONFIG_MAX, Device, Lent, Server};

/// vhost-net takes away and puts on the header before each frame, as the TAP device has none.
const VHOST_NET_F_VIRTIO_NET_HDR: u64 = 1 << 27;

/// The device.
#[derive(Debug)]
pub struct VhostNet {
    kernel: Kernel<Net<Arc<GuestMemoryMmap>>>,
    /// Its TAP device.
    tap: net::Net,
}

impl VhostNet {
    /// A device on a TAP device, for a guest with this memory.
    ///
    /// # Errors
    ///
    /// [`NetError::Kernel`].
    pub fn new(tap: net::Net, memory: &Memory) -> Result<Self, NetError> {
        let device = Net::new(Arc::new(memory.mmap().clone())).map_err(failed);
        let kernel = device.and_then(Kernel::new).map_err(NetError::Kernel)?;
        Ok(Self { kernel, tap })
    }
}

impl Server for VhostNet {
    fn begin(&mut self, lent: &Lent<'_>) -> io::Result<()> {
        let lend = self.kernel.lend(lent, VHOST_NET_F_VIRTIO_NET_HDR);
        lend.map_err(failed)?;
        for index in 0..QUEUES {
            let set = self.kernel.device.set_backend(index, self.tap.tap());
            set.map_err(failed)?;
        }
        Ok(())
    }

    fn end(&mut self, _lent: &Lent<'_>) -> io::Result<()> {
        for index in 0..QUEUES {
            let set = self.kernel.device.set_backend(index, None);
            set.map_err(failed)?;
        }
        self.kernel.take_back().map_err(failed)
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
        self.kernel.common_features()
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
        self.kernel.begin();
    }

    fn backend(&self) -> Option<RawFd> {
        Some(self.kernel.error())
    }

    fn server(&mut self) -> Option<&mut dyn Server> {
        Some(self)
    }
}
