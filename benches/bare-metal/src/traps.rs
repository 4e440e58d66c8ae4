//! Trap stubs and handlers.
//!
//! The stub of vector *n* lies at `trap_stubs` + 16 *n*: it pushes *n* and tells the VMM, which
//! reads the frame from the stack. The handlers are for crossings that return.

code! { "kernel";
    "trap_stubs" => ".set vector, 0", ".rept 256", ".balign 16", "pushq $vector", "outb %al, $PORT_TRAP",
        "hlt", ".set vector, vector + 1", ".endr";

    // Go back behind an instruction of one or two bytes; with and without an error code.
    "h_return" => "iretq";
    "h_skip1_error" => "incq 8(%rsp)", "addq $8, %rsp", "iretq";
    "h_skip2" => "addq $2, (%rsp)", "iretq";
    // Behind `movl UNMAPPED, %eax`.
    "h_skip7_error" => "addq $7, 8(%rsp)", "addq $8, %rsp", "iretq";
    // What switching address spaces costs on top: to the kernel's and back.
    "h_return_cr3_twice" => "pushq %rax", "movq %cr3, %rax", "movq %rax, %cr3", "movq %rax, %cr3", "popq %rax", "iretq";
    "h_sysretq" => "sysretq";
}

code! { "user";
    "uh_report_cs" => "movl %cs, %eax", "movl %eax, DONE";
    "uh_return" => "iretq";
    "uh_jmp_rcx" => "jmp *%rcx";
}
