//! `KVM_CHECK_EXTENSION`, for the capabilities that Paravane or its design asks about.

use std::path::Path;

use kvm_bindings::*;
use kvm_ioctls::Kvm;

/// Name and number of each capability in the report.
const CAPABILITIES: &[(&str, u32)] = &[
    ("USER_MEMORY", KVM_CAP_USER_MEMORY),
    ("IRQCHIP", KVM_CAP_IRQCHIP),
    ("SPLIT_IRQCHIP", KVM_CAP_SPLIT_IRQCHIP),
    ("PIT2", KVM_CAP_PIT2),
    ("SYNC_REGS", KVM_CAP_SYNC_REGS),
    ("IMMEDIATE_EXIT", KVM_CAP_IMMEDIATE_EXIT),
    ("IOEVENTFD", KVM_CAP_IOEVENTFD),
    ("IOEVENTFD_ANY_LENGTH", KVM_CAP_IOEVENTFD_ANY_LENGTH),
    ("IRQFD", KVM_CAP_IRQFD),
    ("SIGNAL_MSI", KVM_CAP_SIGNAL_MSI),
    ("COALESCED_MMIO", KVM_CAP_COALESCED_MMIO),
    ("COALESCED_PIO", KVM_CAP_COALESCED_PIO),
    ("X86_USER_SPACE_MSR", KVM_CAP_X86_USER_SPACE_MSR),
    ("X86_MSR_FILTER", KVM_CAP_X86_MSR_FILTER),
    ("EXIT_HYPERCALL", KVM_CAP_EXIT_HYPERCALL),
    ("XEN_HVM", KVM_CAP_XEN_HVM),
    ("HYPERV", KVM_CAP_HYPERV),
    ("ENFORCE_PV_FEATURE_CPUID", KVM_CAP_ENFORCE_PV_FEATURE_CPUID),
    (
        "EXIT_ON_EMULATION_FAILURE",
        KVM_CAP_EXIT_ON_EMULATION_FAILURE,
    ),
    ("X86_DISABLE_EXITS", KVM_CAP_X86_DISABLE_EXITS),
    ("TSC_DEADLINE_TIMER", KVM_CAP_TSC_DEADLINE_TIMER),
    ("GET_TSC_KHZ", KVM_CAP_GET_TSC_KHZ),
    ("TSC_CONTROL", KVM_CAP_TSC_CONTROL),
    ("X2APIC_API", KVM_CAP_X2APIC_API),
    ("STEAL_TIME", KVM_CAP_STEAL_TIME),
    ("BINARY_STATS_FD", KVM_CAP_BINARY_STATS_FD),
    ("DIRTY_LOG_RING", KVM_CAP_DIRTY_LOG_RING),
    ("GUEST_MEMFD", KVM_CAP_GUEST_MEMFD),
    ("NESTED_STATE", KVM_CAP_NESTED_STATE),
    ("MAX_VCPUS", KVM_CAP_MAX_VCPUS),
];

/// What KVM says of each: 0 is no, most others are yes, some are a number. `vhost_net` is whether
/// the host has that device.
#[must_use]
pub fn examine(kvm: &Kvm) -> Vec<(String, i32)> {
    let vhost = i32::from(Path::new("/dev/vhost-net").exists());
    CAPABILITIES
        .iter()
        .map(|(name, number)| {
            (
                (*name).to_owned(),
                kvm.check_extension_raw(u64::from(*number)),
            )
        })
        .chain([("vhost_net".to_owned(), vhost)])
        .collect()
}
