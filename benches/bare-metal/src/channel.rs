//! What a driver domain and the VMM that starts it share: the one file that both compile.
//!
//! The domain's memory has a page of parameters and a *channel* for each device that it serves, with the device's queues.
//! The memory of the guest that it serves lies at `WINDOW`.

/// Interrupt descriptor table. Writer: domain.
pub const IDT: u64 = 0x3e_0000;
/// Its length and address, as LIDT takes them. Writer: domain.
pub const IDTR: u64 = 0x3e_e000;
/// The word in which KVM says that an interrupt needs no end. Writers: KVM, domain.
pub const NO_EOI: u64 = 0x3e_f000;
/// Parameters, four bytes each. Writer: VMM.
pub const PARAMETERS: u64 = 0x3f_0000;
/// How many channels there are.
pub const CHANNELS: u64 = PARAMETERS;
/// The port of calls.
pub const CALL_PORT: u64 = PARAMETERS + 4;
/// The port of its own devices' doorbells; two bytes, as the one before.
pub const DOORBELL: u64 = PARAMETERS + 8;
/// Whether KVM can do without the end of an interrupt ([`NO_EOI`]).
pub const HAS_NO_EOI: u64 = PARAMETERS + 12;
/// End of the served guest's memory, eight bytes.
pub const GUEST_END: u64 = PARAMETERS + 16;

/// The first channel.
pub const FIRST: u64 = 0x40_0000;
/// Bytes from one to the next.
pub const STRIDE: u64 = 0x1_0000;
/// In a channel: 1 while the VMM wants the device served. Writer: VMM.
pub const WANTED: u64 = 0;
/// In a channel: [`IDLE`], [`SERVING`] or [`BROKEN`]. Writer: domain.
pub const STATE: u64 = 4;
/// In a channel: how many queues it has. Writer: VMM.
pub const QUEUES: u64 = 8;
/// In a channel: what `dev.start` gets for the domain's own device. Writer: VMM.
pub const START: u64 = 0x100;
/// In a channel: the first queue.
pub const QUEUE: u64 = 0x1000;
/// Bytes from one to the next.
pub const QUEUE_STRIDE: u64 = 0x4000;
/// The most queues of a channel.
pub const QUEUES_MAX: usize = 2;

/// In a queue: its entries, in the guest and in the domain, two bytes. Writer: VMM.
pub const SIZE: u64 = 0;
/// In a queue: what rings the domain's own device, four bytes. Writer: VMM.
pub const RING: u64 = 4;
/// In a queue: the guest's descriptors, available ring and used ring, eight bytes each. Writer: VMM.
pub const DESCRIPTORS: u64 = 8;
/// See [`DESCRIPTORS`].
pub const AVAILABLE: u64 = 16;
/// See [`DESCRIPTORS`].
pub const USED: u64 = 24;
/// In a queue: the three parts of the domain's own one, up to its end.
pub const OWN_DESCRIPTORS: u64 = 0x1000;
/// See [`OWN_DESCRIPTORS`].
pub const OWN_AVAILABLE: u64 = 0x2000;
/// See [`OWN_DESCRIPTORS`].
pub const OWN_USED: u64 = 0x3000;

/// Nothing of the guest's is in work.
pub const IDLE: u32 = 0;
/// Requests are served.
pub const SERVING: u32 = 1;
/// The guest has broken the rules; nothing of it is in work.
pub const BROKEN: u32 = 2;

/// Where the domain has the guest's memory.
pub const WINDOW: u64 = 0x4000_0000;
/// The most memory that it can have there: the VMM's page tables end at 4 GiB, its devices are in the last.
pub const WINDOW_MAX: u64 = 0x8000_0000;
/// The interrupt of all channels and devices.
pub const VECTOR: u8 = 0x30;
/// A write of a channel's number to this port interrupts the guest.
pub const EVENT_PORT: u16 = 0x7a;
/// The same with this tells the VMM that the guest has broken the rules.
pub const EVENT_BROKEN: u32 = 0x100;
/// The most channels.
pub const CHANNELS_MAX: usize = 16;
