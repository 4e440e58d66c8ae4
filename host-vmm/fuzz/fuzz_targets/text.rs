//! See `paravane_fuzz::text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::text::run(data));
