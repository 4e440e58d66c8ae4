//! A processor of a guest that has died: registers, their bits by name, the instruction, its callers, its last exits.

use std::fmt;

use iced_x86::{Decoder, DecoderOptions, FastFormatter, Instruction};
use kvm_bindings::{kvm_regs, kvm_sregs};
use serde::Serialize;

/// The longest instruction, bytes.
pub const INSTRUCTION_MAX: usize = 15;

const CR0: &[(u32, &str)] = &[
    (0, "PE"),
    (1, "MP"),
    (2, "EM"),
    (3, "TS"),
    (4, "ET"),
    (5, "NE"),
    (16, "WP"),
    (18, "AM"),
    (29, "NW"),
    (30, "CD"),
    (31, "PG"),
];
const CR4: &[(u32, &str)] = &[
    (0, "VME"),
    (1, "PVI"),
    (2, "TSD"),
    (3, "DE"),
    (4, "PSE"),
    (5, "PAE"),
    (6, "MCE"),
    (7, "PGE"),
    (8, "PCE"),
    (9, "OSFXSR"),
    (10, "OSXMMEXCPT"),
    (11, "UMIP"),
    (12, "LA57"),
    (13, "VMXE"),
    (14, "SMXE"),
    (16, "FSGSBASE"),
    (17, "PCIDE"),
    (18, "OSXSAVE"),
    (20, "SMEP"),
    (21, "SMAP"),
    (22, "PKE"),
    (23, "CET"),
    (24, "PKS"),
];
const EFER: &[(u32, &str)] = &[
    (0, "SCE"),
    (8, "LME"),
    (10, "LMA"),
    (11, "NXE"),
    (12, "SVME"),
    (13, "LMSLE"),
    (14, "FFXSR"),
    (15, "TCE"),
];
const RFLAGS: &[(u32, &str)] = &[
    (0, "CF"),
    (2, "PF"),
    (4, "AF"),
    (6, "ZF"),
    (7, "SF"),
    (8, "TF"),
    (9, "IF"),
    (10, "DF"),
    (11, "OF"),
    (14, "NT"),
    (16, "RF"),
    (17, "VM"),
    (18, "AC"),
    (19, "VIF"),
    (20, "VIP"),
    (21, "ID"),
];

/// The names of the bits that are set.
fn bits(value: u64, names: &[(u32, &'static str)]) -> String {
    let set = names.iter().filter(|(bit, _)| value >> bit & 1 != 0);
    let set: Vec<_> = set.map(|(_, name)| *name).collect();
    set.join(" ")
}

/// An instruction as an assembler's text, as far as these bytes are one.
fn disassemble(code: &[u8], rip: u64, is_64_bit: bool) -> Option<String> {
    let bitness = if is_64_bit { 64 } else { 32 };
    let mut decoder = Decoder::with_ip(bitness, code, rip, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    decoder.decode_out(&mut instruction);
    let mut text = String::new();
    FastFormatter::new().format(&instruction, &mut text);
    (!instruction.is_invalid()).then_some(text)
}

/// Numbers for machines, as hexadecimal text: JSON's numbers end at 53 bits.
fn hex<S: serde::Serializer>(words: &[(&'static str, u64)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(
        words
            .iter()
            .map(|(name, word)| (name, format!("{word:#x}"))),
    )
}

/// A processor, as it is reported.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessorReport {
    /// Its number.
    pub id: usize,
    /// Registers by name.
    #[serde(serialize_with = "hex")]
    registers: Vec<(&'static str, u64)>,
    cpl: u8,
    cr0: String,
    cr4: String,
    efer: String,
    rflags: String,
    /// Where it was, by its kernel's symbols.
    at: String,
    /// The instruction's bytes and those after it.
    code: String,
    instruction: Option<String>,
    /// Innermost first.
    callers: Vec<String>,
    /// Its last exits, newest last.
    exits: Vec<String>,
}

/// What a report is made of.
#[derive(Debug)]
pub struct Found<'a> {
    /// The processor's number.
    pub id: usize,
    /// Its registers.
    pub regs: &'a kvm_regs,
    /// The special ones.
    pub sregs: &'a kvm_sregs,
    /// Bytes at its instruction pointer, at most [`INSTRUCTION_MAX`].
    pub code: &'a [u8],
    /// The instruction's symbol.
    pub at: String,
    /// The symbols of who has called.
    pub callers: Vec<String>,
    /// See [`crate::trail`].
    pub exits: Vec<String>,
}

impl ProcessorReport {
    /// Names the bits and reads the instruction.
    #[must_use]
    pub fn new(found: Found<'_>) -> Self {
        let (r, s) = (found.regs, found.sregs);
        let registers = vec![
            ("rip", r.rip),
            ("rsp", r.rsp),
            ("rax", r.rax),
            ("rbx", r.rbx),
            ("rcx", r.rcx),
            ("rdx", r.rdx),
            ("rsi", r.rsi),
            ("rdi", r.rdi),
            ("rbp", r.rbp),
            ("r8", r.r8),
            ("r9", r.r9),
            ("r10", r.r10),
            ("r11", r.r11),
            ("r12", r.r12),
            ("r13", r.r13),
            ("r14", r.r14),
            ("r15", r.r15),
            ("cr2", s.cr2),
            ("cr3", s.cr3),
            ("cs", s.cs.selector.into()),
            ("ss", s.ss.selector.into()),
            ("fs", s.fs.base),
            ("gs", s.gs.base),
            ("idt", s.idt.base),
            ("gdt", s.gdt.base),
            ("cr0", s.cr0),
            ("cr4", s.cr4),
            ("efer", s.efer),
            ("rflags", r.rflags),
        ];
        let code: Vec<_> = found.code.iter().map(|b| format!("{b:02x}")).collect();
        Self {
            id: found.id,
            registers,
            cpl: s.ss.dpl,
            cr0: bits(s.cr0, CR0),
            cr4: bits(s.cr4, CR4),
            efer: bits(s.efer, EFER),
            rflags: bits(r.rflags, RFLAGS),
            at: found.at,
            instruction: disassemble(found.code, r.rip, s.cs.l != 0),
            code: code.join(" "),
            callers: found.callers,
            exits: found.exits,
        }
    }
}

/// Words that do not fit a line of the report go on in the next.
const EXITS_A_LINE: usize = 4;

impl fmt::Display for ProcessorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.registers.len() - 4;
        for row in self.registers[..named].chunks(4) {
            for (name, value) in row {
                write!(f, "  {name:<3} {value:016x}")?;
            }
            writeln!(f)?;
        }
        let names = [&self.cr0, &self.cr4, &self.efer, &self.rflags];
        for ((name, value), bits) in self.registers[named..].iter().zip(names) {
            writeln!(f, "  {name:<6} {value:08x}  {bits}")?;
        }
        write!(f, "  CPL {}, at {}", self.cpl, self.at)?;
        if !self.code.is_empty() {
            write!(f, "\n  code {}", self.code)?;
        }
        if let Some(instruction) = &self.instruction {
            write!(f, "\n  which is: {instruction}")?;
        }
        if !self.callers.is_empty() {
            f.write_str("\n  called by, innermost first, as its frame pointers have it:")?;
        }
        for caller in &self.callers {
            write!(f, "\n  {caller}")?;
        }
        if !self.exits.is_empty() {
            f.write_str("\n  its last exits to the VMM, newest last:")?;
        }
        for row in self.exits.chunks(EXITS_A_LINE) {
            write!(f, "\n  {}", row.join(" | "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(code: &[u8]) -> ProcessorReport {
        let regs = kvm_regs {
            rip: 0x1000,
            rflags: 0x202,
            ..Default::default()
        };
        let mut sregs = kvm_sregs {
            cr0: 0x8000_0011,
            cr4: 0x20,
            efer: 0x500,
            ..Default::default()
        };
        sregs.cs.l = 1;
        ProcessorReport::new(Found {
            id: 0,
            regs: &regs,
            sregs: &sregs,
            code,
            at: "start+0x0".to_owned(),
            callers: vec!["main".to_owned()],
            exits: vec!["out 0x3f8 0x41".to_owned()],
        })
    }

    #[test]
    fn bits_have_their_names_and_bytes_their_instruction() {
        // out 0x80, al; the rest is not looked at.
        let text = report(&[0xe6, 0x80, 0xff]).to_string();
        for part in [
            "cr0    80000011  PE ET PG",
            "cr4    00000020  PAE",
            "efer   00000500  LME LMA",
            "rflags 00000202  IF",
            "which is: out 80h,al",
            "out 0x3f8 0x41",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn what_is_no_instruction_has_no_text() {
        for code in [&[][..], &[0x0f], &[0x06]] {
            assert!(report(code).instruction.is_none(), "{code:x?}");
        }
    }

    #[test]
    fn the_report_is_json() {
        let json = serde_json::to_value(report(&[0xf4])).unwrap();
        assert_eq!(json["registers"]["cr0"], "0x80000011");
        assert_eq!(json["instruction"], "hlt");
    }
}
