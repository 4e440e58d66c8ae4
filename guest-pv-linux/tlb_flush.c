// SPDX-License-Identifier: GPL-2.0-only
/*
 * Flushes of the whole TLB while the kernel boots.
 *
 * On a processor without INVPCID, global entries go only when CR4.PGE changes:
 * two writes, and two exits. They are worth that once there are processes to
 * switch between. A kernel that boots has none, so it does without global
 * entries, and a flush is a write of CR3, which does not exit where the host
 * has nested paging. The first flush after that switches them on.
 *
 * All of it is C: pv_ops and control registers.
 */

#include <linux/init.h>
#include <linux/irqflags.h>
#include <linux/kernel.h>

#include <asm/cpufeature.h>
#include <asm/paravirt.h>
#include <asm/special_insns.h>
#include <asm/tlbflush.h>

#include "paravane.h"

static void paravane_flush_global(void)
{
	unsigned long flags;

	raw_local_irq_save(flags);
	if (cr4_read_shadow() & X86_CR4_PGE)
		native_flush_tlb_global();
	else if (system_state >= SYSTEM_RUNNING)
		/* A change of the bit is a flush, too. */
		cr4_set_bits_irqsoff(X86_CR4_PGE);
	else
		native_write_cr3(__native_read_cr3());
	raw_local_irq_restore(flags);
}

/* Called when the page tables of the kernel are made. */
void __init paravane_init_tlb(void)
{
	if (!boot_cpu_has(X86_FEATURE_PGE) || boot_cpu_has(X86_FEATURE_PCID) ||
	    boot_cpu_has(X86_FEATURE_INVPCID))
		return;

	pv_ops.mmu.flush_tlb_kernel = paravane_flush_global;
	cr4_clear_bits(X86_CR4_PGE);
}
