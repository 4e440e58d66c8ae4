/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * The Paravane ABI. Made from hypercall-abi/src/abi by `cargo ci spec --write`: change
 * that, and not this file. SPEC.md says what the numbers mean.
 */
#ifndef PARAVANE_ABI_H
#define PARAVANE_ABI_H

#ifdef __KERNEL__
#include <linux/stddef.h>
#include <linux/types.h>
#else
#include <stddef.h>
#include <stdint.h>
#endif

#ifdef __cplusplus
#define PARAVANE_ASSERT(expr) static_assert(expr, #expr)
#else
#define PARAVANE_ASSERT(expr) _Static_assert(expr, #expr)
#endif

/* --- boot_info --- */

/* `PARAVANE` in memory order. Spec: PV-BOOT-2 */
#define PARAVANE_BOOT_INFO_MAGIC 0x454e415641524150ULL

/* --- call --- */

/* The most arguments a call takes. */
#define PARAVANE_MAX_ARGS 6UL

/* --- clock --- */

/* `ClockInfo::flags`: all processors' TSCs count together, at `tsc_hz`, and never stop. */
#define PARAVANE_CLOCK_TSC_RELIABLE 0x1U

/* --- cpu --- */

/* The number of all that is said here. It is raised with each change. */
#define PARAVANE_CPU_LAYOUT 2U

/*
 * The type of the ELF note, with the name `Paravane`, whose content is a kernel's
 * `CPU_LAYOUT` as four bytes.
 */
#define PARAVANE_CPU_NOTE_LAYOUT 1U

/*
 * Linear address of the first processor's region; the 64-bit kernel must keep this slot of
 * its root free for it.
 */
#define PARAVANE_CPU_REGIONS 0xfffffc8000000000ULL

/* Bytes from one processor's region to the next. */
#define PARAVANE_CPU_REGION_STRIDE 0x10000ULL

/* The index of the regions' entry in a root page table. */
#define PARAVANE_CPU_REGIONS_SLOT 505ULL

/* The descriptor table and the task state segment, from the region's begin. */
#define PARAVANE_CPU_GDT 0x1000ULL

/* The interrupt descriptor table: the kernel's, which the kernel fills, or that of users. */
#define PARAVANE_CPU_IDT 0x2000ULL

/* The interrupt descriptor table of a processor that waits. */
#define PARAVANE_CPU_HALT_IDT 0x3000ULL

/* Where the routine of the next INT3 stands: the lowest 16 bits of the target of its gate. */
#define PARAVANE_CPU_CALL 0x2030ULL

/* The page that SYSCALL leads to where it does not raise privilege. */
#define PARAVANE_CPU_SYSCALL_PAGE 0x9000ULL

/* How many bytes of it the way to the kernel has at most where users are not isolated. */
#define PARAVANE_CPU_SYSCALL_BYTES 0x20ULL

/*
 * The interrupt descriptor table of users once more, where the kernel's address space has
 * it.
 */
#define PARAVANE_CPU_USER_IDT 0xa000ULL

/* Selector of code at CPL 0: the switcher's. */
#define PARAVANE_CPU_SWITCHER_CS 0x10ULL

/* Selector of data at CPL 3, the kernel's and its users'. */
#define PARAVANE_CPU_DATA_SELECTOR 0x2bULL

/* Selector of 64-bit code at CPL 3, the kernel's and its users'. */
#define PARAVANE_CPU_CODE_SELECTOR 0x33ULL

/* --- cpuid --- */

/* `CpuidEntry::flags`: the registers depend on ECX, and these are those of `subleaf`. */
#define PARAVANE_LEAF_SUBLEAF 0x1U

/*
 * `CpuidEntry::flags`: the registers depend on the processor or its state; only CPUID
 * knows.
 */
#define PARAVANE_LEAF_VARIES 0x2U

/* --- crash --- */

/* `PVCRASH1` in memory order. */
#define PARAVANE_CRASH_MAGIC 0x3148534152435650ULL

/* Most return addresses in a record. */
#define PARAVANE_CRASH_BACKTRACE_MAX 32UL

/* Most bytes of message in a record. */
#define PARAVANE_CRASH_MESSAGE_MAX 256UL

/* Most bytes of kernel log in a record. */
#define PARAVANE_CRASH_LOG_MAX 2048UL

/* --- delegate --- */

/*
 * Features of KVM's that facility `irq` stands for, as bits of its CPUID leaf base + 1,
 * EAX.
 */
#define PARAVANE_IRQ_KVM_FEATURES 0x40U

/* The same for facility `ipi`. */
#define PARAVANE_IPI_KVM_FEATURES 0x800U

/* The same for facility `tlb`. KVM's guests find out who runs from the steal-time page. */
#define PARAVANE_TLB_KVM_FEATURES 0x220U

/* The same for facility `sched`. */
#define PARAVANE_SCHED_KVM_FEATURES 0x70b0U

/* --- dev --- */

/* Most devices. Spec: PV-DEV-1 */
#define PARAVANE_DEV_MAX 16UL

/* Most queues of a device. Spec: PV-DEV-2 */
#define PARAVANE_DEV_QUEUES_MAX 4UL

/* Bytes of a device's configuration. */
#define PARAVANE_DEV_CONFIG_BYTES 64UL

/*
 * `DevEntry::state`: the driver has broken virtio's rules, and has to stop the device.
 * Spec: PV-DEV-12
 */
#define PARAVANE_DEV_NEEDS_RESET 1U

/*
 * Where the queue's number begins in what is written to the doorbell; the device's number
 * is below. Spec: PV-DEV-8
 */
#define PARAVANE_DEV_DOORBELL_QUEUE_SHIFT 16U

/* --- mem --- */

/* Most ranges in `MemInfo::fresh`. */
#define PARAVANE_MEM_FRESH_MAX 4UL

/* Most ranges of one `mem.report`. */
#define PARAVANE_MEM_REPORT_MAX 256UL

/* --- registry --- */

/*
 * ABI version: major in bits 31:16, minor in bits 15:0. Informative: a guest decides by
 * facility bits. Spec: PV-BASE-1
 */
#define PARAVANE_ABI_VERSION 0x10001U

/* First hypervisor CPUID leaf that may carry the block. Spec: PV-DISC-1 */
#define PARAVANE_CPUID_BASE_FIRST 0x40000000U

/* First leaf beyond the range in which the block may start. Spec: PV-DISC-1 */
#define PARAVANE_CPUID_BASE_END 0x40010000U

/* Distance between two leaves at which the block may start. Spec: PV-DISC-1 */
#define PARAVANE_CPUID_BASE_STEP 0x100U

/* `ParavaneHype` as EBX of leaf base + 0. Spec: PV-DISC-2 */
#define PARAVANE_CPUID_SIGNATURE_EBX 0x61726150U

/* `ParavaneHype` as ECX of leaf base + 0. Spec: PV-DISC-2 */
#define PARAVANE_CPUID_SIGNATURE_ECX 0x656e6176U

/* `ParavaneHype` as EDX of leaf base + 0. Spec: PV-DISC-2 */
#define PARAVANE_CPUID_SIGNATURE_EDX 0x65707948U

/* Leaf base + 0: EAX = last leaf of the block, EBX/ECX/EDX = signature. Spec: PV-DISC-2 */
#define PARAVANE_CPUID_LEAF_SIGNATURE 0U

/*
 * Leaf base + 1: EAX = ABI version, EBX = facilities 31:0, ECX = facilities 63:32, EDX =
 * transports. Spec: PV-DISC-3
 */
#define PARAVANE_CPUID_LEAF_FEATURES 1U

/*
 * Leaf base + 2: EAX = boot-info address 31:0, EBX = boot-info address 63:32, ECX =
 * doorbell port, EDX = 0. Spec: PV-DISC-4
 */
#define PARAVANE_CPUID_LEAF_BOOT 2U

/* Number of leaves in the block. */
#define PARAVANE_CPUID_LEAF_COUNT 3U

/* T0: the PIO doorbell with arguments in registers. Mandatory. Spec: PV-CALL-1 */
#define PARAVANE_TRANSPORT_DOORBELL 0x1U

/* T1: submission ring, one doorbell a batch. Spec: PV-RING-1 */
#define PARAVANE_TRANSPORT_RING 0x2U

/* T2: submission ring that the host looks at by itself. Spec: PV-RING-1 */
#define PARAVANE_TRANSPORT_EXITLESS 0x4U

/* T3: VMCALL/VMMCALL. Reserved. */
#define PARAVANE_TRANSPORT_VMCALL 0x8U

/* Facility `base`: version, probing, power. Mandatory. */
#define PARAVANE_FACILITY_BASE 1U

/* Facility `console`: output and input rings. */
#define PARAVANE_FACILITY_CONSOLE 2U

/* Facility `clock`: frequencies and wall clock. */
#define PARAVANE_FACILITY_CLOCK 3U

/* Facility `timer`: deadlines of the local APIC, delegated. */
#define PARAVANE_FACILITY_TIMER 4U

/* Facility `irq`: end of interrupt, delegated. */
#define PARAVANE_FACILITY_IRQ 5U

/* Facility `ipi`: interrupts to many processors, delegated. */
#define PARAVANE_FACILITY_IPI 6U

/* Facility `tlb`: flushes of processors that do not run, delegated. */
#define PARAVANE_FACILITY_TLB 7U

/* Facility `sched`: stolen time, waiting and yielding, delegated. */
#define PARAVANE_FACILITY_SCHED 8U

/* Facility `smp`: processors on and off. */
#define PARAVANE_FACILITY_SMP 9U

/* Facility `mem`: memory that is zero, and memory given back. */
#define PARAVANE_FACILITY_MEM 10U

/* Facility `rng`: random numbers of the host. */
#define PARAVANE_FACILITY_RNG 11U

/* Facility `dev`: virtio devices without a bus. */
#define PARAVANE_FACILITY_DEV 12U

/* Facility `crash`: the panic record. */
#define PARAVANE_FACILITY_CRASH 13U

/* Facility `cpu`, for deprivileged kernels. Reserved. */
#define PARAVANE_FACILITY_CPU 14U

/* Facility `mmu`, for deprivileged kernels. Reserved. */
#define PARAVANE_FACILITY_MMU 15U

/* Facility `ring`: submission rings, transports T1 and T2. */
#define PARAVANE_FACILITY_RING 16U

/* Facility `cpuid`: what CPUID returns, as a table. */
#define PARAVANE_FACILITY_CPUID 17U

/* First facility id for experiments; never in a published host. */
#define PARAVANE_FACILITY_EXPERIMENTAL_FIRST 0x8000U

/* First facility id for vendors. */
#define PARAVANE_FACILITY_VENDOR_FIRST 0xc000U

/* `base.version() -> ABI version`. Spec: PV-BASE-1 */
#define PARAVANE_CALL_BASE_VERSION 0x10000U

/* `base.facilities() -> facility word`. Spec: PV-BASE-2 */
#define PARAVANE_CALL_BASE_FACILITIES 0x10001U

/* `base.probe(call id) -> 1 if the host implements the call, else 0`. Spec: PV-BASE-3 */
#define PARAVANE_CALL_BASE_PROBE 0x10002U

/* `base.nop(value) -> value`: what a crossing costs. Spec: PV-BASE-4 */
#define PARAVANE_CALL_BASE_NOP 0x10003U

/* `base.power(action, reason)`: does not return on success. Spec: PV-BASE-5 */
#define PARAVANE_CALL_BASE_POWER 0x10004U

/* `console.write(address, length) -> bytes taken`. Spec: PV-CONSOLE-1 */
#define PARAVANE_CALL_CONSOLE_WRITE 0x20000U

/* `console.notify()`: the output ring has bytes. Spec: PV-CONSOLE-5 */
#define PARAVANE_CALL_CONSOLE_NOTIFY 0x20001U

/*
 * `console.event(vector, APIC id)`: raise `vector` when input arrives; 0 = never. Spec:
 * PV-CONSOLE-7
 */
#define PARAVANE_CALL_CONSOLE_EVENT 0x20002U

/* `clock.wall() -> nanoseconds since 1970-01-01 00:00:00 UTC`. Spec: PV-CLOCK-3 */
#define PARAVANE_CALL_CLOCK_WALL 0x30000U

/*
 * `clock.event(vector, APIC id)`: raise `vector` when `disruption` changes; 0 = never.
 * Spec: PV-CLOCK-12
 */
#define PARAVANE_CALL_CLOCK_EVENT 0x30001U

/* `smp.start(APIC id, RIP, RSP, CR3, RDI)`: that processor begins there. Spec: PV-SMP-2 */
#define PARAVANE_CALL_SMP_START 0x90000U

/* `smp.stop()`: the calling processor goes off; does not return. Spec: PV-SMP-6 */
#define PARAVANE_CALL_SMP_STOP 0x90001U

/* `smp.state(APIC id) -> SMP_ON or SMP_OFF`. Spec: PV-SMP-9 */
#define PARAVANE_CALL_SMP_STATE 0x90002U

/*
 * `smp.event(vector, APIC id)`: raise `vector` when `wanted` changes; 0 = never. Spec:
 * PV-SMP-11
 */
#define PARAVANE_CALL_SMP_EVENT 0x90003U

/*
 * `mem.report(address, count)`: the ranges in the list there are not used now. Spec:
 * PV-MEM-4
 */
#define PARAVANE_CALL_MEM_REPORT 0xa0000U

/*
 * `mem.event(vector, APIC id)`: raise `vector` when the host wants more or less memory; 0 =
 * never. Spec: PV-MEM-10
 */
#define PARAVANE_CALL_MEM_EVENT 0xa0001U

/* `rng.fill(address, length) -> bytes written`: random ones. Spec: PV-RNG-2 */
#define PARAVANE_CALL_RNG_FILL 0xb0000U

/*
 * `dev.start(device, address)`: a `DevStart` lies there, and the device begins. Spec:
 * PV-DEV-3
 */
#define PARAVANE_CALL_DEV_START 0xc0000U

/* `dev.stop(device)`: the queues' memory is the guest's again. Spec: PV-DEV-11 */
#define PARAVANE_CALL_DEV_STOP 0xc0001U

/* `crash.report(address, length)`: a `CrashRecord` lies there. Spec: PV-CRASH-1 */
#define PARAVANE_CALL_CRASH_REPORT 0xd0000U

/*
 * `ring.register(APIC id, address, entries, flags)`: that processor's ring lies there.
 * Spec: PV-RING-2
 */
#define PARAVANE_CALL_RING_REGISTER 0x100000U

/* `ring.unregister(APIC id)`: the ring's memory is the guest's again. Spec: PV-RING-4 */
#define PARAVANE_CALL_RING_UNREGISTER 0x100001U

/* `ring.submit(APIC id) -> entries completed`: the ring has entries. Spec: PV-RING-5 */
#define PARAVANE_CALL_RING_SUBMIT 0x100002U

/* The call was carried out. */
#define PARAVANE_STATUS_OK (0LL)

/* No such call, or its facility is switched off. */
#define PARAVANE_STATUS_NOT_SUPPORTED (-1LL)

/* An argument is out of its range, or a reserved bit or register is not zero. */
#define PARAVANE_STATUS_INVALID_PARAM (-2LL)

/* An address range is not wholly in guest memory, or is misaligned. */
#define PARAVANE_STATUS_BAD_ADDRESS (-3LL)

/* The call is known, but not allowed from here or now. */
#define PARAVANE_STATUS_DENIED (-4LL)

/* The host cannot serve the call now; the guest may try again. */
#define PARAVANE_STATUS_BUSY (-5LL)

/* The host failed; the guest is not at fault. */
#define PARAVANE_STATUS_HOST_ERROR (-6LL)

/* Power action: the machine goes off. */
#define PARAVANE_POWER_OFF 0ULL

/* Power action: the machine starts again. */
#define PARAVANE_POWER_REBOOT 1ULL

/* Power action: the machine stops because its kernel has failed. */
#define PARAVANE_POWER_CRASH 2ULL

/* Power reason: none given, or an orderly request of user space. */
#define PARAVANE_POWER_REASON_NONE 0ULL

/* Power reason: kernel panic. */
#define PARAVANE_POWER_REASON_PANIC 1ULL

/* Power reason: emergency restart (sysrq, watchdog). */
#define PARAVANE_POWER_REASON_EMERGENCY 2ULL

/*
 * Alignment and size of the boot-info page and of every shared page, in bytes. Spec:
 * PV-BOOT-1
 */
#define PARAVANE_PAGE_SIZE 4096UL

/* Most bytes that one `console.write` takes. Spec: PV-CONSOLE-9 */
#define PARAVANE_CONSOLE_WRITE_MAX 65536ULL

/*
 * First interrupt vector a guest may ask an event to be raised on. Spec: PV-CONSOLE-11,
 * PV-CLOCK-13
 */
#define PARAVANE_EVENT_VECTOR_FIRST 0x20ULL

/*
 * Last interrupt vector a guest may ask an event to be raised on. Spec: PV-CONSOLE-11,
 * PV-CLOCK-13
 */
#define PARAVANE_EVENT_VECTOR_LAST 0xffULL

/* --- ring --- */

/* Flag of `ring.register`: the host looks at the ring by itself. Spec: PV-RING-12 */
#define PARAVANE_RING_EXITLESS 0x1ULL

/* Most entries of one ring. Spec: PV-RING-2 */
#define PARAVANE_RING_ENTRIES_MAX 256U

/* --- rng --- */

/* Fewest bytes of a seed. Spec: PV-RNG-1 */
#define PARAVANE_RNG_SEED_MIN 32U

/* Most bytes that one `rng.fill` writes. Spec: PV-RNG-4 */
#define PARAVANE_RNG_FILL_MAX 256ULL

/* --- smp --- */

/* `smp.state`: the processor is off. */
#define PARAVANE_SMP_OFF 0ULL

/* `smp.state`: the processor is on. */
#define PARAVANE_SMP_ON 1ULL

/* The clock part of the boot-info page. Writer: host. Spec: PV-CLOCK-1 */
struct paravane_clock_info {
	/* TSC frequency, Hz. */
	uint64_t tsc_hz;
	/* Frequency at which the LAPIC timer counts with divide configuration 1, Hz. */
	uint64_t apic_timer_hz;
	/* Nanoseconds since 1970-01-01 00:00:00 UTC when the TSC read `wall_tsc`. */
	uint64_t wall_ns;
	/* The guest's TSC at `wall_ns`. */
	uint64_t wall_tsc;
	/* `CLOCK_…` flags; undefined bits are zero. */
	uint32_t flags;
	/* Zero. */
	uint32_t reserved0;
	/* Guest physical address of the `ClockPage`, page-aligned; zero: there is none. */
	uint64_t page;
};

PARAVANE_ASSERT(sizeof(struct paravane_clock_info) == 48);
PARAVANE_ASSERT(offsetof(struct paravane_clock_info, tsc_hz) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_clock_info, apic_timer_hz) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_clock_info, wall_ns) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_clock_info, wall_tsc) == 24);
PARAVANE_ASSERT(offsetof(struct paravane_clock_info, flags) == 32);
PARAVANE_ASSERT(offsetof(struct paravane_clock_info, reserved0) == 36);
PARAVANE_ASSERT(offsetof(struct paravane_clock_info, page) == 40);

/*
 * What a running guest has to know of its clock; the rest of its page is zero. Writer:
 * host. Spec: PV-CLOCK-7
 */
struct paravane_clock_page {
	/* Odd while the host writes to the page; another even number afterwards. */
	uint32_t sequence;
	/* `CLOCK_…` flags, as in `ClockInfo`. */
	uint32_t flags;
	/* Changes when the time of day does not follow from the pair of before. */
	uint64_t disruption;
	/* `BootInfo::generation`. */
	uint64_t generation;
	/* TSC frequency, Hz. */
	uint64_t tsc_hz;
	/* Nanoseconds since 1970-01-01 00:00:00 UTC when the TSC read `wall_tsc`. */
	uint64_t wall_ns;
	/* The guest's TSC at `wall_ns`. */
	uint64_t wall_tsc;
	/* Zero: leap seconds and TAI are not known. */
	uint64_t reserved[2];
};

PARAVANE_ASSERT(sizeof(struct paravane_clock_page) == 64);
PARAVANE_ASSERT(offsetof(struct paravane_clock_page, sequence) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_clock_page, flags) == 4);
PARAVANE_ASSERT(offsetof(struct paravane_clock_page, disruption) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_clock_page, generation) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_clock_page, tsc_hz) == 24);
PARAVANE_ASSERT(offsetof(struct paravane_clock_page, wall_ns) == 32);
PARAVANE_ASSERT(offsetof(struct paravane_clock_page, wall_tsc) == 40);
PARAVANE_ASSERT(offsetof(struct paravane_clock_page, reserved) == 48);

/* The console part of the boot-info page. Writer: host. Spec: PV-CONSOLE-2 */
struct paravane_console_info {
	/* Guest physical address of the `ConsolePage`, page-aligned. */
	uint64_t address;
	/* Bytes in the output buffer, a power of two, at least one page. */
	uint32_t out_size;
	/* Bytes in the input buffer, a power of two, at least one page. */
	uint32_t in_size;
	/* Zero. */
	uint64_t reserved[2];
};

PARAVANE_ASSERT(sizeof(struct paravane_console_info) == 32);
PARAVANE_ASSERT(offsetof(struct paravane_console_info, address) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_console_info, out_size) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_console_info, in_size) == 12);
PARAVANE_ASSERT(offsetof(struct paravane_console_info, reserved) == 16);

/*
 * The indices, each on its own cache line, so that neither side's write takes the other's
 * line away. Spec: PV-CONSOLE-3
 */
struct paravane_console_page {
	/* Bytes ever written to the output ring. Writer: guest. */
	uint32_t out_head;
	/* Zero. */
	uint32_t reserved0[15];
	/* Bytes ever taken from the output ring. Writer: host. */
	uint32_t out_tail;
	/* Not zero while the host looks at the output ring by itself. Writer: host. */
	uint32_t host_looks;
	/* Zero. */
	uint32_t reserved1[14];
	/* Bytes ever written to the input ring. Writer: host. */
	uint32_t in_head;
	/* Zero. */
	uint32_t reserved2[15];
	/* Bytes ever taken from the input ring. Writer: guest. */
	uint32_t in_tail;
	/* Zero. */
	uint32_t reserved3[15];
};

PARAVANE_ASSERT(sizeof(struct paravane_console_page) == 256);
PARAVANE_ASSERT(offsetof(struct paravane_console_page, out_head) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_console_page, reserved0) == 4);
PARAVANE_ASSERT(offsetof(struct paravane_console_page, out_tail) == 64);
PARAVANE_ASSERT(offsetof(struct paravane_console_page, host_looks) == 68);
PARAVANE_ASSERT(offsetof(struct paravane_console_page, reserved1) == 72);
PARAVANE_ASSERT(offsetof(struct paravane_console_page, in_head) == 128);
PARAVANE_ASSERT(offsetof(struct paravane_console_page, reserved2) == 132);
PARAVANE_ASSERT(offsetof(struct paravane_console_page, in_tail) == 192);
PARAVANE_ASSERT(offsetof(struct paravane_console_page, reserved3) == 196);

/* What IRETQ takes from the stack, and an event puts there. */
struct paravane_cpu_frame {
	/* Instruction. */
	uint64_t rip;
	/* Code segment. */
	uint64_t cs;
	/* Flags. */
	uint64_t rflags;
	/* Stack. */
	uint64_t rsp;
	/* Stack segment. */
	uint64_t ss;
};

PARAVANE_ASSERT(sizeof(struct paravane_cpu_frame) == 40);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_frame, rip) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_frame, cs) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_frame, rflags) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_frame, rsp) == 24);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_frame, ss) == 32);

/*
 * The switcher's routines, as addresses whose lower 16 bits are stored at `CPU_CALL`. Each
 * returns to the instruction after INT3, but for `leave` and `halt`.
 */
struct paravane_cpu_routines {
	/* To user mode: RAX = the user's root, `CpuArea::leave` = its frame, `CpuArea::user_rax`. */
	uint64_t leave;
	/*
	 * Hands the breakpoint to the kernel, at `CpuArea::breakpoint`. `CPU_CALL` has this
	 * whenever nothing else is asked for.
	 */
	uint64_t breakpoint;
	/* Waits for an interrupt, which enters the kernel at `CpuArea::halted`. */
	uint64_t halt;
	/* Loads the root in RDI. */
	uint64_t load_root;
	/* Flushes the page at RDI. */
	uint64_t flush_page;
	/* `RDMSR`: ECX, to EDX and EAX. */
	uint64_t read_msr;
	/* `WRMSR`: ECX, EDX and EAX. */
	uint64_t write_msr;
	/* `out dx, eax`, for a call of transport T0. */
	uint64_t doorbell;
	/* `out dx, al`. */
	uint64_t output_byte;
	/* Loads debug register 7 from RDI. */
	uint64_t debug_control;
	/* Loads debug registers 0 to 3 from RDI, RSI, RDX, RCX. */
	uint64_t debug_addresses;
	/* Reads debug register 6 into RAX, and writes RDI to it. */
	uint64_t debug_status;
	/* `CPUID`, which CPL 3 may get from somebody else. */
	uint64_t cpuid;
	/* Stores RSI at RDI: one entry of a page table, which the host then has not to look for. */
	uint64_t store;
	/* Zero. */
	uint64_t reserved[2];
};

PARAVANE_ASSERT(sizeof(struct paravane_cpu_routines) == 128);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, leave) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, breakpoint) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, halt) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, load_root) == 24);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, flush_page) == 32);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, read_msr) == 40);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, write_msr) == 48);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, doorbell) == 56);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, output_byte) == 64);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, debug_control) == 72);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, debug_addresses) == 80);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, debug_status) == 88);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, cpuid) == 96);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, store) == 104);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_routines, reserved) == 112);

/* What the kernel counts of its way through the switcher; the host adds it up. */
struct paravane_cpu_crossings {
	/* SYSCALL in user mode. */
	uint64_t system_call;
	/* Page fault in user mode. */
	uint64_t page_fault;
	/* Another exception in user mode. */
	uint64_t exception;
	/* Interrupt in user mode. */
	uint64_t interrupt;
	/* Page fault in the kernel. */
	uint64_t kernel_page_fault;
	/* Zero. */
	uint64_t reserved[3];
	/* Calls of each routine, in the order of `CpuRoutines`; `leave` is not counted. */
	uint64_t calls[16];
};

PARAVANE_ASSERT(sizeof(struct paravane_cpu_crossings) == 192);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_crossings, system_call) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_crossings, page_fault) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_crossings, exception) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_crossings, interrupt) == 24);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_crossings, kernel_page_fault) == 32);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_crossings, reserved) == 40);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_crossings, calls) == 64);

/* The first page of a region. Writer: kernel and switcher, as the fields say. */
struct paravane_cpu_area {
	/*
	 * The kernel's root; after an event in user mode the user's RAX, until the kernel has put
	 * its root back. Writers: both.
	 */
	uint64_t swap;
	/* The user's RAX, for `leave`. Writer: kernel. */
	uint64_t user_rax;
	/* RAX of a page fault or breakpoint in the kernel. Writer: switcher. */
	uint64_t kernel_rax;
	/* Entry of the regions in the kernel's root page tables. Writer: host. */
	uint64_t kernel_slot;
	/* Entry of the regions in the users' root page tables. Writer: host. */
	uint64_t user_slot;
	/*
	 * Where the processor is in `CPU_SYSCALL_PAGE` when the kernel is entered at
	 * `CpuArea::user_breakpoint` by SYSCALL; without user isolation, where SYSCALL leads to.
	 * Writer: host.
	 */
	uint64_t syscall_rip;
	/* Limit and base of the interrupt descriptor table at `CPU_IDT`, from byte 6. Writer: host. */
	uint64_t idtr[2];
	/* The same of that at `CPU_HALT_IDT`. Writer: host. */
	uint64_t halt_idtr[2];
	/*
	 * Where the kernel is entered by SYSCALL that raises privilege, or without user isolation.
	 * Writer: kernel.
	 */
	struct paravane_cpu_frame syscall;
	/* Where the kernel is entered by a breakpoint in user mode. Writer: kernel. */
	struct paravane_cpu_frame user_breakpoint;
	/* Where the kernel is entered by a page fault in user mode; RAX = CR2. Writer: kernel. */
	struct paravane_cpu_frame user_fault;
	/*
	 * Where the kernel is entered by any other event in user mode; RAX = vector. Writer:
	 * kernel.
	 */
	struct paravane_cpu_frame event;
	/*
	 * Where the kernel is entered by an interrupt that ends `halt`; RAX = vector. Writer:
	 * kernel.
	 */
	struct paravane_cpu_frame halted;
	/* Where the kernel is entered by a page fault of its own; RAX = CR2. Writer: kernel. */
	struct paravane_cpu_frame fault;
	/* Where the kernel is entered by a breakpoint of its own. Writer: kernel. */
	struct paravane_cpu_frame breakpoint;
	/* The frame of `leave`. Writer: kernel. */
	struct paravane_cpu_frame leave;
	/* The routines. Writer: host. */
	struct paravane_cpu_routines routines;
	/* Stack of events in user mode. */
	uint64_t user_stack[11];
	/* Their frame; `CpuArea::user_error` is the error code. */
	struct paravane_cpu_frame user_frame;
	/* Stack of page faults and breakpoints in the kernel. */
	uint64_t kernel_stack[11];
	/* Their frame, after the error code of a page fault. */
	struct paravane_cpu_frame kernel_frame;
	/* What has crossed. Writer: kernel. */
	struct paravane_cpu_crossings crossings;
	/* `CPU_LAYOUT`, here in each layout. Writer: host. */
	uint64_t layout;
	/*
	 * Limit and base of the interrupt descriptor table at `CPU_USER_IDT`, from byte 6. Writer:
	 * host.
	 */
	uint64_t user_idtr[2];
	/* 1: users have roots of their own; 0: they share the kernel's. Writer: host. */
	uint64_t user_isolation;
	/* The user's stack at SYSCALL, where users share the kernel's root. Writer: switcher. */
	uint64_t user_rsp;
};

PARAVANE_ASSERT(sizeof(struct paravane_cpu_area) == 1016);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, swap) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, user_rax) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, kernel_rax) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, kernel_slot) == 24);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, user_slot) == 32);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, syscall_rip) == 40);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, idtr) == 48);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, halt_idtr) == 64);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, syscall) == 80);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, user_breakpoint) == 120);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, user_fault) == 160);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, event) == 200);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, halted) == 240);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, fault) == 280);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, breakpoint) == 320);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, leave) == 360);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, routines) == 400);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, user_stack) == 528);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, user_frame) == 616);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, kernel_stack) == 656);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, kernel_frame) == 744);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, crossings) == 784);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, layout) == 976);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, user_idtr) == 984);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, user_isolation) == 1000);
PARAVANE_ASSERT(offsetof(struct paravane_cpu_area, user_rsp) == 1008);

/* The CPUID part of the boot-info page. Writer: host. Spec: PV-CPUID-1 */
struct paravane_cpuid_info {
	/* Guest physical address of the first `CpuidEntry`, page-aligned. */
	uint64_t address;
	/* Entries of the table. */
	uint32_t count;
	/* Zero. */
	uint32_t reserved;
};

PARAVANE_ASSERT(sizeof(struct paravane_cpuid_info) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_cpuid_info, address) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_cpuid_info, count) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_cpuid_info, reserved) == 12);

/* What CPUID returns for one leaf, or one subleaf of it. Writer: host. Spec: PV-CPUID-2 */
struct paravane_cpuid_entry {
	/* EAX before. */
	uint32_t leaf;
	/* ECX before; zero without `LEAF_SUBLEAF`. */
	uint32_t subleaf;
	/* `LEAF_…` flags; undefined bits are zero. */
	uint32_t flags;
	/* Zero. */
	uint32_t reserved;
	/* EAX after. */
	uint32_t eax;
	/* EBX after. */
	uint32_t ebx;
	/* ECX after. */
	uint32_t ecx;
	/* EDX after. */
	uint32_t edx;
};

PARAVANE_ASSERT(sizeof(struct paravane_cpuid_entry) == 32);
PARAVANE_ASSERT(offsetof(struct paravane_cpuid_entry, leaf) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_cpuid_entry, subleaf) == 4);
PARAVANE_ASSERT(offsetof(struct paravane_cpuid_entry, flags) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_cpuid_entry, reserved) == 12);
PARAVANE_ASSERT(offsetof(struct paravane_cpuid_entry, eax) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_cpuid_entry, ebx) == 20);
PARAVANE_ASSERT(offsetof(struct paravane_cpuid_entry, ecx) == 24);
PARAVANE_ASSERT(offsetof(struct paravane_cpuid_entry, edx) == 28);

/* A panic record. Writer: guest. Spec: PV-CRASH-2 */
struct paravane_crash_record {
	/* `CRASH_MAGIC`. */
	uint64_t magic;
	/* Bytes of this structure. */
	uint32_t size;
	/* APIC id of the processor that panicked. */
	uint32_t cpu;
	/* Where it was executing, a guest virtual address. */
	uint64_t rip;
	/* Its stack pointer. */
	uint64_t rsp;
	/* CR2, the last page fault's address. */
	uint64_t cr2;
	/* CR3. */
	uint64_t cr3;
	/* Valid entries of `backtrace`. */
	uint32_t backtrace_len;
	/* Valid bytes of `message`. */
	uint32_t message_len;
	/* Valid bytes of `log`. */
	uint32_t log_len;
	/* Zero. */
	uint32_t reserved0;
	/* Return addresses, innermost first. */
	uint64_t backtrace[PARAVANE_CRASH_BACKTRACE_MAX];
	/* The panic's message, UTF-8 as far as the guest knows. */
	uint8_t message[PARAVANE_CRASH_MESSAGE_MAX];
	/* The newest part of the kernel log. */
	uint8_t log[PARAVANE_CRASH_LOG_MAX];
};

PARAVANE_ASSERT(sizeof(struct paravane_crash_record) == 2624);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, magic) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, size) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, cpu) == 12);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, rip) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, rsp) == 24);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, cr2) == 32);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, cr3) == 40);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, backtrace_len) == 48);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, message_len) == 52);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, log_len) == 56);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, reserved0) == 60);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, backtrace) == 64);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, message) == 320);
PARAVANE_ASSERT(offsetof(struct paravane_crash_record, log) == 576);

/*
 * The part of the boot-info page about facilities that are KVM's. Writer: host. Spec:
 * PV-DELEGATE-1
 */
struct paravane_delegate_info {
	/* First leaf of KVM's CPUID block; zero where nothing is delegated. */
	uint32_t kvm_base;
	/* KVM's features, as in its leaf base + 1, EAX. */
	uint32_t kvm_features;
	/* Zero. */
	uint64_t reserved;
};

PARAVANE_ASSERT(sizeof(struct paravane_delegate_info) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_delegate_info, kvm_base) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_delegate_info, kvm_features) == 4);
PARAVANE_ASSERT(offsetof(struct paravane_delegate_info, reserved) == 8);

/* The device part of the boot-info page. Writer: host. Spec: PV-DEV-1 */
struct paravane_dev_info {
	/* Guest physical address of the table, page-aligned; nothing else is in that page. */
	uint64_t address;
	/* Entries of the table. */
	uint32_t count;
	/* Port of the doorbell, 0 to 0xffff. */
	uint32_t doorbell_port;
};

PARAVANE_ASSERT(sizeof(struct paravane_dev_info) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_dev_info, address) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_dev_info, count) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_dev_info, doorbell_port) == 12);

/* A device. Writer: host. Spec: PV-DEV-2 */
struct paravane_dev_entry {
	/* Virtio's number for this type of device. */
	uint32_t kind;
	/* Its queues. */
	uint32_t queues;
	/* The most entries of a queue. */
	uint32_t queue_max;
	/* `DEV_NEEDS_RESET`, or zero. */
	uint32_t state;
	/* Virtio's feature bits that the device offers. */
	uint64_t features;
	/* Changes whenever `config` does. */
	uint32_t generation;
	/* Zero. */
	uint32_t reserved[9];
	/* Its configuration, as virtio's chapter of the device type has it; the rest is zero. */
	uint8_t config[PARAVANE_DEV_CONFIG_BYTES];
};

PARAVANE_ASSERT(sizeof(struct paravane_dev_entry) == 128);
PARAVANE_ASSERT(offsetof(struct paravane_dev_entry, kind) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_dev_entry, queues) == 4);
PARAVANE_ASSERT(offsetof(struct paravane_dev_entry, queue_max) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_dev_entry, state) == 12);
PARAVANE_ASSERT(offsetof(struct paravane_dev_entry, features) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_dev_entry, generation) == 24);
PARAVANE_ASSERT(offsetof(struct paravane_dev_entry, reserved) == 28);
PARAVANE_ASSERT(offsetof(struct paravane_dev_entry, config) == 64);

/* A queue: where its three parts are. Spec: PV-DEV-6 */
struct paravane_dev_queue {
	/* Guest physical address of the descriptor table. */
	uint64_t descriptors;
	/* Guest physical address of the available ring. */
	uint64_t available;
	/* Guest physical address of the used ring. */
	uint64_t used;
	/* Entries. */
	uint32_t size;
	/* Zero. */
	uint32_t reserved;
};

PARAVANE_ASSERT(sizeof(struct paravane_dev_queue) == 32);
PARAVANE_ASSERT(offsetof(struct paravane_dev_queue, descriptors) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_dev_queue, available) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_dev_queue, used) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_dev_queue, size) == 24);
PARAVANE_ASSERT(offsetof(struct paravane_dev_queue, reserved) == 28);

/* What a device has to know before it begins. Writer: guest. Spec: PV-DEV-3 */
struct paravane_dev_start {
	/* The features that the driver has chosen. */
	uint64_t features;
	/* Interrupt vector of the device's notifications; zero: none. */
	uint32_t vector;
	/* APIC id of the processor that takes them. */
	uint32_t apic_id;
	/* Its queues; those that it does not have are zero. */
	struct paravane_dev_queue queues[PARAVANE_DEV_QUEUES_MAX];
};

PARAVANE_ASSERT(sizeof(struct paravane_dev_start) == 144);
PARAVANE_ASSERT(offsetof(struct paravane_dev_start, features) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_dev_start, vector) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_dev_start, apic_id) == 12);
PARAVANE_ASSERT(offsetof(struct paravane_dev_start, queues) == 16);

/* A range of guest memory. */
struct paravane_mem_range {
	/* Guest physical address of the first byte, page-aligned. */
	uint64_t address;
	/* Bytes, a multiple of the page size. */
	uint64_t size;
};

PARAVANE_ASSERT(sizeof(struct paravane_mem_range) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_mem_range, address) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_mem_range, size) == 8);

/* The memory part of the boot-info page. Writer: host. Spec: PV-MEM-1 */
struct paravane_mem_info {
	/* Memory that is zero at the start; entries that are not needed have size zero. */
	struct paravane_mem_range fresh[PARAVANE_MEM_FRESH_MAX];
	/* Guest physical address of the `MemPage`. */
	uint64_t page;
	/* Zero. */
	uint64_t reserved[3];
};

PARAVANE_ASSERT(sizeof(struct paravane_mem_info) == 96);
PARAVANE_ASSERT(offsetof(struct paravane_mem_info, fresh) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_mem_info, page) == 64);
PARAVANE_ASSERT(offsetof(struct paravane_mem_info, reserved) == 72);

/* How much memory the guest keeps from itself. Spec: PV-MEM-9 */
struct paravane_mem_page {
	/* Pages that the host would like the guest to keep from itself. Writer: host. */
	uint32_t wanted;
	/* Zero. */
	uint32_t reserved0[15];
	/* Pages that the guest keeps from itself and has reported. Writer: guest. */
	uint32_t kept;
	/*
	 * Pages that the guest uses and would miss; zero: it does not say. Writer: guest. Spec:
	 * PV-MEM-14
	 */
	uint32_t needed;
	/* Zero. */
	uint32_t reserved1[14];
};

PARAVANE_ASSERT(sizeof(struct paravane_mem_page) == 128);
PARAVANE_ASSERT(offsetof(struct paravane_mem_page, wanted) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_mem_page, reserved0) == 4);
PARAVANE_ASSERT(offsetof(struct paravane_mem_page, kept) == 64);
PARAVANE_ASSERT(offsetof(struct paravane_mem_page, needed) == 68);
PARAVANE_ASSERT(offsetof(struct paravane_mem_page, reserved1) == 72);

/* The indices, each side's on its own cache line; the entries follow. Spec: PV-RING-10 */
struct paravane_ring_header {
	/* Entries ever published. Writer: guest. */
	uint32_t head;
	/* Zero. */
	uint32_t reserved0[15];
	/* Entries ever completed. Writer: host. */
	uint32_t tail;
	/* Not zero while the host looks at the ring by itself. Writer: host. */
	uint32_t host_looks;
	/* Zero. */
	uint32_t reserved1[14];
};

PARAVANE_ASSERT(sizeof(struct paravane_ring_header) == 128);
PARAVANE_ASSERT(offsetof(struct paravane_ring_header, head) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_ring_header, reserved0) == 4);
PARAVANE_ASSERT(offsetof(struct paravane_ring_header, tail) == 64);
PARAVANE_ASSERT(offsetof(struct paravane_ring_header, host_looks) == 68);
PARAVANE_ASSERT(offsetof(struct paravane_ring_header, reserved1) == 72);

/* One call of a ring, on a cache line of its own. Spec: PV-RING-6 */
struct paravane_ring_entry {
	/* Call id. Writer: guest. */
	uint32_t call;
	/* `STATUS_…`, when the entry has been completed. Writer: host. */
	int32_t status;
	/* The call's value, when the entry has been completed. Writer: host. */
	uint64_t value;
	/* Arguments; unused ones zero. Writer: guest. */
	uint64_t args[PARAVANE_MAX_ARGS];
};

PARAVANE_ASSERT(sizeof(struct paravane_ring_entry) == 64);
PARAVANE_ASSERT(offsetof(struct paravane_ring_entry, call) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_ring_entry, status) == 4);
PARAVANE_ASSERT(offsetof(struct paravane_ring_entry, value) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_ring_entry, args) == 16);

/* The random-number part of the boot-info page. Writer: host. Spec: PV-RNG-1 */
struct paravane_rng_info {
	/* Guest physical address of the seed, page-aligned; nothing else is in that page. */
	uint64_t address;
	/* Bytes of the seed; zero: there is none. */
	uint32_t length;
	/* Zero. */
	uint32_t reserved;
};

PARAVANE_ASSERT(sizeof(struct paravane_rng_info) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_rng_info, address) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_rng_info, length) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_rng_info, reserved) == 12);

/* The processors' part of the boot-info page. Writer: host. Spec: PV-SMP-10 */
struct paravane_smp_info {
	/* Guest physical address of the `SmpPage`, page-aligned. */
	uint64_t address;
	/* Zero. */
	uint64_t reserved;
};

PARAVANE_ASSERT(sizeof(struct paravane_smp_info) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_smp_info, address) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_smp_info, reserved) == 8);

/* What the host wants of the processors. Writer: host. Spec: PV-SMP-10 */
struct paravane_smp_page {
	/* How many processors the host wants to be on; 0: it has no wish. */
	uint32_t wanted;
	/* Zero. */
	uint32_t reserved[15];
};

PARAVANE_ASSERT(sizeof(struct paravane_smp_page) == 64);
PARAVANE_ASSERT(offsetof(struct paravane_smp_page, wanted) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_smp_page, reserved) == 4);

/* The boot-info page; the rest of its 4096 bytes is zero. Writer: host. Spec: PV-BOOT-1 */
struct paravane_boot_info {
	/* `BOOT_INFO_MAGIC`. */
	uint64_t magic;
	/* ABI version, as `base.version` gives it. */
	uint32_t version;
	/* Bytes of this structure that the host has filled. */
	uint32_t size;
	/* Facility word: bit n = facility n. */
	uint64_t facilities;
	/* Transport bits. */
	uint32_t transports;
	/* Doorbell port of transport T0, 0 to 0xffff. */
	uint32_t doorbell_port;
	/* Changes with every restore of a snapshot; 0 at first. */
	uint64_t generation;
	/* Processors of the machine; their APIC ids are 0 to `vcpu_count` - 1. */
	uint32_t vcpu_count;
	/* Zero. */
	uint32_t reserved0;
	/* Facility `clock`; zero without it. */
	struct paravane_clock_info clock;
	/* Facility `console`; zero without it. */
	struct paravane_console_info console;
	/* Facility `cpuid`; zero without it. */
	struct paravane_cpuid_info cpuid;
	/* Facilities that are KVM's; zero where there is none. */
	struct paravane_delegate_info delegate;
	/* Facility `smp`; zero without it. */
	struct paravane_smp_info smp;
	/* Facility `mem`; zero without it. */
	struct paravane_mem_info mem;
	/* Facility `rng`; zero without it. */
	struct paravane_rng_info rng;
	/* Facility `dev`; zero without it. */
	struct paravane_dev_info dev;
};

PARAVANE_ASSERT(sizeof(struct paravane_boot_info) == 304);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, magic) == 0);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, version) == 8);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, size) == 12);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, facilities) == 16);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, transports) == 24);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, doorbell_port) == 28);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, generation) == 32);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, vcpu_count) == 40);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, reserved0) == 44);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, clock) == 48);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, console) == 96);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, cpuid) == 128);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, delegate) == 144);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, smp) == 160);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, mem) == 176);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, rng) == 272);
PARAVANE_ASSERT(offsetof(struct paravane_boot_info, dev) == 288);

#endif /* PARAVANE_ABI_H */
