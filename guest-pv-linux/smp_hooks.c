// SPDX-License-Identifier: GPL-2.0-only
/*
 * Facility smp: what has to be C. The calls are in smp.rs.
 */

#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/init.h>
#include <linux/pgtable.h>
#include <linux/workqueue.h>

#include <asm/apic.h>
#include <asm/realmode.h>
#include <asm/smp.h>
#include <asm/x86_init.h>

#include "paravane.h"

/*
 * The processor begins with the kernel's own page tables, so there is no
 * trampoline; do_boot_cpu() looks into its header all the same.
 */
static struct real_mode_header paravane_no_trampoline;

/* C because of the symbols of head_64.S. */
static int paravane_wakeup_cpu(u32 apic_id, unsigned long start_ip)
{
	u64 rip = (unsigned long)secondary_startup_64_no_verify;
	bool is_started;

	/* Not in parallel, so that smpboot_control has the processor's number. */
	if (paravane_is_direct())
		is_started = paravane_direct_start_cpu(apic_id, smpboot_control);
	else
		is_started = paravane_start_cpu(apic_id, rip, 0, __pa_symbol(init_top_pgt), 0);
	return is_started ? 0 : -EIO;
}

static void paravane_play_dead(void)
{
	play_dead_common();
	paravane_apic_forget();
	paravane_stop_cpu();
	hlt_play_dead();
}

/* C because apic_update_callback() is a macro. */
void __init paravane_init_smp(void)
{
	if (!paravane_has_smp())
		return;
	x86_platform.realmode_reserve = x86_init_noop;
	x86_platform.realmode_init = x86_init_noop;
	real_mode_header = &paravane_no_trampoline;
	apic_update_callback(wakeup_secondary_cpu_64, paravane_wakeup_cpu);
	smp_ops.play_dead = paravane_play_dead;
	/*
	 * Not all at once: those that have begun spin until the boot processor
	 * comes to them, and on a host with fewer processors take its time.
	 */
	x86_cpuinit.parallel_bringup = false;
}

/*
 * The host's wish for processors. A processor that does not come, or does not
 * go, is not tried again before the next wish.
 */

/* The wish that was followed last. */
static u32 paravane_followed;
/* Processors can come and go. Before that the host's wish is nobody's business. */
static bool paravane_follows;

static void paravane_follow_wish(struct work_struct *work)
{
	u32 wish = paravane_wanted_cpus();
	unsigned int cpu;

	WRITE_ONCE(paravane_followed, wish);
	if (!wish)
		return;
	for_each_present_cpu(cpu) {
		if (num_online_cpus() < wish && !cpu_online(cpu))
			add_cpu(cpu);
	}
	for (cpu = nr_cpu_ids - 1; cpu > 0; cpu--) {
		if (num_online_cpus() > wish && cpu_online(cpu))
			remove_cpu(cpu);
	}
}

static DECLARE_WORK(paravane_wish_work, paravane_follow_wish);

/* C because of struct work_struct. Something has happened, perhaps this. */
void paravane_smp_event(void)
{
	if (READ_ONCE(paravane_follows) &&
	    paravane_wanted_cpus() != READ_ONCE(paravane_followed))
		queue_work(system_unbound_wq, &paravane_wish_work);
}

/* C because initcalls are section entries. */
static int __init paravane_smp_initcall(void)
{
	WRITE_ONCE(paravane_follows, true);
	if (paravane_smp_listen(PARAVANE_EVENT_VECTOR, per_cpu(x86_cpu_to_apicid, 0)))
		paravane_smp_event();
	return 0;
}
late_initcall(paravane_smp_initcall);
