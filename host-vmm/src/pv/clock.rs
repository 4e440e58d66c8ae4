//! Facility `clock`, host side: frequencies and the time of day. ABI: `hypercall-abi/src/abi/clock.rs`.

use std::time::{SystemTime, UNIX_EPOCH};

use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::{CallResult, Status};
use paravane_abi::clock::{CLOCK_TSC_RELIABLE, ClockInfo};
use paravane_abi::registry as reg;

use super::{Args, Facility, Reply, take};
use crate::memory::{Memory, MemoryError};

/// KVM's LAPIC timer counts nanoseconds (api.rst, `KVM_CAP_X86_APIC_BUS_CYCLES_NS`, the default).
const APIC_TIMER_HZ: u64 = 1_000_000_000;

/// The facility.
#[derive(Debug)]
pub struct Clock {
    tsc_hz: u64,
    guest_tsc: u64,
    reliable: bool,
}

impl Clock {
    /// A guest whose TSC counts at `tsc_hz` and reads `guest_tsc` now; `reliable`: on all vCPUs alike
    /// and without stops.
    #[must_use]
    pub fn new(tsc_hz: u64, guest_tsc: u64, reliable: bool) -> Self {
        Self {
            tsc_hz,
            guest_tsc,
            reliable,
        }
    }

    /// Spec: PV-CLOCK-3
    fn wall() -> CallResult {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_err(|_| Status::HostError)?;
        u64::try_from(since.as_nanos()).map_err(|_| Status::HostError)
    }
}

impl Facility for Clock {
    fn id(&self) -> u32 {
        reg::FACILITY_CLOCK
    }

    fn describe(&self, _memory: &Memory, info: &mut BootInfo) -> Result<(), MemoryError> {
        info.clock = ClockInfo {
            tsc_hz: self.tsc_hz,
            apic_timer_hz: APIC_TIMER_HZ,
            wall_ns: Self::wall().unwrap_or(0),
            wall_tsc: self.guest_tsc,
            flags: if self.reliable { CLOCK_TSC_RELIABLE } else { 0 },
            ..ClockInfo::default()
        };
        Ok(())
    }

    fn call(&self, function: u32, args: &Args) -> Reply {
        const FIRST: u32 = reg::FACILITY_CLOCK << 16;
        Reply::Resume(match FIRST | function {
            reg::CALL_CLOCK_WALL => take(args).and_then(|[]| Self::wall()),
            _ => Err(Status::NotSupported),
        })
    }
}
