//! The machine: built, booted, run, stopped.

mod build;
mod look;
mod memory;
mod run;
mod snapshot;

pub use run::RunOptions;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_cpuid_entry2, kvm_msi, kvm_regs};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::awkward::Awkward;
use crate::boot::image::Image;
use crate::boot::{self, BootError, Loaded};
use crate::config::{Config, Profile};
use crate::console::Console;
use crate::crash::Symbols;
use crate::device::Ports;
use crate::device::mark::MARKS_MAX;
use crate::disk::DiskError;
use crate::disk::faults::Faults;
use crate::driver_domain::DriverDomain;
use crate::end::End;
use crate::gdb::debugger::Debugger;
use crate::kvm::counters::Counters;
use crate::kvm::{KvmError, refused};
use crate::lies::Liar;
use crate::memory::{Memory, MemoryError};
use crate::net::NetError;
use crate::pause::Pause;
use crate::port::PortError;
use crate::pv::clock::Clock;
use crate::pv::console::RingConsole;
use crate::pv::crash::LastWords;
use crate::pv::dev::Dev;
use crate::pv::event::EventTarget;
use crate::pv::mem::Mem;
use crate::pv::ring::Rings;
use crate::pv::smp::Processors;
use crate::pv::{self, Paravirt};
use crate::snapshot::SnapshotError;
use crate::stats::{self, ConsoleBytes, Mark, Outcome, Stats, VcpuCounts};
use crate::switcher;
use crate::sync::lock;
use crate::vcpu::PowerOn;
use crate::virtio::balloon::BalloonState;
use crate::virtio::mmio::MmioBus;
use crate::virtio::unit::{Unit, UnitStats};
use crate::virtio::vhost::vsock::VsockError;

/// The data word of a message that is a non-maskable interrupt.
const MSI_NMI: u32 = 4 << 8;

/// Why a machine could not be built or run.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel or initrd.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A disk's file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Sockets between guest and host.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The host's descriptors or threads.
    #[error(
        "the host has no {what} left: {reason}; end something, or allow more (`ulimit -n`, `ulimit -u`)"
    )]
    Host {
        /// What.
        what: &'static str,
        /// What the system says.
        reason: io::Error,
    },
}

pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> VmError {
    move |reason| VmError::Host { what, reason }
}

/// What all threads of a machine share.
#[derive(Debug)]
pub struct Machine {
    vm: Arc<VmFd>,
    /// Each is locked by its thread while that works: who has paused the machine can have them all.
    vcpus: Vec<Mutex<VcpuFd>>,
    /// How each is when its guest starts it, where it can.
    power_on: Vec<Option<PowerOn>>,
    /// What CPUID says on the boot processor.
    cpuid: Vec<kvm_cpuid_entry2>,
    /// The MSRs that this KVM can have.
    msrs: Vec<u32>,
    memory: Memory,
    console: Console,
    /// What had been put out before this run.
    console_before: u64,
    ports: Ports,
    virtio: MmioBus,
    dev: Option<Arc<Dev>>,
    /// Who serves its disks, where it is another guest.
    domain: Option<Arc<DriverDomain>>,
    pv: Paravirt,
    rings: Option<Arc<RingConsole>>,
    clock: Option<Arc<Clock>>,
    processors: Option<Arc<Processors>>,
    mem: Option<Arc<Mem>>,
    balloon: Option<Arc<BalloonState>>,
    awkward: Option<Arc<Awkward>>,
    liar: Option<Arc<Liar>>,
    /// There where the run has one.
    debugger: OnceLock<Debugger>,
    symbols: OnceLock<Symbols>,
    image: OnceLock<Image>,
    config: Config,
    wake: EventFd,
    end: Arc<End>,
    pause: Arc<Pause>,
    started: OnceLock<Started>,
    counters: Vec<Counters>,
    counts: Vec<Arc<VcpuCounts>>,
    marks: Mutex<Vec<Mark>>,
}

/// What is known once the machine runs.
#[derive(Debug)]
struct Started {
    at: Instant,
    setup_ns: u64,
    /// Class of the host.
    host: String,
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Machine {
    /// The console.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Port devices.
    #[must_use]
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Devices with registers in memory.
    #[must_use]
    pub fn virtio(&self) -> &MmioBus {
        &self.virtio
    }

    /// KVM's side of it.
    #[must_use]
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// Devices in a table, where the guest has facility dev.
    #[must_use]
    pub fn dev(&self) -> Option<&Dev> {
        self.dev.as_deref()
    }

    /// What the run is.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The vCPUs. To lock one waits until its thread stands still.
    #[must_use]
    pub fn vcpus(&self) -> &[Mutex<VcpuFd>] {
        &self.vcpus
    }

    /// The debugger's breakpoints, where the run has a debugger.
    #[must_use]
    pub fn debugger(&self) -> Option<&Debugger> {
        self.debugger.get()
    }

    /// Brings all threads to a stand.
    #[must_use]
    pub fn pause(&self) -> &Pause {
        &self.pause
    }

    /// How vCPU `id` is when its guest starts it.
    #[must_use]
    pub(crate) fn power_on(&self, id: usize) -> Option<&PowerOn> {
        self.power_on.get(id)?.as_ref()
    }

    /// Which processors are on, where the guest has facility smp.
    #[must_use]
    pub fn processors(&self) -> Option<&Processors> {
        self.processors.as_deref()
    }

    /// Paravane's facilities.
    #[must_use]
    pub fn pv(&self) -> &Paravirt {
        &self.pv
    }

    /// Whether vCPUs should come out for good.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.end.is_stopping()
    }

    /// Ends the run; the first to say so is the one who is believed.
    pub fn stop(&self, outcome: Outcome, message: Option<String>) {
        self.end.stop(outcome, message);
    }

    /// Ends the run for somebody who does not wait for the guest, nor until its output has been read.
    pub fn pull_the_plug(&self, outcome: Outcome, why: &str) {
        self.stop(outcome, Some(why.to_owned()));
        self.console.let_go();
    }

    /// Becomes readable when the machine stops.
    #[must_use]
    pub fn stopped_fd(&self) -> RawFd {
        self.end.fd()
    }

    /// Becomes readable when the event loop should look at the console ring.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn wake_fd(&self) -> io::Result<EventFd> {
        self.wake.try_clone()
    }

    /// The event loop's look at the output ring; returns whether it should look again.
    pub fn look_at_console(&self) -> bool {
        let Some(rings) = &self.rings else {
            return false;
        };
        if let Some(liar) = &self.liar {
            let (looks, event) = liar.look(&self.memory, self.config.vcpus);
            if let Some(target) = event {
                self.raise(target);
            }
            let _ = looks && rings.look().unwrap_or(false);
            return true;
        }
        let Some(awkward) = &self.awkward else {
            return rings.look().unwrap_or(false);
        };
        if let Some(target) = awkward.look(rings) {
            self.raise(target);
        }
        if let Some(count) = awkward.wish(self.config.vcpus) {
            let _ = self.want_processors(count);
        }
        if awkward.disrupts() {
            self.clock_has_jumped();
        }
        true
    }

    /// Gives terminal input to the guest, as far as it has room; returns how many bytes it took.
    pub fn input(&self, bytes: &[u8]) -> usize {
        // A guest without a console device takes, and loses, all.
        let Some(rings) = &self.rings else {
            return self
                .ports
                .with_uart(|uart| uart.input(bytes))
                .unwrap_or(bytes.len());
        };
        let Ok((event, taken)) = rings.input(bytes) else {
            return bytes.len();
        };
        if let Some(target) = event {
            self.raise(target);
        }
        taken
    }

    /// Tells the guest that its time of day does not follow from what it was told before: the host's clock has been
    /// stepped, or the machine has come from another host. Spec: PV-CLOCK-10
    pub fn clock_has_jumped(&self) {
        let disrupted = self.clock.as_ref().map(|clock| clock.disrupt(None));
        // The page is the VMM's own: it is in guest memory.
        if let Some(Ok(Some(target))) = disrupted {
            self.raise(target);
        }
    }

    /// Tells the guest that it goes on from a saved state, as the copy number `generation`: for whoever restores a machine,
    /// before its vCPUs go on. No earlier run of that state may have had the number. Spec: PV-BOOT-5, PV-STATE-2
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`]: never, for a guest that has the pages.
    pub fn has_been_restored(&self, generation: u64) -> Result<(), MemoryError> {
        self.pv.write_generation(&self.memory, generation)?;
        if let Some(clock) = &self.clock
            && let Some(target) = clock.disrupt(Some(generation))?
        {
            self.raise(target);
        }
        Ok(())
    }

    /// Raises an event of the guest.
    fn raise(&self, target: EventTarget) {
        target.raise(&self.vm);
    }

    /// What the virtio devices have done.
    fn unit_stats(&self) -> Vec<UnitStats> {
        let dev = self.dev.iter().flat_map(|dev| dev.units());
        let served = self.domain.iter().flat_map(|d| d.machine().unit_stats());
        let own = self.virtio.units().chain(dev).map(Unit::stats);
        own.chain(served).collect()
    }

    /// Ends the virtio devices' work: guest memory stays as it is.
    fn stop_devices(&self) {
        self.virtio.stop();
        if let Some(dev) = &self.dev {
            dev.stop_all();
        }
    }

    /// Asks the guest to have `count` processors on; whether it has facility smp.
    #[must_use]
    pub fn want_processors(&self, count: u8) -> bool {
        let Some(processors) = &self.processors else {
            return false;
        };
        if let Ok(Some(target)) = processors.want(&self.memory, count) {
            self.raise(target);
        }
        true
    }

    /// Sends the boot processor a non-maskable interrupt; whether KVM has taken it.
    #[must_use]
    pub fn send_nmi(&self) -> bool {
        let msi = kvm_msi {
            address_lo: 0xfee0_0000,
            data: MSI_NMI,
            ..Default::default()
        };
        self.vm.signal_msi(msi).is_ok()
    }

    /// The account of the run so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut kvm_stats = BTreeMap::new();
        self.counters.iter().for_each(|c| c.add_to(&mut kvm_stats));
        let started = self.started.get();
        let mut stats = Stats {
            guest: self.config.profile.name(),
            host: started.map_or_else(String::new, |started| started.host.clone()),
            vcpus: self.config.vcpus,
            mem_mib: self.config.memory_mib,
            outcome: Outcome::Running,
            message: None,
            setup_ns: started.map_or(0, |started| started.setup_ns),
            run_ns: self.elapsed_ns(),
            exits: self.exits(),
            user_exits: BTreeMap::new(),
            kvm_stats,
            hypercalls: BTreeMap::new(),
            crossings: self.crossings(),
            console: ConsoleBytes {
                out_bytes: self.console_bytes(),
                in_bytes: self.rings.as_ref().map_or(0, |rings| rings.in_bytes()),
            },
            marks: lock(&self.marks).clone(),
            devices: self.unit_stats(),
            disk_faults: self.disk_faults(),
            guest_memory: self
                .balloon
                .as_ref()
                .map_or_else(BTreeMap::new, |b| b.statistics()),
            processors: Vec::new(),
            console_tail: String::new(),
        };
        self.counts.iter().for_each(|counts| stats.add_vcpu(counts));
        // A call is a call, whichever way it came.
        for counts in self.pv.rings().into_iter().flat_map(Rings::counts) {
            stats.add_vcpu(counts);
        }
        stats
    }

    /// How often disks have failed because they were asked to.
    fn disk_faults(&self) -> Option<u64> {
        let faults = self.config.disks.iter().filter_map(|d| d.faults.as_ref());
        faults.map(Faults::failed).reduce(|a, b| a + b)
    }

    /// What has crossed the switchers of a direct guest.
    fn crossings(&self) -> BTreeMap<&'static str, u64> {
        let mut crossings = BTreeMap::new();
        if self.config.profile != Profile::Direct {
            return crossings;
        }
        for vcpu in 0..self.config.vcpus {
            // The area is in guest memory.
            let Ok(counted) = switcher::crossings(&self.memory, vcpu) else {
                continue;
            };
            for (kind, count) in switcher::area::kinds(&counted) {
                let sum: &mut u64 = crossings.entry(kind).or_default();
                *sum = sum.saturating_add(count);
            }
        }
        crossings
    }

    /// What this run has put out: a guest that restarts has its console from the run before.
    fn console_bytes(&self) -> u64 {
        self.console.bytes() - self.console_before
    }

    /// Exits of all vCPUs so far, by KVM's count.
    fn exits(&self) -> u64 {
        self.counters.iter().map(Counters::exits).sum()
    }

    /// Nanoseconds since the first instruction.
    #[must_use]
    pub fn elapsed_ns(&self) -> u64 {
        let started = self.started.get();
        started.map_or(0, |started| nanoseconds(started.at.elapsed()))
    }

    /// Stamps a milestone. What the guest has put into its output ring by then has been put out, as on a UART.
    pub fn mark(&self, code: u8) {
        if let Some(rings) = &self.rings {
            rings.last_look();
        }
        let mark = Mark {
            code,
            t_ns: self.elapsed_ns(),
            exits: self.exits(),
            user_exits: self.counts.iter().map(|c| c.total()).sum(),
            host_exits: self.counters.iter().map(Counters::host_exits).sum(),
            cpu_ns: stats::processor_time_ns(),
            console_out_bytes: self.console_bytes(),
        };
        let mut marks = lock(&self.marks);
        if marks.len() < MARKS_MAX {
            marks.push(mark);
        }
    }

    /// Whether the run has ended, and in this way.
    #[must_use]
    pub fn has_ended_as(&self, outcome: Outcome) -> bool {
        self.end.is(outcome)
    }
}

/// A machine that has not run yet.
#[derive(Debug)]
pub struct Vm {
    machine: Arc<Machine>,
    memory: Memory,
    last_words: LastWords,
    setup_started: Instant,
}

impl Vm {
    /// The awkward host, if it is one.
    #[must_use]
    pub fn awkward(&self) -> Option<&Awkward> {
        self.machine.awkward.as_deref()
    }

    /// What the threads of the machine share.
    #[must_use]
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Loads the kernel of the configuration and points the boot vCPU at it.
    ///
    /// # Errors
    ///
    /// [`VmError::Boot`].
    pub fn boot(&mut self) -> Result<(), VmError> {
        let loaded = boot::load(&self.machine.config, &self.memory)?;
        self.enter(&loaded)
    }

    /// Fills the boot-info page, and points the boot vCPU at something that is in memory already.
    ///
    /// # Errors
    ///
    /// KVM refused the registers.
    pub fn enter(&mut self, loaded: &Loaded) -> Result<(), VmError> {
        if let Some(mem) = &self.machine.mem {
            mem.loaded(loaded);
        } else if let Some(awkward) = &self.machine.awkward {
            // Nobody has said that any of it is zero.
            awkward.spoil(&self.memory, &mut pv::mem::fresh(loaded, &self.memory))?;
        }
        self.machine
            .pv
            .write_boot_info(&self.memory, self.machine.config.vcpus)?;
        if let Some(liar) = &self.machine.liar {
            liar.begin(&self.memory)?;
        }
        let Some(boot_cpu) = self.machine.vcpus.first() else {
            return Ok(());
        };
        let boot_cpu = &*lock(boot_cpu);
        let mut sregs = boot_cpu
            .get_sregs()
            .map_err(refused("tell a vCPU's registers"))?;
        let is_direct = self.machine.config.profile == Profile::Direct;
        if is_direct {
            switcher::special(&mut sregs, 0, switcher::BOOT_ROOT);
        } else {
            boot::regs::special(&mut sregs, loaded.mode);
        }
        boot_cpu
            .set_sregs(&sregs)
            .map_err(refused("set a vCPU's special registers"))?;
        boot_cpu
            .set_regs(&kvm_regs {
                rflags: if is_direct { switcher::RFLAGS } else { 2 },
                ..boot::regs::general(loaded)
            })
            .map_err(refused("set a vCPU's registers"))?;
        Ok(())
    }
}
