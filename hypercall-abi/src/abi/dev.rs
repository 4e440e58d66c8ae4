// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facility `dev`: virtio devices without a bus.
//!
//! # Background
//!
//! On a PC a kernel finds devices by scanning a bus, and sets each up by registers, an exit an
//! access. Here it reads a table, and says all that the device has to know in one call.
//!
//! # How it works
//!
//! [`DevInfo`] says where the table is. An entry has what a driver reads: kind, features,
//! configuration. `dev.start` names a [`DevStart`], with the features that the driver has chosen
//! and its queues. From then on the two share virtio's split queues, in guest memory. The doorbell
//! is a port of its own, so that a host can serve it without leaving its kernel; the way back is
//! an interrupt. `dev.stop` is virtio's reset.
//!
//! What a request looks like, and when a side has to tell the other, is virtio's.
//!
//! Spec: PV-DEV-1 to PV-DEV-13

/// Most devices. Spec: PV-DEV-1
pub const DEV_MAX: usize = 16;
/// Most queues of a device. Spec: PV-DEV-2
pub const DEV_QUEUES_MAX: usize = 4;
/// Bytes of a device's configuration.
pub const DEV_CONFIG_BYTES: usize = 64;
/// [`DevEntry::state`]: the driver has broken virtio's rules, and has to stop the device. Spec:
/// PV-DEV-12
pub const DEV_NEEDS_RESET: u32 = 1;
/// Where the queue's number begins in what is written to the doorbell; the device's number is
/// below. Spec: PV-DEV-8
pub const DEV_DOORBELL_QUEUE_SHIFT: u32 = 16;

/// The device part of the boot-info page. Writer: host. Spec: PV-DEV-1
#[cfg_attr(
    feature = "zerocopy",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DevInfo {
    /// Guest physical address of the table, page-aligned; nothing else is in that page.
    pub address: u64,
    /// Entries of the table.
    pub count: u32,
    /// Port of the doorbell, 0 to 0xffff.
    pub doorbell_port: u32,
}

/// A device. Writer: host. Spec: PV-DEV-2
#[cfg_attr(
    feature = "zerocopy",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DevEntry {
    /// Virtio's number for this type of device.
    pub kind: u32,
    /// Its queues.
    pub queues: u32,
    /// The most entries of a queue.
    pub queue_max: u32,
    /// [`DEV_NEEDS_RESET`], or zero.
    pub state: u32,
    /// Virtio's feature bits that the device offers.
    pub features: u64,
    /// Changes whenever `config` does.
    pub generation: u32,
    /// Zero.
    pub reserved: [u32; 9],
    /// Its configuration, as virtio's chapter of the device type has it; the rest is zero.
    pub config: [u8; DEV_CONFIG_BYTES],
}

/// A queue: where its three parts are. Spec: PV-DEV-6
#[cfg_attr(
    feature = "zerocopy",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DevQueue {
    /// Guest physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest physical address of the available ring.
    pub available: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
    /// Entries.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
}

/// What a device has to know before it begins. Writer: guest. Spec: PV-DEV-3
#[cfg_attr(
    feature = "zerocopy",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DevStart {
    /// The features that the driver has chosen.
    pub features: u64,
    /// Interrupt vector of the device's notifications; zero: none.
    pub vector: u32,
    /// APIC id of the processor that takes them.
    pub apic_id: u32,
    /// Its queues; those that it does not have are zero.
    pub queues: [DevQueue; DEV_QUEUES_MAX],
}

const _: () = {
    assert!(core::mem::size_of::<DevInfo>() == 16);
    assert!(core::mem::size_of::<DevEntry>() == 128);
    assert!(core::mem::offset_of!(DevEntry, features) == 16);
    assert!(core::mem::offset_of!(DevEntry, config) == 64);
    assert!(core::mem::size_of::<DevQueue>() == 32);
    assert!(core::mem::size_of::<DevStart>() == 144);
};

impl Default for DevEntry {
    fn default() -> Self {
        Self {
            kind: 0,
            queues: 0,
            queue_max: 0,
            state: 0,
            features: 0,
            generation: 0,
            reserved: [0; 9],
            config: [0; DEV_CONFIG_BYTES],
        }
    }
}
