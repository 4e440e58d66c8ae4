// SPDX-License-Identifier: GPL-2.0-only

//! The C functions that `pvbench.ko` calls; prototypes and reasons are in `bench.h` and
//! `bench_helpers.c`, and for the kernel's own exports in `paravane.h`.

use core::ffi::c_void;

extern "C" {
    // Exported by the built-in part.
    pub(crate) fn paravane_value(which: u32) -> u64;
    pub(crate) fn paravane_bench_call(id: u32, arguments: *const u64, value: *mut u64) -> i64;
    pub(crate) fn paravane_bench_print(bytes: *const u8, count: u32);
    pub(crate) fn paravane_bench_flush(cpu: u32);
    pub(crate) fn paravane_bench_next_event() -> i64;

    // The file.
    pub(crate) fn pvbench_debugfs() -> bool;
    pub(crate) fn pvbench_debugfs_remove();
    pub(crate) fn pvbench_seq_write(file: *mut c_void, bytes: *const c_void, count: usize);

    // Where and when.
    pub(crate) fn pvbench_pin() -> bool;
    pub(crate) fn pvbench_unpin();
    pub(crate) fn pvbench_has_other_cpu() -> bool;
    pub(crate) fn pvbench_apic_id() -> u32;
    pub(crate) fn pvbench_tsc_khz() -> u32;
    pub(crate) fn pvbench_irq_save() -> usize;
    pub(crate) fn pvbench_irq_restore(flags: usize);

    // Memory.
    pub(crate) fn pvbench_sort(samples: *mut u64, count: usize);
    pub(crate) fn pvbench_alloc(order: u32) -> *mut c_void;
    pub(crate) fn pvbench_free(memory: *mut c_void, order: u32);
    pub(crate) fn pvbench_pa(memory: *const c_void) -> u64;
    pub(crate) fn pvbench_map_device(address: u64) -> *mut c_void;
    pub(crate) fn pvbench_unmap_device(address: *mut c_void);
    pub(crate) fn pvbench_map_user(size: usize) -> usize;
    pub(crate) fn pvbench_unmap_user(address: usize, size: usize);
    pub(crate) fn pvbench_touch_user(address: usize) -> bool;

    // Operations.
    pub(crate) fn pvbench_cpuid(leaf: u32);
    pub(crate) fn pvbench_lapic_read(register: u32) -> u32;
    pub(crate) fn pvbench_lapic_write(register: u32, value: u32);
    pub(crate) fn pvbench_eoi();
    pub(crate) fn pvbench_flush_all();
    pub(crate) fn pvbench_ktime_get();
    pub(crate) fn pvbench_sched_clock();
    pub(crate) fn pvbench_arm_timer(ns: u64);
    pub(crate) fn pvbench_sleep(ns: u64);
    pub(crate) fn pvbench_ipi_self() -> u64;
    pub(crate) fn pvbench_ipi_other();
    pub(crate) fn pvbench_start_echo() -> bool;
    pub(crate) fn pvbench_echo();
    pub(crate) fn pvbench_stop_echo();
    pub(crate) fn pvbench_start_spin() -> bool;
    pub(crate) fn pvbench_stop_spin();
    pub(crate) fn pvbench_cpu_off() -> bool;
    pub(crate) fn pvbench_cpu_on() -> bool;
}
