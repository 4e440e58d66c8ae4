//! Instructions on general registers and flags.

use iced_x86::{Instruction, Mnemonic};

use super::Stopped;
use super::operand::{Fault, write_register};

const CARRY: u64 = 0x1;
const ZERO: u64 = 0x40;
/// Carry, parity, adjust, zero, sign and overflow.
const ARITHMETIC: u64 = 0x8d5;
const DIRECTION: u64 = 0x400;
const ALIGNMENT_CHECK: u64 = 0x4_0000;

/// How many bits are set, and the flags after that.
fn population_count(value: u64, flags: u64) -> (u64, u64) {
    let zero = if value == 0 { ZERO } else { 0 };
    (value.count_ones().into(), flags & !ARITHMETIC | zero)
}

/// Trailing zeroes of `bits` bits, and the flags after that; those that are undefined stay.
fn trailing_zeroes(value: u64, bits: u32, flags: u64) -> (u64, u64) {
    let count = value.trailing_zeros().min(bits);
    let carry = if value == 0 { CARRY } else { 0 };
    let zero = if count == 0 { ZERO } else { 0 };
    (count.into(), flags & !(CARRY | ZERO) | carry | zero)
}

impl Stopped<'_> {
    /// Carries out an instruction on registers and memory.
    pub(super) fn carry_out(&mut self, instruction: &Instruction) -> Result<(), Fault> {
        match instruction.mnemonic() {
            Mnemonic::Clac => self.regs.rflags &= !ALIGNMENT_CHECK,
            Mnemonic::Stac => self.regs.rflags |= ALIGNMENT_CHECK,
            Mnemonic::Cld => self.regs.rflags &= !DIRECTION,
            // WAIT is for exceptions of x87, which a kernel does not leave pending.
            Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Wait => {}
            // It clears the processor's buffers: KVM's business.
            Mnemonic::Verw => self.regs.rflags |= ZERO,
            Mnemonic::Popcnt | Mnemonic::Tzcnt => {
                let value = self.value(instruction, 1)?;
                let to = instruction.op_register(0);
                let bits = u32::try_from(8 * to.size()).unwrap_or(64);
                let (result, flags) = match instruction.mnemonic() {
                    Mnemonic::Popcnt => population_count(value, self.regs.rflags),
                    _ => trailing_zeroes(value, bits, self.regs.rflags),
                };
                write_register(&mut self.regs, to, result)?;
                self.regs.rflags = flags;
            }
            Mnemonic::Cmpxchg16b => {
                let address = self.address(instruction, 0)?;
                let expected = (self.regs.rdx, self.regs.rax);
                let new = (self.regs.rcx, self.regs.rbx);
                let found = self.compare_and_exchange(address, expected, new)?;
                (self.regs.rdx, self.regs.rax) = found;
                let zero = if found == expected { ZERO } else { 0 };
                self.regs.rflags = self.regs.rflags & !ZERO | zero;
            }
            _ => return Err(Fault::Unknown),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::arch::asm;

    use proptest::prelude::*;

    use super::*;

    /// The flags after an instruction.
    macro_rules! flags_after {
        ($instruction:literal, $($operands:tt)*) => {{
            let flags: u64;
            // SAFETY: the instruction changes flags and what its operands say; the stack is as before.
            unsafe { asm!($instruction, "pushfq", "pop {flags}", flags = out(reg) flags, $($operands)*) };
            flags
        }};
    }

    proptest! {
        #[test]
        fn popcnt_does_as_the_processor_does(value in prop_oneof![any::<u64>(), Just(0)]) {
            let result: u64;
            let flags = flags_after!("popcnt {result}, {value}", result = out(reg) result, value = in(reg) value);
            let (ours, our_flags) = population_count(value, ARITHMETIC);
            prop_assert_eq!((ours, our_flags), (result, flags & ARITHMETIC));
        }

        #[test]
        fn tzcnt_does_as_the_processor_does(shift in 0_u32..=64, value: u64) {
            let value = value.checked_shl(shift).unwrap_or(0);
            let result: u64;
            let flags = flags_after!("tzcnt {result}, {value}", result = out(reg) result, value = in(reg) value);
            let (ours, our_flags) = trailing_zeroes(value, 64, 0);
            prop_assert_eq!((ours, our_flags), (result, flags & (CARRY | ZERO)));
        }
    }
}
