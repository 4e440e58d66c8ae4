//! Facility `rng`.

use crate::pv::BOOT_INFO;
use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::Status;
use paravane_abi::registry::*;
use paravane_abi::rng::{RNG_FILL_MAX, RNG_SEED_MIN};

use super::guest::{Call, DATA, Guest, MEMORY_END, Ran, results};
use super::{Failure, Verdict};

/// So many words that a bit which is the same in all is no chance.
const WORDS: usize = 64;

/// Whether there is no bit that all words agree about, and no word twice.
fn check_random(words: &[u64]) -> Verdict {
    check_eq!(words.iter().fold(0, |all, word| all | word), u64::MAX);
    check_eq!(words.iter().fold(u64::MAX, |all, word| all & word), 0);
    let mut sorted = words.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    check_eq!(sorted.len(), words.len(), "different words");
    Ok(())
}

/// The page that the seed is in, and the seed's length.
fn seed_page(ran: &Ran) -> Result<(Vec<u8>, usize), Failure> {
    let info: BootInfo = ran.memory.read_obj(BOOT_INFO)?;
    check!(info.rng.address.is_multiple_of(PAGE_SIZE as u64));
    check_eq!(info.rng.reserved, 0);
    let page = ran.bytes(info.rng.address, PAGE_SIZE)?;
    Ok((page, usize::try_from(info.rng.length)?))
}

fn run() -> Result<Ran, Failure> {
    Guest::default().run(&[Call::new(CALL_BASE_NOP, &[])])
}

pub(super) fn pv_rng_1_a_seed_lies_there() -> Verdict {
    let (page, length) = seed_page(&run()?)?;
    check!(length >= RNG_SEED_MIN as usize, "{length} bytes of seed");
    check!(page[..length].iter().any(|byte| *byte != 0), "all are zero");
    check!(
        page[length..].iter().all(|byte| *byte == 0),
        "more than a seed"
    );
    Ok(())
}

pub(super) fn pv_rng_3_every_seed_is_another() -> Verdict {
    let mut words = Vec::new();
    while words.len() < WORDS {
        let (page, length) = seed_page(&run()?)?;
        for word in page[..length].chunks_exact(8) {
            words.push(u64::from_le_bytes(word.try_into()?));
        }
    }
    check_random(&words)
}

pub(super) fn pv_rng_2_fill_writes_what_it_says() -> Verdict {
    let calls = [0, 1, 255, RNG_FILL_MAX].map(|length| {
        let at = DATA + 0x1000 * (length + 1) - length / 2;
        Call::new(CALL_RNG_FILL, &[at, length])
    });
    let ran = Guest::default().run(&calls)?;
    for (call, result) in calls.iter().zip(ran.results(&calls)?) {
        let [at, length, ..] = call.args;
        check_eq!(result, Ok(length));
        check_eq!(ran.bytes(at - 64, 64)?, [0; 64], "before {call:x?}");
        check_eq!(ran.bytes(at + length, 64)?, [0; 64], "after {call:x?}");
        let written = ran.bytes(at, usize::try_from(length)?)?;
        check!(length < 8 || written.iter().any(|byte| *byte != 0));
    }
    Ok(())
}

pub(super) fn pv_rng_3_every_fill_is_another() -> Verdict {
    let calls: Vec<_> = (DATA..)
        .step_by(8)
        .take(WORDS)
        .map(|at| Call::new(CALL_RNG_FILL, &[at, 8]))
        .collect();
    let ran = Guest::default().run(&calls)?;
    check!(ran.results(&calls)?.iter().all(|result| *result == Ok(8)));
    let bytes = ran.bytes(DATA, 8 * WORDS)?;
    let words = bytes.chunks_exact(8).map(|word| {
        let word: [u8; 8] = word.try_into().unwrap_or_default();
        u64::from_le_bytes(word)
    });
    check_random(&words.collect::<Vec<_>>())
}

pub(super) fn pv_rng_4_too_long_is_invalid() -> Verdict {
    let lengths = [RNG_FILL_MAX + 1, 1 << 32, u64::MAX];
    let calls = lengths.map(|length| Call::new(CALL_RNG_FILL, &[DATA, length]));
    let ran = Guest::default().run(&calls)?;
    for result in ran.results(&calls)? {
        check_eq!(result, Err(Status::InvalidParam));
    }
    check_eq!(ran.bytes(DATA, 512)?, [0; 512], "an error writes nothing");
    Ok(())
}

pub(super) fn pv_rng_5_outside_memory_is_a_bad_address() -> Verdict {
    for address in [MEMORY_END - 1, MEMORY_END, 0xfee0_0000, 1 << 63, u64::MAX] {
        let call = Call::new(CALL_RNG_FILL, &[address, 2]);
        check_eq!(results(&[call])?, [Err(Status::BadAddress)], "{address:#x}");
    }
    Ok(())
}
