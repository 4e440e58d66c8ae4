//! See `paravane_fuzz::image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paravane_fuzz::image::run(data));
