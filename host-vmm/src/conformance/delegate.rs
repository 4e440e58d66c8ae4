//! Facilities that are KVM's: what boot-info says of them, against KVM's CPUID block.

use crate::pv::BOOT_INFO;
use paravane_abi::boot_info::BootInfo;
use paravane_abi::delegate::{DelegateInfo, kvm_features_of};

use super::guest::{Call, Guest, Mode, offered};
use super::{Failure, Verdict, discovery};

/// `KVMKVMKVM`.
const SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
/// The facilities' bits, and the lists of facilities to try.
const LISTS: [&str; 7] = ["", "-irq", "-ipi,-sched", "irq", "tlb", "sched", "console"];

/// Boot-info of a guest with `facilities`, and KVM's leaf with the features as it sees it.
fn look(facilities: &'static str) -> Result<(BootInfo, u32), Failure> {
    let guest = Guest {
        facilities,
        mode: Mode::Cpuid,
        ..Guest::default()
    };
    let ran = guest.run(&[Call::new(0, &[])])?;
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    let base = info.delegate.kvm_base;
    if base == 0 {
        return Ok((info, 0));
    }
    let calls = [Call::new(base, &[]), Call::new(base + 1, &[])];
    let leaves = discovery::registers(&guest, &calls)?;
    check_eq!(leaves[0][1..], SIGNATURE, "--pv={facilities}");
    Ok((info, leaves[1][0]))
}

pub(super) fn pv_delegate_1_kvms_block_is_where_boot_info_says() -> Verdict {
    for facilities in LISTS {
        let (info, features) = look(facilities)?;
        if kvm_features_of(info.facilities) == 0 {
            check_eq!(info.delegate, DelegateInfo::default(), "{facilities}");
        } else {
            check!(info.delegate.kvm_base != 0, "--pv={facilities}");
            check_eq!(features, info.delegate.kvm_features, "--pv={facilities}");
        }
    }
    Ok(())
}

pub(super) fn pv_delegate_2_each_facility_has_its_features() -> Verdict {
    for facilities in LISTS {
        let (info, _) = look(facilities)?;
        check_eq!(
            info.facilities,
            offered(facilities)?.word(),
            "--pv={facilities}"
        );
        let wanted = kvm_features_of(info.facilities);
        check_eq!(info.delegate.kvm_features & wanted, wanted, "{facilities}");
    }
    Ok(())
}

pub(super) fn pv_delegate_3_no_other_feature_is_there() -> Verdict {
    for facilities in LISTS {
        let (info, features) = look(facilities)?;
        let wanted = kvm_features_of(info.facilities);
        check_eq!(features & !wanted, 0, "--pv={facilities}");
    }
    Ok(())
}
