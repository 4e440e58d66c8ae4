//! Facility `crash`, host side: takes a panic record. ABI: `hypercall-abi/src/abi/crash.rs`.

use std::sync::{Arc, Mutex};

use paravane_abi::call::{CallResult, Status};
use paravane_abi::crash::{
    CRASH_BACKTRACE_MAX, CRASH_LOG_MAX, CRASH_MAGIC, CRASH_MESSAGE_MAX, CrashRecord,
};
use paravane_abi::registry as reg;

use super::{Args, Facility, Reply, take};
use crate::memory::Memory;
use crate::snapshot::Saved;
use crate::sync::lock;

/// The last record that a guest has left.
pub type LastWords = Arc<Mutex<Option<Box<CrashRecord>>>>;

/// The facility.
#[derive(Debug)]
pub struct Crash {
    memory: Memory,
    last_words: LastWords,
}

impl Crash {
    /// Records go to `last_words`.
    #[must_use]
    pub fn new(memory: Memory, last_words: LastWords) -> Self {
        Self { memory, last_words }
    }

    /// Spec: PV-CRASH-1, PV-CRASH-2
    fn report(&self, args: &Args) -> CallResult {
        let [address, length] = take(args)?;
        if length != size_of::<CrashRecord>() as u64 {
            return Err(Status::InvalidParam);
        }
        if address % align_of::<CrashRecord>() as u64 != 0 {
            return Err(Status::BadAddress);
        }
        let record: CrashRecord = self
            .memory
            .read_obj(address)
            .map_err(|_| Status::BadAddress)?;
        let fits = |length: u32, max: usize| length as usize <= max;
        let sound = record.magic == CRASH_MAGIC
            && u64::from(record.size) == length
            && record.reserved0 == 0
            && fits(record.backtrace_len, CRASH_BACKTRACE_MAX)
            && fits(record.message_len, CRASH_MESSAGE_MAX)
            && fits(record.log_len, CRASH_LOG_MAX);
        if !sound {
            return Err(Status::InvalidParam);
        }
        *lock(&self.last_words) = Some(Box::new(record));
        Ok(0)
    }
}

impl Saved for Crash {}

impl Facility for Crash {
    fn id(&self) -> u32 {
        reg::FACILITY_CRASH
    }

    fn call(&self, function: u32, args: &Args) -> Reply {
        const FIRST: u32 = reg::FACILITY_CRASH << 16;
        Reply::Resume(match FIRST | function {
            reg::CALL_CRASH_REPORT => self.report(args),
            _ => Err(Status::NotSupported),
        })
    }
}
