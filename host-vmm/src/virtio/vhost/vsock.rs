//! The socket device: vhost-vsock connects programs of the guest with programs of this host, by an address (CID) for each
//! machine and a port, without a network.
//!
//! The kernel serves what is received and what is sent. The third queue would tell the driver that its machine has
//! another address than before, which happens to none here.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use vhost::vhost_kern::vsock::Vsock;
use vhost::vsock::VhostVsock as _;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::GuestMemoryMmap;

use super::{Kernel, failed};
use crate::memory::Memory;
use crate::virtio::{CONFIG_MAX, Device, Lent, Server};

/// Addresses that a guest can have: those below are the hypervisor's, a machine's own and the host's, and the one above is anybody's.
pub const CIDS: std::ops::RangeInclusive<i64> = 3..=0xffff_fffe;
/// What is received, what is sent, and events.
const QUEUES: usize = 3;

/// Why there are no sockets to the host.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The kernel's device cannot be had.
    #[error(
        "the kernel's socket device, /dev/vhost-vsock, cannot be used: {0}; it is the module vhost_vsock (`modprobe vhost_vsock`) \
         and opens to root and the group kvm"
    )]
    Kernel(io::Error),
    /// The address cannot be had.
    #[error(
        "the address {cid} cannot be had: {reason}; give each guest of this host its own (--vsock)"
    )]
    Cid {
        /// The address.
        cid: u32,
        /// What the system says.
        reason: io::Error,
    },
}

/// The device.
#[derive(Debug)]
pub struct VhostVsock {
    kernel: Kernel<Vsock<Arc<GuestMemoryMmap>>>,
    cid: u32,
}

impl VhostVsock {
    /// A device with the address `cid`, for a guest with this memory.
    ///
    /// # Errors
    ///
    /// [`VsockError`].
    pub fn new(cid: u32, memory: &Memory) -> Result<Self, VsockError> {
        let device = Vsock::new(Arc::new(memory.mmap().clone())).map_err(failed);
        let kernel = device.and_then(Kernel::new).map_err(VsockError::Kernel)?;
        let set = kernel.device.set_guest_cid(cid.into()).map_err(failed);
        set.map_err(|reason| VsockError::Cid { cid, reason })?;
        Ok(Self { kernel, cid })
    }
}

impl Server for VhostVsock {
    fn begin(&mut self, lent: &Lent<'_>) -> io::Result<()> {
        let started = self.kernel.lend(lent, 0);
        started
            .and_then(|()| self.kernel.device.start())
            .map_err(failed)
    }

    fn end(&mut self, _lent: &Lent<'_>) -> io::Result<()> {
        let stopped = self.kernel.device.stop();
        stopped
            .and_then(|()| self.kernel.take_back())
            .map_err(failed)
    }
}

impl Device for VhostVsock {
    fn kind(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn name(&self) -> &'static str {
        "vsock"
    }

    fn common_features(&self) -> u64 {
        self.kernel.common_features()
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> usize {
        QUEUES
    }

    /// `struct virtio_vsock_config`.
    fn config(&self) -> [u8; CONFIG_MAX] {
        let mut config = [0; CONFIG_MAX];
        config[..8].copy_from_slice(&u64::from(self.cid).to_le_bytes());
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
