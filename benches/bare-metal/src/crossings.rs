//! Crossings: one thing, again and again.
//!
//! R15 is the number of batches. A batch is `BATCH` times the thing, unrolled, and then a write to
//! `MARK`, at which the VMM reads its clock. `c_empty` is a batch of nothing: what the frame itself
//! costs, to be subtracted. The result is CS, which tells whether the privilege is still the same.

macro_rules! crossing {
    ($part:literal; $($name:literal => $($line:literal),+;)+) => {
        code! { $part; $($name =>
            "1:", ".rept BATCH", $($line,)+ ".endr",
            "movl %eax, MARK", "decq %r15", "jnz 1b", "movl %cs, %eax", "movl %eax, DONE";)+ }
    };
}

/// The same with a single thing a batch, for things that take long.
macro_rules! slow_crossing {
    ($part:literal; $($name:literal => $($line:literal),+;)+) => {
        code! { $part; $($name =>
            "1:", $($line,)+
            "movl %eax, MARK", "decq %r15", "jnz 1b", "movl %cs, %eax", "movl %eax, DONE";)+ }
    };
}

crossing! { "kernel";
    "c_k_nop" => "nop";
    "c_k_out" => "outb %al, $PORT_PLAIN";
    "c_k_in" => "inb $PORT_PLAIN, %al";
    "c_k_mmio_write" => "movl %eax, MMIO_PLAIN";
    "c_k_mmio_read" => "movl MMIO_PLAIN, %eax";
    "c_k_event_pio" => "outb %al, $PORT_EVENT";
    "c_k_event_mmio" => "movl %eax, MMIO_EVENT";
    "c_k_coalesced_pio" => "outb %al, $PORT_COALESCED";
    "c_k_coalesced_mmio" => "movl %eax, MMIO_COALESCED";
    "c_k_rdmsr_exit" => "movl $MSR_UNKNOWN, %ecx", "rdmsr";
    "c_k_wrmsr_exit" => "movl $MSR_UNKNOWN, %ecx", "wrmsr";
    "c_k_wrmsr" => "movl $0xc0000102, %ecx", "wrmsr";
    "c_k_cpuid" => "xorl %eax, %eax", "cpuid";
    "c_k_hlt" => "hlt";
    "c_k_mov_cr3" => "movq %cr3, %rax", "movq %rax, %cr3";
    "c_k_invlpg" => "invlpg SCRATCH";
    "c_k_vmcall" => "movl $0x7ffffff0, %eax", "vmcall";
    "c_k_vmmcall" => "movl $0x7ffffff0, %eax", "vmmcall";

    // A call of six arguments, in registers as the ABI has it …
    "c_k_call_registers" => "movl $0x00010003, %eax", "movl $PORT_DOORBELL, %edx", "movl $1, %edi",
        "movl $2, %esi", "movl $3, %r8d", "movl $4, %r9d", "movl $5, %r10d", "movl $6, %r11d", "outl %eax, %dx";
    // … and through a frame in memory.
    "c_k_call_frame" => "movl $0x00010003, FRAME", "movq $1, FRAME+8", "movq $2, FRAME+16", "movq $3, FRAME+24",
        "movq $4, FRAME+32", "movq $5, FRAME+40", "movq $6, FRAME+48", "outb %al, $PORT_FRAME",
        "movq FRAME+56, %rax", "movq FRAME+64, %rdx";
}

/// The calls of the ABI, with the VMM's own dispatcher behind them, for one privilege. Those with `_frame`
/// lack the OUT: what the instructions around it cost, to be subtracted.
macro_rules! calls {
    ($part:literal; $nop:literal $nop_frame:literal $batch:literal $batch_frame:literal $exitless:literal) => {
        // `base.nop`, all argument registers being zero, in turns with the same to a port behind which nobody
        // answers: a batch of these, a batch of those.
        code! { $part;
            $nop => "1:", ".rept BATCH", "movl $0x00010003, %eax", "movl $PORT_PLAIN, %edx", "outl %eax, %dx", ".endr",
                "movl %eax, MARK",
                ".rept BATCH", "movl $0x00010003, %eax", "movl $PORT_CALL, %edx", "outl %eax, %dx", ".endr",
                "movl %eax, MARK", "decq %r15", "jnz 1b", "movl %cs, %eax", "movl %eax, DONE";
        }

        crossing! { $part;
            $nop_frame => "movl $0x00010003, %eax", "movl $PORT_CALL, %edx";

            // Several `base.nop` in the ring, and `ring.submit`. R14 is the ring's head.
            $batch => "movl $RING + 128, %ebx", ".rept SUBMISSION", "movl $0x00010003, (%rbx)",
                "movq %r15, 16(%rbx)", "addq $64, %rbx", ".endr", "addl $SUBMISSION, %r14d", "movl %r14d, RING",
                "movl $0x00100002, %eax", "movl $PORT_CALL, %edx", "outl %eax, %dx";
            $batch_frame => "movl $RING + 128, %ebx", ".rept SUBMISSION", "movl $0x00010003, (%rbx)",
                "movq %r15, 16(%rbx)", "addq $64, %rbx", ".endr", "addl $SUBMISSION, %r14d", "movl %r14d, RING",
                "movl $0x00100002, %eax", "movl $PORT_CALL, %edx";

            // One `base.nop` in a ring of one entry, with the host looking; without that, `ring.submit`.
            $exitless => "movl $0x00010003, RING + 128", "movq %r15, RING + 144", "incl %r14d",
                "movl %r14d, RING", "lock xaddl %eax, SCRATCH", "cmpl $0, RING + 68", "jne 2f",
                "movl $0x00100002, %eax", "movl $PORT_CALL, %edx", "outl %eax, %dx",
                "2: cmpl %r14d, RING + 64", "jne 2b";
        }
    };
}

calls! { "kernel"; "c_k_call_nop" "c_k_call_nop_frame" "c_k_call_batch" "c_k_call_batch_frame" "c_k_call_exitless" }
calls! { "user"; "c_u_call_nop" "c_u_call_nop_frame" "c_u_call_batch" "c_u_call_batch_frame" "c_u_call_exitless" }

slow_crossing! { "kernel";
    "c_k_empty" => "";
    "c_k_rep_stosq_4k" => "movl $SCRATCH, %edi", "movl $512, %ecx", "rep stosq";
    "c_k_rep_movsb_4k" => "movl $SCRATCH, %esi", "movl $SCRATCH+4096, %edi", "movl $4096, %ecx", "rep movsb";
}

crossing! { "user";
    "c_u_out" => "outb %al, $PORT_PLAIN";
    "c_u_mmio_write" => "movl %eax, MMIO_PLAIN";
    "c_u_event_mmio" => "movl %eax, MMIO_EVENT";
    "c_u_coalesced_mmio" => "movl %eax, MMIO_COALESCED";
    "c_u_cpuid" => "xorl %eax, %eax", "cpuid";
    "c_u_hlt" => "hlt";
    "c_u_int3" => "int3";
    "c_u_ud2" => "ud2";
    "c_u_page_fault" => "movl UNMAPPED, %eax";
    "c_u_syscall" => "syscall";
}

slow_crossing! { "user";
    "c_u_empty" => "";
}
