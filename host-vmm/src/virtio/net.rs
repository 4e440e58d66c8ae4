//! The network device: frames between a guest and a [`Net`].
//!
//! Queue 0 has empty buffers for what comes, queue 1 what is to be sent. Before each frame stands a header that speaks of work
//! left to the other side; none is offered here, so it is zeros. A frame that comes while the driver has no buffer waits,
//! and those behind it wait in the back end, which loses what it has no room for, as a wire does.

use std::os::fd::RawFd;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;

use super::queue::{Chain, Io, QUEUE_MAX, QueueError};
use super::{CONFIG_MAX, Device};
use crate::net::{FRAME_MAX, Net};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
/// Where it has the number of buffers of a frame.
const BUFFERS: usize = 10;

/// The device.
#[derive(Debug)]
pub struct NetDevice {
    net: Net,
    /// The other side is gone.
    gone: bool,
    /// A header, and behind it a frame: what comes, and what is sent.
    incoming: Box<[u8; HEADER + FRAME_MAX]>,
    outgoing: Box<[u8; FRAME_MAX]>,
    /// Bytes of the frame that waits for a buffer.
    waiting: Option<usize>,
}

impl NetDevice {
    /// A device that is connected to `net`.
    #[must_use]
    pub fn new(net: Net) -> Self {
        let mut incoming = Box::new([0; HEADER + FRAME_MAX]);
        incoming[BUFFERS] = 1;
        Self {
            net,
            gone: false,
            incoming,
            outgoing: Box::new([0; FRAME_MAX]),
            waiting: None,
        }
    }

    /// Sends the frame of one request.
    fn send(&mut self, chain: &mut Chain<'_>) -> Result<u32, QueueError> {
        let mut header = [0; HEADER];
        chain.take(&mut header)?;
        let length = chain.readable_bytes();
        // One that is too long is lost.
        if let Some(frame) = self.outgoing.get_mut(..length) {
            chain.take(frame)?;
            self.gone |= self.net.send(frame).is_err();
        }
        Ok(0)
    }

    /// Whether a frame waits; takes the next one from the back end where none does.
    fn next(&mut self) -> Option<usize> {
        if self.waiting.is_none() && !self.gone {
            let frame = self.incoming.last_chunk_mut()?;
            match self.net.receive(frame) {
                Ok(length) => self.waiting = length,
                Err(_) => self.gone = true,
            }
        }
        self.waiting
    }

    /// Gives the driver what has come, as far as it has buffers; no more than a turn.
    fn receive(&mut self, io: &mut Io<'_>) -> Result<(), QueueError> {
        for _ in 0..QUEUE_MAX {
            let Some(length) = self.next() else {
                return io.flush(RECEIVE);
            };
            let packet = &self.incoming[..HEADER + length];
            let given = io.one(RECEIVE, |chain| {
                if chain.fill(packet) < packet.len() {
                    return Err(chain.too_short());
                }
                Ok(u32::try_from(packet.len()).unwrap_or(0))
            })?;
            if !given {
                return io.flush(RECEIVE);
            }
            self.waiting = None;
        }
        io.again(RECEIVE);
        io.flush(RECEIVE)
    }
}

impl Device for NetDevice {
    fn kind(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> &'static str {
        "net"
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
    }

    fn queues(&self) -> usize {
        2
    }

    /// `struct virtio_net_config`: the address is all that it has.
    fn config(&self) -> [u8; CONFIG_MAX] {
        let mut config = [0; CONFIG_MAX];
        config[..6].copy_from_slice(&self.net.mac());
        config
    }

    fn begin(&mut self, _features: u64) {
        self.waiting = None;
    }

    fn backend(&self) -> Option<RawFd> {
        Some(self.net.fd())
    }

    fn serve(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), QueueError> {
        match queue {
            TRANSMIT => io.each(TRANSMIT, |chain| self.send(chain)),
            _ => self.receive(io),
        }
    }

    fn serve_backend(&mut self, io: &mut Io<'_>) -> Result<(), QueueError> {
        self.receive(io)
    }
}
