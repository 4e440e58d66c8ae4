// SPDX-License-Identifier: GPL-2.0-only
/*
 * Facility cpu: a kernel without privilege, at CPL 3.
 *
 * struct pv_ops has a hook for most of what needs privilege. What has none is
 * executed, raises #GP, and is carried out by emulate.c.
 */
#include <linux/bits.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/percpu.h>
#include <linux/printk.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include <asm/apic.h>
#include <asm/desc.h>
#include <asm/fsgsbase.h>
#include <asm/idtentry.h>
#include <asm/msr.h>
#include <asm/paravirt.h>
#include <asm/processor.h>
#include <asm/setup.h>
#include <asm/text-patching.h>
#include <asm/tlbflush.h>
#include <asm/traps.h>

#include "direct.h"
#include "paravane.h"

/* Interrupts are off at first. */
DEFINE_PER_CPU(struct paravane_cpu, paravane_cpu) = {
	.masked	= 1,
	.area	= (void *)PARAVANE_REGIONS,
};

/* Where each vector leads: what Linux has put into its own IDT. */
unsigned long paravane_handlers[IDT_ENTRIES] __ro_after_init;

static bool paravane_at_cpl3 __ro_after_init;

/* Asks the switcher for a routine; its name is its offset in the area. */
noinline u64 paravane_switch(unsigned int routine, u64 rdi, u64 rsi, u64 rdx, u64 rcx)
{
	unsigned long flags = arch_local_irq_save();
	u8 *area = this_cpu_read(paravane_cpu.area);
	u16 *call = (u16 *)(area + PARAVANE_CALL);
	u64 low = rsi;

	(*(u64 *)(area + COUNT_OF_ROUTINE + routine))++;
	WRITE_ONCE(*call, *(u16 *)(area + routine));
	asm volatile("int3" : "+a" (low), "+d" (rdx)
		     : "D" (rdi), "S" (rsi), "c" (rcx) : "memory");
	WRITE_ONCE(*call, *(u16 *)(area + ROUTINE_BREAKPOINT));
	if (flags & X86_EFLAGS_IF)
		arch_local_irq_enable();
	return (low & U32_MAX) | rdx << 32;
}

/*
 * ---- Model-specific registers ----
 */

#define PARAVANE_KVM_MSRS	0x4b564d00

static bool paravane_is_real_msr(unsigned int msr)
{
	switch (msr) {
	case MSR_IA32_TSC:
	case MSR_IA32_APICBASE:
	case MSR_IA32_CR_PAT:
	case MSR_IA32_TSC_DEADLINE:
	case MSR_EFER:
	case APIC_BASE_MSR ... APIC_BASE_MSR + 0xff:
	case PARAVANE_KVM_MSRS ... PARAVANE_KVM_MSRS + 0xff:
		return true;
	}
	return false;
}

u64 paravane_read_msr_safe(unsigned int msr, int *err)
{
	*err = 0;
	switch (msr) {
	case MSR_FS_BASE:
		return rdfsbase();
	case MSR_GS_BASE:
		return rdgsbase();
	case MSR_KERNEL_GS_BASE:
		return paravane_area(AREA_USER_GS);
	case MSR_K7_HWCR:
		/* The TSC counts at P0's frequency. */
		return BIT_ULL(24);
	}
	if (paravane_is_real_msr(msr))
		return paravane_switch(ROUTINE_READ_MSR, 0, 0, 0, msr);
	*err = -EIO;
	return 0;
}

int paravane_write_msr_safe(unsigned int msr, unsigned int low,
			    unsigned int high)
{
	u64 value = (u64)high << 32 | low;

	switch (msr) {
	case MSR_FS_BASE:
		wrfsbase(value);
		return 0;
	case MSR_GS_BASE:
		paravane_area(AREA_KERNEL_GS) = value;
		wrgsbase(value);
		return 0;
	case MSR_KERNEL_GS_BASE:
		paravane_area(AREA_USER_GS) = value;
		return 0;
	case MSR_STAR:
	case MSR_LSTAR:
	case MSR_CSTAR:
	case MSR_SYSCALL_MASK:
	case MSR_IA32_SYSENTER_CS:
	case MSR_IA32_SYSENTER_ESP:
	case MSR_IA32_SYSENTER_EIP:
	case MSR_TSC_AUX:
	case MSR_EFER:
		/* The switcher's. */
		return 0;
	}
	if (!paravane_is_real_msr(msr))
		return -EIO;
	paravane_switch(ROUTINE_WRITE_MSR, 0, low, high, msr);
	return 0;
}

static u64 paravane_read_msr(unsigned int msr)
{
	int err;

	return paravane_read_msr_safe(msr, &err);
}

static void paravane_write_msr(unsigned int msr, unsigned int low,
			       unsigned int high)
{
	paravane_write_msr_safe(msr, low, high);
}

static u64 paravane_read_pmc(int counter)
{
	return 0;
}

/*
 * The local APIC ends the highest interrupt that it has delivered. One that
 * has been noted and not handled yet is not to end, so all end together.
 */
static DEFINE_PER_CPU(unsigned int, paravane_eois);

static void paravane_direct_eoi(void)
{
	struct paravane_cpu *cpu = this_cpu_ptr(&paravane_cpu);
	unsigned int owed = this_cpu_inc_return(paravane_eois);

	if (cpu->vectors[0] | cpu->vectors[1] | cpu->vectors[2] | cpu->vectors[3])
		return;
	this_cpu_write(paravane_eois, 0);
	while (owed--)
		paravane_switch(ROUTINE_WRITE_MSR, 0, 0, 0,
				APIC_BASE_MSR + (APIC_EOI >> 4));
}

/*
 * ---- CPUID: at CPL 3 it may tell of the host's processor ----
 */

bool paravane_direct_cpuid(u32 registers[4])
{
	unsigned long flags;

	if (!paravane_at_cpl3)
		return false;
	flags = arch_local_irq_save();
	paravane_switch_cpuid(registers);
	if (flags & X86_EFLAGS_IF)
		arch_local_irq_enable();
	return true;
}

/*
 * ---- Control and debug registers: nobody but the kernel looks at them ----
 */

static DEFINE_PER_CPU(unsigned long, paravane_cr0) = CR0_STATE;
static DEFINE_PER_CPU(unsigned long, paravane_cr4) =
	X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_FSGSBASE | X86_CR4_OSXSAVE;
static DEFINE_PER_CPU(unsigned long [8], paravane_dr) = {
	[6] = DR6_RESERVED, [7] = 0x400,
};

unsigned long paravane_read_cr0(void)
{
	return this_cpu_read(paravane_cr0);
}

void paravane_write_cr0(unsigned long value)
{
	this_cpu_write(paravane_cr0, value);
}

unsigned long paravane_read_cr4(void)
{
	return this_cpu_read(paravane_cr4);
}

void paravane_write_cr4(unsigned long value)
{
	this_cpu_write(paravane_cr4, value);
}

noinstr unsigned long paravane_get_debugreg(int reg)
{
	unsigned long *dr = this_cpu_ptr(paravane_dr);

	if (reg == 6)
		return paravane_switch(ROUTINE_DEBUG_STATUS, DR6_RESERVED, 0, 0, 0) |
			DR6_RESERVED;
	return dr[reg];
}

noinstr void paravane_set_debugreg(int reg, unsigned long value)
{
	unsigned long *dr = this_cpu_ptr(paravane_dr);

	if (dr[reg] == value)
		return;
	dr[reg] = value;
	if (reg < 4)
		paravane_switch(ROUTINE_DEBUG_ADDRESSES, dr[0], dr[1], dr[2], dr[3]);
	else if (reg == 7)
		paravane_switch(ROUTINE_DEBUG_CONTROL, value, 0, 0, 0);
}

noinstr void paravane_write_cr2(unsigned long value)
{
	paravane_area(AREA_FAULT_ADDRESS) = value;
}

/*
 * ---- Descriptor tables ----
 */

static struct desc_struct *paravane_gdt(void)
{
	return this_cpu_read(paravane_cpu.area) + PARAVANE_GDT;
}

static void paravane_write_gdt_entry(struct desc_struct *gdt, int entry,
				     const void *desc, int type)
{
	native_write_gdt_entry(gdt, entry, desc, type);
	if (entry == GDT_ENTRY_CPUNODE)
		paravane_gdt()[entry] = *(const struct desc_struct *)desc;
}

static void paravane_load_tls(struct thread_struct *t, unsigned int cpu)
{
	memcpy(paravane_gdt() + GDT_ENTRY_TLS_MIN, t->tls_array, sizeof(t->tls_array));
}

static void paravane_load_gs_index(unsigned int selector)
{
	unsigned long flags = arch_local_irq_save();
	unsigned long gs = rdgsbase(), base = 0;

	/* A selector that cannot be loaded leaves GS alone. */
	asm volatile("1: movl %[selector], %%gs\n"
		     "rdgsbase %[base]\n"
		     "2: wrgsbase %[gs]\n"
		     _ASM_EXTABLE(1b, 2b)
		     : [base] "+&r" (base)
		     : [selector] "r" (selector), [gs] "r" (gs) : "memory");
	paravane_area(AREA_USER_GS) = base;
	if (flags & X86_EFLAGS_IF)
		arch_local_irq_enable();
}

static void paravane_set_handler(int vector, unsigned long handler)
{
	/* These would have stacks of their own. */
	if (handler == (unsigned long)asm_exc_debug)
		handler = (unsigned long)asm_xenpv_exc_debug;
	else if (handler == (unsigned long)asm_exc_nmi)
		handler = (unsigned long)asm_xenpv_exc_nmi;
	else if (handler == (unsigned long)asm_exc_double_fault)
		handler = (unsigned long)asm_xenpv_exc_double_fault;
	paravane_handlers[vector] = handler;
}

static void paravane_load_idt(const struct desc_ptr *descriptor)
{
	const gate_desc *gates = (const gate_desc *)descriptor->address;
	int vector;

	/* Once all is initialised, it stays as it is. */
	if (system_state >= SYSTEM_FREEING_INITMEM)
		return;
	for (vector = 0; vector < (descriptor->size + 1) / (int)sizeof(*gates); vector++)
		paravane_set_handler(vector, gate_offset(gates + vector));
}

static void paravane_write_idt_entry(gate_desc *idt, int entry, const gate_desc *gate)
{
	native_write_idt_entry(idt, entry, gate);
	paravane_set_handler(entry, gate_offset(gate));
}

static unsigned long paravane_store_tr(void)
{
	return GDT_ENTRY_TSS * 8;
}

DEFINE_IDTENTRY_RAW(xenpv_exc_nmi)
{
	exc_nmi(regs);
}

DEFINE_IDTENTRY_RAW_ERRORCODE(xenpv_exc_double_fault)
{
	exc_double_fault(regs, error_code);
}

void noist_exc_debug(struct pt_regs *regs);

DEFINE_IDTENTRY_RAW(xenpv_exc_debug)
{
	if (user_mode(regs))
		noist_exc_debug(regs);
	else
		exc_debug(regs);
}

/*
 * ---- Start ----
 */

static void paravane_nop(void)
{
}

static void paravane_halt(void)
{
	cpu_relax();
}

static void __init paravane_install_ops(void)
{
	pv_ops.cpu.io_delay = paravane_nop;
	pv_ops.cpu.get_debugreg = paravane_get_debugreg;
	pv_ops.cpu.set_debugreg = paravane_set_debugreg;
	pv_ops.cpu.read_cr0 = paravane_read_cr0;
	pv_ops.cpu.write_cr0 = paravane_write_cr0;
	pv_ops.cpu.write_cr4 = paravane_write_cr4;
	pv_ops.cpu.wbinvd = paravane_nop;
	pv_ops.cpu.read_msr = paravane_read_msr;
	pv_ops.cpu.write_msr = paravane_write_msr;
	pv_ops.cpu.read_msr_safe = paravane_read_msr_safe;
	pv_ops.cpu.write_msr_safe = paravane_write_msr_safe;
	pv_ops.cpu.read_pmc = paravane_read_pmc;
	pv_ops.cpu.load_tr_desc = paravane_nop;
	pv_ops.cpu.set_ldt = (void *)paravane_nop;
	pv_ops.cpu.load_gdt = (void *)paravane_nop;
	pv_ops.cpu.load_idt = paravane_load_idt;
	pv_ops.cpu.store_tr = paravane_store_tr;
	pv_ops.cpu.load_tls = paravane_load_tls;
	pv_ops.cpu.load_gs_index = paravane_load_gs_index;
	pv_ops.cpu.write_gdt_entry = paravane_write_gdt_entry;
	pv_ops.cpu.write_idt_entry = paravane_write_idt_entry;
	pv_ops.cpu.load_sp0 = (void *)paravane_nop;

	pv_ops.irq.save_fl = __PV_IS_CALLEE_SAVE(paravane_save_fl);
	pv_ops.irq.irq_disable = __PV_IS_CALLEE_SAVE(paravane_irq_disable);
	pv_ops.irq.irq_enable = __PV_IS_CALLEE_SAVE(paravane_irq_enable);
	pv_ops.irq.safe_halt = paravane_safe_halt;
	pv_ops.irq.halt = paravane_halt;

	pv_ops.mmu.read_cr2 = __PV_IS_CALLEE_SAVE(paravane_read_cr2);
	pv_ops.mmu.write_cr2 = paravane_write_cr2;
}

/* The entry of a frame that the switcher loads. */
static void paravane_set_entry(u8 *area, unsigned int at, void (*entry)(void),
			       unsigned int stack)
{
	u64 *frame = (u64 *)(area + at);

	frame[FRAME_IP / 8] = (u64)entry;
	frame[FRAME_CS / 8] = __USER_CS;
	frame[FRAME_FLAGS / 8] = X86_EFLAGS_FIXED | X86_EFLAGS_IF;
	frame[FRAME_SP / 8] = (u64)area + stack;
	frame[FRAME_SS / 8] = __USER_DS;
}

static void paravane_setup_area(u8 *area)
{
	gate_desc *idt = (gate_desc *)(area + PARAVANE_IDT);
	int vector;

	*(u16 *)(area + PARAVANE_CALL) = *(u16 *)(area + ROUTINE_BREAKPOINT);
	if (*(u64 *)(area + AREA_USER_ISOLATION)) {
		paravane_set_entry(area, AREA_SYSCALL, paravane_syscall_entry, AREA_USER_ENTRY);
		paravane_set_entry(area, AREA_USER_BREAKPOINT, paravane_user_breakpoint_entry,
				   AREA_USER_ENTRY);
		paravane_set_entry(area, AREA_USER_FAULT, paravane_user_fault_entry,
				   AREA_USER_ENTRY);
		paravane_set_entry(area, AREA_EVENT, paravane_event_entry, AREA_USER_ENTRY);
	} else {
		paravane_set_entry(area, AREA_SYSCALL, paravane_shared_syscall_entry,
				   AREA_USER_ENTRY);
		paravane_set_entry(area, AREA_USER_BREAKPOINT, paravane_shared_breakpoint_entry,
				   AREA_KERNEL_ENTRY);
		paravane_set_entry(area, AREA_USER_FAULT, paravane_shared_fault_entry,
				   AREA_KERNEL_ENTRY);
		paravane_set_entry(area, AREA_EVENT, paravane_shared_event_entry,
				   AREA_KERNEL_ENTRY);
	}
	paravane_set_entry(area, AREA_HALTED, paravane_halted_entry, AREA_USER_ENTRY);
	paravane_set_entry(area, AREA_FAULT, paravane_fault_entry, AREA_KERNEL_ENTRY);
	paravane_set_entry(area, AREA_BREAKPOINT, paravane_breakpoint_entry, AREA_KERNEL_ENTRY);
	for (vector = 0; vector < IDT_ENTRIES; vector++) {
		if (vector == X86_TRAP_BP || vector == X86_TRAP_PF)
			continue;
		pack_gate(idt + vector, GATE_TRAP,
			  (unsigned long)paravane_stubs + 16 * vector, 0, 0, 0);
		idt[vector].segment = __USER_CS;
	}
}

bool paravane_is_direct(void)
{
	return paravane_at_cpl3;
}

#ifdef CONFIG_SMP
/* A processor's region is that of its APIC id. */
bool paravane_direct_start_cpu(u32 apic_id, unsigned int cpu)
{
	u8 *area = (u8 *)PARAVANE_REGIONS + PARAVANE_REGION_STRIDE * apic_id;
	u64 root = __pa_symbol(init_top_pgt);

	per_cpu(paravane_cpu, cpu) = (struct paravane_cpu) { .masked = 1, .area = area };
	per_cpu(paravane_eois, cpu) = 0;
	paravane_setup_area(area);
	*(u64 *)(area + AREA_KERNEL_ROOT) = root;
	*(u64 *)(area + AREA_SWAP) = root;
	*(u64 *)(area + AREA_USER_ROOT) = root;
	*(u64 *)(area + AREA_KERNEL_GS) = per_cpu_offset(cpu);
	return paravane_start_cpu(apic_id, (unsigned long)paravane_direct_secondary,
				  per_cpu(pcpu_hot.current_task, cpu)->thread.sp, root,
				  per_cpu_offset(cpu));
}
#endif

/* What waits for the platform's own set-up. */
void __init paravane_init_direct(void)
{
	if (paravane_at_cpl3)
		apic_update_callback(eoi, paravane_direct_eoi);
}

/* What a processor offers to CPL 0 alone, or would turn against us. */
static const u16 paravane_hidden[] __initconst = {
	X86_FEATURE_ARCH_CAPABILITIES, X86_FEATURE_BUS_LOCK_DETECT,
	X86_FEATURE_FRED, X86_FEATURE_IBPB, X86_FEATURE_IBRS, X86_FEATURE_IBT,
	X86_FEATURE_INVPCID, X86_FEATURE_LA57, X86_FEATURE_LKGS,
	X86_FEATURE_MCA, X86_FEATURE_MCE, X86_FEATURE_MTRR, X86_FEATURE_MWAIT,
	X86_FEATURE_OSPKE, X86_FEATURE_PCID, X86_FEATURE_PGE, X86_FEATURE_PKU,
	X86_FEATURE_SHSTK, X86_FEATURE_SMAP, X86_FEATURE_SMEP,
	X86_FEATURE_SPEC_CTRL, X86_FEATURE_SSBD, X86_FEATURE_STIBP,
	X86_FEATURE_TSC_ADJUST, X86_FEATURE_UMIP, X86_FEATURE_VIRT_SSBD,
	X86_FEATURE_XSAVES, X86_FEATURE_XFD,
};

/* From startup_64. */
asmlinkage __visible void __init __noreturn paravane_direct_start_kernel(char *params)
{
	u8 *area = (u8 *)PARAVANE_REGIONS;
	unsigned int i;

	/* A host that reads notes does not start this kernel then. */
	if (*(u64 *)(area + AREA_LAYOUT) != PARAVANE_LAYOUT)
		__builtin_trap();
	paravane_at_cpl3 = true;
	*(u64 *)(area + AREA_KERNEL_GS) = rdgsbase();
	paravane_setup_area(area);
	paravane_install_ops();
	__text_gen_insn(&early_xen_iret_patch, JMP32_INSN_OPCODE,
			&early_xen_iret_patch, &paravane_iret, JMP32_INSN_SIZE);
	paravane_mmu_start();
	setup_force_cpu_cap(X86_FEATURE_XENPV);
	for (i = 0; i < ARRAY_SIZE(paravane_hidden); i++)
		setup_clear_cpu_cap(paravane_hidden[i]);
	idt_setup_early_handler();
	cr4_init_shadow();
	x86_64_start_reservations(params);
}
