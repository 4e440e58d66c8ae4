//! Calls of the ABI from a table: the VMM's tests write the frames, the guest makes the calls.
//!
//! RBX is the first frame, RCX the number of frames. A frame is 128 bytes: call id, port, arguments
//! 0 to 5, then what the guest found in RAX, RDX and the six argument registers afterwards.

code! { "kernel";
    "calls_from_table" =>
        "1: movl (%rbx), %eax", "movl 8(%rbx), %edx",
        "movq 16(%rbx), %rdi", "movq 24(%rbx), %rsi", "movq 32(%rbx), %r8", "movq 40(%rbx), %r9",
        "movq 48(%rbx), %r10", "movq 56(%rbx), %r11",
        "outl %eax, %dx",
        "movq %rax, 64(%rbx)", "movq %rdx, 72(%rbx)", "movq %rdi, 80(%rbx)", "movq %rsi, 88(%rbx)",
        "movq %r8, 96(%rbx)", "movq %r9, 104(%rbx)", "movq %r10, 112(%rbx)", "movq %r11, 120(%rbx)",
        "addq $128, %rbx", "decq %rcx", "jnz 1b", "movl %eax, DONE";
}
