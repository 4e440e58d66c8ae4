//! Facility `dev`, host side: virtio devices without a bus. ABI: `hypercall-abi/src/abi/dev.rs`.
//!
//! The devices are those of [`crate::virtio`]; here is how a para guest finds and starts them. KVM rings their doorbells itself, and a
//! notification is a message to a local APIC, so that neither comes through a vCPU's thread.

use std::mem::{offset_of, size_of};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, VmFd};
use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::{CallResult, Status};
use paravane_abi::dev::{
    DEV_DOORBELL_QUEUE_SHIFT, DEV_MAX, DEV_NEEDS_RESET, DEV_QUEUES_MAX, DevEntry, DevInfo,
    DevQueue, DevStart,
};
use paravane_abi::registry as reg;

use vmm_sys_util::eventfd::EventFd;

use super::event::{Event, route};
use super::{Args, DEV_TABLE, Facility, Reply, take};
use crate::kvm::{KvmError, refused};
use crate::memory::{Memory, MemoryError};
use crate::pause::Pause;
use crate::snapshot::{PartError, Saved, State, from_state, to_state};
use crate::sync::lock;
use crate::virtio::poll::Poll;
use crate::virtio::queue::{QUEUE_MAX, QueueError, QueueSetup};
use crate::virtio::unit::{Interrupt, Unit};
use crate::virtio::{CONFIG_MAX, Device, QUEUES_MAX};
use crate::vm::VmError;

/// The doorbell of all devices. No PC has a device there.
pub const DOORBELL_PORT: u16 = 0x78;

const _: () = assert!(CONFIG_MAX == paravane_abi::dev::DEV_CONFIG_BYTES);
const _: () = assert!(QUEUES_MAX <= DEV_QUEUES_MAX);
const _: () = assert!(DEV_MAX * size_of::<DevEntry>() <= reg::PAGE_SIZE);

/// Where the table has device number `index`.
const fn entry(index: u64) -> u64 {
    DEV_TABLE + index * size_of::<DevEntry>() as u64
}

/// The way from a device to its driver.
#[derive(Clone, Debug)]
struct Message {
    vm: Arc<VmFd>,
    memory: Memory,
    event: Arc<Event>,
    /// Where the table has the device.
    entry: u64,
    /// An interrupt that others can raise, where others serve the device.
    line: Option<Arc<EventFd>>,
}

impl Message {
    fn raise(&self) {
        if let Some(target) = self.event.target() {
            target.raise(&self.vm);
        }
    }

    fn set_state(&self, state: u32) {
        self.store(offset_of!(DevEntry, state), state);
    }

    fn store(&self, at: usize, word: u32) {
        let at = self.entry + at as u64;
        // The table is the VMM's own: it is in guest memory.
        let _ = self.memory.store_u32(at, word, Ordering::Release);
    }
}

impl Interrupt for Message {
    fn line(&self) -> Option<&EventFd> {
        self.line.as_deref()
    }

    fn queue_used(&self) {
        self.raise();
    }

    /// Spec: PV-DEV-12
    fn needs_reset(&self) {
        self.set_state(DEV_NEEDS_RESET);
        self.raise();
    }

    /// Spec: PV-DEV-2, PV-DEV-10
    fn config_changed(&self, at: usize, word: u32) {
        const GENERATION: usize = offset_of!(DevEntry, generation);
        let now = self
            .memory
            .load_u32(self.entry + GENERATION as u64, Ordering::Relaxed);
        self.store(offset_of!(DevEntry, config) + at, word);
        self.store(GENERATION, now.unwrap_or(0).wrapping_add(1));
        self.raise();
    }
}

#[derive(Debug)]
struct Slot {
    unit: Unit,
    message: Message,
}

/// The facility.
#[derive(Debug)]
pub struct Dev {
    vm: Arc<VmFd>,
    memory: Memory,
    vcpus: u8,
    slots: Vec<Slot>,
    /// Held while KVM is told of the routes, which are all devices' at once.
    routes: Mutex<()>,
}

impl Dev {
    /// Puts `devices`, at most [`DEV_MAX`], into the table of a guest with so many processors.
    ///
    /// # Errors
    ///
    /// No descriptor left, or KVM has refused doorbells.
    pub fn new(
        vm: &Arc<VmFd>,
        memory: &Memory,
        vcpus: u8,
        pause: &Arc<Pause>,
        poll: Poll,
        devices: Vec<Box<dyn Device>>,
    ) -> Result<Self, VmError> {
        let mut slots = Vec::new();
        for (mut device, number) in devices.into_iter().take(DEV_MAX).zip(0_u32..) {
            let is_lent = device.server().is_some();
            let line = is_lent.then(|| line(vm, number)).transpose()?;
            let message = Message {
                vm: Arc::clone(vm),
                memory: memory.clone(),
                event: Arc::default(),
                entry: entry(number.into()),
                line: line.map(Arc::new),
            };
            let interrupt = Box::new(message.clone());
            let unit = Unit::new(device, memory.clone(), interrupt, Arc::clone(pause));
            let unit = unit.map_err(no_descriptor)?.polling(poll);
            for (queue, doorbell) in (0_u32..).zip(unit.doorbells()) {
                let word = number | queue << DEV_DOORBELL_QUEUE_SHIFT;
                let port = IoEventAddress::Pio(DOORBELL_PORT.into());
                vm.register_ioevent(doorbell, &port, word)
                    .map_err(refused("connect a device's doorbell"))?;
            }
            slots.push(Slot { unit, message });
        }
        Ok(Self {
            vm: Arc::clone(vm),
            memory: memory.clone(),
            vcpus,
            slots,
            routes: Mutex::default(),
        })
    }

    /// Ends the work of all devices.
    pub fn stop_all(&self) {
        self.slots.iter().for_each(|slot| slot.unit.stop());
    }

    /// The devices.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.slots.iter().map(|slot| &slot.unit)
    }

    /// Tells KVM which message the line of each lent device is.
    fn route(&self) -> Result<(), KvmError> {
        let _held = lock(&self.routes);
        let routes = (0_u32..).zip(&self.slots).filter_map(|(number, slot)| {
            slot.message.line.as_ref()?;
            Some((number, slot.message.event.target()?))
        });
        route(&self.vm, routes)
    }

    /// Device number `number`.
    #[must_use]
    pub fn unit(&self, number: u32) -> Option<&Unit> {
        self.slot(number.into()).ok().map(|slot| &slot.unit)
    }

    fn slot(&self, number: u64) -> Result<&Slot, Status> {
        let index = usize::try_from(number).map_err(|_| Status::InvalidParam)?;
        self.slots.get(index).ok_or(Status::InvalidParam)
    }

    /// Spec: PV-DEV-3 to PV-DEV-7
    fn start(&self, args: &Args) -> CallResult {
        let [number, address] = take(args)?;
        let Slot { unit, message } = self.slot(number)?;
        if !address.is_multiple_of(size_of::<u64>() as u64) {
            return Err(Status::BadAddress);
        }
        let start: DevStart = self
            .memory
            .read_obj(address)
            .map_err(|_| Status::BadAddress)?;
        let (queues, others) = start.queues.split_at(unit.doorbells().len());
        if others.iter().any(|queue| *queue != DevQueue::default()) {
            return Err(Status::InvalidParam);
        }
        unit.check(start.features).map_err(|e| status(&e))?;
        let mut setups = [QueueSetup::default(); DEV_QUEUES_MAX];
        for (setup, queue) in setups.iter_mut().zip(queues) {
            *setup = set_up(queue)?;
        }
        // A device that works keeps its vector.
        let event = Event::default();
        event.name(
            &[start.vector.into(), start.apic_id.into(), 0, 0, 0, 0],
            self.vcpus,
        )?;
        if unit.is_started() {
            return Err(Status::Denied);
        }
        message.event.copy(&event);
        if unit.is_lent() {
            self.route().map_err(|_| Status::HostError)?;
        }
        unit.start(start.features, &setups)
            .map_err(|e| status(&e))?;
        Ok(0)
    }

    /// Spec: PV-DEV-11
    fn stop(&self, args: &Args) -> CallResult {
        let [number] = take(args)?;
        let Slot { unit, message } = self.slot(number)?;
        unit.stop();
        message.set_state(0);
        Ok(0)
    }
}

fn no_descriptor(reason: std::io::Error) -> VmError {
    VmError::Host {
        what: "event descriptor",
        reason,
    }
}

/// What KVM turns into the interrupt of device `number`, once there is a route for it.
fn line(vm: &VmFd, number: u32) -> Result<EventFd, VmError> {
    let line = EventFd::new(libc::EFD_NONBLOCK).map_err(no_descriptor)?;
    vm.register_irqfd(&line, number)
        .map_err(refused("connect a device's interrupt"))?;
    Ok(line)
}

/// Spec: PV-DEV-5
fn set_up(queue: &DevQueue) -> Result<QueueSetup, Status> {
    let size = u16::try_from(queue.size).map_err(|_| Status::InvalidParam)?;
    if !size.is_power_of_two() || size > QUEUE_MAX || queue.reserved != 0 {
        return Err(Status::InvalidParam);
    }
    Ok(QueueSetup {
        size,
        ready: true,
        descriptors: queue.descriptors,
        available: queue.available,
        used: queue.used,
    })
}

/// What a guest is told whose device has not begun.
fn status(error: &QueueError) -> Status {
    match error {
        QueueError::Features { .. } => Status::InvalidParam,
        QueueError::Busy => Status::Denied,
        QueueError::Host(_) => Status::HostError,
        // Sizes have been looked at.
        _ => Status::BadAddress,
    }
}

impl Saved for Arc<Dev> {
    /// Of each device its event, and how it works.
    fn save(&self) -> Result<State, PartError> {
        let slots = self.slots.iter().enumerate().map(|(number, slot)| {
            let saved = slot.unit.save();
            let saved = saved.map_err(|e| PartError(format!("has device {number}, which {e}")))?;
            Ok((slot.message.event.word(), saved))
        });
        to_state(&slots.collect::<Result<Vec<_>, _>>()?)
    }

    fn restore(&self, state: State) -> Result<(), PartError> {
        let saved: Vec<(u64, State)> = from_state(state)?;
        if saved.len() != self.slots.len() {
            return Err(PartError::because("it has another number of devices"));
        }
        for (slot, (event, unit)) in self.slots.iter().zip(saved) {
            slot.message.event.set_word(event, self.vcpus)?;
            slot.unit.restore(unit)?;
        }
        Ok(())
    }

    fn go_on(&self) {
        self.slots.iter().for_each(|slot| slot.unit.go_on());
    }
}

impl Facility for Arc<Dev> {
    fn id(&self) -> u32 {
        reg::FACILITY_DEV
    }

    /// Spec: PV-DEV-1, PV-DEV-2
    fn describe(&self, memory: &Memory, info: &mut BootInfo) -> Result<(), MemoryError> {
        let mut count = 0;
        for (Slot { unit, .. }, index) in self.slots.iter().zip(0..) {
            let row = DevEntry {
                kind: unit.kind(),
                queues: u32::try_from(unit.doorbells().len()).unwrap_or(0),
                queue_max: u32::from(QUEUE_MAX),
                features: unit.features(),
                config: unit.config(),
                ..DevEntry::default()
            };
            memory.write_obj(entry(index), &row)?;
            count += 1;
        }
        info.dev = DevInfo {
            address: DEV_TABLE,
            count,
            doorbell_port: u32::from(DOORBELL_PORT),
        };
        Ok(())
    }

    fn call(&self, function: u32, args: &Args) -> Reply {
        const FIRST: u32 = reg::FACILITY_DEV << 16;
        Reply::Resume(match FIRST | function {
            reg::CALL_DEV_START => self.start(args),
            reg::CALL_DEV_STOP => self.stop(args),
            _ => Err(Status::NotSupported),
        })
    }
}
