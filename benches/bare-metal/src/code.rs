//! How the other files write a probe, and the names that they may use in it.

/// `code! { "kernel"; "name" => "instruction", …; }`: global functions in the part of the image
/// that only CPL 0 may execute (`"kernel"`), or that everyone may (`"user"`). The numbers of
/// [`crate::layout`] are known by name in each; every block brings them along, because the compiler
/// may assemble each block by itself.
macro_rules! code {
    ($part:literal; $($name:literal => $($line:expr),+;)+) => {
        $(core::arch::global_asm!(
            ".set KERNEL_STACK, {kernel_stack}",
            ".set SCRATCH, {scratch}",
            ".set FRAME, {frame}",
            ".set USER_STACK, {user_stack}",
            ".set MARK, {mark}",
            ".set DONE, {done}",
            ".set MMIO_PLAIN, {mmio_plain}",
            ".set MMIO_EVENT, {mmio_event}",
            ".set MMIO_COALESCED, {mmio_coalesced}",
            ".set UNMAPPED, {unmapped}",
            ".set PORT_PLAIN, {port_plain}",
            ".set PORT_DOORBELL, {port_doorbell}",
            ".set PORT_FRAME, {port_frame}",
            ".set PORT_EVENT, {port_event}",
            ".set PORT_COALESCED, {port_coalesced}",
            ".set PORT_TRAP, {port_trap}",
            ".set MSR_UNKNOWN, {msr_unknown}",
            ".set KERNEL_CS, {kernel_cs}",
            ".set KERNEL_SS, {kernel_ss}",
            ".set USER_SS, {user_ss}",
            ".set USER_CS, {user_cs}",
            ".set TASK, {task}",
            ".set BATCH, {batch}",
            concat!(".pushsection .", $part, ".", $name, ", \"ax\", @progbits"),
            concat!(".globl ", $name),
            concat!($name, ":"),
            $($line,)+
            // No probe falls through.
            "99: jmp 99b",
            ".popsection",
            kernel_stack = const crate::layout::KERNEL_STACK,
            scratch = const crate::layout::SCRATCH,
            frame = const crate::layout::FRAME,
            user_stack = const crate::layout::USER_STACK,
            mark = const crate::layout::MARK,
            done = const crate::layout::DONE,
            mmio_plain = const crate::layout::MMIO_PLAIN,
            mmio_event = const crate::layout::MMIO_EVENT,
            mmio_coalesced = const crate::layout::MMIO_COALESCED,
            unmapped = const crate::layout::UNMAPPED,
            port_plain = const crate::layout::PORT_PLAIN,
            port_doorbell = const crate::layout::PORT_DOORBELL,
            port_frame = const crate::layout::PORT_FRAME,
            port_event = const crate::layout::PORT_EVENT,
            port_coalesced = const crate::layout::PORT_COALESCED,
            port_trap = const crate::layout::PORT_TRAP,
            msr_unknown = const crate::layout::MSR_UNKNOWN,
            kernel_cs = const crate::layout::KERNEL_CS,
            kernel_ss = const crate::layout::KERNEL_SS,
            user_ss = const crate::layout::USER_SS,
            user_cs = const crate::layout::USER_CS,
            task = const crate::layout::TASK,
            batch = const crate::layout::BATCH,
            options(att_syntax),
        );)+
    };
}
