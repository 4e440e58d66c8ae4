//! Transport by registers in memory: virtio-mmio, version 2.
//!
//! An unmodified kernel learns from its command line where the registers are ([`MmioBus::cmdline`]), and each access to one is an exit.
//! The doorbell is a register as well, but KVM knows it: ringing it is an exit to KVM, and not to us.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, VmFd};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config as config;
use virtio_bindings::virtio_mmio as reg;
use vmm_sys_util::eventfd::EventFd;

use super::poll::Poll;
use super::queue::{QUEUE_MAX, QueueError, QueueSetup};
use super::unit::{Interrupt, Unit};
use super::{CONFIG_MAX, Device, QUEUES_MAX};
use crate::kvm::refused;
use crate::memory::Memory;
use crate::pause::Pause;
use crate::snapshot::{PartError, Saved, State, from_state, to_state};
use crate::sync::lock;
use crate::vm::VmError;

/// The first device's registers; no memory and no other device of a PC is there.
const FIRST: u64 = 0xd000_0000;
/// From one device's registers to the next.
const STRIDE: u64 = 0x1000;
/// Interrupt lines of a PC that nobody else has.
const LINES: [u32; 7] = [5, 6, 7, 9, 10, 11, 3];
/// The most devices.
pub const DEVICES_MAX: usize = LINES.len();
/// `virt`, as the magic number is spelt.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// `PVNE`.
const VENDOR: u32 = 0x454e_5650;

/// An interrupt line, and the register that says why.
#[derive(Debug)]
struct Line {
    line: EventFd,
    why: Arc<AtomicU32>,
}

impl Line {
    fn raise(&self, why: u32) {
        self.why.fetch_or(why, Ordering::SeqCst);
        // A counter that is full has raised it.
        let _ = self.line.write(1);
    }
}

impl Interrupt for Line {
    fn line(&self) -> Option<&EventFd> {
        Some(&self.line)
    }

    fn queue_used(&self) {
        self.raise(reg::VIRTIO_MMIO_INT_VRING);
    }

    fn needs_reset(&self) {
        self.raise(reg::VIRTIO_MMIO_INT_CONFIG);
    }

    fn config_changed(&self, _at: usize, _word: u32) {
        self.raise(reg::VIRTIO_MMIO_INT_CONFIG);
    }
}

/// What a driver has written.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    status: u32,
    features: u64,
    offered_half: u32,
    agreed_half: u32,
    queue: u32,
    queues: [QueueSetup; QUEUES_MAX],
}

/// A device and its registers.
#[derive(Debug)]
pub(super) struct MmioDevice {
    unit: Arc<Unit>,
    why: Arc<AtomicU32>,
    registers: Mutex<Registers>,
}

/// All devices with registers in memory.
#[derive(Debug, Default)]
pub struct MmioBus(Vec<MmioDevice>);

impl MmioBus {
    /// Gives registers to `devices`, at most [`DEVICES_MAX`].
    ///
    /// # Errors
    ///
    /// No descriptor left, or KVM has refused doorbells or interrupts.
    pub fn new(
        vm: &VmFd,
        memory: &Memory,
        pause: &Arc<Pause>,
        poll: Poll,
        devices: Vec<Box<dyn Device>>,
    ) -> Result<Self, VmError> {
        let host = |reason| VmError::Host {
            what: "event descriptor",
            reason,
        };
        let mut bus = Vec::new();
        for ((device, number), line) in devices.into_iter().zip(0..).zip(LINES) {
            let irq = EventFd::new(libc::EFD_NONBLOCK).map_err(host)?;
            vm.register_irqfd(&irq, line)
                .map_err(refused("connect a device's interrupt"))?;
            let why = Arc::new(AtomicU32::new(0));
            let interrupt = Box::new(Line {
                line: irq,
                why: Arc::clone(&why),
            });
            let unit = Unit::new(device, memory.clone(), interrupt, Arc::clone(pause));
            let unit = unit.map_err(host)?.polling(poll);
            let doorbell = FIRST + number * STRIDE + u64::from(reg::VIRTIO_MMIO_QUEUE_NOTIFY);
            for (queue, eventfd) in (0_u32..).zip(unit.doorbells()) {
                vm.register_ioevent(eventfd, &IoEventAddress::Mmio(doorbell), queue)
                    .map_err(refused("connect a device's doorbell"))?;
            }
            bus.push(MmioDevice::new(Arc::new(unit), why));
        }
        Ok(Self(bus))
    }

    /// What the kernel's command line has to say of so many devices.
    #[must_use]
    pub fn cmdline(devices: usize) -> String {
        let mut text = String::new();
        for (number, line) in (0_u64..).zip(LINES).take(devices) {
            let at = FIRST + number * STRIDE;
            // Writing to a String cannot fail.
            let _ = write!(text, " virtio_mmio.device=4K@{at:#x}:{line}");
        }
        text
    }

    fn find(&self, address: u64) -> Option<(&MmioDevice, u32)> {
        let offset = address.checked_sub(FIRST)?;
        let device = self.0.get(usize::try_from(offset / STRIDE).ok()?)?;
        Some((device, u32::try_from(offset % STRIDE).ok()?))
    }

    /// The guest reads at `address`; whether there is a device.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0);
        let Some((device, offset)) = self.find(address) else {
            return false;
        };
        device.read(offset, data);
        true
    }

    /// The guest writes to `address`; whether there is a device.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((device, offset)) = self.find(address) else {
            return false;
        };
        // Registers have four bytes; there is nothing to write in the configuration.
        if let Ok(value) = data.try_into() {
            device.write(offset, u32::from_le_bytes(value));
        }
        true
    }

    /// Ends the work of all devices.
    pub fn stop(&self) {
        self.0.iter().for_each(|device| device.unit.stop());
    }

    /// The devices.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.0.iter().map(|device| &*device.unit)
    }
}

/// What a snapshot has of a device: its registers, why it has interrupted, and how it works.
type SavedMmio = (Registers, u32, State);

impl Saved for MmioBus {
    fn save(&self) -> Result<State, PartError> {
        let devices = self.0.iter().enumerate().map(|(number, device)| {
            let unit = device.unit.save();
            let unit = unit.map_err(|e| PartError(format!("have number {number}, which {e}")))?;
            let registers = lock(&device.registers).clone();
            Ok((registers, device.why.load(Ordering::SeqCst), unit))
        });
        to_state(&devices.collect::<Result<Vec<SavedMmio>, _>>()?)
    }

    fn restore(&self, state: State) -> Result<(), PartError> {
        let saved: Vec<SavedMmio> = from_state(state)?;
        if saved.len() != self.0.len() {
            return Err(PartError::because("their number is another"));
        }
        for (device, (registers, why, unit)) in self.0.iter().zip(saved) {
            *lock(&device.registers) = registers;
            device.why.store(why, Ordering::SeqCst);
            device.unit.restore(unit)?;
        }
        Ok(())
    }

    fn go_on(&self) {
        self.0.iter().for_each(|device| device.unit.go_on());
    }
}

/// One half of a word; there is nothing beyond the second.
fn half(word: u64, which: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    match which {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_half(word: &mut u64, which: u32, value: u32) {
    match which {
        0 => *word = *word & !u64::from(u32::MAX) | u64::from(value),
        1 => *word = *word & u64::from(u32::MAX) | u64::from(value) << 32,
        _ => {}
    }
}

impl MmioDevice {
    pub(super) fn new(unit: Arc<Unit>, why: Arc<AtomicU32>) -> Self {
        Self {
            unit,
            why,
            registers: Mutex::default(),
        }
    }

    pub(super) fn read(&self, offset: u32, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG) {
            let at = usize::try_from(at).unwrap_or(CONFIG_MAX);
            let config = self.unit.config();
            for (to, from) in data.iter_mut().zip(config.get(at..).unwrap_or(&[])) {
                *to = *from;
            }
            return;
        }
        let value = self.register(offset).to_le_bytes();
        if data.len() == value.len() {
            data.copy_from_slice(&value);
        }
    }

    fn register(&self, offset: u32) -> u32 {
        let registers = lock(&self.registers);
        let queue = registers.queues.get(registers.queue as usize);
        let exists = (registers.queue as usize) < self.unit.doorbells().len();
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.unit.kind(),
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => half(self.unit.features(), registers.offered_half),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX if exists => u32::from(QUEUE_MAX),
            reg::VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(|queue| queue.ready).into(),
            // Who serves the queues elsewhere cannot say why: it is always they, too.
            reg::VIRTIO_MMIO_INTERRUPT_STATUS if self.unit.is_lent() => {
                self.why.load(Ordering::SeqCst) | reg::VIRTIO_MMIO_INT_VRING
            }
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.why.load(Ordering::SeqCst),
            reg::VIRTIO_MMIO_STATUS if self.unit.needs_reset() => {
                registers.status | config::VIRTIO_CONFIG_S_NEEDS_RESET
            }
            reg::VIRTIO_MMIO_STATUS => registers.status,
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.unit.generation(),
            // No shared memory: its length is all ones.
            reg::VIRTIO_MMIO_SHM_LEN_LOW | reg::VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            _ => 0,
        }
    }

    pub(super) fn write(&self, offset: u32, value: u32) {
        let mut registers = lock(&self.registers);
        let registers = &mut *registers;
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.offered_half = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.agreed_half = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES
                if registers.status & config::VIRTIO_CONFIG_S_FEATURES_OK == 0 =>
            {
                set_half(&mut registers.features, registers.agreed_half, value);
            }
            reg::VIRTIO_MMIO_QUEUE_SEL => registers.queue = value,
            reg::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.why.fetch_and(!value, Ordering::SeqCst);
            }
            reg::VIRTIO_MMIO_STATUS => self.set_status(registers, value),
            // Rung faster than KVM has connected it, or with a queue that is not there: nothing to do.
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => {}
            _ => set_up_queue(registers, offset, value),
        }
    }

    fn set_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            self.unit.stop();
            self.why.store(0, Ordering::SeqCst);
            *registers = Registers::default();
            return;
        }
        // Only a reset takes something back.
        let new = value & !registers.status & 0xff;
        registers.status |= new & !config::VIRTIO_CONFIG_S_NEEDS_RESET;
        if new & config::VIRTIO_CONFIG_S_FEATURES_OK != 0
            && let Err(QueueError::Features { .. }) = self.unit.check(registers.features)
        {
            // The driver reads it again, and sees that it is refused.
            registers.status &= !config::VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if new & config::VIRTIO_CONFIG_S_DRIVER_OK != 0
            && let Err(error) = self.unit.start(registers.features, &registers.queues)
        {
            self.unit.fails(&error);
        }
    }
}

/// A write to a register of the queue that is selected. A driver that has begun cannot change it.
fn set_up_queue(registers: &mut Registers, offset: u32, value: u32) {
    if registers.status & config::VIRTIO_CONFIG_S_DRIVER_OK != 0 {
        return;
    }
    let Some(queue) = registers.queues.get_mut(registers.queue as usize) else {
        return;
    };
    match offset {
        // A size that is too large is refused when the device begins.
        reg::VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
        reg::VIRTIO_MMIO_QUEUE_READY => queue.ready = value & 1 != 0,
        reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue.descriptors, 0, value),
        reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, 1, value),
        reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue.available, 0, value),
        reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue.available, 1, value),
        reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue.used, 0, value),
        reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue.used, 1, value),
        _ => {}
    }
}
