// SPDX-License-Identifier: GPL-2.0-only

//! The operations that `pvbench.ko` measures: an instruction or an access as such, and what this
//! kernel does when it wants the same. Whether the two differ is what a guest's arm decides.

use crate::{
    abi::registry::*,
    bench_c::*,
    bench_native::{self as native, tsc},
    bench_ring::Ring,
    call, Rounds, ROUNDS_MAX, WARM_UP,
};

/// One operation.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// The facility that replaces it, or is meant to.
    pub(crate) facility: &'static str,
    /// For people.
    pub(crate) what: &'static str,
    pub(crate) needs: Needs,
    /// Measures it. False: it went wrong.
    pub(crate) run: fn(&mut Rounds<'_>) -> bool,
}

/// What a guest must have for an operation.
#[derive(Clone, Copy)]
pub(crate) enum Needs {
    Nothing,
    OtherCpu,
    /// A Paravane host with this facility.
    Facility(u32),
    /// A Paravane host with this transport.
    Transport(u32),
}

impl Needs {
    /// What this guest does not have.
    pub(crate) fn missing(self) -> Option<&'static str> {
        match self {
            Self::OtherCpu if !has_other_cpu() => Some("there is no second processor"),
            Self::Facility(id) if !has_facility(id) => Some("the host has no such facility"),
            Self::Transport(bit) if value(3) & u64::from(bit) == 0 => {
                Some("the host has no such transport")
            }
            _ => None,
        }
    }
}

/// A value of the built-in part, numbered as in `info.rs`; 0 without a Paravane host.
fn value(which: u32) -> u64 {
    // SAFETY: No requirements.
    unsafe { paravane_value(which) }
}

fn has_facility(id: u32) -> bool {
    value(2) & (1 << id) != 0
}

fn has_other_cpu() -> bool {
    // SAFETY: No requirements.
    unsafe { pvbench_has_other_cpu() }
}

const ALWAYS: Needs = Needs::Nothing;
const OTHER: Needs = Needs::OtherCpu;
const HOST: Needs = Needs::Facility(FACILITY_BASE);
const RING: Needs = Needs::Transport(TRANSPORT_RING);
const EXITLESS: Needs = Needs::Transport(TRANSPORT_EXITLESS);

const fn op(
    name: &'static str,
    facility: &'static str,
    what: &'static str,
    needs: Needs,
    run: fn(&mut Rounds<'_>) -> bool,
) -> Operation {
    Operation {
        name,
        facility,
        what,
        needs,
        run,
    }
}

/// All operations, in the order in which they are measured; the first is what measuring costs.
#[rustfmt::skip]
pub(crate) const OPERATIONS: [Operation; 33] = [
    op("empty", "", "nothing: two reads of the TSC", ALWAYS, empty),
    op("cli-sti", "cpu", "CLI, STI", ALWAYS, cli_sti),
    op("cpuid", "cpuid", "CPUID", ALWAYS, cpuid),
    op("cpuid-kernel", "cpuid", "CPUID, as the kernel asks", ALWAYS, cpuid_kernel),
    op("rdmsr", "cpu", "RDMSR that KVM serves (APIC base)", ALWAYS, rdmsr),
    op("rdmsr-free", "cpu", "RDMSR of the guest's own (kernel GS base)", ALWAYS, rdmsr_free),
    op("cr4", "cpu", "CR4 read and written", ALWAYS, cr4),
    op("cr3", "mmu", "CR3 read and written", ALWAYS, cr3),
    op("invlpg", "mmu", "INVLPG", ALWAYS, invlpg),
    op("tlb-all", "mmu", "whole TLB flushed, as the kernel does it", ALWAYS, tlb_all),
    op("page-first", "mem", "first touch of a page of RAM", ALWAYS, page_first),
    op("page-fault", "mem", "page fault of a process, page cleared", ALWAYS, page_fault),
    op("pio", "base", "OUT to the VMM", ALWAYS, pio),
    op("mmio", "dev", "device register read, to the VMM", ALWAYS, mmio),
    op("call", "base", "null call by doorbell", HOST, null_call),
    op("ring-8", "ring", "ring of 8 null calls, one doorbell", RING, ring),
    op("exitless-8", "ring", "ring of 8 null calls, no doorbell", EXITLESS, exitless),
    op("uart-byte", "console", "byte to a UART: status read, byte written", ALWAYS, uart_byte),
    op("console-line", "console", "64 bytes, as this kernel prints them", ALWAYS, console_line),
    op("ktime", "clock", "ktime_get()", ALWAYS, ktime),
    op("sched-clock", "clock", "local_clock()", ALWAYS, sched_clock),
    op("timer-write", "timer", "LAPIC timer's register written", ALWAYS, timer_write),
    op("timer-arm", "timer", "first timer of all armed and cancelled", ALWAYS, timer_arm),
    op("sleep", "timer", "sleep of 100 us: timer, HLT, wake-up", ALWAYS, sleep),
    op("lapic-read", "irq", "LAPIC register read (TPR)", ALWAYS, lapic_read),
    op("lapic-kernel", "irq", "LAPIC register read, as the kernel does it", ALWAYS, lapic_kernel),
    op("eoi", "irq", "end of interrupt written", ALWAYS, eoi),
    op("ipi-self", "irq", "interrupt to itself, until its handler", ALWAYS, ipi_self),
    op("ipi-other", "ipi", "pause; call on the processor that sleeps, and back", OTHER, ipi_other),
    op("tlb-other", "tlb", "pause; TLB flush of the processor that sleeps", OTHER, tlb_other),
    op("tlb-busy", "tlb", "TLB flush of the processor that is busy", OTHER, tlb_busy),
    op("wake-other", "sched", "task woken on another processor, and back", OTHER, wake_other),
    op("cpu-on", "smp", "processor brought on line", OTHER, cpu_on),
];

/// Rounds of what costs an exit or less, of what takes longer, of a line that may be a hundred
/// exits, and of what takes milliseconds.
const MANY: usize = ROUNDS_MAX;
const FEW: usize = 200;
const LINES: usize = 50;
const RARE: usize = 10;

/// Cycles of `operation`.
fn cycles(operation: impl FnOnce()) -> u64 {
    let begin = tsc();
    operation();
    tsc().wrapping_sub(begin)
}

/// Calls `round` with interrupts off.
fn alone<T>(round: impl FnOnce() -> T) -> T {
    // SAFETY: Interrupts are as before at the end.
    unsafe {
        let flags = pvbench_irq_save();
        let result = round();
        pvbench_irq_restore(flags);
        result
    }
}

/// Many rounds of `operation`, each with interrupts off.
fn many(rounds: &mut Rounds<'_>, mut operation: impl FnMut()) -> bool {
    rounds.each(MANY, || Some(alone(|| cycles(&mut operation))))
}

fn empty(rounds: &mut Rounds<'_>) -> bool {
    many(rounds, || ())
}

fn cli_sti(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: This is a task's context.
    rounds.each(MANY, || Some(cycles(|| unsafe { native::cli_sti() })))
}

/// A leaf that is the same on every processor and at all times, so that a table may have it.
const CONSTANT_LEAF: u32 = 0x8000_0001;

fn cpuid(rounds: &mut Rounds<'_>) -> bool {
    many(rounds, || native::cpuid(CONSTANT_LEAF))
}

fn cpuid_kernel(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: No requirements.
    many(rounds, || unsafe { pvbench_cpuid(CONSTANT_LEAF) })
}

const APIC_BASE: u32 = 0x1b;
/// In it: the LAPIC's registers are MSRs, from the second number on.
const X2APIC: u64 = 1 << 10;
const X2APIC_REGISTERS: u32 = 0x800;

fn rdmsr(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: Every processor with a LAPIC has it.
    many(rounds, || {
        let _ = unsafe { native::rdmsr(APIC_BASE) };
    })
}

fn rdmsr_free(rounds: &mut Rounds<'_>) -> bool {
    const KERNEL_GS_BASE: u32 = 0xc000_0102;
    // SAFETY: Every 64-bit processor has it.
    many(rounds, || {
        let _ = unsafe { native::rdmsr(KERNEL_GS_BASE) };
    })
}

fn cr4(rounds: &mut Rounds<'_>) -> bool {
    many(rounds, native::rewrite_cr4)
}

fn cr3(rounds: &mut Rounds<'_>) -> bool {
    many(rounds, native::rewrite_cr3)
}

fn invlpg(rounds: &mut Rounds<'_>) -> bool {
    static BYTE: u8 = 0;
    many(rounds, || native::invlpg(&BYTE))
}

fn tlb_all(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: Interrupts are off.
    many(rounds, || unsafe { pvbench_flush_all() })
}

/// Pages in blocks that the allocator most likely has not given out before.
fn page_first(rounds: &mut Rounds<'_>) -> bool {
    const ORDER: u32 = 8;
    const PAGES: usize = 1 << ORDER;
    const BLOCKS: usize = (MANY + WARM_UP).div_ceil(PAGES);
    // SAFETY: No requirements.
    let blocks: [*mut u8; BLOCKS] =
        core::array::from_fn(|_| unsafe { pvbench_alloc(ORDER) }.cast());
    let mut page = 0;
    let all_well = rounds.each(MANY, || {
        let block = *blocks.get(page / PAGES)?;
        if block.is_null() {
            return None;
        }
        // SAFETY: Below the block's length.
        let byte = unsafe { block.add(page % PAGES * PAGE_SIZE) };
        page += 1;
        // SAFETY: A byte of a block of ours.
        Some(alone(|| cycles(|| unsafe { byte.write_volatile(1) })))
    });
    for block in blocks {
        // SAFETY: Allocated above, or null, which is no block.
        unsafe { pvbench_free(block.cast(), ORDER) };
    }
    all_well
}

fn page_fault(rounds: &mut Rounds<'_>) -> bool {
    const SIZE: usize = (MANY + WARM_UP) * PAGE_SIZE;
    // SAFETY: A mapping of the calling process where nothing else is.
    let base = unsafe { pvbench_map_user(SIZE) };
    if base == 0 {
        return false;
    }
    let mut address = base;
    let all_well = rounds.each(MANY, || {
        let mut touched = false;
        // SAFETY: The kernel checks the address.
        let cycles = cycles(|| touched = unsafe { pvbench_touch_user(address) });
        address += PAGE_SIZE;
        touched.then_some(cycles)
    });
    // SAFETY: Mapped above.
    unsafe { pvbench_unmap_user(base, SIZE) };
    all_well
}

fn pio(rounds: &mut Rounds<'_>) -> bool {
    const DELAY: u16 = 0x80;
    // SAFETY: The port that Linux itself writes to for a delay.
    many(rounds, || unsafe { native::write_port(DELAY, 0) })
}

fn mmio(rounds: &mut Rounds<'_>) -> bool {
    /// Where this machine has devices' addresses, and no device.
    const NOBODY: u64 = 0xd000_0000;
    // SAFETY: There is no RAM.
    let register = unsafe { pvbench_map_device(NOBODY) };
    if register.is_null() {
        return false;
    }
    // SAFETY: Mapped above.
    let all_well = many(rounds, || {
        let _ = unsafe { register.cast::<u32>().read_volatile() };
    });
    // SAFETY: Mapped above.
    unsafe { pvbench_unmap_device(register) };
    all_well
}

fn null_call(rounds: &mut Rounds<'_>) -> bool {
    rounds.each(MANY, || {
        let mut made = false;
        // SAFETY: The null call takes no address.
        let cycles = alone(|| cycles(|| made = unsafe { call(CALL_BASE_NOP, &[1]) } == Ok(1)));
        made.then_some(cycles)
    })
}

fn ring(rounds: &mut Rounds<'_>) -> bool {
    let Some(mut ring) = Ring::new(false) else {
        return false;
    };
    rounds.each(MANY, || {
        let mut done = false;
        let cycles = alone(|| cycles(|| done = ring.batch()));
        done.then_some(cycles)
    })
}

fn exitless(rounds: &mut Rounds<'_>) -> bool {
    let Some(mut ring) = Ring::new(true) else {
        return false;
    };
    rounds.each(FEW, || {
        let mut done = false;
        let cycles = cycles(|| done = ring.exitless_batch());
        done.then_some(cycles)
    })
}

const UART_STATUS: u16 = 0x3fd;
/// A register of a UART that only remembers.
const UART_SCRATCH: u16 = 0x3ff;

/// What a byte costs on a UART, without sending one.
fn to_uart(byte: u8) {
    // SAFETY: Reading the status does nothing to a console that polls, and nobody else uses the
    // scratch register.
    unsafe {
        let _ = native::read_port(UART_STATUS);
        native::write_port(UART_SCRATCH, byte);
    }
}

fn uart_byte(rounds: &mut Rounds<'_>) -> bool {
    many(rounds, || to_uart(0))
}

fn console_line(rounds: &mut Rounds<'_>) -> bool {
    const LINE: &[u8; 64] = b"pvbench: a line of sixty-four bytes for the console, no more..\r\n";
    let has_ring = has_facility(FACILITY_CONSOLE);
    rounds.each(LINES, || {
        Some(cycles(|| {
            if has_ring {
                // SAFETY: A static line.
                unsafe { paravane_bench_print(LINE.as_ptr(), LINE.len() as u32) };
            } else {
                LINE.iter().copied().for_each(to_uart);
            }
        }))
    })
}

fn ktime(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: No requirements.
    many(rounds, || unsafe { pvbench_ktime_get() })
}

fn sched_clock(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: No requirements.
    many(rounds, || unsafe { pvbench_sched_clock() })
}

const LAPIC_TPR: u32 = 0x80;
const LAPIC_TIMER: u32 = 0x320;
const LAPIC_TIMER_PERIODIC: u32 = 1 << 17;
const LAPIC_TIMER_DEADLINE: u32 = 1 << 18;
const LAPIC_INITIAL_COUNT: u32 = 0x380;
const LAPIC_CURRENT_COUNT: u32 = 0x390;
const TSC_DEADLINE: u32 = 0x6e0;

/// Writes what is there already, so that the kernel's tick comes as it would have come.
fn timer_write(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: Reads a register.
    let mode = unsafe { pvbench_lapic_read(LAPIC_TIMER) };
    // SAFETY: A LAPIC with that mode has the register; the others every LAPIC has. Interrupts are
    // off, so nobody else writes between reading and writing.
    rounds.each(MANY, || unsafe {
        Some(alone(|| {
            if mode & LAPIC_TIMER_DEADLINE != 0 {
                let deadline = native::rdmsr(TSC_DEADLINE);
                cycles(|| native::wrmsr(TSC_DEADLINE, deadline))
            } else {
                let count = pvbench_lapic_read(if mode & LAPIC_TIMER_PERIODIC != 0 {
                    LAPIC_INITIAL_COUNT
                } else {
                    LAPIC_CURRENT_COUNT
                });
                cycles(|| pvbench_lapic_write(LAPIC_INITIAL_COUNT, count))
            }
        }))
    })
}

/// Always the first timer of all, so that every round has to reach the device. Otherwise most
/// rounds would be those just before a tick: they cost nothing, so many fit there.
fn timer_arm(rounds: &mut Rounds<'_>) -> bool {
    const NS: u64 = 200_000;
    const ROOM_NS: i64 = 2 * NS as i64;
    rounds.each(MANY, || {
        // SAFETY: This is the measuring task, which is pinned. The timer is over on return.
        unsafe {
            while paravane_bench_next_event() < ROOM_NS {}
            Some(cycles(|| pvbench_arm_timer(NS)))
        }
    })
}

fn sleep(rounds: &mut Rounds<'_>) -> bool {
    const NS: u64 = 100_000;
    // SAFETY: A task's context.
    rounds.each(FEW, || Some(cycles(|| unsafe { pvbench_sleep(NS) })))
}

fn lapic_read(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: Every processor with a LAPIC has it.
    if unsafe { native::rdmsr(APIC_BASE) } & X2APIC == 0 {
        return lapic_kernel(rounds);
    }
    // SAFETY: The LAPIC's registers are MSRs.
    many(rounds, || {
        let _ = unsafe { native::rdmsr(X2APIC_REGISTERS + (LAPIC_TPR >> 4)) };
    })
}

fn lapic_kernel(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: Reads a register.
    many(rounds, || {
        let _ = unsafe { pvbench_lapic_read(LAPIC_TPR) };
    })
}

fn eoi(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: There is no interrupt in service, so it ends none.
    many(rounds, || unsafe { pvbench_eoi() })
}

fn ipi_self(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: Interrupts are on.
    rounds.each(MANY, || Some(unsafe { pvbench_ipi_self() }))
}

/// Waits until a host that looks after a halted processor for a while has given that up.
fn pause() {
    const NS: u64 = 1_000_000;
    // SAFETY: A task's context.
    unsafe { pvbench_sleep(NS) };
}

fn ipi_other(rounds: &mut Rounds<'_>) -> bool {
    rounds.each(FEW, || {
        pause();
        // SAFETY: Interrupts are on, and the other processor is on line.
        Some(cycles(|| unsafe { pvbench_ipi_other() }))
    })
}

fn tlb_other(rounds: &mut Rounds<'_>) -> bool {
    rounds.each(FEW, || {
        pause();
        // SAFETY: As above.
        Some(cycles(|| unsafe { paravane_bench_flush(1) }))
    })
}

/// Where the host has fewer processors than the guest, the other one does not run.
fn tlb_busy(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: Started before the rounds, and stopped after them; else as above.
    unsafe {
        if !pvbench_start_spin() {
            return false;
        }
        let all_well = rounds.each(LINES, || Some(cycles(|| paravane_bench_flush(1))));
        pvbench_stop_spin();
        all_well
    }
}

fn wake_other(rounds: &mut Rounds<'_>) -> bool {
    // SAFETY: Started before it is used, and stopped after it.
    unsafe {
        if !pvbench_start_echo() {
            return false;
        }
        let all_well = rounds.each(FEW, || Some(cycles(|| pvbench_echo())));
        pvbench_stop_echo();
        all_well
    }
}

fn cpu_on(rounds: &mut Rounds<'_>) -> bool {
    rounds.each(RARE, || {
        let mut is_on = false;
        // SAFETY: A task's context, on the processor that stays.
        unsafe {
            if !pvbench_cpu_off() {
                return None;
            }
            let cycles = cycles(|| is_on = pvbench_cpu_on());
            is_on.then_some(cycles)
        }
    })
}
