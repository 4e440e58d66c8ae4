// SPDX-License-Identifier: GPL-2.0-only
/*
 * pvbench.ko: what has to be C, because it is a macro, an inline or a
 * structure of the kernel. One function does one operation; what is measured,
 * how often and in which order is in bench_ops.rs.
 */

#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/gfp.h>
#include <linux/hrtimer.h>
#include <linux/io.h>
#include <linux/irq_work.h>
#include <linux/irqflags.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/sched.h>
#include <linux/sched/clock.h>
#include <linux/seq_file.h>
#include <linux/smp.h>
#include <linux/sort.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>

#include <asm/apic.h>
#include <asm/cpuid.h>
#include <asm/msr.h>
#include <asm/smp.h>
#include <asm/tlbflush.h>
#include <asm/tsc.h>

#include "bench.h"

/* Where the measuring task runs, and the other end of what needs two. */
#define PVBENCH_CPU	0
#define PVBENCH_OTHER	1

/*
 * ---- The file /sys/kernel/debug/pvbench/results ----
 */

static struct dentry *pvbench_dir;

static int pvbench_results_show(struct seq_file *file, void *unused)
{
	pvbench_show(file);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(pvbench_results);

bool pvbench_debugfs(void)
{
	pvbench_dir = debugfs_create_dir("pvbench", NULL);
	return !IS_ERR(debugfs_create_file("results", 0400, pvbench_dir, NULL,
					   &pvbench_results_fops));
}

void pvbench_debugfs_remove(void)
{
	debugfs_remove(pvbench_dir);
}

void pvbench_seq_write(struct seq_file *file, const void *bytes, size_t count)
{
	seq_write(file, bytes, count);
}

/*
 * ---- Where and when ----
 */

bool pvbench_pin(void)
{
	return !set_cpus_allowed_ptr(current, cpumask_of(PVBENCH_CPU));
}

void pvbench_unpin(void)
{
	set_cpus_allowed_ptr(current, cpu_possible_mask);
}

bool pvbench_has_other_cpu(void)
{
	return cpu_online(PVBENCH_OTHER);
}

u32 pvbench_apic_id(void)
{
	return per_cpu(x86_cpu_to_apicid, PVBENCH_CPU);
}

u32 pvbench_tsc_khz(void)
{
	return tsc_khz;
}

unsigned long pvbench_irq_save(void)
{
	unsigned long flags;

	local_irq_save(flags);
	return flags;
}

void pvbench_irq_restore(unsigned long flags)
{
	local_irq_restore(flags);
}

/*
 * ---- Memory ----
 */

static int pvbench_compare(const void *left, const void *right)
{
	u64 a = *(const u64 *)left, b = *(const u64 *)right;

	return a < b ? -1 : a > b;
}

/* C because objtool takes the panics in Rust's sort for a way out of it. */
void pvbench_sort(u64 *samples, size_t count)
{
	sort(samples, count, sizeof(*samples), pvbench_compare, NULL);
}

void *pvbench_alloc(u32 order)
{
	return (void *)__get_free_pages(GFP_KERNEL, order);
}

void pvbench_free(void *memory, u32 order)
{
	free_pages((unsigned long)memory, order);
}

u64 pvbench_pa(const void *memory)
{
	return __pa(memory);
}

void *pvbench_map_device(u64 address)
{
	return (void __force *)ioremap(address, PAGE_SIZE);
}

void pvbench_unmap_device(void *address)
{
	iounmap((void __iomem __force *)address);
}

unsigned long pvbench_map_user(size_t size)
{
	unsigned long address;

	address = vm_mmap(NULL, 0, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, 0);
	return IS_ERR_VALUE(address) ? 0 : address;
}

void pvbench_unmap_user(unsigned long address, size_t size)
{
	vm_munmap(address, size);
}

bool pvbench_touch_user(unsigned long address)
{
	return !put_user(1, (u8 __user *)address);
}

/*
 * ---- Operations in the kernel's own form ----
 */

void pvbench_cpuid(u32 leaf)
{
	u32 eax, ebx, ecx, edx;

	cpuid(leaf, &eax, &ebx, &ecx, &edx);
}

u32 pvbench_lapic_read(u32 reg)
{
	return apic->read(reg);
}

void pvbench_lapic_write(u32 reg, u32 value)
{
	apic->write(reg, value);
}

/* The register, also where KVM's flag would spare it. */
void pvbench_eoi(void)
{
	if (apic->native_eoi)
		apic->native_eoi();
	else
		apic->eoi();
}

void pvbench_flush_all(void)
{
	__flush_tlb_all();
}

void pvbench_ktime_get(void)
{
	ktime_get();
}

void pvbench_sched_clock(void)
{
	local_clock();
}

static enum hrtimer_restart pvbench_timer_expired(struct hrtimer *timer)
{
	return HRTIMER_NORESTART;
}

/* Earlier than whatever else waits, so that the hardware is programmed. */
void pvbench_arm_timer(u64 ns)
{
	struct hrtimer timer;

	hrtimer_init_on_stack(&timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_HARD);
	timer.function = pvbench_timer_expired;
	hrtimer_start(&timer, ns_to_ktime(ns), HRTIMER_MODE_REL_HARD);
	hrtimer_cancel(&timer);
	destroy_hrtimer_on_stack(&timer);
}

void pvbench_sleep(u64 ns)
{
	ktime_t time = ns_to_ktime(ns);

	set_current_state(TASK_UNINTERRUPTIBLE);
	schedule_hrtimeout(&time, HRTIMER_MODE_REL);
}

/*
 * ---- Interrupts between processors ----
 */

static u64 pvbench_arrived;

static void pvbench_work(struct irq_work *work)
{
	WRITE_ONCE(pvbench_arrived, rdtsc_ordered());
}

static struct irq_work pvbench_irq_work = IRQ_WORK_INIT_HARD(pvbench_work);

/* From the request to the handler, in cycles. */
u64 pvbench_ipi_self(void)
{
	u64 begin;

	WRITE_ONCE(pvbench_arrived, 0);
	begin = rdtsc_ordered();
	irq_work_queue(&pvbench_irq_work);
	irq_work_sync(&pvbench_irq_work);
	return READ_ONCE(pvbench_arrived) - begin;
}

static void pvbench_nothing(void *unused)
{
}

void pvbench_ipi_other(void)
{
	smp_call_function_single(PVBENCH_OTHER, pvbench_nothing, NULL, 1);
}

static DECLARE_COMPLETION(pvbench_ping);
static DECLARE_COMPLETION(pvbench_pong);
static struct task_struct *pvbench_echo_task;
static struct task_struct *pvbench_spin_task;
static bool pvbench_echo_ends;

static int pvbench_echo_loop(void *unused)
{
	for (;;) {
		wait_for_completion(&pvbench_ping);
		if (READ_ONCE(pvbench_echo_ends))
			return 0;
		complete(&pvbench_pong);
	}
}

bool pvbench_start_echo(void)
{
	struct task_struct *task;

	task = kthread_create(pvbench_echo_loop, NULL, "pvbench");
	if (IS_ERR(task))
		return false;
	kthread_bind(task, PVBENCH_OTHER);
	pvbench_echo_ends = false;
	pvbench_echo_task = get_task_struct(task);
	wake_up_process(task);
	return true;
}

void pvbench_echo(void)
{
	complete(&pvbench_ping);
	wait_for_completion(&pvbench_pong);
}

void pvbench_stop_echo(void)
{
	WRITE_ONCE(pvbench_echo_ends, true);
	complete(&pvbench_ping);
	kthread_stop_put(pvbench_echo_task);
}

static int pvbench_spin_loop(void *unused)
{
	while (!kthread_should_stop())
		cond_resched();
	return 0;
}

/* Keeps the other processor busy. */
bool pvbench_start_spin(void)
{
	struct task_struct *task;

	task = kthread_create(pvbench_spin_loop, NULL, "pvbench");
	if (IS_ERR(task))
		return false;
	kthread_bind(task, PVBENCH_OTHER);
	pvbench_spin_task = task;
	wake_up_process(task);
	return true;
}

void pvbench_stop_spin(void)
{
	kthread_stop(pvbench_spin_task);
}

bool pvbench_cpu_off(void)
{
	return !remove_cpu(PVBENCH_OTHER);
}

bool pvbench_cpu_on(void)
{
	return !add_cpu(PVBENCH_OTHER);
}
