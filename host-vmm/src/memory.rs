//! Guest memory: the address map, and the only ways in.
//!
//! A guest address that reaches this module is a number that somebody hostile chose. It leaves as
//! bytes that have been copied, or as an error; never as a reference or a pointer.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use paravane_abi::registry::PAGE_SIZE;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion, VolatileSlice,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Least guest memory, MiB: a kernel and a small initrd.
pub const MIN_MEMORY_MIB: u64 = 32;
/// Most guest memory, MiB.
pub const MAX_MEMORY_MIB: u64 = 1 << 20;
/// The GDT of the boot environment.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` of the PVH entry; its memory map and module list follow.
pub const PVH_INFO: u64 = 0x6000;
/// `boot_params` of the 64-bit entry ("zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// Boot stack of the 64-bit entry, growing down.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Identity page tables of the 64-bit entry: PML4, PDPT and four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the kernel command line, bytes.
pub const CMDLINE_MAX: usize = 2048;
/// End of base memory, where the MP table begins on a legacy PC (EBDA).
pub const EBDA: u64 = 0x9_fc00;
/// First byte of what a BIOS would occupy; a para guest has its shared pages here, in the low
/// 1 MiB that Linux always maps.
pub const PV_AREA: u64 = 0xe_0000;
/// First byte after base memory, video memory and BIOS.
pub const HIGH_RAM: u64 = 0x10_0000;
/// Where a kernel that may be loaded anywhere is loaded.
pub const KERNEL_MIN: u64 = 0x10_0000;
/// Where the hole for device registers begins (IOAPIC, LAPIC, KVM's own pages).
pub const MMIO_HOLE: u64 = 0xc000_0000;
/// Where memory goes on above the hole.
pub const ABOVE_4G: u64 = 0x1_0000_0000;
/// Three pages that KVM needs on some Intel CPUs, inside the hole.
pub const KVM_TSS: usize = 0xfffb_d000;
/// One page that KVM needs on some Intel CPUs, inside the hole.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// The most pieces that memory of a file is cut into where parts of it are given back. The host lets a process have 65,530 mappings.
const PIECES_MAX: u64 = 1 << 14;

/// Bytes that are looked at together for zeros.
pub(crate) const BLOCK: usize = 1 << 16;

/// Why guest memory could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has not enough address space or memory.
    #[error("{mib} MiB of guest memory cannot be mapped: {reason}; use less (--memory)")]
    Map {
        /// What was asked for.
        mib: u64,
        /// What the system says.
        reason: String,
    },
    /// KVM refused a memory slot.
    #[error("KVM does not take guest memory at {address:#x}: {reason}")]
    Slot {
        /// Guest physical address.
        address: u64,
        /// What KVM says.
        reason: kvm_ioctls::Error,
    },
    /// A range that is not wholly in guest memory.
    #[error("{length} bytes at guest address {address:#x} are not in guest memory")]
    Range {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        length: usize,
    },
}

/// A guest's RAM.
#[derive(Clone, Debug)]
pub struct Memory {
    mmap: GuestMemoryMmap<()>,
    bytes: u64,
    /// What nobody has written to is a file's.
    is_file: bool,
    /// The guest's whose memory is mapped here, too.
    #[expect(dead_code, reason = "it keeps the mapping alive")]
    shared: Option<Arc<Self>>,
}

/// Where the regions of so many bytes of RAM begin, and how long they are.
fn ranges(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = bytes.min(MMIO_HOLE);
    let mut ranges = vec![(GuestAddress(0), low)];
    if bytes > low {
        ranges.push((GuestAddress(ABOVE_4G), bytes - low));
    }
    ranges
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}

impl Memory {
    /// Maps `mib` MiB of zeroed RAM, asking the host for huge pages.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Map`].
    pub fn new(mib: u64) -> Result<Self, MemoryError> {
        let bytes = mib << 20;
        let fail = |reason: String| MemoryError::Map { mib, reason };
        let size = |n: u64| usize::try_from(n).map_err(|e| fail(e.to_string()));
        let ranges = ranges(bytes).into_iter();
        let ranges = ranges.map(|(at, bytes)| Ok((at, size(bytes)?)));
        let ranges = ranges.collect::<Result<Vec<_>, _>>()?;
        let mmap = GuestMemoryMmap::from_ranges(&ranges).map_err(|e| fail(e.to_string()))?;
        for region in mmap.iter() {
            // SAFETY: the range is the region's own fresh anonymous mapping, alive as long as
            // `mmap`; MADV_HUGEPAGE changes how it is backed, never its content. A refusal
            // (no transparent huge pages) costs speed only, so the result is not looked at.
            unsafe {
                libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE);
            }
        }
        Ok(Self {
            mmap,
            bytes,
            is_file: false,
            shared: None,
        })
    }

    /// Maps `mib` MiB of RAM that begins as the bytes of a file from `at` on. The file is read where somebody touches the
    /// memory, and never written to; it must stay as it is.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Map`].
    pub fn of_file(mib: u64, file: &File, mut at: u64) -> Result<Self, MemoryError> {
        let bytes = mib << 20;
        let fail = |reason: String| MemoryError::Map { mib, reason };
        let mut regions = Vec::new();
        for (start, length) in ranges(bytes) {
            let file = file.try_clone().map_err(|e| fail(e.to_string()))?;
            let size = usize::try_from(length).map_err(|e| fail(e.to_string()))?;
            let region = MmapRegion::build(
                Some(FileOffset::new(file, at)),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            );
            let region = region.map_err(|e| fail(e.to_string()))?;
            let region = GuestRegionMmap::new(region, start);
            regions.push(region.ok_or_else(|| fail("no room in the address space".to_owned()))?);
            at += length;
        }
        let mmap = GuestMemoryMmap::from_regions(regions).map_err(|e| fail(e.to_string()))?;
        Ok(Self {
            mmap,
            bytes,
            is_file: true,
            shared: None,
        })
    }

    /// The same with `other`'s RAM from address `at` on, where nothing is: both guests then have it.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Map`].
    pub fn with_window(self, at: u64, other: &Self) -> Result<Self, MemoryError> {
        let mib = other.bytes >> 20;
        let mut mmap = self.mmap;
        for region in other.mmap.iter() {
            // SAFETY: the range is a live mapping of `other`'s, which `shared` keeps for as long as this memory.
            let same = unsafe {
                MmapRegion::build_raw(
                    region.as_ptr(),
                    region.size(),
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE,
                )
            };
            let start = GuestAddress(at + region.start_addr().0);
            let region = same.ok().and_then(|same| GuestRegionMmap::new(same, start));
            let inserted = region.map(|region| mmap.insert_region(Arc::new(region)));
            let Some(Ok(with)) = inserted else {
                let reason = format!("there is no room for it at {at:#x}");
                return Err(MemoryError::Map { mib, reason });
            };
            mmap = with;
        }
        Ok(Self {
            mmap,
            bytes: self.bytes,
            is_file: self.is_file,
            shared: Some(Arc::new(other.clone())),
        })
    }

    /// Makes the host allocate all of it now instead of at the guest's first touch.
    ///
    /// What the host's allocator takes for a page is no property of the guest. On the reference host a
    /// second launch spends more time there than in the whole boot, since the emulator has to forget
    /// the code that it once translated from the same page. A refusal costs nothing but that.
    pub fn populate(&self) {
        for region in self.mmap.iter() {
            // SAFETY: the range is the region's own private mapping, alive as long as `mmap`;
            // MADV_POPULATE_WRITE faults pages in and leaves their content as it is.
            unsafe {
                libc::madvise(
                    region.as_ptr().cast(),
                    region.size(),
                    libc::MADV_POPULATE_WRITE,
                );
            }
        }
    }

    /// Gives every region to KVM as a memory slot.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Slot`].
    pub fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for (slot, region) in (0u32..).zip(self.mmap.iter()) {
            let region_bytes = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the slot is a live private mapping of `memory_size` bytes that belongs to
            // this guest alone. `vm::Vm` keeps a clone of `Memory` for as long as the VM's
            // descriptor is open, so it is not unmapped under KVM.
            unsafe { vm.set_user_memory_region(region_bytes) }.map_err(|e| MemoryError::Slot {
                address: region.start_addr().0,
                reason: e,
            })?;
        }
        Ok(())
    }

    /// Gives memory back to the host's operating system: it reads as zero from then on, and is allocated anew
    /// where the guest writes to it. `address` and `length` are multiples of the page size.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`]; then nothing is given back.
    pub fn discard(&self, address: u64, length: usize) -> Result<(), MemoryError> {
        let at = self.checked(address, length)?;
        let out = |_| MemoryError::Range { address, length };
        self.discard_slice(&self.mmap.get_slice(at, length).map_err(out)?);
        Ok(())
    }

    /// The same of the whole pages of a part of this memory; how many bytes they have.
    pub fn discard_pages(&self, part: &VolatileSlice<'_>) -> usize {
        // Where a page begins in the guest, one begins here.
        let start = part.ptr_guard().as_ptr().align_offset(PAGE_SIZE);
        let length = part.len().saturating_sub(start) / PAGE_SIZE * PAGE_SIZE;
        match part.subslice(start, length) {
            Ok(pages) if length > 0 => self.discard_slice(&pages),
            _ => return 0,
        }
        length
    }

    /// Discards whole pages of this memory.
    fn discard_slice(&self, slice: &VolatileSlice<'_>) {
        let (start, length) = (slice.ptr_guard_mut().as_ptr(), slice.len());
        let discarded = if self.is_file && (length as u64) < self.bytes / PIECES_MAX {
            // Each piece is a mapping: a guest could use all of them up.
            false
        } else if self.is_file {
            // The file's bytes would come back: anonymous memory takes their place.
            // SAFETY: the slice is whole pages of one of the regions' private mappings, alive as long as `mmap`, and no
            // reference to its bytes exists anywhere. It stays mapped, with the same rights, and its bytes become zero.
            let mapped = unsafe {
                libc::mmap(
                    start.cast(),
                    length,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
                    -1,
                    0,
                )
            };
            mapped != libc::MAP_FAILED
        } else {
            // SAFETY: the slice is a part of one of the regions' anonymous mappings, alive as long as `mmap`, and no reference
            // to its bytes exists anywhere. MADV_DONTNEED leaves the mapping there and makes its bytes zero.
            unsafe { libc::madvise(start.cast(), length, libc::MADV_DONTNEED) == 0 }
        };
        if discarded {
            return;
        }
        // Memory that the host has locked, say: zero all the same.
        for done in (0..length).step_by(PAGE_SIZE) {
            // The slice has that page.
            let _ = slice.write_slice(&[0; PAGE_SIZE], done);
        }
    }

    /// Gives each block that is not all zero, and its place among the memory's bytes, to who writes them into a file.
    pub(crate) fn filled_blocks(
        &self,
        mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; BLOCK];
        let mut at = 0;
        for region in self.mmap.iter() {
            for done in (0..region.len()).step_by(BLOCK) {
                let left = usize::try_from(region.len() - done).unwrap_or(BLOCK);
                let block = &mut buffer[..left.min(BLOCK)];
                let address = region.start_addr().0 + done;
                self.read(address, block).map_err(io::Error::other)?;
                if !is_zero(block) {
                    take(at, block)?;
                }
                at += block.len() as u64;
            }
        }
        Ok(())
    }

    /// The `vm-memory` object, for the kernel loader.
    #[must_use]
    pub fn mmap(&self) -> &GuestMemoryMmap<()> {
        &self.mmap
    }

    /// Bytes of RAM in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// End of the RAM below 4 GiB.
    #[must_use]
    pub fn low_end(&self) -> u64 {
        self.bytes.min(MMIO_HOLE)
    }

    /// Bytes of RAM above 4 GiB.
    #[must_use]
    pub fn high_bytes(&self) -> u64 {
        self.bytes - self.low_end()
    }

    /// The end of the region that `address` lies in, where it lies in RAM.
    #[must_use]
    pub fn end_of_region(&self, address: u64) -> Option<u64> {
        let region = self.mmap.find_region(GuestAddress(address))?;
        Some(region.start_addr().0 + region.len())
    }

    /// Whether `length` bytes from `address` are all RAM. Zero bytes are everywhere.
    #[must_use]
    pub fn contains(&self, address: u64, length: usize) -> bool {
        length == 0
            || address.checked_add(length as u64).is_some()
                && self.mmap.check_range(GuestAddress(address), length)
    }

    fn checked(&self, address: u64, length: usize) -> Result<GuestAddress, MemoryError> {
        if self.contains(address, length) {
            Ok(GuestAddress(address))
        } else {
            Err(MemoryError::Range { address, length })
        }
    }

    /// Copies guest memory out.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`]; then `into` is unchanged.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let at = self.checked(address, into.len())?;
        let length = into.len();
        self.mmap
            .read_slice(into, at)
            .map_err(|_| MemoryError::Range { address, length })
    }

    /// Copies into guest memory.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`]; then nothing is written.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let at = self.checked(address, from.len())?;
        self.mmap
            .write_slice(from, at)
            .map_err(|_| MemoryError::Range {
                address,
                length: from.len(),
            })
    }

    /// Copies a plain structure out.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`].
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, address: u64) -> Result<T, MemoryError> {
        let mut value = T::new_zeroed();
        self.read(address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies a plain structure in.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`].
    pub fn write_obj<T: IntoBytes + Immutable>(
        &self,
        address: u64,
        value: &T,
    ) -> Result<(), MemoryError> {
        self.write(address, value.as_bytes())
    }

    /// Loads a shared index. `address` must be 4-aligned RAM (the VMM chose it).
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`].
    pub fn load_u32(&self, address: u64, order: Ordering) -> Result<u32, MemoryError> {
        self.mmap
            .load(GuestAddress(address), order)
            .map_err(|_| MemoryError::Range { address, length: 4 })
    }

    /// Stores a shared index. `address` must be 4-aligned RAM (the VMM chose it).
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`].
    pub fn store_u32(&self, address: u64, value: u32, order: Ordering) -> Result<(), MemoryError> {
        self.mmap
            .store(value, GuestAddress(address), order)
            .map_err(|_| MemoryError::Range { address, length: 4 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_leave_memory_are_refused_whole() {
        let memory = Memory::new(32).unwrap();
        let end = 32 << 20;
        assert!(memory.contains(end - 1, 1));
        assert!(memory.contains(u64::MAX, 0));
        for (address, length) in [
            (end - 1, 2),
            (end, 1),
            (u64::MAX, 1),
            (u64::MAX - 1, 4),
            (0, usize::MAX),
        ] {
            assert!(
                !memory.contains(address, length),
                "{address:#x}+{length:#x}"
            );
        }
        let before = [0xaa; 4];
        memory.write(end - 4, &before).unwrap();
        assert!(memory.write(end - 4, &[0x55; 5]).is_err());
        let mut after = [0; 4];
        memory.read(end - 4, &mut after).unwrap();
        assert_eq!(before, after);
    }

    /// Pages of this process that are in memory, of those that begin at the guest's `address`.
    fn resident(memory: &Memory, address: u64, pages: usize) -> usize {
        let slice = memory.mmap.get_slice(GuestAddress(address), pages << 12);
        let start = slice.unwrap().ptr_guard_mut().as_ptr();
        let mut there = vec![0; pages];
        // SAFETY: `there` has a byte for each page of the mapping.
        let result = unsafe { libc::mincore(start.cast(), pages << 12, there.as_mut_ptr()) };
        assert_eq!(result, 0);
        there.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn pv_mem_5_what_is_discarded_is_the_hosts_and_reads_as_zero() {
        let memory = Memory::new(32).unwrap();
        let (at, pages) = (8 << 20, 1024);
        let pattern = vec![0xa5; pages << 12];
        memory.write(at, &pattern).unwrap();
        assert_eq!(resident(&memory, at, pages), pages);
        memory.discard(at + 4096, (pages - 2) << 12).unwrap();
        assert_eq!(resident(&memory, at, pages), 2);
        let mut after = vec![0xff; pages << 12];
        memory.read(at, &mut after).unwrap();
        assert_eq!(after[..4096], pattern[..4096]);
        assert_eq!(after[(pages - 1) << 12..], pattern[..4096]);
        assert!(after[4096..(pages - 1) << 12].iter().all(|byte| *byte == 0));
        assert!(memory.discard((32 << 20) - 4096, 8192).is_err());
    }

    #[test]
    fn a_restored_guest_cannot_use_up_the_mappings_of_its_host() {
        const MIB: u64 = 288;
        let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
        file.as_file().set_len(MIB << 20).unwrap();
        let memory = Memory::of_file(MIB, file.as_file(), 0).unwrap();
        memory.write(8192, &[1]).unwrap();
        for page in (0..MIB << 8).step_by(2) {
            memory.discard(page << 12, 4096).unwrap();
        }
        let mut first = [1; 8193];
        memory.read(0, &mut first).unwrap();
        assert_eq!(first, [0; 8193]);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.lines().count() < 40_000);
    }

    #[test]
    fn memory_beyond_the_hole_goes_on_above_4_gib() {
        let memory = Memory::new(3072 + 64).unwrap();
        assert_eq!(memory.low_end(), MMIO_HOLE);
        assert_eq!(memory.high_bytes(), 64 << 20);
        assert!(!memory.contains(MMIO_HOLE, 1));
        assert!(memory.contains(ABOVE_4G, 64 << 20));
        assert!(!memory.contains(ABOVE_4G, (64 << 20) + 1));
    }
}
