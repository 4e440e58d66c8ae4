//! Facility `rng`, host side: random numbers. ABI: `hypercall-abi/src/abi/rng.rs`.
//!
//! What is given to the guest is kept and logged nowhere: buffers are wiped, and nothing here prints bytes.

use std::hint::black_box;

use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::{CallResult, Status};
use paravane_abi::registry as reg;
use paravane_abi::rng::{RNG_FILL_MAX, RngInfo};

use super::{Args, Facility, RNG_SEED, Reply, take};
use crate::memory::{Memory, MemoryError};
use crate::snapshot::Saved;

/// Bytes of the seed: twice what a generator's key has.
const SEED_BYTES: u32 = 64;
/// Bytes of a buffer for the host's random numbers.
const BUFFER: usize = 256;
const _: () = assert!(RNG_FILL_MAX <= BUFFER as u64 && SEED_BYTES as usize <= BUFFER);

/// The facility.
#[derive(Debug)]
pub struct Rng {
    memory: Memory,
}

impl Rng {
    /// Random numbers for the guest that has `memory`.
    #[must_use]
    pub fn new(memory: Memory) -> Self {
        Self { memory }
    }

    /// Writes `length` random bytes, at most [`BUFFER`], to guest memory. Spec: PV-RNG-3
    fn write(memory: &Memory, address: u64, length: usize) -> Result<(), Status> {
        let mut buffer = [0; BUFFER];
        let bytes = &mut buffer[..length];
        let filled = getrandom::fill(bytes).map_err(|_| Status::HostError);
        let written =
            filled.and_then(|()| memory.write(address, bytes).map_err(|_| Status::BadAddress));
        buffer.fill(0);
        // As if somebody read them, so that the zeros are not optimised away.
        black_box(&buffer);
        written
    }

    /// Spec: PV-RNG-2, PV-RNG-4, PV-RNG-5
    fn fill(&self, args: &Args) -> CallResult {
        let [address, length] = take(args)?;
        if length > RNG_FILL_MAX {
            return Err(Status::InvalidParam);
        }
        let bytes = usize::try_from(length).map_err(|_| Status::InvalidParam)?;
        if !self.memory.contains(address, bytes) {
            return Err(Status::BadAddress);
        }
        if bytes > 0 {
            Self::write(&self.memory, address, bytes)?;
        }
        Ok(length)
    }
}

impl Saved for Rng {}

impl Facility for Rng {
    fn id(&self) -> u32 {
        reg::FACILITY_RNG
    }

    /// Spec: PV-RNG-1
    fn describe(&self, memory: &Memory, info: &mut BootInfo) -> Result<(), MemoryError> {
        // A host without random numbers now gives no seed; the guest can ask again.
        if Self::write(memory, RNG_SEED, SEED_BYTES as usize).is_ok() {
            info.rng = RngInfo {
                address: RNG_SEED,
                length: SEED_BYTES,
                reserved: 0,
            };
        }
        Ok(())
    }

    fn call(&self, function: u32, args: &Args) -> Reply {
        const FIRST: u32 = reg::FACILITY_RNG << 16;
        Reply::Resume(match FIRST | function {
            reg::CALL_RNG_FILL => self.fill(args),
            _ => Err(Status::NotSupported),
        })
    }
}
