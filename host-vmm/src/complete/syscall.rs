//! SYSCALL of users, on a KVM where it raises no privilege.
//!
//! # How it works
//!
//! There SYSCALL jumps to LSTAR and stays at CPL 3. The kernel's entry is not a user's page, so that fetching it is a page fault: error code and address
//! tell it from any other. Before the first user runs, one byte of the page fault's handler is made an INT3, which KVM cannot emulate and which thus comes
//! here. A fault of SYSCALL becomes what the manual says of that: the kernel's entry, at CPL 0. Any other goes on with the instruction that the byte
//! has taken the place of. That byte is all that is changed of the kernel.

use iced_x86::{Instruction, Mnemonic};
use kvm_bindings::{Msrs, kvm_msr_entry};

use super::{CompleteError, Stopped};

const INT3: u8 = 0xcc;
const GATE: u64 = 16;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
/// Of a page fault: by a user. At the entry it can only be the fetch.
const USER: u64 = 4;
/// What is always set in flags.
const FIXED: u64 = 2;
const RESUME: u64 = 0x1_0000;

/// Where the INT3 is, and what was there.
#[derive(Debug, Default)]
pub(super) struct Elevation {
    planted: Option<Instruction>,
}

impl Elevation {
    /// Whether an INT3 there is ours.
    pub(super) fn has_planted(&self, rip: u64) -> bool {
        self.planted.is_some_and(|original| original.ip() == rip)
    }

    /// Puts the INT3 where it is not yet: at the first instruction of the page fault's handler, if that can be carried out here.
    pub(super) fn plant(&mut self, at: &Stopped<'_>) {
        let gate = at.sregs.idt.base + GATE * u64::from(super::PAGE_FAULT);
        let mut bytes = [0; 16];
        if msrs(at).is_err() || at.read(gate, &mut bytes).is_err() {
            return;
        }
        let handler = target(bytes);
        if self.has_planted(handler) {
            return;
        }
        let known = [
            Mnemonic::Nop,
            Mnemonic::Endbr64,
            Mnemonic::Clac,
            Mnemonic::Cld,
        ];
        if let Ok(original) = at.instruction(handler)
            && known.contains(&original.mnemonic())
            && at.machine.write_virtual(at.fd, handler, &[INT3]) == 1
        {
            self.planted = Some(original);
        }
    }

    /// The INT3 in the page fault's handler: SYSCALL, or a page fault.
    pub(super) fn enter(&self, mut at: Stopped<'_>) -> Result<(), CompleteError> {
        let mut bytes = [0; 48];
        let frame = at.machine.read_virtual(at.fd, at.regs.rsp, &mut bytes);
        let word = |number: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * number..][..8]);
            u64::from_le_bytes(word)
        };
        let [star, entry, mask] = msrs(&at)?;
        let is_call =
            frame == bytes.len() && word(0) & USER != 0 && word(1) == entry && word(2) & 3 == 3;
        if is_call {
            at.regs.rip = entry;
            at.regs.rsp = word(4);
            at.regs.rflags = at.regs.r11 & !(mask | RESUME) | FIXED;
            let selector = u16::try_from(star >> 32 & 0xfffc).unwrap_or(0);
            at.sregs.cs.selector = selector;
            at.sregs.ss.selector = selector + 8;
            for segment in [&mut at.sregs.cs, &mut at.sregs.ss] {
                segment.dpl = 0;
            }
            at.fd.set_sregs(&at.sregs)?;
        } else if let Some(original) = &self.planted {
            at.regs.rip = original.next_ip();
            let unknown = |_| CompleteError::Unknown(original.mnemonic());
            at.carry_out(original).map_err(unknown)?;
        }
        Ok(at.fd.set_regs(&at.regs)?)
    }
}

/// Where a gate leads to.
fn target(gate: [u8; 16]) -> u64 {
    let (words, _) = gate.as_chunks();
    let low = u64::from_le_bytes(words[0]);
    low & 0xffff | low >> 32 & 0xffff_0000 | u64::from_le_bytes(words[1]) << 32
}

/// STAR, LSTAR and SFMASK; an error before the kernel has set them.
fn msrs(at: &Stopped<'_>) -> Result<[u64; 3], CompleteError> {
    let entries = [MSR_STAR, MSR_LSTAR, MSR_SFMASK].map(|index| kvm_msr_entry {
        index,
        ..Default::default()
    });
    let invalid = || kvm_ioctls::Error::new(libc::EINVAL);
    let mut list = Msrs::from_entries(&entries).map_err(|_| invalid())?;
    let read = at.fd.get_msrs(&mut list)?;
    let values: Vec<u64> = list.as_slice().iter().map(|entry| entry.data).collect();
    match values[..] {
        [star, entry, mask] if read == 3 && entry != 0 => Ok([star, entry, mask]),
        _ => Err(invalid().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn a_gate_leads_to_the_upper_half_too() {
        let gate: u128 = 0x1234_5678_ffff_ffff_8160_8e00_0010_0ab0;
        assert_eq!(target(gate.to_le_bytes()), 0xffff_ffff_8160_0ab0);
    }
}
