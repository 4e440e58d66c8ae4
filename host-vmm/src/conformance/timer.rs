//! Facility `timer`: the device that it promises.

use paravane_abi::registry::*;

use super::guest::{Call, Guest, Mode, offered};
use super::{Verdict, discovery};

/// Leaf 1, ECX: the local APIC's timer has the TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;

pub(super) fn pv_timer_1_cpuid_has_the_deadline_mode() -> Verdict {
    check!(offered("timer")?.has(FACILITY_TIMER));
    let guest = Guest {
        mode: Mode::Cpuid,
        ..Guest::default()
    };
    let leaves = discovery::registers(&guest, &[Call::new(1, &[])])?;
    check!(leaves[0][2] & TSC_DEADLINE != 0, "ECX {:#x}", leaves[0][2]);
    Ok(())
}
