// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only

//! Facility `cpuid`: what CPUID returns, as a table in memory.
//!
//! # Background
//!
//! CPUID traps on every virtual machine, so each look at a constant is an exit; a kernel looks at
//! more than a hundred of them while it starts, at many of them twice.
//!
//! # How it works
//!
//! [`CpuidInfo`] in the boot-info page says where the table is: [`CpuidEntry`]s in the order of
//! leaf and subleaf. A guest looks a leaf up where it would execute CPUID, and executes CPUID where
//! the table has no entry, or one that says [`LEAF_VARIES`]: such registers depend on the processor
//! or on its control registers.
//!
//! Spec: PV-CPUID-1 to PV-CPUID-5

/// [`CpuidEntry::flags`]: the registers depend on ECX, and these are those of `subleaf`.
pub const LEAF_SUBLEAF: u32 = 0x0000_0001;
/// [`CpuidEntry::flags`]: the registers depend on the processor or its state; only CPUID knows.
pub const LEAF_VARIES: u32 = 0x0000_0002;

/// The CPUID part of the boot-info page. Writer: host. Spec: PV-CPUID-1
#[cfg_attr(
    feature = "zerocopy",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CpuidInfo {
    /// Guest physical address of the first [`CpuidEntry`], page-aligned.
    pub address: u64,
    /// Entries of the table.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
}

/// What CPUID returns for one leaf, or one subleaf of it. Writer: host. Spec: PV-CPUID-2
#[cfg_attr(
    feature = "zerocopy",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CpuidEntry {
    /// EAX before.
    pub leaf: u32,
    /// ECX before; zero without `LEAF_SUBLEAF`.
    pub subleaf: u32,
    /// `LEAF_…` flags; undefined bits are zero.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// EAX after.
    pub eax: u32,
    /// EBX after.
    pub ebx: u32,
    /// ECX after.
    pub ecx: u32,
    /// EDX after.
    pub edx: u32,
}

const _: () = {
    assert!(core::mem::size_of::<CpuidInfo>() == 16);
    assert!(core::mem::size_of::<CpuidEntry>() == 32);
};

/// What the table says of CPUID with `leaf` in EAX and `subleaf` in ECX: EAX, EBX, ECX and EDX.
/// `None`: only CPUID knows. A table that is not in order gives some answer of its own.
/// Spec: PV-CPUID-5
#[must_use]
pub fn cpuid_find(table: &[CpuidEntry], leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
    let after = table.partition_point(|entry| (entry.leaf, entry.subleaf) <= (leaf, subleaf));
    let entry = table.get(after.checked_sub(1)?)?;
    let exact = entry.flags & LEAF_SUBLEAF == 0 || entry.subleaf == subleaf;
    if entry.leaf != leaf || !exact || entry.flags & LEAF_VARIES != 0 {
        return None;
    }
    Some([entry.eax, entry.ebx, entry.ecx, entry.edx])
}
