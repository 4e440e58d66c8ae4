//! An awkward host, to test guests against: everything that `SPEC.md` lets a host do and that ours does not do by itself.
//!
//! # How it works
//!
//! A seed gives the host a character ([`Character`]), the same each time: which facilities it does not offer, where its
//! CPUID block lies, how often it answers `Busy` or `HostError`, how slow it is, what becomes of its promise to look at the
//! console ring. Each facility is wrapped ([`Awkward::wrap`]); a host that is not awkward has no wrapper, so it
//! pays nothing.
//!
//! # What it keeps to
//!
//! * Facility `base` is offered and never fails; it is only slow. `clock` is not refused, since without it a
//!   guest whose CPUID tells no frequency cannot boot: `--pv=-clock` does that.
//! * `Busy` and `HostError` are answered to console, clock and rng calls, and only to those that would be carried out, so that a
//!   breach still gets the status that its clause names; nothing has been done then (PV-CALL-10). After
//!   [`REFUSALS_MAX`] errors in a row a call is carried out.
//! * `console.notify`, where it succeeds, takes all bytes (PV-CONSOLE-5). While `host_looks` is set, bytes are taken within
//!   some tens of milliseconds; the promise is taken back as PV-CONSOLE-13 says.
//! * Memory that is not in `fresh` can have anything in it; how much is in `fresh` is the host's to say (PV-MEM-1).
//! * An interrupt without input is like any spurious interrupt: the guest finds the ring empty.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::{CallId, Status};
use paravane_abi::mem::MemRange;
use paravane_abi::registry as reg;
use paravane_abi::rng::RNG_FILL_MAX;

use crate::config::FacilitySet;
use crate::memory::{Memory, MemoryError};
use crate::pv::console::RingConsole;
use crate::pv::event::EventTarget;
use crate::pv::{Args, Facility, Reply};
use crate::random::Random;
use crate::snapshot::{PartError, Saved, State};
use crate::sync::lock;

/// Errors that one call gets in a row at most.
const REFUSALS_MAX: u32 = 3;
/// Looks at the console ring that are left out in a row at most.
const SKIPS_MAX: u32 = 5;

/// What a seed makes of the host.
#[derive(Clone, Debug)]
struct Character {
    seed: u64,
    /// Facilities that are not offered.
    refused: Vec<(&'static str, u32)>,
    /// Distance of the CPUID block from its usual place, in steps.
    block: u32,
    /// TSCs are not said to agree.
    unreliable: bool,
    /// One call in so many is answered `Busy`; zero: none.
    busy: u64,
    /// One call in so many is answered `HostError`; zero: none.
    fails: u64,
    /// One call in so many is slow; zero: none.
    slow: u64,
    slow_micros: u64,
    /// One look in so many takes but a few bytes; zero: none.
    partial: u64,
    /// One look in so many is left out; zero: none.
    skips: u64,
    /// One promise to look in so many is taken back at once; zero: none.
    withdraws: u64,
    /// One idle look in so many begins to look unasked; zero: none.
    volunteers: u64,
    /// One look in so many raises the console's event for nothing; zero: none.
    spurious: u64,
    /// One look in so many brings another wish for processors; zero: none.
    wishes: u64,
    /// One look in so many says that the clock has jumped though it has not; zero: none.
    disrupts: u64,
    /// There is no page that says when the clock jumps.
    no_clock_page: bool,
}

impl Character {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut refused = Vec::new();
        for (name, id, odds) in [
            ("console", reg::FACILITY_CONSOLE, 5),
            ("crash", reg::FACILITY_CRASH, 3),
            ("ring", reg::FACILITY_RING, 3),
        ] {
            if random.one_in(odds) {
                refused.push((name, id));
            }
        }
        let mut character = Self {
            seed,
            refused,
            block: random.pick(&[0, 1, 2, 7, 30]),
            unreliable: random.one_in(3),
            busy: random.pick(&[0, 2, 8]),
            fails: random.pick(&[0, 2, 4, 16]),
            slow: random.pick(&[0, 1, 4]),
            slow_micros: random.pick(&[50, 500, 3000]),
            partial: random.pick(&[0, 1, 3]),
            skips: random.pick(&[0, 2, 4]),
            withdraws: random.pick(&[0, 1, 3]),
            volunteers: random.pick(&[0, 1, 16]),
            spurious: random.pick(&[0, 1, 8]),
            wishes: random.pick(&[0, 4, 32]),
            disrupts: random.pick(&[0, 16, 64]),
            no_clock_page: random.one_in(4),
        };
        // Last, so that what a seed has been for others it still is.
        if random.one_in(3) {
            character.refused.push(("mem", reg::FACILITY_MEM));
        }
        if random.one_in(3) {
            character.refused.push(("rng", reg::FACILITY_RNG));
        }
        character
    }
}

/// For people, so that they know what their guest was tested against.
impl fmt::Display for Character {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "awkward host, seed {}:", self.seed)?;
        for (name, _) in &self.refused {
            write!(f, " no {name},")?;
        }
        if self.unreliable {
            write!(f, " TSC not reliable,")?;
        }
        if self.no_clock_page {
            write!(f, " no clock page,")?;
        }
        for (what, odds) in [
            ("Busy", self.busy),
            ("HostError", self.fails),
            ("partial looks", self.partial),
            ("no look", self.skips),
            ("promises taken back", self.withdraws),
            ("looks unasked", self.volunteers),
            ("spurious events", self.spurious),
            ("wishes for processors", self.wishes),
            ("clock jumps", self.disrupts),
        ] {
            if odds > 0 {
                write!(f, " {what} 1/{odds},")?;
            }
        }
        if self.slow > 0 {
            write!(f, " up to {} us late 1/{},", self.slow_micros, self.slow)?;
        }
        write!(f, " CPUID block moved by {:#x}", self.moved_by())
    }
}

impl Character {
    fn moved_by(&self) -> u32 {
        self.block * reg::CPUID_BASE_STEP
    }
}

#[derive(Debug)]
struct Mood {
    random: Random,
    refusals: BTreeMap<CallId, u32>,
    skipped: u32,
}

/// The awkward host of one guest.
#[derive(Debug)]
pub struct Awkward {
    character: Character,
    mood: Mutex<Mood>,
}

impl Awkward {
    /// The host that `seed` gives.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mood = Mood {
            // Not the numbers that made the character once more.
            random: Random::new(!seed),
            refusals: BTreeMap::new(),
            skipped: 0,
        };
        Self {
            character: Character::new(seed),
            mood: Mutex::new(mood),
        }
    }

    /// What it offers of `set`.
    #[must_use]
    pub fn offers(&self, set: FacilitySet) -> FacilitySet {
        let refused = self.character.refused.iter();
        refused.fold(set, |set, (_, id)| set.without(*id))
    }

    /// How far the CPUID block is from its usual place.
    #[must_use]
    pub fn block_moved_by(&self) -> u32 {
        self.character.moved_by()
    }

    /// Wraps the facilities of a guest that has this memory and so many processors.
    #[must_use]
    pub fn wrap(
        self: &Arc<Self>,
        facilities: Vec<Box<dyn Facility>>,
        rings: &Arc<RingConsole>,
        memory: &Memory,
        vcpus: u8,
    ) -> Vec<Box<dyn Facility>> {
        let wrap = |inner| {
            Box::new(Wrapped {
                inner,
                host: Arc::clone(self),
                rings: Arc::clone(rings),
                memory: memory.clone(),
                vcpus,
            }) as Box<dyn Facility>
        };
        facilities.into_iter().map(wrap).collect()
    }

    fn mood(&self) -> MutexGuard<'_, Mood> {
        lock(&self.mood)
    }

    /// True once in `odds` times; never where they are zero.
    fn happens(&self, odds: u64) -> bool {
        odds > 0 && self.mood().random.one_in(odds)
    }

    fn dawdle(&self) {
        if self.happens(self.character.slow) {
            let micros = self.mood().random.below(self.character.slow_micros + 1);
            std::thread::sleep(Duration::from_micros(micros));
        }
    }

    /// The error that a call gets which would be carried out.
    fn refusal(&self, id: CallId) -> Option<Status> {
        let status = if self.happens(self.character.busy) {
            Some(Status::Busy)
        } else {
            self.happens(self.character.fails)
                .then_some(Status::HostError)
        };
        let mut mood = self.mood();
        let in_a_row = mood.refusals.entry(id).or_default();
        if status.is_some() && *in_a_row < REFUSALS_MAX {
            *in_a_row += 1;
            return status;
        }
        *in_a_row = 0;
        None
    }

    /// The event loop's look at the console ring. Returns the event to raise for nothing.
    pub fn look(&self, rings: &RingConsole) -> Option<EventTarget> {
        let skipped = self.mood().skipped;
        if skipped < SKIPS_MAX && self.happens(self.character.skips) {
            self.mood().skipped += 1;
        } else if self.happens(self.character.partial) {
            self.mood().skipped = 0;
            let most = self.mood().random.pick(&[1, 100, 2000, 4096]);
            // The page is the VMM's own: it is in guest memory.
            let _ = rings.look_at_some(most);
        } else {
            self.mood().skipped = 0;
            if !rings.look().unwrap_or(false) && self.happens(self.character.volunteers) {
                let _ = rings.look_unasked();
            }
        }
        let spurious = self.happens(self.character.spurious);
        spurious.then(|| rings.event_target()).flatten()
    }

    /// The event loop's look, too: how many of `vcpus` processors the host wants on from now on, if it wants others.
    pub fn wish(&self, vcpus: u8) -> Option<u8> {
        let changes = self.happens(self.character.wishes);
        let count = changes.then(|| self.mood().random.below(u64::from(vcpus) + 1));
        count.and_then(|count| u8::try_from(count).ok())
    }

    /// Makes fresh memory less, and fills what it takes away with something. Spec: PV-MEM-1
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`]: never, for ranges of the guest's memory.
    pub fn spoil(&self, memory: &Memory, fresh: &mut [MemRange]) -> Result<(), MemoryError> {
        let page = [0xa5; reg::PAGE_SIZE];
        for range in &mut *fresh {
            let pages = range.size / reg::PAGE_SIZE as u64;
            let spoilt = self.mood().random.below(pages + 1);
            let end = range.address + spoilt * reg::PAGE_SIZE as u64;
            for at in (range.address..end).step_by(reg::PAGE_SIZE) {
                memory.write(at, &page)?;
            }
            range.size -= end - range.address;
            range.address = end;
        }
        // What is not needed comes last.
        fresh.sort_by_key(|range| (range.size == 0, range.address));
        Ok(())
    }

    /// Whether it says of the TSC that it is not reliable.
    #[must_use]
    pub fn distrusts_the_tsc(&self) -> bool {
        self.character.unreliable
    }

    /// Whether it says now that the clock has jumped.
    pub fn disrupts(&self) -> bool {
        self.happens(self.character.disrupts)
    }

    /// Takes the promise to look back, in the way that the event loop does it.
    fn withdraw(&self, rings: &RingConsole) {
        if self.happens(self.character.withdraws) {
            // A ring that is never empty keeps the promise.
            for _ in 0..8 {
                if !rings.look().unwrap_or(false) {
                    return;
                }
            }
        }
    }
}

impl fmt::Display for Awkward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.character.fmt(f)
    }
}

/// A facility of an awkward host.
#[derive(Debug)]
struct Wrapped {
    inner: Box<dyn Facility>,
    host: Arc<Awkward>,
    rings: Arc<RingConsole>,
    memory: Memory,
    vcpus: u8,
}

impl Wrapped {
    /// Whether the call would be carried out, and may get an error of ours instead: a breach has its own status.
    fn may_fail(&self, id: CallId, args: &Args) -> bool {
        let [first, second, unused @ ..] = *args;
        let sound = match id.0 {
            reg::CALL_CONSOLE_NOTIFY | reg::CALL_CLOCK_WALL => first == 0 && second == 0,
            reg::CALL_CONSOLE_WRITE => usize::try_from(second).is_ok_and(|length| {
                second <= reg::CONSOLE_WRITE_MAX && self.memory.contains(first, length)
            }),
            reg::CALL_RNG_FILL => usize::try_from(second)
                .is_ok_and(|length| second <= RNG_FILL_MAX && self.memory.contains(first, length)),
            reg::CALL_CONSOLE_EVENT | reg::CALL_CLOCK_EVENT => {
                let vectors = reg::EVENT_VECTOR_FIRST..=reg::EVENT_VECTOR_LAST;
                (first == 0 || vectors.contains(&first)) && second < u64::from(self.vcpus)
            }
            _ => false,
        };
        sound && unused == [0; 4]
    }
}

impl Saved for Wrapped {
    fn save(&self) -> Result<State, PartError> {
        Err(PartError::because("is an awkward host's (--awkward)"))
    }
}

impl Facility for Wrapped {
    fn id(&self) -> u32 {
        self.inner.id()
    }

    fn describe(&self, memory: &Memory, info: &mut BootInfo) -> Result<(), MemoryError> {
        self.inner.describe(memory, info)?;
        if self.id() == reg::FACILITY_MEM {
            self.host.spoil(memory, &mut info.mem.fresh)?;
        }
        if self.host.character.no_clock_page {
            info.clock.page = 0;
        }
        Ok(())
    }

    fn call(&self, function: u32, args: &Args) -> Reply {
        self.host.dawdle();
        let id = CallId(self.id() << 16 | function);
        if self.may_fail(id, args)
            && let Some(status) = self.host.refusal(id)
        {
            return Reply::Resume(Err(status));
        }
        let reply = self.inner.call(function, args);
        if id.0 == reg::CALL_CONSOLE_NOTIFY && reply == Reply::Resume(Ok(0)) {
            self.host.withdraw(&self.rings);
        }
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_host_and_another_seed_another_one() {
        let hosts: Vec<_> = (0..100)
            .map(|seed| Awkward::new(seed).to_string())
            .collect();
        let again: Vec<_> = (0..100)
            .map(|seed| Awkward::new(seed).to_string())
            .collect();
        assert_eq!(hosts, again);
        assert!(hosts.iter().any(|host| host.contains("no console")));
        assert!(hosts.iter().any(|host| !host.contains("no ")));
        let mut characters: Vec<_> = hosts
            .iter()
            .filter_map(|host| host.split_once(": "))
            .map(|(_, c)| c)
            .collect();
        characters.sort_unstable();
        characters.dedup();
        assert!(characters.len() > 95, "{}", characters.len());
    }

    #[test]
    fn base_and_clock_are_never_refused() {
        for seed in 0..1000 {
            let set = Awkward::new(seed).offers(FacilitySet::default());
            assert!(
                set.has(reg::FACILITY_BASE) && set.has(reg::FACILITY_CLOCK),
                "seed {seed}"
            );
        }
    }

    #[test]
    fn a_call_that_is_made_again_is_carried_out_in_the_end() {
        for seed in 0..1000 {
            let host = Awkward::new(seed);
            let id = CallId(reg::CALL_CONSOLE_NOTIFY);
            for _ in 0..100 {
                let tries = (0..=REFUSALS_MAX).filter(|_| host.refusal(id).is_none());
                assert!(tries.count() > 0, "seed {seed}");
            }
        }
    }
}
