//! The attacker: does what a script says, as fast as it can, and bears what comes back.
//!
//! `cargo ci attack` writes the script; it is the guest's initrd. Its first 16 bytes are the number of passes and the number of entries; entries of
//! 64 bytes follow from byte 64 on: which operation (the order of `attack_operations`), an address, six values. Whatever exception an operation raises, the next
//! one follows. Tables and stack are the guest's own, between 1 MiB and 4 MiB: a script that keeps devices from writing there
//! can have them write anywhere else.

code! { "kernel";
    // RSI is the zero page: at 0x218 it says where the initrd is.
    "attack" => "movl 0x218(%rsi), %r15d", "movl $KERNEL_STACK, %esp",
        // Page tables as at the entry: the first 4 GiB, one to one, in pages of 2 MiB.
        "movl $SCRATCH+0x11003, SCRATCH+0x10000", "movl $SCRATCH+0x12003, %eax", "movl $SCRATCH+0x11000, %edi",
        "1: movl %eax, (%rdi)", "addl $0x1000, %eax", "addl $8, %edi", "cmpl $SCRATCH+0x11020, %edi", "jne 1b",
        "movl $0x83, %eax", "movl $SCRATCH+0x12000, %edi",
        "2: movl %eax, (%rdi)", "addl $0x200000, %eax", "addl $8, %edi", "cmpl $SCRATCH+0x16000, %edi", "jne 2b",
        "movl $SCRATCH+0x10000, %eax", "movq %rax, %cr3",
        // The code segment at 0x10 and the data segment at 0x18, as at the entry.
        "movq $0x00af9b00, %rax", "shlq $24, %rax", "shlq $8, %rax", "orq $0xffff, %rax", "movq %rax, SCRATCH+0x910",
        "movq $0x00cf9300, %rax", "shlq $32, %rax", "orq $0xffff, %rax", "movq %rax, SCRATCH+0x918",
        "movw $0x1f, SCRATCH+0x800", "movq $SCRATCH+0x900, SCRATCH+0x802", "lgdt SCRATCH+0x800",
        // All gates lead to the next operation.
        "movl $attack_next, %eax", "movl %eax, %edx", "movw $0x8e00, %dx", "andl $0xffff, %eax", "orl $0x100000, %eax",
        "movl $SCRATCH+0x1000, %edi",
        "3: movl %eax, (%rdi)", "movl %edx, 4(%rdi)", "addl $16, %edi", "cmpl $SCRATCH+0x2000, %edi", "jne 3b",
        "movw $0xfff, SCRATCH+0x800", "movq $SCRATCH+0x1000, SCRATCH+0x802", "lidt SCRATCH+0x800",
        "movq (%r15), %r14", "movq 8(%r15), %rbp", "cld",
        "attack_pass: leaq 64(%r15), %r12", "movq %rbp, %r13",
        "attack_operation: movl (%r12), %eax", "andl $31, %eax", "movq 8(%r12), %rdx", "movq 16(%r12), %rdi",
        "jmpq *attack_operations(,%rax,8)",
        "attack_next: movl $KERNEL_STACK, %esp", "addq $64, %r12", "decq %r13", "jnz attack_operation",
        "decq %r14", "jnz attack_pass",
        // Off by the call that is for it; a PC by its keyboard controller.
        "movl $0x00010004, %eax", "movl $PORT_CALL, %edx", "xorl %edi, %edi", "xorl %esi, %esi",
        "xorl %r8d, %r8d", "xorl %r9d, %r9d", "xorl %r10d, %r10d", "xorl %r11d, %r11d", "outl %eax, %dx",
        "movl $0xfe, %eax", "outb %al, $0x64", "hlt";

    "attack_operations" => ".quad 1f, 2f, 3f, 4f, 5f, 6f, 7f, 8f, 9f, 10f, 11f, 12f, 13f, 14f, 15f, 16f, 17f",
        ".rept 15", ".quad attack_next", ".endr",
        "1: movl %edi, %eax", "outb %al, %dx", "jmp attack_next",
        "2: movl %edi, %eax", "outw %ax, %dx", "jmp attack_next",
        "3: movl %edi, %eax", "outl %eax, %dx", "jmp attack_next",
        "4: inb %dx, %al", "jmp attack_next",
        "5: inw %dx, %ax", "jmp attack_next",
        "6: inl %dx, %eax", "jmp attack_next",
        // Address of the data, and how many.
        "7: movq %rdi, %rsi", "movl 24(%r12), %ecx", "rep outsw", "jmp attack_next",
        "8: movl 24(%r12), %ecx", "rep insw", "jmp attack_next",
        "9: movl %edi, %eax", "movb %al, (%rdx)", "jmp attack_next",
        "10: movl %edi, (%rdx)", "jmp attack_next",
        "11: movq %rdi, (%rdx)", "jmp attack_next",
        "12: movb (%rdx), %al", "jmp attack_next",
        "13: movl (%rdx), %eax", "jmp attack_next",
        "14: movl %edx, %eax", "movl $PORT_CALL, %edx", "movq 24(%r12), %rsi", "movq 32(%r12), %r8", "movq 40(%r12), %r9",
        "movq 48(%r12), %r10", "movq 56(%r12), %r11", "outl %eax, %dx", "jmp attack_next",
        "15: movl %edx, %eax", "movl %edi, %ecx", "cpuid", "jmp attack_next",
        "16: movl %edx, %ecx", "rdmsr", "jmp attack_next",
        "17: movl %edx, %ecx", "movl %edi, %eax", "movl 20(%r12), %edx", "wrmsr", "jmp attack_next";
}
