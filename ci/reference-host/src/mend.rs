//! What is changed in the code of an unpacked QEMU, an instruction each. Where the place is not found, QEMU stays as it is.
//!
//! # An interrupt that is delivered twice
//!
//! QEMU's `helper_vmrun`, of all versions up to 10.0 at the least, delivers an interrupt that KVM injects (EVENTINJ of type INTR) at
//! once, and leaves its vector in `exception_index` all the same. Whatever next makes the processor leave its loop before an
//! exit or an exception, a timer of QEMU's for one, then delivers it a second time, be interrupts enabled or not: a guest was
//! found waiting for a spin lock that the very instruction it was taken from had locked, EFLAGS.IF clear in the frame.
//! With `-icount`, where the loop is left at every deadline, this came within 3 to 52 launches, in three runs of three; without
//! the store of the vector, not in 90.
//!
//! # A PAUSE that takes longer than what it waits for
//!
//! For QEMU a PAUSE is the end of a processor's turn. The reference host has one processor, so that nobody takes the next:
//! 430 ns are gone for an instruction that is counted as one. Guests of several processors spend most of their time with PAUSE on such a
//! host, since the processor that they wait for is not running: by counted time suite `sched` took six times as long. A
//! PAUSE without any code is what it is in hardware, a hint.

use std::fs;
use std::path::Path;

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

use crate::appliance::{ApplianceError, at};

/// The store of an injected interrupt's vector, and what follows it there: of 0 to `exception_is_int`, and of -1 to
/// `exception_next_eip`. `..`: any byte, since a field's or a function's place changes with each build.
const STORE: &str =
    "89 b3 .. .. ff ff c7 83 .. .. 00 00 00 00 00 00 48 c7 83 .. .. 00 00 ff ff ff ff";
/// An instruction of six bytes that does nothing.
const NOTHING: [u8; 6] = [0x66, 0x0f, 0x1f, 0x44, 0, 0];

/// What makes the code of an instruction that is a call of a helper with nothing but the processor's state, and the end of a turn.
const HELPER: &str = "53 80 bf .. 00 00 00 00 48 89 fb 75 .. 48 89 df e8 .. .. .. .. 48 8b 05 .. .. .. .. \
    48 8b 3d .. .. .. .. 31 d2 48 8b 0d .. .. .. .. 48 8d 35 .. .. .. .. 64 48 03 08 e8 .. .. .. .. \
    c7 43 18 02 00 00 00 5b";
/// Where in it the helper is named: behind this many bytes is its place, relative to the byte behind that.
const NAMED: usize = 47;
/// QEMU's symbol for what PAUSE's helper is.
const PAUSE: &[u8] = b"helper_info_pause";
/// RET: the instruction has no code.
const RET: [u8; 1] = [0xc3];

/// Mends a QEMU; what is left as it was, in words.
pub(crate) fn mend(program: &Path) -> Result<Vec<&'static str>, ApplianceError> {
    let mut code = fs::read(program).map_err(at(program))?;
    let mut left = Vec::new();
    match store(&code) {
        Some(place) => write(&mut code, place, &NOTHING),
        None => left.push("may deliver an interrupt twice, which can hang a guest"),
    }
    match pause(&code) {
        Some(place) => write(&mut code, place, &RET),
        None => left.push("takes long for PAUSE, which guests of several processors do much"),
    }
    fs::write(program, code).map_err(at(program))?;
    Ok(left)
}

fn write(code: &mut [u8], place: usize, bytes: &[u8]) {
    for (byte, new) in code.iter_mut().skip(place).zip(bytes) {
        *byte = *new;
    }
}

/// Where the store is, if there is one that can be it.
fn store(code: &[u8]) -> Option<usize> {
    only(places(code, STORE))
}

/// Where the code for PAUSE is made, if there is one place that can be it.
fn pause(code: &[u8]) -> Option<usize> {
    let file = object::File::parse(code).ok()?;
    let mut symbols = file.dynamic_symbols();
    let helper = symbols.find(|symbol| symbol.name_bytes() == Ok(PAUSE))?;
    let address = |place: u64| {
        file.segments().find_map(|segment| {
            let (start, length) = segment.file_range();
            let offset = place.checked_sub(start).filter(|offset| *offset < length)?;
            segment.address().checked_add(offset)
        })
    };
    let names_it = |place: &usize| {
        let named = code.get(place + NAMED..)?.first_chunk::<4>()?;
        let behind = u64::try_from(place + NAMED + named.len()).ok()?;
        let relative = i32::from_le_bytes(*named);
        address(behind)?.checked_add_signed(relative.into())
    };
    only(places(code, HELPER).filter(|place| names_it(place) == Some(helper.address())))
}

/// Where the bytes of `pattern` are.
fn places(code: &[u8], pattern: &str) -> impl Iterator<Item = usize> {
    let byte = |word| u8::from_str_radix(word, 16).ok();
    let wanted: Vec<Option<u8>> = pattern.split(' ').map(byte).collect();
    let is_it = move |bytes: &[u8]| {
        let same = |(byte, wanted): (&u8, &Option<u8>)| wanted.is_none_or(|wanted| *byte == wanted);
        bytes.iter().zip(&wanted).all(same)
    };
    let length = pattern.split(' ').count();
    let places = code.windows(length).enumerate();
    places.filter_map(move |(place, bytes)| is_it(bytes).then_some(place))
}

fn only(mut places: impl Iterator<Item = usize>) -> Option<usize> {
    let first = places.next()?;
    places.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(pattern: &str) -> Vec<u8> {
        let byte = |word| u8::from_str_radix(word, 16).unwrap_or(0x17);
        pattern.split(' ').map(byte).collect()
    }

    #[test]
    fn the_store_is_taken_out_where_it_is_there_once_and_nothing_else_is() {
        let store_there = some(STORE);
        let before = [&[0x89, 0xb3, 1, 2, 3][..], &store_there, &[0x90; 9]].concat();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &before).unwrap();
        assert_eq!(mend(file.path()).unwrap().len(), 1, "no PAUSE there");
        let after = fs::read(file.path()).unwrap();
        assert_eq!(after[5..11], NOTHING);
        assert_eq!((&after[..5], &after[11..]), (&before[..5], &before[11..]));
        // It is gone.
        assert_eq!(mend(file.path()).unwrap().len(), 2);
        assert_eq!(
            store(&[&store_there[..], &store_there].concat()),
            None,
            "which one?"
        );
        assert_eq!(store(&[]), None);
    }

    #[test]
    fn a_helper_without_the_name_of_pause_is_none() {
        let helper = some(HELPER);
        assert_eq!(places(&helper, HELPER).collect::<Vec<_>>(), [0]);
        assert_eq!(helper[NAMED - 3..NAMED], [0x48, 0x8d, 0x35]);
        assert_eq!(pause(&helper), None);
    }
}
