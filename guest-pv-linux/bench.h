/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What bench_helpers.c and the Rust files of pvbench.ko call of each other.
 * The Rust declarations of the same functions are in bench_c.rs.
 */
#ifndef PARAVANE_BENCH_H
#define PARAVANE_BENCH_H

#include <linux/types.h>

struct seq_file;

/* Implemented in Rust. */

void pvbench_show(struct seq_file *file);

/* Implemented in bench_helpers.c. */

bool pvbench_debugfs(void);
void pvbench_debugfs_remove(void);
void pvbench_seq_write(struct seq_file *file, const void *bytes, size_t count);

bool pvbench_pin(void);
void pvbench_unpin(void);
bool pvbench_has_other_cpu(void);
u32 pvbench_apic_id(void);
u32 pvbench_tsc_khz(void);
unsigned long pvbench_irq_save(void);
void pvbench_irq_restore(unsigned long flags);

void pvbench_sort(u64 *samples, size_t count);
void *pvbench_alloc(u32 order);
void pvbench_free(void *memory, u32 order);
u64 pvbench_pa(const void *memory);
void *pvbench_map_device(u64 address);
void pvbench_unmap_device(void *address);

void pvbench_cpuid(u32 leaf);
u32 pvbench_lapic_read(u32 reg);
void pvbench_lapic_write(u32 reg, u32 value);
void pvbench_eoi(void);
void pvbench_flush_all(void);
void pvbench_ktime_get(void);
void pvbench_sched_clock(void);
void pvbench_arm_timer(u64 ns);
void pvbench_sleep(u64 ns);
u64 pvbench_ipi_self(void);
void pvbench_ipi_other(void);
bool pvbench_start_echo(void);
void pvbench_echo(void);
void pvbench_stop_echo(void);
bool pvbench_start_spin(void);
void pvbench_stop_spin(void);
bool pvbench_cpu_off(void);
bool pvbench_cpu_on(void);
unsigned long pvbench_map_user(size_t size);
void pvbench_unmap_user(unsigned long address, size_t size);
bool pvbench_touch_user(unsigned long address);

#endif
