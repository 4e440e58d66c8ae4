//! Facility `cpuid`, host side: the CPUID table in guest memory. ABI: `hypercall-abi/src/abi/cpuid.rs`.

use kvm_ioctls::VcpuFd;
use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::Status;
use paravane_abi::cpuid::{CpuidEntry, CpuidInfo, LEAF_SUBLEAF, LEAF_VARIES};
use paravane_abi::registry as reg;
use zerocopy::IntoBytes;

use super::{Args, CLOCK_PAGE, CPUID_TABLE, Facility, Reply};
use crate::kvm::KvmError;
use crate::kvm::cpuid::{has_subleaves, shown};
use crate::memory::{Memory, MemoryError};
use crate::snapshot::Saved;

/// Most entries that there is room for.
const ENTRIES_MAX: usize = 256;
const _: () = assert!(CPUID_TABLE + (ENTRIES_MAX * size_of::<CpuidEntry>()) as u64 <= CLOCK_PAGE);

/// Leaves that KVM changes while the machine runs: OSXSAVE, OSPKE, and sizes by XCR0 and XSS.
const BY_STATE: [(u32, u32); 4] = [(0x1, 0), (0x7, 0), (0xd, 0), (0xd, 1)];

/// Subleaves that a kernel asks for whether they are there or not.
const ASKED: [(u32, u32); 3] = [(0x7, 1), (0x7, 2), (0xb, 1)];

/// The facility.
#[derive(Debug)]
pub struct Cpuid {
    entries: Vec<CpuidEntry>,
}

impl Cpuid {
    /// What CPUID shows on `vcpus`. KVM is asked, and not what it was told: a software KVM shows some
    /// of the host's own registers.
    ///
    /// # Errors
    ///
    /// [`KvmError::Ioctl`] where KVM does not tell a vCPU's table.
    pub fn new(vcpus: &[VcpuFd]) -> Result<Self, KvmError> {
        let mut tables = vcpus.iter().map(shown);
        let mut entries: Vec<CpuidEntry> = Vec::new();
        for e in tables.next().transpose()?.unwrap_or_default() {
            let subleaves = has_subleaves(&e);
            let by_state = BY_STATE.contains(&(e.function, e.index));
            entries.push(CpuidEntry {
                leaf: e.function,
                subleaf: if subleaves { e.index } else { 0 },
                flags: if subleaves { LEAF_SUBLEAF } else { 0 }
                    | if by_state { LEAF_VARIES } else { 0 },
                eax: e.eax,
                ebx: e.ebx,
                ecx: e.ecx,
                edx: e.edx,
                ..CpuidEntry::default()
            });
        }
        for table in tables {
            for (entry, e) in entries.iter_mut().zip(table?) {
                if [entry.eax, entry.ebx, entry.ecx, entry.edx] != [e.eax, e.ebx, e.ecx, e.edx] {
                    entry.flags |= LEAF_VARIES;
                }
            }
        }
        // KVM answers zeros for a leaf that it has no entry for, within a range that it has.
        for base in [0, 0x8000_0000] {
            let last = entries.iter().find(|e| e.leaf == base).map_or(0, |e| e.eax);
            let known: Vec<u32> = entries.iter().map(|e| e.leaf).collect();
            let holes = (base..=last.min(base + 0x3f)).filter(|leaf| !known.contains(leaf));
            entries.extend(holes.map(|leaf| CpuidEntry {
                leaf,
                ..CpuidEntry::default()
            }));
        }
        // The same for a subleaf.
        for (leaf, subleaf) in ASKED {
            let has_subleaves = |e: &&CpuidEntry| e.leaf == leaf && e.flags & LEAF_SUBLEAF != 0;
            let mut of_leaf = entries.iter().filter(has_subleaves).peekable();
            if of_leaf.peek().is_some() && of_leaf.all(|e| e.subleaf != subleaf) {
                entries.push(CpuidEntry {
                    leaf,
                    subleaf,
                    flags: LEAF_SUBLEAF,
                    ..CpuidEntry::default()
                });
            }
        }
        entries.sort_by_key(|e| (e.leaf, e.subleaf));
        entries.dedup_by_key(|e| (e.leaf, e.subleaf));
        entries.truncate(ENTRIES_MAX);
        Ok(Self { entries })
    }
}

impl Saved for Cpuid {}

impl Facility for Cpuid {
    fn id(&self) -> u32 {
        reg::FACILITY_CPUID
    }

    /// Spec: PV-CPUID-1
    fn describe(&self, memory: &Memory, info: &mut BootInfo) -> Result<(), MemoryError> {
        info.cpuid = CpuidInfo {
            address: CPUID_TABLE,
            count: u32::try_from(self.entries.len()).unwrap_or(0),
            reserved: 0,
        };
        memory.write(CPUID_TABLE, self.entries.as_bytes())
    }

    fn call(&self, _function: u32, _args: &Args) -> Reply {
        Reply::Resume(Err(Status::NotSupported))
    }
}
