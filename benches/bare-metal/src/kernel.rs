//! Probes of single instructions at CPL 0, where an operating system's kernel lives.

code! { "kernel";
    // The ordinary, so that a failure elsewhere means something.
    "k_nop" => "nop", "movl %eax, DONE";
    "k_lock_xadd" => "movl $5, SCRATCH", "movl $2, %eax", "lock xaddl %eax, SCRATCH", "movl %eax, DONE";
    "k_rep_stos" => "movl $SCRATCH, %edi", "movl $8, %ecx", "movl $7, %eax", "cld", "rep stosq",
        "movl SCRATCH+56, %eax", "movl %eax, DONE";
    "k_rep_movs" => "movl $9, SCRATCH", "movl $SCRATCH, %esi", "movl $SCRATCH+64, %edi", "movl $8, %ecx",
        "cld", "rep movsb", "movl SCRATCH+64, %eax", "movl %eax, DONE";

    // Exceptions and software interrupts.
    "k_int3" => "int3", "movl %eax, DONE";
    "k_int_n" => "int $0x30", "movl %eax, DONE";
    "k_ud2" => "ud2", "movl %eax, DONE";
    "k_div0" => "xorl %ecx, %ecx", "divl %ecx", "movl %eax, DONE";
    "k_page_fault" => "movl UNMAPPED, %eax", "movl %eax, DONE";

    // Does not end.
    "k_spin" => "nop";

    // What Linux cannot do without.
    "k_cmpxchg16b" => "xorl %eax, %eax", "xorl %edx, %edx", "movl $1, %ebx", "movl $2, %ecx",
        "lock cmpxchg16b SCRATCH", "movl SCRATCH+8, %eax", "movl %eax, DONE";
    "k_fxsave" => "fxsave SCRATCH", "movl %eax, DONE";
    "k_fxrstor" => "fxrstor SCRATCH", "movl %eax, DONE";
    "k_xgetbv" => "xorl %ecx, %ecx", "xgetbv", "andl $3, %eax", "movl %eax, DONE";
    "k_xsetbv" => "xorl %ecx, %ecx", "xorl %edx, %edx", "movl $3, %eax", "xsetbv", "movl %eax, DONE";
    "k_xsave" => "movl $3, %eax", "xorl %edx, %edx", "xsave SCRATCH", "movl %eax, DONE";
    "k_xrstor" => "movl $3, %eax", "xorl %edx, %edx", "xrstor SCRATCH", "movl %eax, DONE";
    "k_ldmxcsr" => "movl $0x1f80, SCRATCH", "ldmxcsr SCRATCH", "movl %eax, DONE";
    "k_swapgs" => "swapgs", "swapgs", "movl %eax, DONE";
    "k_wrmsr" => "movl $0xc0000102, %ecx", "movl $0x1230, %eax", "xorl %edx, %edx", "wrmsr",
        "xorl %eax, %eax", "rdmsr", "movl %eax, DONE";
    "k_mov_cr3" => "movq %cr3, %rax", "movq %rax, %cr3", "movl %eax, DONE";
    "k_mov_cr4" => "movq %cr4, %rax", "xorq $0x80, %rax", "movq %rax, %cr4", "movl %eax, DONE";
    "k_invlpg" => "invlpg SCRATCH", "movl %eax, DONE";
    "k_lgdt" => "sgdt SCRATCH", "lgdt SCRATCH", "movl %eax, DONE";
    "k_lidt" => "sidt SCRATCH", "lidt SCRATCH", "movl %eax, DONE";
    "k_ltr" => "movl $TASK, %eax", "ltr %ax", "movl %eax, DONE";
    "k_rdtsc" => "rdtsc", "movl %eax, DONE";
    "k_cpuid" => "xorl %eax, %eax", "xorl %ecx, %ecx", "cpuid", "testl %ebx, %ebx", "setnz %al",
        "movzbl %al, %eax", "movl %eax, DONE";
    "k_iretq" => "pushq $USER_SS", "pushq $USER_STACK", "pushq $2", "pushq $USER_CS", "pushq $u_report_cs", "iretq";
    "k_iretq_same" => "movq %rsp, %rbx", "pushq $KERNEL_SS", "pushq %rbx", "pushq $2", "pushq $KERNEL_CS",
        "pushq $1f", "iretq", "1: movl $1, %eax", "movl %eax, DONE";
    "k_sysretq" => "movl $u_report_cs, %ecx", "movl $2, %r11d", "movl $USER_STACK, %esp", "sysretq";

    // What compilers and optional features use.
    "k_rdtscp" => "rdtscp", "movl %eax, DONE";
    "k_popcnt" => "movl $0xff0f, %ecx", "popcntl %ecx, %eax", "movl %eax, DONE";
    "k_crc32" => "xorl %eax, %eax", "movl $1, %ecx", "crc32l %ecx, %eax", "testl %eax, %eax", "setnz %al",
        "movzbl %al, %eax", "movl %eax, DONE";
    "k_stac" => "stac", "movl %eax, DONE";
    "k_clac" => "clac", "movl %eax, DONE";
    "k_verw" => "movl $KERNEL_SS, %ecx", "verw %cx", "setz %al", "movzbl %al, %eax", "movl %eax, DONE";
    "k_invpcid" => "movl $2, %eax", "invpcid SCRATCH, %rax", "movl %eax, DONE";
    "k_sse" => "movl $20, %eax", "movd %eax, %xmm0", "paddd %xmm0, %xmm0", "movd %xmm0, %eax", "movl %eax, DONE";
    "k_avx" => "vpxor %ymm1, %ymm1, %ymm1", "movl %eax, DONE";
    "k_aes" => "aesenc %xmm0, %xmm0", "movl %eax, DONE";
    "k_sha" => "sha1msg1 %xmm1, %xmm2", "movl %eax, DONE";
    "k_bmi" => "movl $3, %eax", "movl $4, %ecx", "shlxl %ecx, %eax, %eax", "movl %eax, DONE";

    // CPUID leaf 1, ECX: is a feature that the VMM has taken away really away?
    "k_cpuid_masked" => "movl $1, %eax", "xorl %ecx, %ecx", "cpuid", "movl %ecx, %eax",
        "andl $0x14000000, %eax", "movl %eax, DONE";

    // Only where the host has VMX or SVM: elsewhere they can hang the host's kernel.
    "k_vmcall" => "movl $0x7ffffff0, %eax", "vmcall", "movl %eax, DONE";
    "k_vmmcall" => "movl $0x7ffffff0, %eax", "vmmcall", "movl %eax, DONE";

    // Where `syscall` may land: is this CPL 0?
    "k_syscall_entry" => "movl %cs, %eax", "movl %eax, DONE";
}
