// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! The registries: every number of the ABI that is not a structure's layout.
//!
//! A number that has been published is never given another meaning. Tables in `SPEC.md` and the
//! C header are generated from the constants here, so each stands exactly once.

/// ABI version: major in bits 31:16, minor in bits 15:0. Informative: a guest decides by facility
/// bits. Spec: PV-BASE-1
pub const ABI_VERSION: u32 = 0x0001_0001;

// --- Discovery (CPUID) ---

/// First hypervisor CPUID leaf that may carry the block. Spec: PV-DISC-1
pub const CPUID_BASE_FIRST: u32 = 0x4000_0000;
/// First leaf beyond the range in which the block may start. Spec: PV-DISC-1
pub const CPUID_BASE_END: u32 = 0x4001_0000;
/// Distance between two leaves at which the block may start. Spec: PV-DISC-1
pub const CPUID_BASE_STEP: u32 = 0x100;
/// `ParavaneHype` as EBX of leaf base + 0. Spec: PV-DISC-2
pub const CPUID_SIGNATURE_EBX: u32 = 0x6172_6150;
/// `ParavaneHype` as ECX of leaf base + 0. Spec: PV-DISC-2
pub const CPUID_SIGNATURE_ECX: u32 = 0x656e_6176;
/// `ParavaneHype` as EDX of leaf base + 0. Spec: PV-DISC-2
pub const CPUID_SIGNATURE_EDX: u32 = 0x6570_7948;
/// Leaf base + 0: EAX = last leaf of the block, EBX/ECX/EDX = signature. Spec: PV-DISC-2
pub const CPUID_LEAF_SIGNATURE: u32 = 0;
/// Leaf base + 1: EAX = ABI version, EBX = facilities 31:0, ECX = facilities 63:32, EDX =
/// transports. Spec: PV-DISC-3
pub const CPUID_LEAF_FEATURES: u32 = 1;
/// Leaf base + 2: EAX = boot-info address 31:0, EBX = boot-info address 63:32, ECX = doorbell
/// port, EDX = 0. Spec: PV-DISC-4
pub const CPUID_LEAF_BOOT: u32 = 2;
/// Number of leaves in the block.
pub const CPUID_LEAF_COUNT: u32 = 3;

// --- Transports: bits of leaf base + 1, EDX ---

/// T0: the PIO doorbell with arguments in registers. Mandatory. Spec: PV-CALL-1
pub const TRANSPORT_DOORBELL: u32 = 0x0000_0001;
/// T1: submission ring, one doorbell a batch. Spec: PV-RING-1
pub const TRANSPORT_RING: u32 = 0x0000_0002;
/// T2: submission ring that the host looks at by itself. Spec: PV-RING-1
pub const TRANSPORT_EXITLESS: u32 = 0x0000_0004;
/// T3: VMCALL/VMMCALL. Reserved.
pub const TRANSPORT_VMCALL: u32 = 0x0000_0008;

// --- Facilities: the id is bits 31:16 of a call id, and the bit number in the facility word ---

/// Facility `base`: version, probing, power. Mandatory.
pub const FACILITY_BASE: u32 = 1;
/// Facility `console`: output and input rings.
pub const FACILITY_CONSOLE: u32 = 2;
/// Facility `clock`: frequencies and wall clock.
pub const FACILITY_CLOCK: u32 = 3;
/// Facility `timer`: deadlines of the local APIC, delegated.
pub const FACILITY_TIMER: u32 = 4;
/// Facility `irq`: end of interrupt, delegated.
pub const FACILITY_IRQ: u32 = 5;
/// Facility `ipi`: interrupts to many processors, delegated.
pub const FACILITY_IPI: u32 = 6;
/// Facility `tlb`: flushes of processors that do not run, delegated.
pub const FACILITY_TLB: u32 = 7;
/// Facility `sched`: stolen time, waiting and yielding, delegated.
pub const FACILITY_SCHED: u32 = 8;
/// Facility `smp`: processors on and off.
pub const FACILITY_SMP: u32 = 9;
/// Facility `mem`: memory that is zero, and memory given back.
pub const FACILITY_MEM: u32 = 10;
/// Facility `rng`: random numbers of the host.
pub const FACILITY_RNG: u32 = 11;
/// Facility `dev`: virtio devices without a bus.
pub const FACILITY_DEV: u32 = 12;
/// Facility `crash`: the panic record.
pub const FACILITY_CRASH: u32 = 13;
/// Facility `cpu`, for deprivileged kernels. Reserved.
pub const FACILITY_CPU: u32 = 14;
/// Facility `mmu`, for deprivileged kernels. Reserved.
pub const FACILITY_MMU: u32 = 15;
/// Facility `ring`: submission rings, transports T1 and T2.
pub const FACILITY_RING: u32 = 16;
/// Facility `cpuid`: what CPUID returns, as a table.
pub const FACILITY_CPUID: u32 = 17;
/// First facility id for experiments; never in a published host.
pub const FACILITY_EXPERIMENTAL_FIRST: u32 = 0x8000;
/// First facility id for vendors.
pub const FACILITY_VENDOR_FIRST: u32 = 0xc000;

// --- Call ids ---

/// `base.version() -> ABI version`. Spec: PV-BASE-1
pub const CALL_BASE_VERSION: u32 = 0x0001_0000;
/// `base.facilities() -> facility word`. Spec: PV-BASE-2
pub const CALL_BASE_FACILITIES: u32 = 0x0001_0001;
/// `base.probe(call id) -> 1 if the host implements the call, else 0`. Spec: PV-BASE-3
pub const CALL_BASE_PROBE: u32 = 0x0001_0002;
/// `base.nop(value) -> value`: what a crossing costs. Spec: PV-BASE-4
pub const CALL_BASE_NOP: u32 = 0x0001_0003;
/// `base.power(action, reason)`: does not return on success. Spec: PV-BASE-5
pub const CALL_BASE_POWER: u32 = 0x0001_0004;

/// `console.write(address, length) -> bytes taken`. Spec: PV-CONSOLE-1
pub const CALL_CONSOLE_WRITE: u32 = 0x0002_0000;
/// `console.notify()`: the output ring has bytes. Spec: PV-CONSOLE-5
pub const CALL_CONSOLE_NOTIFY: u32 = 0x0002_0001;
/// `console.event(vector, APIC id)`: raise `vector` when input arrives; 0 = never. Spec:
/// PV-CONSOLE-7
pub const CALL_CONSOLE_EVENT: u32 = 0x0002_0002;

/// `clock.wall() -> nanoseconds since 1970-01-01 00:00:00 UTC`. Spec: PV-CLOCK-3
pub const CALL_CLOCK_WALL: u32 = 0x0003_0000;
/// `clock.event(vector, APIC id)`: raise `vector` when `disruption` changes; 0 = never. Spec:
/// PV-CLOCK-12
pub const CALL_CLOCK_EVENT: u32 = 0x0003_0001;

/// `smp.start(APIC id, RIP, RSP, CR3, RDI)`: that processor begins there. Spec: PV-SMP-2
pub const CALL_SMP_START: u32 = 0x0009_0000;
/// `smp.stop()`: the calling processor goes off; does not return. Spec: PV-SMP-6
pub const CALL_SMP_STOP: u32 = 0x0009_0001;
/// `smp.state(APIC id) -> SMP_ON or SMP_OFF`. Spec: PV-SMP-9
pub const CALL_SMP_STATE: u32 = 0x0009_0002;
/// `smp.event(vector, APIC id)`: raise `vector` when `wanted` changes; 0 = never. Spec: PV-SMP-11
pub const CALL_SMP_EVENT: u32 = 0x0009_0003;

/// `mem.report(address, count)`: the ranges in the list there are not used now. Spec: PV-MEM-4
pub const CALL_MEM_REPORT: u32 = 0x000a_0000;
/// `mem.event(vector, APIC id)`: raise `vector` when the host wants more or less memory; 0 = never.
/// Spec: PV-MEM-10
pub const CALL_MEM_EVENT: u32 = 0x000a_0001;

/// `rng.fill(address, length) -> bytes written`: random ones. Spec: PV-RNG-2
pub const CALL_RNG_FILL: u32 = 0x000b_0000;

/// `dev.start(device, address)`: a `DevStart` lies there, and the device begins. Spec: PV-DEV-3
pub const CALL_DEV_START: u32 = 0x000c_0000;
/// `dev.stop(device)`: the queues' memory is the guest's again. Spec: PV-DEV-11
pub const CALL_DEV_STOP: u32 = 0x000c_0001;

/// `crash.report(address, length)`: a `CrashRecord` lies there. Spec: PV-CRASH-1
pub const CALL_CRASH_REPORT: u32 = 0x000d_0000;

/// `ring.register(APIC id, address, entries, flags)`: that processor's ring lies there. Spec:
/// PV-RING-2
pub const CALL_RING_REGISTER: u32 = 0x0010_0000;
/// `ring.unregister(APIC id)`: the ring's memory is the guest's again. Spec: PV-RING-4
pub const CALL_RING_UNREGISTER: u32 = 0x0010_0001;
/// `ring.submit(APIC id) -> entries completed`: the ring has entries. Spec: PV-RING-5
pub const CALL_RING_SUBMIT: u32 = 0x0010_0002;

// --- Status: RAX after a call, as a signed 64-bit number ---

/// The call was carried out.
pub const STATUS_OK: i64 = 0;
/// No such call, or its facility is switched off.
pub const STATUS_NOT_SUPPORTED: i64 = -1;
/// An argument is out of its range, or a reserved bit or register is not zero.
pub const STATUS_INVALID_PARAM: i64 = -2;
/// An address range is not wholly in guest memory, or is misaligned.
pub const STATUS_BAD_ADDRESS: i64 = -3;
/// The call is known, but not allowed from here or now.
pub const STATUS_DENIED: i64 = -4;
/// The host cannot serve the call now; the guest may try again.
pub const STATUS_BUSY: i64 = -5;
/// The host failed; the guest is not at fault.
pub const STATUS_HOST_ERROR: i64 = -6;

// --- base.power ---

/// Power action: the machine goes off.
pub const POWER_OFF: u64 = 0;
/// Power action: the machine starts again.
pub const POWER_REBOOT: u64 = 1;
/// Power action: the machine stops because its kernel has failed.
pub const POWER_CRASH: u64 = 2;
/// Power reason: none given, or an orderly request of user space.
pub const POWER_REASON_NONE: u64 = 0;
/// Power reason: kernel panic.
pub const POWER_REASON_PANIC: u64 = 1;
/// Power reason: emergency restart (sysrq, watchdog).
pub const POWER_REASON_EMERGENCY: u64 = 2;

// --- Limits ---

/// Alignment and size of the boot-info page and of every shared page, in bytes. Spec: PV-BOOT-1
pub const PAGE_SIZE: usize = 4096;
/// Most bytes that one `console.write` takes. Spec: PV-CONSOLE-9
pub const CONSOLE_WRITE_MAX: u64 = 65536;
/// First interrupt vector a guest may ask an event to be raised on. Spec: PV-CONSOLE-11,
/// PV-CLOCK-13
pub const EVENT_VECTOR_FIRST: u64 = 0x20;
/// Last interrupt vector a guest may ask an event to be raised on. Spec: PV-CONSOLE-11,
/// PV-CLOCK-13
pub const EVENT_VECTOR_LAST: u64 = 0xff;
