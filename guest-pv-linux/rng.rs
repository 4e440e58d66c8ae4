// SPDX-License-Identifier: GPL-2.0-only

//! Facility `rng`: the host's random numbers, before the kernel has measured any.
//!
//! A kernel on a PC has RDRAND, or waits for its interrupts; here the boot-info page names a seed.
//! It is credited as a boot loader's is: with `random.trust_bootloader=off` the kernel mixes it in
//! and goes on waiting.

use crate::{abi::registry::*, detect::host, kernel_c, shared_page::SharedRange};
use core::hint::black_box;
use kernel::prelude::*;

/// Most bytes of the seed that are used: those of the kernel's key, twice.
const SEED_MAX: usize = 64;

/// Takes the seed, and wipes it: it has made keys, and nobody shall find it later.
#[no_mangle]
#[link_section = ".init.text"]
extern "C" fn paravane_seed_rng() {
    let Some(info) = host().map(|host| host.info) else {
        return;
    };
    let length = (info.rng.length as usize).min(SEED_MAX);
    if !info.has(FACILITY_RNG) || length == 0 {
        return;
    }
    let Some(page) = SharedRange::new(info.rng.address, info.rng.length.into()) else {
        pr_warn!(
            "rng: a seed of {} bytes at {:#x} cannot be; not used\n",
            info.rng.length,
            info.rng.address
        );
        return;
    };
    let mut seed = [0; SEED_MAX];
    page.copy_out(0, &mut seed[..length]);
    // SAFETY: The kernel reads so many bytes. It is booting: this function is one of its init.
    unsafe { kernel_c::add_bootloader_randomness(seed.as_ptr().cast(), length) };
    seed.fill(0);
    black_box(&seed);
    let mut at = 0;
    while at < info.rng.length as usize {
        let part = (info.rng.length as usize - at).min(SEED_MAX);
        page.copy_in(at, &seed[..part]);
        at += part;
    }
}
