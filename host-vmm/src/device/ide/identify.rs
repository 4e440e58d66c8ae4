//! What a disk says about itself: the 256 words of IDENTIFY DEVICE.

use super::Drive;
use super::transfer::MULTIPLE_MAX;

/// Cylinders, heads and sectors of a track: what every disk beyond 8 GB says it has.
const GEOMETRY: [u16; 3] = [16383, 16, 63];
/// Most sectors of an address of 28 bits.
const LBA28_MAX: u64 = 0x0fff_ffff;

/// A text of `N` words, filled with blanks, the first letter of each pair in the upper byte.
fn text<const N: usize>(text: &str) -> [u16; N] {
    let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
    std::array::from_fn(|_| {
        let [high, low] = [bytes.next().unwrap_or(b' '), bytes.next().unwrap_or(b' ')];
        u16::from_be_bytes([high, low])
    })
}

/// The lower `N` words of a number.
fn number<const N: usize>(value: u64) -> [u16; N] {
    let bytes = value.to_le_bytes();
    std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]))
}

pub(super) fn words(drive: &Drive) -> [u16; 256] {
    let sectors = drive.disk.sectors();
    let short: [u16; 2] = number(sectors.min(LBA28_MAX));
    let mut words = [0; 256];
    let mut put = |at: usize, values: &[u16]| words[at..at + values.len()].copy_from_slice(values);
    let [cylinders, heads, track] = GEOMETRY;
    // A fixed disk.
    put(0, &[0x0040, cylinders, 0, heads]);
    put(6, &[track]);
    put(10, &text::<10>(&format!("PARAVANE{:02}", drive.number)));
    put(23, &text::<4>("1"));
    put(27, &text::<20>("Paravane disk"));
    put(47, &[0x8000 | u16::from(MULTIPLE_MAX)]);
    // LBA and DMA.
    put(49, &[0x0300, 0x4000]);
    // Words 54 to 58, and 64 to 70, say something.
    put(53, &[0x0003, cylinders, heads, track]);
    let geometry = u64::from(cylinders) * u64::from(heads) * u64::from(track);
    put(57, &number::<2>(geometry));
    if drive.multiple > 0 {
        put(59, &[0x0100 | u16::from(drive.multiple)]);
    }
    put(60, &short);
    // Multiword DMA, modes 0 to 2, and which of them is on.
    put(63, &[0x0007 | 0x0100 << (drive.dma_mode & 3)]);
    // Programmed I/O, modes 3 and 4; nanoseconds of a cycle.
    put(64, &[0x0003, 120, 120, 120, 120]);
    // ATA-4 to ATA-6.
    put(80, &[0x0070]);
    // A write cache; addresses of 48 bits and both flushes; the same that are on.
    let sets = [0x0020, 0x7400, 0x4000];
    put(82, &sets);
    put(85, &[sets[0], 0x3400, 0x4000]);
    put(100, &number::<4>(sectors));
    words
}
