//! Probes at CPL 3: what a guest's user space does, and what a kernel without ring 0 would live on.

code! { "user";
    "u_report_cs" => "movl %cs, %eax", "movl %eax, DONE";

    // Does not end.
    "u_spin" => "nop";

    // Natively anywhere.
    "u_nop" => "nop", "movl %eax, DONE";
    "u_rdtsc" => "rdtsc", "movl %eax, DONE";
    "u_cpuid" => "xorl %eax, %eax", "xorl %ecx, %ecx", "cpuid", "testl %ebx, %ebx", "setnz %al",
        "movzbl %al, %eax", "movl %eax, DONE";
    "u_cmpxchg16b" => "xorl %eax, %eax", "xorl %edx, %edx", "movl $1, %ebx", "movl $2, %ecx",
        "lock cmpxchg16b SCRATCH", "movl SCRATCH+8, %eax", "movl %eax, DONE";
    "u_xsave" => "movl $3, %eax", "xorl %edx, %edx", "xsave SCRATCH", "movl %eax, DONE";
    "u_xrstor" => "movl $3, %eax", "xorl %edx, %edx", "xrstor SCRATCH", "movl %eax, DONE";
    "u_sse" => "movl $20, %eax", "movd %eax, %xmm0", "paddd %xmm0, %xmm0", "movd %xmm0, %eax", "movl %eax, DONE";
    "u_avx" => "vpxor %ymm1, %ymm1, %ymm1", "movl %eax, DONE";
    "u_iretq_same" => "movq %rsp, %rbx", "pushq $USER_SS", "pushq %rbx", "pushq $2", "pushq $USER_CS",
        "pushq $1f", "iretq", "1: movl $1, %eax", "movl %eax, DONE";
    "u_wrgsbase" => "movl $0x1230, %eax", "wrgsbase %rax", "xorl %eax, %eax", "rdgsbase %rax", "movl %eax, DONE";

    // To the kernel by a trap.
    "u_int3" => "int3", "movl %eax, DONE";
    "u_int_n" => "int $0x30", "movl %eax, DONE";
    "u_ud2" => "ud2", "movl %eax, DONE";
    "u_page_fault" => "movl UNMAPPED, %eax", "movl %eax, DONE";
    "u_supervisor_page" => "movl entry, %eax", "movl %eax, DONE";
    "u_cli" => "cli", "movl %eax, DONE";
    "u_hlt" => "hlt", "movl %eax, DONE";
    "u_mov_cr3" => "movq %rax, %cr3", "movl %eax, DONE";
    "u_wrmsr" => "movl $0xc0000102, %ecx", "wrmsr", "movl %eax, DONE";
    "u_invlpg" => "invlpg SCRATCH", "movl %eax, DONE";
    "u_in" => "inb $PORT_PLAIN, %al", "movl $1, %eax", "movl %eax, DONE";
    "u_out" => "outb %al, $PORT_PLAIN", "movl $1, %eax", "movl %eax, DONE";

    // To the kernel by the door.
    "u_syscall" => "syscall", "movl %eax, DONE";

    // The interrupt flag: starts clear and, with IOPL 0, stays as it is.
    "u_pushf" => "pushfq", "popq %rax", "andl $0x200, %eax", "movl %eax, DONE";
    "u_popf" => "pushq $0x202", "popfq", "pushfq", "popq %rax", "andl $0x200, %eax", "movl %eax, DONE";
}
