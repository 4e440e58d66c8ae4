//! Paravane's calls, one file a facility, and the dispatcher.
//!
//! A call arrives as a number and six more numbers that a hostile guest chose. The dispatcher finds
//! the facility; the facility checks every argument before it does anything. What it returns is a
//! status or a value; it never panics and never writes outside guest memory. A guest without
//! Paravane has a dispatcher without facilities: the null implementation.

pub mod base;
pub mod clock;
pub mod console;
pub mod cpuid;
pub mod crash;
pub mod delegate;
pub mod dev;
pub mod event;
pub mod looks;
pub mod mem;
pub mod ring;
pub mod rng;
pub mod smp;
pub mod timer;

use std::fmt;
use std::sync::Arc;

use kvm_bindings::kvm_regs;
use paravane_abi::boot_info::{BOOT_INFO_MAGIC, BootInfo};
use paravane_abi::call::{CallId, CallResult, MAX_ARGS, Status};
use paravane_abi::registry as reg;

use self::ring::Rings;
use crate::config::{FACILITIES, FacilitySet, slot};
use crate::end::End;
use crate::memory::{Memory, MemoryError, PV_AREA};
use crate::pause::Pause;
use crate::snapshot::Saved;
use crate::stats::Outcome;

/// The doorbell's port. KVM steps over an OUT to this one before it exits (`KVM_X86_QUIRK_OUT_7E_INC_RIP`),
/// so nothing is left to be completed on the way back: `doctor` sees it. No PC has a device there.
pub const DOORBELL_PORT: u16 = 0x7e;
/// The boot-info page.
pub const BOOT_INFO: u64 = PV_AREA;
/// Where `generation` is in it.
pub(crate) const GENERATION_AT: u64 = BOOT_INFO + std::mem::offset_of!(BootInfo, generation) as u64;
/// The console page; the output buffer follows, then the input buffer.
pub const CONSOLE_PAGE: u64 = PV_AREA + 0x1000;
/// The CPUID table; the console's buffers end before it.
pub const CPUID_TABLE: u64 = PV_AREA + 0x1_4000;
/// The clock's page; the CPUID table ends before it.
pub const CLOCK_PAGE: u64 = PV_AREA + 0x1_6000;
/// The seed of the guest's random numbers.
pub const RNG_SEED: u64 = PV_AREA + 0x1_7000;
/// The page with the host's wish for processors.
pub const SMP_PAGE: u64 = PV_AREA + 0x1_a000;

/// The table of devices.
pub const DEV_TABLE: u64 = PV_AREA + 0x1_b000;
/// The page of facility mem.
pub const MEM_PAGE: u64 = PV_AREA + 0x1_8000;

/// Arguments of a call.
pub type Args = [u64; MAX_ARGS];

/// What a call leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The guest goes on, with this.
    Resume(CallResult),
    /// The guest does not go on.
    Stop(Outcome),
    /// The calling processor goes off.
    SwitchOff,
}

impl From<CallResult> for Reply {
    fn from(result: CallResult) -> Self {
        Self::Resume(result)
    }
}

/// A paravirtual facility: one mechanism that replaces privileged operations.
pub trait Facility: Saved + fmt::Debug + Send + Sync {
    /// Its id in the ABI's registry.
    fn id(&self) -> u32;

    /// Fills in its part of the boot-info page, and what that names in guest memory.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`] where guest memory is too small to have it.
    fn describe(&self, _memory: &Memory, _info: &mut BootInfo) -> Result<(), MemoryError> {
        Ok(())
    }

    /// Carries out its function number `function`.
    fn call(&self, function: u32, args: &Args) -> Reply;
}

/// Puts status and value where a call's registers have them.
pub fn answer(regs: &mut kvm_regs, result: CallResult) {
    let (status, value) = Status::encode(result);
    regs.rax = status.cast_unsigned();
    regs.rdx = value;
}

/// The first `N` arguments, if all others are zero. Spec: PV-CALL-3
fn take<const N: usize>(args: &Args) -> Result<[u64; N], Status> {
    let (used, unused) = args.split_at(N);
    // All at once: nearly always they are zero.
    if unused.iter().fold(0, |all, arg| all | arg) != 0 {
        return Err(Status::InvalidParam);
    }
    used.try_into().map_err(|_| Status::InvalidParam)
}

/// The calls of one guest, by facility. The rings, which carry out such calls, are not among them.
#[derive(Debug, Default)]
pub struct Calls {
    /// A facility's [`slot`] is its index.
    facilities: Vec<Option<Box<dyn Facility>>>,
}

impl Calls {
    fn new(facilities: impl IntoIterator<Item = Box<dyn Facility>>) -> Self {
        let mut calls = Self::default();
        for facility in facilities {
            let Some(index) = slot(facility.id()) else {
                continue;
            };
            if calls.facilities.len() <= index {
                calls.facilities.resize_with(index + 1, || None);
            }
            calls.facilities[index] = Some(facility);
        }
        calls
    }

    /// All of them.
    fn all(&self) -> impl Iterator<Item = &dyn Facility> {
        self.facilities.iter().flatten().map(|facility| &**facility)
    }

    fn find(&self, id: CallId) -> Option<&dyn Facility> {
        let index = slot(id.facility())?;
        self.facilities.get(index)?.as_deref()
    }

    /// Carries out a call.
    pub fn carry_out(&self, id: CallId, args: &Args) -> Reply {
        match self.find(id) {
            Some(facility) => facility.call(id.function(), args),
            None => Reply::Resume(Err(Status::NotSupported)),
        }
    }
}

/// The facilities of one guest.
#[derive(Debug)]
pub struct Paravirt {
    calls: Arc<Calls>,
    rings: Option<Rings>,
    set: FacilitySet,
}

impl Paravirt {
    /// A guest that has no Paravane: full and kvm-pv.
    #[must_use]
    pub fn none() -> Self {
        Self {
            calls: Arc::default(),
            rings: None,
            set: FacilitySet::NONE,
        }
    }

    /// These facilities, as far as they are in `set`.
    #[must_use]
    pub fn new(set: FacilitySet, facilities: Vec<Box<dyn Facility>>) -> Self {
        let facilities = facilities.into_iter().filter(|f| set.has(f.id()));
        Self {
            calls: Arc::new(Calls::new(facilities)),
            rings: None,
            set,
        }
    }

    /// What it has.
    #[must_use]
    pub fn facilities(&self) -> FacilitySet {
        self.set
    }

    /// The same with submission rings in `memory`, if they are in the set: one for each of `vcpus`.
    /// `end`, `pause`: see [`Rings::new`].
    #[must_use]
    pub fn with_rings(
        mut self,
        memory: &Memory,
        vcpus: u8,
        end: &Arc<End>,
        pause: &Arc<Pause>,
    ) -> Self {
        self.rings = self.set.has(reg::FACILITY_RING).then(|| {
            let calls = Arc::clone(&self.calls);
            let exitless = self.set.transports() & reg::TRANSPORT_EXITLESS != 0;
            let (end, pause) = (Arc::clone(end), Arc::clone(pause));
            Rings::new(memory.clone(), calls, vcpus, exitless, end, pause)
        });
        self
    }

    /// The submission rings, where there are any.
    #[must_use]
    pub fn rings(&self) -> Option<&Rings> {
        self.rings.as_ref()
    }

    /// What a snapshot has of it: each facility under its name.
    pub fn parts(&self) -> impl Iterator<Item = (String, &dyn Saved)> {
        let ring = self.rings.iter().map(|rings| rings as &dyn Facility);
        self.calls.all().chain(ring).map(|facility| {
            let known = FACILITIES.iter().find(|(_, id)| *id == facility.id());
            let name = known.map_or_else(|| facility.id().to_string(), |(n, _)| (*n).to_owned());
            (format!("facility {name}"), facility as &dyn Saved)
        })
    }

    /// Whether this guest has the doorbell.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.set != FacilitySet::NONE
    }

    /// Carries out a call.
    pub fn call(&self, id: CallId, args: &Args) -> Reply {
        match (self.calls.find(id), &self.rings) {
            (Some(facility), _) => facility.call(id.function(), args),
            (None, Some(rings)) if id.facility() == rings.id() => rings.call(id.function(), args),
            _ => Reply::Resume(Err(Status::NotSupported)),
        }
    }

    /// Carries out the call whose arguments a vCPU's registers hold, and leaves status and value there.
    /// Spec: PV-CALL-2
    pub fn call_in_registers(&self, id: CallId, regs: &mut kvm_regs) -> Reply {
        let args = [regs.rdi, regs.rsi, regs.r8, regs.r9, regs.r10, regs.r11];
        let reply = self.call(id, &args);
        if let Reply::Resume(result) = reply {
            answer(regs, result);
        }
        reply
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
            transports: self.set.transports(),
            doorbell_port: u32::from(DOORBELL_PORT),
            vcpu_count: u32::from(vcpus),
            ..BootInfo::default()
        };
        for facility in self.calls.all() {
            facility.describe(memory, &mut info)?;
        }
        memory.write_obj(BOOT_INFO, &info)
    }

    /// Writes another `generation` to the boot-info page, while the guest stands still. Spec: PV-BOOT-5
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`] where guest memory is too small to have the page.
    pub fn write_generation(&self, memory: &Memory, generation: u64) -> Result<(), MemoryError> {
        if !self.is_present() {
            return Ok(());
        }
        memory.write_obj(GENERATION_AT, &generation)
    }
}
