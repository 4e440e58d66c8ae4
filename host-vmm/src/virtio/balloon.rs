//! The memory balloon: pages that the guest gives back, because it is asked to or because it does not use them.
//!
//! Queue 0 names pages that the guest keeps from itself (inflates the balloon), queue 1 those that it uses again (deflates it). How many
//! the host wants to be in the balloon is in the configuration. Two more queues are there where the driver takes
//! their features: in one it tells how its memory is used, in the other it reports what it has free.
//!
//! What is given back reads as zero, and is allocated anew where the guest writes to it: the driver needs no leave to deflate, and may do
//! it by itself when the guest runs short. The numbers that it tells are shown, and believed nowhere.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use paravane_abi::registry::PAGE_SIZE;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::queue::{Chain, Io, QueueError};
use super::unit::Unit;
use super::{CONFIG_MAX, Device};
use crate::memory::Memory;
use crate::pv::mem::MemoryUse;
use crate::snapshot::{PartError, Saved, State, from_state, to_state};
use crate::sync::{lock, wait_while};

/// Where the configuration (`struct virtio_balloon_config`) has the pages that the host wants.
pub const WANTED: usize = 0;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// The queues behind these, in the order of the features that they belong to.
const STATISTICS: usize = 2;

const STATS_VQ: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const REPORTING: u64 = 1 << 5;

/// The most pages of one request. Linux names 256 at once, others as many as a page has room for.
const PAGES_MAX: usize = 1024;
/// Bytes of a statistic: its tag, its value.
const STATISTIC: usize = 10;
/// The most of them that are looked at.
const STATISTICS_MAX: usize = 64;
/// The tags that are known, in their order.
const NAMES: [&str; 10] = [
    "swapped_in",
    "swapped_out",
    "major_faults",
    "minor_faults",
    "free",
    "total",
    "available",
    "caches",
    "huge_pages_taken",
    "huge_pages_refused",
];
/// How long somebody who asks waits for the driver.
const PATIENCE: Duration = Duration::from_millis(100);

/// What the driver has told last, and how often it has.
#[derive(Debug, Default)]
struct Told {
    count: u64,
    statistics: BTreeMap<&'static str, u64>,
}

/// What a balloon shares with the rest of the VMM.
#[derive(Debug, Default)]
pub struct BalloonState {
    /// Pages that the host wants to be in it, and that are.
    wanted: AtomicU32,
    kept: AtomicU32,
    /// How many are when a restored one goes on.
    restored: AtomicU32,
    /// Bytes that have been given back.
    reported: AtomicU64,
    /// Somebody wants to know how memory is used.
    is_asked: AtomicBool,
    told: Mutex<Told>,
    news: Condvar,
}

impl BalloonState {
    /// So many bytes are wanted, says [`Unit::configure`] afterwards.
    pub fn want(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_SIZE as u64).unwrap_or(u32::MAX);
        self.wanted.store(pages, Ordering::Relaxed);
    }

    /// How many pages are wanted.
    #[must_use]
    pub fn wanted_pages(&self) -> u32 {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Asks the driver of `unit`, and waits a little for what it tells.
    pub fn ask(&self, unit: &Unit) {
        let Some(doorbell) = unit.doorbells().get(STATISTICS) else {
            return;
        };
        let told = lock(&self.told);
        let before = told.count;
        self.is_asked.store(true, Ordering::SeqCst);
        // A counter that is full has rung it.
        let _ = doorbell.write(1);
        drop(wait_while(&self.news, told, PATIENCE, |told| {
            told.count == before
        }));
    }

    /// What the driver has told last.
    #[must_use]
    pub fn statistics(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.told).statistics.clone()
    }

    /// What is in the balloon, and what the guest would miss.
    #[must_use]
    pub fn memory_use(&self) -> MemoryUse {
        let told = lock(&self.told);
        let [total, available] = ["total", "available"].map(|name| told.statistics.get(name));
        MemoryUse {
            kept: u64::from(self.kept.load(Ordering::Relaxed)) * PAGE_SIZE as u64,
            needed: total
                .zip(available)
                .map(|(all, free)| all.saturating_sub(*free)),
            reported: self.reported.load(Ordering::Relaxed),
        }
    }

    fn tell(&self, statistics: BTreeMap<&'static str, u64>) {
        let mut told = lock(&self.told);
        told.count += 1;
        told.statistics = statistics;
        self.news.notify_all();
    }

    fn gave_back(&self, bytes: usize) {
        self.reported.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Saved for Arc<BalloonState> {
    /// What is wanted and kept, and has been given back.
    fn save(&self) -> Result<State, PartError> {
        let kept = self.kept.load(Ordering::Relaxed);
        to_state(&(self.wanted_pages(), kept, self.memory_use().reported))
    }

    fn restore(&self, state: State) -> Result<(), PartError> {
        let (wanted, kept, reported) = from_state(state)?;
        self.wanted.store(wanted, Ordering::Relaxed);
        self.restored.store(kept, Ordering::Relaxed);
        self.reported.store(reported, Ordering::Relaxed);
        Ok(())
    }
}

/// The device.
#[derive(Debug)]
pub struct Balloon {
    memory: Memory,
    state: Arc<BalloonState>,
    /// The queues of features that the driver has taken.
    statistics: Option<usize>,
    reports: Option<usize>,
    /// The pages of a request.
    pages: Box<[[u8; 4]; PAGES_MAX]>,
}

impl Balloon {
    /// A balloon of this memory.
    #[must_use]
    pub fn new(memory: Memory, state: Arc<BalloonState>) -> Self {
        Self {
            memory,
            state,
            statistics: None,
            reports: None,
            pages: Box::new([[0; 4]; PAGES_MAX]),
        }
    }

    /// The pages that a request names, as ranges: where each begins, and its bytes. All are in guest memory.
    fn ranges(&mut self, chain: &mut Chain<'_>) -> Result<Vec<(u64, usize)>, QueueError> {
        let bytes = chain.readable_bytes();
        if bytes == 0 || !bytes.is_multiple_of(size_of::<u32>()) {
            return Err(chain.too_short());
        }
        let count = bytes / size_of::<u32>();
        let Some(pages) = self.pages.get_mut(..count) else {
            return Err(chain.too_long());
        };
        chain.take(pages.as_flattened_mut())?;
        let number = |page: &[u8; 4]| u64::from(u32::from_le_bytes(*page));
        pages.sort_unstable_by_key(number);
        let runs = pages.chunk_by(|one, next| number(one) + 1 == number(next));
        let ranges = runs.map(|run| {
            let address = number(&run[0]) * PAGE_SIZE as u64;
            let length = run.len() * PAGE_SIZE;
            if self.memory.contains(address, length) {
                return Ok((address, length));
            }
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            Err(QueueError::Memory { address, length })
        });
        ranges.collect()
    }

    fn inflate(&mut self, chain: &mut Chain<'_>) -> Result<u32, QueueError> {
        for (address, length) in self.ranges(chain)? {
            // It is in guest memory.
            let _ = self.memory.discard(address, length);
            self.state.gave_back(length);
            self.keep(length, u32::saturating_add);
        }
        Ok(0)
    }

    fn deflate(&mut self, chain: &mut Chain<'_>) -> Result<u32, QueueError> {
        for (_, length) in self.ranges(chain)? {
            self.keep(length, u32::saturating_sub);
        }
        Ok(0)
    }

    /// There is one writer.
    fn keep(&self, bytes: usize, change: impl Fn(u32, u32) -> u32) {
        let pages = u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX);
        let kept = change(self.state.kept.load(Ordering::Relaxed), pages);
        self.state.kept.store(kept, Ordering::Relaxed);
    }

    /// What the driver has free, at its word: a guest that reports what it uses deceives itself.
    fn report(&self, chain: &Chain<'_>) -> Result<u32, QueueError> {
        if chain.writable().is_empty() {
            return Err(chain.too_short());
        }
        for part in chain.writable() {
            self.state.gave_back(self.memory.discard_pages(part));
        }
        Ok(0)
    }

    /// The driver's one buffer stays with it, until it is asked to fill it anew: it then gets it back.
    fn hear(&self, queue: usize, io: &mut Io<'_>) -> Result<(), QueueError> {
        if self.state.is_asked.swap(false, Ordering::SeqCst) {
            io.one(queue, |_| Ok(0))?;
            io.flush(queue)?;
        }
        io.peek(queue, |chain| {
            let bytes = chain.readable_bytes();
            let mut list = [[0; STATISTIC]; STATISTICS_MAX];
            let Some(list) = list.get_mut(..bytes / STATISTIC) else {
                return Err(chain.too_long());
            };
            chain.take(list.as_flattened_mut())?;
            let known = list.iter().filter_map(|[tag, other, value @ ..]| {
                let tag = u16::from_le_bytes([*tag, *other]);
                Some((*NAMES.get(usize::from(tag))?, u64::from_le_bytes(*value)))
            });
            self.state.tell(known.collect());
            Ok(())
        })
    }
}

impl Device for Balloon {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn name(&self) -> &'static str {
        "balloon"
    }

    fn features(&self) -> u64 {
        STATS_VQ | DEFLATE_ON_OOM | REPORTING
    }

    fn queues(&self) -> usize {
        self.queues_needed(self.features())
    }

    fn queues_needed(&self, features: u64) -> usize {
        let more = [STATS_VQ, REPORTING].map(|feature| features & feature != 0);
        STATISTICS + more.map(usize::from).iter().sum::<usize>()
    }

    /// Nothing is wanted at first.
    fn config(&self) -> [u8; CONFIG_MAX] {
        [0; CONFIG_MAX]
    }

    fn begin(&mut self, features: u64) {
        let last = self.queues_needed(features) - 1;
        self.statistics = (features & STATS_VQ != 0).then_some(STATISTICS);
        self.reports = (features & REPORTING != 0).then_some(last);
        let restored = self.state.restored.swap(0, Ordering::Relaxed);
        self.state.kept.store(restored, Ordering::Relaxed);
    }

    fn serve(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), QueueError> {
        match queue {
            INFLATE => io.each(queue, |chain| self.inflate(chain)),
            DEFLATE => io.each(queue, |chain| self.deflate(chain)),
            _ if self.statistics == Some(queue) => self.hear(queue, io),
            _ if self.reports == Some(queue) => io.each(queue, |chain| self.report(chain)),
            _ => Ok(()),
        }
    }
}
