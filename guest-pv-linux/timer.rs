// SPDX-License-Identifier: GPL-2.0-only

//! Facility `timer`: deadlines that are remembered rather than written.
//!
//! The device itself is `timer_device.c`, which says why it is C.

use crate::{abi::registry::*, detect::host};

/// Whether the host has facility `timer`, and the frequency that its deadlines count in.
#[no_mangle]
extern "C" fn paravane_has_timer() -> bool {
    host().is_some_and(|host| host.info.has(FACILITY_TIMER) && host.info.has(FACILITY_CLOCK))
}
