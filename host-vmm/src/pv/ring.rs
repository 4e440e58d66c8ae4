//! Facility `ring`, host side: submission rings. ABI: `hypercall-abi/src/abi/ring.rs`.
//!
//! # How it works
//!
//! A vCPU that submits drains its ring itself. Where the ring is exitless, it then promises that the
//! poller will look (`host_looks`) and wakes it. The poller is one thread for all rings of a guest,
//! started when a guest first asks for an exitless ring; it looks at the rings with a promise, one
//! after the other. From a ring in which it has found nothing for [`IDLE`] it takes the promise back
//! ([`stop_looking`]); without a promise left it sleeps.
//!
//! Each ring has a lock, which its vCPU and the poller take; vCPUs share none, but for the one that
//! wakes a sleeping poller. Whoever holds a ring's lock completes at most as many entries as the ring
//! has, so nobody waits for long.
//!
//! An entry is copied before anything of it is looked at, and the indices are the host's own copies,
//! so that a guest that writes meanwhile confuses itself only.

use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use paravane_abi::call::{CallId, Status};
use paravane_abi::console::ring_used;
use paravane_abi::registry as reg;
use paravane_abi::ring::{
    RING_EXITLESS, RingEntry, RingHeader, entry_offset, is_ring_size, ring_bytes,
};
use serde::{Deserialize, Serialize};

use super::looks::{Looked, stop_looking};
use super::{Args, Calls, Facility, Reply, take};
use crate::confine;
use crate::end::End;
use crate::memory::{Memory, MemoryError};
use crate::pause::Pause;
use crate::snapshot::{PartError, Saved, State, from_state, to_state};
use crate::stats::{Outcome, VcpuCounts};
use crate::sync::{lock, wait};

/// How long the poller looks at a ring in which it finds nothing.
const IDLE: Duration = Duration::from_millis(5);
/// Rounds without an entry after which the poller lets others have its processor.
const SPINS: u32 = 200;

const HEAD: u64 = offset_of!(RingHeader, head) as u64;
const TAIL: u64 = offset_of!(RingHeader, tail) as u64;
const HOST_LOOKS: u64 = offset_of!(RingHeader, host_looks) as u64;
const STATUS: usize = offset_of!(RingEntry, status);
const ARGS: usize = offset_of!(RingEntry, args);

/// A registered ring.
///
/// # Invariants
///
/// `entries` is a power of two, and the whole ring lies in guest memory.
#[derive(Debug)]
struct Ring {
    address: u64,
    entries: u32,
    exitless: bool,
    /// The host's own copy: the page's is for the guest to read, and it may write what it likes.
    tail: u32,
    /// When the poller began to find nothing.
    idle_since: Option<Instant>,
}

/// A vCPU's place for a ring.
#[derive(Debug, Default)]
struct Slot {
    ring: Mutex<Option<Ring>>,
    /// Whether the poller has promised to look; written under the ring's lock.
    looking: AtomicBool,
    /// Whether it had when the machine was saved from which this one goes on.
    looked: AtomicBool,
    /// Entries by call; written under the ring's lock.
    counts: VcpuCounts,
}

/// What vCPUs and poller share.
#[derive(Debug)]
struct Shared {
    memory: Memory,
    calls: Arc<Calls>,
    exitless: bool,
    end: Arc<End>,
    pause: Arc<Pause>,
    slots: Box<[Slot]>,
    /// Whether there is something new to look at.
    news: Mutex<bool>,
    wake: Condvar,
    closing: AtomicBool,
}

/// The facility.
#[derive(Debug)]
pub struct Rings {
    shared: Arc<Shared>,
    poller: Mutex<Option<JoinHandle<()>>>,
}

/// A drain's outcome.
#[derive(Clone, Copy, Debug, Default)]
struct Drained {
    /// Entries that have been completed.
    completed: u32,
    /// Whether there was anything, completed or not.
    found: bool,
    /// An entry has stopped the machine.
    stop: Option<Outcome>,
}

impl Rings {
    /// Places for `vcpus` rings in `memory`, whose entries `calls` carries out; `exitless`: with a
    /// poller, for guests that ask for it. A call that stops the machine from the poller stops it by
    /// `end`. The poller stands still during a `pause`.
    #[must_use]
    pub fn new(
        memory: Memory,
        calls: Arc<Calls>,
        vcpus: u8,
        exitless: bool,
        end: Arc<End>,
        pause: Arc<Pause>,
    ) -> Self {
        let shared = Shared {
            memory,
            calls,
            exitless,
            end,
            pause,
            slots: (0..vcpus).map(|_| Slot::default()).collect(),
            news: Mutex::new(false),
            wake: Condvar::new(),
            closing: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
            poller: Mutex::new(None),
        }
    }

    /// Spec: PV-RING-2, PV-RING-3
    fn register(&self, args: &Args) -> Result<u64, Status> {
        let [apic_id, address, entries, flags] = take(args)?;
        let shared = &self.shared;
        let slot = shared.slot(apic_id)?;
        let entries = u32::try_from(entries)
            .ok()
            .filter(|entries| is_ring_size(*entries))
            .ok_or(Status::InvalidParam)?;
        let known = if shared.exitless { RING_EXITLESS } else { 0 };
        if flags & !known != 0 {
            return Err(Status::InvalidParam);
        }
        let bytes = usize::try_from(ring_bytes(entries)).map_err(|_| Status::BadAddress)?;
        if address % reg::PAGE_SIZE as u64 != 0 || !shared.memory.contains(address, bytes) {
            return Err(Status::BadAddress);
        }
        let mut place = lock(&slot.ring);
        if place.is_some() {
            return Err(Status::Denied);
        }
        let exitless = flags & RING_EXITLESS != 0;
        if exitless {
            self.start_poller()?;
        }
        let store = |field, value| {
            let memory = &shared.memory;
            memory.store_u32(address + field, value, Ordering::Release)
        };
        store(HOST_LOOKS, 0)
            .and_then(|()| store(TAIL, 0))
            .map_err(|_| Status::HostError)?;
        // INVARIANT: both have been checked above.
        *place = Some(Ring {
            address,
            entries,
            exitless,
            tail: 0,
            idle_since: None,
        });
        Ok(0)
    }

    /// Spec: PV-RING-4
    fn unregister(&self, args: &Args) -> Result<u64, Status> {
        let [apic_id] = take(args)?;
        let slot = self.shared.slot(apic_id)?;
        let mut place = lock(&slot.ring);
        place.take().ok_or(Status::Denied)?;
        slot.looking.store(false, Ordering::Release);
        Ok(0)
    }

    /// Spec: PV-RING-5
    fn submit(&self, args: &Args) -> Result<Reply, Status> {
        let [apic_id] = take(args)?;
        let shared = &self.shared;
        let slot = shared.slot(apic_id)?;
        let mut place = lock(&slot.ring);
        let ring = place.as_mut().ok_or(Status::Denied)?;
        let drained = shared
            .drain(slot, ring)
            .map_err(|_: MemoryError| Status::HostError)?;
        if let Some(outcome) = drained.stop {
            return Ok(Reply::Stop(outcome));
        }
        if ring.exitless && !slot.looking.load(Ordering::Relaxed) {
            ring.idle_since = None;
            shared
                .tell(ring, true)
                .map_err(|_: MemoryError| Status::HostError)?;
            slot.looking.store(true, Ordering::Release);
            *lock(&shared.news) = true;
            shared.wake.notify_one();
        }
        Ok(Reply::Resume(Ok(u64::from(drained.completed))))
    }

    fn start_poller(&self) -> Result<(), Status> {
        let mut poller = lock(&self.poller);
        if poller.is_none() {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name("poller".to_owned())
                .spawn(move || {
                    // The process may not be confined yet, until a guest runs.
                    shared.sleep();
                    // It carries out a vCPU's calls.
                    confine::thread(confine::Thread::Vcpu);
                    shared.poll();
                })
                .map_err(|_| Status::HostError)?;
            *poller = Some(thread);
        }
        Ok(())
    }

    /// Ends the poller; no ring is looked at after that.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        *lock(&self.shared.news) = true;
        self.shared.wake.notify_one();
        let poller = lock(&self.poller).take();
        // One that has panicked has ended, too.
        let _ = poller.map(JoinHandle::join);
    }

    /// Whether a guest has asked for an exitless ring.
    #[must_use]
    pub fn has_poller(&self) -> bool {
        lock(&self.poller).is_some()
    }

    /// Entries by call, for each vCPU's ring.
    pub fn counts(&self) -> impl Iterator<Item = &VcpuCounts> {
        self.shared.slots.iter().map(|slot| &slot.counts)
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn slot(&self, apic_id: u64) -> Result<&Slot, Status> {
        usize::try_from(apic_id)
            .ok()
            .and_then(|index| self.slots.get(index))
            .ok_or(Status::InvalidParam)
    }

    fn tell(&self, ring: &Ring, looks: bool) -> Result<(), MemoryError> {
        let at = ring.address + HOST_LOOKS;
        self.memory
            .store_u32(at, u32::from(looks), Ordering::Relaxed)
    }

    /// Completes the entries that are there now. Spec: PV-RING-6 to PV-RING-11
    fn drain(&self, slot: &Slot, ring: &mut Ring) -> Result<Drained, MemoryError> {
        let head = self
            .memory
            .load_u32(ring.address + HEAD, Ordering::Acquire)?;
        let mut drained = Drained {
            found: head != ring.tail,
            ..Drained::default()
        };
        let Some(waiting) = ring_used(head, ring.tail, ring.entries) else {
            // A head that cannot be true empties the ring: nothing of it is carried out.
            ring.tail = head;
            self.publish_tail(ring)?;
            return Ok(drained);
        };
        for _ in 0..waiting {
            if self.end.is_stopping() {
                break;
            }
            let at = ring.address + entry_offset(ring.tail, ring.entries);
            let mut entry: RingEntry = self.memory.read_obj(at)?;
            let id = CallId(entry.call);
            slot.counts.call(id);
            let result = match self.carry_out(id, &entry.args) {
                Reply::Resume(result) => result,
                // An entry has no calling processor. Spec: PV-SMP-7
                Reply::SwitchOff => Err(Status::InvalidParam),
                Reply::Stop(outcome) => {
                    drained.stop = Some(outcome);
                    break;
                }
            };
            let (status, value) = Status::encode(result);
            entry.value = value;
            // Statuses are small numbers.
            entry.status = i32::try_from(status).unwrap_or(i32::MIN);
            let written = &zerocopy::IntoBytes::as_bytes(&entry)[STATUS..ARGS];
            self.memory.write(at + STATUS as u64, written)?;
            ring.tail = ring.tail.wrapping_add(1);
            self.publish_tail(ring)?;
            drained.completed += 1;
        }
        Ok(drained)
    }

    fn publish_tail(&self, ring: &Ring) -> Result<(), MemoryError> {
        let at = ring.address + TAIL;
        self.memory.store_u32(at, ring.tail, Ordering::Release)
    }

    /// Spec: PV-RING-8
    fn carry_out(&self, id: CallId, args: &Args) -> Reply {
        if id.facility() == reg::FACILITY_RING {
            return Reply::Resume(Err(Status::InvalidParam));
        }
        self.calls.carry_out(id, args)
    }

    /// The poller's thread.
    fn poll(&self) {
        let mut quiet = 0;
        self.pause.begin(Pause::poller());
        while !self.closing.load(Ordering::Acquire) && !self.end.is_stopping() {
            self.pause.checkpoint(Pause::poller());
            match self.look() {
                Look::Nowhere => {
                    self.pause.rest(Pause::poller());
                    self.sleep();
                    self.pause.begin(Pause::poller());
                    quiet = 0;
                }
                Look::Found => quiet = 0,
                Look::Nothing if quiet < SPINS => {
                    quiet += 1;
                    std::hint::spin_loop();
                }
                Look::Nothing => std::thread::yield_now(),
            }
        }
        self.pause.rest(Pause::poller());
    }

    /// Sleeps until a ring is promised a look.
    fn sleep(&self) {
        let mut news = lock(&self.news);
        while !*news {
            news = wait(&self.wake, news);
        }
        *news = false;
    }

    /// One round over all rings with a promise.
    fn look(&self) -> Look {
        let mut round = Look::Nowhere;
        for slot in &self.slots {
            if !slot.looking.load(Ordering::Acquire) {
                continue;
            }
            round = round.max(Look::Nothing);
            let mut place = match slot.ring.try_lock() {
                Ok(place) => place,
                Err(TryLockError::Poisoned(place)) => place.into_inner(),
                // Its vCPU drains it just now.
                Err(TryLockError::WouldBlock) => continue,
            };
            let Some(ring) = place.as_mut() else { continue };
            if !slot.looking.load(Ordering::Relaxed) {
                // Another ring by now, and nobody has asked for a look at this one.
                continue;
            }
            match self.look_at(slot, ring) {
                Ok(found) => round = round.max(found),
                // Never, for a ring that lies in guest memory.
                Err(_) => slot.looking.store(false, Ordering::Release),
            }
        }
        round
    }

    fn look_at(&self, slot: &Slot, ring: &mut Ring) -> Result<Look, MemoryError> {
        if self.take_by_poller(slot, ring)? {
            ring.idle_since = None;
            return Ok(Look::Found);
        }
        let now = Instant::now();
        let since = *ring.idle_since.get_or_insert(now);
        if now.duration_since(since) < IDLE {
            return Ok(Look::Nothing);
        }
        ring.idle_since = None;
        let stopped = stop_looking(&mut Polled {
            shared: self,
            slot,
            ring,
        })?;
        if stopped {
            slot.looking.store(false, Ordering::Release);
        }
        Ok(if stopped { Look::Nothing } else { Look::Found })
    }

    /// Drains; returns whether there was anything.
    fn take_by_poller(&self, slot: &Slot, ring: &mut Ring) -> Result<bool, MemoryError> {
        let drained = self.drain(slot, ring)?;
        if let Some(outcome) = drained.stop {
            self.end.stop(outcome, None);
        }
        Ok(drained.found)
    }
}

/// What a round has come to, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Look {
    /// No ring has a promise.
    Nowhere,
    /// Nothing has come.
    Nothing,
    /// There were entries.
    Found,
}

/// A ring in the poller's hands.
struct Polled<'a> {
    shared: &'a Shared,
    slot: &'a Slot,
    ring: &'a mut Ring,
}

impl Looked for Polled<'_> {
    type Error = MemoryError;

    fn tell(&mut self, looks: bool) -> Result<(), MemoryError> {
        self.shared.tell(self.ring, looks)
    }

    fn take(&mut self) -> Result<u32, MemoryError> {
        let found = self.shared.take_by_poller(self.slot, self.ring)?;
        Ok(u32::from(found))
    }
}

/// What a snapshot has of a ring.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SavedRing {
    address: u64,
    entries: u32,
    exitless: bool,
    tail: u32,
    looking: bool,
}

impl Saved for Rings {
    fn save(&self) -> Result<State, PartError> {
        let rings = self.shared.slots.iter().map(|slot| {
            lock(&slot.ring).as_ref().map(|ring| SavedRing {
                address: ring.address,
                entries: ring.entries,
                exitless: ring.exitless,
                tail: ring.tail,
                looking: slot.looking.load(Ordering::Relaxed),
            })
        });
        to_state(&rings.collect::<Vec<_>>())
    }

    fn restore(&self, state: State) -> Result<(), PartError> {
        let rings: Vec<Option<SavedRing>> = from_state(state)?;
        if rings.len() != self.shared.slots.len() {
            return Err(PartError::because("there is not one for each processor"));
        }
        for (id, ring) in (0..).zip(rings) {
            let Some(ring) = ring else { continue };
            let flags = if ring.exitless { RING_EXITLESS } else { 0 };
            let cannot = |_| PartError(format!("processor {id} cannot have this ring: {ring:?}"));
            let args = [id, ring.address, ring.entries.into(), flags, 0, 0];
            self.register(&args).map_err(cannot)?;
            let slot = self.shared.slot(id).map_err(cannot)?;
            let mut place = lock(&slot.ring);
            let Some(registered) = place.as_mut() else {
                continue;
            };
            registered.tail = ring.tail;
            self.shared
                .publish_tail(registered)
                .and_then(|()| self.shared.tell(registered, ring.looking))
                .map_err(|e| PartError(e.to_string()))?;
            let looked = ring.looking && ring.exitless;
            slot.looked.store(looked, Ordering::Relaxed);
        }
        Ok(())
    }

    fn go_on(&self) {
        for slot in &self.shared.slots {
            if slot.looked.swap(false, Ordering::Relaxed) {
                slot.looking.store(true, Ordering::Release);
                *lock(&self.shared.news) = true;
                self.shared.wake.notify_one();
            }
        }
    }
}

impl Facility for Rings {
    fn id(&self) -> u32 {
        reg::FACILITY_RING
    }

    fn call(&self, function: u32, args: &Args) -> Reply {
        const FIRST: u32 = reg::FACILITY_RING << 16;
        Reply::Resume(match FIRST | function {
            reg::CALL_RING_REGISTER => self.register(args),
            reg::CALL_RING_UNREGISTER => self.unregister(args),
            reg::CALL_RING_SUBMIT => match self.submit(args) {
                Ok(reply) => return reply,
                Err(status) => Err(status),
            },
            _ => Err(Status::NotSupported),
        })
    }
}
