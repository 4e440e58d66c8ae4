//! Facility `clock`, host side: frequencies and the time of day. ABI: `hypercall-abi/src/abi/clock.rs`.
//!
//! # How it works
//!
//! The guest's counter is the host's and an offset. Both are read once, while the vCPUs stand still; later the host's is
//! enough, and no vCPU has to be asked. Where the two run at different rates, or the host's can stop, the counter is not
//! reliable, and the guest does not use pairs of ours.
//!
//! Whoever knows that the time of day has jumped calls [`Clock::disrupt`]: the event loop where the host's clock has been
//! stepped, and whoever restores a machine.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::{CallResult, Status};
use paravane_abi::clock::{CLOCK_TSC_RELIABLE, ClockInfo, ClockPage};
use paravane_abi::registry as reg;

use super::event::{Event, EventTarget};
use super::{Args, CLOCK_PAGE, Facility, Reply, take};
use crate::memory::{Memory, MemoryError};
use crate::snapshot::{self, PartError, Saved, from_state, to_state};
use crate::sync::lock;

/// KVM's LAPIC timer counts nanoseconds (api.rst, `KVM_CAP_X86_APIC_BUS_CYCLES_NS`, the default).
const APIC_TIMER_HZ: u64 = 1_000_000_000;
/// How often a pair is read; the one that took least is taken.
const TRIES: usize = 4;

/// This host's time-stamp counter.
fn host_tsc() -> u64 {
    // SAFETY: RDTSC reads a register, and every processor that KVM runs on has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// `read` between two looks at the host's counter: the counter halfway, and what was read, of the shortest of some tries.
fn at_one_moment<T>(mut read: impl FnMut() -> T) -> Option<(u64, T)> {
    let tries = (0..TRIES).map(|_| {
        let before = host_tsc();
        let value = read();
        (before, host_tsc().wrapping_sub(before), value)
    });
    let (before, took, value) = tries.min_by_key(|(_, took, _)| *took)?;
    Some((before.wrapping_add(took / 2), value))
}

/// A guest's time-stamp counter.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    hz: u64,
    /// What it is ahead of the host's.
    offset: u64,
    /// It runs on all vCPUs alike, and without stops.
    reliable: bool,
}

impl Counter {
    /// One that counts at `hz` and that `read` reads, while no vCPU runs.
    #[must_use]
    pub fn new(hz: u64, reliable: bool, read: impl FnMut() -> u64) -> Self {
        let (host, guest) = at_one_moment(read).unwrap_or_default();
        Self {
            hz,
            offset: guest.wrapping_sub(host),
            reliable,
        }
    }

    const fn flags(self) -> u32 {
        if self.reliable { CLOCK_TSC_RELIABLE } else { 0 }
    }

    /// The time of day and the counter at one moment.
    fn pair(self) -> (u64, u64) {
        let (host, wall) = at_one_moment(Clock::wall).unwrap_or((0, Ok(0)));
        (wall.unwrap_or(0), host.wrapping_add(self.offset))
    }
}

#[derive(Debug)]
struct State {
    counter: Counter,
    /// The host's own copies: the page is in the guest's memory.
    sequence: u32,
    disruption: u64,
    generation: u64,
}

/// The facility.
#[derive(Debug)]
pub struct Clock {
    memory: Memory,
    event: Event,
    vcpus: u8,
    state: Mutex<State>,
}

impl Clock {
    /// For a guest that has this memory, this counter and so many processors.
    #[must_use]
    pub fn new(memory: Memory, counter: Counter, vcpus: u8) -> Self {
        Self {
            memory,
            event: Event::default(),
            vcpus,
            state: Mutex::new(State {
                counter,
                sequence: 0,
                disruption: 0,
                generation: 0,
            }),
        }
    }

    /// The guest's counter has been set: it is this one from now on.
    pub fn set_counter(&self, counter: Counter) {
        lock(&self.state).counter = counter;
    }

    /// Spec: PV-CLOCK-3
    fn wall() -> CallResult {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_err(|_| Status::HostError)?;
        u64::try_from(since.as_nanos()).map_err(|_| Status::HostError)
    }

    /// Writes the page with the pair of now. Spec: PV-CLOCK-8
    fn write_page(&self, state: &mut State) -> Result<(), MemoryError> {
        let (wall_ns, wall_tsc) = state.counter.pair();
        let odd = state.sequence.wrapping_add(1);
        state.sequence = odd.wrapping_add(1);
        self.memory.store_u32(CLOCK_PAGE, odd, Ordering::Relaxed)?;
        fence(Ordering::SeqCst);
        let page = ClockPage {
            sequence: odd,
            flags: state.counter.flags(),
            disruption: state.disruption,
            generation: state.generation,
            tsc_hz: state.counter.hz,
            wall_ns,
            wall_tsc,
            reserved: [0; 2],
        };
        self.memory.write_obj(CLOCK_PAGE, &page)?;
        self.memory
            .store_u32(CLOCK_PAGE, state.sequence, Ordering::Release)
    }

    /// Tells the guest that its time of day has jumped and, where there is another `generation`, that it is a copy.
    /// Returns the event to raise. Spec: PV-CLOCK-10, PV-CLOCK-11
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`]: never, for a guest that has the page.
    pub fn disrupt(&self, generation: Option<u64>) -> Result<Option<EventTarget>, MemoryError> {
        let mut state = lock(&self.state);
        state.disruption = state.disruption.wrapping_add(1);
        state.generation = generation.unwrap_or(state.generation);
        self.write_page(&mut state)?;
        Ok(self.event.target())
    }

    /// The event that the guest has asked for.
    #[must_use]
    pub fn event_target(&self) -> Option<EventTarget> {
        self.event.target()
    }
}

/// What a snapshot has of it: sequence, disruption, generation, event.
type SavedClock = (u32, u64, u64, u64);

impl Saved for Arc<Clock> {
    fn save(&self) -> Result<snapshot::State, PartError> {
        let state = lock(&self.state);
        let saved: SavedClock = (
            state.sequence,
            state.disruption,
            state.generation,
            self.event.word(),
        );
        to_state(&saved)
    }

    fn restore(&self, state: snapshot::State) -> Result<(), PartError> {
        let saved: SavedClock = from_state(state)?;
        self.event.set_word(saved.3, self.vcpus)?;
        let mut state = lock(&self.state);
        (state.sequence, state.disruption, state.generation) = (saved.0, saved.1, saved.2);
        Ok(())
    }
}

impl Facility for Arc<Clock> {
    fn id(&self) -> u32 {
        reg::FACILITY_CLOCK
    }

    /// Spec: PV-CLOCK-2, PV-CLOCK-7
    fn describe(&self, _memory: &Memory, info: &mut BootInfo) -> Result<(), MemoryError> {
        let mut state = lock(&self.state);
        self.write_page(&mut state)?;
        let counter = state.counter;
        let (wall_ns, wall_tsc) = counter.pair();
        info.clock = ClockInfo {
            tsc_hz: counter.hz,
            apic_timer_hz: APIC_TIMER_HZ,
            wall_ns,
            wall_tsc,
            flags: counter.flags(),
            reserved0: 0,
            page: CLOCK_PAGE,
        };
        Ok(())
    }

    fn call(&self, function: u32, args: &Args) -> Reply {
        const FIRST: u32 = reg::FACILITY_CLOCK << 16;
        Reply::Resume(match FIRST | function {
            reg::CALL_CLOCK_WALL => take(args).and_then(|[]| Clock::wall()),
            reg::CALL_CLOCK_EVENT => self.event.name(args, self.vcpus),
            _ => Err(Status::NotSupported),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn clock(reliable: bool) -> Clock {
        let counter = Counter::new(1_000_000_000, reliable, || 77);
        Clock::new(Memory::new(1).unwrap(), counter, 1)
    }

    fn page(clock: &Clock) -> ClockPage {
        clock.memory.read_obj(CLOCK_PAGE).unwrap()
    }

    #[test]
    fn pv_clock_8_a_reader_that_keeps_to_the_lock_sees_one_clock() {
        let clock = clock(true);
        let memory = &clock.memory;
        let sequence = || memory.load_u32(CLOCK_PAGE, Ordering::Acquire).unwrap();
        let taken = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for number in 0..20_000 {
                    clock.disrupt(Some(number)).unwrap();
                }
            });
            let mut taken = 0;
            while !writer.is_finished() {
                let before = sequence();
                let page = page(&clock);
                fence(Ordering::Acquire);
                if before.is_multiple_of(2) && sequence() == before && before > 0 {
                    // What the writer has written together.
                    assert_eq!(page.disruption, page.generation + 1);
                    assert_eq!(u64::from(before), 2 * page.disruption);
                    taken += 1;
                }
            }
            taken
        });
        let last = page(&clock);
        assert_eq!((last.sequence, last.disruption), (40_000, 20_000));
        println!("{taken} of the pages that were read were whole");
    }

    #[test]
    fn pv_clock_10_a_step_changes_the_disruption_and_no_generation() {
        let clock = clock(false);
        let before = clock.disrupt(Some(5)).map(|_| page(&clock)).unwrap();
        let after = clock.disrupt(None).map(|_| page(&clock)).unwrap();
        assert_ne!(before.disruption, after.disruption);
        assert_eq!((before.generation, after.generation), (5, 5));
        assert!(after.wall_ns > before.wall_ns && after.wall_tsc > before.wall_tsc);
        assert_eq!(after.flags, 0);
    }

    #[test]
    fn pv_clock_14_what_a_guest_writes_to_the_page_is_written_over() {
        let clock = clock(true);
        clock.disrupt(None).unwrap();
        clock.memory.write(CLOCK_PAGE, &[0xff; 64]).unwrap();
        clock.disrupt(None).unwrap();
        let page = page(&clock);
        assert_eq!((page.sequence, page.disruption), (4, 2));
        assert_eq!((page.generation, page.reserved), (0, [0; 2]));
    }

    #[test]
    fn the_counter_of_a_guest_goes_on_with_that_of_the_host() {
        let counter = Counter::new(1, true, || 1000);
        let (first, second) = (counter.pair().1, counter.pair().1);
        // Halfway between two looks, so a little of the first reading's own time is in it.
        assert!(1000 <= first && first < second, "{first} {second}");
    }
}
