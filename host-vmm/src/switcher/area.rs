//! What a kernel without privilege and the switcher share. To become facility `cpu` of the ABI.
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
//! Each processor has a *region* of its own at [`region`]: this area, descriptor tables, the
//! switcher's code. In the kernel's address space the kernel can write to its region; in a user's
//! address space nothing below CPL 0 can reach it, but for the page of [`SYSCALL_PAGE`].
//!
//! There are two interrupt descriptor tables. While a *user* runs, each event goes to the switcher.
//! It saves RAX, loads the kernel's root and descriptor table, and enters the kernel at CPL 3 with a
//! frame that the kernel has prepared. While the *kernel* runs, its own table holds: its events go
//! straight to it, by trap gates whose segment is the kernel's own; but for page faults, since CR2
//! has to be read at CPL 0, and breakpoints, which are the way to the switcher.
//!
//! The kernel asks the switcher for something by storing the address of a routine in
//! [`Area::call`] and executing INT3. No interrupt handler of its own may do the same in between:
//! the kernel keeps a flag of its own in place of the interrupt flag, and notes what arrives while
//! that is off. The switcher knows nothing about it.
//!
//! The switcher trusts the kernel, whose processor it is, and never a user.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Linear address of the first processor's region; the 64-bit kernel must keep this slot of its
/// root free for it.
pub const REGIONS: u64 = 0xffff_fc80_0000_0000;
/// Bytes from one processor's region to the next.
pub const REGION_STRIDE: u64 = 0x1_0000;
/// The index of the regions' entry in a root page table.
pub const REGIONS_SLOT: usize = 505;

/// The descriptor table and the task state segment, from the region's begin.
pub const GDT_OFFSET: u64 = 0x1000;
/// The kernel's interrupt descriptor table; the kernel fills it.
pub const KERNEL_IDT_OFFSET: u64 = 0x2000;
/// The interrupt descriptor table of users.
pub const USER_IDT_OFFSET: u64 = 0x3000;
/// The page that SYSCALL leads to where it does not raise privilege.
pub const SYSCALL_PAGE: u64 = 0x9000;

/// Selector of code at CPL 0: the switcher's.
pub const SWITCHER_CS: u64 = 0x10;
/// Selector of data at CPL 3, the kernel's and its users'.
pub const DATA_SELECTOR: u64 = 0x2b;
/// Selector of 64-bit code at CPL 3, the kernel's and its users'.
pub const CODE_SELECTOR: u64 = 0x33;

/// The linear address of a processor's region.
#[must_use]
pub const fn region(vcpu: u32) -> u64 {
    REGIONS + REGION_STRIDE * vcpu as u64
}

/// What IRETQ takes from the stack, and an event puts there.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Frame {
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

/// The switcher's routines, as addresses to be stored in [`Area::call`]. Each returns to the
/// instruction after INT3, but for `leave` and `halt`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Routines {
    /// To user mode: RAX = the user's root, [`Area::leave`] = its frame, [`Area::user_rax`].
    pub leave: u64,
    /// Hands the breakpoint to the kernel, at [`Area::breakpoint`]. [`Area::call`] has this
    /// whenever nothing else is asked for.
    pub breakpoint: u64,
    /// Waits for an interrupt, with the users' table: the interrupt arrives by [`Area::event`],
    /// from [`SWITCHER_CS`].
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
    /// Zero.
    pub reserved: [u64; 3],
}

/// The first page of a region. Writer: kernel and switcher, as the fields say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Area {
    /// The routine of the next INT3. Writer: kernel.
    pub call: u64,
    /// The root that an event in user mode loads. Writer: kernel.
    pub kernel_root: u64,
    /// The user's RAX, of an event and of `leave`. Writers: both.
    pub user_rax: u64,
    /// Vector of an event in user mode. Writer: switcher.
    pub vector: u64,
    /// CR2 of the last page fault. Writer: switcher.
    pub fault_address: u64,
    /// RAX of a page fault or breakpoint in the kernel. Writer: switcher.
    pub kernel_rax: u64,
    /// Limit and base of the kernel's interrupt descriptor table, from byte 6. Writer: host.
    pub kernel_idtr: [u64; 2],
    /// The same of the users'. Writer: host.
    pub user_idtr: [u64; 2],
    /// Where the kernel is entered by SYSCALL, or a breakpoint in user mode. Writer: kernel.
    pub syscall: Frame,
    /// Where the kernel is entered by any other event in user mode. Writer: kernel.
    pub event: Frame,
    /// Where the kernel is entered by a page fault of its own. Writer: kernel.
    pub fault: Frame,
    /// Where the kernel is entered by a breakpoint of its own. Writer: kernel.
    pub breakpoint: Frame,
    /// The frame of `leave`. Writer: kernel.
    pub leave: Frame,
    /// Entry of the regions in the kernel's root page tables. Writer: host.
    pub kernel_slot: u64,
    /// Entry of the regions in the users' root page tables. Writer: host.
    pub user_slot: u64,
    /// Where the processor is in [`SYSCALL_PAGE`] when the kernel is entered by SYSCALL through a
    /// breakpoint. Writer: host.
    pub syscall_rip: u64,
    /// Zero.
    pub reserved0: [u64; 3],
    /// The routines. Writer: host.
    pub routines: Routines,
    /// Zero.
    pub reserved1: [u64; 3],
    /// Stack of events in user mode.
    pub user_stack: [u64; 11],
    /// Their frame; [`Area::user_error`] is the error code.
    pub user_frame: Frame,
    /// Stack of page faults and breakpoints in the kernel.
    pub kernel_stack: [u64; 11],
    /// Their frame, after the error code of a page fault.
    pub kernel_frame: Frame,
}

impl Default for Area {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl Area {
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
    assert!(size_of::<Frame>() == 40);
    assert!(offset_of!(Area, kernel_idtr) == 0x30);
    assert!(offset_of!(Area, syscall) == 0x50);
    assert!(offset_of!(Area, routines) == 0x148);
    assert!(offset_of!(Area, user_frame) == 0x238);
    assert!(size_of::<Area>() == 0x2e0);
    // Stacks end at multiples of 16, as the processor would have it.
    assert!((offset_of!(Area, user_frame) + size_of::<Frame>()).is_multiple_of(16));
};

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// The guest's own file of these numbers.
    const HEADER: &str = include_str!("../../../guest-pv-linux/direct.h");

    fn defined(name: &str) -> u64 {
        let line = HEADER.lines().find_map(|line| {
            let (found, value) = line.strip_prefix("#define ")?.split_once('\t')?;
            (found == name).then(|| value.trim())
        });
        let value = line.unwrap_or_else(|| panic!("no {name}"));
        match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
            None => value.parse().unwrap(),
        }
    }

    #[test]
    fn the_guest_has_the_same_numbers() {
        macro_rules! area {
            ($($name:literal $($field:ident).+;)+) => {
                [$(($name, offset_of!(Area, $($field).+) as u64)),+]
            };
        }
        let offsets = area! {
            "AREA_CALL" call;
            "AREA_KERNEL_ROOT" kernel_root;
            "AREA_USER_RAX" user_rax;
            "AREA_VECTOR" vector;
            "AREA_FAULT_ADDRESS" fault_address;
            "AREA_KERNEL_RAX" kernel_rax;
            "AREA_SYSCALL" syscall;
            "AREA_EVENT" event;
            "AREA_FAULT" fault;
            "AREA_BREAKPOINT" breakpoint;
            "AREA_LEAVE" leave;
            "AREA_KERNEL_SLOT" kernel_slot;
            "AREA_USER_SLOT" user_slot;
            "AREA_SYSCALL_RIP" syscall_rip;
            "AREA_USER_FRAME" user_frame;
            "AREA_KERNEL_FRAME" kernel_frame;
            "ROUTINE_LEAVE" routines.leave;
            "ROUTINE_BREAKPOINT" routines.breakpoint;
            "ROUTINE_HALT" routines.halt;
            "ROUTINE_LOAD_ROOT" routines.load_root;
            "ROUTINE_FLUSH_PAGE" routines.flush_page;
            "ROUTINE_READ_MSR" routines.read_msr;
            "ROUTINE_WRITE_MSR" routines.write_msr;
            "ROUTINE_DOORBELL" routines.doorbell;
            "ROUTINE_OUTPUT_BYTE" routines.output_byte;
            "ROUTINE_DEBUG_CONTROL" routines.debug_control;
            "ROUTINE_DEBUG_ADDRESSES" routines.debug_addresses;
            "ROUTINE_DEBUG_STATUS" routines.debug_status;
            "ROUTINE_CPUID" routines.cpuid;
        };
        let others = [
            ("AREA_USER_ERROR", offset_of!(Area, user_frame) as u64 - 8),
            (
                "AREA_KERNEL_ERROR",
                offset_of!(Area, kernel_frame) as u64 - 8,
            ),
            ("PARAVANE_REGIONS", REGIONS),
            ("PARAVANE_REGIONS_39", REGIONS >> 39),
            ("PARAVANE_REGIONS_SLOT", REGIONS_SLOT as u64),
            ("PARAVANE_REGION_STRIDE", REGION_STRIDE),
            ("PARAVANE_GDT", GDT_OFFSET),
            ("PARAVANE_KERNEL_IDT", KERNEL_IDT_OFFSET),
            ("PARAVANE_SWITCHER_CS", SWITCHER_CS),
        ];
        for (name, value) in offsets.into_iter().chain(others) {
            assert_eq!(defined(name), value, "{name}");
        }
        assert!(defined("AREA_USER_ROOT") >= size_of::<Area>() as u64);
    }
}
