//! The entropy device: random numbers of the host's kernel, as many as the driver has room for.

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::queue::{Chain, Io, QueueError};
use super::{CONFIG_MAX, Device};

/// The most bytes of one request: a driver that has room for more asks again.
const PIECE: usize = 1024;

/// The device.
#[derive(Debug, Default)]
pub struct Rng;

impl Rng {
    fn request(chain: &Chain<'_>) -> Result<u32, QueueError> {
        if chain.writable().is_empty() {
            return Err(chain.too_short());
        }
        let mut bytes = [0; PIECE];
        // The kernel's generator does not fail once it is seeded. If it did, the driver would get nothing.
        let room = match getrandom::fill(&mut bytes) {
            Ok(()) => &bytes[..],
            Err(_) => &[],
        };
        Ok(u32::try_from(chain.fill(room)).unwrap_or(0))
    }
}

impl Device for Rng {
    fn kind(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &'static str {
        "rng"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> usize {
        1
    }

    fn config(&self) -> [u8; CONFIG_MAX] {
        [0; CONFIG_MAX]
    }

    fn serve(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), QueueError> {
        io.each(queue, |chain| Self::request(chain))
    }
}
