// SPDX-License-Identifier: GPL-2.0-only
/*
 * Facility timer: one-shot timers that cross only when they have to.
 *
 * The local APIC's deadline is a register, and each write to it an exit. A
 * kernel writes it far more often than it needs the interrupt: most new
 * deadlines are later than the armed one (a timeout that was cancelled, a
 * tick that stops). Such a one is only remembered here. When the armed one
 * fires in its place, the interrupt arms what is wanted then.
 *
 * An idle processor would be woken for nothing by a deadline that nobody wants
 * any more. Before it halts it therefore arms what is wanted, unless the last
 * halts have shown that something else wakes it first. And the interrupt that
 * ends a halt sets deadlines one after the other, where only the last matters:
 * those that are far off wait until the processor is out of it.
 *
 * A kernel that boots has one thing to do, and no other task that a tick would
 * give its turn. So until user space begins, a processor that is busy is
 * interrupted no more often than every dozen ticks; one that halts gets its
 * deadline in time. The kernel's log is stamped by the tick until then, so
 * whoever asks for initcall_debug gets every tick.
 *
 * All of it is C: per-CPU data, struct clock_event_device, an interrupt entry,
 * and code that must not be instrumented have no Rust abstraction.
 */

#include <linux/clockchips.h>
#include <linux/cpumask.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/minmax.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/tick.h>

#include <asm/apic.h>
#include <asm/cpufeature.h>
#include <asm/desc.h>
#include <asm/idtentry.h>
#include <asm/irq_regs.h>
#include <asm/irqflags.h>
#include <asm/msr.h>
#include <asm/paravirt.h>
#include <asm/tsc.h>
#include <asm/x86_init.h>

#include "paravane.h"

/* Of a deadline: there is none. */
#define PARAVANE_NEVER		U64_MAX
/* Least milliseconds between two interrupts of a processor that boots. */
#define PARAVANE_BOOT_MS	50
/* The device counts in units of this many ticks of the TSC, as the native one. */
#define PARAVANE_TSC_DIVISOR	8
/* TSC ticks between two of the kernel's ticks. */
#define PARAVANE_TICK		((u64)tsc_khz * 1000 / HZ)

struct paravane_timer {
	/* What the register holds, as far as it has not fired. */
	u64 armed;
	/* What the kernel asked for. */
	u64 wanted;
	/* When the latest interrupt came. */
	u64 interrupted;
	/* The deadline that the last halt left in place, or replaced. */
	u64 passed_over;
	/* Whether a halt leaves a deadline in place that is too early. */
	bool leaves;
	/* Whether the processor halts, or is in the interrupt that ends it. */
	bool halts;
};

static DEFINE_PER_CPU(struct paravane_timer, paravane_timers);
static DEFINE_PER_CPU(struct clock_event_device, paravane_clockevents);

static __always_inline void paravane_arm(struct paravane_timer *timer, u64 deadline)
{
	timer->armed = deadline;
	/* Zero disarms; what has passed fires at once. */
	native_wrmsrl(MSR_IA32_TSC_DEADLINE, deadline == PARAVANE_NEVER ? 0 : deadline);
}

/* Arms a deadline that is earlier than the armed one. */
static __always_inline void paravane_advance(struct paravane_timer *timer, u64 deadline)
{
	if (deadline >= timer->armed)
		return;
	if (timer->halts && deadline > rdtsc() + PARAVANE_TICK)
		return;
	paravane_arm(timer, deadline);
}

static int paravane_timer_next(unsigned long delta, struct clock_event_device *device)
{
	struct paravane_timer *timer = this_cpu_ptr(&paravane_timers);
	u64 deadline = rdtsc() + (u64)delta * PARAVANE_TSC_DIVISOR;

	timer->wanted = deadline;
	if (system_state < SYSTEM_RUNNING && !initcall_debug && !is_idle_task(current))
		deadline = max(deadline, timer->interrupted + PARAVANE_BOOT_MS * (u64)tsc_khz);
	paravane_advance(timer, deadline);
	return 0;
}

static int paravane_timer_stop(struct clock_event_device *device)
{
	this_cpu_write(paravane_timers.wanted, PARAVANE_NEVER);
	return 0;
}

static int paravane_timer_shutdown(struct clock_event_device *device)
{
	struct paravane_timer *timer = this_cpu_ptr(&paravane_timers);

	timer->wanted = PARAVANE_NEVER;
	if (timer->armed != PARAVANE_NEVER)
		paravane_arm(timer, PARAVANE_NEVER);
	return 0;
}

DEFINE_IDTENTRY_SYSVEC(sysvec_paravane_timer)
{
	struct paravane_timer *timer = this_cpu_ptr(&paravane_timers);
	struct clock_event_device *device = this_cpu_ptr(&paravane_clockevents);
	struct pt_regs *old_regs = set_irq_regs(regs);

	apic_eoi();
	inc_irq_stat(apic_timer_irqs);
	timer->armed = PARAVANE_NEVER;
	timer->interrupted = rdtsc();
	if (timer->interrupted >= timer->wanted) {
		device->event_handler(device);
	} else {
		/* For an earlier deadline that is not wanted any more. */
		timer->leaves = false;
		paravane_advance(timer, timer->wanted);
	}
	set_irq_regs(old_regs);
}

/* What an idle processor does, interrupts off until it halts. */
static noinstr void paravane_safe_halt(void)
{
	struct paravane_timer *timer = this_cpu_ptr(&paravane_timers);

	if (timer->armed > timer->wanted) {
		paravane_arm(timer, timer->wanted);
	} else if (timer->armed < timer->wanted) {
		/* Did something else come first, the last time? */
		if (rdtsc() < timer->passed_over)
			timer->leaves = true;
		timer->passed_over = timer->armed;
		if (!timer->leaves)
			paravane_arm(timer, timer->wanted);
	}
	timer->halts = true;
	native_safe_halt();

	native_irq_disable();
	timer->halts = false;
	/*
	 * Also where a tick is going to be started: by then it may be later than
	 * this one, and what is not the earliest is not asked for.
	 */
	paravane_advance(timer, timer->wanted);
	native_irq_enable();
}

static void paravane_timer_setup(void)
{
	struct clock_event_device *device = this_cpu_ptr(&paravane_clockevents);
	struct paravane_timer *timer = this_cpu_ptr(&paravane_timers);

	*timer = (struct paravane_timer) {
		.armed	= PARAVANE_NEVER,
		.wanted	= PARAVANE_NEVER,
	};
	*device = (struct clock_event_device) {
		.name				= "paravane",
		.features			= CLOCK_EVT_FEAT_ONESHOT,
		.rating				= 200,
		.irq				= -1,
		.cpumask			= cpumask_of(smp_processor_id()),
		.set_next_event			= paravane_timer_next,
		.set_state_shutdown		= paravane_timer_shutdown,
		.set_state_oneshot_stopped	= paravane_timer_stop,
	};
	apic_write(APIC_LVTT, APIC_LVT_TIMER_TSCDEADLINE | PARAVANE_TIMER_VECTOR);
	/* A deadline before this write has taken effect would be lost: SDM 3, 11.5.4.1. */
	mb();
	clockevents_config_and_register(device, tsc_khz * (1000 / PARAVANE_TSC_DIVISOR),
					0xF, ~0UL);
}

void __init paravane_init_timer(void)
{
	if (!paravane_has_timer() || !boot_cpu_has(X86_FEATURE_TSC_DEADLINE_TIMER))
		return;

	sysvec_install(PARAVANE_TIMER_VECTOR, sysvec_paravane_timer);
	x86_init.timers.setup_percpu_clockev = paravane_timer_setup;
	x86_cpuinit.setup_percpu_clockev = paravane_timer_setup;
	pv_ops.irq.safe_halt = paravane_safe_halt;
	/* A stop writes nothing, and a tick that is kept wakes the processor for nothing. */
	tick_nohz_stop_at_once = true;
}
