// SPDX-License-Identifier: GPL-2.0-only

//! The C functions that this crate calls; prototypes and reasons are in `paravane.h` and
//! `helpers.c`. All structures stay on the C side.

use core::ffi::c_void;

extern "C" {
    /// The instruction CPUID with `leaf`, subleaf 0: EAX, EBX, ECX, EDX.
    pub(crate) fn paravane_cpuid(leaf: u32, registers: *mut u32);
    /// The time stamp counter.
    pub(crate) fn paravane_rdtsc() -> u64;
    /// The instruction OUT of a doubleword to a port.
    pub(crate) fn paravane_out(port: u16, value: u32);
    /// Kernel virtual address of a guest physical address below 1 MiB.
    pub(crate) fn paravane_va(address: u64) -> *mut c_void;
    /// Guest physical address of a static object of the kernel.
    pub(crate) fn paravane_pa(pointer: *const c_void) -> u64;
    /// Whether the memory map reports the whole range as reserved. Only during boot.
    pub(crate) fn paravane_is_reserved(address: u64, size: u64) -> bool;
    /// Sets the time of day, in nanoseconds since 1970. Can sleep.
    pub(crate) fn paravane_set_wall(wall_ns: u64);
    /// Mixes in what no copy of this machine has, and begins a new key with it. Can sleep.
    pub(crate) fn add_vmfork_randomness(unique: *const c_void, size: usize);
    /// Mixes a boot loader's random bytes in, and credits them. Only during boot.
    pub(crate) fn add_bootloader_randomness(buffer: *const c_void, size: usize);
    /// Takes the lock of the output ring, interrupts off; false where a dying kernel must not wait
    /// for it.
    pub(crate) fn paravane_lock_output(flags: *mut usize) -> bool;
    /// Releases the lock of the output ring.
    pub(crate) fn paravane_unlock_output(flags: usize);
    /// End of the machine's memory, a guest physical address. During boot.
    pub(crate) fn paravane_memory_end() -> u64;
    /// So many zeroed bytes of memblock's, never freed; null where there are none. Only while
    /// memblock hands memory out.
    pub(crate) fn paravane_boot_memory(size: usize) -> *mut c_void;
    /// APIC id of this processor.
    pub(crate) fn paravane_apic_id() -> u32;
    /// RIP, RSP, CR2 and CR3 of what failed.
    pub(crate) fn paravane_crash_registers(registers: *mut u64);
    /// Return addresses of what failed, innermost first; how many.
    pub(crate) fn paravane_crash_backtrace(entries: *mut u64, max: u32) -> u32;
    /// The newest messages of the kernel log that fit; how many bytes.
    pub(crate) fn paravane_crash_log(buffer: *mut u8, size: u32) -> u32;
}
