// SPDX-License-Identifier: GPL-2.0-only

//! Facility `rng`: the host's random numbers, before the kernel has measured any.
//!
//! A kernel on a PC has RDRAND, or waits for its interrupts; here the boot-info page names a seed.
//! It is credited as a boot loader's is: with `random.trust_bootloader=off` the kernel mixes it in
//! and goes on waiting. A machine that is a copy of another asks for more.

use crate::{abi::registry::*, detect::host, kernel_c, shared_page::SharedRange};
use core::{cell::UnsafeCell, hint::black_box, ptr};
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

/// Bytes that a copy asks the host for.
const RESEED_BYTES: usize = 32;

/// A buffer that the host can write to: a static object has an address that it knows, a stack not
/// always.
struct Fresh(UnsafeCell<[u8; RESEED_BYTES]>);

// SAFETY: Only `reseed` touches the bytes, and one work item at a time calls it.
unsafe impl Sync for Fresh {}

static FRESH: Fresh = Fresh(UnsafeCell::new([0; RESEED_BYTES]));

/// Makes the kernel's generator another one than that of the machine that this one is a copy of.
/// `generation` does where the host has no random numbers: it is unique, though no secret.
///
/// # Safety
///
/// Nobody else is in this function.
pub(crate) unsafe fn reseed(generation: u64) {
    let fresh = FRESH.0.get().cast::<u8>();
    // SAFETY: `fresh` is a static object.
    let address = unsafe { kernel_c::paravane_pa(fresh.cast_const().cast()) };
    let arguments = [address, RESEED_BYTES as u64];
    let host = host().filter(|host| host.info.has(FACILITY_RNG));
    // SAFETY: The host writes so many bytes to an object that nobody else uses.
    if host.is_some_and(|host| unsafe { host.call(CALL_RNG_FILL, arguments) }.is_ok()) {
        // SAFETY: The kernel reads so many bytes; a work item can sleep.
        unsafe { kernel_c::add_vmfork_randomness(fresh.cast_const().cast(), RESEED_BYTES) };
        // SAFETY: Nobody else uses the object.
        unsafe { ptr::write_volatile(fresh.cast::<[u8; RESEED_BYTES]>(), [0; RESEED_BYTES]) };
    } else {
        let id = generation.to_ne_bytes();
        // SAFETY: As above.
        unsafe { kernel_c::add_vmfork_randomness(id.as_ptr().cast(), id.len()) };
    }
}
