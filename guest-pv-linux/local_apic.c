// SPDX-License-Identifier: GPL-2.0-only
/*
 * The local APIC's registers, remembered.
 *
 * Each register of the local APIC is an MSR, and each access to one an exit.
 * While a processor is set up, most of them read what nobody but the kernel
 * itself has written, or write what is there already. These are answered from
 * memory here.
 *
 * All of it is C: per-CPU data, and callbacks that are static calls.
 */

#include <linux/bitops.h>
#include <linux/init.h>
#include <linux/percpu.h>
#include <linux/string.h>

#include <asm/apic.h>

#include "paravane.h"

/* Registers are 16 bytes apart. */
#define PARAVANE_APIC_SHIFT	4
#define PARAVANE_APIC_REGISTERS	64

struct paravane_apic {
	u64 known;
	/* Software has never enabled it, so no interrupt can be in it. */
	bool is_fresh;
	u32 values[PARAVANE_APIC_REGISTERS];
};

static DEFINE_PER_CPU(struct paravane_apic, paravane_apics);

/* Whether nobody but the kernel changes the register. */
static bool paravane_apic_keeps(u32 reg)
{
	switch (reg) {
	case APIC_ID:
	case APIC_LVR:
	case APIC_TASKPRI:
	case APIC_LDR:
	case APIC_SPIV:
	case APIC_LVTT:
	case APIC_LVTTHMR:
	case APIC_LVT0:
	case APIC_LVT1:
	case APIC_LVTERR:
	case APIC_TDCR:
		return true;
	default:
		return false;
	}
}

static void paravane_apic_learn(struct paravane_apic *apic, u32 reg, u32 value)
{
	u32 index = reg >> PARAVANE_APIC_SHIFT;

	/* Disabling it masks the local vectors. */
	if (reg == APIC_SPIV && !(value & APIC_SPIV_APIC_ENABLED))
		apic->known = 0;
	apic->known |= BIT_ULL(index);
	apic->values[index] = value;
}

static u32 paravane_apic_read(u32 reg)
{
	struct paravane_apic *apic = this_cpu_ptr(&paravane_apics);
	u32 value, index = reg >> PARAVANE_APIC_SHIFT;

	if (!paravane_apic_keeps(reg)) {
		bool is_pending = (reg >= APIC_ISR && reg < APIC_ISR + 0x80) ||
				  (reg >= APIC_IRR && reg < APIC_IRR + 0x80);

		return is_pending && apic->is_fresh ? 0 : native_apic_msr_read(reg);
	}
	if (apic->known & BIT_ULL(index))
		return apic->values[index];
	value = native_apic_msr_read(reg);
	paravane_apic_learn(apic, reg, value);
	if (reg == APIC_SPIV)
		apic->is_fresh = !(value & APIC_SPIV_APIC_ENABLED);
	return value;
}

static void paravane_apic_write(u32 reg, u32 value)
{
	struct paravane_apic *apic = this_cpu_ptr(&paravane_apics);
	u32 index = reg >> PARAVANE_APIC_SHIFT;

	if (paravane_apic_keeps(reg)) {
		if (apic->known & BIT_ULL(index) && apic->values[index] == value)
			return;
		if (reg == APIC_SPIV && value & APIC_SPIV_APIC_ENABLED)
			apic->is_fresh = false;
		paravane_apic_learn(apic, reg, value);
	}
	native_apic_msr_write(reg, value);
}

/* This processor is switched off, and its local APIC as after power-on when it starts again. */
void paravane_apic_forget(void)
{
	memset(this_cpu_ptr(&paravane_apics), 0, sizeof(struct paravane_apic));
}

/* The native callbacks are those of an x2APIC. */
void __init paravane_init_apic(void)
{
	apic_update_callback(read, paravane_apic_read);
	apic_update_callback(write, paravane_apic_write);
}
