//! See `paravane_fuzz::calls`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::calls::run(data));
