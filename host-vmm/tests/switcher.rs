//! The switcher of a direct guest, on this host's KVM: a kernel and a user of a few instructions each, both at
//! CPL 3. `cargo test --test switcher -- --nocapture` prints what each path costs.

use std::arch::global_asm;
use std::mem::offset_of;
use std::time::Instant;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_msi, kvm_regs,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use paravane::memory::Memory;
use paravane::switcher::area::{
    Area, CALL_OFFSET, CODE_SELECTOR, DATA_SELECTOR, Frame, IDT_OFFSET, REGIONS, SWITCHER_CS,
};
use paravane::switcher::{self, Users};
use paravane_reference_host::or_skipped;

/// Where the kernel's code lies, and the user's.
const KERNEL: u64 = 0x40_0000;
const USER: u64 = 0x60_0000;
/// The user's root page table, with the two tables below it.
const USER_ROOT: u64 = 0x80_0000;
const STACK: u64 = 0x5f_f000;
const USER_STACK: u64 = 0x7f_f000;
/// The port by which the kernel says that it is done.
const DONE: u16 = 0x7e;
const ROUNDS: u32 = 2000;

global_asm!(
    ".pushsection .rodata.switcher_test, \"a\"",
    ".set A, {regions}",
    // --- The kernel. Its entries have RSP in the area, so RSP - 0x800 is the area.
    "switcher_test_kernel:",
    // First instruction: to the user.
    "mov rbx, A",
    "mov rax, [rbx + {user_frame}]",
    "jmp 3f",
    ".balign 64",
    // SYSCALL: by a breakpoint, or by raising privilege.
    "kernel_syscall:",
    "lea rbx, [rsp - 0x800]",
    "mov [rbx + {leave}], rcx",
    "jmp 2f",
    ".balign 64",
    "kernel_fault_of_user:",
    "lea rbx, [rsp - 0x800]",
    "mov r9, rax",
    "mov esi, 14",
    "jmp 4f",
    ".balign 64",
    "kernel_event:",
    "lea rbx, [rsp - 0x800]",
    "mov esi, eax",
    // What is no call ends the test.
    "4: mov eax, [rbx + {breakpoint}]",
    "mov [rbx + {call}], ax",
    "mov rdi, [rbx + {user_rip}]",
    "mov r8, [rbx + {user_cs}]",
    "mov r10, [rbx + {user_error}]",
    "kernel_done:",
    "mov rbx, A",
    "mov edx, {done}",
    "mov eax, [rbx + {doorbell}]",
    "mov [rbx + {call}], ax",
    "int3",
    "2:",
    // The user's RAX, and the root back.
    "mov rax, [rbx]",
    "mov [rbx + {user_rax}], rax",
    "mov eax, {boot_root}",
    "mov [rbx], rax",
    "3:",
    "mov eax, [rbx + {leave_routine}]",
    "mov [rbx + {call}], ax",
    "mov eax, {user_root}",
    "int3",
    ".balign 64",
    // Calls of a routine with two instructions.
    "kernel_calls:",
    "mov rbx, A",
    "mov r15d, {rounds}",
    "1: mov eax, [rbx + {load_root}]",
    "mov edi, {boot_root}",
    "mov [rbx + {call}], ax",
    "int3",
    "dec r15",
    "jnz 1b",
    "jmp kernel_done",
    ".balign 64",
    "kernel_faults:",
    "mov rbx, A",
    "mov r15d, {rounds}",
    "movabs r14, 0xd00000000",
    "1: mov rax, [r14]",
    "dec r15",
    "jnz 1b",
    "jmp kernel_done",
    ".balign 64",
    // Returns after the load.
    "kernel_fault:",
    "lea rbx, [rsp - 0x800]",
    "mov rsp, [rbx + {kernel_rsp}]",
    "push {data}",
    "push [rbx + {kernel_rsp}]",
    "push [rbx + {kernel_flags}]",
    "push {text}",
    "push [rbx + {kernel_rip}]",
    "mov r9, rax",
    "add qword ptr [rsp], 3",
    "iretq",
    ".balign 64",
    // An exception of the kernel's that goes straight to it.
    "kernel_traps:",
    "mov r15d, {rounds}",
    "1: cli",
    "dec r15",
    "jnz 1b",
    "jmp kernel_done",
    ".balign 64",
    "kernel_trap:",
    "inc r14",
    "inc qword ptr [rsp + 8]",
    "add rsp, 8",
    "iretq",
    ".balign 64",
    // A breakpoint that is no call.
    "kernel_breaks:",
    "mov eax, 0x1234",
    "int3",
    ".balign 64",
    "kernel_break:",
    "lea rbx, [rsp - 0x800]",
    "mov rdi, [rbx + {kernel_rip}]",
    "mov rsi, [rbx + {kernel_rax}]",
    "jmp kernel_done",
    ".balign 64",
    "kernel_halts:",
    "mov rbx, A",
    "mov eax, [rbx + {halt}]",
    "mov [rbx + {call}], ax",
    "int3",
    ".balign 64",
    "switcher_test_kernel_end:",
    // --- Users.
    "switcher_test_user:",
    "user_calls:",
    "mov r15d, {rounds}",
    "mov eax, 0x1234",
    "1: syscall",
    "dec r15",
    "jnz 1b",
    "hlt",
    ".balign 64",
    "user_reads_kernel: mov rax, [0x400000]; hlt",
    ".balign 64",
    "user_writes_kernel: mov [0x400000], rax; hlt",
    ".balign 64",
    "user_jumps_to_kernel: mov eax, 0x400000; jmp rax",
    ".balign 64",
    "user_reads_area: mov rax, A; mov rax, [rax]; hlt",
    ".balign 64",
    "user_writes_area: mov rbx, A; mov [rbx], rax; hlt",
    ".balign 64",
    "user_jumps_to_switcher: mov rax, A + 0x4000; jmp rax",
    ".balign 64",
    "user_writes_syscall_page: mov rbx, A + 0x9000; mov [rbx], rax; hlt",
    ".balign 64",
    "user_loads_root: mov cr3, rax; hlt",
    ".balign 64",
    "user_does_output: mov edx, {done}; out dx, eax; hlt",
    ".balign 64",
    "switcher_test_user_end:",
    ".popsection",
    regions = const REGIONS,
    user_frame = const offset_of!(Area, user_frame),
    leave = const offset_of!(Area, leave),
    user_rax = const offset_of!(Area, user_rax),
    call = const CALL_OFFSET,
    boot_root = const switcher::BOOT_ROOT,
    user_rip = const offset_of!(Area, user_frame),
    user_cs = const offset_of!(Area, user_frame) + 8,
    user_error = const offset_of!(Area, user_frame) - 8,
    breakpoint = const offset_of!(Area, routines) + 8,
    leave_routine = const offset_of!(Area, routines),
    kernel_rax = const offset_of!(Area, kernel_rax),
    halt = const offset_of!(Area, routines) + 16,
    load_root = const offset_of!(Area, routines) + 24,
    doorbell = const offset_of!(Area, routines) + 56,
    kernel_rip = const offset_of!(Area, kernel_frame),
    kernel_flags = const offset_of!(Area, kernel_frame) + 16,
    kernel_rsp = const offset_of!(Area, kernel_frame) + 24,
    done = const DONE,
    user_root = const USER_ROOT,
    rounds = const ROUNDS,
    data = const DATA_SELECTOR,
    text = const CODE_SELECTOR,
);

macro_rules! code {
    ($($name:ident)*) => {
        unsafe extern "C" { $(static $name: u8;)* }
    };
}
code! {
    switcher_test_kernel switcher_test_kernel_end switcher_test_user switcher_test_user_end
    kernel_syscall kernel_event kernel_fault_of_user kernel_fault kernel_break kernel_trap
    kernel_calls kernel_faults kernel_traps kernel_breaks kernel_halts
    user_calls user_reads_kernel user_writes_kernel user_jumps_to_kernel user_reads_area user_writes_area
    user_jumps_to_switcher user_writes_syscall_page user_loads_root user_does_output
}

/// The bytes from one symbol to another.
fn bytes(from: *const u8, to: *const u8) -> &'static [u8] {
    // SAFETY: both symbols belong to the one section above, in this order.
    unsafe { std::slice::from_raw_parts(from, to.addr() - from.addr()) }
}

/// Where a symbol of the kernel is in guest memory.
fn kernel(symbol: *const u8) -> u64 {
    KERNEL + (symbol.addr() - (&raw const switcher_test_kernel).addr()) as u64
}

fn user(symbol: *const u8) -> u64 {
    USER + (symbol.addr() - (&raw const switcher_test_user).addr()) as u64
}

struct Guest {
    memory: Memory,
    vcpu: VcpuFd,
    vm: VmFd,
}

fn frame(rip: u64, rsp: u64) -> Frame {
    Frame {
        rip,
        cs: CODE_SELECTOR,
        rflags: 0x202,
        rsp,
        ss: DATA_SELECTOR,
    }
}

impl Guest {
    /// A guest that begins in the kernel at `begin`, with a user that begins at `at`.
    fn new(begin: u64, at: u64) -> Option<Self> {
        let kvm = or_skipped(paravane::kvm::open())?;
        let vm = kvm.create_vm().unwrap();
        let memory = Memory::new(32).unwrap();
        memory.register(&vm).unwrap();
        vm.set_tss_address(paravane::memory::KVM_TSS).unwrap();
        let split = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            ..Default::default()
        };
        vm.enable_cap(&split).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        vcpu.set_cpuid2(&cpuid).unwrap();

        switcher::install(&memory, 1, Users::Isolated).unwrap();
        switcher::boot_tables(&memory).unwrap();
        let mut area: Area = memory.read_obj(switcher::area_address(0)).unwrap();
        let entry_stack = REGIONS + 0x800;
        area.syscall = frame(kernel(&raw const kernel_syscall), entry_stack);
        area.user_breakpoint = area.syscall;
        area.user_fault = frame(kernel(&raw const kernel_fault_of_user), entry_stack);
        area.event = frame(kernel(&raw const kernel_event), entry_stack);
        area.halted = area.event;
        area.fault = frame(kernel(&raw const kernel_fault), entry_stack);
        area.breakpoint = frame(kernel(&raw const kernel_break), entry_stack);
        area.leave = frame(at, USER_STACK);
        memory.write_obj(switcher::area_address(0), &area).unwrap();
        // The kernel's own gate of #GP: a trap gate to CPL 3.
        let trap = kernel(&raw const kernel_trap);
        let gate = trap & 0xffff | CODE_SELECTOR << 16 | 0x8f << 40 | (trap >> 16) << 48;
        let idt = switcher::area_address(0) + IDT_OFFSET;
        memory
            .write(idt + 16 * GENERAL_PROTECTION, &gate.to_le_bytes())
            .unwrap();
        let code = bytes(
            &raw const switcher_test_kernel,
            &raw const switcher_test_kernel_end,
        );
        memory.write(KERNEL, code).unwrap();
        let code = bytes(
            &raw const switcher_test_user,
            &raw const switcher_test_user_end,
        );
        memory.write(USER, code).unwrap();
        let word = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).unwrap();
        word(USER_ROOT, (USER_ROOT + 0x1000) | 7);
        word(USER_ROOT + 0x1000, (USER_ROOT + 0x2000) | 7);
        word(USER_ROOT + 0x2000 + 3 * 8, USER | 0x87);
        word(USER_ROOT + 8 * 505, area.user_slot);

        let mut sregs = vcpu.get_sregs().unwrap();
        switcher::special(&mut sregs, 0, switcher::BOOT_ROOT);
        vcpu.set_sregs(&sregs).unwrap();
        switcher::set_msrs(&vcpu, 0, Users::Isolated).unwrap();
        let regs = kvm_regs {
            rip: begin,
            rsp: STACK,
            rflags: 0x202,
            ..Default::default()
        };
        vcpu.set_regs(&regs).unwrap();
        Some(Self { memory, vcpu, vm })
    }

    /// Runs until the kernel is done.
    fn run(&mut self) -> kvm_regs {
        match self.vcpu.run().unwrap() {
            VcpuExit::IoOut(DONE, _) => {}
            other => {
                let what = format!("{other:?}");
                let regs = self.vcpu.get_regs().unwrap();
                let sregs = self.vcpu.get_sregs().unwrap();
                panic!("{what}\n{regs:x?}\n{sregs:x?}");
            }
        }
        self.vcpu.get_regs().unwrap()
    }

    fn area(&self) -> Area {
        self.memory.read_obj(switcher::area_address(0)).unwrap()
    }
}

/// Prints what one round of `what` costs: the best of some runs.
fn cost(what: &str, begin: u64, at: u64) -> Option<kvm_regs> {
    let mut best = f64::MAX;
    let mut last = None;
    for _ in 0..5 {
        let mut guest = Guest::new(begin, at)?;
        let start = Instant::now();
        last = Some(guest.run());
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{what}: {:.1} us", best * 1e6 / f64::from(ROUNDS));
    last
}

const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;

#[test]
fn a_user_calls_its_kernel() {
    let Some(regs) = cost("SYSCALL and back", KERNEL, user(&raw const user_calls)) else {
        return;
    };
    assert_eq!((regs.rsi, regs.r15), (GENERAL_PROTECTION, 0));
}

#[test]
fn a_kernel_calls_the_switcher() {
    cost("load_root", kernel(&raw const kernel_calls), 0);
}

#[test]
fn a_page_fault_in_the_kernel_is_told_to_it() {
    let Some(regs) = cost(
        "page fault in the kernel",
        kernel(&raw const kernel_faults),
        0,
    ) else {
        return;
    };
    assert_eq!(regs.r9, 0xd_0000_0000);
}

#[test]
fn a_user_reaches_neither_kernel_nor_switcher() {
    let attempts = [
        ("reads the kernel", &raw const user_reads_kernel, PAGE_FAULT),
        (
            "writes to the kernel",
            &raw const user_writes_kernel,
            PAGE_FAULT,
        ),
        (
            "jumps into the kernel",
            &raw const user_jumps_to_kernel,
            PAGE_FAULT,
        ),
        ("reads the area", &raw const user_reads_area, PAGE_FAULT),
        (
            "writes to the area",
            &raw const user_writes_area,
            PAGE_FAULT,
        ),
        (
            "jumps into the switcher",
            &raw const user_jumps_to_switcher,
            PAGE_FAULT,
        ),
        (
            "writes to the page of SYSCALL",
            &raw const user_writes_syscall_page,
            PAGE_FAULT,
        ),
        (
            "loads a root",
            &raw const user_loads_root,
            GENERAL_PROTECTION,
        ),
        (
            "does output",
            &raw const user_does_output,
            GENERAL_PROTECTION,
        ),
    ];
    for (what, symbol, vector) in attempts {
        let Some(mut guest) = Guest::new(KERNEL, user(symbol)) else {
            return;
        };
        let regs = guest.run();
        assert_eq!(regs.rsi, vector, "a user that {what}");
        assert_eq!(regs.r8, CODE_SELECTOR, "a user that {what}");
        assert_ne!(
            guest.area().user_frame.cs,
            SWITCHER_CS,
            "a user that {what}"
        );
    }
}

#[test]
fn an_exception_in_the_kernel_goes_straight_to_it() {
    let Some(regs) = cost("#GP in the kernel", kernel(&raw const kernel_traps), 0) else {
        return;
    };
    assert_eq!(regs.r14, u64::from(ROUNDS));
}

#[test]
fn a_breakpoint_that_is_no_call_goes_to_the_kernel() {
    let Some(mut guest) = Guest::new(kernel(&raw const kernel_breaks), 0) else {
        return;
    };
    let regs = guest.run();
    assert_eq!(regs.rsi, 0x1234, "RAX is kept");
    assert_eq!(regs.rdi, kernel(&raw const kernel_breaks) + 6);
}

#[test]
fn an_interrupt_ends_a_halt() {
    const VECTOR: u8 = 0x55;
    let Some(mut guest) = Guest::new(kernel(&raw const kernel_halts), 0) else {
        return;
    };
    let mut lapic = guest.vcpu.get_lapic().unwrap();
    // Software enable.
    lapic.regs[0xf1] |= 1;
    guest.vcpu.set_lapic(&lapic).unwrap();
    let msi = kvm_msi {
        address_lo: 0xfee0_0000,
        data: u32::from(VECTOR),
        ..Default::default()
    };
    assert!(guest.vm.signal_msi(msi).unwrap() > 0);
    // Not before the halt.
    let mut regs = guest.vcpu.get_regs().unwrap();
    regs.rflags = 2;
    guest.vcpu.set_regs(&regs).unwrap();
    let regs = guest.run();
    assert_eq!(regs.rsi, u64::from(VECTOR));
    assert_eq!(regs.r8, SWITCHER_CS, "it came from the halt");
}

#[test]
fn a_frame_that_cannot_be_left_to_is_told_to_the_kernel() {
    let Some(mut guest) = Guest::new(KERNEL, USER) else {
        return;
    };
    let mut area = guest.area();
    area.leave.ss = SWITCHER_CS;
    guest
        .memory
        .write_obj(switcher::area_address(0), &area)
        .unwrap();
    let regs = guest.run();
    assert_eq!(regs.rsi, GENERAL_PROTECTION);
    assert_eq!(regs.r8, SWITCHER_CS);
}
