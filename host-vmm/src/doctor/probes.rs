//! The probes: what each one is called, and what a CPU does there according to its manual.

use super::interrupts::{Source, VECTOR};
use super::machine::{Calls, Gate, Privilege, Setup, Sync};
use super::probe::Outcome;

/// What the manuals of Intel and AMD promise.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    /// The probe reaches its end.
    Runs,
    /// The probe reaches its end with this result.
    Result(u32),
    /// The CPU traps with this vector.
    Vector(u8),
    /// The probe reaches its end, or #UD says that the CPU has no such instruction.
    RunsOrUndefined,
}

impl Expected {
    /// Whether `outcome` is what the manuals say.
    #[must_use]
    pub fn is(self, outcome: &Outcome) -> bool {
        match (self, outcome) {
            (Self::Runs | Self::RunsOrUndefined, Outcome::Result { .. }) => true,
            (Self::Result(expected), Outcome::Result { value }) => expected == *value,
            (Self::Vector(expected), Outcome::Exception { vector, .. }) => expected == *vector,
            (Self::RunsOrUndefined, Outcome::Exception { vector, .. }) => *vector == 6,
            _ => false,
        }
    }
}

/// One instruction, or one behaviour, to be tried.
#[derive(Clone, Copy, Debug)]
pub struct InstructionProbe {
    /// Its name in reports, `cpl0.…` or `cpl3.…`.
    pub name: &'static str,
    /// The machine.
    pub setup: Setup,
    /// The manual's word.
    pub expected: Expected,
    /// Whether it may run on hosts with VMX or SVM only.
    pub hardware_only: bool,
}

/// A thing that is repeated and timed.
#[derive(Clone, Copy, Debug)]
pub struct CrossingProbe {
    /// Its name in reports.
    pub name: &'static str,
    /// What it is, for the table.
    pub what: &'static str,
    /// The machine.
    pub setup: Setup,
    /// The crossing whose batches are subtracted from its own; empty: those of the frame.
    pub frame: &'static str,
    /// Whether every other batch is one of bare OUTs, without `SYNC_REGS`, to be compared with.
    pub in_turns: bool,
    /// Times in a batch.
    pub batch: u32,
    /// Batches.
    pub batches: u32,
    /// Whether it may run on hosts with VMX or SVM only.
    pub hardware_only: bool,
}

const fn kernel(name: &'static str, entry: &'static str, expected: Expected) -> InstructionProbe {
    InstructionProbe {
        name,
        setup: Setup::plain(entry, Privilege::Kernel),
        expected,
        hardware_only: false,
    }
}

const fn user(name: &'static str, entry: &'static str, expected: Expected) -> InstructionProbe {
    InstructionProbe {
        name,
        setup: Setup::plain(entry, Privilege::User),
        expected,
        hardware_only: false,
    }
}

/// The same with another machine.
macro_rules! with {
    ($probe:expr, $($field:ident: $value:expr),+) => {{
        let mut probe = $probe;
        $(probe.setup.$field = $value;)+
        probe
    }};
}

const fn hardware(mut probe: InstructionProbe) -> InstructionProbe {
    probe.hardware_only = true;
    probe
}

use Expected::{Result, Runs, RunsOrUndefined, Vector};

/// All instruction probes, in the order of the table.
pub const INSTRUCTIONS: &[InstructionProbe] = &[
    kernel("cpl0.nop", "k_nop", Runs),
    kernel("cpl0.lock_xadd", "k_lock_xadd", Result(5)),
    kernel("cpl0.rep_stos", "k_rep_stos", Result(7)),
    kernel("cpl0.rep_movs", "k_rep_movs", Result(9)),
    kernel("cpl0.int3", "k_int3", Vector(3)),
    kernel("cpl0.int_n", "k_int_n", Vector(0x30)),
    kernel("cpl0.ud2", "k_ud2", Vector(6)),
    kernel("cpl0.divide_error", "k_div0", Vector(0)),
    kernel("cpl0.page_fault", "k_page_fault", Vector(14)),
    kernel("cpl0.cmpxchg16b", "k_cmpxchg16b", Result(2)),
    kernel("cpl0.swapgs", "k_swapgs", Runs),
    kernel("cpl0.wrmsr", "k_wrmsr", Result(0x1230)),
    kernel("cpl0.mov_cr3", "k_mov_cr3", Runs),
    kernel("cpl0.mov_cr4", "k_mov_cr4", Runs),
    kernel("cpl0.invlpg", "k_invlpg", Runs),
    kernel("cpl0.lgdt", "k_lgdt", Runs),
    kernel("cpl0.lidt", "k_lidt", Runs),
    kernel("cpl0.ltr", "k_ltr", Runs),
    kernel("cpl0.iretq", "k_iretq", Result(0x33)),
    kernel("cpl0.iretq_same", "k_iretq_same", Result(1)),
    kernel("cpl0.sysretq", "k_sysretq", Result(0x33)),
    kernel("cpl0.rdtsc", "k_rdtsc", Runs),
    kernel("cpl0.rdtscp", "k_rdtscp", RunsOrUndefined),
    kernel("cpl0.cpuid", "k_cpuid", Result(1)),
    with!(kernel("cpl0.cpuid_masked", "k_cpuid_masked", Result(0)), no_xsave: true),
    kernel("cpl0.fxsave", "k_fxsave", Runs),
    kernel("cpl0.fxrstor", "k_fxrstor", Runs),
    kernel("cpl0.xgetbv", "k_xgetbv", RunsOrUndefined),
    kernel("cpl0.xsetbv", "k_xsetbv", RunsOrUndefined),
    kernel("cpl0.xsave", "k_xsave", RunsOrUndefined),
    kernel("cpl0.xrstor", "k_xrstor", RunsOrUndefined),
    kernel("cpl0.ldmxcsr", "k_ldmxcsr", Runs),
    kernel("cpl0.stac", "k_stac", RunsOrUndefined),
    kernel("cpl0.clac", "k_clac", RunsOrUndefined),
    kernel("cpl0.verw", "k_verw", Result(1)),
    kernel("cpl0.invpcid", "k_invpcid", RunsOrUndefined),
    kernel("cpl0.popcnt", "k_popcnt", Result(12)),
    kernel("cpl0.crc32", "k_crc32", Result(1)),
    kernel("cpl0.sse", "k_sse", Result(40)),
    kernel("cpl0.avx", "k_avx", RunsOrUndefined),
    kernel("cpl0.aes", "k_aes", RunsOrUndefined),
    kernel("cpl0.sha", "k_sha", RunsOrUndefined),
    kernel("cpl0.bmi", "k_bmi", RunsOrUndefined),
    // KVM answers an unknown hypercall with -1000, whatever the vendor's opcode.
    hardware(kernel("cpl0.vmcall", "k_vmcall", Result(0xffff_fc18))),
    hardware(kernel("cpl0.vmmcall", "k_vmmcall", Result(0xffff_fc18))),
    user("cpl3.nop", "u_nop", Runs),
    user("cpl3.sse", "u_sse", Result(40)),
    user("cpl3.avx", "u_avx", RunsOrUndefined),
    user("cpl3.cmpxchg16b", "u_cmpxchg16b", Result(2)),
    user("cpl3.xsave", "u_xsave", Runs),
    user("cpl3.xrstor", "u_xrstor", Runs),
    user("cpl3.rdtsc", "u_rdtsc", Runs),
    user("cpl3.cpuid", "u_cpuid", Result(1)),
    user("cpl3.iretq_same", "u_iretq_same", Result(1)),
    user("cpl3.int3", "u_int3", Vector(3)),
    user("cpl3.int_n", "u_int_n", Vector(0x30)),
    user("cpl3.ud2", "u_ud2", Vector(6)),
    user("cpl3.page_fault", "u_page_fault", Vector(14)),
    user("cpl3.supervisor_page", "u_supervisor_page", Vector(14)),
    user("cpl3.cli", "u_cli", Vector(13)),
    user("cpl3.hlt", "u_hlt", Vector(13)),
    user("cpl3.mov_cr3", "u_mov_cr3", Vector(13)),
    user("cpl3.wrmsr", "u_wrmsr", Vector(13)),
    user("cpl3.invlpg", "u_invlpg", Vector(13)),
    user("cpl3.wrgsbase_switched_off", "u_wrgsbase", Vector(6)),
    user("cpl3.syscall_raises_privilege", "u_syscall", Result(0x10)),
    with!(user("cpl3.syscall_to_user_page", "u_syscall", Result(0x10)), syscall_entry: "uh_report_cs"),
    user("cpl3.pushf_if", "u_pushf", Result(0)),
    user("cpl3.popf_if", "u_popf", Result(0)),
    with!(user("cpl3.gate_to_cpl3", "u_int3", Result(0x33)),
        gate: Some(Gate { vector: 3, handler: "uh_report_cs", to: Privilege::User })),
    user("cpl3.in_closed", "u_in", Vector(13)),
    user("cpl3.out_closed", "u_out", Vector(13)),
    with!(user("cpl3.out_by_iopl", "u_out", Result(1)), iopl: true),
    with!(user("cpl3.out_by_bitmap", "u_out", Result(1)), open_ports: true),
    with!(user("cpl3.in_by_bitmap", "u_in", Result(1)), open_ports: true),
    with!(kernel("cpl0.interrupt_by_msi", "k_spin", Vector(VECTOR)), interrupt: Some(Source::Msi)),
    with!(kernel("cpl0.interrupt_by_irqfd", "k_spin", Vector(VECTOR)), interrupt: Some(Source::Irqfd)),
    with!(kernel("cpl0.interrupt_by_timer", "k_spin", Vector(VECTOR)), interrupt: Some(Source::Timer)),
    with!(user("cpl3.interrupt_by_msi", "u_spin", Vector(VECTOR)), interrupt: Some(Source::Msi)),
    with!(user("cpl3.interrupt_by_irqfd", "u_spin", Vector(VECTOR)), interrupt: Some(Source::Irqfd)),
    with!(user("cpl3.interrupt_by_timer", "u_spin", Vector(VECTOR)), interrupt: Some(Source::Timer)),
    with!(
        user("cpl3.interrupt_to_cpl3", "u_spin", Result(0x33)),
        interrupt: Some(Source::Msi),
        gate: Some(Gate { vector: VECTOR, handler: "uh_report_cs", to: Privilege::User })
    ),
    with!(user("cpl3.pml4_slot_255", "u_nop", Runs), slot: 255),
    with!(user("cpl3.pml4_slot_256", "u_nop", Runs), slot: 256),
    with!(user("cpl3.pml4_slot_257", "u_nop", Runs), slot: 257),
    with!(user("cpl3.pml4_slot_511", "u_nop", Runs), slot: 511),
];

/// What it means when one of these is not as in the manual, where the outcome alone does not say.
pub const NOTES: &[(&str, &str)] = &[
    (
        "cpl0.cpuid_masked",
        "the guest sees XSAVE and AVX that the VMM has taken away",
    ),
    ("cpl3.wrgsbase_switched_off", "although CR4.FSGSBASE is off"),
    (
        "cpl3.syscall_raises_privilege",
        "in the kernel's entry, still at CPL 3",
    ),
    (
        "cpl3.syscall_to_user_page",
        "CS of CPL 3: syscall has not raised privilege",
    ),
    ("cpl3.pushf_if", "IF reads as set, and is clear"),
    ("cpl3.popf_if", "IF reads as set, and is clear"),
    ("cpl3.out_by_iopl", "IOPL 3 does not open ports"),
    ("cpl3.out_by_bitmap", "the TSS's bitmap does not open ports"),
    ("cpl3.in_by_bitmap", "the TSS's bitmap does not open ports"),
    (
        "cpl3.pml4_slot_256",
        "user code cannot be at 0xffff800000000000",
    ),
];

const BATCH: u32 = super::image::layout::BATCH;
const BATCHES: u32 = 50;
/// For costs that are compared with one another.
const MANY_BATCHES: u32 = 400;

const fn crossing(
    name: &'static str,
    what: &'static str,
    entry: &'static str,
    privilege: Privilege,
) -> CrossingProbe {
    CrossingProbe {
        name,
        what,
        setup: Setup::plain(entry, privilege),
        frame: "",
        in_turns: false,
        batch: BATCH,
        batches: BATCHES,
        hardware_only: false,
    }
}

const fn slow(mut probe: CrossingProbe, batches: u32) -> CrossingProbe {
    (probe.batch, probe.batches) = (1, batches);
    probe
}

const fn trap(
    name: &'static str,
    what: &'static str,
    entry: &'static str,
    vector: u8,
    handler: &'static str,
) -> CrossingProbe {
    let mut probe = crossing(name, what, entry, Privilege::User);
    probe.setup.gate = Some(Gate {
        vector,
        handler,
        to: Privilege::Kernel,
    });
    probe
}

const fn hardware_crossing(mut probe: CrossingProbe) -> CrossingProbe {
    probe.hardware_only = true;
    probe
}

/// A call of the ABI, answered by the VMM's own dispatcher.
const fn call(
    name: &'static str,
    what: &'static str,
    entry: &'static str,
    privilege: Privilege,
    calls: Calls,
    frame: &'static str,
) -> CrossingProbe {
    let mut probe = crossing(name, what, entry, privilege);
    (probe.setup.sync, probe.setup.calls) = (Sync::General, calls);
    (probe.setup.open_ports, probe.frame) = (true, frame);
    if matches!(calls, Calls::Ring) {
        probe.batch = BATCH * super::image::layout::SUBMISSION;
    }
    probe.batches = MANY_BATCHES;
    probe
}

const fn in_turns(mut probe: CrossingProbe) -> CrossingProbe {
    (probe.in_turns, probe.setup.sync) = (true, Sync::InTurns);
    probe
}

use Privilege::{Kernel, User};

/// All crossings. The first two are the frames around a batch, which the others lose.
pub const CROSSINGS: &[CrossingProbe] = &[
    slow(
        crossing(
            "cpl0.empty_batch",
            "frame of a batch (subtracted below)",
            "c_k_empty",
            Kernel,
        ),
        BATCHES,
    ),
    slow(
        crossing(
            "cpl3.empty_batch",
            "frame of a batch (subtracted below)",
            "c_u_empty",
            User,
        ),
        BATCHES,
    ),
    crossing("cpl0.nop", "one instruction", "c_k_nop", Kernel),
    crossing("cpl0.out", "OUT to the VMM", "c_k_out", Kernel),
    call(
        "cpl0.call_nop_frame",
        "a null call's instructions without OUT",
        "c_k_call_nop_frame",
        Kernel,
        Calls::Doorbell,
        "",
    ),
    in_turns(call(
        "cpl0.call_nop",
        "null call",
        "c_k_call_nop",
        Kernel,
        Calls::Doorbell,
        "cpl0.call_nop_frame",
    )),
    call(
        "cpl0.call_batch_frame",
        "a ring's instructions without OUT",
        "c_k_call_batch_frame",
        Kernel,
        Calls::Ring,
        "",
    ),
    call(
        "cpl0.call_batch",
        "null call of 8 in a ring",
        "c_k_call_batch",
        Kernel,
        Calls::Ring,
        "cpl0.call_batch_frame",
    ),
    call(
        "cpl0.call_exitless",
        "null call, exitless",
        "c_k_call_exitless",
        Kernel,
        Calls::Exitless,
        "",
    ),
    with!(crossing("cpl0.out_sync_regs", "OUT to the VMM with SYNC_REGS", "c_k_out", Kernel), sync: Sync::General),
    with!(
        crossing("cpl0.out_sync_sregs", "OUT to the VMM with all of SYNC_REGS", "c_k_out", Kernel),
        sync: Sync::Special
    ),
    with!(crossing("cpl0.call_registers", "call with 6 arguments in registers", "c_k_call_registers", Kernel),
        sync: Sync::General),
    crossing(
        "cpl0.call_frame",
        "call with 6 arguments in memory",
        "c_k_call_frame",
        Kernel,
    ),
    crossing("cpl0.in", "IN from the VMM", "c_k_in", Kernel),
    crossing(
        "cpl0.mmio_write",
        "MMIO write to the VMM",
        "c_k_mmio_write",
        Kernel,
    ),
    crossing(
        "cpl0.mmio_read",
        "MMIO read from the VMM",
        "c_k_mmio_read",
        Kernel,
    ),
    crossing(
        "cpl0.ioeventfd_pio",
        "OUT to an ioeventfd",
        "c_k_event_pio",
        Kernel,
    ),
    crossing(
        "cpl0.ioeventfd_mmio",
        "MMIO write to an ioeventfd",
        "c_k_event_mmio",
        Kernel,
    ),
    crossing(
        "cpl0.coalesced_pio",
        "coalesced OUT",
        "c_k_coalesced_pio",
        Kernel,
    ),
    crossing(
        "cpl0.coalesced_mmio",
        "coalesced MMIO write",
        "c_k_coalesced_mmio",
        Kernel,
    ),
    crossing(
        "cpl0.rdmsr_exit",
        "RDMSR to the VMM",
        "c_k_rdmsr_exit",
        Kernel,
    ),
    crossing(
        "cpl0.wrmsr_exit",
        "WRMSR to the VMM",
        "c_k_wrmsr_exit",
        Kernel,
    ),
    crossing("cpl0.hlt", "HLT to the VMM", "c_k_hlt", Kernel),
    crossing("cpl0.cpuid", "CPUID", "c_k_cpuid", Kernel),
    crossing("cpl0.wrmsr", "WRMSR of KERNEL_GS_BASE", "c_k_wrmsr", Kernel),
    crossing("cpl0.mov_cr3", "CR3 reload", "c_k_mov_cr3", Kernel),
    crossing("cpl0.invlpg", "INVLPG", "c_k_invlpg", Kernel),
    slow(
        crossing(
            "cpl0.rep_stosq_4k",
            "REP STOSQ of a page",
            "c_k_rep_stosq_4k",
            Kernel,
        ),
        30,
    ),
    slow(
        crossing(
            "cpl0.rep_movsb_4k",
            "REP MOVSB of a page",
            "c_k_rep_movsb_4k",
            Kernel,
        ),
        30,
    ),
    hardware_crossing(crossing(
        "cpl0.vmcall",
        "VMCALL, unknown to KVM",
        "c_k_vmcall",
        Kernel,
    )),
    hardware_crossing(crossing(
        "cpl0.vmmcall",
        "VMMCALL, unknown to KVM",
        "c_k_vmmcall",
        Kernel,
    )),
    with!(crossing("cpl3.out", "OUT to the VMM, by the I/O bitmap", "c_u_out", User), open_ports: true),
    in_turns(call(
        "cpl3.call_nop",
        "null call",
        "c_u_call_nop",
        User,
        Calls::Doorbell,
        "",
    )),
    call(
        "cpl3.call_batch",
        "null call of 8 in a ring",
        "c_u_call_batch",
        User,
        Calls::Ring,
        "",
    ),
    call(
        "cpl3.call_exitless",
        "null call, exitless",
        "c_u_call_exitless",
        User,
        Calls::Exitless,
        "",
    ),
    crossing(
        "cpl3.mmio_write",
        "MMIO write to the VMM",
        "c_u_mmio_write",
        User,
    ),
    crossing(
        "cpl3.ioeventfd_mmio",
        "MMIO write to an ioeventfd",
        "c_u_event_mmio",
        User,
    ),
    crossing(
        "cpl3.coalesced_mmio",
        "coalesced MMIO write",
        "c_u_coalesced_mmio",
        User,
    ),
    crossing("cpl3.cpuid", "CPUID", "c_u_cpuid", User),
    trap(
        "cpl3.general_protection",
        "#GP to CPL 0 and back",
        "c_u_hlt",
        13,
        "h_skip1_error",
    ),
    trap(
        "cpl3.breakpoint",
        "#BP to CPL 0 and back",
        "c_u_int3",
        3,
        "h_return",
    ),
    trap(
        "cpl3.invalid_opcode",
        "#UD to CPL 0 and back",
        "c_u_ud2",
        6,
        "h_skip2",
    ),
    trap(
        "cpl3.page_fault",
        "#PF to CPL 0 and back",
        "c_u_page_fault",
        14,
        "h_skip7_error",
    ),
    trap(
        "cpl3.breakpoint_two_cr3",
        "#BP to CPL 0 and back, two CR3 loads",
        "c_u_int3",
        3,
        "h_return_cr3_twice",
    ),
    with!(crossing("cpl3.breakpoint_gate_to_cpl3", "#BP to a CPL 3 handler and back", "c_u_int3", User),
        gate: Some(Gate { vector: 3, handler: "uh_return", to: Privilege::User })),
    with!(crossing("cpl3.syscall", "SYSCALL to CPL 0, SYSRET", "c_u_syscall", User), syscall_entry: "h_sysretq"),
    with!(crossing("cpl3.syscall_to_user_page", "SYSCALL that stays at CPL 3", "c_u_syscall", User),
        syscall_entry: "uh_jmp_rcx"),
];
