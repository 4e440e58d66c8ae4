//! Calls of the ABI from a table: the VMM's tests write the frames, the guest makes the calls.
//!
//! The image is a kernel like any other: the VMM loads it and jumps to `entry`, in 64-bit mode.
//! What to do stands at `PARAMETERS` (see [`crate::layout`]), what to call in the frames.

/// The table loop. RBX is the frame, RCX the number of frames left.
macro_rules! table_loop {
    ($part:literal, $name:literal, $($end:literal),+) => {
        code! { $part; $name =>
            // Registers that a call must leave alone.
            "movl $0xb0b, %ebp", "movl $0xc12, %r12d", "movl $0xc13, %r13d", "movl $0xc14, %r14d", "movl $0xc15, %r15d",
            // A store before the call, as a hostile guest would do it.
            "1: movq FRAME_POKE(%rbx), %rax", "movq FRAME_POKE+8(%rbx), %rdx", "movl %edx, (%rax)",
            "movl FRAME_CALL(%rbx), %eax", "movl FRAME_PORT(%rbx), %edx",
            "movq FRAME_ARGS(%rbx), %rdi", "movq FRAME_ARGS+8(%rbx), %rsi", "movq FRAME_ARGS+16(%rbx), %r8",
            "movq FRAME_ARGS+24(%rbx), %r9", "movq FRAME_ARGS+32(%rbx), %r10", "movq FRAME_ARGS+40(%rbx), %r11",
            "cmpl $2, FRAME_WIDTH(%rbx)", "jb 2f", "je 3f",
            "outl %eax, %dx", "jmp 4f",
            "2: outb %al, %dx", "jmp 4f",
            "3: outw %ax, %dx",
            "4: movq %rax, FRAME_AFTER(%rbx)", "movq %rdx, FRAME_AFTER+8(%rbx)",
            "movq %rdi, FRAME_AFTER+16(%rbx)", "movq %rsi, FRAME_AFTER+24(%rbx)",
            "movq %r8, FRAME_AFTER+32(%rbx)", "movq %r9, FRAME_AFTER+40(%rbx)",
            "movq %r10, FRAME_AFTER+48(%rbx)", "movq %r11, FRAME_AFTER+56(%rbx)",
            "movq %rbp, FRAME_AFTER+64(%rbx)", "movq %r12, FRAME_AFTER+72(%rbx)", "movq %r13, FRAME_AFTER+80(%rbx)",
            "movq %r14, FRAME_AFTER+88(%rbx)", "movq %r15, FRAME_AFTER+96(%rbx)",
            "addq $FRAME_BYTES, %rbx", "decq %rcx", "jnz 1b",
            $($end),+;
        }
    };
}

table_loop! { "kernel", "calls_at_cpl0",
    // Off, with the call that is for it.
    "movl $0x00010004, %eax", "movl PARAMETERS+24, %edx", "xorl %edi, %edi", "xorl %esi, %esi",
    "xorl %r8d, %r8d", "xorl %r9d, %r9d", "xorl %r10d, %r10d", "xorl %r11d, %r11d", "outl %eax, %dx", "hlt"
}

// Without an IDT, a trap shuts the machine down.
table_loop! { "user", "calls_at_cpl3_loop", "ud2" }

code! { "kernel";
    // With an initrd it is the attacker.
    "entry" => "cmpl $0, 0x21c(%rsi)", "jne attack", "movq PARAMETERS, %rbx", "movq PARAMETERS+8, %rcx", "jmpq *PARAMETERS+16";

    // The test has written a GDT with segments for CPL 3 and a TSS that opens all ports.
    "calls_at_cpl3" => "lgdt PARAMETERS+32", "movl $TASK, %eax", "ltr %ax",
        "pushq $USER_SS", "pushq $USER_STACK", "pushq $2", "pushq $USER_CS", "pushq $calls_at_cpl3_loop", "iretq";

    // One call from 32-bit code at CPL 0.
    "calls_in_32_bit" => "lgdt PARAMETERS+32", "xorl %edi, %edi", "xorl %esi, %esi",
        "xorl %r8d, %r8d", "xorl %r9d, %r9d", "xorl %r10d, %r10d", "xorl %r11d, %r11d",
        "pushq $KERNEL32_CS", "pushq $1f", "lretq", ".code32",
        "1: movl FRAME_CALL(%ebx), %eax", "movl FRAME_PORT(%ebx), %edx", "outl %eax, %dx",
        "movl %eax, FRAME_AFTER(%ebx)", "movl %edx, FRAME_AFTER+8(%ebx)", "ud2", ".code64";

    // What `smp.start` starts: its registers go to the memory that RDI names, and the machine off.
    "processor_begins" => "movq %rax, (%rdi)", "movq %rbx, 8(%rdi)", "movq %rcx, 16(%rdi)", "movq %rdx, 24(%rdi)",
        "movq %rsi, 32(%rdi)", "movq %rdi, 40(%rdi)", "movq %rbp, 48(%rdi)", "movq %rsp, 56(%rdi)",
        "movq %r8, 64(%rdi)", "movq %r9, 72(%rdi)", "movq %r10, 80(%rdi)", "movq %r11, 88(%rdi)",
        "movq %r12, 96(%rdi)", "movq %r13, 104(%rdi)", "movq %r14, 112(%rdi)", "movq %r15, 120(%rdi)",
        "pushfq", "popq 128(%rdi)", "movq %cr0, %rax", "movq %rax, 136(%rdi)", "movq %cr3, %rax",
        "movq %rax, 144(%rdi)", "movq %cr4, %rax", "movq %rax, 152(%rdi)",
        "movl $0xc0000080, %ecx", "rdmsr", "movl %eax, 160(%rdi)", "movl %edx, 164(%rdi)",
        "movl $0x00010004, %eax", "movl PARAMETERS+24, %edx", "xorl %edi, %edi", "xorl %esi, %esi",
        "xorl %r8d, %r8d", "xorl %r9d, %r9d", "xorl %r10d, %r10d", "xorl %r11d, %r11d", "outl %eax, %dx", "hlt";

    "processor_waits" => "hlt", "jmp processor_waits";

    // Not calls: each frame's call id is a CPUID leaf, its first argument the subleaf, and EAX, EBX, ECX and EDX
    // come back.
    "leaves_at_cpl0" => "movq %rbx, %r8", "movq %rcx, %r9",
        "1: movl FRAME_CALL(%r8), %eax", "movl FRAME_ARGS(%r8), %ecx", "cpuid",
        "movl %eax, FRAME_AFTER(%r8)", "movl %ebx, FRAME_AFTER+8(%r8)",
        "movl %ecx, FRAME_AFTER+16(%r8)", "movl %edx, FRAME_AFTER+24(%r8)",
        "addq $FRAME_BYTES, %r8", "decq %r9", "jnz 1b", "ud2";

    // Neither calls: a string instruction, with words that are not in EAX, and a read at the doorbell.
    // What IN gave comes back.
    "other_accesses_at_cpl0" => "movl FRAME_PORT(%rbx), %edx", "leaq FRAME_CALL(%rbx), %rsi",
        "movl FRAME_WIDTH(%rbx), %ecx", "movl $0x55555555, %eax", "cld", "rep outsl",
        "inl %dx, %eax", "movq %rax, FRAME_AFTER(%rbx)", "movq %rdx, FRAME_AFTER+8(%rbx)", "ud2";
}
