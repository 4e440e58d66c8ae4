//! Booting the bare-metal guest with a table of calls, and reading what came back.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use paravane::config::{Config, Entry, FacilitySet, Profile};
use paravane::console::Console;
use paravane::doctor::image::{Image, layout};
use paravane::memory::{self, Memory};
use paravane::pv::DOORBELL_PORT;
use paravane::stats::{Outcome, Stats};
use paravane::vm::{RunOptions, Vm};
use paravane_abi::call::{CallResult, Status};

/// Guest memory.
pub(crate) const MEMORY_MIB: u64 = 32;
/// First byte after guest memory.
pub(crate) const MEMORY_END: u64 = MEMORY_MIB << 20;
/// A few pages for a test's own data.
pub(crate) const DATA: u64 = 0x60_0000;
/// Where a store goes that shall not matter.
const NOWHERE: u64 = layout::SCRATCH + 0xf00;
/// GDT and TSS for guests that leave CPL 0 or 64-bit mode.
const GDT: u64 = 0x31_0000;
const TSS: u64 = 0x31_1000;
/// A table of few frames lies where CPL 3 can reach it; a long one does not fit there.
const SMALL_TABLE: u64 = 0x32_0000;
const LARGE_TABLE: u64 = 0x80_0000;
const SMALL_TABLE_FRAMES: usize = 1024;
/// What the guest puts into the registers that a call leaves alone: RBP, R12 to R15.
const KEPT: [u64; 5] = [0xb0b, 0xc12, 0xc13, 0xc14, 0xc15];

/// One OUT that the guest executes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// EAX.
    pub(crate) id: u32,
    /// The argument registers.
    pub(crate) args: [u64; 6],
    /// DX.
    pub(crate) port: u16,
    /// Bytes: 1, 2 or 4.
    pub(crate) width: u32,
    /// A store before: address and value.
    pub(crate) store: (u64, u32),
}

impl Call {
    /// A call as the ABI has it; arguments that are not given are zero.
    pub(crate) fn new(id: u32, args: &[u64]) -> Self {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        Self {
            id,
            args: all,
            port: DOORBELL_PORT,
            width: 4,
            store: (NOWHERE, 0),
        }
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0; frame_bytes()];
        let mut put = |at: u64, bytes: &[u8]| {
            let at = usize::try_from(at).unwrap();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(layout::FRAME_CALL, &self.id.to_le_bytes());
        put(layout::FRAME_PORT, &self.port.to_le_bytes());
        put(layout::FRAME_WIDTH, &self.width.to_le_bytes());
        for (at, arg) in (layout::FRAME_ARGS..).step_by(8).zip(self.args) {
            put(at, &arg.to_le_bytes());
        }
        put(layout::FRAME_POKE, &self.store.0.to_le_bytes());
        put(layout::FRAME_POKE + 8, &self.store.1.to_le_bytes());
        frame
    }
}

fn frame_bytes() -> usize {
    usize::try_from(layout::FRAME_BYTES).unwrap()
}

/// What the guest found afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct After {
    /// RAX, RDX, RDI, RSI, R8 to R11, RBP, R12 to R15.
    pub(crate) registers: [u64; 13],
}

impl After {
    /// Status and value. Anything but a status of the registry is a failure of the host.
    pub(crate) fn result(&self) -> CallResult {
        let [rax, rdx, ..] = self.registers;
        let status = rax.cast_signed();
        let result = Status::decode(status, rdx);
        assert_eq!(
            Status::encode(result),
            (status, rdx),
            "not an answer of the ABI: RAX {rax:#x}, RDX {rdx:#x}"
        );
        result
    }
}

/// How the guest makes its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As the ABI wants it.
    Cpl0,
    /// From CPL 3, with all ports open.
    Cpl3,
    /// From 32-bit code at CPL 0; the first call only.
    Bits32,
    /// Not at all: CPUID instead.
    Cpuid,
    /// Not at all: a string instruction and a read at the doorbell.
    OtherAccesses,
}

/// A guest to be.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// How it calls.
    pub(crate) mode: Mode,
    /// `--pv`.
    pub(crate) facilities: &'static str,
    /// Number of vCPUs.
    pub(crate) vcpus: u8,
    /// Memory contents before the first instruction.
    pub(crate) contents: Vec<(u64, Vec<u8>)>,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            mode: Mode::Cpl0,
            facilities: "",
            vcpus: 1,
            contents: Vec::new(),
        }
    }
}

/// A guest that has run.
#[derive(Debug)]
pub(crate) struct Ran {
    /// One for each call; zeros for calls that were not reached.
    pub(crate) after: Vec<After>,
    /// The VMM's statistics.
    pub(crate) stats: Stats,
    /// What it printed.
    pub(crate) console: Vec<u8>,
    /// Its memory.
    pub(crate) memory: Memory,
    /// All its memory before the first instruction.
    pub(crate) before: Vec<u8>,
    /// Where its frames are.
    pub(crate) frames: Range<u64>,
}

impl Ran {
    /// The results, after the registers that must be as before have been looked at.
    pub(crate) fn results(&self, calls: &[Call]) -> Vec<CallResult> {
        assert_eq!(calls.len(), self.after.len());
        for (call, after) in calls.iter().zip(&self.after) {
            assert_eq!(&after.registers[2..8], call.args, "arguments of {call:?}");
            assert_eq!(&after.registers[8..], KEPT, "registers after {call:?}");
        }
        self.after.iter().map(After::result).collect()
    }

    /// Guest memory now.
    pub(crate) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read(address, &mut bytes).unwrap();
        bytes
    }

    /// A `u32` of guest memory now.
    pub(crate) fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address, 4).try_into().unwrap())
    }
}

/// Makes `calls` in a para guest with everything and gives their results; the guest must then
/// switch itself off. `None`, after a word about it, where there is no KVM.
pub(crate) fn results(calls: &[Call]) -> Option<Vec<CallResult>> {
    let ran = Guest::default().run(calls)?;
    assert_eq!(ran.stats.outcome, Outcome::PowerOff, "{ran:?}");
    Some(ran.results(calls))
}

/// The result of one call.
pub(crate) fn result(id: u32, args: &[u64]) -> Option<CallResult> {
    results(&[Call::new(id, args)]).map(|results| results[0])
}

impl Guest {
    /// Boots it with these calls and runs it to its end.
    pub(crate) fn run(&self, calls: &[Call]) -> Option<Ran> {
        if let Err(error) = paravane::kvm::open() {
            eprintln!("skipped: {error}");
            return None;
        }
        let config = Config {
            profile: Profile::Para,
            kernel: PathBuf::from(concat!(env!("OUT_DIR"), "/bare-metal")),
            initrd: None,
            cmdline: String::new(),
            memory_mib: MEMORY_MIB,
            prealloc: false,
            vcpus: self.vcpus,
            facilities: FacilitySet::parse(self.facilities).unwrap(),
            entry: Entry::Linux64,
            watchdog: Some(Duration::from_secs(60)),
        };
        let console = Console::memory().unwrap();
        let mut vm = Vm::new(config, console.clone(), Instant::now()).unwrap();
        vm.boot().unwrap();
        let memory = vm.memory().clone();
        let table = self.fill(&memory, calls);
        let mut before = vec![0; usize::try_from(MEMORY_END).unwrap()];
        memory.read(0, &mut before).unwrap();
        let stats = vm.run(RunOptions::default()).unwrap();
        let after = (0..calls.len())
            .map(|index| {
                let frame = table + layout::FRAME_BYTES * index as u64 + layout::FRAME_AFTER;
                After {
                    registers: memory.read_obj(frame).unwrap(),
                }
            })
            .collect();
        Some(Ran {
            after,
            stats,
            console: console.contents(),
            memory,
            before,
            frames: table..table + layout::FRAME_BYTES * calls.len() as u64,
        })
    }

    /// Writes parameters, tables and the test's contents. Returns where the frames are.
    fn fill(&self, memory: &Memory, calls: &[Call]) -> u64 {
        let table = if calls.len() > SMALL_TABLE_FRAMES {
            LARGE_TABLE
        } else {
            SMALL_TABLE
        };
        for (index, call) in calls.iter().enumerate() {
            let at = table + layout::FRAME_BYTES * index as u64;
            memory.write(at, &call.frame()).unwrap();
        }
        let go_on = Image::load()
            .unwrap()
            .symbol(match self.mode {
                Mode::Cpl0 => "calls_at_cpl0",
                Mode::Cpl3 => "calls_at_cpl3",
                Mode::Bits32 => "calls_in_32_bit",
                Mode::Cpuid => "leaves_at_cpl0",
                Mode::OtherAccesses => "other_accesses_at_cpl0",
            })
            .unwrap();
        let put = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).unwrap();
        put(layout::PARAMETERS, table);
        put(layout::PARAMETERS + 8, calls.len() as u64);
        put(layout::PARAMETERS + 16, go_on);
        put(layout::PARAMETERS + 24, u64::from(DOORBELL_PORT));
        // The operand of LGDT: limit, base.
        put(layout::PARAMETERS + 32, GDT << 16 | 0x7f);
        put(layout::PARAMETERS + 40, GDT >> 48);
        write_segments(memory);
        if self.mode == Mode::Cpl3 {
            open_to_cpl3(memory);
        }
        for (address, bytes) in &self.contents {
            memory.write(*address, bytes).unwrap();
        }
        table
    }
}

/// Segments of CPL 0 and CPL 3, and a TSS whose bitmap opens all ports.
fn write_segments(memory: &Memory) {
    let put = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).unwrap();
    for (selector, descriptor) in [
        (layout::KERNEL32_CS, 0x00cf_9b00_0000_ffff),
        (layout::KERNEL_CS, 0x00af_9b00_0000_ffff),
        (layout::KERNEL_SS, 0x00cf_9300_0000_ffff),
        (layout::USER_SS, 0x00cf_f300_0000_ffff),
        (layout::USER_CS, 0x00af_fb00_0000_ffff),
        // Present, available 64-bit TSS, 0xffe bytes.
        (
            layout::TASK,
            0x0000_8900_0000_0ffe | (TSS & 0xff_ffff) << 16,
        ),
        (layout::TASK + 8, 0),
    ] {
        put(GDT + u64::from(selector & !7), descriptor);
    }
    put(TSS + 4, layout::KERNEL_STACK);
    memory.write(TSS + 102, &104u16.to_le_bytes()).unwrap();
}

/// Sets the "user" bit on the way to the second 2 MiB.
fn open_to_cpl3(memory: &Memory) {
    let tables = memory::PAGE_TABLES;
    for entry in [tables, tables + 0x1000, tables + 0x2000 + 8] {
        let value: u64 = memory.read_obj(entry).unwrap();
        memory.write(entry, &(value | 4).to_le_bytes()).unwrap();
    }
}
