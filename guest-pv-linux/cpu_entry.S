/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Into the kernel and out of it, at CPL 3.
 *
 * The switcher enters with a stack in the area, and a kernel event comes by a
 * trap gate, on the kernel's own stack. Here either becomes what Linux's entry
 * code expects: a frame whose CS tells kernel from user, and whose flags have
 * the interrupt flag that Linux thinks of. The real one is always on. An
 * interrupt that arrives while the kernel's flag is off is noted, not
 * acknowledged, and delivered when the flag goes on; so is one that arrives in
 * the code between paravane_critical and its end. Code that looks at what is
 * noted and then goes where nobody would look again is started anew.
 */
#include <linux/elfnote.h>
#include <linux/init.h>
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/asm-offsets.h>
#include <asm/frame.h>
#include <asm/nospec-branch.h>
#include <asm/page_types.h>
#include <asm/percpu.h>
#include <asm/processor-flags.h>
#include <asm/segment.h>
#include <asm/unwind_hints.h>
#include "../entry/calling.h"
#include "direct.h"

/* The error code of a user's write to a page that is not there. */
#define PARAVANE_USER_WRITES	0x6

/* Exceptions that come with an error code: 8, 10 to 14, 17, 21, 29, 30. */
#define HAS_ERROR	0x60227d00

	ELFNOTE(Paravane, PARAVANE_NOTE_LAYOUT, .long PARAVANE_LAYOUT)

	/* Where a kernel that has run out of stack says so. */
	.bss
	.balign	PAGE_SIZE
paravane_last_stack:
	.skip	PAGE_SIZE

	.section .entry.text, "ax"

	.globl	paravane_critical
	.balign 16
paravane_critical:

/* Every vector's gate in the kernel's table. */
SYM_CODE_START(paravane_stubs)
	ANNOTATE_NOENDBR
	vector = 0
	.rept 256
	.balign 16
	UNWIND_HINT_UNDEFINED
	pushq	$vector
	.if vector >= 32
	jmp	paravane_interrupt
	.elseif vector == 13
	jmp	paravane_protection
	.elseif (HAS_ERROR >> vector) & 1
	jmp	paravane_exception_error
	.else
	jmp	paravane_exception
	.endif
	vector = vector + 1
	.endr
SYM_CODE_END(paravane_stubs)

/* Stack: vector, frame. */
SYM_CODE_START_LOCAL(paravane_exception)
	UNWIND_HINT_UNDEFINED
	pushq	%rax
	movq	$__KERNEL_CS, 24(%rsp)
	movq	$__KERNEL_DS, 48(%rsp)
	cmpb	$0, CPU(CPU_MASKED)
	je	1f
	andq	$~X86_EFLAGS_IF, 32(%rsp)
1:	movb	$1, CPU(CPU_MASKED)
.Lto_handler:
	movq	8(%rsp), %rax
	movq	paravane_handlers(,%rax,8), %rax
	movq	%rax, 8(%rsp)
	popq	%rax
	ret
SYM_CODE_END(paravane_exception)

/* Stack: vector, error code, frame. */
SYM_CODE_START_LOCAL(paravane_exception_error)
	UNWIND_HINT_UNDEFINED
	pushq	%rax
	movq	$__KERNEL_CS, 32(%rsp)
	movq	$__KERNEL_DS, 56(%rsp)
	cmpb	$0, CPU(CPU_MASKED)
	je	1f
	andq	$~X86_EFLAGS_IF, 40(%rsp)
1:	movb	$1, CPU(CPU_MASKED)
	jmp	.Lto_handler
SYM_CODE_END(paravane_exception_error)

/* Perhaps an instruction that needs privilege, and that no hook stands for. */
SYM_CODE_START_LOCAL(paravane_protection)
	UNWIND_HINT_UNDEFINED
	addq	$8, %rsp
	movq	$__KERNEL_CS, 16(%rsp)
	movq	$__KERNEL_DS, 40(%rsp)
	cmpb	$0, CPU(CPU_MASKED)
	je	1f
	andq	$~X86_EFLAGS_IF, 24(%rsp)
1:	movb	$1, CPU(CPU_MASKED)
	PUSH_AND_CLEAR_REGS
	ENCODE_FRAME_POINTER
	movq	%rsp, %rdi
	call	paravane_emulate
	testb	%al, %al
	POP_REGS
	jz	2f
	addq	$8, %rsp
	jmp	paravane_iret
2:	jmp	*paravane_handlers+13*8
SYM_CODE_END(paravane_protection)

/* Stack: vector, frame. */
SYM_CODE_START_LOCAL(paravane_interrupt)
	UNWIND_HINT_UNDEFINED
	pushq	%rax
	movq	16(%rsp), %rax
	subq	$paravane_critical, %rax
	cmpq	$(paravane_critical_end - paravane_critical), %rax
	jb	.Lcritical
	cmpb	$0, CPU(CPU_MASKED)
	jne	.Lnote
	movb	$1, CPU(CPU_MASKED)
	movq	$__KERNEL_CS, 24(%rsp)
	movq	$__KERNEL_DS, 48(%rsp)
	jmp	.Lto_handler
.Lnote:
	movq	8(%rsp), %rax
	btsq	%rax, CPU(CPU_VECTORS)
	movb	$1, CPU(CPU_PENDING)
	popq	%rax
	addq	$8, %rsp
	iretq

.Lcritical:
	/* With a stack in an area, GS may be the user's. */
	movq	40(%rsp), %rax
	shrq	$39, %rax
	cmpl	$PARAVANE_REGIONS_39, %eax
	jne	.Lkernel_gs
	pushq	%rbx
	pushq	%rcx
	rdgsbase %rbx
	movq	40+16(%rsp), %rax
	andq	$~0xfff, %rax
	movq	AREA_KERNEL_GS(%rax), %rcx
	wrgsbase %rcx
	movq	8+16(%rsp), %rcx
	btsq	%rcx, CPU(CPU_VECTORS)
	movb	$1, CPU(CPU_PENDING)
	/* On the way out: with the kernel's stack and GS, from the beginning. */
	movq	16+16(%rsp), %rcx
	subq	$.Lleave_restart, %rcx
	cmpq	$(.Lleave_end - .Lleave_restart), %rcx
	jae	1f
	movq	AREA_SAVED_SP(%rax), %rcx
	movq	%rcx, 40+16(%rsp)
	movq	$.Lleave_restart, 16+16(%rsp)
	jmp	2f
1:	wrgsbase %rbx
2:	popq	%rcx
	popq	%rbx
	popq	%rax
	addq	$8, %rsp
	iretq

.Lkernel_gs:
	movq	16(%rsp), %rax
	subq	$.Lleave_restart, %rax
	cmpq	$(.Lleave_end - .Lleave_restart), %rax
	jae	1f
	movq	$.Lleave_restart, 16(%rsp)
	jmp	.Lnote
1:	movq	16(%rsp), %rax
	subq	$.Lreturn_restart, %rax
	cmpq	$(.Lreturn_end - .Lreturn_restart), %rax
	jae	2f
	movb	$1, CPU(CPU_MASKED)
	movq	$.Lreturn_restart, 16(%rsp)
	jmp	.Lnote
2:	movq	16(%rsp), %rax
	subq	$.Lhalt_restart, %rax
	cmpq	$(.Lhalt_end - .Lhalt_restart), %rax
	jae	.Lnote
	movq	$.Lhalt_restart, 16(%rsp)
	jmp	.Lnote
SYM_CODE_END(paravane_interrupt)

/* The kernel's GS; RAX: the area, whose stack is in use. */
.macro ENTER_WITH_KERNEL_GS
	rdgsbase %rax
	movq	%rax, AREA_USER_GS - AREA_USER_ENTRY(%rsp)
	movq	AREA_KERNEL_GS - AREA_USER_ENTRY(%rsp), %rax
	wrgsbase %rax
	leaq	-AREA_USER_ENTRY(%rsp), %rax
.endm

/* RAX: the area. Takes what the switcher has exchanged for the root. */
.macro TAKE_USER_RAX
	pushq	AREA_SWAP(%rax)
	popq	AREA_USER_RAX(%rax)
	pushq	AREA_KERNEL_ROOT(%rax)
	popq	AREA_SWAP(%rax)
	END_CALL %rax
.endm

/*
 * From the switcher: a breakpoint in user mode, which is SYSCALL where that
 * does not raise privilege.
 */
SYM_CODE_START(paravane_user_breakpoint_entry)
	UNWIND_HINT_END_OF_STACK
	ANNOTATE_NOENDBR
	ENTER_WITH_KERNEL_GS
	pushq	AREA_SYSCALL_RIP(%rax)
	pushq	AREA_USER_FRAME + FRAME_IP(%rax)
	popq	%rax
	cmpq	%rax, (%rsp)
	leaq	8(%rsp), %rsp
	leaq	-AREA_USER_ENTRY(%rsp), %rax
	je	.Lsyscall
	movl	$3, AREA_VECTOR(%rax)
	jmp	.Luser_event
SYM_CODE_END(paravane_user_breakpoint_entry)

/* From the switcher: SYSCALL. */
SYM_CODE_START(paravane_syscall_entry)
	UNWIND_HINT_END_OF_STACK
	ANNOTATE_NOENDBR
	ENTER_WITH_KERNEL_GS
.Lsyscall:
	TAKE_USER_RAX
	incq	COUNT_SYSTEM_CALL(%rax)
	movq	PER_CPU_VAR(pcpu_hot + X86_top_of_stack), %rsp
	pushq	$__USER_DS
	pushq	AREA_USER_FRAME + FRAME_SP(%rax)
	pushq	%r11
	pushq	$__USER_CS
	pushq	%rcx
	movq	AREA_USER_RAX(%rax), %rax
	jmp	entry_SYSCALL_64_after_hwframe
SYM_CODE_END(paravane_syscall_entry)

/* From the switcher: a page fault in user mode. RAX: its address. */
SYM_CODE_START(paravane_user_fault_entry)
	UNWIND_HINT_END_OF_STACK
	ANNOTATE_NOENDBR
	movq	%rax, AREA_FAULT_ADDRESS - AREA_USER_ENTRY(%rsp)
	movl	$14, %eax
	jmp	.Levent
SYM_CODE_END(paravane_user_fault_entry)

/* From the switcher: another event in user mode, or a fault of leaving. RAX: its vector. */
SYM_CODE_START(paravane_event_entry)
	UNWIND_HINT_END_OF_STACK
	ANNOTATE_NOENDBR
.Levent:
	movl	%eax, AREA_VECTOR - AREA_USER_ENTRY(%rsp)
	cmpw	$PARAVANE_SWITCHER_CS, AREA_USER_FRAME + FRAME_CS - AREA_USER_ENTRY(%rsp)
	je	.Lleave_failed
	ENTER_WITH_KERNEL_GS
.Luser_event:
	TAKE_USER_RAX
	movq	PER_CPU_VAR(pcpu_hot + X86_top_of_stack), %rsp
	pushq	AREA_USER_FRAME + FRAME_SS(%rax)
	pushq	AREA_USER_FRAME + FRAME_SP(%rax)
	pushq	AREA_USER_FRAME + FRAME_FLAGS(%rax)
	pushq	AREA_USER_FRAME + FRAME_CS(%rax)
	pushq	AREA_USER_FRAME + FRAME_IP(%rax)
	orq	$X86_EFLAGS_IF, 16(%rsp)
.Luser_frame:
	/* The error code, or room for the handler's address. */
	pushq	AREA_USER_ERROR(%rax)
	pushq	%rcx
	movl	AREA_VECTOR(%rax), %ecx
	cmpl	$32, %ecx
	jae	3f
	cmpl	$14, %ecx
	je	2f
	incq	COUNT_EXCEPTION(%rax)
	pushq	%rdx
	movl	$HAS_ERROR, %edx
	btl	%ecx, %edx
	popq	%rdx
	jc	4f
1:	movq	AREA_USER_RAX(%rax), %rax
	movq	paravane_handlers(,%rcx,8), %rcx
	movq	%rcx, 8(%rsp)
	popq	%rcx
	ret
2:	incq	COUNT_PAGE_FAULT(%rax)
	cmpb	$(PARAVANE_USER_WRITES), AREA_USER_ERROR(%rax)
	sete	CPU(CPU_FILLS)
4:	movq	AREA_USER_RAX(%rax), %rax
	movq	paravane_handlers(,%rcx,8), %rcx
	xchgq	%rcx, (%rsp)
	ret
3:	incq	COUNT_INTERRUPT(%rax)
	jmp	1b

	/* The switcher could not leave: the fault is the user's, there. */
.Lleave_failed:
	movq	AREA_KERNEL_GS - AREA_USER_ENTRY(%rsp), %rax
	wrgsbase %rax
	leaq	-AREA_USER_ENTRY(%rsp), %rax
	TAKE_USER_RAX
	movq	PER_CPU_VAR(pcpu_hot + X86_top_of_stack), %rsp
	pushq	$__USER_DS
	pushq	AREA_LEAVE + FRAME_SP(%rax)
	pushq	AREA_LEAVE + FRAME_FLAGS(%rax)
	pushq	$__USER_CS
	pushq	AREA_LEAVE + FRAME_IP(%rax)
	jmp	.Luser_frame
SYM_CODE_END(paravane_event_entry)

/* From the switcher: the end of a halt. RAX: the interrupt's vector. */
SYM_CODE_START(paravane_halted_entry)
	UNWIND_HINT_END_OF_STACK
	ANNOTATE_NOENDBR
	btsq	%rax, CPU(CPU_VECTORS)
	movb	$1, CPU(CPU_PENDING)
	leaq	-AREA_USER_ENTRY(%rsp), %rax
	END_CALL %rax
	incq	COUNT_OF_ROUTINE + ROUTINE_HALT(%rax)
	movq	AREA_SAVED_SP(%rax), %rsp
	jmp	paravane_irq_enable
SYM_CODE_END(paravane_halted_entry)

/* From the switcher: a page fault in the kernel. RAX: its address. */
SYM_CODE_START(paravane_fault_entry)
	UNWIND_HINT_UNDEFINED
	ANNOTATE_NOENDBR
	movq	%rax, AREA_FAULT_ADDRESS - AREA_KERNEL_ENTRY(%rsp)
	leaq	-AREA_KERNEL_ENTRY(%rsp), %rax
	incq	COUNT_KERNEL_PAGE_FAULT(%rax)
	/* In the code here only a stack without room faults. */
	pushq	AREA_KERNEL_FRAME + FRAME_IP(%rax)
	subq	$paravane_critical, (%rsp)
	cmpq	$(paravane_critical_end - paravane_critical), (%rsp)
	jb	.Lno_stack
	movq	AREA_KERNEL_FRAME + FRAME_SP(%rax), %rsp
	andq	$~15, %rsp
	pushq	$__KERNEL_DS
	pushq	AREA_KERNEL_FRAME + FRAME_SP(%rax)
	pushq	AREA_KERNEL_FRAME + FRAME_FLAGS(%rax)
	pushq	$__KERNEL_CS
	pushq	AREA_KERNEL_FRAME + FRAME_IP(%rax)
	pushq	AREA_KERNEL_ERROR(%rax)
	/* Not a user's access. */
	andq	$~4, (%rsp)
	orq	$X86_EFLAGS_IF, 24(%rsp)
	cmpb	$0, CPU(CPU_MASKED)
	je	1f
	andq	$~X86_EFLAGS_IF, 24(%rsp)
1:	movb	$1, CPU(CPU_MASKED)
	movq	AREA_KERNEL_RAX(%rax), %rax
	jmp	*paravane_handlers+14*8

.Lno_stack:
	movq	$(paravane_last_stack + PAGE_SIZE), %rsp
	pushq	$__KERNEL_DS
	pushq	AREA_KERNEL_FRAME + FRAME_SP(%rax)
	pushq	AREA_KERNEL_FRAME + FRAME_FLAGS(%rax)
	pushq	$__KERNEL_CS
	pushq	AREA_KERNEL_FRAME + FRAME_IP(%rax)
	pushq	$0
	movb	$1, CPU(CPU_MASKED)
	jmp	*paravane_handlers+8*8
SYM_CODE_END(paravane_fault_entry)

/* From the switcher: a breakpoint in the kernel that is no call. */
SYM_CODE_START(paravane_breakpoint_entry)
	UNWIND_HINT_UNDEFINED
	ANNOTATE_NOENDBR
	leaq	-AREA_KERNEL_ENTRY(%rsp), %rax
	incq	COUNT_OF_ROUTINE + ROUTINE_BREAKPOINT(%rax)
	movq	AREA_KERNEL_FRAME + FRAME_SP(%rax), %rsp
	andq	$~15, %rsp
	pushq	$__KERNEL_DS
	pushq	AREA_KERNEL_FRAME + FRAME_SP(%rax)
	pushq	AREA_KERNEL_FRAME + FRAME_FLAGS(%rax)
	pushq	$__KERNEL_CS
	pushq	AREA_KERNEL_FRAME + FRAME_IP(%rax)
	orq	$X86_EFLAGS_IF, 16(%rsp)
	cmpb	$0, CPU(CPU_MASKED)
	je	1f
	andq	$~X86_EFLAGS_IF, 16(%rsp)
1:	movb	$1, CPU(CPU_MASKED)
	movq	AREA_KERNEL_RAX(%rax), %rax
	jmp	*paravane_handlers+3*8
SYM_CODE_END(paravane_breakpoint_entry)

#include "cpu_shared.S"

/* In place of IRETQ. Stack: frame; the flag is off. */
SYM_CODE_START(paravane_iret)
	UNWIND_HINT_UNDEFINED
	ANNOTATE_NOENDBR
	testb	$3, FRAME_CS(%rsp)
	jnz	.Lleave
	testl	$X86_EFLAGS_IF, FRAME_FLAGS(%rsp)
	jz	.Lreturn_masked
.Lreturn_restart:
	ANNOTATE_NOENDBR
	movq	$__KERNEL_CS, FRAME_CS(%rsp)
	cmpb	$0, CPU(CPU_PENDING)
	jne	.Ldeliver
	movb	$0, CPU(CPU_MASKED)
	movq	$__USER_CS, FRAME_CS(%rsp)
	movq	$__USER_DS, FRAME_SS(%rsp)
	iretq
.Lreturn_end:

.Lreturn_masked:
	movq	$__USER_CS, FRAME_CS(%rsp)
	movq	$__USER_DS, FRAME_SS(%rsp)
	orq	$X86_EFLAGS_IF, FRAME_FLAGS(%rsp)
	iretq

.Lleave:
	pushq	%rax
	pushq	%rcx
.Lleave_restart:
	ANNOTATE_NOENDBR
	cmpb	$0, CPU(CPU_PENDING)
	jne	.Lleave_pending
	movq	CPU(CPU_AREA), %rax
	cmpb	$0, AREA_USER_TABLE(%rax)
	jne	.Lreturn_shared
.Lleave_by_switcher:
	movq	16 + FRAME_IP(%rsp), %rcx
	movq	%rcx, AREA_LEAVE + FRAME_IP(%rax)
	movq	16 + FRAME_CS(%rsp), %rcx
	movq	%rcx, AREA_LEAVE + FRAME_CS(%rax)
	movq	16 + FRAME_FLAGS(%rsp), %rcx
	orq	$X86_EFLAGS_IF, %rcx
	movq	%rcx, AREA_LEAVE + FRAME_FLAGS(%rax)
	movq	16 + FRAME_SP(%rsp), %rcx
	movq	%rcx, AREA_LEAVE + FRAME_SP(%rax)
	movq	16 + FRAME_SS(%rsp), %rcx
	movq	%rcx, AREA_LEAVE + FRAME_SS(%rax)
	movq	8(%rsp), %rcx
	movq	%rcx, AREA_USER_RAX(%rax)
	movzwl	ROUTINE_LEAVE(%rax), %ecx
	movw	%cx, PARAVANE_CALL(%rax)
	movq	%rsp, AREA_SAVED_SP(%rax)
	movq	(%rsp), %rcx
	leaq	AREA_USER_ENTRY(%rax), %rsp
	movq	AREA_USER_GS - AREA_USER_ENTRY(%rsp), %rax
	wrgsbase %rax
	movq	AREA_USER_ROOT - AREA_USER_ENTRY(%rsp), %rax
	int3

	RETURN_SHARED
.Lleave_end:

.Lleave_pending:
	/* Nobody leaves now. */
	movq	CPU(CPU_AREA), %rax
	END_CALL %rax
	popq	%rcx
	popq	%rax
	/* Fall through. */

/* The highest vector that has been noted interrupts what the frame tells. */
.Ldeliver:
	subq	$8, %rsp
	pushq	%rax
	pushq	%rcx
	movb	$0, CPU(CPU_PENDING)
	movl	$192, %ecx
	movq	CPU(CPU_VECTORS + 24), %rax
	testq	%rax, %rax
	jnz	1f
	movl	$128, %ecx
	movq	CPU(CPU_VECTORS + 16), %rax
	testq	%rax, %rax
	jnz	1f
	movl	$64, %ecx
	movq	CPU(CPU_VECTORS + 8), %rax
	testq	%rax, %rax
	jnz	1f
	xorl	%ecx, %ecx
	movq	CPU(CPU_VECTORS), %rax
	testq	%rax, %rax
	jnz	1f
	popq	%rcx
	popq	%rax
	addq	$8, %rsp
	jmp	paravane_iret
1:	bsrq	%rax, %rax
	addl	%eax, %ecx
	btrq	%rcx, CPU(CPU_VECTORS)
	movb	$1, CPU(CPU_PENDING)
	movq	paravane_handlers(,%rcx,8), %rax
	movq	%rax, 16(%rsp)
	popq	%rcx
	popq	%rax
	ret
SYM_CODE_END(paravane_iret)

/* Linux's exit to user mode, with the XENPV feature. */
SYM_CODE_START(xenpv_restore_regs_and_return_to_usermode)
	UNWIND_HINT_REGS
	POP_REGS
	addq	$8, %rsp
	jmp	paravane_iret
SYM_CODE_END(xenpv_restore_regs_and_return_to_usermode)

/* struct pv_irq_ops: callee-save, for patching into alternatives. */
	.balign 16
.Lenable_pending:
	movb	$1, CPU(CPU_MASKED)
	pushq	%rax
	movq	%rsp, %rax
	pushq	$__KERNEL_DS
	pushq	%rax
	pushfq
	orq	$X86_EFLAGS_IF, (%rsp)
	pushq	$__KERNEL_CS
	pushq	$.Lenabled
	UNWIND_HINT_UNDEFINED
	jmp	.Ldeliver

/* Interrupts are off, and stay off until one comes. */
SYM_CODE_START(paravane_safe_halt)
	UNWIND_HINT_FUNC
	ENDBR
.Lhalt_restart:
	ANNOTATE_NOENDBR
	cmpb	$0, CPU(CPU_PENDING)
	jne	.Lhalt_pending
	movq	CPU(CPU_AREA), %rax
	movq	%rsp, AREA_SAVED_SP(%rax)
	movzwl	ROUTINE_HALT(%rax), %ecx
	movw	%cx, PARAVANE_CALL(%rax)
	int3
.Lhalt_end:
.Lhalt_pending:
	movq	CPU(CPU_AREA), %rax
	END_CALL %rax
	jmp	paravane_irq_enable
SYM_CODE_END(paravane_safe_halt)

	.globl	paravane_critical_end
paravane_critical_end:

.Lenabled:
	UNWIND_HINT sp_reg=ORC_REG_SP sp_offset=16 type=UNWIND_HINT_TYPE_FUNC
	ANNOTATE_NOENDBR
	popq	%rax
	ret

SYM_CODE_START(paravane_irq_enable)
	UNWIND_HINT_FUNC
	ENDBR
	movb	$0, CPU(CPU_MASKED)
	cmpb	$0, CPU(CPU_PENDING)
	jne	.Lenable_pending
	ret
	int3
SYM_CODE_END(paravane_irq_enable)
