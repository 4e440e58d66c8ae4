//! See `paravane_fuzz::devices`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::devices::run(data));
