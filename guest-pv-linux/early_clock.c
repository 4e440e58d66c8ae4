// SPDX-License-Identifier: GPL-2.0-only
/*
 * Facility clock: the TSC is the kernel's clock from its first tick.
 *
 * Linux counts jiffies until its clock sources are sorted out, late in its boot.
 * Without a clock there are no high-resolution timers, and without these no
 * processor stops its tick: those that have been started interrupt a host with
 * few processors hundreds of times a second each, and sixty-four never come up.
 * This clock source is there until the TSC's own takes over.
 *
 * C because of struct clocksource.
 */

#include <linux/clocksource.h>
#include <linux/init.h>

#include <asm/cpufeature.h>
#include <asm/msr.h>
#include <asm/tsc.h>

#include "paravane.h"

static u64 paravane_early_read(struct clocksource *source)
{
	return rdtsc_ordered();
}

static struct clocksource paravane_early_source = {
	.name	= "paravane-early",
	.rating	= 1,
	.read	= paravane_early_read,
	.mask	= CLOCKSOURCE_MASK(64),
	.flags	= CLOCK_SOURCE_IS_CONTINUOUS | CLOCK_SOURCE_VALID_FOR_HRES,
};

/* Called as soon as the kernel's timekeeping has begun, with jiffies. */
void __init paravane_start_early_clock(void)
{
	if (!paravane_has_clock() || !paravane_tsc_reliable() || !tsc_khz)
		return;
	__clocksource_update_freq_khz(&paravane_early_source, tsc_khz);
	timekeeping_notify(&paravane_early_source);
}
