//! Looking into a guest: its memory as its processor sees it, its registers, its kernel's functions.

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::Machine;
use crate::boot::image::Image;
use crate::crash::Symbols;
use crate::memory::{Memory, MemoryError};
use crate::vcpu;

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

    /// Registers with the instruction's symbol.
    #[must_use]
    pub fn describe_registers(&self, regs: &kvm_regs, sregs: &kvm_sregs) -> String {
        format!(
            "{}\n  at {}",
            vcpu::registers(regs, sregs),
            self.symbols().name(regs.rip)
        )
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
