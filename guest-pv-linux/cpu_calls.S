/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The first instructions of a kernel without privilege, and hooks and calls of
 * the switcher whose registers C cannot have.
 */
#include <linux/init.h>
#include <linux/linkage.h>
#include <asm/asm-offsets.h>
#include <asm/frame.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>
#include <asm/processor-flags.h>
#include <asm/unwind_hints.h>
#include "../entry/calling.h"
#include "direct.h"

	__INIT
/* From startup_64, still at the physical address; RSI: boot parameters. */
SYM_CODE_START(paravane_direct_start)
	UNWIND_HINT_END_OF_STACK
	movabsq	$1f, %rax
	jmp	*%rax
1:	UNWIND_HINT_END_OF_STACK
	ANNOTATE_NOENDBR
	cld
	movq	$__top_init_kernel_stack, %rsp
	movq	$INIT_PER_CPU_VAR(fixed_percpu_data), %rax
	wrgsbase %rax
	movq	%rsi, %rdi
	xorl	%ebp, %ebp
	call	paravane_direct_start_kernel
	int3
SYM_CODE_END(paravane_direct_start)
	__FINIT

	.text
/* By smp.start, with the idle task's stack; RDI: the per-CPU base. */
SYM_CODE_START(paravane_direct_secondary)
	UNWIND_HINT_END_OF_STACK
	ANNOTATE_NOENDBR
	cld
	wrgsbase %rdi
	xorl	%ebp, %ebp
	ANNOTATE_RETPOLINE_SAFE
	call	*initial_code(%rip)
	int3
SYM_CODE_END(paravane_direct_secondary)

	.section .entry.text, "ax"

SYM_CODE_START(paravane_irq_disable)
	UNWIND_HINT_FUNC
	ENDBR
	movb	$1, CPU(CPU_MASKED)
	ret
	int3
SYM_CODE_END(paravane_irq_disable)

SYM_CODE_START(paravane_save_fl)
	UNWIND_HINT_FUNC
	ENDBR
	cmpb	$1, CPU(CPU_MASKED)
	sbbl	%eax, %eax
	andl	$X86_EFLAGS_IF, %eax
	ret
	int3
SYM_CODE_END(paravane_save_fl)

SYM_CODE_START(paravane_read_cr2)
	UNWIND_HINT_FUNC
	ENDBR
	movq	CPU(CPU_AREA), %rax
	movq	AREA_FAULT_ADDRESS(%rax), %rax
	ret
	int3
SYM_CODE_END(paravane_read_cr2)

/* CPUID with the registers that RDI points to; the flag is off. */
SYM_CODE_START(paravane_switch_cpuid)
	UNWIND_HINT_FUNC
	pushq	%rbx
	movq	CPU(CPU_AREA), %r8
	movzwl	ROUTINE_CPUID(%r8), %eax
	movw	%ax, PARAVANE_CALL(%r8)
	incq	COUNT_OF_ROUTINE + ROUTINE_CPUID(%r8)
	movl	(%rdi), %eax
	movl	8(%rdi), %ecx
	int3
	movl	%eax, (%rdi)
	movl	%ebx, 4(%rdi)
	movl	%ecx, 8(%rdi)
	movl	%edx, 12(%rdi)
	movq	%r8, %rax
	END_CALL %rax
	popq	%rbx
	ret
	int3
SYM_CODE_END(paravane_switch_cpuid)

/* OUT with the registers of RDI, by the routine ESI; the flag is off. */
SYM_CODE_START(paravane_doorbell)
	UNWIND_HINT_FUNC
	pushq	%rbx
	pushq	%rdi
	movq	CPU(CPU_AREA), %rbx
	movl	%esi, %esi
	movzwl	(%rbx, %rsi), %eax
	movw	%ax, PARAVANE_CALL(%rbx)
	incq	COUNT_OF_ROUTINE(%rbx, %rsi)
	movq	RAX(%rdi), %rax
	movq	RDX(%rdi), %rdx
	movq	RSI(%rdi), %rsi
	movq	R10(%rdi), %r10
	movq	R8(%rdi), %r8
	movq	R9(%rdi), %r9
	movq	R11(%rdi), %r11
	movq	RCX(%rdi), %rcx
	movq	RDI(%rdi), %rdi
	int3
	popq	%rdi
	movq	%rax, RAX(%rdi)
	movq	%rdx, RDX(%rdi)
	movq	%rbx, %rax
	END_CALL %rax
	popq	%rbx
	ret
	int3
SYM_CODE_END(paravane_doorbell)
