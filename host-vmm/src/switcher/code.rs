//! The switcher's instructions: all of a direct guest's code at CPL 0.
//!
//! One region is assembled whole, with room for its tables, so that each instruction finds the area
//! relative to itself; then all regions share the pages of code. Where KVM is software an instruction here takes about a microsecond: count them.
//!
//! | path | instructions |
//! |---|---|
//! | SYSCALL, as far as the kernel's first instruction | 4; without user isolation none |
//! | another event in user mode | 5 |
//! | `leave`, as far as the user's first instruction | 4 |
//! | a page fault in the kernel | 4 |
//! | `halt`, and its end | 3 and 4 |
//! | another routine | 2, `debug_*` more |

use core::arch::global_asm;
use core::mem::offset_of;

use super::area::{Area, Frame, Routines, SYSCALL_PAGE};

/// The page of code that follows the tables.
pub(super) const CODE_OFFSET: u64 = 0x4000;
/// Handlers of events in user mode, [`HANDLER_STRIDE`] bytes each, in the order of vectors.
pub(super) const HANDLERS_OFFSET: u64 = 0x5000;
/// The same of events that end `halt`.
pub(super) const HALT_HANDLERS_OFFSET: u64 = HANDLERS_OFFSET + 256 * HANDLER_STRIDE;
/// Bytes of a handler.
pub(super) const HANDLER_STRIDE: u64 = 0x20;

/// Where SYSCALL leads to if it stays at CPL 3 and users share the kernel's address space.
pub(super) const SHARED_SYSCALL: u64 = SYSCALL_PAGE + 0x10;

/// Where the pieces of the code page lie, as distances from the region's begin; the image has them
/// at the place of the area's routines, before the host makes addresses of them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Pieces {
    pub(super) routines: Routines,
    pub(super) kernel_page_fault: u64,
    pub(super) syscall: u64,
    /// Without user isolation.
    pub(super) shared_leave: u64,
    pub(super) shared_syscall: u64,
}

unsafe extern "C" {
    static paravane_switcher: u8;
    static paravane_switcher_end: u8;
    static paravane_shared_handlers: u8;
    static paravane_shared_handlers_end: u8;
}

/// A region as assembled: tables empty, distances in place of addresses.
pub(super) fn image() -> &'static [u8] {
    let start = &raw const paravane_switcher;
    let end = &raw const paravane_switcher_end;
    // SAFETY: both symbols belong to the one section below, in this order, and nothing writes
    // to it.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// The handlers of events in user mode for users that share the kernel's address space.
pub(super) fn shared_handlers() -> &'static [u8] {
    let start = &raw const paravane_shared_handlers;
    let end = &raw const paravane_shared_handlers_end;
    // SAFETY: as in `image`.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// Where the pieces lie.
pub(super) fn pieces() -> Pieces {
    // SAFETY: the assembler has put a `Pieces` there; it may lie anywhere.
    unsafe {
        (&raw const paravane_switcher)
            .add(offset_of!(Area, routines))
            .cast::<Pieces>()
            .read_unaligned()
    }
}

global_asm!(
    ".pushsection .rodata.paravane_switcher, \"a\", @progbits",
    ".balign 4096",
    ".globl paravane_switcher",
    "paravane_switcher:",
    ".set AREA, paravane_switcher",
    // The pieces, in the order of `Pieces`. Their labels are the assembler's own (.L): another would be the C library's `syscall` to the Rust
    // code that is compiled along with this.
    ".org paravane_switcher + {routines}",
    ".quad .Lleave - AREA, .Lbreakpoint - AREA, .Lhalt - AREA, .Lload_root - AREA",
    ".quad .Lflush_page - AREA, .Lread_msr - AREA, .Lwrite_msr - AREA, .Ldoorbell - AREA",
    ".quad .Loutput_byte - AREA",
    ".quad .Ldebug_control - AREA, .Ldebug_addresses - AREA, .Ldebug_status - AREA",
    ".quad .Lcpuid - AREA, .Lstore - AREA, 0, 0",
    ".quad .Lkernel_page_fault - AREA, .Lsyscall - AREA",
    ".quad .Lshared_leave - AREA, .Lshared_syscall - AREA",
    ".org paravane_switcher + {code}",
    // The routines: each is what the gate of INT3 leads to.
    ".Lleave:",
    "mov cr3, rax",
    "mov rax, [rip + AREA + {user_rax}]",
    "lea rsp, [rip + AREA + {leave}]",
    "iretq",
    ".Lbreakpoint:",
    "mov [rip + AREA + {kernel_rax}], rax",
    "lea rsp, [rip + AREA + {breakpoint}]",
    "iretq",
    // In the kernel's table an interrupt at CPL 0 would lead to CPL 3.
    ".Lhalt:",
    "lidt [rip + AREA + {halt_idtr}]",
    "sti",
    "1: hlt",
    "jmp 1b",
    ".Lload_root:",
    "mov cr3, rdi",
    "iretq",
    ".Lflush_page:",
    "invlpg [rdi]",
    "iretq",
    ".Lread_msr:",
    "rdmsr",
    "iretq",
    ".Lwrite_msr:",
    "wrmsr",
    "iretq",
    ".Ldoorbell:",
    "out dx, eax",
    "iretq",
    ".Loutput_byte:",
    "out dx, al",
    "iretq",
    ".Ldebug_control:",
    "mov dr7, rdi",
    "iretq",
    ".Ldebug_addresses:",
    "mov dr0, rdi",
    "mov dr1, rsi",
    "mov dr2, rdx",
    "mov dr3, rcx",
    "iretq",
    ".Ldebug_status:",
    "mov rax, dr6",
    "mov dr6, rdi",
    "iretq",
    ".Lcpuid:",
    "cpuid",
    "iretq",
    ".Lstore:",
    "mov [rdi], rsi",
    "iretq",
    ".Lkernel_page_fault:",
    "mov [rip + AREA + {kernel_rax}], rax",
    "mov rax, cr2",
    "lea rsp, [rip + AREA + {fault}]",
    "iretq",
    // SYSCALL where it raises privilege: RCX and R11 have the user's RIP and flags.
    ".Lsyscall:",
    "mov [rip + AREA + {user_frame_rsp}], rsp",
    "xchg rax, [rip + AREA + {swap}]",
    "mov cr3, rax",
    "lea rsp, [rip + AREA + {syscall}]",
    "iretq",
    // The same two where users share the kernel's address space: the table changes, and the root stays.
    ".Lshared_leave:",
    "lidt [rip + AREA + {user_idtr}]",
    "mov rax, [rip + AREA + {user_rax}]",
    "lea rsp, [rip + AREA + {leave}]",
    "iretq",
    ".Lshared_syscall:",
    "mov [rip + AREA + {user_rsp}], rsp",
    "lea rsp, [rip + AREA + {syscall}]",
    "iretq",
    // Events in user mode.
    ".set vector, 0",
    ".rept 256",
    ".org paravane_switcher + {handlers} + vector * {stride}",
    "xchg rax, [rip + AREA + {swap}]",
    "mov cr3, rax",
    ".if vector == 3",
    "lea rsp, [rip + AREA + {user_breakpoint}]",
    ".elseif vector == 14",
    "mov rax, cr2",
    "lea rsp, [rip + AREA + {user_fault}]",
    ".else",
    "mov eax, offset vector",
    "lea rsp, [rip + AREA + {event}]",
    ".endif",
    "iretq",
    ".set vector, vector + 1",
    ".endr",
    // Events that end a halt.
    ".set vector, 0",
    ".rept 256",
    ".org paravane_switcher + {halt_handlers} + vector * {stride}",
    "mov eax, offset vector",
    "lidt [rip + AREA + {idtr}]",
    "lea rsp, [rip + AREA + {halted}]",
    "iretq",
    ".set vector, vector + 1",
    ".endr",
    ".org paravane_switcher + {syscall_page}",
    "int3",
    // Where SYSCALL is a jump that stays at CPL 3, and users share the kernel's address space.
    ".org paravane_switcher + {syscall_page} + {shared_syscall_at}",
    "mov [rip + AREA + {user_rsp}], rsp",
    "mov rsp, [rip + AREA + {syscall_rsp}]",
    "jmp [rip + AREA + {syscall}]",
    ".org paravane_switcher + {syscall_page} + 4096, 0xcc",
    ".globl paravane_switcher_end",
    "paravane_switcher_end:",
    // Handlers that are put in place of those above.
    ".globl paravane_shared_handlers",
    "paravane_shared_handlers:",
    ".set SHARED, paravane_shared_handlers - {handlers}",
    ".set vector, 0",
    ".rept 256",
    ".org paravane_shared_handlers + vector * {stride}",
    "xchg rax, [rip + SHARED + {swap}]",
    "lidt [rip + SHARED + {idtr}]",
    ".if vector == 3",
    "lea rsp, [rip + SHARED + {user_breakpoint}]",
    ".elseif vector == 14",
    "mov rax, cr2",
    "lea rsp, [rip + SHARED + {user_fault}]",
    ".else",
    "mov eax, offset vector",
    "lea rsp, [rip + SHARED + {event}]",
    ".endif",
    "iretq",
    ".set vector, vector + 1",
    ".endr",
    ".globl paravane_shared_handlers_end",
    "paravane_shared_handlers_end:",
    ".popsection",
    routines = const offset_of!(Area, routines),
    code = const CODE_OFFSET,
    handlers = const HANDLERS_OFFSET,
    halt_handlers = const HALT_HANDLERS_OFFSET,
    stride = const HANDLER_STRIDE,
    syscall_page = const SYSCALL_PAGE,
    swap = const offset_of!(Area, swap),
    user_rax = const offset_of!(Area, user_rax),
    kernel_rax = const offset_of!(Area, kernel_rax),
    idtr = const offset_of!(Area, idtr) + 6,
    halt_idtr = const offset_of!(Area, halt_idtr) + 6,
    syscall = const offset_of!(Area, syscall),
    user_breakpoint = const offset_of!(Area, user_breakpoint),
    user_fault = const offset_of!(Area, user_fault),
    event = const offset_of!(Area, event),
    halted = const offset_of!(Area, halted),
    fault = const offset_of!(Area, fault),
    breakpoint = const offset_of!(Area, breakpoint),
    leave = const offset_of!(Area, leave),
    shared_syscall_at = const SHARED_SYSCALL - SYSCALL_PAGE,
    syscall_rsp = const offset_of!(Area, syscall) + offset_of!(Frame, rsp),
    user_idtr = const offset_of!(Area, user_idtr) + 6,
    user_rsp = const offset_of!(Area, user_rsp),
    user_frame_rsp = const offset_of!(Area, user_frame) + offset_of!(Frame, rsp),
);
