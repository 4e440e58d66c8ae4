//! The reference model: calls and rings as `SPEC.md` has them, on a plain array of bytes.
//!
//! It is meant to be read beside the specification. It shares the numbers and layouts with the VMM, and
//! nothing else: no atomics, no facilities, no dispatcher. What the specification leaves to the host
//! (`host_looks`, the clock) is not in it.

use std::mem::offset_of;

use paravane::config::FacilitySet;
use paravane_abi::boot_info::BOOT_INFO_MAGIC;
use paravane_abi::call::{CallResult, Status};
use paravane_abi::console::ConsolePage;
use paravane_abi::crash::CRASH_MAGIC;
use paravane_abi::registry::*;
use paravane_abi::ring::{RingEntry, RingHeader};

/// Where the console page is, and the size of the output buffer behind it.
pub(crate) const CONSOLE_PAGE: usize = 0xe_1000;
const OUT_SIZE: u32 = 0x1_0000;
const RECORD: usize = size_of::<paravane_abi::crash::CrashRecord>();

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The guest goes on.
    Back(CallResult),
    /// The machine stops; the power action.
    Stop(u64),
}

/// A registered ring.
#[derive(Clone, Copy, Debug)]
struct Ring {
    at: usize,
    entries: u32,
    tail: u32,
}

/// A host.
pub(crate) struct Model {
    /// The guest's memory.
    pub(crate) memory: Vec<u8>,
    /// What has been printed.
    pub(crate) console: Vec<u8>,
    out_tail: u32,
    rings: Vec<Option<Ring>>,
}

use Answer::{Back, Stop};

const INVALID: Answer = Back(Err(Status::InvalidParam));
const BAD: Answer = Back(Err(Status::BadAddress));
const DENIED: Answer = Back(Err(Status::Denied));

impl Model {
    /// A host whose guest has this memory.
    pub(crate) fn new(bytes: usize, vcpus: usize) -> Self {
        Self {
            memory: vec![0; bytes],
            console: Vec::new(),
            out_tail: 0,
            rings: vec![None; vcpus],
        }
    }

    /// The facility word: all that the host was told to offer.
    fn word() -> u64 {
        FacilitySet::default().without(FACILITY_CLOCK).word()
    }

    /// How many arguments a call takes; `None`: there is no such call. PV-CALL-3, PV-CALL-4
    fn takes(id: u32) -> Option<usize> {
        Some(match id {
            CALL_BASE_VERSION | CALL_BASE_FACILITIES | CALL_CONSOLE_NOTIFY => 0,
            CALL_BASE_PROBE | CALL_BASE_NOP | CALL_RING_UNREGISTER | CALL_RING_SUBMIT => 1,
            CALL_BASE_POWER | CALL_CONSOLE_WRITE | CALL_CONSOLE_EVENT | CALL_CRASH_REPORT => 2,
            CALL_RING_REGISTER => 4,
            _ => return None,
        })
    }

    /// A call through the doorbell.
    pub(crate) fn call(&mut self, id: u32, args: [u64; 6]) -> Answer {
        let Some(takes) = Self::takes(id) else {
            return Back(Err(Status::NotSupported));
        };
        if args[takes..].iter().any(|unused| *unused != 0) {
            return INVALID;
        }
        match id {
            CALL_BASE_VERSION => Back(Ok(u64::from(ABI_VERSION))),
            CALL_BASE_FACILITIES => Back(Ok(Self::word())),
            CALL_BASE_PROBE => match u32::try_from(args[0]) {
                Ok(id) => Back(Ok(u64::from(Self::takes(id).is_some()))),
                Err(_) => INVALID,
            },
            CALL_BASE_NOP => Back(Ok(args[0])),
            CALL_BASE_POWER if args[0] > POWER_CRASH || args[1] > POWER_REASON_EMERGENCY => INVALID,
            CALL_BASE_POWER => Stop(args[0]),
            CALL_CONSOLE_WRITE => self.console_write(args[0], args[1]),
            CALL_CONSOLE_NOTIFY => {
                self.console_drain();
                Back(Ok(0))
            }
            CALL_CONSOLE_EVENT => {
                let vector =
                    args[0] == 0 || (EVENT_VECTOR_FIRST..=EVENT_VECTOR_LAST).contains(&args[0]);
                if vector && args[1] < self.rings.len() as u64 {
                    Back(Ok(0))
                } else {
                    INVALID
                }
            }
            CALL_CRASH_REPORT => self.crash_report(args[0], args[1]),
            CALL_RING_REGISTER => self.ring_register(args),
            CALL_RING_UNREGISTER => self.ring_unregister(args[0]),
            _ => self.ring_submit(args[0]),
        }
    }

    /// The range as indices, where it lies wholly in memory.
    fn range(&self, address: u64, length: u64) -> Option<std::ops::Range<usize>> {
        let end = address.checked_add(length)?;
        if end > self.memory.len() as u64 {
            return None;
        }
        Some(usize::try_from(address).ok()?..usize::try_from(end).ok()?)
    }

    /// A `u32` of memory.
    pub(crate) fn get(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.memory[at..at + 4].try_into().unwrap())
    }

    fn get_u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.memory[at..at + 8].try_into().unwrap())
    }

    /// Stores to memory, as the guest does.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// PV-CONSOLE-4, PV-CONSOLE-5
    fn console_drain(&mut self) {
        let head = self.get(CONSOLE_PAGE + offset_of!(ConsolePage, out_head));
        if head.wrapping_sub(self.out_tail) <= OUT_SIZE {
            while self.out_tail != head {
                let at = CONSOLE_PAGE + 4096 + (self.out_tail % OUT_SIZE) as usize;
                self.console.push(self.memory[at]);
                self.out_tail = self.out_tail.wrapping_add(1);
            }
        }
        self.out_tail = head;
        let at = CONSOLE_PAGE + offset_of!(ConsolePage, out_tail);
        self.put(at, &head.to_le_bytes());
    }

    /// PV-CONSOLE-1
    fn console_write(&mut self, address: u64, length: u64) -> Answer {
        if length > CONSOLE_WRITE_MAX {
            return INVALID;
        }
        // Nothing is everywhere.
        let range = if length == 0 {
            0..0
        } else if let Some(range) = self.range(address, length) {
            range
        } else {
            return BAD;
        };
        self.console_drain();
        self.console.extend_from_slice(&self.memory[range]);
        Back(Ok(length))
    }

    /// PV-CRASH-2, PV-CRASH-3
    fn crash_report(&self, address: u64, length: u64) -> Answer {
        use paravane_abi::crash::*;
        if length != RECORD as u64 {
            return INVALID;
        }
        let range = match self.range(address, length) {
            Some(range) if address.is_multiple_of(8) => range,
            _ => return BAD,
        };
        let field = |offset: usize| self.get(range.start + offset) as usize;
        let sound = self.get_u64(range.start) == CRASH_MAGIC
            && field(offset_of!(CrashRecord, size)) == RECORD
            && field(offset_of!(CrashRecord, reserved0)) == 0
            && field(offset_of!(CrashRecord, backtrace_len)) <= CRASH_BACKTRACE_MAX
            && field(offset_of!(CrashRecord, message_len)) <= CRASH_MESSAGE_MAX
            && field(offset_of!(CrashRecord, log_len)) <= CRASH_LOG_MAX;
        if sound { Back(Ok(0)) } else { INVALID }
    }

    /// The processor with that APIC id.
    fn processor(&self, apic_id: u64) -> Option<usize> {
        usize::try_from(apic_id)
            .ok()
            .filter(|index| *index < self.rings.len())
    }

    /// PV-RING-2, PV-RING-3; this host has no exitless rings.
    fn ring_register(&mut self, args: [u64; 6]) -> Answer {
        let [apic_id, address, entries, flags, ..] = args;
        let Some(processor) = self.processor(apic_id) else {
            return INVALID;
        };
        if ![1, 2, 4, 8, 16, 32, 64, 128, 256].contains(&entries) || flags != 0 {
            return INVALID;
        }
        let bytes = 128 + 64 * entries;
        let Some(range) = self.range(address, bytes).filter(|_| address % 4096 == 0) else {
            return BAD;
        };
        if self.rings[processor].is_some() {
            return DENIED;
        }
        self.put(range.start + offset_of!(RingHeader, tail), &[0; 8]);
        self.rings[processor] = Some(Ring {
            at: range.start,
            entries: u32::try_from(entries).unwrap(),
            tail: 0,
        });
        Back(Ok(0))
    }

    /// PV-RING-4
    fn ring_unregister(&mut self, apic_id: u64) -> Answer {
        let Some(processor) = self.processor(apic_id) else {
            return INVALID;
        };
        match self.rings[processor].take() {
            Some(_) => Back(Ok(0)),
            None => DENIED,
        }
    }

    /// PV-RING-5 to PV-RING-11
    fn ring_submit(&mut self, apic_id: u64) -> Answer {
        let Some(processor) = self.processor(apic_id) else {
            return INVALID;
        };
        let Some(ring) = self.rings[processor] else {
            return DENIED;
        };
        let tail_at = ring.at + offset_of!(RingHeader, tail);
        let head = self.get(ring.at + offset_of!(RingHeader, head));
        let waiting = head.wrapping_sub(ring.tail);
        let set_tail = |model: &mut Self, tail: u32| {
            model.put(tail_at, &tail.to_le_bytes());
            model.rings[processor] = Some(Ring { tail, ..ring });
        };
        if waiting > ring.entries {
            set_tail(self, head);
            return Back(Ok(0));
        }
        for number in 0..waiting {
            let index = ring.tail.wrapping_add(number);
            let entry = ring.at + 128 + 64 * (index % ring.entries) as usize;
            let id = self.get(entry + offset_of!(RingEntry, call));
            let args_at = entry + offset_of!(RingEntry, args);
            let args = std::array::from_fn(|arg| self.get_u64(args_at + 8 * arg));
            let answer = if id >> 16 == FACILITY_RING {
                INVALID
            } else {
                self.call(id, args)
            };
            let (status, value) = match answer {
                Stop(action) => return Stop(action),
                Back(Ok(value)) => (0, value),
                Back(Err(status)) => (status.code(), 0),
            };
            let status = i32::try_from(status).unwrap();
            self.put(entry + offset_of!(RingEntry, status), &status.to_le_bytes());
            self.put(entry + offset_of!(RingEntry, value), &value.to_le_bytes());
            set_tail(self, index.wrapping_add(1));
        }
        Back(Ok(u64::from(waiting)))
    }
}

/// Records that are sound, at some places.
pub(crate) fn crash_record() -> Vec<u8> {
    let mut record = vec![0; RECORD];
    record[..8].copy_from_slice(&CRASH_MAGIC.to_le_bytes());
    let size = u32::try_from(RECORD).unwrap();
    record[8..12].copy_from_slice(&size.to_le_bytes());
    // Something that is not a record, too.
    record.extend_from_slice(&BOOT_INFO_MAGIC.to_le_bytes());
    record
}
