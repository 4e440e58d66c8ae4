//! A guest that calls at random. The seed is fixed: each run makes the same calls.

use std::ops::Range;

use crate::memory::{PAGE_TABLES, PV_AREA};
use crate::pv::{BOOT_INFO, CONSOLE_PAGE, DOORBELL_PORT};
use crate::stats::Outcome;
use paravane_abi::base::{PowerAction, PowerReason};
use paravane_abi::call::{CALLS, CallId, CallResult, Status};
use paravane_abi::crash::{CRASH_MAGIC, CrashRecord};
use paravane_abi::registry::*;
use paravane_abi::rng::RNG_FILL_MAX;
use zerocopy::{FromZeros, IntoBytes};

use super::Verdict;
use super::guest::{Call, DATA, Guest, MEMORY_END};
use crate::random::Random;

const CALLS_MADE: usize = 20_000;
const SEED: u64 = 0x5041_5241_5641_4e45;
/// Where random bytes go.
const NOISE: u64 = DATA + 0x1_0000;
const NOISE_BYTES: u64 = 0x1000;
const RECORD_BYTES: u64 = size_of::<CrashRecord>() as u64;

/// What a hostile guest may come up with.
struct Hostile(Random);

impl Hostile {
    /// A number that means something, is just beside such a number, or is any.
    fn argument(&mut self) -> u64 {
        let special = [
            0,
            1,
            16,
            EVENT_VECTOR_FIRST,
            EVENT_VECTOR_LAST,
            RECORD_BYTES,
            4096,
            CONSOLE_WRITE_MAX,
            BOOT_INFO,
            CONSOLE_PAGE,
            DATA,
            MEMORY_END - RECORD_BYTES,
            MEMORY_END,
            0xc000_0000,
            0xfee0_0000,
            1 << 32,
            1 << 52,
            1 << 63,
            u64::MAX,
        ];
        match self.0.below(4) {
            0 | 1 => self.0.pick(&special),
            2 => self
                .0
                .pick(&special)
                .wrapping_add(self.0.below(17))
                .wrapping_sub(8),
            _ => {
                let bits = self.0.below(64);
                self.0.next() >> bits
            }
        }
    }

    fn id(&mut self) -> u32 {
        match self.0.below(8) {
            0 => self.0.next_u32(),
            1 => {
                let (facility, function) = (self.0.next_u32() % 20, self.0.next_u32() % 8);
                facility << 16 | function
            }
            _ => self.0.pick(CALLS).0,
        }
    }

    fn call(&mut self) -> Call {
        let mut call = Call::new(self.id(), &[]);
        // Mostly as many arguments as are used; all others zero.
        let count = if self.0.one_in(8) { 6 } else { 2 };
        for arg in &mut call.args[..count] {
            *arg = self.argument();
        }
        if !self.0.one_in(8) {
            call.args[takes(CallId(call.id))..].fill(0);
        }
        // The test wants to see the end.
        if call.id == CALL_BASE_POWER && expected(&call).is_none() {
            call.args[0] = POWER_CRASH + 1 + self.0.below(1000);
        }
        // It writes where it is told to: not into what the guest needs.
        if call.id == CALL_RNG_FILL && matches!(expected(&call), Some(Ok(1..))) {
            call.args[0] = NOISE + self.0.below(NOISE_BYTES - RNG_FILL_MAX);
        }
        if self.0.one_in(32) {
            call.width = self.0.pick(&[1, 2]);
        }
        if self.0.one_in(32) {
            let [low, high, ..] = self.0.next_u32().to_le_bytes();
            call.port = u16::from_le_bytes([low, high]);
        }
        if self.0.one_in(4) {
            // The console's indices and flags, all of them, and what lies between.
            let value = match self.0.below(3) {
                0 => self.0.next_u32() % 0x2_0000,
                1 => u32::MAX - self.0.next_u32() % 0x2_0000,
                _ => self.0.next_u32(),
            };
            call.store = (CONSOLE_PAGE + 4 * self.0.below(64), value);
        }
        call
    }
}

/// How many arguments a call has; all six for calls that do not exist.
fn takes(id: CallId) -> usize {
    match id.0 {
        CALL_BASE_VERSION | CALL_BASE_FACILITIES | CALL_CONSOLE_NOTIFY | CALL_CLOCK_WALL
        | CALL_SMP_STOP => 0,
        CALL_BASE_PROBE | CALL_BASE_NOP | CALL_RING_UNREGISTER | CALL_RING_SUBMIT
        | CALL_SMP_STATE | CALL_DEV_STOP => 1,
        CALL_RING_REGISTER => 4,
        CALL_SMP_START => 5,
        CALL_BASE_POWER | CALL_CONSOLE_WRITE | CALL_CONSOLE_EVENT | CALL_CLOCK_EVENT
        | CALL_RNG_FILL | CALL_CRASH_REPORT | CALL_SMP_EVENT | CALL_MEM_REPORT | CALL_MEM_EVENT
        | CALL_DEV_START => 2,
        _ => 6,
    }
}

fn is_call(call: &Call) -> bool {
    call.port == DOORBELL_PORT && call.width == 4
}

/// What the specification says; `None` where that is not one certain number, or no return.
fn expected(call: &Call) -> Option<CallResult> {
    let id = CallId(call.id);
    let in_memory = |address: u64, length: u64| {
        length == 0
            || address
                .checked_add(length)
                .is_some_and(|end| end <= MEMORY_END)
    };
    if !CALLS.contains(&id) {
        return Some(Err(Status::NotSupported));
    }
    if call.args[takes(id)..].iter().any(|arg| *arg != 0) {
        return Some(Err(Status::InvalidParam));
    }
    let [first, second, ..] = call.args;
    Some(match call.id {
        CALL_BASE_VERSION => Ok(u64::from(ABI_VERSION)),
        CALL_BASE_PROBE => u32::try_from(first)
            .map(|id| u64::from(CALLS.contains(&CallId(id))))
            .map_err(|_| Status::InvalidParam),
        CALL_BASE_NOP => Ok(first),
        CALL_BASE_POWER => {
            let known =
                PowerAction::from_arg(first).is_some() && PowerReason::from_arg(second).is_some();
            if known {
                return None;
            }
            Err(Status::InvalidParam)
        }
        CALL_CONSOLE_WRITE if second > CONSOLE_WRITE_MAX => Err(Status::InvalidParam),
        CALL_CONSOLE_WRITE if !in_memory(first, second) => Err(Status::BadAddress),
        CALL_CONSOLE_WRITE => Ok(second),
        CALL_CONSOLE_NOTIFY => Ok(0),
        CALL_CONSOLE_EVENT | CALL_CLOCK_EVENT | CALL_SMP_EVENT => {
            let known = first == 0 || (EVENT_VECTOR_FIRST..=EVENT_VECTOR_LAST).contains(&first);
            if known && second == 0 {
                Ok(0)
            } else {
                Err(Status::InvalidParam)
            }
        }
        // This guest has no devices.
        CALL_DEV_START | CALL_DEV_STOP => Err(Status::InvalidParam),
        CALL_RNG_FILL if second > RNG_FILL_MAX => Err(Status::InvalidParam),
        CALL_RNG_FILL if !in_memory(first, second) => Err(Status::BadAddress),
        CALL_RNG_FILL => Ok(second),
        CALL_CRASH_REPORT if second != RECORD_BYTES => Err(Status::InvalidParam),
        CALL_CRASH_REPORT if first % 8 != 0 || !in_memory(first, second) => Err(Status::BadAddress),
        // The only record lies there.
        CALL_CRASH_REPORT if first == DATA => Ok(0),
        CALL_CRASH_REPORT => Err(Status::InvalidParam),
        // base.facilities and clock.wall have checks of their own; rings a test and a model, too.
        _ => return None,
    })
}

/// Where memory may differ afterwards: the guest's frames and the word for stores that shall not
/// matter, the place for random bytes, the boot-info page (filled at the start) and the console page.
fn may_change(frames: &Range<u64>, address: u64) -> bool {
    let scratch = crate::doctor::image::layout::SCRATCH;
    frames.contains(&address)
        || (scratch..scratch + 4096).contains(&address)
        || (NOISE..NOISE + NOISE_BYTES).contains(&address)
        || (PV_AREA..CONSOLE_PAGE + 4096).contains(&address)
}

pub(super) fn pv_call_10_a_hostile_guest_gets_exact_answers_and_harms_nobody() -> Verdict {
    let mut record = CrashRecord::new_zeroed();
    record.magic = CRASH_MAGIC;
    record.size = u32::try_from(RECORD_BYTES)?;
    let guest = Guest {
        contents: vec![(DATA, record.as_bytes().to_vec())],
        ..Guest::default()
    };
    let mut random = Hostile(Random::new(SEED));
    let mut calls: Vec<_> = (0..CALLS_MADE).map(|_| random.call()).collect();
    calls.push(Call::new(CALL_BASE_NOP, &[0x600d]));
    let ran = guest.run(&calls)?;

    check_eq!(
        ran.stats.outcome,
        Outcome::PowerOff,
        "{:?}",
        ran.stats.message
    );
    let mut answers = [0usize; 2];
    for (number, (call, after)) in calls.iter().zip(&ran.after).enumerate() {
        check_eq!(after.registers[2..8], call.args, "call {number}: {call:x?}");
        if !is_call(call) {
            let [rax, rdx, ..] = after.registers;
            check_eq!(rax, u64::from(call.id), "access {number}: {call:x?}");
            check_eq!(rdx, u64::from(call.port), "access {number}: {call:x?}");
            continue;
        }
        let found = after.result()?;
        if let Some(expected) = expected(call) {
            check_eq!(found, expected, "call {number}: {call:x?}");
        }
        answers[usize::from(found.is_ok())] += 1;
    }
    check_eq!(
        ran.after[CALLS_MADE].result()?,
        Ok(0x600d),
        "the VMM answers"
    );
    // Were one of them rare, the test would try too little.
    check!(
        answers.iter().all(|count| *count > CALLS_MADE / 10),
        "{answers:?}"
    );

    let mut now = vec![0; ran.before.len()];
    ran.memory.read(0, &mut now)?;
    let frames = ran.frames.clone();
    // In a page table the processor sets "accessed" and "dirty", bits 5 and 6.
    let tables = PAGE_TABLES..PAGE_TABLES + 6 * 4096;
    let same = |address: u64, before: u8, now: u8| {
        let ignored = if tables.contains(&address) { 0x60 } else { 0 };
        before | ignored == now | ignored
    };
    let changed = (0..)
        .zip(ran.before.iter().zip(&now))
        .find(|(at, (before, now))| !same(*at, **before, **now) && !may_change(&frames, *at));
    check_eq!(changed, None, "address, and the byte before and after");
    Ok(())
}
