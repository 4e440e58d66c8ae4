//! Facility `base`, host side: version, probing, power. ABI: `hypercall-abi/src/abi/base.rs`.

use paravane_abi::base::{PowerAction, PowerReason};
use paravane_abi::call::{CALLS, CallId, CallResult, Status};
use paravane_abi::registry as reg;

use super::{Args, Facility, Reply, take};
use crate::config::FacilitySet;
use crate::snapshot::Saved;
use crate::stats::Outcome;

/// The facility.
#[derive(Debug)]
pub struct Base {
    set: FacilitySet,
}

impl Base {
    /// For a guest that has `set`.
    #[must_use]
    pub fn new(set: FacilitySet) -> Self {
        Self { set }
    }

    /// Spec: PV-BASE-3
    fn probe(&self, args: &Args) -> CallResult {
        let [id] = take(args)?;
        let id = CallId(u32::try_from(id).map_err(|_| Status::InvalidParam)?);
        Ok(u64::from(
            self.set.has(id.facility()) && CALLS.contains(&id),
        ))
    }

    /// Spec: PV-BASE-5
    fn power(args: &Args) -> Result<Outcome, Status> {
        let [action, reason] = take(args)?;
        PowerReason::from_arg(reason).ok_or(Status::InvalidParam)?;
        Ok(
            match PowerAction::from_arg(action).ok_or(Status::InvalidParam)? {
                PowerAction::Off => Outcome::PowerOff,
                PowerAction::Reboot => Outcome::Reboot,
                PowerAction::Crash => Outcome::Crash,
            },
        )
    }
}

impl Saved for Base {}

impl Facility for Base {
    fn id(&self) -> u32 {
        reg::FACILITY_BASE
    }

    fn call(&self, function: u32, args: &Args) -> Reply {
        const FIRST: u32 = reg::FACILITY_BASE << 16;
        Reply::Resume(match FIRST | function {
            reg::CALL_BASE_VERSION => take(args).map(|[]| u64::from(reg::ABI_VERSION)),
            reg::CALL_BASE_FACILITIES => take(args).map(|[]| self.set.word()),
            reg::CALL_BASE_PROBE => self.probe(args),
            reg::CALL_BASE_NOP => take(args).map(|[value]| value),
            reg::CALL_BASE_POWER => match Self::power(args) {
                Ok(outcome) => return Reply::Stop(outcome),
                Err(status) => Err(status),
            },
            _ => Err(Status::NotSupported),
        })
    }
}
