// SPDX-License-Identifier: GPL-2.0-only

//! The privileged instructions themselves, as an unmodified kernel executes them. Each leaves the
//! machine as it was, or is told how by its caller.

use core::arch::asm;

/// Reads the TSC when all before has ended and nothing after has begun.
#[inline(always)]
pub(crate) fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: Reads a register. No `nomem`: the compiler moves no access across it.
    unsafe {
        asm!("lfence", "rdtsc", "lfence", out("eax") low, out("edx") high, options(nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// CPUID.
pub(crate) fn cpuid(leaf: u32) {
    // SAFETY: CPUID changes four registers; RBX is the compiler's own and is kept.
    unsafe {
        asm!(
            "mov {keep:r}, rbx", "cpuid", "mov rbx, {keep:r}",
            keep = out(reg) _, inout("eax") leaf => _, inout("ecx") 0 => _, out("edx") _,
            options(nostack),
        );
    }
}

/// RDMSR.
///
/// # Safety
///
/// The processor has this register.
pub(crate) unsafe fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: By the function's requirement.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR.
///
/// # Safety
///
/// The processor has this register, and the kernel bears `value` in it.
pub(crate) unsafe fn wrmsr(register: u32, value: u64) {
    // SAFETY: By the function's requirement.
    unsafe {
        asm!(
            "wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack),
        );
    }
}

/// IN of a byte.
///
/// # Safety
///
/// Nobody misses what reading this port does.
pub(crate) unsafe fn read_port(port: u16) -> u8 {
    let value: u8;
    // SAFETY: By the function's requirement.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack)) };
    value
}

/// OUT of a byte.
///
/// # Safety
///
/// Nobody is harmed by what writing this port does.
pub(crate) unsafe fn write_port(port: u16, value: u8) {
    // SAFETY: By the function's requirement.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}

/// Reads CR4 and writes the same value back.
pub(crate) fn rewrite_cr4() {
    // SAFETY: Nothing changes. A write of CR4 with the same value is a plain write to the guest's
    // processor.
    unsafe { asm!("mov {0}, cr4", "mov cr4, {0}", out(reg) _, options(nostack)) };
}

/// Reads CR3 and writes the same value back: the TLB forgets what is not global.
pub(crate) fn rewrite_cr3() {
    // SAFETY: The same page tables stay in use.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack)) };
}

/// INVLPG: the TLB forgets one page.
pub(crate) fn invlpg(address: *const u8) {
    // SAFETY: The page tables have what the TLB forgets.
    unsafe { asm!("invlpg [{0}]", in(reg) address, options(nostack)) };
}

/// CLI and STI, with interrupts on before.
///
/// # Safety
///
/// Interrupts are on.
pub(crate) unsafe fn cli_sti() {
    // SAFETY: By the function's requirement all is as before.
    unsafe { asm!("cli", "sti", options(nostack)) };
}
