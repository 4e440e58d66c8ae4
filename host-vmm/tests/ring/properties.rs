//! The reference model and the VMM's dispatcher side by side: the same guest, the same answers, the same
//! memory, the same console. The seed is fixed: each run does the same.

use std::mem::offset_of;
use std::sync::atomic::{Ordering, fence};

use paravane::pv::Reply;
use paravane::stats::Outcome;
use paravane_abi::call::CALLS;
use paravane_abi::console::ConsolePage;
use paravane_abi::registry::*;
use paravane_abi::ring::{RING_EXITLESS, RingEntry, entry_offset};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use zerocopy::IntoBytes;

use crate::host::{Host, MEMORY_END, RING, VCPUS};
use crate::model::{Answer, CONSOLE_PAGE, Model, crash_record};

/// Where a sound crash record lies.
const RECORD: u64 = 0x4_0000;

/// What a guest does.
#[derive(Clone, Debug)]
enum Step {
    /// A call through the doorbell.
    Call(u32, [u64; 6]),
    /// Fills the entry with that index of a ring at that place.
    Entry(u64, u32, u32, [u64; 6]),
    /// Moves a head on: that of a ring at this place, or the console's.
    Advance(u64, u32),
    /// Stores anything to the first page of a ring, or to the console's page.
    Store(u64, u64, u32),
}

/// Pages where rings are; the console's is one of them.
fn places() -> BoxedStrategy<u64> {
    prop_oneof![
        6 => Just(RING),
        2 => Just(RING + 0x1000),
        1 => Just(MEMORY_END - 0x1000),
        1 => Just(CONSOLE_PAGE as u64),
    ]
    .boxed()
}

fn numbers() -> BoxedStrategy<u64> {
    prop_oneof![
        8 => 0..20_u64,
        4 => places(),
        1 => Just(RECORD),
        1 => Just(MEMORY_END - 3),
        1 => Just(CONSOLE_WRITE_MAX + 1),
        1 => Just(0x41_u64),
        1 => Just(u64::MAX - 0xfff),
        1 => any::<u64>(),
        1 => any::<u64>().prop_map(|shift| 1 << (shift % 64)),
    ]
    .boxed()
}

/// A call and its arguments. Rarely one that stops the machine: little would be tried then.
fn calls() -> BoxedStrategy<(u32, [u64; 6])> {
    let id = prop_oneof![
        30 => proptest::sample::select(CALLS.to_vec()).prop_map(|id| id.0),
        1 => any::<u32>(),
        1 => (0..20_u32, 0..8_u32).prop_map(|(facility, function)| facility << 16 | function),
    ];
    let args = proptest::array::uniform6(numbers());
    (id, args, 0..40_u32)
        .prop_map(|(id, mut args, luck)| {
            let takes = match id {
                CALL_RING_REGISTER => 4,
                CALL_BASE_NOP | CALL_BASE_PROBE | CALL_RING_SUBMIT | CALL_RING_UNREGISTER => 1,
                CALL_BASE_POWER | CALL_CONSOLE_WRITE | CALL_CONSOLE_EVENT | CALL_CRASH_REPORT => 2,
                _ => 0,
            };
            if luck > 0 {
                args[takes..].fill(0);
            }
            match id {
                CALL_CRASH_REPORT if luck > 5 => args[..2].copy_from_slice(&[RECORD, 2624]),
                CALL_BASE_POWER if luck > 0 => args[0] |= 0x100,
                CALL_BASE_POWER => args = [args[0] % 3, args[1] % 3, 0, 0, 0, 0],
                // Short: `host_looks` stands further on in its pages, and is the host's own business.
                CALL_CONSOLE_WRITE if args[1] <= CONSOLE_WRITE_MAX => args[1] %= 40,
                _ => {}
            }
            (id, args)
        })
        .boxed()
}

fn steps() -> BoxedStrategy<Step> {
    let register = (0..3_u64, places(), 0..9_u32, any::<bool>());
    prop_oneof![
        6 => calls().prop_map(|(id, args)| Step::Call(id, args)),
        2 => register.prop_map(|(vcpu, at, order, odd)| {
            let flags = u64::from(odd && order == 3);
            Step::Call(CALL_RING_REGISTER, [vcpu, at, 1 << order, flags, 0, 0])
        }),
        8 => (0..3_u64).prop_map(|vcpu| Step::Call(CALL_RING_SUBMIT, [vcpu / 2, 0, 0, 0, 0, 0])),
        12 => (places(), 0..16_u32, calls())
            .prop_map(|(at, index, (id, args))| Step::Entry(at, index, id, args)),
        8 => (places(), 0..12_u32).prop_map(|(at, by)| Step::Advance(at, by)),
        2 => (places(), 0..64_u64, any::<u32>())
            .prop_map(|(at, word, value)| Step::Store(at, word, value)),
    ]
    .boxed()
}

fn outcome(action: u64) -> Outcome {
    match action {
        POWER_OFF => Outcome::PowerOff,
        POWER_REBOOT => Outcome::Reboot,
        _ => Outcome::Crash,
    }
}

/// The two of them.
struct Pair {
    host: Host,
    model: Model,
}

impl Pair {
    fn new(facilities: &str) -> Self {
        let host = Host::new(facilities);
        let bytes = usize::try_from(MEMORY_END).unwrap();
        let mut pair = Self {
            host,
            model: Model::new(bytes, usize::from(VCPUS)),
        };
        pair.put(RECORD, &crash_record());
        pair
    }

    /// A store of the guest.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.host.memory.write(at, bytes).unwrap();
        self.model.put(usize::try_from(at).unwrap(), bytes);
    }

    /// A call of the guest. Whether it goes on.
    fn call(&mut self, id: u32, args: [u64; 6]) -> Result<bool, TestCaseError> {
        let found = self.host.call(id, &args);
        let expected = match self.model.call(id, args) {
            Answer::Back(result) => Reply::Resume(result),
            Answer::Stop(action) => Reply::Stop(outcome(action)),
        };
        prop_assert_eq!(found, expected, "call {:#x} {:x?}", id, args);
        Ok(matches!(found, Reply::Resume(_)))
    }

    fn entry(&mut self, ring: u64, index: u32, entries: u32, id: u32, args: [u64; 6]) {
        let entry = RingEntry {
            call: id,
            args,
            ..RingEntry::default()
        };
        let at = ring + entry_offset(index, entries);
        self.put(at, entry.as_bytes());
    }

    fn step(&mut self, step: &Step) -> Result<bool, TestCaseError> {
        match *step {
            Step::Call(id, args) => return self.call(id, args),
            Step::Entry(at, index, id, args) => self.entry(at, index, 16, id, args),
            Step::Advance(at, by) => {
                let head = self.model.get(usize::try_from(at).unwrap());
                self.put(at, &head.wrapping_add(by).to_le_bytes());
            }
            Step::Store(at, word, value) => self.put(at + 4 * word, &value.to_le_bytes()),
        }
        Ok(true)
    }

    /// Memory and console are the same, but for what is left to the host.
    fn compare(&self) -> Result<(), TestCaseError> {
        let mut found = vec![0; self.model.memory.len()];
        self.host.memory.read(0, &mut found).unwrap();
        let mut expected = self.model.memory.clone();
        let rings = [RING, RING + 0x1000, MEMORY_END - 0x1000];
        let pages = rings.map(|at| usize::try_from(at).unwrap());
        for page in pages.into_iter().chain([CONSOLE_PAGE]) {
            let looks = page + offset_of!(ConsolePage, host_looks);
            found[looks..looks + 4].fill(0);
            expected[looks..looks + 4].fill(0);
        }
        let differ = found.iter().zip(&expected).position(|(a, b)| a != b);
        prop_assert_eq!(differ, None, "memory differs at this address");
        prop_assert!(self.host.console.contents() == self.model.console);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x5249_4e47),
        ..ProptestConfig::default()
    })]

    #[test]
    fn pv_ring_6_the_vmm_does_as_the_model(steps in proptest::collection::vec(steps(), 1..120)) {
        let mut pair = Pair::new("-clock,-exitless");
        for step in &steps {
            if !pair.step(step)? {
                break;
            }
        }
        pair.compare()?;
    }
}

proptest! {
    // Fewer: each starts a poller.
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x5249_4e47),
        ..ProptestConfig::default()
    })]

    #[test]
    fn pv_ring_12_the_poller_does_as_the_model(
        batches in proptest::collection::vec(proptest::collection::vec(calls(), 1..8), 1..12)
    ) {
        const ENTRIES: u32 = 8;
        let mut pair = Pair::new("-clock");
        // The model has no exitless rings: it takes this one for another, and submits each batch.
        pair.host.register(ENTRIES, RING_EXITLESS);
        let registered = pair.model.call(CALL_RING_REGISTER, [0, RING, u64::from(ENTRIES), 0, 0, 0]);
        prop_assert_eq!(registered, Answer::Back(Ok(0)));
        let mut head = 0_u32;
        for batch in batches {
            for (id, args) in batch {
                pair.entry(RING, head, ENTRIES, id, args);
                head += 1;
            }
            pair.model.put(usize::try_from(RING).unwrap(), &head.to_le_bytes());
            let stops = matches!(
                pair.model.call(CALL_RING_SUBMIT, [0; 6]),
                Answer::Stop(_)
            );
            pair.host.publish(head);
            fence(Ordering::SeqCst);
            if !pair.host.looks() {
                let reply = pair.host.call(CALL_RING_SUBMIT, &[0]);
                if let Reply::Stop(outcome) = reply {
                    pair.host.end.stop(outcome, None);
                }
            }
            crate::poller::wait_until("a batch", || {
                pair.host.tail() == head || pair.host.end.is_stopping()
            });
            prop_assert_eq!(pair.host.end.is_stopping(), stops);
            if stops {
                break;
            }
        }
        pair.compare()?;
    }
}
