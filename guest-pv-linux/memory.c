// SPDX-License-Identifier: GPL-2.0-only
/*
 * Facility mem: what has to be C, see helpers.c. The logic is in mem.rs.
 */

#define pr_fmt(fmt) "paravane: " fmt

#include <linux/cache.h>
#include <linux/gfp.h>
#include <linux/init.h>
#include <linux/io.h>
#include <linux/list.h>
#include <linux/memblock.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/oom.h>
#include <linux/page_reporting.h>
#include <linux/pfn.h>
#include <linux/scatterlist.h>
#include <linux/workqueue.h>

#include <asm/irq_vectors.h>
#include <asm/setup.h>
#include <asm/smp.h>

#include "paravane.h"

#ifdef CONFIG_FRESH_MEMORY
/* C because it is a macro. */
DEFINE_STATIC_KEY_FALSE(fresh_memory_known);

static void __init paravane_init_fresh(void)
{
	/* A decompressor has written to places that nobody here knows. */
	if (kaslr_enabled())
		return;
	if (paravane_init_fresh_memory())
		static_branch_enable(&fresh_memory_known);
}
#else
static inline void paravane_init_fresh(void) { }
#endif

/* C because of a macro. */
u64 __init paravane_memory_end(void)
{
	return PFN_PHYS(max_pfn);
}

/* C because memblock has no binding. */
void * __init paravane_boot_memory(size_t size)
{
	return memblock_alloc(size, SMP_CACHE_BYTES);
}

/* When memblock and the mapping of all memory are there. */
void __init paravane_init_memory(void)
{
	if (!paravane_has_mem())
		return;
	paravane_init_fresh();
}

/* C because of the kernel's statistics. What is free, or only cached, is not missed. */
static void paravane_tell_needed(void)
{
	long available = si_mem_available();
	long all = totalram_pages();

	paravane_memory_needed(clamp(all - available, 1L, (long)U32_MAX));
}

/*
 * ---- Reports: struct page_reporting_dev_info, struct scatterlist ----
 */

/* Huge pages: what the host can give back without breaking one. */
#define PARAVANE_REPORT_ORDER	(PMD_SHIFT - PAGE_SHIFT)

/* Guards the list, and the balloon. */
static DEFINE_MUTEX(paravane_mem_lock);
static struct paravane_range paravane_list[PAGE_REPORTING_CAPACITY];

static int paravane_report(struct page_reporting_dev_info *device,
			   struct scatterlist *sg, unsigned int count)
{
	struct scatterlist *entry;
	unsigned int i;
	bool done;

	mutex_lock(&paravane_mem_lock);
	for_each_sg(sg, entry, count, i) {
		paravane_list[i].address = sg_phys(entry);
		paravane_list[i].size = entry->length;
	}
	done = paravane_report_ranges(paravane_list, count);
	mutex_unlock(&paravane_mem_lock);
	paravane_tell_needed();
	return done ? 0 : -EIO;
}

static struct page_reporting_dev_info paravane_reporting = {
	.report	= paravane_report,
	.order	= PARAVANE_REPORT_ORDER,
};

/*
 * ---- The balloon: struct page, struct work_struct ----
 */

/* Given back at once when the guest runs short, in pages. */
#define PARAVANE_OOM_PAGES	1024

/* What the guest keeps from itself; a page's private number is its order. */
static LIST_HEAD(paravane_balloon);
static u32 paravane_kept;

/* One batch; false: there is no memory to be had, or the host refuses. */
static bool paravane_inflate(u32 wanted)
{
	const gfp_t gfp = GFP_HIGHUSER | __GFP_NORETRY | __GFP_NOWARN | __GFP_NOMEMALLOC;
	unsigned int count = 0, order;
	struct page *page;
	LIST_HEAD(batch);
	u32 pages = 0;
	bool done;

	while (count < ARRAY_SIZE(paravane_list) && paravane_kept + pages < wanted) {
		order = PARAVANE_REPORT_ORDER;
		page = NULL;
		if (wanted - paravane_kept - pages >= 1U << order)
			page = alloc_pages(gfp, order);
		if (!page) {
			order = 0;
			page = alloc_page(gfp);
		}
		if (!page)
			break;
		set_page_private(page, order);
		list_add(&page->lru, &batch);
		paravane_list[count].address = page_to_phys(page);
		paravane_list[count].size = PAGE_SIZE << order;
		pages += 1U << order;
		count++;
	}
	done = count && paravane_report_ranges(paravane_list, count);
	if (done)
		paravane_kept += pages;
	while (!list_empty(&batch)) {
		page = list_first_entry(&batch, struct page, lru);
		if (done) {
			adjust_managed_page_count(page, -(1L << page_private(page)));
			list_move(&page->lru, &paravane_balloon);
		} else {
			list_del(&page->lru);
			__free_pages(page, page_private(page));
		}
	}
	return done;
}

static void paravane_deflate(u32 wanted)
{
	while (paravane_kept > wanted && !list_empty(&paravane_balloon)) {
		struct page *page = list_first_entry(&paravane_balloon, struct page, lru);
		unsigned int order = page_private(page);

		list_del(&page->lru);
		adjust_managed_page_count(page, 1L << order);
		__free_pages(page, order);
		paravane_kept -= 1U << order;
	}
}

/* Huge pages can make it a little less than what the host wants. */
static void paravane_balloon_work(struct work_struct *work)
{
	u32 wanted;

	mutex_lock(&paravane_mem_lock);
	wanted = paravane_memory_wanted();
	paravane_deflate(wanted);
	while (paravane_kept < wanted && paravane_inflate(wanted))
		cond_resched();
	paravane_memory_kept(paravane_kept);
	mutex_unlock(&paravane_mem_lock);
	paravane_tell_needed();
}

static DECLARE_WORK(paravane_balloon_worker, paravane_balloon_work);

/* From the event's interrupt: the host may want more or less. */
void paravane_memory_event(void)
{
	if (paravane_memory_wanted() != READ_ONCE(paravane_kept))
		queue_work(system_freezable_wq, &paravane_balloon_worker);
}

static int paravane_out_of_memory(struct notifier_block *nb, unsigned long unused,
				  void *freed)
{
	u32 before;

	if (!mutex_trylock(&paravane_mem_lock))
		return NOTIFY_OK;
	before = paravane_kept;
	paravane_deflate(before - min(before, PARAVANE_OOM_PAGES));
	paravane_memory_kept(paravane_kept);
	*(unsigned long *)freed += before - paravane_kept;
	mutex_unlock(&paravane_mem_lock);
	return NOTIFY_OK;
}

static struct notifier_block paravane_oom_block = {
	.notifier_call	= paravane_out_of_memory,
};

static int __init paravane_mem_initcall(void)
{
	int error;

	if (!paravane_has_mem())
		return 0;
	error = page_reporting_register(&paravane_reporting);
	if (error)
		return error;
	if (!paravane_memory_listen(PARAVANE_EVENT_VECTOR,
				    per_cpu(x86_cpu_to_apicid, 0)))
		return 0;
	register_oom_notifier(&paravane_oom_block);
	paravane_memory_event();
	return 0;
}
device_initcall(paravane_mem_initcall);
