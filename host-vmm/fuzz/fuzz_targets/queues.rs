//! See `paravane_fuzz::queues`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::queues::run(data));
