//! Where things are: the one file that the guest and the VMM that runs it share.
//!
//! Addresses are guest physical and virtual at once. Below `USER_START` only CPL 0 may look.

/// Page tables, six pages. Writer: VMM.
pub const PAGE_TABLES: u64 = 0x1000;
/// Global descriptor table. Writer: VMM.
pub const GDT: u64 = 0x7000;
/// Interrupt descriptor table, 256 gates. Writer: VMM.
pub const IDT: u64 = 0x8000;
/// Task state segment and, behind it, the I/O permission bitmap. Writer: VMM.
pub const TSS: u64 = 0x9000;
/// Top of the CPL 0 stack.
pub const KERNEL_STACK: u64 = 0x1f_f000;
/// From here on, pages are open to CPL 3.
pub const USER_START: u64 = 0x20_0000;
/// Zeroed memory for a probe's operands, 64 KiB; open to CPL 3.
pub const SCRATCH: u64 = 0x30_0000;
/// The call frame of the experiment "arguments in memory"; open to CPL 3.
pub const FRAME: u64 = 0x31_0000;
/// Top of the CPL 3 stack.
pub const USER_STACK: u64 = 0x3f_f000;
/// What `entry` reads: address of the frames, their number, where to go on, the doorbell's port, and
/// at 32 the operand of LGDT. Writer: VMM.
pub const PARAMETERS: u64 = SCRATCH;
/// Bytes of one frame of a call table.
pub const FRAME_BYTES: u64 = 256;
/// In a frame: the call id.
pub const FRAME_CALL: u64 = 0;
/// In a frame: the port.
pub const FRAME_PORT: u64 = 8;
/// In a frame: width of the OUT in bytes, 1, 2 or 4.
pub const FRAME_WIDTH: u64 = 12;
/// In a frame: the six arguments.
pub const FRAME_ARGS: u64 = 16;
/// In a frame: address of a store before the call, and its 32-bit value.
pub const FRAME_POKE: u64 = 64;
/// In a frame: registers after the call: RAX, RDX, RDI, RSI, R8 to R11, RBP, R12 to R15.
pub const FRAME_AFTER: u64 = 80;

/// End of the guest's memory.
pub const MEMORY_END: u64 = 0x40_0000;

/// A write here ends one batch of crossings; mapped, but no memory.
pub const MARK: u64 = 0x4000_0000;
/// A write here ends the probe; EAX is its result.
pub const DONE: u64 = 0x4000_0008;
/// An MMIO address that exits to the VMM.
pub const MMIO_PLAIN: u64 = 0x4000_1000;
/// An MMIO address that KVM turns into an event.
pub const MMIO_EVENT: u64 = 0x4000_2000;
/// An MMIO address that KVM collects.
pub const MMIO_COALESCED: u64 = 0x4000_3000;
/// A virtual address that is not mapped.
pub const UNMAPPED: u64 = 0x5000_0000;

/// A port that exits to the VMM.
pub const PORT_PLAIN: u16 = 0x90;
/// A port on which the VMM answers as on the doorbell.
pub const PORT_DOORBELL: u16 = 0x92;
/// A port on which the VMM answers with the call frame in memory.
pub const PORT_FRAME: u16 = 0x94;
/// The doorbell, with the VMM's own dispatcher behind it.
pub const PORT_CALL: u16 = 0x7e;
/// A submission ring's header; its first entry follows. Open to CPL 3.
pub const RING: u64 = 0x32_0000;
/// Calls in one submission.
pub const SUBMISSION: u32 = 8;
/// A port that KVM turns into an event.
pub const PORT_EVENT: u16 = 0xa0;
/// A port that KVM collects.
pub const PORT_COALESCED: u16 = 0xe1;
/// Where the trap stubs say that the CPU has trapped.
pub const PORT_TRAP: u16 = 0xf5;
/// An MSR that no CPU has.
pub const MSR_UNKNOWN: u32 = 0x1234_5678;

/// Selectors as Linux has them, because a software KVM may use its own kernel's.
pub const KERNEL_CS: u16 = 0x10;
/// Code segment of CPL 0 for 32-bit code.
pub const KERNEL32_CS: u16 = 0x08;
/// Stack segment of CPL 0.
pub const KERNEL_SS: u16 = 0x18;
/// Stack segment of CPL 3.
pub const USER_SS: u16 = 0x2b;
/// Code segment of CPL 3.
pub const USER_CS: u16 = 0x33;
/// Task register.
pub const TASK: u16 = 0x40;

/// Crossings in one batch.
pub const BATCH: u32 = 16;
