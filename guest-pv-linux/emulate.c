// SPDX-License-Identifier: GPL-2.0-only
/*
 * Instructions of the kernel that need privilege and that no hook stands for.
 * They raise #GP, and paravane_emulate() carries them out: cold ones, and the
 * ports, of which the doorbell and the benchmarks' mark are the host's.
 */
#include <linux/limits.h>
#include <linux/types.h>

#include <asm/ptrace.h>

#include "direct.h"

static unsigned long *paravane_register(struct pt_regs *regs, unsigned int number)
{
	static const u8 offsets[16] = {
		offsetof(struct pt_regs, ax), offsetof(struct pt_regs, cx),
		offsetof(struct pt_regs, dx), offsetof(struct pt_regs, bx),
		offsetof(struct pt_regs, sp), offsetof(struct pt_regs, bp),
		offsetof(struct pt_regs, si), offsetof(struct pt_regs, di),
		offsetof(struct pt_regs, r8), offsetof(struct pt_regs, r9),
		offsetof(struct pt_regs, r10), offsetof(struct pt_regs, r11),
		offsetof(struct pt_regs, r12), offsetof(struct pt_regs, r13),
		offsetof(struct pt_regs, r14), offsetof(struct pt_regs, r15),
	};

	return (void *)regs + offsets[number];
}

static bool paravane_emulate_two_byte(struct pt_regs *regs, const u8 *code,
				      unsigned int rex)
{
	unsigned int number = code[1] >> 3 & 7;
	unsigned long *reg = paravane_register(regs, (code[1] & 7) | (rex & 1) << 3);
	u64 value;

	switch (code[0]) {
	case 0x06: /* clts */
	case 0x08: /* invd */
	case 0x09: /* wbinvd */
		regs->ip += 1;
		return true;
	case 0x20: /* mov from a control register */
		switch (number) {
		case 0:
			*reg = paravane_read_cr0();
			break;
		case 2:
			*reg = paravane_area(AREA_FAULT_ADDRESS);
			break;
		case 3:
			*reg = paravane_area(AREA_KERNEL_ROOT);
			break;
		case 4:
			*reg = paravane_read_cr4();
			break;
		default:
			return false;
		}
		regs->ip += 2;
		return true;
	case 0x22: /* mov to a control register */
		switch (number) {
		case 0:
			paravane_write_cr0(*reg);
			break;
		case 2:
			paravane_write_cr2(*reg);
			break;
		case 4:
			paravane_write_cr4(*reg);
			break;
		default:
			return false;
		}
		regs->ip += 2;
		return true;
	case 0x21: /* mov from a debug register */
		*reg = paravane_get_debugreg(number);
		regs->ip += 2;
		return true;
	case 0x23: /* mov to a debug register */
		paravane_set_debugreg(number, *reg);
		regs->ip += 2;
		return true;
	case 0x30: /* wrmsr */
		if (paravane_write_msr_safe(regs->cx, regs->ax, regs->dx))
			return false;
		regs->ip += 1;
		return true;
	case 0x32: { /* rdmsr */
		int err;

		value = paravane_read_msr_safe(regs->cx, &err);
		if (err)
			return false;
		regs->ax = (u32)value;
		regs->dx = value >> 32;
		regs->ip += 1;
		return true;
	}
	case 0x01:
		if (code[1] != 0xd1) /* xsetbv: the host has set it */
			return false;
		regs->ip += 2;
		return true;
	}
	return false;
}

/*
 * Carries out the instruction that has raised #GP in the kernel; false if it
 * is none that needs privilege. Interrupts are off.
 */
bool paravane_emulate(struct pt_regs *regs)
{
	const u8 *code = (const u8 *)regs->ip;
	unsigned int rex = 0, prefix = 0;
	bool word = false;

	if (*code == 0x66) {
		word = true;
		code++;
		prefix++;
	}
	if ((*code & 0xf0) == 0x40) {
		rex = *code++;
		prefix++;
	}
	switch (*code) {
	case 0x0f:
		regs->ip += prefix + 1;
		if (paravane_emulate_two_byte(regs, code + 1, rex))
			return true;
		regs->ip -= prefix + 1;
		return false;
	case 0xf4: /* hlt: nobody relies on its waiting */
		regs->ip += prefix + 1;
		return true;
	case 0xfa: /* cli */
		regs->flags &= ~X86_EFLAGS_IF;
		regs->ip += prefix + 1;
		return true;
	case 0xfb: /* sti */
		regs->flags |= X86_EFLAGS_IF;
		regs->ip += prefix + 1;
		return true;
	case 0xe4: /* in: nobody answers */
		regs->ax |= 0xff;
		regs->ip += prefix + 2;
		return true;
	case 0xec:
		regs->ax |= 0xff;
		regs->ip += prefix + 1;
		return true;
	case 0xe5:
		regs->ax = word ? regs->ax | 0xffff : U32_MAX;
		regs->ip += prefix + 2;
		return true;
	case 0xed:
		regs->ax = word ? regs->ax | 0xffff : U32_MAX;
		regs->ip += prefix + 1;
		return true;
	case 0xe6: /* out to a device that is not there */
	case 0xe7:
		regs->ip += prefix + 2;
		return true;
	case 0xee:
		paravane_doorbell(regs, ROUTINE_OUTPUT_BYTE);
		regs->ip += prefix + 1;
		return true;
	case 0xef:
		if (!word)
			paravane_doorbell(regs, ROUTINE_DOORBELL);
		regs->ip += prefix + 1;
		return true;
	}
	return false;
}
