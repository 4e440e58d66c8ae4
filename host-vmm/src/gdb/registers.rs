//! A vCPU's registers, as gdb wants them.
//!
//! The core registers and their order are gdb's own for x86-64 ([`X86_64CoreRegs`]). Behind them come the bases of FS
//! and GS, without which nobody finds a kernel's per-CPU data, and the control registers.

use gdbstub::arch::{Arch, Registers};
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use kvm_bindings::{kvm_fpu, kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

/// Bytes that gdb's core registers take.
const CORE_BYTES: usize = 0x218;
/// FS and GS base, CR0, CR2, CR3, CR4, CR8, EFER.
const SYSTEM: usize = 8;

/// What gdb is told of the architecture.
#[derive(Debug)]
pub(super) enum Amd64 {}

impl Arch for Amd64 {
    type Usize = u64;
    type Registers = VcpuRegisters;
    type RegId = ();
    type BreakpointKind = usize;

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

/// All that gdb sees of a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VcpuRegisters {
    core: X86_64CoreRegs,
    system: [u64; SYSTEM],
}

impl Registers for VcpuRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.core.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.core.gdb_serialize(&mut write_byte);
        for byte in self.system.iter().flat_map(|word| word.to_le_bytes()) {
            write_byte(Some(byte));
        }
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let (core, system) = bytes.split_at_checked(CORE_BYTES).ok_or(())?;
        self.core.gdb_deserialize(core)?;
        let (words, rest) = system.as_chunks();
        if !rest.is_empty() || words.len() != SYSTEM {
            return Err(());
        }
        for (register, word) in self.system.iter_mut().zip(words) {
            *register = u64::from_le_bytes(*word);
        }
        Ok(())
    }
}

/// The lower half of a register that gdb knows as a word.
#[expect(
    clippy::cast_possible_truncation,
    reason = "gdb has no room for the upper half, which is reserved or of no interest"
)]
const fn low(value: u64) -> u32 {
    value as u32
}

impl VcpuRegisters {
    /// Those of a vCPU that stands still.
    pub(super) fn read(fd: &VcpuFd) -> Result<Self, kvm_ioctls::Error> {
        let (r, s, f) = (fd.get_regs()?, fd.get_sregs()?, fd.get_fpu()?);
        let mut core = X86_64CoreRegs {
            regs: [
                r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11,
                r.r12, r.r13, r.r14, r.r15,
            ],
            eflags: low(r.rflags),
            rip: r.rip,
            xmm: f.xmm.map(u128::from_le_bytes),
            mxcsr: f.mxcsr,
            ..X86_64CoreRegs::default()
        };
        core.segments.cs = s.cs.selector.into();
        core.segments.ss = s.ss.selector.into();
        core.segments.ds = s.ds.selector.into();
        core.segments.es = s.es.selector.into();
        core.segments.fs = s.fs.selector.into();
        core.segments.gs = s.gs.selector.into();
        for (to, from) in core.st.iter_mut().zip(&f.fpr) {
            to.copy_from_slice(&from[..10]);
        }
        core.fpu.fctrl = f.fcw.into();
        core.fpu.fstat = f.fsw.into();
        core.fpu.ftag = f.ftwx.into();
        core.fpu.fop = f.last_opcode.into();
        core.fpu.fioff = low(f.last_ip);
        core.fpu.fooff = low(f.last_dp);
        let system = [
            s.fs.base, s.gs.base, s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer,
        ];
        Ok(Self { core, system })
    }

    /// Gives them to the vCPU; what has not changed is not touched.
    pub(super) fn write(&self, fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        let before = Self::read(fd)?;
        if self.general() != before.general() {
            fd.set_regs(&self.general())?;
        }
        if self.system != before.system {
            let mut sregs = fd.get_sregs()?;
            self.put_system(&mut sregs);
            fd.set_sregs(&sregs)?;
        }
        if (&self.core.st, &self.core.xmm, self.core.mxcsr)
            != (&before.core.st, &before.core.xmm, before.core.mxcsr)
        {
            let mut fpu = fd.get_fpu()?;
            self.put_floating(&mut fpu);
            fd.set_fpu(&fpu)?;
        }
        Ok(())
    }

    fn general(&self) -> kvm_regs {
        let [
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            rsp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ] = self.core.regs;
        kvm_regs {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip: self.core.rip,
            rflags: self.core.eflags.into(),
        }
    }

    fn put_system(&self, s: &mut kvm_sregs) {
        let [fs, gs, cr0, cr2, cr3, cr4, cr8, efer] = self.system;
        (s.fs.base, s.gs.base) = (fs, gs);
        (s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer) = (cr0, cr2, cr3, cr4, cr8, efer);
    }

    fn put_floating(&self, f: &mut kvm_fpu) {
        for (to, from) in f.fpr.iter_mut().zip(&self.core.st) {
            to[..10].copy_from_slice(from);
        }
        f.xmm = self.core.xmm.map(u128::to_le_bytes);
        f.mxcsr = self.core.mxcsr;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registers_fill_what_the_description_says() {
        let mut bytes = Vec::new();
        VcpuRegisters::default().gdb_serialize(|byte| bytes.extend(byte));
        let text = include_str!("target.xml");
        let bits = text
            .split("bitsize=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next()?.parse::<usize>().ok());
        assert_eq!(bytes.len() * 8, bits.sum::<usize>());
    }

    #[test]
    fn what_is_written_is_read_again() {
        let registers = VcpuRegisters {
            core: X86_64CoreRegs {
                rip: 0x1234,
                ..X86_64CoreRegs::default()
            },
            system: [1, 2, 3, 4, 5, 6, 7, 8],
        };
        let mut bytes = Vec::new();
        registers.gdb_serialize(|byte| bytes.extend(byte));
        let mut again = VcpuRegisters::default();
        again.gdb_deserialize(&bytes).unwrap();
        assert_eq!(again, registers);
        assert!(again.gdb_deserialize(&bytes[1..]).is_err());
    }
}
