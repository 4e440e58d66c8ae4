// SPDX-License-Identifier: GPL-2.0-only
/*
 * Facility mmu: page tables of a kernel without privilege.
 *
 * Every page of the kernel's is a user's page, so a user has a root page table
 * of its own, which has the users' half of the kernel's and the switcher. The
 * switcher loads one or the other. It hangs on the page of the kernel's root.
 * Without user isolation there is none, and users run on the kernel's.
 */
#include <linux/gfp.h>
#include <linux/mm.h>

#include <asm/paravirt.h>
#include <asm/pgalloc.h>
#include <asm/pgtable.h>
#include <asm/sections.h>
#include <asm/setup.h>
#include <asm/tlbflush.h>

#include "direct.h"

__visible pteval_t paravane_make_entry(pteval_t value)
{
	return value & _PAGE_PRESENT ? value | _PAGE_USER : value;
}

PV_CALLEE_SAVE_REGS_THUNK(paravane_make_entry);

/* The root of users that belongs to a kernel's, if there is one; init_mm has none. */
static pgd_t *paravane_user_root(pgd_t *root)
{
	if (root == init_mm.pgd)
		return NULL;
	return (pgd_t *)virt_to_page(root)->private;
}

static void paravane_set_p4d(p4d_t *p4dp, p4d_t p4d)
{
	pgd_t *root = (pgd_t *)((unsigned long)p4dp & PAGE_MASK);
	unsigned int index = (pgd_t *)p4dp - root;
	pgd_t *user;

	if (index < pgd_index(TASK_SIZE_MAX) + 1) {
		user = paravane_user_root(root);
		if (user)
			WRITE_ONCE(user[index], native_make_pgd(native_p4d_val(p4d)));
	}
	WRITE_ONCE(*p4dp, p4d);
}

/*
 * A host without nested paging looks through a table that was written to when
 * the next root is loaded: through all of it, for one page that a user has
 * touched. Of what the switcher stores it knows at once.
 */
static void paravane_set_pte(pte_t *ptep, pte_t pte)
{
	if (this_cpu_read(paravane_cpu.fills)) {
		this_cpu_write(paravane_cpu.fills, 0);
		paravane_switch(ROUTINE_STORE, (unsigned long)ptep, native_pte_val(pte), 0, 0);
	} else {
		native_set_pte(ptep, pte);
	}
}

static int paravane_pgd_alloc(struct mm_struct *mm)
{
	pgd_t *user;

	virt_to_page(mm->pgd)->private = 0;
	if (!paravane_area(AREA_USER_ISOLATION))
		return 0;
	user = (pgd_t *)__get_free_page(GFP_PGTABLE_USER);
	if (!user)
		return -ENOMEM;
	user[PARAVANE_REGIONS_SLOT].pgd = paravane_area(AREA_USER_SLOT);
	virt_to_page(mm->pgd)->private = (unsigned long)user;
	return 0;
}

static void paravane_pgd_free(struct mm_struct *mm, pgd_t *root)
{
	free_page((unsigned long)paravane_user_root(root));
	virt_to_page(root)->private = 0;
}

static unsigned long paravane_read_cr3(void)
{
	return paravane_area(AREA_KERNEL_ROOT);
}

static void paravane_write_cr3(unsigned long cr3)
{
	unsigned long pa = cr3 & PHYSICAL_PAGE_MASK;
	pgd_t *user = NULL;
	unsigned long flags = arch_local_irq_save();

	/* Roots in the image have no users. */
	if (pa < __pa_symbol(_text) || pa >= __pa_symbol(_end))
		user = paravane_user_root(__va(pa));
	paravane_area(AREA_KERNEL_ROOT) = cr3;
	paravane_area(AREA_SWAP) = cr3;
	paravane_area(AREA_USER_ROOT) = user ? __pa(user) : cr3;
	paravane_switch(ROUTINE_LOAD_ROOT, cr3, 0, 0, 0);
	if (flags & X86_EFLAGS_IF)
		arch_local_irq_enable();
}

static void paravane_flush_tlb(void)
{
	paravane_switch(ROUTINE_LOAD_ROOT, paravane_area(AREA_KERNEL_ROOT), 0, 0, 0);
}

static void paravane_flush_tlb_one_user(unsigned long address)
{
	paravane_switch(ROUTINE_FLUSH_PAGE, address, 0, 0, 0);
}

static void __init paravane_open(void *table, unsigned int entries)
{
	pteval_t *entry = table;

	for (; entries--; entry++) {
		if (*entry & _PAGE_PRESENT)
			*entry = (*entry | _PAGE_USER) & ~_PAGE_GLOBAL;
	}
}

void __init paravane_mmu_start(void)
{
	unsigned int memory = pgd_index(PAGE_OFFSET);

	pv_ops.mmu.make_pte = PV_CALLEE_SAVE(paravane_make_entry);
	pv_ops.mmu.make_pmd = PV_CALLEE_SAVE(paravane_make_entry);
	pv_ops.mmu.make_pud = PV_CALLEE_SAVE(paravane_make_entry);
#if CONFIG_PGTABLE_LEVELS >= 5
	pv_ops.mmu.make_p4d = PV_CALLEE_SAVE(paravane_make_entry);
#endif
	pv_ops.mmu.make_pgd = PV_CALLEE_SAVE(paravane_make_entry);
	pv_ops.mmu.set_pte = paravane_set_pte;
	pv_ops.mmu.set_p4d = paravane_set_p4d;
	pv_ops.mmu.pgd_alloc = paravane_pgd_alloc;
	pv_ops.mmu.pgd_free = paravane_pgd_free;
	pv_ops.mmu.read_cr3 = paravane_read_cr3;
	pv_ops.mmu.write_cr3 = paravane_write_cr3;
	pv_ops.mmu.flush_tlb_user = paravane_flush_tlb;
	pv_ops.mmu.flush_tlb_kernel = paravane_flush_tlb;
	pv_ops.mmu.flush_tlb_one_user = paravane_flush_tlb_one_user;

	__supported_pte_mask &= ~_PAGE_GLOBAL;
	__default_kernel_pte_mask &= ~_PAGE_GLOBAL;

	/*
	 * As on bare hardware, early_top_pgt maps memory until there is a
	 * memory map: the first GiB of it. The image is in both.
	 */
	paravane_open(early_top_pgt, PTRS_PER_PGD);
	paravane_open(init_top_pgt, PTRS_PER_PGD);
	paravane_open(level3_ident_pgt, PTRS_PER_PUD);
	paravane_open(level2_ident_pgt, PTRS_PER_PMD);
	paravane_open(level3_kernel_pgt, PTRS_PER_PUD);
	paravane_open(level2_kernel_pgt, PTRS_PER_PMD);
	paravane_open(level2_fixmap_pgt, PTRS_PER_PMD);
	early_top_pgt[memory] = init_top_pgt[memory];
	early_top_pgt[PARAVANE_REGIONS_SLOT].pgd = paravane_area(AREA_KERNEL_SLOT);
	init_top_pgt[0].pgd = 0;
	init_top_pgt[memory].pgd = 0;
	init_top_pgt[PARAVANE_REGIONS_SLOT].pgd = paravane_area(AREA_KERNEL_SLOT);
	paravane_write_cr3(__pa_symbol(early_top_pgt));
}
