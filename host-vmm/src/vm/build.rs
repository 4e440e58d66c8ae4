//! Building a machine: KVM's objects, memory, devices, facilities, in the order KVM wants them.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use kvm_bindings::{
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_SPLIT_IRQCHIP, KVM_CLOCK_TSC_STABLE,
    KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_enable_cap, kvm_msr_entry, kvm_pit_config, kvm_xcr,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use paravane_abi::registry as reg;
use vmm_sys_util::eventfd::EventFd;

use super::{Machine, Vm, VmError, host};
use crate::awkward::Awkward;
use crate::config::{Config, FacilitySet, Io, Profile};
use crate::console::Console;
use crate::device::Ports;
use crate::device::ide::{self, Ide};
use crate::device::ne2000::{self, Ne2000};
use crate::device::uart::{self, Uart};
use crate::disk::Disk;
use crate::driver_domain::DriverDomain;
use crate::end::End;
use crate::kvm::counters::Counters;
use crate::kvm::cpuid::{GuestCpuid, delegable};
use crate::kvm::{self, KvmError, refused};
use crate::lies::Liar;
use crate::memory::{self, Memory};
use crate::net::{Net, NetError};
use crate::pause::Pause;
use crate::pv::base::Base;
use crate::pv::clock::{Clock, Counter};
use crate::pv::console::RingConsole;
use crate::pv::cpuid::Cpuid;
use crate::pv::crash::{Crash, LastWords};
use crate::pv::delegate::Delegate;
use crate::pv::dev::Dev;
use crate::pv::mem::Mem;
use crate::pv::rng::Rng;
use crate::pv::smp::{Processors, Smp};
use crate::pv::timer::Timer;
use crate::pv::{BOOT_INFO, DOORBELL_PORT, Facility, Paravirt};
use crate::switcher;
use crate::vcpu::PowerOn;
use crate::virtio::Device;
use crate::virtio::balloon::{Balloon, BalloonState};
use crate::virtio::block::Block;
use crate::virtio::console::Port;
use crate::virtio::mmio::MmioBus;
use crate::virtio::net::NetDevice;
use crate::virtio::rng::Rng as Entropy;
use crate::virtio::vhost::net::VhostNet;
use crate::virtio::vhost::vsock::VhostVsock;

const MSR_TSC: u32 = 0x10;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Fast string operations.
const MISC_FAST_STRINGS: u64 = 1;
/// MTRRs on, default type write-back.
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;

impl Vm {
    /// Builds the machine for `config`, without a kernel. `setup_started`: when the process began.
    ///
    /// # Errors
    ///
    /// [`VmError`]; each says what to do about it.
    pub fn new(config: Config, console: Console, setup_started: Instant) -> Result<Self, VmError> {
        let memory = Memory::new(config.memory_mib)?;
        Self::with_memory(config, memory, console, setup_started)
    }

    /// The same with memory that there is already.
    pub(crate) fn with_memory(
        mut config: Config,
        memory: Memory,
        console: Console,
        setup_started: Instant,
    ) -> Result<Self, VmError> {
        let liar = Liar::new(&config.lies);
        let awkward = config.awkward.map(|seed| Arc::new(Awkward::new(seed)));
        if let Some(awkward) = &awkward {
            config.facilities = awkward.offers(config.facilities);
        }
        let kvm = kvm::open()?;
        let vm = create_vm(&kvm, &config, &memory)?;
        let ports = create_devices(&vm, &config, &console, &memory)?;

        let set = match config.profile {
            Profile::Full | Profile::KvmPv => FacilitySet::NONE,
            Profile::Para => delegable(&kvm, config.facilities)?,
            Profile::Direct => switcher::facilities(config.facilities),
        };
        let mut cpuid = GuestCpuid::new(&kvm, config.profile, set, BOOT_INFO, DOORBELL_PORT)?;
        if config.dedicated {
            cpuid.promise_processors();
        }
        cpuid.move_block(awkward.as_ref().map_or(0, |a| a.block_moved_by()));
        let vcpus = create_vcpus(&vm, &cpuid, config.vcpus)?;
        let cpuid_of_boot_cpu = cpuid.for_vcpu(0, config.vcpus);
        if config.profile == Profile::Direct {
            for (id, fd) in (0..).zip(&vcpus) {
                switcher::set_msrs(fd, id, config.users)?;
            }
        }

        let has_smp = set.has(reg::FACILITY_SMP);
        let power_on = (0..).zip(&vcpus).map(|(id, fd)| {
            let is_direct = config.profile == Profile::Direct;
            let direct = is_direct.then_some(id);
            has_smp.then(|| PowerOn::of(fd, direct).ok()).flatten()
        });
        let power_on = power_on.collect();
        let msrs = kvm.get_msr_index_list();
        let msrs = msrs.map_err(refused("tell which MSRs there are"))?;
        let last_words = LastWords::default();
        let end = Arc::new(End::new().map_err(host("event descriptor"))?);
        let wake = EventFd::new(libc::EFD_NONBLOCK).map_err(host("event descriptor"))?;
        let over = wake.try_clone().map_err(host("event descriptor"))?;
        let pause = Arc::new(Pause::new(config.vcpus).telling(over));
        let vm = Arc::new(vm);
        let domain = (config.io == Io::DriverDomain)
            .then(|| DriverDomain::start(&config, &memory))
            .transpose()?;
        let mut devices = match &domain {
            Some(domain) => domain.devices(),
            None => create_served(&config, &memory)?,
        };
        let balloon = config.balloon.then(Arc::<BalloonState>::default);
        devices.extend(create_others(&config, &memory, balloon.as_ref())?);
        let (registers, table) = if config.profile.is_paravane() {
            (Vec::new(), devices)
        } else {
            (devices, Vec::new())
        };
        let (vcpu_count, poll) = (config.vcpus, config.poll);
        let virtio = MmioBus::new(&vm, &memory, &pause, poll, registers)?;
        let dev = Dev::new(&vm, &memory, vcpu_count, &pause, poll, table)?;
        let dev = Arc::new(dev);
        let processors = Arc::new(Processors::new(config.vcpus));
        let rings = Arc::new(RingConsole::new(
            memory.clone(),
            console.clone(),
            config.vcpus,
            wake.try_clone().map_err(host("event descriptor"))?,
        ));
        let mem = Arc::new(Mem::new(memory.clone(), config.vcpus));
        let trusted = !awkward.as_ref().is_some_and(|a| a.distrusts_the_tsc());
        let counter = counter(&vm, vcpus.first(), trusted)?;
        let clock = Arc::new(Clock::new(memory.clone(), counter, config.vcpus));
        let pv = if set == FacilitySet::NONE {
            Paravirt::none()
        } else {
            let mut facilities: Vec<Box<dyn Facility>> = vec![
                Box::new(Base::new(set)),
                Box::new(Arc::clone(&rings)),
                Box::new(Arc::clone(&clock)),
                Box::new(Timer),
                Box::new(Cpuid::new(&vcpus)?),
                Box::new(Crash::new(memory.clone(), Arc::clone(&last_words))),
                Box::new(Rng::new(memory.clone())),
                Box::new(Smp::new(Arc::clone(&processors), memory.clone())),
                Box::new(Arc::clone(&mem)),
                Box::new(Arc::clone(&dev)),
            ];
            facilities.extend(Delegate::of(set));
            if let Some(awkward) = &awkward {
                facilities = awkward.wrap(facilities, &rings, &memory, config.vcpus);
            }
            if let Some(liar) = &liar {
                facilities = liar.wrap(facilities);
            }
            Paravirt::new(set, facilities).with_rings(&memory, config.vcpus, &end, &pause)
        };
        // What the guest costs, its driver domain costs.
        let served = domain.iter().flat_map(|domain| domain.counters());
        let served: Vec<Counters> = served.collect();
        let machine = Machine {
            vm,
            memory: memory.clone(),
            console_before: console.bytes(),
            console,
            ports,
            virtio,
            dev: set.has(reg::FACILITY_DEV).then_some(dev),
            domain,
            pv,
            rings: set.has(reg::FACILITY_CONSOLE).then_some(rings),
            clock: set.has(reg::FACILITY_CLOCK).then_some(clock),
            processors: set.has(reg::FACILITY_SMP).then_some(processors),
            mem: set.has(reg::FACILITY_MEM).then_some(mem),
            balloon,
            awkward,
            liar,
            debugger: OnceLock::new(),
            symbols: OnceLock::new(),
            image: OnceLock::new(),
            config,
            wake,
            end,
            pause,
            started: OnceLock::new(),
            counters: vcpus
                .iter()
                .filter_map(Counters::open)
                .chain(served)
                .collect(),
            counts: vcpus.iter().map(|_| Arc::default()).collect(),
            marks: Mutex::default(),
            vcpus: vcpus.into_iter().map(Mutex::new).collect(),
            power_on,
            cpuid: cpuid_of_boot_cpu,
            msrs: msrs.as_slice().to_vec(),
        };
        Ok(Self {
            machine: Arc::new(machine),
            memory,
            last_words,
            setup_started,
        })
    }
}

/// The VM with its memory.
fn create_vm(kvm: &Kvm, config: &Config, memory: &Memory) -> Result<VmFd, VmError> {
    let vm = kvm.create_vm().map_err(refused("create a VM"))?;
    if config.prealloc {
        memory.populate();
    }
    memory.register(&vm)?;
    if has_vmx() {
        vm.set_tss_address(memory::KVM_TSS)
            .map_err(refused("set the TSS address"))?;
        vm.set_identity_map_address(memory::KVM_IDENTITY_MAP)
            .map_err(refused("set the identity map"))?;
    }
    Ok(vm)
}

/// Whether KVM may need memory of its own for real mode. Another one has no use for it, and takes it all the same, which costs a
/// busy host tens of milliseconds.
fn has_vmx() -> bool {
    const VMX: u32 = 1 << 5;
    std::arch::x86_64::__cpuid(1).ecx & VMX != 0
}

/// Interrupt controllers and port devices, before any vCPU.
fn create_devices(
    vm: &VmFd,
    config: &Config,
    console: &Console,
    memory: &Memory,
) -> Result<Ports, VmError> {
    if config.profile.has_legacy_devices() {
        let ports = Ports::legacy(create_pc(vm, console)?);
        return Ok(if config.has_pci() {
            ports.with_cards(create_ide(vm, config, memory)?, create_network(vm, config)?)
        } else {
            ports
        });
    }
    create_split_irqchip(vm)?;
    if !config.has_uart() {
        return Ok(Ports::default());
    }
    // Without a PIC or IOAPIC its interrupt leads nowhere: the kernel polls it.
    let irq = EventFd::new(libc::EFD_NONBLOCK).map_err(host("event descriptor"))?;
    Ok(Ports::uart_only(Uart::new(irq, console.clone())))
}

/// Disks and network, which a driver domain may serve in place of this process.
fn create_served(config: &Config, memory: &Memory) -> Result<Vec<Box<dyn Device>>, VmError> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    if config.profile == Profile::Full {
        return Ok(devices);
    }
    for (index, spec) in config.disks.iter().enumerate() {
        let queues = spec.queues.min(config.vcpus);
        devices.push(Box::new(Block::new(Disk::open(spec)?, index, queues)));
    }
    match open_net(config)? {
        None => {}
        Some(tap) if config.io == Io::Kernel => {
            devices.push(Box::new(VhostNet::new(tap, memory)?));
        }
        Some(net) => devices.push(Box::new(NetDevice::new(net))),
    }
    Ok(devices)
}

/// The network that the guest is connected to, unless it is already.
fn open_net(config: &Config) -> Result<Option<Net>, NetError> {
    match &config.open_net {
        Some(net) => Ok(Some(net.clone())),
        None => config.net.as_ref().map(Net::open).transpose(),
    }
}

/// The virtio devices that a PC has nothing alike for.
fn create_others(
    config: &Config,
    memory: &Memory,
    balloon: Option<&Arc<BalloonState>>,
) -> Result<Vec<Box<dyn Device>>, VmError> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    if config.rng {
        devices.push(Box::new(Entropy));
    }
    if let Some(state) = balloon {
        devices.push(Box::new(Balloon::new(memory.clone(), Arc::clone(state))));
    }
    if let Some(cid) = config.vsock {
        devices.push(Box::new(VhostVsock::new(cid, memory)?));
    }
    for port in &config.ports {
        devices.push(Box::new(Port::new(port)?));
    }
    Ok(devices)
}

fn create_vcpus(vm: &VmFd, cpuid: &GuestCpuid, count: u8) -> Result<Vec<VcpuFd>, VmError> {
    (0..count)
        .map(|id| {
            let fd = vm
                .create_vcpu(u64::from(id))
                .map_err(refused("create a vCPU"))?;
            fd.set_cpuid2(&cpuid.to_kvm(id, count)?)
                .map_err(refused("set a vCPU's CPUID"))?;
            // Without it a masked KVM feature still works, and a full guest is not full.
            let enforce = kvm_enable_cap {
                cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
                args: [1, 0, 0, 0],
                ..Default::default()
            };
            fd.enable_cap(&enforce)
                .map_err(refused("enforce the paravirtual features in CPUID"))?;
            set_msrs(&fd)?;
            set_xcr0(&fd, cpuid.supported_xcr0());
            Ok(fd)
        })
        .collect()
}

/// What KVM tells of this VM's TSC; `trusted`: it can be reliable.
pub(super) fn counter(
    vm: &VmFd,
    boot_cpu: Option<&VcpuFd>,
    trusted: bool,
) -> Result<Counter, KvmError> {
    let tsc_khz = boot_cpu
        .map_or(Ok(0), VcpuFd::get_tsc_khz)
        .map_err(refused("tell the TSC's frequency"))?;
    // KVM finds out whether the vCPUs' TSCs agree when a vCPU runs, or when the clock is set.
    let _ = vm.set_clock(&kvm_bindings::kvm_clock_data::default());
    let reliable = vm
        .get_clock()
        .is_ok_and(|clock| clock.flags & KVM_CLOCK_TSC_STABLE != 0);
    Ok(Counter::new(
        u64::from(tsc_khz) * 1000,
        trusted && reliable,
        || boot_cpu.map_or(0, guest_tsc),
    ))
}

/// PIC, IOAPIC, LAPICs and PIT in KVM; the UART on top.
fn create_pc(vm: &VmFd, console: &Console) -> Result<Uart, VmError> {
    vm.create_irq_chip()
        .map_err(refused("create an interrupt controller"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit)
        .map_err(refused("create a timer chip"))?;
    Ok(Uart::new(interrupt(vm, uart::IRQ)?, console.clone()))
}

/// The IDE controller of a full guest that has disks.
fn create_ide(vm: &VmFd, config: &Config, memory: &Memory) -> Result<Option<Ide>, VmError> {
    if config.disks.is_empty() {
        return Ok(None);
    }
    let disks = config.disks.iter().map(Disk::open);
    let disks = disks.collect::<Result<_, _>>()?;
    let [first, second] = ide::IRQS;
    let irqs = [interrupt(vm, first)?, interrupt(vm, second)?];
    Ok(Some(Ide::new(disks, irqs, memory)))
}

/// The card of a full guest that has a network.
fn create_network(vm: &VmFd, config: &Config) -> Result<Option<Ne2000>, VmError> {
    let Some(net) = open_net(config)? else {
        return Ok(None);
    };
    let event = || EventFd::new(libc::EFD_NONBLOCK).map_err(host("event descriptor"));
    let (irq, ended) = (event()?, event()?);
    vm.register_irqfd_with_resample(&irq, &ended, ne2000::IRQ.into())
        .map_err(refused("connect a device's interrupt"))?;
    Ok(Some(Ne2000::new(net, irq, ended)))
}

/// A line of the interrupt controllers; a write to it is an edge.
fn interrupt(vm: &VmFd, line: u32) -> Result<EventFd, VmError> {
    let irq = EventFd::new(libc::EFD_NONBLOCK).map_err(host("event descriptor"))?;
    vm.register_irqfd(&irq, line)
        .map_err(refused("connect a device's interrupt"))?;
    Ok(irq)
}

/// LAPICs in KVM and nothing else.
fn create_split_irqchip(vm: &VmFd) -> Result<(), VmError> {
    let split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        args: [0, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&split)
        .map_err(refused("create LAPICs without an IOAPIC"))?;
    Ok(())
}

fn set_msrs(fd: &VcpuFd) -> Result<(), VmError> {
    for (index, data) in [
        (MSR_MISC_ENABLE, MISC_FAST_STRINGS),
        (MSR_MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK),
    ] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[entry]).map_err(|_| KvmError::Capability("MSR lists"))?;
        // A host that does not know one of them has nothing to set.
        let _ = fd.set_msrs(&msrs).map_err(refused("set a vCPU's MSRs"))?;
    }
    Ok(())
}

/// Switches on all extended state that CPUID reports.
///
/// A processor comes out of reset with x87 alone; firmware may have set more. QEMU 7.2's TCG, under
/// the reference host, does not exit on XSETBV, so that KVM would go on reporting the reset value's
/// area size (CPUID 0xd) to a kernel that has set XCR0 itself. Best effort: a host without XSAVE has
/// nothing to set.
fn set_xcr0(fd: &VcpuFd, value: u64) {
    if let Ok(mut xcrs) = fd.get_xcrs() {
        xcrs.nr_xcrs = 1;
        xcrs.xcrs[0] = kvm_xcr {
            xcr: 0,
            reserved: 0,
            value,
        };
        let _ = fd.set_xcrs(&xcrs);
    }
}

/// The guest's TSC now; 0 where KVM does not tell.
pub(super) fn guest_tsc(fd: &VcpuFd) -> u64 {
    let entry = kvm_msr_entry {
        index: MSR_TSC,
        ..Default::default()
    };
    let Ok(mut msrs) = Msrs::from_entries(&[entry]) else {
        return 0;
    };
    match fd.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice()[0].data,
        _ => 0,
    }
}
