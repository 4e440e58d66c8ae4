/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a kernel without privilege shares with the switcher (area.rs of the
 * host), and what its own files share with each other.
 */
#ifndef PARAVANE_DIRECT_H
#define PARAVANE_DIRECT_H

/* Of all of this; the switcher has to have the same. */
#define PARAVANE_LAYOUT		2
/* The type of the ELF note that tells the host. */
#define PARAVANE_NOTE_LAYOUT	1

/* Regions. */
#define PARAVANE_REGIONS	0xfffffc8000000000
#define PARAVANE_REGION_STRIDE	0x10000
#define PARAVANE_REGIONS_SLOT	505
/* The upper bits of every address in a region. */
#define PARAVANE_REGIONS_39	0x1fffff9
#define PARAVANE_GDT		0x1000
#define PARAVANE_IDT		0x2000
/* The lower half of the address of the routine that INT3 leads to. */
#define PARAVANE_CALL		0x2030
/* What SYSCALL leads to without user isolation has no more bytes. */
#define PARAVANE_SYSCALL_BYTES	0x20

/* Selectors: a kernel frame has Linux's, the processor has those of CPL 3. */
#define PARAVANE_SWITCHER_CS	0x10

/* Offsets in the area. */
#define AREA_SWAP		0x000
#define AREA_USER_RAX		0x008
#define AREA_KERNEL_RAX		0x010
#define AREA_KERNEL_SLOT	0x018
#define AREA_USER_SLOT		0x020
#define AREA_SYSCALL_RIP	0x028
#define AREA_SYSCALL		0x050
#define AREA_USER_BREAKPOINT	0x078
#define AREA_USER_FAULT		0x0a0
#define AREA_EVENT		0x0c8
#define AREA_HALTED		0x0f0
#define AREA_FAULT		0x118
#define AREA_BREAKPOINT		0x140
#define AREA_LEAVE		0x168
#define AREA_USER_ERROR		0x260
#define AREA_USER_FRAME		0x268
#define AREA_KERNEL_ERROR	0x2e0
#define AREA_KERNEL_FRAME	0x2e8
/* What has crossed, for the host's account. */
#define COUNT_SYSTEM_CALL	0x310
#define COUNT_PAGE_FAULT	0x318
#define COUNT_EXCEPTION		0x320
#define COUNT_INTERRUPT		0x328
#define COUNT_KERNEL_PAGE_FAULT	0x330
#define COUNT_CALLS		0x350
#define AREA_LAYOUT		0x3d0
#define AREA_USER_ISOLATION	0x3e8
#define AREA_USER_SP		0x3f0
/* From here on, the area's page is the kernel's own. */
#define AREA_USER_ROOT		0x400
#define AREA_USER_GS		0x408
#define AREA_KERNEL_GS		0x410
#define AREA_SAVED_SP		0x418
#define AREA_KERNEL_ROOT	0x420
#define AREA_FAULT_ADDRESS	0x428
#define AREA_VECTOR		0x430
/* Without user isolation: the kernel runs, and the table is that of users. */
#define AREA_USER_TABLE		0x438
/* Ends of the stacks on which the kernel is entered. */
#define AREA_USER_ENTRY		0x800
#define AREA_KERNEL_ENTRY	0xc00

/* In a frame. */
#define FRAME_IP		0x00
#define FRAME_CS		0x08
#define FRAME_FLAGS		0x10
#define FRAME_SP		0x18
#define FRAME_SS		0x20

/* Routines of the switcher, as offsets in the area. */
#define ROUTINE_LEAVE		0x190
#define ROUTINE_BREAKPOINT	0x198
#define ROUTINE_HALT		0x1a0
#define ROUTINE_LOAD_ROOT	0x1a8
#define ROUTINE_FLUSH_PAGE	0x1b0
#define ROUTINE_READ_MSR	0x1b8
#define ROUTINE_WRITE_MSR	0x1c0
#define ROUTINE_DOORBELL	0x1c8
#define ROUTINE_OUTPUT_BYTE	0x1d0
#define ROUTINE_DEBUG_CONTROL	0x1d8
#define ROUTINE_DEBUG_ADDRESSES	0x1e0
#define ROUTINE_DEBUG_STATUS	0x1e8
#define ROUTINE_CPUID		0x1f0
#define ROUTINE_STORE		0x1f8
/* Where calls of a routine are counted, from the routine. */
#define COUNT_OF_ROUTINE	(COUNT_CALLS - ROUTINE_LEAVE)

/* In struct paravane_cpu. */
#define CPU_MASKED		0
#define CPU_PENDING		1
#define CPU_FILLS		2
#define CPU_VECTORS		8
#define CPU_AREA		40

#ifdef __ASSEMBLY__

#define CPU(field)	PER_CPU_VAR(paravane_cpu + (field))

/* INT3 is no call any more. */
.macro END_CALL area
	pushw	ROUTINE_BREAKPOINT(\area)
	popw	PARAVANE_CALL(\area)
.endm

#else

#include <linux/percpu.h>
#include <linux/types.h>
#include <asm/pgtable_types.h>

/* A processor's interrupt flag, and what has arrived while it was off. */
struct paravane_cpu {
	u8 masked;
	u8 pending;
	u8 fills;	/* A user has written to a page that is not there. */
	u64 vectors[4];
	void *area;
};

DECLARE_PER_CPU(struct paravane_cpu, paravane_cpu);

/* A field of this processor's area. */
#define paravane_area(offset) \
	(*(u64 *)(this_cpu_read(paravane_cpu.area) + (offset)))

extern unsigned long paravane_handlers[];

/* emulate.c */
bool paravane_emulate(struct pt_regs *regs);
/* cpu.c */
unsigned long paravane_read_cr0(void);
void paravane_write_cr0(unsigned long value);
void paravane_write_cr2(unsigned long value);
unsigned long paravane_read_cr4(void);
void paravane_write_cr4(unsigned long value);
unsigned long paravane_get_debugreg(int reg);
void paravane_set_debugreg(int reg, unsigned long value);
u64 paravane_read_msr_safe(unsigned int msr, int *err);
int paravane_write_msr_safe(unsigned int msr, unsigned int low, unsigned int high);
u64 paravane_switch(unsigned int routine, u64 rdi, u64 rsi, u64 rdx, u64 rcx);
/* mmu.c */
pteval_t paravane_make_entry(pteval_t value);
void paravane_mmu_start(void);
/* entry_64.S, and cpu_entry.S */
void early_xen_iret_patch(void);
void paravane_iret(void);
void paravane_direct_start(void);
void paravane_direct_secondary(void);
asmlinkage void paravane_direct_start_kernel(char *params) __noreturn;
void paravane_syscall_entry(void);
void paravane_user_breakpoint_entry(void);
void paravane_user_fault_entry(void);
void paravane_event_entry(void);
void paravane_shared_syscall_entry(void);
void paravane_shared_breakpoint_entry(void);
void paravane_shared_fault_entry(void);
void paravane_shared_event_entry(void);
void paravane_halted_entry(void);
void paravane_fault_entry(void);
void paravane_breakpoint_entry(void);
void paravane_stubs(void);
unsigned long paravane_save_fl(void);
void paravane_irq_disable(void);
void paravane_irq_enable(void);
unsigned long paravane_read_cr2(void);
void paravane_safe_halt(void);
void paravane_doorbell(struct pt_regs *regs, unsigned int routine);
void paravane_switch_cpuid(u32 registers[4]);

#endif /* __ASSEMBLY__ */
#endif
