//! What the attacker does: a script of random operations, which a seed makes again.
//!
//! Random numbers alone would not get beyond the first check of anything. So most of a script is aimed: at ports and registers that exist, with
//! numbers that mean something there; and now and then a device is set up as a good driver does it, for what follows to find it at work.

use fastrand::Rng;

/// Entries of a script: 4 MiB.
const ENTRIES: usize = 1 << 16;
/// After so many operations a device is set up again.
const SETUP_EACH: usize = 400;
/// Guest memory, MiB; the script lies at its end.
pub(super) const MEMORY_MIB: u64 = 64;
/// Memory of the structures that devices are given.
const ARENA: u64 = 0x80_0000;
/// The guest's own memory: nothing that a device may write to lies there.
const OWN: std::ops::Range<u64> = 0xf_0000..0x40_0000;

const VIRTIO_MMIO: u64 = 0xd000_0000;
const CONSOLE_PAGE: u64 = 0xe_1000;
const PV_PAGES: [u64; 5] = [0xe_0000, CONSOLE_PAGE, 0xf_8000, 0xf_a000, 0xf_b000];
const DEV_DOORBELL: u64 = 0x78;
/// A write has the VMM note its time so far.
const MARK: u64 = 0x84;
const LAPIC: u64 = 0xfee0_0000;
/// The register that sends interrupts: an INIT to itself would end the attack.
const ICR: u64 = 0x300;
/// MSRs that a guest can set and go on.
const MSRS: [u64; 9] = [
    0x10,
    0x1a0,
    0x277,
    0x2ff,
    0x6e0,
    0xc000_0081,
    0xc000_0082,
    0xc000_0100,
    0xc000_0103,
];

/// Who is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Full,
    KvmPv,
    Para,
    /// Nobody: what a neighbour does.
    Neighbour,
}

/// An operation, by its place in the guest's `attack_operations`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Op {
    Out8,
    Out16,
    Out32,
    In8,
    In16,
    In32,
    OutString,
    InString,
    Store8,
    Store32,
    Store64,
    Load8,
    Load32,
    Call,
    Cpuid,
    ReadMsr,
    WriteMsr,
}

#[derive(Debug)]
struct Script {
    target: Target,
    random: Rng,
    bytes: Vec<u8>,
}

/// A script, and what follows from `seed`: the same script again.
pub(super) fn write(target: Target, seed: u64, passes: u64) -> Vec<u8> {
    let mut script = Script {
        target,
        random: Rng::with_seed(seed),
        bytes: Vec::with_capacity((ENTRIES + 1) * 64),
    };
    script.bytes.resize(64, 0);
    for number in 0..ENTRIES {
        if number % SETUP_EACH == 0 {
            script.set_up();
        }
        script.operation();
    }
    if target == Target::Neighbour {
        script.put(Op::Out8, MARK, &[]);
    }
    let entries = (script.bytes.len() / 64 - 1) as u64;
    script.bytes[..8].copy_from_slice(&passes.to_le_bytes());
    script.bytes[8..16].copy_from_slice(&entries.to_le_bytes());
    script.bytes
}

impl Script {
    fn put(&mut self, op: Op, address: u64, values: &[u64]) {
        self.bytes.extend(u64::from(op as u32).to_le_bytes());
        self.bytes.extend(address.to_le_bytes());
        for index in 0..6 {
            let value = values.get(index).copied().unwrap_or(0);
            self.bytes.extend(value.to_le_bytes());
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random.u64(..end)
    }

    fn pick(&mut self, from: &[u64]) -> u64 {
        from[self.random.usize(..from.len())]
    }

    /// A number that means something, is just beside such a number, or is any.
    fn value(&mut self) -> u64 {
        const SPECIAL: [u64; 26] = [
            0,
            1,
            2,
            3,
            4,
            8,
            16,
            64,
            0x80,
            0xff,
            0x100,
            0x200,
            0xfff,
            0x1000,
            0xffff,
            0x1_0000,
            0x7fff_ffff,
            0x8000_0000,
            0xc000_0000,
            0xffff_ffff,
            1 << 32,
            1 << 52,
            1 << 63,
            u64::MAX,
            MEMORY_MIB << 20,
            (MEMORY_MIB << 20) - 8,
        ];
        let value = match self.below(8) {
            0..=2 => self.pick(&SPECIAL),
            3 => {
                let near = self.below(17);
                self.pick(&SPECIAL).wrapping_add(near).wrapping_sub(8)
            }
            4 | 5 => ARENA + 0x1000 * self.below(16) + 4 * self.below(64),
            6 => self.below(256),
            _ => self.random.u64(..) >> self.below(64),
        };
        if OWN.contains(&value) {
            value | ARENA
        } else {
            value
        }
    }

    fn operation(&mut self) {
        let kind = self.below(100);
        match (self.target, kind) {
            (Target::Neighbour, _) => self.put(Op::Out8, 0x80, &[]),
            (_, 0..5) => {
                let port = self.below(0x1_0000);
                self.port(port);
            }
            (_, 5..8) => self.processor(),
            (_, 8..12) => {
                let hole = [0xc000_0000, 0xd000_0000, 0xfec0_0000, LAPIC, 0xffff_0000];
                let base = self.pick(&hole);
                let address = base + self.below(0x1_0000);
                self.memory(address);
            }
            (_, 12..22) => {
                // What devices have been told to look at.
                let address = ARENA + 0x1000 * self.below(16) + 4 * self.below(80);
                let value = self.value();
                let op = [Op::Store8, Op::Store32, Op::Store64][self.random.usize(..3)];
                self.put(op, address, &[value]);
            }
            (Target::Para, _) => self.para(kind),
            (Target::KvmPv, 22..60) => {
                let register = VIRTIO_MMIO + 0x1000 * self.below(3) + (self.below(0x200) & !3);
                self.memory(register);
            }
            (Target::Full | Target::KvmPv, _) => self.pc(),
        }
    }

    /// Any access to a port. Nothing resets the machine: the attack would be over.
    fn port(&mut self, port: u64) {
        let value = self.value();
        let (op, value) = match self.below(8) {
            0..=2 => (Op::Out8, if port == 0x64 { value & 0x7f } else { value }),
            3 => (Op::Out16, value),
            // A call, and not at random: to switch off, say.
            4 if port == 0x7e => (Op::In32, 0),
            4 => (Op::Out32, value),
            5 => (Op::In16, 0),
            6 => (Op::In32, 0),
            _ => (Op::In8, 0),
        };
        self.put(op, port, &[value]);
    }

    fn memory(&mut self, address: u64) {
        // Its high half is its low half's target.
        let is_icr = (LAPIC + ICR..LAPIC + ICR + 0x20).contains(&address);
        let value = self.value();
        let op = match self.below(8) {
            0 => Op::Store8,
            1..=3 => Op::Store32,
            4 => Op::Store64,
            5 => Op::Load8,
            _ => Op::Load32,
        };
        if is_icr || address & 0xfff == 0xff8 {
            return self.put(Op::Load32, address, &[]);
        }
        self.put(op, address, &[value]);
    }

    fn processor(&mut self) {
        let leaf = [0, 0x4000_0000, 0x8000_0000][self.random.usize(..3)] + self.below(0x140);
        let sub = self.below(8);
        let msr =
            [0, 0x4b56_4d00, 0xc000_0000, 0xc001_0000][self.random.usize(..4)] + self.below(0x1000);
        let value = self.value();
        match self.below(3) {
            0 => self.put(Op::Cpuid, leaf, &[sub]),
            1 => self.put(Op::ReadMsr, msr, &[]),
            _ => {
                let msr = self.pick(&MSRS);
                self.put(Op::WriteMsr, msr, &[value]);
            }
        }
    }

    fn para(&mut self, kind: u64) {
        match kind {
            22..75 => {
                let id = match self.below(8) {
                    0 => self.below(20) << 16 | self.below(8),
                    1 => self.random.u64(..) & 0xffff_ffff,
                    _ => self.pick(&CALLS),
                };
                // Off and stop are calls that do not return.
                let id = if matches!(id, 0x1_0004 | 0x9_0001) {
                    0
                } else {
                    id
                };
                let mut args = [0; 6];
                let count = if self.below(8) == 0 { 6 } else { 2 };
                for arg in &mut args[..count] {
                    *arg = self.value();
                }
                // As few as there are: a device, a processor.
                if self.below(3) == 0 {
                    args[0] = self.below(2);
                }
                self.put(Op::Call, id, &args);
            }
            75..85 => {
                let page = self.pick(&PV_PAGES);
                let address = page + 4 * self.below(64);
                let value = self.value();
                self.put(Op::Store32, address, &[value]);
            }
            _ => {
                let bell = self.below(3) | self.below(3) << 16;
                self.put(Op::Out32, DEV_DOORBELL, &[bell]);
            }
        }
    }

    /// The PC's devices.
    fn pc(&mut self) {
        match self.below(10) {
            0..=3 => {
                let base = self.pick(&[0x1f0, 0x1f0, 0x170]);
                let port = base + self.below(8);
                if self.below(4) == 0 {
                    let command = self.pick(&ATA);
                    self.put(Op::Out8, base + 7, &[command]);
                } else if port == base && self.below(2) == 0 {
                    let at = ARENA + 0x8000;
                    let count = self.below(300);
                    let op = [Op::OutString, Op::InString][self.random.usize(..2)];
                    self.put(op, port, &[at, count]);
                } else {
                    self.port(port);
                }
            }
            4 => {
                let port = 0xc000 + self.below(0x20);
                self.port(port);
            }
            5 => {
                let function = self.pick(&[0, 0x800, 0x900, 0x1000]);
                let address = 0x8000_0000 | function | self.below(0x40) << 2;
                self.put(Op::Out32, 0xcf8, &[address]);
                let data = 0xcfc + self.below(4);
                self.port(data);
            }
            6 => {
                let port = 0x3f8 + self.below(8);
                self.port(port);
            }
            7 => {
                let port =
                    self.pick(&[0x20, 0x21, 0x40, 0x42, 0x43, 0x60, 0x61, 0xa0, 0xa1, 0x4d0]);
                self.port(port);
            }
            8 => {
                let port = 0x70 + self.below(2);
                self.port(port);
            }
            // An NE2000, where there is one.
            _ => {
                let port = 0xc100 + self.below(0x20);
                self.port(port);
            }
        }
    }

    /// A device as a good driver leaves it, in the middle of its work.
    fn set_up(&mut self) {
        match self.target {
            Target::Full => self.set_up_ide(),
            Target::KvmPv => self.set_up_mmio(),
            Target::Para => self.set_up_dev(),
            Target::Neighbour => {}
        }
    }

    /// A queue with one request: descriptors at the arena's first page, rings in the next ones, header and data behind.
    fn queue(&mut self) {
        const NEXT: u64 = 1 << 32;
        const WRITE: u64 = 2 << 32;
        let header = ARENA + 0x4000;
        for (at, value) in [
            (0x0, header),
            (0x8, 16 | NEXT | 1 << 48),
            (0x10, ARENA + 0x8000),
            (0x18, 0x1000 | NEXT | WRITE | 2 << 48),
            (0x20, header + 0x100),
            (0x28, 1 | WRITE),
            // The available ring: one entry, chain 0. The used ring: none.
            (0x1000, 1 << 16),
            (0x2000, 0),
            // A read of sector 0.
            (0x4000, 0),
            (0x4008, 0),
        ] {
            self.put(Op::Store64, ARENA + at, &[value]);
        }
    }

    fn set_up_dev(&mut self) {
        self.queue();
        let start = ARENA + 0x5000;
        for (at, value) in [
            (0, 1 << 32),
            (8, 0x30),
            (16, ARENA),
            (24, ARENA + 0x1000),
            (32, ARENA + 0x2000),
            (40, 16),
        ] {
            self.put(Op::Store64, start + at, &[value]);
        }
        self.put(Op::Call, 0xc_0001, &[0]);
        self.put(Op::Call, 0xc_0000, &[0, start]);
        self.put(Op::Out32, DEV_DOORBELL, &[0]);
        // A ring for calls.
        self.put(Op::Call, 0x10_0001, &[0]);
        let exitless = self.below(2);
        self.put(Op::Call, 0x10_0000, &[0, ARENA + 0x6000, 16, exitless]);
        self.put(Op::Store64, ARENA + 0x6000, &[4]);
        self.put(Op::Call, 0x10_0002, &[0]);
    }

    fn set_up_mmio(&mut self) {
        self.queue();
        for (register, value) in [
            (0x70, 0),
            (0x70, 3),
            (0x24, 1),
            (0x20, 1),
            (0x70, 11),
            (0x30, 0),
            (0x38, 16),
            (0x80, ARENA),
            (0x84, 0),
            (0x90, ARENA + 0x1000),
            (0x94, 0),
            (0xa0, ARENA + 0x2000),
            (0xa4, 0),
            (0x44, 1),
            (0x70, 15),
            (0x50, 0),
        ] {
            self.put(Op::Store32, VIRTIO_MMIO + register, &[value]);
        }
    }

    fn set_up_ide(&mut self) {
        // The controller answers, and is a master.
        self.put(Op::Out32, 0xcf8, &[0x8000_0904]);
        self.put(Op::Out16, 0xcfc, &[5]);
        self.put(Op::Out32, 0xcf8, &[0x8000_0920]);
        self.put(Op::Out32, 0xcfc, &[0xc001]);
        // A table of two regions, the last one marked.
        let table = ARENA + 0x6000;
        self.put(Op::Store64, table, &[(ARENA + 0x8000) | 0x200 << 32]);
        self.put(
            Op::Store64,
            table + 8,
            &[(ARENA + 0x9000) | 0x8000_0200 << 32],
        );
        self.put(Op::Out8, 0xc000, &[0]);
        self.put(Op::Out32, 0xc004, &[table]);
        for (register, value) in [(2, 2), (3, 0), (4, 0), (5, 0), (6, 0xe0)] {
            self.put(Op::Out8, 0x1f0 + register, &[value]);
        }
        let command = self.pick(&[0xc8, 0xca, 0x20, 0x30, 0xec, 0x25, 0x35]);
        self.put(Op::Out8, 0x1f7, &[command]);
        self.put(Op::Out8, 0xc000, &[9]);
        self.put(Op::In8, 0x1f7, &[]);
    }
}

/// Calls of the ABI that return.
const CALLS: [u64; 23] = [
    0x1_0000, 0x1_0001, 0x1_0002, 0x1_0003, 0x2_0000, 0x2_0001, 0x2_0002, 0x3_0000, 0x3_0001,
    0x9_0000, 0x9_0002, 0x9_0003, 0xa_0000, 0xa_0001, 0xb_0000, 0xc_0000, 0xc_0000, 0xc_0001,
    0xd_0000, 0x10_0000, 0x10_0001, 0x10_0002, 0x10_0002,
];

/// Commands of a disk.
const ATA: [u64; 20] = [
    0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x40, 0x42, 0x90, 0xc4, 0xc5, 0xc6, 0xc8, 0xca,
    0xe7, 0xec, 0xef, 0xa1,
];

#[cfg(test)]
mod tests {
    use super::{Target, write};

    #[test]
    fn a_seed_makes_the_same_script_again() {
        let script = |seed| write(Target::Para, seed, 1);
        assert!(script(7) == script(7));
        assert!(script(7) != script(8));
        assert_eq!(script(7).len() % 64, 0);
    }
}
