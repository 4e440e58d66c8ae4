//! Completion (`run --complete`): the VMM carries out what a kernel at CPL 0 executes and KVM's emulator does not know.
//!
//! # Background
//!
//! A KVM that is software interprets CPL 0, instruction by instruction, and knows those that firmware and device drivers use on devices. A kernel
//! executes others: INT3, CMPXCHG16B, XSAVE. KVM then gives up (`KVM_EXIT_INTERNAL_ERROR`), with RIP at the instruction and all registers right.
//!
//! # How it works
//!
//! The instruction is decoded by `iced-x86` and carried out on the registers ([`integer`]) or on the FPU's state ([`xstate`]); its operands in memory
//! are found by the guest's page tables ([`operand`]); RIP goes on, and so does the guest. User code runs at CPL 3, natively, and needs
//! none of it, but for SYSCALL, which raises no privilege there ([`syscall`]). What is not known here ends the run as ever, and is named.
//!
//! # What it is for
//!
//! An unmodified kernel, correctly and slowly, where it does not run at all otherwise: a microsecond an instruction at CPL 0, and some tens for one
//! that is completed. It is no way to measure one.

mod integer;
mod operand;
mod syscall;
mod xstate;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;

use self::operand::Fault;
use self::syscall::Elevation;
use crate::vm::Machine;

/// The longest x86 instruction, bytes.
const INSTRUCTION_MAX: usize = 15;

const BREAKPOINT: u8 = 3;
const PAGE_FAULT: u8 = 14;

/// Why an instruction was not completed.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// It cannot be read.
    #[error("KVM could not emulate an instruction, and there is none at {0:#x}")]
    NoCode(u64),
    /// Nobody has taught it to this VMM.
    #[error("neither KVM nor this VMM (--complete) can carry out `{0:?}` at CPL 0")]
    Unknown(Mnemonic),
    /// KVM refuses to tell or to take registers.
    #[error("KVM refused the registers of a vCPU whose instruction was completed: {0}")]
    Registers(#[from] kvm_ioctls::Error),
}

/// What one vCPU's completions have to remember.
#[derive(Debug, Default)]
pub struct Completer {
    elevation: Elevation,
}

/// A vCPU that stands at an instruction.
struct Stopped<'a> {
    machine: &'a Machine,
    fd: &'a VcpuFd,
    regs: kvm_regs,
    sregs: kvm_sregs,
}

impl Completer {
    /// Carries out the instruction that the vCPU stands at.
    ///
    /// # Errors
    ///
    /// [`CompleteError`], and the guest's registers are as they were.
    pub fn complete(&mut self, machine: &Machine, fd: &VcpuFd) -> Result<(), CompleteError> {
        let (regs, sregs) = (fd.get_regs()?, fd.get_sregs()?);
        let mut at = Stopped {
            machine,
            fd,
            regs,
            sregs,
        };
        let instruction = at.instruction(regs.rip)?;
        at.regs.rip = instruction.next_ip();
        let done = match instruction.mnemonic() {
            Mnemonic::Int3 if self.elevation.has_planted(regs.rip) => {
                return self.elevation.enter(at);
            }
            Mnemonic::Int3 => return at.raise(BREAKPOINT, None),
            Mnemonic::Xrstor | Mnemonic::Xrstor64 => {
                let done = at.restore(&instruction);
                // The kernel is about to go to a user.
                self.elevation.plant(&at);
                done
            }
            Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => {
                at.save(&instruction)
            }
            Mnemonic::Xgetbv => at.read_xcr(),
            _ => at.carry_out(&instruction),
        };
        match done {
            Ok(()) => Ok(fd.set_regs(&at.regs)?),
            Err(Fault::Unknown) => Err(CompleteError::Unknown(instruction.mnemonic())),
            Err(Fault::Kvm(error)) => Err(error.into()),
            Err(Fault::Page { address, error }) => {
                at.regs.rip = regs.rip;
                at.sregs.cr2 = address;
                fd.set_sregs(&at.sregs)?;
                at.raise(PAGE_FAULT, Some(error))
            }
        }
    }
}

impl Stopped<'_> {
    /// The instruction at a virtual address.
    fn instruction(&self, rip: u64) -> Result<Instruction, CompleteError> {
        let mut code = [0; INSTRUCTION_MAX];
        let length = self.machine.read_virtual(self.fd, rip, &mut code);
        let decoder = Decoder::with_ip(64, &code[..length], rip, DecoderOptions::NONE);
        let found = decoder.into_iter().next();
        found
            .filter(|i| !i.is_invalid())
            .ok_or(CompleteError::NoCode(rip))
    }

    /// Takes the registers over, and raises an exception after that.
    fn raise(&self, vector: u8, error: Option<u32>) -> Result<(), CompleteError> {
        self.fd.set_regs(&self.regs)?;
        let mut events = kvm_vcpu_events::default();
        events.exception.injected = 1;
        events.exception.nr = vector;
        events.exception.has_error_code = error.is_some().into();
        events.exception.error_code = error.unwrap_or(0);
        Ok(self.fd.set_vcpu_events(&events)?)
    }
}
