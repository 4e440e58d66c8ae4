// SPDX-License-Identifier: GPL-2.0-only

//! What `paravane.ko` shows, as numbers, and the calls that `pvbench.ko` makes. `helpers.c` exports
//! the functions.

use crate::{
    abi::call::{Status, MAX_ARGS},
    call, clock, console,
    detect::host,
};

/// Value number `which` for `paravane.ko`: 0 whether there is a Paravane host, 1 ABI version,
/// 2 facility word, 3 transport bits, 4 generation, 5 doorbells saved.
#[no_mangle]
extern "C" fn paravane_rust_value(which: u32) -> u64 {
    let Some(host) = host() else {
        return 0;
    };
    match which {
        0 => 1,
        1 => u64::from(host.info.version),
        2 => host.info.facilities,
        3 => u64::from(host.info.transports),
        4 => clock::generation().max(host.info.generation),
        5 => console::doorbells_saved(),
        _ => 0,
    }
}

/// How often call number `index` of `abi::call::CALLS` was made.
#[no_mangle]
extern "C" fn paravane_rust_call_count(index: u32) -> u64 {
    call::count(index as usize)
}

/// Makes a call for `pvbench.ko`; the status, and the value at `value`.
///
/// # Safety
///
/// There are six `arguments`, and room for a value; otherwise as for `Doorbell::call`.
#[no_mangle]
unsafe extern "C" fn paravane_rust_call(id: u32, arguments: *const u64, value: *mut u64) -> i64 {
    let Some(host) = host() else {
        return Status::NotSupported.code();
    };
    // SAFETY: By the function's requirement.
    let result = unsafe { host.call(id, *arguments.cast::<[u64; MAX_ARGS]>()) };
    let (status, got) = Status::encode(result);
    // SAFETY: As above.
    unsafe { *value = got };
    status
}
