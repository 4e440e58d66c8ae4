//! The driver domain: another guest, which owns the disks and the network and serves them to this one (`--io driver-domain`).
//!
//! # How it works
//!
//! As under a microkernel hypervisor, a request goes from the guest's driver by way of another guest, the management
//! operating system with the drivers, to the device, and its answer the same way back. Here that guest is a small
//! program of its own (`benches/bare-metal/src/driver.rs`), in a machine of its own in this process, with one processor. Its devices
//! are those that this process serves, by facility dev, as any para guest's.
//!
//! The VMM sets up the sharing, and has no part in a request. The guest's memory is mapped into the domain, from
//! [`channel::WINDOW`] on; the guest's doorbell is an eventfd that KVM rings here and turns into an interrupt there, and
//! the way back is another one. Where the guest resets a device, or is paused, the domain is asked to end what it has
//! in work ([`channel`] has the words for it), so that memory stands still.

/// Where things are in the domain; it compiles the same file.
#[path = "../../benches/bare-metal/src/channel.rs"]
pub mod channel;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::IoEventAddress;
use paravane_abi::dev::{DEV_DOORBELL_QUEUE_SHIFT, DevQueue, DevStart};
use paravane_abi::registry as reg;
use vmm_sys_util::eventfd::EventFd;

use crate::config::{Config, FacilitySet, Profile};
use crate::console::Console;
use crate::kvm::counters::Counters;
use crate::memory::{Memory, MemoryError};
use crate::pv::DOORBELL_PORT;
use crate::pv::dev::DOORBELL_PORT as DEV_DOORBELL_PORT;
use crate::pv::event::{EventTarget, route};
use crate::stats::Outcome;
use crate::sync::lock;
use crate::virtio::{COMMON_FEATURES, CONFIG_MAX, Device, Lent, Server};
use crate::vm::{Machine, RunOptions, Vm, VmError, host};
use channel as at;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

static ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/driver-domain"));

/// The interrupt line of all doorbells in the domain.
const LINE: u32 = 0;
/// How long the domain may take to begin or to end its work on a queue.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_micros(200);

/// A domain at work.
#[derive(Debug)]
pub struct DriverDomain {
    machine: Arc<Machine>,
    memory: Memory,
    /// Of each device: readable where the domain's guest has broken the rules, or the domain has ended.
    broken: Vec<Arc<EventFd>>,
    /// Of its processor, for whoever adds them to the guest's.
    counters: Mutex<Vec<Counters>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl DriverDomain {
    /// Starts a domain with the disks and the network of `config`, for the guest that has `guest` as memory.
    ///
    /// # Errors
    ///
    /// [`VmError`], as for any guest.
    pub fn start(config: &Config, guest: &Memory) -> Result<Arc<Self>, VmError> {
        let kernel = image().map_err(host("memory"))?;
        let domain = Config {
            facilities: FacilitySet::parse("dev,irq").unwrap_or_default(),
            disks: config.disks.clone(),
            net: config.net.clone(),
            open_net: config.open_net.clone(),
            ..Config::of(Profile::Para, kernel.into())
        };
        let console = Console::memory().map_err(host("memory"))?;
        let memory = Memory::new(domain.memory_mib)?.with_window(at::WINDOW, guest)?;
        let mut vm = Vm::with_memory(domain, memory, console, Instant::now())?;
        vm.boot()?;
        let (machine, memory) = (Arc::clone(vm.machine()), vm.memory().clone());
        let has_no_eoi = machine.pv().facilities().has(reg::FACILITY_IRQ);
        let devices = machine.dev().map_or(0, |dev| dev.units().count());
        let count = u32::try_from(devices.min(at::CHANNELS_MAX)).unwrap_or(0);
        memory.write_obj(at::CHANNELS, &count)?;
        memory.write_obj(at::CALL_PORT, &DOORBELL_PORT)?;
        memory.write_obj(at::DOORBELL, &DEV_DOORBELL_PORT)?;
        memory.write_obj(at::HAS_NO_EOI, &u32::from(has_no_eoi))?;
        memory.write_obj(at::GUEST_END, &guest.bytes())?;
        route(machine.vm(), [(LINE, EVENT)])?;
        let broken = (0..count).map(|_| EventFd::new(libc::EFD_NONBLOCK).map(Arc::new));
        let broken: Vec<_> = broken
            .collect::<io::Result<_>>()
            .map_err(host("descriptor"))?;
        for (number, broken) in (0_u32..).zip(&broken) {
            let word = number | at::EVENT_BROKEN;
            connect(&machine, broken, word).map_err(host("doorbell"))?;
        }
        // Before its thread has them for good.
        let vcpus = machine.vcpus().iter();
        let counters = vcpus.filter_map(|vcpu| Counters::open(&*vcpu.lock().ok()?));
        let counters = counters.collect();
        let ended = broken.clone();
        let thread = std::thread::Builder::new()
            .name("domain".to_owned())
            .spawn(move || {
                // How it ends is of no interest to anybody but its guest, whose devices are broken then.
                let _ = vm.run(RunOptions::default());
                for broken in ended {
                    let _ = broken.write(1);
                }
            })
            .map_err(host("thread"))?;
        Ok(Arc::new(Self {
            machine,
            memory,
            broken,
            counters: Mutex::new(counters),
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// The domain's machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What KVM counts of its processor.
    #[must_use]
    pub fn counters(&self) -> Vec<Counters> {
        self.counters
            .lock()
            .map_or_else(|_| Vec::new(), |mut c| std::mem::take(&mut *c))
    }

    /// What the guest gets: a device for each one of the domain's, which the domain serves.
    #[must_use]
    pub fn devices(self: &Arc<Self>) -> Vec<Box<dyn Device>> {
        let device = |(number, broken): (u32, &Arc<EventFd>)| {
            let own = self.machine.dev()?.unit(number)?;
            let device = DomainDevice {
                domain: Arc::clone(self),
                number,
                base: at::FIRST + u64::from(number) * at::STRIDE,
                kind: own.kind(),
                queues: own.doorbells().len().min(at::QUEUES_MAX),
                features: own.features() & !COMMON_FEATURES,
                config: own.config(),
                broken: Arc::clone(broken),
            };
            Some(Box::new(device) as Box<dyn Device>)
        };
        (0..).zip(&self.broken).filter_map(device).collect()
    }
}

/// The domain's program as the loader wants it, a file. It is nowhere but in memory, and made once: a process that is confined makes none.
fn image() -> io::Result<String> {
    static IMAGE: OnceLock<File> = OnceLock::new();
    let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    if let Some(file) = IMAGE.get() {
        return Ok(path(file));
    }
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"driver-domain".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is ours alone.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(ELF)?;
    Ok(path(IMAGE.get_or_init(|| file)))
}

impl Drop for DriverDomain {
    fn drop(&mut self) {
        self.machine.stop(Outcome::PowerOff, None);
        let thread = lock(&self.thread).take();
        // One that has panicked has ended as well.
        let _ = thread.map(JoinHandle::join);
    }
}

/// The domain's only interrupt.
const EVENT: EventTarget = EventTarget {
    vector: at::VECTOR,
    apic_id: 0,
};

/// What the domain writes to is `word`, and rings `eventfd`.
fn connect(machine: &Machine, eventfd: &EventFd, word: u32) -> io::Result<()> {
    let port = IoEventAddress::Pio(at::EVENT_PORT.into());
    let connected = machine.vm().register_ioevent(eventfd, &port, word);
    connected.map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

/// A device of the domain's, as its guest has it.
#[derive(Debug)]
struct DomainDevice {
    domain: Arc<DriverDomain>,
    number: u32,
    /// Its channel.
    base: u64,
    kind: u32,
    queues: usize,
    features: u64,
    config: [u8; CONFIG_MAX],
    broken: Arc<EventFd>,
}

impl DomainDevice {
    fn wants(&self, wanted: u32) -> Result<(), MemoryError> {
        let at = self.base + at::WANTED;
        self.domain.memory.store_u32(at, wanted, Ordering::SeqCst)?;
        EVENT.raise(self.domain.machine.vm());
        Ok(())
    }

    /// Waits until the domain serves the guest, or does not; it may have broken the rules by then.
    fn wait_until(&self, idle: bool) -> io::Result<()> {
        let since = Instant::now();
        loop {
            let at = self.base + at::STATE;
            let state = self.domain.memory.load_u32(at, Ordering::SeqCst);
            if (state.map_err(io::Error::other)? == at::IDLE) == idle {
                return Ok(());
            }
            if since.elapsed() > PATIENCE || self.domain.machine.is_stopping() {
                return Err(io::Error::other("the driver domain does not answer"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Takes doorbell and interrupt from the domain, if it has them.
    fn disconnect(&self, lent: &Lent<'_>) {
        let vm = self.domain.machine.vm();
        let port = IoEventAddress::Pio(at::EVENT_PORT.into());
        for doorbell in lent.doorbells {
            let _ = vm.unregister_irqfd(doorbell, LINE);
        }
        let _ = vm.unregister_ioevent(lent.interrupt, &port, self.number);
    }

    /// Describes the guest's queues, and those that the domain has for its own device.
    fn describe(&self, lent: &Lent<'_>) -> Result<(), MemoryError> {
        let memory = &self.domain.memory;
        let mut start = DevStart {
            features: lent.features,
            vector: at::VECTOR.into(),
            ..DevStart::default()
        };
        for ((index, queue), own) in (0_u32..).zip(lent.queues).zip(&mut start.queues) {
            let base = self.base + at::QUEUE + u64::from(index) * at::QUEUE_STRIDE;
            let ring = self.number | index << DEV_DOORBELL_QUEUE_SHIFT;
            memory.write_obj(base + at::SIZE, &queue.size)?;
            memory.write_obj(base + at::RING, &ring)?;
            memory.write_obj(base + at::DESCRIPTORS, &queue.descriptors)?;
            memory.write_obj(base + at::AVAILABLE, &queue.available)?;
            memory.write_obj(base + at::USED, &queue.used)?;
            *own = DevQueue {
                descriptors: base + at::OWN_DESCRIPTORS,
                available: base + at::OWN_AVAILABLE,
                used: base + at::OWN_USED,
                size: queue.size.into(),
                reserved: 0,
            };
        }
        let count = u32::try_from(lent.queues.len()).unwrap_or(0);
        memory.write_obj(self.base + at::QUEUES, &count)?;
        memory.write_obj(self.base + at::START, &start)
    }
}

impl Server for DomainDevice {
    fn begin(&mut self, lent: &Lent<'_>) -> io::Result<()> {
        self.describe(lent).map_err(io::Error::other)?;
        // What an attempt that has failed may have left.
        self.disconnect(lent);
        let domain = &self.domain.machine;
        connect(domain, lent.interrupt, self.number)?;
        for doorbell in lent.doorbells {
            let rung = domain.vm().register_irqfd(doorbell, LINE);
            rung.map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        }
        self.wants(1).map_err(io::Error::other)?;
        self.wait_until(false)
    }

    fn end(&mut self, lent: &Lent<'_>) -> io::Result<()> {
        self.wants(0).map_err(io::Error::other)?;
        self.wait_until(true)?;
        self.disconnect(lent);
        Ok(())
    }
}

impl Device for DomainDevice {
    fn kind(&self) -> u32 {
        self.kind
    }

    fn name(&self) -> &'static str {
        "domain"
    }

    /// The domain's program is small: no tables of descriptors, and no event indices.
    fn common_features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queues(&self) -> usize {
        self.queues
    }

    fn config(&self) -> [u8; CONFIG_MAX] {
        self.config
    }

    fn begin(&mut self, _features: u64) {
        let _ = self.broken.read();
    }

    fn backend(&self) -> Option<RawFd> {
        Some(self.broken.as_raw_fd())
    }

    fn server(&mut self) -> Option<&mut dyn Server> {
        Some(self)
    }
}
