//! What CPUID tells a guest.
//!
//! All profiles start from the same table, what this host's KVM supports; they differ in the
//! hypervisor bit and the hypervisor leaves alone:
//!
//! | profile | leaf 1, ECX bit 31 | `0x4000_0000` | `0x4000_0100` |
//! |---|---|---|---|
//! | `full` | 0 | - | - |
//! | `kvm-pv` | 1 | KVM's, with its features | - |
//! | `para` | 1 | KVM's, with the features of delegated facilities | Paravane's |
//!
//! KVM's leaf is there for `para` even without a feature, because an unpatched `kvm_detect()` would look at 256
//! leaves, each an exit, before it gave up.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use paravane_abi::delegate::kvm_features_of;
use paravane_abi::registry as reg;

use super::{KvmError, refused};
use crate::config::{FacilitySet, Profile};
use crate::doctor::host::Host;
use crate::pv::delegate::DELEGATED;

/// Where the Paravane block starts for a para guest.
pub const PARAVANE_BASE: u32 = reg::CPUID_BASE_FIRST + reg::CPUID_BASE_STEP;
/// Where KVM's own block starts.
pub const KVM_BASE: u32 = reg::CPUID_BASE_FIRST;
const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
const KVM_FEATURES: u32 = KVM_BASE + 1;
/// `KVM_HINTS_REALTIME`, EDX of that leaf: each vCPU has a processor for itself.
const DEDICATED: u32 = 1;
/// Leaf 1, ECX: TSC-deadline timer, hypervisor present.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one APIC id in the package.
const HTT: u32 = 1 << 28;

/// Whether the entry is for one subleaf of its leaf.
#[must_use]
pub const fn has_subleaves(entry: &kvm_cpuid_entry2) -> bool {
    entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0
}

/// The part of `set` that this host's KVM can have delegated to it.
///
/// # Errors
///
/// [`KvmError::Ioctl`] where KVM does not give its supported table.
pub fn delegable(kvm: &Kvm, mut set: FacilitySet) -> Result<FacilitySet, KvmError> {
    if !kvm.check_extension(Cap::TscDeadlineTimer) {
        set = set.without(reg::FACILITY_TIMER);
    }
    if kvm_features_of(set.word()) == 0 {
        return Ok(set);
    }
    let table = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("tell the CPUID table it supports"))?;
    let entry = table.as_slice().iter().find(|e| e.function == KVM_FEATURES);
    let has = entry.map_or(0, |e| e.eax);
    let may_call = Host::examine(true).may_vmcall();
    Ok(DELEGATED.into_iter().fold(set, |set, id| {
        let wants = kvm_features_of(1 << id);
        let calls = [reg::FACILITY_IPI, reg::FACILITY_SCHED].contains(&id);
        if has & wants == wants && (may_call || !calls) {
            set
        } else {
            set.without(id)
        }
    }))
}

/// What CPUID shows on a vCPU.
///
/// # Errors
///
/// [`KvmError::Ioctl`] where KVM does not tell.
pub fn shown(vcpu: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
    let table = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("tell a vCPU's CPUID"))?;
    Ok(table.as_slice().to_vec())
}

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

/// Paravane's block. Spec: PV-DISC-2 to PV-DISC-4
fn paravane_block(facilities: FacilitySet, boot_info: u64, port: u16) -> [kvm_cpuid_entry2; 3] {
    let word = facilities.word().to_le_bytes();
    let half = |at: usize| u32::from_le_bytes([word[at], word[at + 1], word[at + 2], word[at + 3]]);
    let address = boot_info.to_le_bytes();
    let part = |at: usize| {
        u32::from_le_bytes([
            address[at],
            address[at + 1],
            address[at + 2],
            address[at + 3],
        ])
    };
    [
        leaf(
            PARAVANE_BASE + reg::CPUID_LEAF_SIGNATURE,
            [
                PARAVANE_BASE + reg::CPUID_LEAF_COUNT - 1,
                reg::CPUID_SIGNATURE_EBX,
                reg::CPUID_SIGNATURE_ECX,
                reg::CPUID_SIGNATURE_EDX,
            ],
        ),
        leaf(
            PARAVANE_BASE + reg::CPUID_LEAF_FEATURES,
            [reg::ABI_VERSION, half(0), half(4), facilities.transports()],
        ),
        leaf(
            PARAVANE_BASE + reg::CPUID_LEAF_BOOT,
            [part(0), part(4), u32::from(port), 0],
        ),
    ]
}

/// The table for one vCPU: topology is one package of `vcpus` cores, APIC id = vCPU number.
fn place_vcpu(entries: &mut [kvm_cpuid_entry2], vcpu: u8, vcpus: u8) {
    let id = u32::from(vcpu);
    let bits = u32::from(vcpus).next_power_of_two().trailing_zeros();
    for e in entries {
        match (e.function, e.index) {
            (1, _) => {
                e.ebx = e.ebx & 0xffff | u32::from(vcpus) << 16 | id << 24;
                e.edx = if vcpus > 1 { e.edx | HTT } else { e.edx & !HTT };
            }
            // Cores that share the package, and threads that share a cache: one.
            (4, _) => e.eax = e.eax & 0x3fff | (u32::from(vcpus) - 1) << 26,
            (0xb | 0x1f, 0) => (e.eax, e.ebx, e.ecx, e.edx) = (0, 1, 0x100, id),
            (0xb | 0x1f, 1) => (e.eax, e.ebx, e.ecx, e.edx) = (bits, u32::from(vcpus), 0x201, id),
            (0xb | 0x1f, n) => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, n, id),
            (0x8000_0008, _) => e.ecx = e.ecx & !0xf0ff | bits << 12 | (u32::from(vcpus) - 1),
            (0x8000_001e, _) => (e.eax, e.ebx, e.ecx) = (id, id, 0),
            _ => {}
        }
    }
}

/// Protection keys: what CPUID's leaf 7 says of them in ECX, and their state's number.
const PKU: u32 = 1 << 3;
const OSPKE: u32 = 1 << 4;
const PKRU: u32 = 9;
/// Bytes of x87's and SSE's state with the header of XSAVE's area.
const XSAVE_LEAST: u32 = 576;

/// Takes protection keys away. A kernel without privilege cannot switch them on (CR4.PKE) and makes no room for them; XCR0
/// is preset, so that it could not leave them out itself, and CPUID would tell of a larger area than it expects.
fn hide_protection_keys(entries: &mut Vec<kvm_cpuid_entry2>) {
    entries.retain(|e| (e.function, e.index) != (0xd, PKRU));
    // Of state number N, subleaf N has size and offset in EAX and EBX. 0 and 1 are no states of their own.
    let states = entries.iter().filter(|e| e.function == 0xd && e.index > 1);
    // Bit 0 of ECX: one of the supervisor's, which has no place in the standard area.
    let ends = states.filter(|e| e.ecx & 1 == 0).map(|e| e.ebx + e.eax);
    let size = ends.max().unwrap_or(0).max(XSAVE_LEAST);
    for e in entries.iter_mut() {
        match (e.function, e.index) {
            (7, 0) => e.ecx &= !(PKU | OSPKE),
            (0xd, 0) => (e.eax, e.ecx) = (e.eax & !(1 << PKRU), size),
            _ => {}
        }
    }
}

/// A guest's whole CPUID, before it is placed on a vCPU.
#[derive(Clone, Debug)]
pub struct GuestCpuid {
    entries: Vec<kvm_cpuid_entry2>,
}

impl GuestCpuid {
    /// The table for `profile` on this host.
    ///
    /// # Errors
    ///
    /// [`KvmError::Ioctl`] where KVM does not give its supported table.
    pub fn new(
        kvm: &Kvm,
        profile: Profile,
        facilities: FacilitySet,
        boot_info: u64,
        port: u16,
    ) -> Result<Self, KvmError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("tell the CPUID table it supports"))?;
        let mut entries: Vec<kvm_cpuid_entry2> = supported
            .as_slice()
            .iter()
            .filter(|e| {
                profile == Profile::KvmPv || !(KVM_BASE..reg::CPUID_BASE_END).contains(&e.function)
            })
            .copied()
            .collect();
        // The in-kernel LAPIC has the TSC-deadline mode whatever the table says (api.rst, 4.46).
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        for e in entries.iter_mut().filter(|e| e.function == 1) {
            e.ecx &= !(HYPERVISOR | TSC_DEADLINE);
            if profile != Profile::Full {
                e.ecx |= HYPERVISOR;
            }
            if deadline {
                e.ecx |= TSC_DEADLINE;
            }
        }
        if profile == Profile::Direct {
            hide_protection_keys(&mut entries);
        }
        if profile.is_paravane() {
            let [b, c, d] = KVM_SIGNATURE;
            entries.push(leaf(KVM_BASE, [KVM_FEATURES, b, c, d]));
            let features = kvm_features_of(facilities.word());
            entries.push(leaf(KVM_FEATURES, [features, 0, 0, 0]));
            entries.extend(paravane_block(facilities, boot_info, port));
        }
        Ok(Self { entries })
    }

    /// Tells the guest that each vCPU has a processor of the host for itself: it polls before it halts, as long as that has paid
    /// of late (the kernel's haltpoll governor), and flushes and locks as on a machine of its own.
    pub fn promise_processors(&mut self) {
        for e in self
            .entries
            .iter_mut()
            .filter(|e| e.function == KVM_FEATURES)
        {
            e.edx |= DEDICATED;
        }
    }

    /// Moves the Paravane block `distance` leaves up, and puts another interface's block into its place.
    pub fn move_block(&mut self, distance: u32) {
        if distance == 0 {
            return;
        }
        let end = PARAVANE_BASE + reg::CPUID_LEAF_COUNT;
        for e in self.entries.iter_mut() {
            if (PARAVANE_BASE..end).contains(&e.function) {
                if e.function == PARAVANE_BASE {
                    e.eax += distance;
                }
                e.function += distance;
            }
        }
        let signature = [b"Some", b"body", b"Else"].map(|part| u32::from_le_bytes(*part));
        let [b, c, d] = signature;
        self.entries
            .push(leaf(PARAVANE_BASE, [PARAVANE_BASE, b, c, d]));
    }

    /// The extended state that the guest may switch on (leaf 0xd, subleaf 0); x87 at least.
    #[must_use]
    pub fn supported_xcr0(&self) -> u64 {
        let leaf = self
            .entries
            .iter()
            .find(|e| (e.function, e.index) == (0xd, 0));
        leaf.map_or(0, |e| u64::from(e.eax) | (u64::from(e.edx) << 32)) | 1
    }

    /// The table as vCPU number `vcpu` of `vcpus` gets it.
    #[must_use]
    pub fn for_vcpu(&self, vcpu: u8, vcpus: u8) -> Vec<kvm_cpuid_entry2> {
        let mut entries = self.entries.clone();
        place_vcpu(&mut entries, vcpu, vcpus);
        entries
    }

    /// The same in KVM's form.
    ///
    /// # Errors
    ///
    /// [`KvmError::Capability`] where the table is larger than KVM takes.
    pub fn to_kvm(&self, vcpu: u8, vcpus: u8) -> Result<CpuId, KvmError> {
        CpuId::from_entries(&self.for_vcpu(vcpu, vcpus))
            .map_err(|_| KvmError::Capability("room for the CPUID table"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pv_disc_2_block_carries_the_signature_as_text() {
        let block = paravane_block(FacilitySet::default(), 0xe_0000, 0x5650);
        let text: Vec<u8> = [block[0].ebx, block[0].ecx, block[0].edx]
            .iter()
            .flat_map(|r| r.to_le_bytes())
            .collect();
        assert_eq!(text, b"ParavaneHype");
        assert_eq!(block[0].eax, PARAVANE_BASE + 2);
        assert_eq!(
            u64::from(block[1].ebx) | u64::from(block[1].ecx) << 32,
            FacilitySet::default().word()
        );
        assert_eq!(
            (block[2].eax, block[2].ebx, block[2].ecx),
            (0xe_0000, 0, 0x5650)
        );
    }

    #[test]
    fn protection_keys_are_hidden_and_take_no_room() {
        let sub = |index, words| kvm_cpuid_entry2 {
            index,
            ..leaf(0xd, words)
        };
        let mut entries = vec![
            leaf(7, [0, 0, 0x1f, 0]),
            sub(0, [0x207, 840, 2440, 0]),
            sub(1, [7, 840, 0, 0]),
            sub(2, [256, 576, 0, 0]),
            sub(PKRU, [8, 2432, 0, 0]),
            sub(11, [16, 0, 1, 0]),
        ];
        hide_protection_keys(&mut entries);
        let words: Vec<_> = entries.iter().map(|e| (e.index, e.eax, e.ecx)).collect();
        let shown = [(0, 0, 7), (0, 7, 832), (1, 7, 0), (2, 256, 0), (11, 16, 1)];
        assert_eq!(words, shown);
        let table = GuestCpuid { entries };
        assert_eq!(table.supported_xcr0(), 7);
    }

    #[test]
    fn apic_ids_are_vcpu_numbers() {
        let table = GuestCpuid {
            entries: vec![
                leaf(1, [0; 4]),
                leaf(0xb, [0; 4]),
                leaf(0x8000_0008, [0; 4]),
            ],
        };
        for vcpus in [1_u8, 2, 3, 64] {
            let e = table.for_vcpu(vcpus - 1, vcpus);
            assert_eq!(e[0].ebx >> 24, u32::from(vcpus - 1));
            assert_eq!(e[1].edx, u32::from(vcpus - 1));
            assert!(1_u32 << (e[2].ecx >> 12 & 0xf) >= u32::from(vcpus));
        }
    }
}
