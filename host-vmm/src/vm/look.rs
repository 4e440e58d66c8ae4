//! Looking into a guest: its memory as its processor sees it, its registers, its kernel's functions.

use kvm_ioctls::VcpuFd;

use super::Machine;
use crate::boot::image::Image;
use crate::crash::processor::{Found, INSTRUCTION_MAX, ProcessorReport};
use crate::crash::{self, Symbols};
use crate::memory::{Memory, MemoryError};

const PAGE: u64 = 4096;

impl Machine {
    /// Copies guest memory out.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`].
    pub fn read_memory(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(address, into)
    }

    /// The functions of the guest's kernel; read when somebody asks.
    #[must_use]
    pub fn symbols(&self) -> &Symbols {
        self.symbols
            .get_or_init(|| Symbols::read(&self.config.kernel))
    }

    /// Where the guest's kernel lies; read when somebody asks.
    fn image(&self) -> &Image {
        self.image.get_or_init(|| Image::read(&self.config.kernel))
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The processors of a guest that has ended: those that are on, and not stuck in KVM.
    #[must_use]
    pub fn report_processors(&self) -> Vec<ProcessorReport> {
        let all = (0..self.vcpus.len()).filter(|id| self.is_on(*id));
        all.filter_map(|id| self.report_processor(id)).collect()
    }

    /// Whether a processor is on.
    pub(super) fn is_on(&self, id: usize) -> bool {
        self.processors().is_none_or(|all| all.on().contains(&id))
    }

    fn report_processor(&self, id: usize) -> Option<ProcessorReport> {
        let fd = self.vcpus.get(id)?.try_lock().ok()?;
        let (regs, sregs) = (fd.get_regs().ok()?, fd.get_sregs().ok()?);
        let mut code = [0; INSTRUCTION_MAX];
        let length = self.read_virtual(&fd, regs.rip, &mut code);
        let callers = crash::walk(regs.rbp, |at| self.read_words(&fd, at));
        let callers = callers.iter().map(|at| self.symbols().caller(*at));
        Some(ProcessorReport::new(Found {
            id,
            regs: &regs,
            sregs: &sregs,
            code: &code[..length],
            at: self.symbols().name(regs.rip),
            callers: callers.collect(),
            exits: self.counts.get(id)?.trail(),
        }))
    }

    /// Two words at a virtual address.
    fn read_words(&self, fd: &VcpuFd, at: u64) -> Option<[u64; 2]> {
        let mut bytes = [0; 16];
        let whole = self.read_virtual(fd, at, &mut bytes) == bytes.len();
        let (words, _) = bytes.as_chunks();
        whole.then(|| [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])])
    }

    /// The guest physical address behind a virtual one, by the page tables of the vCPU. Where these have nothing there, as
    /// before a kernel has made its own, a kernel that is an ELF file says where it has been loaded.
    #[must_use]
    pub fn translate(&self, fd: &VcpuFd, address: u64) -> Option<u64> {
        let found = fd.translate_gva(address).ok().filter(|t| t.valid != 0);
        found
            .map(|t| t.physical_address)
            .or_else(|| self.image().physical(address))
    }

    /// Copies out what the vCPU has at a virtual address, as far as there is something; returns how many bytes.
    #[must_use]
    pub fn read_virtual(&self, fd: &VcpuFd, address: u64, into: &mut [u8]) -> usize {
        let mut done = 0;
        for (at, length) in pages(address, into.len()) {
            let part = &mut into[done..done + length];
            let physical = self.translate(fd, at);
            if physical.is_none_or(|physical| self.memory.read(physical, part).is_err()) {
                break;
            }
            done += length;
        }
        done
    }

    /// Copies to a virtual address of the vCPU, whatever its page tables say of writing; returns how many bytes.
    #[must_use]
    pub fn write_virtual(&self, fd: &VcpuFd, address: u64, from: &[u8]) -> usize {
        let mut done = 0;
        for (at, length) in pages(address, from.len()) {
            let part = &from[done..done + length];
            let physical = self.translate(fd, at);
            if physical.is_none_or(|physical| self.memory.write(physical, part).is_err()) {
                break;
            }
            done += length;
        }
        done
    }

    /// Copies into guest memory.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`].
    pub fn write_memory(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        self.memory.write(address, from)
    }
}

/// A range in parts, none of which crosses a page.
fn pages(address: u64, length: usize) -> impl Iterator<Item = (u64, usize)> {
    let mut left = length;
    let mut at = address;
    std::iter::from_fn(move || {
        let in_page = usize::try_from(PAGE - at % PAGE).unwrap_or(left).min(left);
        let part = (at, in_page);
        at = at.wrapping_add(in_page as u64);
        left -= in_page;
        (in_page > 0).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::pages;

    #[test]
    fn no_part_crosses_a_page() {
        let parts = |address, length| pages(address, length).collect::<Vec<_>>();
        assert_eq!(parts(0xff8, 16), [(0xff8, 8), (0x1000, 8)]);
        assert_eq!(parts(0x1000, 0x1001), [(0x1000, 0x1000), (0x2000, 1)]);
        assert_eq!(parts(u64::MAX, 2), [(u64::MAX, 1), (0, 1)]);
        assert!(parts(5, 0).is_empty());
    }
}
