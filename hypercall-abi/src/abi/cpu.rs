// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facility `cpu`, Draft: what a kernel without privilege and the switcher share.
//!
//! # Background
//!
//! A direct guest's kernel runs at CPL 3, as its users do. What needs privilege is done by the
//! *switcher*: a few dozen instructions at CPL 0 that the host puts into the guest. On a host
//! whose KVM interprets CPL 0, an instruction there costs a microsecond, and one at CPL 3 nothing;
//! so all that can be prepared at CPL 3 is.
//!
//! # How it works
//!
//! Each processor has a *region* of its own at [`CPU_REGIONS`]: this area, descriptor tables, the
//! switcher's code. In the kernel's address space the kernel can write to its region; in a user's
//! address space nothing below CPL 0 can reach it, but for the page of [`CPU_SYSCALL_PAGE`].
//!
//! The interrupt descriptor table at [`CPU_IDT`] is another page in each of the two, so that
//! whoever loads a root has the table that belongs to it. While a *user* runs, each event goes to
//! the switcher. It exchanges RAX for the kernel's root in [`CpuArea::swap`], loads that, and
//! enters the kernel at CPL 3 with a frame that the kernel has prepared. While the *kernel* runs,
//! its own table holds: its events go straight to it, by trap gates whose segment is the kernel's
//! own; but for page faults, since CR2 has to be read at CPL 0, and breakpoints, which are the way
//! to the switcher.
//!
//! The kernel asks the switcher for something by storing the lower half of a routine's address into
//! the table, at [`CPU_CALL`], and executing INT3. No interrupt handler of its own may do the same
//! in between: the kernel keeps a flag of its own in place of the interrupt flag, and notes what
//! arrives while that is off. The switcher knows nothing about it.
//!
//! The switcher trusts the kernel, whose processor it is, and never a user.
//!
//! # Without user isolation
//!
//! A host can be asked to leave users and kernel in one address space ([`CpuArea::user_isolation`]
//! is 0), where every user can do what the kernel can. SYSCALL then leads to the kernel without
//! the switcher where it does not raise privilege, and the kernel returns by itself: all this time
//! the table of users holds. An event loads the kernel's table, and `leave` that of users.
//!
//! # State
//!
//! Draft: a host puts the switcher into a guest whose kernel it starts at CPL 3, and sets no
//! facility bit for it; all of it can still change. So that the two can find out whether they mean
//! the same, it has a number, [`CPU_LAYOUT`]: a kernel has it in an ELF note, and a host that has
//! another does not start it. Page tables are facility `mmu`, which needs no number.

/// The number of all that is said here. It is raised with each change.
pub const CPU_LAYOUT: u32 = 2;
/// The type of the ELF note, with the name `Paravane`, whose content is a kernel's [`CPU_LAYOUT`]
/// as four bytes.
pub const CPU_NOTE_LAYOUT: u32 = 1;

/// Linear address of the first processor's region; the 64-bit kernel must keep this slot of its
/// root free for it.
pub const CPU_REGIONS: u64 = 0xffff_fc80_0000_0000;
/// Bytes from one processor's region to the next.
pub const CPU_REGION_STRIDE: u64 = 0x1_0000;
/// The index of the regions' entry in a root page table.
pub const CPU_REGIONS_SLOT: u64 = 505;

/// The descriptor table and the task state segment, from the region's begin.
pub const CPU_GDT: u64 = 0x1000;
/// The interrupt descriptor table: the kernel's, which the kernel fills, or that of users.
pub const CPU_IDT: u64 = 0x2000;
/// The interrupt descriptor table of a processor that waits.
pub const CPU_HALT_IDT: u64 = 0x3000;
/// Where the routine of the next INT3 stands: the lowest 16 bits of the target of its gate.
pub const CPU_CALL: u64 = 0x2030;
/// The page that SYSCALL leads to where it does not raise privilege.
pub const CPU_SYSCALL_PAGE: u64 = 0x9000;

/// How many bytes of it the way to the kernel has at most where users are not isolated.
pub const CPU_SYSCALL_BYTES: u64 = 0x20;
/// The interrupt descriptor table of users once more, where the kernel's address space has it.
pub const CPU_USER_IDT: u64 = 0xa000;

/// Selector of code at CPL 0: the switcher's.
pub const CPU_SWITCHER_CS: u64 = 0x10;
/// Selector of data at CPL 3, the kernel's and its users'.
pub const CPU_DATA_SELECTOR: u64 = 0x2b;
/// Selector of 64-bit code at CPL 3, the kernel's and its users'.
pub const CPU_CODE_SELECTOR: u64 = 0x33;

/// What IRETQ takes from the stack, and an event puts there.
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
pub struct CpuFrame {
    /// Instruction.
    pub rip: u64,
    /// Code segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

/// The switcher's routines, as addresses whose lower 16 bits are stored at [`CPU_CALL`]. Each
/// returns to the instruction after INT3, but for `leave` and `halt`.
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
pub struct CpuRoutines {
    /// To user mode: RAX = the user's root, [`CpuArea::leave`] = its frame, [`CpuArea::user_rax`].
    pub leave: u64,
    /// Hands the breakpoint to the kernel, at [`CpuArea::breakpoint`]. [`CPU_CALL`] has this
    /// whenever nothing else is asked for.
    pub breakpoint: u64,
    /// Waits for an interrupt, which enters the kernel at [`CpuArea::halted`].
    pub halt: u64,
    /// Loads the root in RDI.
    pub load_root: u64,
    /// Flushes the page at RDI.
    pub flush_page: u64,
    /// `RDMSR`: ECX, to EDX and EAX.
    pub read_msr: u64,
    /// `WRMSR`: ECX, EDX and EAX.
    pub write_msr: u64,
    /// `out dx, eax`, for a call of transport T0.
    pub doorbell: u64,
    /// `out dx, al`.
    pub output_byte: u64,
    /// Loads debug register 7 from RDI.
    pub debug_control: u64,
    /// Loads debug registers 0 to 3 from RDI, RSI, RDX, RCX.
    pub debug_addresses: u64,
    /// Reads debug register 6 into RAX, and writes RDI to it.
    pub debug_status: u64,
    /// `CPUID`, which CPL 3 may get from somebody else.
    pub cpuid: u64,
    /// Stores RSI at RDI: one entry of a page table, which the host then has not to look for.
    pub store: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

/// What the kernel counts of its way through the switcher; the host adds it up.
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
pub struct CpuCrossings {
    /// SYSCALL in user mode.
    pub system_call: u64,
    /// Page fault in user mode.
    pub page_fault: u64,
    /// Another exception in user mode.
    pub exception: u64,
    /// Interrupt in user mode.
    pub interrupt: u64,
    /// Page fault in the kernel.
    pub kernel_page_fault: u64,
    /// Zero.
    pub reserved: [u64; 3],
    /// Calls of each routine, in the order of [`CpuRoutines`]; `leave` is not counted.
    pub calls: [u64; 16],
}

/// The first page of a region. Writer: kernel and switcher, as the fields say.
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
pub struct CpuArea {
    /// The kernel's root; after an event in user mode the user's RAX, until the kernel has put its
    /// root back. Writers: both.
    pub swap: u64,
    /// The user's RAX, for `leave`. Writer: kernel.
    pub user_rax: u64,
    /// RAX of a page fault or breakpoint in the kernel. Writer: switcher.
    pub kernel_rax: u64,
    /// Entry of the regions in the kernel's root page tables. Writer: host.
    pub kernel_slot: u64,
    /// Entry of the regions in the users' root page tables. Writer: host.
    pub user_slot: u64,
    /// Where the processor is in [`CPU_SYSCALL_PAGE`] when the kernel is entered at
    /// [`CpuArea::user_breakpoint`] by SYSCALL; without user isolation, where SYSCALL leads to.
    /// Writer: host.
    pub syscall_rip: u64,
    /// Limit and base of the interrupt descriptor table at [`CPU_IDT`], from byte 6. Writer: host.
    pub idtr: [u64; 2],
    /// The same of that at [`CPU_HALT_IDT`]. Writer: host.
    pub halt_idtr: [u64; 2],
    /// Where the kernel is entered by SYSCALL that raises privilege, or without user isolation.
    /// Writer: kernel.
    pub syscall: CpuFrame,
    /// Where the kernel is entered by a breakpoint in user mode. Writer: kernel.
    pub user_breakpoint: CpuFrame,
    /// Where the kernel is entered by a page fault in user mode; RAX = CR2. Writer: kernel.
    pub user_fault: CpuFrame,
    /// Where the kernel is entered by any other event in user mode; RAX = vector. Writer: kernel.
    pub event: CpuFrame,
    /// Where the kernel is entered by an interrupt that ends `halt`; RAX = vector. Writer: kernel.
    pub halted: CpuFrame,
    /// Where the kernel is entered by a page fault of its own; RAX = CR2. Writer: kernel.
    pub fault: CpuFrame,
    /// Where the kernel is entered by a breakpoint of its own. Writer: kernel.
    pub breakpoint: CpuFrame,
    /// The frame of `leave`. Writer: kernel.
    pub leave: CpuFrame,
    /// The routines. Writer: host.
    pub routines: CpuRoutines,
    /// Stack of events in user mode.
    pub user_stack: [u64; 11],
    /// Their frame; [`CpuArea::user_error`] is the error code.
    pub user_frame: CpuFrame,
    /// Stack of page faults and breakpoints in the kernel.
    pub kernel_stack: [u64; 11],
    /// Their frame, after the error code of a page fault.
    pub kernel_frame: CpuFrame,
    /// What has crossed. Writer: kernel.
    pub crossings: CpuCrossings,
    /// [`CPU_LAYOUT`], here in each layout. Writer: host.
    pub layout: u64,
    /// Limit and base of the interrupt descriptor table at [`CPU_USER_IDT`], from byte 6. Writer:
    /// host.
    pub user_idtr: [u64; 2],
    /// 1: users have roots of their own; 0: they share the kernel's. Writer: host.
    pub user_isolation: u64,
    /// The user's stack at SYSCALL, where users share the kernel's root. Writer: switcher.
    pub user_rsp: u64,
}

impl CpuArea {
    /// The error code of an event in user mode that has one.
    #[must_use]
    pub const fn user_error(&self) -> u64 {
        self.user_stack[10]
    }

    /// The error code of a page fault in the kernel.
    #[must_use]
    pub const fn kernel_error(&self) -> u64 {
        self.kernel_stack[10]
    }
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<CpuFrame>() == 40);
    assert!(offset_of!(CpuArea, idtr) == 0x30);
    assert!(offset_of!(CpuArea, syscall) == 0x50);
    assert!(offset_of!(CpuArea, routines) == 0x190);
    assert!(offset_of!(CpuArea, user_frame) == 0x268);
    assert!(offset_of!(CpuArea, crossings) == 0x310);
    assert!(offset_of!(CpuArea, layout) == 0x3d0);
    assert!(offset_of!(CpuArea, user_idtr) == 0x3d8);
    assert!(size_of::<CpuArea>() == 0x3f8);
    // Stacks end at multiples of 16, as the processor would have it.
    assert!((offset_of!(CpuArea, user_frame) + size_of::<CpuFrame>()).is_multiple_of(16));
};
