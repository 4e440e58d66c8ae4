//! Facility `mem`, host side: which memory is zero, and memory given back. ABI: `hypercall-abi/src/abi/mem.rs`.
//!
//! # How it works
//!
//! Guest memory is anonymous, and so zero until somebody writes to it. Before the guest does, the loader has: below
//! [`memory::HIGH_RAM`], where the kernel is, and where the initrd is. All the rest is fresh ([`fresh_ranges`]).
//! What the guest reports is taken out of the process ([`Memory::discard`]), and is like that once more.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::{CallResult, Status};
use paravane_abi::mem::{MEM_FRESH_MAX, MEM_REPORT_MAX, MemInfo, MemPage, MemRange};
use paravane_abi::registry as reg;

use super::event::{Event, EventTarget};
use super::{Args, Facility, MEM_PAGE, Reply, take};
use crate::boot::Loaded;
use crate::memory::{self, Memory, MemoryError};
use crate::snapshot::{PartError, Saved, State, from_state, to_state};
use crate::sync::lock;

const PAGE: u64 = reg::PAGE_SIZE as u64;
const WANTED: u64 = MEM_PAGE + offset_of!(MemPage, wanted) as u64;
const KEPT: u64 = MEM_PAGE + offset_of!(MemPage, kept) as u64;
const NEEDED: u64 = MEM_PAGE + offset_of!(MemPage, needed) as u64;

/// What a guest says of its memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct MemoryUse {
    /// What it keeps from itself.
    pub kept: u64,
    /// What it would miss; 0: it has had no reason to tell.
    pub needed: Option<u64>,
    /// What it has given back, all together.
    pub reported: u64,
}

/// The facility.
#[derive(Debug)]
pub struct Mem {
    memory: Memory,
    vcpus: u8,
    loaded: Mutex<Option<Loaded>>,
    event: Event,
    reported: AtomicU64,
}

impl Mem {
    /// For a guest with this memory and so many processors.
    #[must_use]
    pub fn new(memory: Memory, vcpus: u8) -> Self {
        Self {
            memory,
            vcpus,
            loaded: Mutex::default(),
            event: Event::default(),
            reported: AtomicU64::new(0),
        }
    }

    /// What the loader has written; without it, no memory is said to be fresh.
    pub fn loaded(&self, loaded: &Loaded) {
        *lock(&self.loaded) = Some(*loaded);
    }

    /// What the guest says, and has done. Spec: PV-MEM-13, PV-MEM-15
    #[must_use]
    pub fn memory_use(&self) -> MemoryUse {
        MemoryUse {
            kept: self.told_bytes(KEPT),
            needed: Some(self.told_bytes(NEEDED)),
            reported: self.reported_bytes(),
        }
    }

    fn reported_bytes(&self) -> u64 {
        self.reported.load(Ordering::Relaxed)
    }

    fn told_bytes(&self, at: u64) -> u64 {
        let pages = self.memory.load_u32(at, Ordering::Relaxed);
        u64::from(pages.unwrap_or(0)) * PAGE
    }

    /// Lets the guest know how many bytes it is to keep from itself; the event to raise. Spec: PV-MEM-10
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`]: never, for a guest that has the page.
    pub fn want(&self, bytes: u64) -> Result<Option<EventTarget>, MemoryError> {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.memory.store_u32(WANTED, pages, Ordering::Release)?;
        Ok(self.event.target())
    }

    /// Spec: PV-MEM-4, PV-MEM-6, PV-MEM-7
    fn report(&self, args: &Args) -> CallResult {
        let [address, count] = take(args)?;
        let count = usize::try_from(count).map_err(|_| Status::InvalidParam)?;
        if count == 0 || count > MEM_REPORT_MAX {
            return Err(Status::InvalidParam);
        }
        if !address.is_multiple_of(size_of::<u64>() as u64) {
            return Err(Status::BadAddress);
        }
        let mut list = [[0_u8; size_of::<MemRange>()]; MEM_REPORT_MAX];
        let bytes = list[..count].as_flattened_mut();
        self.memory
            .read(address, bytes)
            .map_err(|_| Status::BadAddress)?;
        let ranges = || {
            list[..count].iter().map(|bytes| {
                let (address, size) = bytes.split_at(size_of::<u64>());
                let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
                (number(address), number(size))
            })
        };
        for (address, size) in ranges() {
            if size == 0 || !size.is_multiple_of(PAGE) {
                return Err(Status::InvalidParam);
            }
            let inside = usize::try_from(size).is_ok_and(|s| self.memory.contains(address, s));
            if !address.is_multiple_of(PAGE) || !inside {
                return Err(Status::BadAddress);
            }
        }
        for (address, size) in ranges() {
            let length = usize::try_from(size).map_err(|_| Status::HostError)?;
            self.memory
                .discard(address, length)
                .map_err(|_| Status::HostError)?;
            self.reported.fetch_add(size, Ordering::Relaxed);
        }
        Ok(0)
    }
}

/// The memory that `loaded` has left as it was. Spec: PV-MEM-2
#[must_use]
pub fn fresh(loaded: &Loaded, memory: &Memory) -> [MemRange; MEM_FRESH_MAX] {
    let (low_end, high_bytes) = (memory.low_end(), memory.high_bytes());
    let kernel = loaded.kernel_start..loaded.kernel_end;
    fresh_ranges(kernel, loaded.initrd, low_end, high_bytes)
}

/// The same of memory that ends at `low_end`, and of `high_bytes` above 4 GiB.
fn fresh_ranges(
    kernel: Range<u64>,
    initrd: Option<(u64, u64)>,
    low_end: u64,
    high_bytes: u64,
) -> [MemRange; MEM_FRESH_MAX] {
    let up = |address: u64| address.saturating_add(PAGE - 1) & !(PAGE - 1);
    let kernel_end = up(kernel.end.max(memory::HIGH_RAM));
    let kernel_start = kernel.start.min(kernel_end) & !(PAGE - 1);
    let (initrd, initrd_end) = initrd.map_or((low_end, low_end), |(at, bytes)| {
        (at & !(PAGE - 1), up(at.saturating_add(bytes)))
    });
    let mut ranges = [MemRange::default(); MEM_FRESH_MAX];
    let candidates = [
        (memory::HIGH_RAM, kernel_start.min(low_end)),
        (kernel_end, initrd),
        (initrd_end.max(kernel_end), low_end),
        (memory::ABOVE_4G, memory::ABOVE_4G + high_bytes),
    ];
    let whole = candidates.iter().filter(|(start, end)| start < end);
    for (range, (start, end)) in ranges.iter_mut().zip(whole) {
        *range = MemRange {
            address: *start,
            size: end - start,
        };
    }
    ranges
}

impl Saved for Arc<Mem> {
    /// Bytes that have been reported, and the event.
    fn save(&self) -> Result<State, PartError> {
        to_state(&(self.reported_bytes(), self.event.word()))
    }

    fn restore(&self, state: State) -> Result<(), PartError> {
        let (reported, event) = from_state(state)?;
        self.reported.store(reported, Ordering::Relaxed);
        self.event.set_word(event, self.vcpus)
    }
}

impl Facility for Arc<Mem> {
    fn id(&self) -> u32 {
        reg::FACILITY_MEM
    }

    /// Spec: PV-MEM-1, PV-MEM-9
    fn describe(&self, memory: &Memory, info: &mut BootInfo) -> Result<(), MemoryError> {
        let loaded = *lock(&self.loaded);
        memory.write_obj(MEM_PAGE, &MemPage::default())?;
        info.mem = MemInfo {
            fresh: loaded.map_or_else(Default::default, |loaded| fresh(&loaded, memory)),
            page: MEM_PAGE,
            ..MemInfo::default()
        };
        Ok(())
    }

    fn call(&self, function: u32, args: &Args) -> Reply {
        const FIRST: u32 = reg::FACILITY_MEM << 16;
        Reply::Resume(match FIRST | function {
            reg::CALL_MEM_REPORT => self.report(args),
            reg::CALL_MEM_EVENT => self.event.name(args, self.vcpus),
            _ => Err(Status::NotSupported),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(kernel: Range<u64>, initrd: Option<(u64, u64)>, high_bytes: u64) -> Vec<(u64, u64)> {
        let ranges = fresh_ranges(kernel, initrd, 0x800_0000, high_bytes);
        let used = ranges.iter().filter(|range| range.size > 0);
        used.map(|range| (range.address, range.size)).collect()
    }

    #[test]
    fn pv_mem_2_fresh_is_what_the_loader_has_left() {
        let initrd = Some((0x7f0_0000, 0x8_0001));
        assert_eq!(ranges(0..0, None, 0), [(0x10_0000, 0x7f0_0000)]);
        assert_eq!(
            ranges(0x10_0000..0x20_0001, initrd, 0),
            [(0x20_1000, 0x7cf_f000), (0x7f8_1000, 0x7_f000)]
        );
        assert_eq!(
            ranges(0x18_0123..0x20_0000, Some((0x7ff_f000, 0xabc)), 0x4000_0000),
            [
                (0x10_0000, 0x8_0000),
                (0x20_0000, 0x7df_f000),
                (0x1_0000_0000, 0x4000_0000)
            ]
        );
        // A kernel that fills memory, or says that it does.
        assert_eq!(ranges(0x10_0000..0x800_0000, None, 0), []);
        assert_eq!(ranges(0..u64::MAX, initrd, 0), []);
    }

    fn mem() -> Mem {
        let mem = Mem::new(Memory::new(1).unwrap(), 2);
        assert_eq!(mem.want(0).unwrap(), None);
        mem
    }

    #[test]
    fn pv_mem_10_another_wish_is_an_event() {
        let mem = mem();
        let event = |vector, apic_id| mem.event.name(&[vector, apic_id, 0, 0, 0, 0], mem.vcpus);
        assert_eq!(event(0x51, 1), Ok(0));
        let target = EventTarget {
            vector: 0x51,
            apic_id: 1,
        };
        assert_eq!(mem.want(3 * PAGE).unwrap(), Some(target));
        assert_eq!(mem.memory.load_u32(WANTED, Ordering::Relaxed).unwrap(), 3);
        assert_eq!(event(0x51, 2), Err(Status::InvalidParam));
        assert_eq!(mem.want(0).unwrap(), Some(target));
        assert_eq!(event(0, 0), Ok(0));
        assert_eq!(mem.want(PAGE).unwrap(), None);
        assert_eq!(mem.want(u64::MAX).unwrap(), None);
        let most = mem.memory.load_u32(WANTED, Ordering::Relaxed).unwrap();
        assert_eq!(most, u32::MAX);
    }

    #[test]
    fn pv_mem_15_a_working_set_is_a_number_and_no_more() {
        let mem = mem();
        assert_eq!(mem.memory_use().needed, Some(0));
        mem.memory
            .store_u32(NEEDED, u32::MAX, Ordering::Relaxed)
            .unwrap();
        assert_eq!(mem.memory_use().needed, Some(u64::from(u32::MAX) * PAGE));
        assert_eq!(mem.want(PAGE).unwrap(), None);
    }

    #[test]
    fn pv_mem_13_what_the_guest_says_is_a_number_and_no_more() {
        let mem = mem();
        let say = |kept| mem.memory.store_u32(KEPT, kept, Ordering::Relaxed).unwrap();
        say(u32::MAX);
        assert_eq!(mem.memory_use().kept, u64::from(u32::MAX) * PAGE);
        assert_eq!(mem.want(PAGE).unwrap(), None);
        assert_eq!(mem.memory.load_u32(WANTED, Ordering::Relaxed).unwrap(), 1);
    }
}
