//! What a kernel without privilege and the switcher share, by its short names. ABI:
//! `hypercall-abi/src/abi/cpu.rs`.

pub use paravane_abi::cpu::{
    CPU_CALL as CALL_OFFSET, CPU_CODE_SELECTOR as CODE_SELECTOR,
    CPU_DATA_SELECTOR as DATA_SELECTOR, CPU_GDT as GDT_OFFSET, CPU_HALT_IDT as HALT_IDT_OFFSET,
    CPU_IDT as IDT_OFFSET, CPU_LAYOUT as LAYOUT, CPU_NOTE_LAYOUT as NOTE_LAYOUT,
    CPU_REGION_STRIDE as REGION_STRIDE, CPU_REGIONS as REGIONS, CPU_REGIONS_SLOT as REGIONS_SLOT,
    CPU_SWITCHER_CS as SWITCHER_CS, CPU_SYSCALL_BYTES as SYSCALL_BYTES,
    CPU_SYSCALL_PAGE as SYSCALL_PAGE, CPU_USER_IDT as USER_IDT_OFFSET, CpuArea as Area,
    CpuCrossings as Crossings, CpuFrame as Frame, CpuRoutines as Routines,
};

/// The linear address of a processor's region.
#[must_use]
pub const fn region(vcpu: u32) -> u64 {
    REGIONS + REGION_STRIDE * vcpu as u64
}

/// Names of the routines in accounts, in the order of [`Routines`].
const ROUTINE_NAMES: [&str; 14] = [
    "leave",
    "breakpoint",
    "halt",
    "load_root",
    "flush_page",
    "read_msr",
    "write_msr",
    "doorbell",
    "output_byte",
    "debug_control",
    "debug_addresses",
    "debug_status",
    "cpuid",
    "store",
];

/// Each kind of crossing with its count.
pub fn kinds(crossings: &Crossings) -> impl Iterator<Item = (&'static str, u64)> {
    let calls = ROUTINE_NAMES.into_iter().zip(crossings.calls).skip(1);
    [
        ("system_call", crossings.system_call),
        ("page_fault", crossings.page_fault),
        ("exception", crossings.exception),
        ("interrupt", crossings.interrupt),
        ("kernel_page_fault", crossings.kernel_page_fault),
    ]
    .into_iter()
    .chain(calls)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// The guest's own file of these numbers.
    const HEADER: &str = include_str!("../../../guest-pv-linux/direct.h");

    fn defined(name: &str) -> u64 {
        let line = HEADER.lines().find_map(|line| {
            let (found, value) = line.strip_prefix("#define ")?.split_once('\t')?;
            (found == name).then(|| value.trim())
        });
        let value = line.unwrap_or_else(|| panic!("no {name}"));
        match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
            None => value.parse().unwrap(),
        }
    }

    #[test]
    fn the_guest_has_the_same_numbers() {
        macro_rules! area {
            ($($name:literal $($field:ident).+;)+) => {
                [$(($name, offset_of!(Area, $($field).+) as u64)),+]
            };
        }
        let offsets = area! {
            "AREA_SWAP" swap;
            "AREA_USER_RAX" user_rax;
            "AREA_KERNEL_RAX" kernel_rax;
            "AREA_KERNEL_SLOT" kernel_slot;
            "AREA_USER_SLOT" user_slot;
            "AREA_SYSCALL_RIP" syscall_rip;
            "AREA_SYSCALL" syscall;
            "AREA_USER_BREAKPOINT" user_breakpoint;
            "AREA_USER_FAULT" user_fault;
            "AREA_EVENT" event;
            "AREA_HALTED" halted;
            "AREA_FAULT" fault;
            "AREA_BREAKPOINT" breakpoint;
            "AREA_LEAVE" leave;
            "AREA_USER_FRAME" user_frame;
            "AREA_KERNEL_FRAME" kernel_frame;
            "COUNT_SYSTEM_CALL" crossings.system_call;
            "COUNT_PAGE_FAULT" crossings.page_fault;
            "COUNT_EXCEPTION" crossings.exception;
            "COUNT_INTERRUPT" crossings.interrupt;
            "COUNT_KERNEL_PAGE_FAULT" crossings.kernel_page_fault;
            "COUNT_CALLS" crossings.calls;
            "AREA_LAYOUT" layout;
            "AREA_USER_ISOLATION" user_isolation;
            "AREA_USER_SP" user_rsp;
            "ROUTINE_LEAVE" routines.leave;
            "ROUTINE_BREAKPOINT" routines.breakpoint;
            "ROUTINE_HALT" routines.halt;
            "ROUTINE_LOAD_ROOT" routines.load_root;
            "ROUTINE_FLUSH_PAGE" routines.flush_page;
            "ROUTINE_READ_MSR" routines.read_msr;
            "ROUTINE_WRITE_MSR" routines.write_msr;
            "ROUTINE_DOORBELL" routines.doorbell;
            "ROUTINE_OUTPUT_BYTE" routines.output_byte;
            "ROUTINE_DEBUG_CONTROL" routines.debug_control;
            "ROUTINE_DEBUG_ADDRESSES" routines.debug_addresses;
            "ROUTINE_DEBUG_STATUS" routines.debug_status;
            "ROUTINE_CPUID" routines.cpuid;
            "ROUTINE_STORE" routines.store;
        };
        let others = [
            ("AREA_USER_ERROR", offset_of!(Area, user_frame) as u64 - 8),
            (
                "AREA_KERNEL_ERROR",
                offset_of!(Area, kernel_frame) as u64 - 8,
            ),
            ("PARAVANE_LAYOUT", LAYOUT.into()),
            ("PARAVANE_NOTE_LAYOUT", NOTE_LAYOUT.into()),
            ("PARAVANE_REGIONS", REGIONS),
            ("PARAVANE_REGIONS_39", REGIONS >> 39),
            ("PARAVANE_REGIONS_SLOT", REGIONS_SLOT),
            ("PARAVANE_REGION_STRIDE", REGION_STRIDE),
            ("PARAVANE_GDT", GDT_OFFSET),
            ("PARAVANE_IDT", IDT_OFFSET),
            ("PARAVANE_CALL", CALL_OFFSET),
            ("PARAVANE_SYSCALL_BYTES", SYSCALL_BYTES),
            ("PARAVANE_SWITCHER_CS", SWITCHER_CS),
        ];
        for (name, value) in offsets.into_iter().chain(others) {
            assert_eq!(defined(name), value, "{name}");
        }
        assert!(defined("AREA_USER_ROOT") >= size_of::<Area>() as u64);
    }

    /// What [`LAYOUT`] is the number of, comments left out.
    const SOURCE: &str = include_str!("../../../hypercall-abi/src/abi/cpu.rs");

    #[test]
    fn another_layout_has_another_number() {
        let lines = SOURCE.lines().map(str::trim);
        let code = lines.filter(|line| !line.starts_with("//") && !line.contains("CPU_LAYOUT"));
        // FNV-1a.
        let hash = code
            .flat_map(str::bytes)
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            });
        assert_eq!(
            (LAYOUT, hash),
            (2, 90_280_147_467_942_851),
            "what kernel and switcher share has changed: raise CPU_LAYOUT and PARAVANE_LAYOUT"
        );
    }
}
