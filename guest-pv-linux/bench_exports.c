// SPDX-License-Identifier: GPL-2.0-only
/*
 * For pvbench.ko, from the built-in part: a call that is counted, the console's
 * ring, a TLB flush, the next timer interrupt. C because a Rust function cannot be
 * exported.
 */

#include <linux/cpumask.h>
#include <linux/export.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/smp.h>
#include <linux/tick.h>
#include <linux/timekeeping.h>

#include <asm/tlbflush.h>

#include "paravane.h"

s64 paravane_bench_call(u32 id, const u64 arguments[6], u64 *value)
{
	return paravane_rust_call(id, arguments, value);
}
EXPORT_SYMBOL_GPL(paravane_bench_call);

void paravane_bench_print(const char *bytes, unsigned int count)
{
	paravane_console_print(bytes, count);
}
EXPORT_SYMBOL_GPL(paravane_bench_print);

/*
 * What flush_tlb_mm_range() ends in. The other processor has another mm by
 * then: it is told, and has nothing to flush. No module knows the structure.
 */
void paravane_bench_flush(u32 cpu)
{
	struct flush_tlb_info info = {
		.mm		= current->mm,
		.end		= PAGE_SIZE,
		.new_tlb_gen	= TLB_GENERATION_INVALID,
		.initiating_cpu	= raw_smp_processor_id(),
		.stride_shift	= PAGE_SHIFT,
		.freed_tables	= 1,
	};

	flush_tlb_multi(cpumask_of(cpu), &info);
}
EXPORT_SYMBOL_GPL(paravane_bench_flush);

/* Nanoseconds until this processor's timer interrupts. No module sees the device. */
s64 paravane_bench_next_event(void)
{
	return ktime_to_ns(ktime_sub(tick_nohz_get_next_hrtimer(), ktime_get()));
}
EXPORT_SYMBOL_GPL(paravane_bench_next_event);
