//! A guest whose other processor writes to what a call's argument names, while the call is carried
//! out. Here that processor is a thread.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use paravane::memory::Memory;
use paravane::pv::crash::{Crash, LastWords};
use paravane::pv::{Facility, Reply};
use paravane_abi::call::{CallId, Status};
use paravane_abi::crash::{CRASH_MAGIC, CRASH_MESSAGE_MAX, CrashRecord};
use paravane_abi::registry::CALL_CRASH_REPORT;
use zerocopy::FromZeros;

const RECORD: u64 = 0x60_0000;
const CALLS_MADE: usize = 20_000;

#[test]
fn pv_sec_1_what_is_used_is_what_was_checked() {
    let memory = Memory::new(32).unwrap();
    let length = size_of::<CrashRecord>() as u64;
    let mut record = CrashRecord::new_zeroed();
    record.magic = CRASH_MAGIC;
    record.size = u32::try_from(length).unwrap();
    memory.write_obj(RECORD, &record).unwrap();
    let last_words = LastWords::default();
    let crash = Crash::new(memory.clone(), Arc::clone(&last_words));

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let field = RECORD + offset_of!(CrashRecord, message_len) as u64;
            let good = u32::try_from(CRASH_MESSAGE_MAX).unwrap();
            while !stop.load(Ordering::Relaxed) {
                for value in [good, u32::MAX] {
                    memory.store_u32(field, value, Ordering::Relaxed).unwrap();
                }
            }
        });
        let function = CallId(CALL_CRASH_REPORT).function();
        for _ in 0..CALLS_MADE {
            let kept = match crash.call(function, &[RECORD, length, 0, 0, 0, 0]) {
                Reply::Resume(Ok(0)) => last_words.lock().unwrap().take().unwrap(),
                Reply::Resume(Err(Status::InvalidParam)) => continue,
                other => panic!("{other:?}"),
            };
            assert!(kept.message_len as usize <= CRASH_MESSAGE_MAX, "{kept:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}
