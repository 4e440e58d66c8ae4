//! Operands: registers by the decoder's names, and memory by the guest's page tables.

use std::arch::asm;

use iced_x86::{Instruction, OpKind, Register};
use kvm_bindings::kvm_regs;
use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use super::Stopped;
use crate::memory::Memory;

/// Why an operand cannot be had.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The instruction, or this form of it, is not known.
    Unknown,
    /// The page is not there, or cannot be written to: the guest's business.
    Page { address: u64, error: u32 },
    /// KVM refuses.
    Kvm(kvm_ioctls::Error),
}

impl From<kvm_ioctls::Error> for Fault {
    fn from(error: kvm_ioctls::Error) -> Self {
        Self::Kvm(error)
    }
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const LARGE: u64 = 0x80;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const PAGE: u64 = 0x1000;
/// Of a page fault: the page is there; it was a write.
const ERROR_PRESENT: u32 = 1;
const ERROR_WRITE: u32 = 2;

/// The guest physical address of a virtual one by four levels of page tables, and whether it can be written to.
fn walk(memory: &Memory, root: u64, address: u64) -> Option<(u64, bool)> {
    let mut table = root & FRAME;
    let mut writable = true;
    for level in (0..4).rev() {
        let shift = 12 + 9 * level;
        let mut entry = [0; 8];
        memory
            .read(table + (address >> shift & 0x1ff) * 8, &mut entry)
            .ok()?;
        let entry = u64::from_le_bytes(entry);
        if entry & PRESENT == 0 {
            return None;
        }
        writable &= entry & WRITABLE != 0;
        if level == 0 || level < 3 && entry & LARGE != 0 {
            let inside = (1 << shift) - 1;
            return Some((entry & FRAME & !inside | address & inside, writable));
        }
        table = entry & FRAME;
    }
    None
}

/// A general register by its number in instructions.
fn general(regs: &mut kvm_regs, number: usize) -> Option<&mut u64> {
    Some(match number {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        15 => &mut regs.r15,
        _ => return None,
    })
}

/// What a register has. Of bytes only the lower ones.
pub(super) fn read_register(regs: &kvm_regs, register: Register) -> Result<u64, Fault> {
    let mut copy = *regs;
    let full = register.full_register();
    let value = general(&mut copy, full.number()).ok_or(Fault::Unknown)?;
    match (full.is_gpr64(), register.size()) {
        (true, 8) => Ok(*value),
        (true, size @ (2 | 4)) => Ok(*value & ((1 << (8 * size)) - 1)),
        _ => Err(Fault::Unknown),
    }
}

/// Puts a value into a register; 32 bits clear the upper ones.
pub(super) fn write_register(
    regs: &mut kvm_regs,
    register: Register,
    value: u64,
) -> Result<(), Fault> {
    let full = register.full_register();
    let place = general(regs, full.number()).ok_or(Fault::Unknown)?;
    *place = match (full.is_gpr64(), register.size()) {
        (true, 8) => value,
        (true, 4) => value & u64::from(u32::MAX),
        (true, 2) => *place & !0xffff | value & 0xffff,
        _ => return Err(Fault::Unknown),
    };
    Ok(())
}

impl Stopped<'_> {
    /// The linear address of a memory operand.
    pub(super) fn address(&self, instruction: &Instruction, operand: u32) -> Result<u64, Fault> {
        let mut registers = self.regs;
        instruction
            .virtual_address(operand, 0, |register, _, _| match register {
                Register::FS => Some(self.sregs.fs.base),
                Register::GS => Some(self.sregs.gs.base),
                Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
                _ => {
                    let value = *general(&mut registers, register.full_register().number())?;
                    let mask = if register.size() == 4 {
                        u64::from(u32::MAX)
                    } else {
                        u64::MAX
                    };
                    Some(value & mask)
                }
            })
            .ok_or(Fault::Unknown)
    }

    /// Copies from a linear address.
    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.parts(address, into.len(), false, |memory, physical, part| {
            memory.read(physical, &mut into[part]).ok()
        })
    }

    /// Copies to a linear address.
    pub(super) fn write(&self, address: u64, from: &[u8]) -> Result<(), Fault> {
        // Nothing is written where not all can be.
        self.parts(address, from.len(), true, |_, _, _| Some(()))?;
        self.parts(address, from.len(), true, |memory, physical, part| {
            memory.write(physical, &from[part]).ok()
        })
    }

    /// Puts two words, the upper one first, to a linear address where `expected` are, in one step for all processors; what was there.
    pub(super) fn compare_and_exchange(
        &self,
        address: u64,
        expected: (u64, u64),
        new: (u64, u64),
    ) -> Result<(u64, u64), Fault> {
        if !address.is_multiple_of(16) || !is_x86_feature_detected!("cmpxchg16b") {
            return Err(Fault::Unknown);
        }
        let (mut high, mut low) = expected;
        // In one page, since it is aligned. The instruction writes in any case.
        self.parts(address, 16, true, |memory, physical, _| {
            let slice = memory.mmap().get_slice(GuestAddress(physical), 16).ok()?;
            let place = slice.ptr_guard_mut().as_ptr();
            // SAFETY: the slice is 16 bytes of mapped guest memory, aligned as its address in a page is, and no reference to them
            // exists; the processor has the instruction. RBX is the compiler's own, so it is exchanged for a while.
            unsafe {
                asm!(
                    "xchg {new}, rbx",
                    "lock cmpxchg16b [{place}]",
                    "mov rbx, {new}",
                    place = in(reg) place,
                    new = inout(reg) new.1 => _,
                    inout("rdx") high,
                    inout("rax") low,
                    in("rcx") new.0,
                    options(nostack)
                );
            }
            Some(())
        })?;
        Ok((high, low))
    }

    /// Does something to each part of a range that lies in one page.
    fn parts(
        &self,
        address: u64,
        length: usize,
        write: bool,
        mut each: impl FnMut(&Memory, u64, std::ops::Range<usize>) -> Option<()>,
    ) -> Result<(), Fault> {
        let memory = self.machine.memory();
        let mut done = 0;
        while done < length {
            let at = address.wrapping_add(done as u64);
            let room = usize::try_from(PAGE - at % PAGE).unwrap_or(1);
            let part = done..length.min(done + room);
            let access = if write { ERROR_WRITE } else { 0 };
            let fault = |present| Fault::Page {
                address: at,
                error: access | present,
            };
            let (physical, writable) = walk(memory, self.sregs.cr3, at).ok_or(fault(0))?;
            if write && !writable {
                return Err(fault(ERROR_PRESENT));
            }
            done = part.end;
            each(memory, physical, part).ok_or(Fault::Unknown)?;
        }
        Ok(())
    }

    /// The value of an operand in a register or in memory.
    pub(super) fn value(&self, instruction: &Instruction, operand: u32) -> Result<u64, Fault> {
        match instruction.op_kind(operand) {
            OpKind::Register => read_register(&self.regs, instruction.op_register(operand)),
            OpKind::Memory => {
                let mut bytes = [0; 8];
                let size = instruction.memory_size().size();
                let place = bytes.get_mut(..size).ok_or(Fault::Unknown)?;
                self.read(self.address(instruction, operand)?, place)?;
                Ok(u64::from_le_bytes(bytes))
            }
            _ => Err(Fault::Unknown),
        }
    }
}
