//! Paravane's calls, one file a facility, and the dispatcher.
//!
//! A call arrives as a number and six more numbers that a hostile guest chose. The dispatcher finds
//! the facility; the facility checks every argument before it does anything. What it returns is a
//! status or a value; it never panics and never writes outside guest memory. A guest without
//! Paravane has a dispatcher without facilities: the null implementation.

pub mod base;
pub mod clock;
pub mod console;
pub mod crash;

use std::fmt;

use paravane_abi::boot_info::{BOOT_INFO_MAGIC, BootInfo};
use paravane_abi::call::{CallId, CallResult, MAX_ARGS, Status};
use paravane_abi::registry as reg;

use crate::config::FacilitySet;
use crate::memory::{Memory, MemoryError, PV_AREA};
use crate::stats::Outcome;

/// The doorbell's port: `PV` in ASCII, far from what a PC has.
pub const DOORBELL_PORT: u16 = 0x5650;
/// The boot-info page.
pub const BOOT_INFO: u64 = PV_AREA;
/// The console page; the output buffer follows, then the input buffer.
pub const CONSOLE_PAGE: u64 = PV_AREA + 0x1000;

/// Arguments of a call.
pub type Args = [u64; MAX_ARGS];

/// What a call leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The guest goes on, with this.
    Resume(CallResult),
    /// The guest does not go on.
    Stop(Outcome),
}

impl From<CallResult> for Reply {
    fn from(result: CallResult) -> Self {
        Self::Resume(result)
    }
}

/// A paravirtual facility: one mechanism that replaces privileged operations.
pub trait Facility: fmt::Debug + Send + Sync {
    /// Its id in the ABI's registry.
    fn id(&self) -> u32;

    /// Fills in its part of the boot-info page.
    fn describe(&self, _info: &mut BootInfo) {}

    /// Carries out its function number `function`.
    fn call(&self, function: u32, args: &Args) -> Reply;
}

/// The first `N` arguments, if all others are zero. Spec: PV-CALL-3
fn take<const N: usize>(args: &Args) -> Result<[u64; N], Status> {
    let (used, unused) = args.split_at(N);
    if unused.iter().any(|arg| *arg != 0) {
        return Err(Status::InvalidParam);
    }
    used.try_into().map_err(|_| Status::InvalidParam)
}

/// The facilities of one guest.
#[derive(Debug, Default)]
pub struct Paravirt {
    facilities: Vec<Box<dyn Facility>>,
    set: FacilitySet,
}

impl Paravirt {
    /// A guest that has no Paravane: full and kvm-pv.
    #[must_use]
    pub fn none() -> Self {
        Self {
            facilities: Vec::new(),
            set: FacilitySet::NONE,
        }
    }

    /// These facilities, as far as they are in `set`.
    #[must_use]
    pub fn new(set: FacilitySet, facilities: Vec<Box<dyn Facility>>) -> Self {
        let facilities = facilities.into_iter().filter(|f| set.has(f.id())).collect();
        Self { facilities, set }
    }

    /// Whether this guest has the doorbell.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.set != FacilitySet::NONE
    }

    /// Carries out a call.
    pub fn call(&self, id: CallId, args: &Args) -> Reply {
        match self.facilities.iter().find(|f| f.id() == id.facility()) {
            Some(facility) => facility.call(id.function(), args),
            None => Reply::Resume(Err(Status::NotSupported)),
        }
    }

    /// Writes the boot-info page. Spec: PV-BOOT-1
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`] where guest memory is too small to have the page.
    pub fn write_boot_info(&self, memory: &Memory, vcpus: u8) -> Result<(), MemoryError> {
        if !self.is_present() {
            return Ok(());
        }
        let mut info = BootInfo {
            magic: BOOT_INFO_MAGIC,
            version: reg::ABI_VERSION,
            size: u32::try_from(size_of::<BootInfo>()).unwrap_or(0),
            facilities: self.set.word(),
            transports: reg::TRANSPORT_DOORBELL,
            doorbell_port: u32::from(DOORBELL_PORT),
            vcpu_count: u32::from(vcpus),
            ..BootInfo::default()
        };
        for facility in &self.facilities {
            facility.describe(&mut info);
        }
        memory.write_obj(BOOT_INFO, &info)
    }
}
