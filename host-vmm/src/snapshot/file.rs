//! The file of a snapshot: a page of header, guest memory, and behind it the state.
//!
//! # How it works
//!
//! Memory lies at a multiple of the page size, so that it can be mapped as it is; blocks that are zero are holes. The header says
//! where the state is, and has the SHA-256 of itself and of the state. The state has a list of all memory that is not zero
//! ([`Extent`]), each with its CRC-32, so that the whole file is accounted for: its length, each byte of header and state,
//! and each byte of memory. The header is written last: a file that is not whole has none.
//!
//! Checksums find files that are damaged, and no forgers: whoever can write the file decides what the guest is.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::SnapshotError;
use crate::memory::{BLOCK, Memory, is_zero};

const MAGIC: [u8; 8] = *b"PVNESNAP";
/// Changes whenever a snapshot of before cannot be read any more.
pub const FORMAT: u32 = 3;
/// Where memory begins.
pub const MEMORY_AT: u64 = PAGE as u64;
const PAGE: usize = 4096;
/// The most bytes of an extent.
const EXTENT_MAX: u32 = 1 << 20;
/// The most bytes of a state: that of 64 vCPUs and a terabyte of memory is less.
const STATE_MAX: u64 = 1 << 30;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    format: u32,
    reserved: u32,
    state_at: u64,
    state_bytes: u64,
    /// Of what stands before it, and of the state.
    sum: [u8; 32],
}

impl Header {
    fn sum(&self, state: &[u8]) -> [u8; 32] {
        let before = size_of::<Self>() - size_of_val(&self.sum);
        let sum = Sha256::new().chain_update(&self.as_bytes()[..before]);
        sum.chain_update(state).finalize().into()
    }
}

/// A piece of memory that is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Where it is among the memory's bytes.
    pub(super) at: u64,
    pub(super) bytes: u32,
    crc: u32,
}

/// Writes the memory of a guest that stands still into an empty file.
pub(crate) fn write_memory(memory: &Memory, file: &File) -> io::Result<Vec<Extent>> {
    file.set_len(0)?;
    let mut extents: Vec<Extent> = Vec::new();
    memory.filled_blocks(|at, block| {
        add(&mut extents, at, block);
        file.write_all_at(block, MEMORY_AT + at)
    })?;
    Ok(extents)
}

/// Adds a block to the last extent, where it follows, or as another one.
fn add(extents: &mut Vec<Extent>, at: u64, block: &[u8]) {
    let bytes = u32::try_from(block.len()).unwrap_or(0);
    match extents.last_mut() {
        Some(last) if last.at + u64::from(last.bytes) == at && last.bytes < EXTENT_MAX => {
            let mut hasher = crc32fast::Hasher::new_with_initial(last.crc);
            hasher.update(block);
            last.crc = hasher.finalize();
            last.bytes += bytes;
        }
        _ => extents.push(Extent {
            at,
            bytes,
            crc: crc32fast::hash(block),
        }),
    }
}

/// Writes the state behind so many bytes of memory, and then the header. Returns the file's length.
pub(crate) fn finish(file: &File, memory_bytes: u64, state: &[u8]) -> io::Result<u64> {
    let mut header = Header {
        magic: MAGIC,
        format: FORMAT,
        reserved: 0,
        state_at: MEMORY_AT + memory_bytes,
        state_bytes: state.len() as u64,
        sum: [0; 32],
    };
    header.sum = header.sum(state);
    file.write_all_at(state, header.state_at)?;
    file.write_all_at(header.as_bytes(), 0)?;
    Ok(header.state_at + header.state_bytes)
}

/// The state, and how many bytes of memory lie before it.
pub(super) fn read_state(file: &File) -> Result<(Vec<u8>, u64), SnapshotError> {
    let length = file.metadata()?.len();
    let mut page = [0; PAGE];
    if length < page.len() as u64 {
        return Err(SnapshotError::NotOne);
    }
    file.read_exact_at(&mut page, 0)?;
    let (header, rest) = page.split_at(size_of::<Header>());
    let mut read = Header::new_zeroed();
    read.as_mut_bytes().copy_from_slice(header);
    if read.magic != MAGIC {
        return Err(SnapshotError::NotOne);
    }
    if read.format != FORMAT {
        let format = read.format;
        return Err(SnapshotError::Format { format });
    }
    let memory_bytes = read.state_at.checked_sub(MEMORY_AT);
    let end = read.state_at.checked_add(read.state_bytes);
    let (Some(memory_bytes), Some(end)) = (memory_bytes, end) else {
        return Err(SnapshotError::Altered("header"));
    };
    if length != end {
        return Err(SnapshotError::Length { length, end });
    }
    if read.state_bytes > STATE_MAX || !is_zero(rest) {
        return Err(SnapshotError::Altered("header"));
    }
    let mut state = vec![0; usize::try_from(read.state_bytes).unwrap_or(0)];
    file.read_exact_at(&mut state, read.state_at)?;
    if read.sum(&state) != read.sum {
        return Err(SnapshotError::Altered("header or its state"));
    }
    Ok((state, memory_bytes))
}

/// Whether so many bytes of memory are what they were when the extents were written. Holes are not read.
pub(super) fn check_memory(
    file: &File,
    memory_bytes: u64,
    extents: &[Extent],
) -> Result<(), SnapshotError> {
    let mut buffer = vec![0; EXTENT_MAX as usize];
    let mut done = 0;
    for extent in extents {
        let bytes = usize::try_from(extent.bytes).unwrap_or(usize::MAX);
        let end = extent.at.saturating_add(u64::from(extent.bytes));
        let Some(part) = buffer.get_mut(..bytes) else {
            return Err(SnapshotError::Altered("list of memory"));
        };
        if extent.at < done || end > memory_bytes {
            return Err(SnapshotError::Altered("list of memory"));
        }
        file.read_exact_at(part, MEMORY_AT + extent.at)?;
        if crc32fast::hash(part) != extent.crc {
            return Err(SnapshotError::Altered("memory"));
        }
        check_hole(file, done, extent.at, &mut buffer)?;
        done = end;
    }
    check_hole(file, done, memory_bytes, &mut buffer)
}

/// Whether what the file has between two places of memory, if anything, is zero.
fn check_hole(file: &File, mut from: u64, to: u64, buffer: &mut [u8]) -> Result<(), SnapshotError> {
    while from < to {
        from = next_data(file, MEMORY_AT + from)?.map_or(to, |at| at - MEMORY_AT);
        let left = to.saturating_sub(from);
        let bytes = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
        let part = &mut buffer[..bytes];
        file.read_exact_at(part, MEMORY_AT + from)?;
        if !is_zero(part) {
            return Err(SnapshotError::Altered("memory"));
        }
        from += bytes as u64;
    }
    Ok(())
}

/// Where from `at` on the file has something; a file system that does not know has it everywhere.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    let start = libc::off_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: lseek takes numbers. The file's position is nobody's: all reads here say where.
    let found = unsafe { libc::lseek(file.as_raw_fd(), start, libc::SEEK_DATA) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found.max(at))),
        Err(_) => match io::Error::last_os_error().raw_os_error() {
            Some(libc::ENXIO) => Ok(None),
            _ => Ok(Some(at)),
        },
    }
}
