//! Facility `smp`: processors on and off.

use crate::doctor::image::Image;
use crate::memory::{HIGH_RAM, PAGE_TABLES, PV_AREA};
use crate::pv::BOOT_INFO;
use crate::stats::Outcome;
use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::Status;
use paravane_abi::registry::*;
use paravane_abi::ring::{RingEntry, ring_bytes};
use paravane_abi::smp::{SMP_OFF, SMP_ON, SmpPage};
use zerocopy::IntoBytes;

use super::guest::{Call, DATA, Guest, MEMORY_END, results};
use super::{Failure, Verdict};

/// A stack that nobody needs.
const STACK: u64 = DATA + 0x4000;

fn guest() -> Guest {
    Guest {
        vcpus: 3,
        ..Guest::default()
    }
}

/// Starts processor `id` at the code that writes its registers to `DATA` and switches the machine off.
fn start(id: u64) -> Result<Call, Failure> {
    let rip = Image::load()?.symbol("processor_begins")?;
    Ok(Call::new(
        CALL_SMP_START,
        &[id, rip, STACK, PAGE_TABLES, DATA],
    ))
}

fn state(id: u64) -> Call {
    Call::new(CALL_SMP_STATE, &[id])
}

pub(super) fn pv_smp_1_the_boot_processor_alone_is_on() -> Verdict {
    let calls = [state(0), state(1), state(2)];
    let ran = guest().run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(SMP_ON), Ok(SMP_OFF), Ok(SMP_OFF)]);
    Ok(())
}

pub(super) fn pv_smp_2_a_processor_begins_as_it_is_told() -> Verdict {
    // The boot processor switches itself off, so that the other one has all the time it wants.
    let calls = [start(1)?, Call::new(CALL_SMP_STOP, &[])];
    let ran = guest().run(&calls)?;
    check_eq!(ran.stats.outcome, Outcome::PowerOff, "{:?}", ran.stats);
    check_eq!(ran.after[0].result()?, Ok(0));
    let general: [u64; 16] = ran.memory.read_obj(DATA)?;
    let [rflags, cr0, cr3, cr4, efer]: [u64; 5] = ran.memory.read_obj(DATA + 128)?;
    // RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15.
    let mut expected = [0; 16];
    expected[5] = DATA;
    expected[7] = STACK;
    check_eq!(general, expected);
    check_eq!(rflags, 2);
    // Some KVMs show bits that they keep for themselves.
    check_eq!(cr0 & 0x8000_0011, 0x8000_0011, "CR0 {cr0:#x}");
    check_eq!(cr3, PAGE_TABLES);
    check_eq!(cr4 & 0x20, 0x20, "CR4 {cr4:#x}");
    check_eq!(efer & 0xd00, 0xd00, "EFER {efer:#x}");
    Ok(())
}

pub(super) fn pv_smp_3_bad_ids_and_addresses_are_invalid() -> Verdict {
    let rip = start(1)?.args[1];
    let rows = [
        [3, rip, STACK],
        [1 << 32 | 1, rip, STACK],
        [u64::MAX, rip, STACK],
        [1, 1 << 47, STACK],
        [1, 1 << 63, STACK],
        [1, rip, 0x0000_8000_0000_0000],
        [1, rip, 0xffff_7fff_ffff_ffff],
    ];
    let calls = rows.map(|[id, rip, rsp]| Call::new(CALL_SMP_START, &[id, rip, rsp, PAGE_TABLES]));
    let ran = guest().run(&calls)?;
    check_eq!(ran.results(&calls)?, [Err(Status::InvalidParam); 7]);
    Ok(())
}

pub(super) fn pv_smp_4_what_is_on_is_not_started() -> Verdict {
    // Twice in a row: the first start may not have been carried out yet, and counts all the same.
    let endless = Image::load()?.symbol("processor_waits")?;
    let calls = [
        start(0)?,
        Call::new(CALL_SMP_START, &[1, endless, STACK, PAGE_TABLES]),
        Call::new(CALL_SMP_START, &[1, endless, STACK, PAGE_TABLES]),
    ];
    let ran = guest().run(&calls)?;
    let denied = Err(Status::Denied);
    check_eq!(ran.results(&calls)?, [denied, Ok(0), denied]);
    Ok(())
}

pub(super) fn pv_smp_5_page_tables_are_in_memory() -> Verdict {
    let rip = start(1)?.args[1];
    let roots = [
        PAGE_TABLES + 8,
        PAGE_TABLES | 1 << 63,
        MEMORY_END,
        0xfee0_0000,
        u64::MAX - 4095,
    ];
    let calls = roots.map(|root| Call::new(CALL_SMP_START, &[1, rip, STACK, root]));
    let ran = guest().run(&calls)?;
    check_eq!(ran.results(&calls)?, [Err(Status::BadAddress); 5]);
    Ok(())
}

pub(super) fn pv_smp_6_a_processor_that_stops_is_off() -> Verdict {
    let put = (DATA + 0x2000, 0x600d);
    let calls = [
        start(1)?,
        Call::new(CALL_SMP_STOP, &[]),
        Call {
            store: put,
            ..Call::new(CALL_BASE_NOP, &[1])
        },
    ];
    let ran = guest().run(&calls)?;
    check_eq!(ran.stats.outcome, Outcome::PowerOff);
    check_eq!(ran.u32(put.0)?, 0, "the boot processor has gone on");
    check_eq!(ran.stats.hypercalls.get("base.nop"), None);
    Ok(())
}

pub(super) fn pv_smp_7_rings_have_no_processor_to_stop() -> Verdict {
    let entry = RingEntry {
        call: CALL_SMP_STOP,
        ..RingEntry::default()
    };
    let header = usize::try_from(ring_bytes(0))?;
    let guest = Guest {
        contents: vec![(DATA, [&vec![0; header][..], entry.as_bytes()].concat())],
        ..guest()
    };
    let calls = [
        Call::new(CALL_RING_REGISTER, &[0, DATA, 1]),
        Call {
            store: (DATA, 1),
            ..Call::new(CALL_RING_SUBMIT, &[0])
        },
        state(0),
    ];
    let ran = guest.run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(0), Ok(1), Ok(SMP_ON)]);
    let after: RingEntry = ran.memory.read_obj(DATA + ring_bytes(0))?;
    check_eq!(after.result(), Err(Status::InvalidParam));
    Ok(())
}

pub(super) fn pv_smp_8_the_last_processor_stays_on() -> Verdict {
    let calls = [
        Call::new(CALL_SMP_STOP, &[]),
        Call::new(CALL_BASE_NOP, &[5]),
    ];
    check_eq!(results(&calls)?, [Err(Status::Denied), Ok(5)]);
    Ok(())
}

pub(super) fn pv_smp_9_state_tells_who_is_on() -> Verdict {
    let endless = Image::load()?.symbol("processor_waits")?;
    let calls = [
        Call::new(CALL_SMP_START, &[2, endless, STACK, PAGE_TABLES]),
        state(1),
        state(2),
        state(3),
        state(u64::MAX),
    ];
    let ran = guest().run(&calls)?;
    let bad = Err(Status::InvalidParam);
    check_eq!(
        ran.results(&calls)?,
        [Ok(0), Ok(SMP_OFF), Ok(SMP_ON), bad, bad]
    );
    Ok(())
}

pub(super) fn pv_smp_10_the_host_begins_without_a_wish() -> Verdict {
    let ran = guest().run(&[state(0)])?;
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    let address = info.smp.address;
    check!(
        address.is_multiple_of(PAGE_SIZE as u64) && (PV_AREA..HIGH_RAM).contains(&address),
        "the page is at {address:#x}"
    );
    let page: SmpPage = ran.memory.read_obj(address)?;
    check_eq!(page, SmpPage::default());
    Ok(())
}

pub(super) fn pv_smp_12_event_vectors_and_processors() -> Verdict {
    let bad = Err(Status::InvalidParam);
    let events = [
        (0, 2, Ok(0)),
        (0, 3, bad),
        (1, 0, bad),
        (EVENT_VECTOR_FIRST - 1, 0, bad),
        (EVENT_VECTOR_FIRST, 0, Ok(0)),
        (EVENT_VECTOR_LAST, 2, Ok(0)),
        (EVENT_VECTOR_LAST + 1, 0, bad),
        (EVENT_VECTOR_FIRST, u64::MAX, bad),
        (u64::MAX, 0, bad),
    ];
    let calls = events.map(|(vector, apic_id, _)| Call::new(CALL_SMP_EVENT, &[vector, apic_id]));
    let ran = guest().run(&calls)?;
    check_eq!(ran.results(&calls)?, events.map(|(_, _, result)| result));
    Ok(())
}

pub(super) fn pv_smp_15_a_guest_that_spoils_the_page_harms_itself_only() -> Verdict {
    let at = u64::from(u32::try_from(crate::pv::SMP_PAGE)?);
    let calls = [0, 1, u32::MAX].map(|wanted| Call {
        store: (at, wanted),
        ..state(1)
    });
    let ran = guest().run(&calls)?;
    check_eq!(ran.results(&calls)?, [Ok(SMP_OFF); 3]);
    Ok(())
}
