//! One small virtual machine around the bare-metal guest, for one probe.
//!
//! # How it works
//!
//! 4 MiB of memory, mapped one to one; a hole at 1 GiB for MMIO; GDT, IDT and TSS as Linux has
//! them; no interrupt controller, so HLT exits. The vCPU starts in 64-bit mode at a symbol of the
//! guest, at CPL 0 or CPL 3. A new machine for each probe: what one leaves behind, another must not
//! find.

use std::sync::{Arc, OnceLock};

use kvm_bindings::{
    CpuId, KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_enable_cap, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region, kvm_xcrs,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, SyncReg, VcpuFd, VmFd};
use paravane_abi::call::CallId;
use paravane_abi::registry as reg;
use paravane_abi::ring::RING_EXITLESS;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::image::layout::*;
use super::image::{Image, ImageError};
use super::interrupts::{self, Source};
use crate::config::FacilitySet;
use crate::end::End;
use crate::memory::Memory;
use crate::pv::base::Base;
use crate::pv::{Paravirt, Reply};

/// A machine for a probe could not be made.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM refused something.
    #[error("KVM refuses to {what}: {reason}")]
    Kvm {
        /// What it was asked.
        what: &'static str,
        /// What it said.
        reason: kvm_ioctls::Error,
    },
    /// The guest's memory could not be mapped.
    #[error("4 MiB of memory for the bare-metal guest cannot be mapped")]
    Map(#[from] crate::memory::MemoryError),
    /// The guest's memory does not take what it should hold.
    #[error("the bare-metal guest does not fit its memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The ring is refused.
    #[error("the bare-metal guest cannot have a submission ring: {0}")]
    Ring(String),
    /// The embedded guest is damaged.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Names the ioctl in an error.
pub(super) fn kvm_error(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |reason| MachineError::Kvm { what, reason }
}

/// The host has no event descriptor left.
pub(super) fn event_error(error: std::io::Error) -> MachineError {
    let reason = kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(0));
    MachineError::Kvm {
        what: "have an event",
        reason,
    }
}

/// Where a vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// CPL 0.
    Kernel,
    /// CPL 3.
    User,
}

/// What the run page has after an exit (`KVM_CAP_SYNC_REGS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// The exit only.
    Nothing,
    /// The general registers too.
    General,
    /// The special registers, such as CS, too.
    Special,
    /// The general registers, in every other batch.
    InTurns,
}

/// A vector with a handler of its own; all others go to the trap stubs.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// The vector.
    pub vector: u8,
    /// The guest's symbol.
    pub handler: &'static str,
    /// Whether the gate's code segment is that of CPL 3.
    pub to: Privilege,
}

/// What answers at the doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Nothing.
    None,
    /// The VMM's dispatcher.
    Doorbell,
    /// The same; the processor has a ring of [`SUBMISSION`] entries.
    Ring,
    /// The same; the processor has a ring of one entry, at which the host looks.
    Exitless,
}

/// What is special about a probe's machine.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The guest's symbol to start at.
    pub entry: &'static str,
    /// The privilege to start with.
    pub privilege: Privilege,
    /// Handlers.
    pub gate: Option<Gate>,
    /// Where `syscall` goes.
    pub syscall_entry: &'static str,
    /// Whether RFLAGS.IOPL is 3.
    pub iopl: bool,
    /// Whether the TSS's I/O bitmap opens all ports.
    pub open_ports: bool,
    /// Whether CPUID is to lack XSAVE and AVX.
    pub no_xsave: bool,
    /// What KVM shall exchange through the run page.
    pub sync: Sync,
    /// What answers at the doorbell.
    pub calls: Calls,
    /// The interrupt that it shall get; interrupts are then on.
    pub interrupt: Option<Source>,
    /// The entry of the level 4 page table through which the code is reached.
    pub slot: u16,
}

impl Setup {
    /// Nothing special.
    #[must_use]
    pub const fn plain(entry: &'static str, privilege: Privilege) -> Self {
        Self {
            entry,
            privilege,
            gate: None,
            syscall_entry: "k_syscall_entry",
            iopl: false,
            open_ports: false,
            no_xsave: false,
            sync: Sync::Nothing,
            calls: Calls::None,
            interrupt: None,
            slot: 0,
        }
    }
}

/// A machine ready to run. The vCPU is dropped first, the memory last.
#[derive(Debug)]
pub struct Machine {
    /// The only vCPU.
    pub vcpu: VcpuFd,
    _vm: VmFd,
    /// Guest memory.
    pub memory: Memory,
    /// What the run page has after an exit.
    pub sync: Sync,
    /// What answers at the doorbell.
    pub pv: Paravirt,
    /// How calls end the machine.
    pub end: Arc<End>,
    _events: [Option<EventFd>; 2],
}

impl Machine {
    /// Builds it. `batches` is what the guest finds in R15.
    ///
    /// # Errors
    ///
    /// When KVM refuses, or memory is short.
    pub fn new(
        kvm: &Kvm,
        image: &Image,
        setup: &Setup,
        batches: u32,
    ) -> Result<Self, MachineError> {
        let vm = kvm
            .create_vm()
            .map_err(kvm_error("create a virtual machine"))?;
        vm.set_tss_address(0xfffb_d000)
            .map_err(kvm_error("set the address of its TSS"))?;
        let memory = fill_memory(image, setup)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY_END,
            userspace_addr: memory.mmap().get_host_address(GuestAddress(0))? as u64,
        };
        // SAFETY: the range is the mapping that `memory` owns; the machine drops `memory` after the
        // VM, and nobody else maps or unmaps it.
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm_error("take guest memory"))?;
        let event = register_shortcuts(&vm)?;
        if setup.interrupt.is_some() {
            interrupts::create_lapics(&vm)?;
        }
        let mut vcpu = vm.create_vcpu(0).map_err(kvm_error("create a vCPU"))?;
        set_cpu_features(kvm, &vcpu, setup)?;
        set_registers(&vcpu, image, setup, batches)?;
        let interrupt = match setup.interrupt {
            Some(source) => interrupts::raise(&vm, &vcpu, source)?,
            None => None,
        };
        if setup.sync != Sync::Nothing {
            vcpu.set_sync_valid_reg(SyncReg::Register);
        }
        if setup.sync == Sync::Special {
            vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
        }
        if event.is_some() {
            vcpu.map_coalesced_mmio_ring()
                .map_err(kvm_error("map the ring of coalesced writes"))?;
        }
        let end = Arc::new(End::new().map_err(event_error)?);
        let pv = answer_calls(&memory, setup.calls, &end)?;
        Ok(Self {
            vcpu,
            _vm: vm,
            memory,
            sync: setup.sync,
            pv,
            end,
            _events: [event, interrupt],
        })
    }
}

/// The VMM's own dispatcher, and the processor's ring.
fn answer_calls(memory: &Memory, calls: Calls, end: &Arc<End>) -> Result<Paravirt, MachineError> {
    if calls == Calls::None {
        return Ok(Paravirt::none());
    }
    let set = FacilitySet::default();
    let pv = Paravirt::new(set, vec![Box::new(Base::new(set))]).with_rings(
        memory,
        1,
        end,
        &Arc::default(),
    );
    let call = |id, args| match pv.call(CallId(id), &args) {
        Reply::Resume(Ok(_)) => Ok(()),
        other => Err(MachineError::Ring(format!("{other:?}"))),
    };
    let register = |entries: u32, flags| {
        let args = [0, RING, u64::from(entries), flags, 0, 0];
        call(reg::CALL_RING_REGISTER, args)
    };
    match calls {
        Calls::None | Calls::Doorbell => {}
        Calls::Ring => register(SUBMISSION, 0)?,
        Calls::Exitless => {
            register(1, RING_EXITLESS)?;
            // From now on the host looks.
            call(reg::CALL_RING_SUBMIT, [0; 6])?;
        }
    }
    Ok(pv)
}

/// Tables, image, everything that the guest finds in memory.
fn fill_memory(image: &Image, setup: &Setup) -> Result<Memory, MachineError> {
    let whole = Memory::new(MEMORY_END >> 20)?;
    let memory = whole.mmap();
    let put = |address: u64, value: u64| memory.write_obj(value, GuestAddress(address));
    for (address, bytes) in &image.segments {
        memory.write_slice(bytes, GuestAddress(*address))?;
    }
    // Level 4 and 3 open to all; level 2 for the first GiB and for the one with the MMIO hole.
    let (level3, low, hole) = (
        PAGE_TABLES + 0x1000,
        PAGE_TABLES + 0x2000,
        PAGE_TABLES + 0x3000,
    );
    put(PAGE_TABLES, level3 | 7)?;
    put(PAGE_TABLES + 8 * u64::from(setup.slot), level3 | 7)?;
    put(level3, low | 7)?;
    put(level3 + 8, hole | 7)?;
    put(low, 0x83)?;
    put(low + 8, USER_START | 0x87)?;
    put(hole, MARK | 0x87)?;
    let descriptors = [
        (KERNEL_CS, 0x00af_9b00_0000_ffff),
        (KERNEL_SS, 0x00cf_9300_0000_ffff),
        (0x23, 0x00cf_fb00_0000_ffff),
        (USER_SS, 0x00cf_f300_0000_ffff),
        (USER_CS, 0x00af_fb00_0000_ffff),
        (
            TASK,
            0x0000_8900_0000_0000 | (TSS & 0xff_ffff) << 16 | TASK_LIMIT,
        ),
        (TASK + 8, TSS >> 32),
    ];
    for (selector, descriptor) in descriptors {
        put(GDT + u64::from(selector & !7), descriptor)?;
    }
    // RSP0, and the bitmap right behind the 104 bytes of the TSS.
    put(TSS + 4, KERNEL_STACK)?;
    memory.write_obj(104u16, GuestAddress(TSS + 102))?;
    let closed = if setup.open_ports { 0 } else { u8::MAX };
    memory.write_slice(&[closed; 0x1000 - 104], GuestAddress(TSS + 104))?;
    let stubs = image.symbol("trap_stubs")?;
    for vector in 0..=255 {
        set_gate(
            memory,
            vector,
            stubs + 16 * u64::from(vector),
            Privilege::Kernel,
        )?;
    }
    if let Some(gate) = setup.gate {
        set_gate(memory, gate.vector, image.symbol(gate.handler)?, gate.to)?;
    }
    Ok(whole)
}

/// The TSS's last byte: enough of the bitmap for the ports in use.
const TASK_LIMIT: u64 = 0x8ff;

/// Writes one IDT entry: a trap gate to CPL 3, else an interrupt gate. #BP and software interrupts
/// may be raised from CPL 3.
fn set_gate(
    memory: &GuestMemoryMmap,
    vector: u8,
    handler: u64,
    to: Privilege,
) -> Result<(), MachineError> {
    let (selector, kind) = match to {
        Privilege::Kernel => (KERNEL_CS, 0x8e),
        Privilege::User => (USER_CS, 0x8f),
    };
    let dpl: u64 = if vector == 3 || vector >= 0x30 {
        0x60
    } else {
        0
    };
    let low = handler & 0xffff
        | u64::from(selector) << 16
        | (kind | dpl) << 40
        | (handler >> 16 & 0xffff) << 48;
    let entry = IDT + 16 * u64::from(vector);
    memory.write_obj(low, GuestAddress(entry))?;
    memory.write_obj(handler >> 32, GuestAddress(entry + 8))?;
    Ok(())
}

/// Events, coalesced writes and MSR exits, as far as this KVM has them. `Some` if all are there.
fn register_shortcuts(vm: &VmFd) -> Result<Option<EventFd>, MachineError> {
    if vm.check_extension_raw(u64::from(KVM_CAP_X86_USER_SPACE_MSR)) > 0 {
        // Unknown, invalid and filtered accesses exit to us.
        let cap = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [7, 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&cap)
            .map_err(kvm_error("report MSR accesses"))?;
    }
    if !vm.check_extension(Cap::Ioeventfd) || !vm.check_extension(Cap::CoalescedMmio) {
        return Ok(None);
    }
    let event = EventFd::new(EFD_NONBLOCK).map_err(event_error)?;
    for address in [
        IoEventAddress::Pio(u64::from(PORT_EVENT)),
        IoEventAddress::Mmio(MMIO_EVENT),
    ] {
        vm.register_ioevent(&event, &address, NoDatamatch)
            .map_err(kvm_error("register an event"))?;
    }
    let coalesced = kvm_error("coalesce writes");
    vm.register_coalesced_mmio(IoEventAddress::Mmio(MMIO_COALESCED), 8)
        .map_err(coalesced)?;
    // Ports came later than memory; without them the probe exits instead, and says so.
    let _ = vm.register_coalesced_mmio(IoEventAddress::Pio(u64::from(PORT_COALESCED)), 1);
    Ok(Some(event))
}

/// What KVM offers, asked once: on an emulated host it takes a while.
fn supported_features(kvm: &Kvm) -> Result<CpuId, MachineError> {
    static SUPPORTED: OnceLock<CpuId> = OnceLock::new();
    if let Some(cpuid) = SUPPORTED.get() {
        return Ok(cpuid.clone());
    }
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("list CPU features"))?;
    Ok(SUPPORTED.get_or_init(|| cpuid).clone())
}

/// CPUID as KVM offers it, and the FPU state that it needs.
fn set_cpu_features(kvm: &Kvm, vcpu: &VcpuFd, setup: &Setup) -> Result<(), MachineError> {
    let mut cpuid = supported_features(kvm)?;
    if setup.no_xsave {
        for leaf in cpuid.as_mut_slice() {
            match leaf.function {
                1 => leaf.ecx &= !(XSAVE | OSXSAVE | AVX),
                0xd => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
                _ => (),
            }
        }
    }
    vcpu.set_cpuid2(&cpuid)
        .map_err(kvm_error("set CPU features"))?;
    if let Some(xcr0) = has_xsave(&cpuid) {
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = xcr0;
        let mut sregs = vcpu.get_sregs().map_err(kvm_error("read registers"))?;
        sregs.cr4 |= CR4_OSXSAVE;
        vcpu.set_sregs(&sregs)
            .map_err(kvm_error("switch XSAVE on"))?;
        vcpu.set_xcrs(&xcrs).map_err(kvm_error("set XCR0"))?;
    }
    Ok(())
}

const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;
const AVX: u32 = 1 << 28;
const CR4_OSXSAVE: u64 = 1 << 18;

/// XCR0 with x87, SSE and, where CPUID has it, AVX; `None` without XSAVE.
fn has_xsave(cpuid: &CpuId) -> Option<u64> {
    let leaves = cpuid.as_slice();
    leaves
        .iter()
        .find(|leaf| leaf.function == 1 && leaf.ecx & XSAVE != 0)?;
    let state = leaves
        .iter()
        .find(|leaf| leaf.function == 0xd && leaf.index == 0)?;
    Some(u64::from(state.eax) & 7)
}

/// 64-bit mode at the entry, as Linux has it, interrupts off.
fn set_registers(
    vcpu: &VcpuFd,
    image: &Image,
    setup: &Setup,
    batches: u32,
) -> Result<(), MachineError> {
    let (selector, stack_selector, dpl, stack) = match setup.privilege {
        Privilege::Kernel => (KERNEL_CS, KERNEL_SS, 0, KERNEL_STACK),
        Privilege::User => (USER_CS, USER_SS, 3, USER_STACK),
    };
    let flat = kvm_segment {
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        dpl,
        ..Default::default()
    };
    let data = kvm_segment {
        type_: 3,
        db: 1,
        selector: stack_selector,
        ..flat
    };
    let sregs = vcpu.get_sregs().map_err(kvm_error("read registers"))?;
    let mut sregs = kvm_sregs {
        cs: kvm_segment {
            type_: 11,
            l: 1,
            selector,
            ..flat
        },
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        tr: kvm_segment {
            base: TSS,
            limit: 0x8ff,
            selector: TASK,
            type_: 11,
            present: 1,
            ..Default::default()
        },
        // Protected mode, paging, native FPU errors, write protection.
        cr0: 0x8005_0033,
        cr3: PAGE_TABLES,
        // PSE, PAE, MCE, PGE, and SSE.
        cr4: 0x6f0 | (sregs.cr4 & CR4_OSXSAVE),
        // Long mode, NX, and syscall.
        efer: 0xd01,
        ..sregs
    };
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x7f);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
    vcpu.set_sregs(&sregs)
        .map_err(kvm_error("enter 64-bit mode"))?;
    let msr = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = [
        // STAR, LSTAR, SFMASK.
        msr(0xc000_0081, 0x0023_0010 << 32),
        msr(0xc000_0082, image.symbol(setup.syscall_entry)?),
        msr(0xc000_0084, 0x25_7fd5),
    ];
    let msrs = Msrs::from_entries(&msrs).expect("three entries are not too many");
    vcpu.set_msrs(&msrs).map_err(kvm_error("set MSRs"))?;
    // Canonical: the highest bit of the slot's number goes on.
    let base = (u64::from(setup.slot) << 55).cast_signed() >> 16;
    let flag = |on: bool, flag: u64| if on { flag } else { 0 };
    let regs = kvm_regs {
        rip: base.cast_unsigned() | image.symbol(setup.entry)?,
        rsp: stack,
        rflags: 2 | flag(setup.iopl, 0x3000) | flag(setup.interrupt.is_some(), 0x200),
        r15: u64::from(batches),
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm_error("set registers"))?;
    Ok(())
}
