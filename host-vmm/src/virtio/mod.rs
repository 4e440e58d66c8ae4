//! Virtio devices: requests in guest memory, a thread of the host's that serves them.
//!
//! # How it works
//!
//! Driver and device share *queues*, rings of descriptors in guest memory. The driver makes requests available there and
//! rings a doorbell, which KVM turns into a write to an eventfd: the vCPU does not come out to the VMM. The
//! device's thread ([`mod@unit`]) takes the requests ([`queue`]), carries them out, and raises one interrupt for
//! all that the driver has not seen. With event indices, each side says from where on it wants to be told.
//!
//! How a driver finds a device, agrees on features and says where the queues are is its *transport*:
//! [`mmio`] has registers, an exit each, for unmodified kernels; facility dev (`pv/dev`) has a table in memory and a call.
//!
//! Under load a thread can look at its queues by itself ([`poll`]), so that no doorbell is rung at all.
//!
//! A device may have a [`Server`] instead: the queues are then lent to the host's kernel ([`vhost`]), and the thread only
//! waits to take them back.
//!
//! # Whom it trusts
//!
//! Not the driver. Each descriptor is read once, and checked as a copy. A chain that has no end, leaves guest memory or has too many
//! parts ends the device's work: it *needs reset*, says so, and touches guest memory no more until the driver has reset it.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.3.

pub mod balloon;
pub mod block;
pub mod console;
pub mod mmio;
pub mod net;
pub mod poll;
pub mod queue;
pub mod rng;
pub mod unit;
pub mod vhost;

use std::fmt;
use std::io;
use std::os::fd::RawFd;

use virtio_bindings::bindings::{virtio_config, virtio_ring};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use self::queue::{Io, QueueError, QueueSetup};

/// Room for a device's configuration, bytes.
pub const CONFIG_MAX: usize = 64;
/// The most queues of one device.
pub const QUEUES_MAX: usize = 4;
/// The features of every device here: those of a modern one, event indices and indirect descriptors.
pub const COMMON_FEATURES: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1
    | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX
    | 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// What a device is, behind any transport.
pub trait Device: fmt::Debug + Send {
    /// Its number in virtio's registry.
    fn kind(&self) -> u32;

    /// Its name in statistics.
    fn name(&self) -> &'static str;

    /// Which of [`COMMON_FEATURES`] whoever serves it knows.
    fn common_features(&self) -> u64 {
        COMMON_FEATURES
    }

    /// Features of its own, beside these.
    fn features(&self) -> u64;

    /// How many queues it has, at most [`QUEUES_MAX`].
    fn queues(&self) -> usize;

    /// How many of them, the first, a driver that has agreed to these features has to set up.
    fn queues_needed(&self, _features: u64) -> usize {
        self.queues()
    }

    /// Its configuration, as the driver reads it first.
    fn config(&self) -> [u8; CONFIG_MAX];

    /// The driver has agreed to these features.
    fn begin(&mut self, _features: u64) {}

    /// Who serves its queues, where it is not the device's thread.
    fn server(&mut self) -> Option<&mut dyn Server> {
        None
    }

    /// What becomes readable when the host has something for the guest, or a server has found that the driver has broken the rules.
    fn backend(&self) -> Option<RawFd> {
        None
    }

    /// `queue` may have requests, where the device's thread serves it.
    ///
    /// # Errors
    ///
    /// The driver has not kept to the rules.
    fn serve(&mut self, _queue: usize, _io: &mut Io<'_>) -> Result<(), QueueError> {
        Ok(())
    }

    /// The backend may have something.
    ///
    /// # Errors
    ///
    /// The driver has not kept to the rules.
    fn serve_backend(&mut self, _io: &mut Io<'_>) -> Result<(), QueueError> {
        Ok(())
    }

    /// Waits until none of its requests is under way: guest memory stands still then.
    ///
    /// # Errors
    ///
    /// The rings cannot be reached; nothing is under way all the same.
    fn settle(&mut self, _io: &mut Io<'_>) -> Result<(), QueueError> {
        Ok(())
    }
}

/// What a server gets.
#[derive(Debug)]
pub struct Lent<'a> {
    /// Guest memory.
    pub memory: &'a GuestMemoryMmap,
    /// What the driver has agreed to.
    pub features: u64,
    /// All of the device's queues, which can be.
    pub queues: &'a [QueueSetup],
    /// The doorbell of each.
    pub doorbells: &'a [EventFd],
    /// A write to it interrupts the driver.
    pub interrupt: &'a EventFd,
}

/// Serves the queues of a device in place of its thread.
pub trait Server: fmt::Debug + Send {
    /// Begins, or goes on where it has ended.
    ///
    /// # Errors
    ///
    /// What the system says; then nothing has begun.
    fn begin(&mut self, lent: &Lent<'_>) -> io::Result<()>;

    /// Ends for now: once it has returned, guest memory stands still.
    ///
    /// # Errors
    ///
    /// What the system says; the device is then of no use any more.
    fn end(&mut self, lent: &Lent<'_>) -> io::Result<()>;
}

#[cfg(test)]
mod tests;
