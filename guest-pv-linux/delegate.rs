// SPDX-License-Identifier: GPL-2.0-only

//! Facilities `irq`, `ipi`, `tlb` and `sched`: KVM's own, where the host delegates to it.
//!
//! The kernel has the guest side of KVM's interface (`arch/x86/kernel/kvm.c`), and finds the
//! features in KVM's CPUID block. Here is only whether it is to be set up; `helpers.c` does it.

use crate::{abi::delegate::kvm_features_of, detect::host};

/// KVM's features that the host's facilities stand for; 0: nothing is delegated.
#[no_mangle]
extern "C" fn paravane_kvm_features() -> u32 {
    host().map_or(0, |host| {
        let delegate = host.info.delegate;
        if delegate.kvm_base == 0 {
            return 0;
        }
        delegate.kvm_features & kvm_features_of(host.info.facilities)
    })
}
