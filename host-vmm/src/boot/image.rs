//! What an ELF kernel says of itself: where it lies, by its own headers, which is where it has been loaded and where it runs
//! unless it moves itself; and for which switcher it was built, by a note.

use std::fs::File;
use std::path::Path;

use object::Endianness;
use object::elf::{FileHeader64, ProgramHeader64};
use object::read::ReadRef;
use object::read::elf::{FileHeader, ProgramHeader};

use crate::switcher::area;

/// A part of a kernel: where it runs, and where it has been loaded.
#[derive(Clone, Copy, Debug)]
struct Segment {
    virtual_start: u64,
    physical_start: u64,
    bytes: u64,
}

/// The parts of a kernel that are loaded; none of a file that is no ELF file.
#[derive(Debug, Default)]
pub struct Image {
    segments: Vec<Segment>,
    switcher_layout: Option<u32>,
}

impl Image {
    /// Reads the headers of `kernel`.
    #[must_use]
    pub fn read(kernel: &Path) -> Self {
        File::open(kernel).map_or_else(|_| Self::default(), |file| Self::of(&file))
    }

    /// Reads the headers of an open file.
    #[must_use]
    pub fn of(file: &File) -> Self {
        Self::parse(&object::ReadCache::new(file)).unwrap_or_default()
    }

    /// No more than the headers: sections and symbols are many times as long.
    fn parse<'data>(file: impl ReadRef<'data>) -> object::Result<Self> {
        let elf = FileHeader64::<Endianness>::parse(file)?;
        let endian = elf.endian()?;
        let headers = elf.program_headers(endian, file)?;
        let loaded = headers.iter();
        let loaded = loaded.filter(|header| header.p_type(endian) == object::elf::PT_LOAD);
        let segments = loaded.map(|header| Segment {
            virtual_start: header.p_vaddr(endian),
            physical_start: header.p_paddr(endian),
            bytes: header.p_memsz(endian),
        });
        Ok(Self {
            segments: segments.collect(),
            switcher_layout: switcher_layout(headers, endian, file),
        })
    }

    /// The [`LAYOUT`](crate::switcher::area::LAYOUT) that it was built for; none of a kernel that cannot run without privilege.
    #[must_use]
    pub fn switcher_layout(&self) -> Option<u32> {
        self.switcher_layout
    }

    /// The lowest address that something is loaded at.
    #[must_use]
    pub fn start(&self) -> Option<u64> {
        self.segments.iter().map(|s| s.physical_start).min()
    }

    /// Where it has what it runs at a virtual address.
    #[must_use]
    pub fn physical(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let offset = address.checked_sub(segment.virtual_start)?;
            (offset < segment.bytes).then(|| segment.physical_start.wrapping_add(offset))
        })
    }
}

/// What the note says of the switcher.
fn switcher_layout<'data>(
    headers: &[ProgramHeader64<Endianness>],
    endian: Endianness,
    file: impl ReadRef<'data>,
) -> Option<u32> {
    let headers = headers.iter();
    let mut notes = headers.filter_map(|header| header.notes(endian, file).ok().flatten());
    notes.find_map(|mut notes| {
        while let Ok(Some(note)) = notes.next() {
            if note.name() == b"Paravane" && note.n_type(endian).0 == area::NOTE_LAYOUT {
                return Some(u32::from_le_bytes(note.desc().try_into().ok()?));
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_in_its_part() {
        let segment = |virtual_start, physical_start| Segment {
            virtual_start,
            physical_start,
            bytes: 0x1000,
        };
        let image = Image {
            segments: vec![segment(u64::MAX - 0xfff, 0x2000), segment(0x5000, 0x1000)],
            switcher_layout: None,
        };
        assert_eq!(image.start(), Some(0x1000));
        assert_eq!(image.physical(u64::MAX), Some(0x2fff));
        assert_eq!(image.physical(0x5fff), Some(0x1fff));
        for address in [0, 0x4fff, 0x6000] {
            assert_eq!(image.physical(address), None, "{address:#x}");
        }
        assert_eq!(Image::read(Path::new("/nonexistent")).start(), None);
    }
}
