/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Into the kernel without user isolation; a part of cpu_entry.S.
 *
 * Users run on the kernel's page tables then, and SYSCALL is a jump: it comes
 * here with the interrupt descriptor table of users, by which each event goes
 * to the switcher, and if nothing happens the kernel returns to the user with
 * that. AREA_USER_TABLE says so. The first event, or call of the switcher,
 * loads the kernel's own table, comes here, and is then as one that came by
 * that table: what returns to its instruction is executed once more, and the
 * others go to the stub of their vector, with a frame on the stack that was in
 * use. From there on the way to the user is by the switcher.
 */

/* By SYSCALL. RSP: the area's stack; RCX and R11 have the user's RIP and flags. */
SYM_CODE_START(paravane_shared_syscall_entry)
	UNWIND_HINT_END_OF_STACK
	ANNOTATE_NOENDBR
	movb	$1, AREA_USER_TABLE - AREA_USER_ENTRY(%rsp)
	movq	%rax, AREA_USER_RAX - AREA_USER_ENTRY(%rsp)
	ENTER_WITH_KERNEL_GS
	incq	COUNT_SYSTEM_CALL(%rax)
	movq	PER_CPU_VAR(pcpu_hot + X86_top_of_stack), %rsp
	pushq	$__USER_DS
	pushq	AREA_USER_SP(%rax)
	pushq	%r11
	pushq	$__USER_CS
	pushq	%rcx
	movq	AREA_USER_RAX(%rax), %rax
	jmp	entry_SYSCALL_64_after_hwframe
SYM_CODE_END(paravane_shared_syscall_entry)

/*
 * The rest of paravane_iret's way to a user, where the table is that of users.
 * RAX: the area; stack: RCX, RAX, frame. What cannot be left to like this the
 * switcher leaves to.
 */
.macro RETURN_SHARED
.Lreturn_shared:
	movq	16 + FRAME_IP(%rsp), %rcx
	shrq	$47, %rcx
	jnz	.Lleave_by_switcher
	cmpw	$__USER_CS, 16 + FRAME_CS(%rsp)
	jne	.Lleave_by_switcher
	cmpw	$__USER_DS, 16 + FRAME_SS(%rsp)
	jne	.Lleave_by_switcher
	orq	$X86_EFLAGS_IF, 16 + FRAME_FLAGS(%rsp)
	movq	%rsp, AREA_SAVED_SP(%rax)
.Lreturn_begins:
	ANNOTATE_NOENDBR
	movb	$0, AREA_USER_TABLE(%rax)
	movq	AREA_USER_GS(%rax), %rax
	wrgsbase %rax
	popq	%rcx
	popq	%rax
	iretq
.Lreturn_ends:
.endm

/* From the switcher: a breakpoint, perhaps a call of the kernel's. */
SYM_CODE_START(paravane_shared_breakpoint_entry)
	UNWIND_HINT_END_OF_STACK
	ANNOTATE_NOENDBR
	movl	$3, %eax
	jmp	.Lshared_event
SYM_CODE_END(paravane_shared_breakpoint_entry)

/* From the switcher: a page fault. RAX: its address. */
SYM_CODE_START(paravane_shared_fault_entry)
	UNWIND_HINT_END_OF_STACK
	ANNOTATE_NOENDBR
	movq	%rax, AREA_FAULT_ADDRESS - AREA_KERNEL_ENTRY(%rsp)
	movl	$14, %eax
	jmp	.Lshared_event
SYM_CODE_END(paravane_shared_fault_entry)

/* From the switcher: another event. RAX: its vector. */
SYM_CODE_START(paravane_shared_event_entry)
	UNWIND_HINT_END_OF_STACK
	ANNOTATE_NOENDBR
.Lshared_event:
	movl	%eax, AREA_VECTOR - AREA_KERNEL_ENTRY(%rsp)
	leaq	-AREA_KERNEL_ENTRY(%rsp), %rax
	pushq	%rbx
	cmpb	$0, AREA_USER_TABLE(%rax)
	jne	.Lshared_kernel
	/* In the few instructions that SYSCALL leads to? Then at the SYSCALL. */
	movq	AREA_USER_FRAME + FRAME_IP(%rax), %rbx
	cmpq	$paravane_shared_syscall_entry, %rbx
	je	0f
	subq	AREA_SYSCALL_RIP(%rax), %rbx
	cmpq	$PARAVANE_SYSCALL_BYTES, %rbx
	jb	0f
	movq	AREA_USER_FRAME + FRAME_IP(%rax), %rbx
	subq	$paravane_critical, %rbx
	cmpq	$(paravane_critical_end - paravane_critical), %rbx
	jb	.Lshared_kernel
	jmp	2f
0:	movq	AREA_USER_FRAME + FRAME_SP(%rax), %rbx
	shrq	$39, %rbx
	cmpl	$PARAVANE_REGIONS_39, %ebx
	jne	1f
	pushq	AREA_USER_SP(%rax)
	popq	AREA_USER_FRAME + FRAME_SP(%rax)
1:	leaq	-2(%rcx), %rbx
	movq	%rbx, AREA_USER_FRAME + FRAME_IP(%rax)
	movq	%r11, AREA_USER_FRAME + FRAME_FLAGS(%rax)
2:	popq	%rbx
	leaq	AREA_USER_ENTRY(%rax), %rsp
	movl	AREA_VECTOR(%rax), %eax
	jmp	.Levent

.Lshared_kernel:
	movb	$0, AREA_USER_TABLE(%rax)
	/*
	 * Who was about to halt or to leave begins that anew: what has been
	 * noted meanwhile is looked at there.
	 */
	cmpl	$3, AREA_VECTOR(%rax)
	jne	2f
	decq	AREA_USER_FRAME + FRAME_IP(%rax)
	movq	AREA_USER_FRAME + FRAME_IP(%rax), %rbx
	subq	$.Lhalt_restart, %rbx
	cmpq	$(.Lhalt_end - .Lhalt_restart), %rbx
	jae	1f
	movq	$.Lhalt_restart, AREA_USER_FRAME + FRAME_IP(%rax)
	jmp	4f
1:	movq	AREA_USER_FRAME + FRAME_IP(%rax), %rbx
	subq	$.Lleave_restart, %rbx
	cmpq	$(.Lleave_end - .Lleave_restart), %rbx
	jb	3f
2:	movq	AREA_USER_FRAME + FRAME_IP(%rax), %rbx
	subq	$.Lreturn_begins, %rbx
	cmpq	$(.Lreturn_ends - .Lreturn_begins), %rbx
	jae	4f
3:	movq	AREA_KERNEL_GS(%rax), %rbx
	wrgsbase %rbx
	movq	AREA_SAVED_SP(%rax), %rbx
	movq	%rbx, AREA_USER_FRAME + FRAME_SP(%rax)
	movq	$.Lleave_restart, AREA_USER_FRAME + FRAME_IP(%rax)
4:	movq	AREA_USER_FRAME + FRAME_SP(%rax), %rsp
	andq	$~15, %rsp
	pushq	AREA_USER_FRAME + FRAME_SS(%rax)
	pushq	AREA_USER_FRAME + FRAME_SP(%rax)
	pushq	AREA_USER_FRAME + FRAME_FLAGS(%rax)
	pushq	AREA_USER_FRAME + FRAME_CS(%rax)
	pushq	AREA_USER_FRAME + FRAME_IP(%rax)
	movl	AREA_VECTOR(%rax), %ebx
	cmpl	$1, %ebx
	je	5f
	cmpl	$32, %ebx
	jae	5f
	pushq	$.Lshared_again
	jmp	6f
5:	shll	$4, %ebx
	addq	$paravane_stubs, %rbx
	pushq	%rbx
6:	movq	AREA_KERNEL_ENTRY - 8(%rax), %rbx
	pushq	AREA_SWAP(%rax)
	pushq	AREA_KERNEL_ROOT(%rax)
	popq	AREA_SWAP(%rax)
	popq	%rax
	ret
.Lshared_again:
	ANNOTATE_NOENDBR
	iretq
SYM_CODE_END(paravane_shared_event_entry)
