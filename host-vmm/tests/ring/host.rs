//! A guest's memory and the VMM's dispatcher, and a ring in it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use paravane::config::FacilitySet;
use paravane::console::Console;
use paravane::end::End;
use paravane::memory::Memory;
use paravane::pv::base::Base;
use paravane::pv::console::RingConsole;
use paravane::pv::crash::{Crash, LastWords};
use paravane::pv::{Facility, Paravirt, Reply};
use paravane_abi::call::{CallId, CallResult};
use paravane_abi::registry::*;
use paravane_abi::ring::{RingEntry, RingHeader, entry_offset};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Guest memory.
pub(crate) const MEMORY_MIB: u64 = 1;
/// Bytes of it.
pub(crate) const MEMORY_END: u64 = MEMORY_MIB << 20;
/// Processors.
pub(crate) const VCPUS: u8 = 2;
/// Where a ring can be.
pub(crate) const RING: u64 = 0x1_0000;

const TAIL: u64 = std::mem::offset_of!(RingHeader, tail) as u64;
const HOST_LOOKS: u64 = std::mem::offset_of!(RingHeader, host_looks) as u64;

/// Everything that serves one guest's calls, but for the clock.
pub(crate) struct Host {
    /// Guest memory.
    pub(crate) memory: Memory,
    /// The console.
    pub(crate) console: Console,
    /// The dispatcher.
    pub(crate) pv: Paravirt,
    /// The machine's end.
    pub(crate) end: Arc<End>,
}

impl Host {
    /// With these facilities (`--pv`).
    pub(crate) fn new(facilities: &str) -> Self {
        let memory = Memory::new(MEMORY_MIB).unwrap();
        let console = Console::memory().unwrap();
        let set = FacilitySet::parse(facilities).unwrap();
        // Nobody reads it: it must not block when it is full.
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let rings = RingConsole::new(memory.clone(), console.clone(), VCPUS, wake);
        let list: Vec<Box<dyn Facility>> = vec![
            Box::new(Base::new(set)),
            Box::new(Arc::new(rings)),
            Box::new(Crash::new(memory.clone(), LastWords::default())),
        ];
        let end = Arc::new(End::new().unwrap());
        let pv = Paravirt::new(set, list).with_rings(
            &memory,
            VCPUS,
            &end,
            &Arc::new(paravane::pause::Pause::new(VCPUS)),
        );
        Self {
            memory,
            console,
            pv,
            end,
        }
    }

    /// A call through the doorbell.
    pub(crate) fn call(&self, id: u32, args: &[u64]) -> Reply {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        self.pv.call(CallId(id), &all)
    }

    /// A call that comes back.
    pub(crate) fn result(&self, id: u32, args: &[u64]) -> CallResult {
        match self.call(id, args) {
            Reply::Resume(result) => result,
            other => panic!("{other:?}"),
        }
    }

    /// Registers the first processor's ring.
    pub(crate) fn register(&self, entries: u32, flags: u64) {
        let args = [0, RING, u64::from(entries), flags];
        assert_eq!(self.result(CALL_RING_REGISTER, &args), Ok(0));
    }

    /// Fills the entry with that free-running index.
    pub(crate) fn put(&self, index: u32, entries: u32, call: u32, args: &[u64]) {
        let mut entry = RingEntry {
            call,
            ..RingEntry::default()
        };
        entry.args[..args.len()].copy_from_slice(args);
        let at = RING + entry_offset(index, entries);
        self.memory.write_obj(at, &entry).unwrap();
    }

    /// The entry with that free-running index.
    pub(crate) fn entry(&self, index: u32, entries: u32) -> RingEntry {
        let at = RING + entry_offset(index, entries);
        self.memory.read_obj(at).unwrap()
    }

    /// Publishes `head`.
    pub(crate) fn publish(&self, head: u32) {
        self.memory
            .store_u32(RING, head, Ordering::Release)
            .unwrap();
    }

    /// What has been completed.
    pub(crate) fn tail(&self) -> u32 {
        let at = RING + TAIL;
        self.memory.load_u32(at, Ordering::Acquire).unwrap()
    }

    /// Whether the host looks.
    pub(crate) fn looks(&self) -> bool {
        let at = RING + HOST_LOOKS;
        self.memory.load_u32(at, Ordering::Relaxed).unwrap() != 0
    }
}
