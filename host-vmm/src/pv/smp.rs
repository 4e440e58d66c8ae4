//! Facility `smp`, host side: which processors are on. ABI: `hypercall-abi/src/abi/smp.rs`.
//!
//! A processor that is off is a thread that waits here, outside of KVM: starting it is setting its
//! registers and entering KVM, both done by the thread itself.
//!
//! How many the host wants on stands in a page of the guest's; the guest follows when it can.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::{CallResult, Status};
use paravane_abi::registry as reg;
use paravane_abi::smp::{SMP_OFF, SMP_ON, SmpInfo, SmpPage};
use serde::{Deserialize, Serialize};

use super::event::{Event, EventTarget};
use super::{Args, Facility, Reply, SMP_PAGE, take};
use crate::memory::{Memory, MemoryError};
use crate::snapshot::{self, PartError, Saved, from_state, to_state};
use crate::sync::{lock, wait};

const WANTED: u64 = SMP_PAGE + offset_of!(SmpPage, wanted) as u64;

/// Where a processor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// RIP, virtual.
    pub rip: u64,
    /// RSP, virtual.
    pub rsp: u64,
    /// CR3, physical.
    pub root: u64,
    /// RDI.
    pub argument: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
enum Processor {
    Off,
    /// Somebody has called for it; its thread will find this, and set its registers.
    Called(Start),
    On,
}

#[derive(Debug)]
struct State {
    processors: Vec<Processor>,
    ended: bool,
}

/// The processors of one guest.
#[derive(Debug)]
pub struct Processors {
    state: Mutex<State>,
    changed: Condvar,
    vcpus: u8,
    wanted: AtomicU8,
    event: Event,
}

impl Processors {
    /// The first one on, all others off. Spec: PV-SMP-1
    #[must_use]
    pub fn new(vcpus: u8) -> Self {
        let mut processors = vec![Processor::Off; usize::from(vcpus)];
        if let Some(boot) = processors.first_mut() {
            *boot = Processor::On;
        }
        Self {
            state: Mutex::new(State {
                processors,
                ended: false,
            }),
            changed: Condvar::new(),
            vcpus,
            wanted: AtomicU8::new(0),
            event: Event::default(),
        }
    }

    /// Waits until processor `id` is called for. It is until it [`has_begun`](Self::has_begun): who pauses the machine in between finds
    /// its registers as they were. `None`: the run has ended.
    pub fn wait(&self, id: usize) -> Option<Start> {
        let mut state = lock(&self.state);
        loop {
            if state.ended {
                return None;
            }
            match state.processors.get(id)? {
                Processor::Called(start) => return Some(*start),
                Processor::On => return None,
                Processor::Off => {}
            }
            state = wait(&self.changed, state);
        }
    }

    /// Processor `id` has the registers that it was called for with.
    pub fn has_begun(&self, id: usize) {
        if let Some(processor) = lock(&self.state).processors.get_mut(id) {
            *processor = Processor::On;
        }
    }

    /// APIC ids of those that are on, or about to be.
    #[must_use]
    pub fn on(&self) -> Vec<usize> {
        let state = lock(&self.state);
        let all = state.processors.iter().enumerate();
        all.filter(|(_, processor)| **processor != Processor::Off)
            .map(|(id, _)| id)
            .collect()
    }

    /// Tells the guest how many processors the host wants on; 0: the host has no wish. Returns the event to raise.
    /// Spec: PV-SMP-10, PV-SMP-11
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`]: never, for a guest that has the page.
    pub fn want(&self, memory: &Memory, count: u8) -> Result<Option<EventTarget>, MemoryError> {
        let count = count.min(self.vcpus);
        self.wanted.store(count, Ordering::Relaxed);
        memory.store_u32(WANTED, u32::from(count), Ordering::SeqCst)?;
        Ok(self.event.target())
    }

    /// Whether processor `id` runs already, and need not be waited for.
    #[must_use]
    pub fn runs(&self, id: usize) -> bool {
        lock(&self.state).processors.get(id) == Some(&Processor::On)
    }

    /// How many the host wants on; `None`: it has no wish.
    #[must_use]
    pub fn wanted(&self) -> Option<u8> {
        let wanted = self.wanted.load(Ordering::Relaxed);
        (wanted > 0).then_some(wanted)
    }

    /// Whether the guest has asked to be told of a wish.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.event.target().is_some()
    }

    /// Processor `id` goes off.
    ///
    /// # Errors
    ///
    /// [`Status::Denied`] to the only one that is on, or about to be. Spec: PV-SMP-8
    pub fn switch_off(&self, id: usize) -> Result<(), Status> {
        let mut state = lock(&self.state);
        let others = state.processors.iter().enumerate();
        let mut others = others.filter(|(other, _)| *other != id);
        if others.all(|(_, processor)| *processor == Processor::Off) {
            return Err(Status::Denied);
        }
        state.processors[id] = Processor::Off;
        Ok(())
    }

    /// The run has ended: nobody waits any more.
    pub fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_all();
    }

    fn start(&self, id: u64, start: Start) -> CallResult {
        let mut state = lock(&self.state);
        let index = usize::try_from(id).map_err(|_| Status::InvalidParam)?;
        let processor = state
            .processors
            .get_mut(index)
            .ok_or(Status::InvalidParam)?;
        if *processor != Processor::Off {
            return Err(Status::Denied);
        }
        *processor = Processor::Called(start);
        self.changed.notify_all();
        Ok(0)
    }

    fn is_on(&self, id: u64) -> CallResult {
        let state = lock(&self.state);
        let index = usize::try_from(id).map_err(|_| Status::InvalidParam)?;
        match state.processors.get(index) {
            None => Err(Status::InvalidParam),
            Some(Processor::Off) => Ok(SMP_OFF),
            Some(Processor::Called(_) | Processor::On) => Ok(SMP_ON),
        }
    }
}

/// The facility.
#[derive(Debug)]
pub struct Smp {
    processors: Arc<Processors>,
    memory: Memory,
}

/// What a snapshot has of it: the processors, the host's wish, the event.
type SavedSmp = (Vec<Processor>, u8, u64);

impl Saved for Smp {
    fn save(&self) -> Result<snapshot::State, PartError> {
        let all = &self.processors;
        let processors = lock(&all.state).processors.clone();
        let saved: SavedSmp = (
            processors,
            all.wanted.load(Ordering::Relaxed),
            all.event.word(),
        );
        to_state(&saved)
    }

    fn restore(&self, state: snapshot::State) -> Result<(), PartError> {
        let all = &self.processors;
        let (processors, wanted, event): SavedSmp = from_state(state)?;
        let off = processors.iter().filter(|p| **p == Processor::Off).count();
        if processors.len() != usize::from(all.vcpus) || off == processors.len() {
            return Err(PartError::because("processors are missing, or all off"));
        }
        for processor in &processors {
            if let Processor::Called(start) = processor {
                self.check(start)
                    .map_err(|_| PartError::because("a processor cannot be started so"))?;
            }
        }
        all.event.set_word(event, all.vcpus)?;
        all.wanted.store(wanted.min(all.vcpus), Ordering::Relaxed);
        lock(&all.state).processors = processors;
        Ok(())
    }
}

/// Whether bits 63 to 47 are equal: with five levels of page tables more is possible, which a
/// processor that begins does not have.
const fn is_canonical(address: u64) -> bool {
    let top = address >> 47;
    top == 0 || top == 0x1_ffff
}

impl Smp {
    /// Calls for `processors`, whose page tables are in `memory`.
    #[must_use]
    pub fn new(processors: Arc<Processors>, memory: Memory) -> Self {
        Self { processors, memory }
    }

    /// Spec: PV-SMP-2 to PV-SMP-5
    fn start(&self, args: &Args) -> CallResult {
        let [id, rip, rsp, root, argument] = take(args)?;
        let start = Start {
            rip,
            rsp,
            root,
            argument,
        };
        match self.check(&start) {
            Err(Status::InvalidParam) => return Err(Status::InvalidParam),
            checked => self.processors.is_on(id).and(checked)?,
        }
        self.processors.start(id, start)
    }

    /// Whether a processor can begin so.
    fn check(&self, start: &Start) -> Result<(), Status> {
        if !is_canonical(start.rip) || !is_canonical(start.rsp) {
            return Err(Status::InvalidParam);
        }
        let page = reg::PAGE_SIZE;
        if !start.root.is_multiple_of(page as u64) || !self.memory.contains(start.root, page) {
            return Err(Status::BadAddress);
        }
        Ok(())
    }
}

impl Facility for Smp {
    fn id(&self) -> u32 {
        reg::FACILITY_SMP
    }

    fn describe(&self, _memory: &Memory, info: &mut BootInfo) -> Result<(), MemoryError> {
        info.smp = SmpInfo {
            address: SMP_PAGE,
            reserved: 0,
        };
        Ok(())
    }

    fn call(&self, function: u32, args: &Args) -> Reply {
        const FIRST: u32 = reg::FACILITY_SMP << 16;
        Reply::Resume(match FIRST | function {
            reg::CALL_SMP_START => self.start(args),
            reg::CALL_SMP_STOP => match take(args) {
                Ok([]) => return Reply::SwitchOff,
                Err(status) => Err(status),
            },
            reg::CALL_SMP_STATE => take(args).and_then(|[id]| self.processors.is_on(id)),
            reg::CALL_SMP_EVENT => self.processors.event.name(args, self.processors.vcpus),
            _ => Err(Status::NotSupported),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_has_no_registers_yet_is_saved_as_called_for() {
        let memory = Memory::new(32).unwrap();
        let processors = Arc::new(Processors::new(2));
        let smp = Smp::new(Arc::clone(&processors), memory.clone());
        let start = [1, 0x1000, 0x2000, 0x3000, 7, 0];
        assert_eq!(smp.call(0, &start), Reply::Resume(Ok(0)));
        let called = processors.wait(1).unwrap();
        // A pause comes here, and a snapshot: the copy begins as this one would.
        let copy = Arc::new(Processors::new(2));
        let restored = Smp::new(Arc::clone(&copy), memory).restore(smp.save().unwrap());
        assert!(restored.is_ok() && !copy.runs(1));
        assert_eq!(copy.wait(1), Some(called));
        processors.has_begun(1);
        assert!(processors.runs(1));
        assert_eq!(smp.call(0, &start), Reply::Resume(Err(Status::Denied)));
    }

    #[test]
    fn pv_smp_11_a_wish_raises_the_event_that_was_asked_for() {
        let memory = Memory::new(32).unwrap();
        let processors = Arc::new(Processors::new(4));
        let smp = Smp::new(Arc::clone(&processors), memory.clone());
        let page = || memory.load_u32(WANTED, Ordering::Relaxed).unwrap();
        assert_eq!(processors.want(&memory, 2).unwrap(), None);
        assert_eq!((page(), processors.wanted()), (2, Some(2)));
        let name = |vector| smp.call(3, &[vector, 1, 0, 0, 0, 0]);
        assert_eq!(name(0xf3), Reply::Resume(Ok(0)));
        let target = EventTarget {
            vector: 0xf3,
            apic_id: 1,
        };
        assert_eq!(processors.want(&memory, 3).unwrap(), Some(target));
        // Never more than there are. Spec: PV-SMP-10
        assert_eq!(processors.want(&memory, 200).unwrap(), Some(target));
        assert_eq!(page(), 4);
        assert_eq!(name(0), Reply::Resume(Ok(0)));
        assert_eq!(processors.want(&memory, 0).unwrap(), None);
        assert_eq!((page(), processors.wanted()), (0, None));
    }
}
