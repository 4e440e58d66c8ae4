/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What helpers.c and the Rust files of this folder call of each other. The
 * Rust declarations of the same functions are in kernel_c.rs.
 */
#ifndef PARAVANE_H
#define PARAVANE_H

#include <linux/types.h>

struct dentry;
struct seq_file;

/* MemRange of the ABI. */
struct paravane_range {
	u64 address;
	u64 size;
};

/* DEV_MAX and DEV_QUEUES_MAX of the ABI. */
#define PARAVANE_DEVS		16
#define PARAVANE_DEV_QUEUES	4
/* "PVNE": devices have a vendor, and nobody asks. */
#define PARAVANE_DEV_VENDOR	0x454e5650

/* What the table of devices says of one. */
struct paravane_dev {
	u32 kind;
	u32 queues;
	u32 queue_max;
	u64 features;
};

/* DevQueue of the ABI. */
struct paravane_dev_queue {
	u64 descriptors;
	u64 available;
	u64 used;
	u32 size;
	u32 reserved;
};

/* DevStart of the ABI. */
struct paravane_dev_start {
	u64 features;
	u32 vector;
	u32 apic_id;
	struct paravane_dev_queue queues[PARAVANE_DEV_QUEUES];
};

/* Implemented in Rust. */

u32 paravane_detect(void);
bool paravane_has_clock(void);
bool paravane_has_console(void);
u32 paravane_vcpu_count(void);
u32 paravane_kvm_features(void);
bool paravane_has_timer(void);
bool paravane_has_smp(void);
bool paravane_start_cpu(u32 apic_id, u64 rip, u64 rsp, u64 root, u64 argument);
void paravane_stop_cpu(void);
u32 paravane_wanted_cpus(void);
bool paravane_smp_listen(u32 vector, u32 apic_id);
bool paravane_has_mem(void);
bool paravane_init_fresh_memory(void);
bool paravane_report_ranges(const struct paravane_range *ranges, u32 count);
u32 paravane_memory_wanted(void);
void paravane_memory_kept(u32 pages);
void paravane_memory_needed(u32 pages);
bool paravane_memory_listen(u32 vector, u32 apic_id);
bool paravane_cpuid_find(u32 leaf, u32 subleaf, u32 registers[4]);

u32 paravane_dev_count(void);
bool paravane_dev_describe(u32 number, struct paravane_dev *about);
void paravane_dev_config(u32 number, u32 offset, u8 *buffer, u32 length);
u32 paravane_dev_generation(u32 number);
bool paravane_dev_needs_reset(u32 number);
bool paravane_dev_start(u32 number, u64 start);
void paravane_dev_stop(u32 number);
void paravane_dev_ring(u32 number, u32 queue);

void paravane_seed_rng(void);

void paravane_power_off(void);
void paravane_restart(char *command);
void paravane_emergency_restart(void);

unsigned long paravane_tsc_khz(void);
u64 paravane_apic_timer_hz(void);
bool paravane_tsc_reliable(void);
u64 paravane_wall_ns(void);
bool paravane_clock_listen(u32 vector, u32 apic_id);
bool paravane_clock_has_jumped(void);
void paravane_clock_follow(void);

void paravane_console_print(const char *bytes, unsigned int count);
ssize_t paravane_console_put(u32 vtermno, const u8 *bytes, size_t count);
ssize_t paravane_console_get(u32 vtermno, u8 *bytes, size_t count);
bool paravane_console_listen(u32 vector, u32 apic_id);

void paravane_crash(const char *message);

u64 paravane_rust_value(u32 which);
u64 paravane_rust_call_count(u32 index);
s64 paravane_rust_call(u32 id, const u64 arguments[6], u64 *value);

/* Implemented in helpers.c. */

void paravane_cpuid(u32 leaf, u32 registers[4]);
u64 paravane_rdtsc(void);
void paravane_out(u16 port, u32 value);
void paravane_set_wall(u64 wall_ns);
void *paravane_va(u64 address);
u64 paravane_pa(const void *pointer);
bool paravane_is_reserved(u64 address, u64 size);
bool paravane_lock_output(unsigned long *flags);
void paravane_unlock_output(unsigned long flags);
u64 paravane_memory_end(void);
void *paravane_boot_memory(size_t size);
u32 paravane_apic_id(void);
void paravane_crash_registers(u64 registers[4]);
u32 paravane_crash_backtrace(u64 *entries, u32 max);
u32 paravane_crash_log(char *buffer, u32 size);

/* Implemented in local_apic.c. */

void paravane_apic_forget(void);
void paravane_init_apic(void);

/* Implemented in tlb_flush.c. */

void paravane_init_tlb(void);

/* Implemented in timer_device.c. */

void paravane_init_timer(void);

/* Implemented in early_clock.c. */

void paravane_start_early_clock(void);

/* Implemented in smp_hooks.c. */

#ifdef CONFIG_SMP
void paravane_init_smp(void);
void paravane_smp_event(void);
#else
static inline void paravane_init_smp(void) { }
static inline void paravane_smp_event(void) { }
#endif

/* Implemented in memory.c. */

void paravane_init_memory(void);
void paravane_memory_event(void);

/* Implemented in virtio.c. */

#ifdef CONFIG_PARAVANE_VIRTIO
void paravane_virtio_event(void);
#else
static inline void paravane_virtio_event(void) { }
#endif

/* Implemented in cpu.c. */

#ifdef CONFIG_PARAVANE_DIRECT
bool paravane_direct_cpuid(u32 registers[4]);
void paravane_init_direct(void);
bool paravane_is_direct(void);
bool paravane_direct_start_cpu(u32 apic_id, unsigned int cpu);
#else
static inline bool paravane_direct_cpuid(u32 registers[4]) { return false; }
static inline void paravane_init_direct(void) { }
static inline bool paravane_is_direct(void) { return false; }
static inline bool paravane_direct_start_cpu(u32 apic_id, unsigned int cpu) { return false; }
#endif

/* Exported to paravane.ko. */

u64 paravane_value(u32 which);
u64 paravane_call_count(u32 index);
struct dentry *paravane_debugfs_dir(void);
bool paravane_debugfs_file(struct dentry *dir, const char *name,
			   void (*show)(struct seq_file *file));
void paravane_debugfs_remove(struct dentry *dir);
void paravane_seq_write(struct seq_file *file, const void *bytes, size_t count);

/* Exported to pvbench.ko. */

s64 paravane_bench_call(u32 id, const u64 arguments[6], u64 *value);
void paravane_bench_print(const char *bytes, unsigned int count);
void paravane_bench_flush(u32 cpu);
s64 paravane_bench_next_event(void);

#endif
