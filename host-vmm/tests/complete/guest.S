/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A kernel of a few instructions, at CPL 0, that an emulator may not know. A letter on the UART for each that did what the
 * manual says, a small x for one that did not; then a user at CPL 3, whose page fault and system call do likewise.
 */
	.set USER, 0x2000000
	.set USER_STACK, USER + 0x10000
	.set LSTAR, 0xc0000082
	.set STAR, 0xc0000081
	.set SFMASK, 0xc0000084
	.set EFER, 0xc0000080

/* Prints a letter if the zero flag is set. */
.macro REPORT letter
	mov	$\letter, %al
	je	9f
	mov	$'x', %al
9:	mov	$0x3f8, %dx
	out	%al, %dx
.endm

.macro WRITE_MSR number, high, low
	mov	$\number, %ecx
	mov	$\high, %edx
	mov	$\low, %eax
	wrmsr
.endm

.macro GATE vector, target
	lea	\target(%rip), %rax
	lea	idt + 16 * \vector(%rip), %rdi
	mov	%ax, (%rdi)
	movw	$0x10, 2(%rdi)
	movw	$0x8e00, 4(%rdi)
	shr	$16, %rax
	mov	%ax, 6(%rdi)
.endm

	.text
	.globl	_start
_start:
	lea	stack_end(%rip), %rsp
	lgdt	gdtr(%rip)
	push	$0x10
	lea	1f(%rip), %rax
	push	%rax
	lretq
1:	mov	$0x18, %eax
	mov	%eax, %ss
	lea	tss(%rip), %rax
	lea	stack_end(%rip), %rcx
	mov	%rcx, 4(%rax)
	lea	gdt + 0x38(%rip), %rdi
	mov	%ax, 2(%rdi)
	shr	$16, %rax
	mov	%al, 4(%rdi)
	mov	%ah, 7(%rdi)
	mov	$0x38, %eax
	ltr	%ax
	GATE	3, breakpoint
	GATE	14, page_fault
	lidt	idtr(%rip)
	mov	%cr4, %rax
	or	$0x40600, %rax
	mov	%rax, %cr4
	xor	%ecx, %ecx
	xor	%edx, %edx
	mov	$7, %eax
	xsetbv

	/* Integer instructions. */
	mov	$0xf0f01, %ecx
	popcnt	%rcx, %rax
	cmp	$9, %eax
	REPORT	'P'
	lea	place(%rip), %rsi
	xor	%eax, %eax
	xor	%edx, %edx
	mov	$5, %ebx
	mov	$6, %ecx
	cmpxchg16b (%rsi)
	REPORT	'E'
	xor	%eax, %eax
	cmpxchg16b (%rsi)
	sub	$5, %rax
	sub	$6, %rdx
	or	%rdx, %rax
	REPORT	'D'

	/* Extended state: what is saved comes back. */
	xor	%ecx, %ecx
	xgetbv
	cmp	$7, %eax
	REPORT	'G'
	mov	$7, %eax
	xor	%edx, %edx
	lea	state(%rip), %rdi
	movq	$0x1f80, 24(%rdi)
	movq	$2, 512(%rdi)
	movq	$1234, 160(%rdi)
	xrstor	(%rdi)
	lea	saved(%rip), %rdi
	mov	$7, %eax
	xsave	(%rdi)
	cmpq	$1234, 160(%rdi)
	REPORT	'R'

	fwait
	cmp	%eax, %eax
	REPORT	'W'

	/* An exception. */
	xor	%ebp, %ebp
	int3
	cmp	$3, %ebp
	REPORT	'B'

	/* A user, in pages of its own. */
	WRITE_MSR STAR, 0x230010, 0
	lea	system_call(%rip), %rax
	xor	%edx, %edx
	mov	$LSTAR, %ecx
	wrmsr
	WRITE_MSR SFMASK, 0, 0x700
	mov	$EFER, %ecx
	rdmsr
	or	$1, %eax
	wrmsr
	lea	user(%rip), %rsi
	mov	$USER, %edi
	mov	$(user_end - user), %ecx
	rep movsb
	mov	%cr3, %rbx
	orb	$4, (%rbx)
	mov	(%rbx), %rbx
	and	$~0xfff, %rbx
	orb	$4, (%rbx)
	mov	(%rbx), %rbx
	and	$~0xfff, %rbx
	orb	$4, (USER >> 21) * 8(%rbx)
	mov	%cr3, %rax
	mov	%rax, %cr3
	/* As a kernel does on its way to a user. */
	lea	state(%rip), %rdi
	mov	$7, %eax
	xor	%edx, %edx
	xrstor	(%rdi)
	push	$0x2b
	push	$USER_STACK
	push	$2
	push	$0x33
	push	$USER
	iretq

breakpoint:
	mov	$3, %ebp
	iretq

/* Steps over the load that has faulted. */
page_fault:
	cld
	push	%rax
	push	%rdx
	cmpq	$5, 16(%rsp)
	REPORT	'F'
	pop	%rdx
	pop	%rax
	add	$8, %rsp
	addq	$3, (%rsp)
	iretq

system_call:
	mov	%cs, %eax
	cmp	$0x10, %eax
	REPORT	'S'
	cmp	$USER_STACK, %rsp
	REPORT	'T'
	cmp	$(USER + user_calls - user), %rcx
	REPORT	'C'
	mov	$'\n', %al
	out	%al, %dx
	mov	$0xfe, %al
	out	%al, $0x64
1:	hlt
	jmp	1b

user:
	lea	_start, %rbx
	mov	(%rbx), %rax
	syscall
user_calls:
	ud2
user_end:

	.data
	.balign	64
state:	.skip	1024
saved:	.skip	1024
	.balign	16
place:	.skip	16
idt:	.skip	16 * 32
tss:	.skip	104
gdt:	.quad	0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
	.quad	0, 0x00cff3000000ffff, 0x00affb000000ffff
	.quad	0x0000890000000067, 0
gdtr:	.word	gdtr - gdt - 1
	.quad	gdt
idtr:	.word	16 * 32 - 1
	.quad	idt
	.skip	4096
	.balign	16
stack_end:
