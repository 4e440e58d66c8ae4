//! Booting the bare-metal guest with a table of calls, and reading what came back.

use std::io::Write;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::config::{Config, FacilitySet, Profile};
use crate::console::Console;
use crate::disk::DiskSpec;
use crate::doctor::image::{self, Image, layout};
use crate::kvm::cpuid::delegable;
use crate::memory::{self, Memory};
use crate::pv::DOORBELL_PORT;
use crate::stats::{Outcome, Stats};
use crate::vm::{RunOptions, Vm};
use paravane_abi::call::{CallResult, Status};
use vmm_sys_util::tempfile::TempFile;

use super::Failure;

/// Guest memory.
pub const MEMORY_MIB: u64 = 32;
/// First byte after guest memory.
pub const MEMORY_END: u64 = MEMORY_MIB << 20;
/// A few pages for a test's own data.
pub const DATA: u64 = 0x60_0000;
/// Where a store goes that shall not matter.
const NOWHERE: u64 = layout::SCRATCH + 0xf00;
/// GDT and TSS for guests that leave CPL 0 or 64-bit mode.
const GDT: u64 = 0x31_0000;
const TSS: u64 = 0x31_1000;
/// A table of few frames lies where CPL 3 can reach it; a long one does not fit there.
const SMALL_TABLE: u64 = 0x32_0000;
const LARGE_TABLE: u64 = 0x80_0000;
const SMALL_TABLE_FRAMES: usize = 1024;
/// [`layout::FRAME_BYTES`], for `step_by`.
const FRAME_STEP: usize = 256;
const _: () = assert!(FRAME_STEP as u64 == layout::FRAME_BYTES);
/// What the guest puts into the registers that a call leaves alone: RBP, R12 to R15.
const KEPT: [u64; 5] = [0xb0b, 0xc12, 0xc13, 0xc14, 0xc15];

/// One OUT that the guest executes.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// EAX.
    pub id: u32,
    /// The argument registers.
    pub args: [u64; 6],
    /// DX.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub width: u32,
    /// A store before: address and value.
    pub store: (u64, u32),
}

impl Call {
    /// A call as the ABI has it; arguments that are not given are zero.
    pub fn new(id: u32, args: &[u64]) -> Self {
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

    /// Writes its frame to `at`, where memory is zero.
    fn write_frame(&self, memory: &Memory, at: u64) -> Result<(), Failure> {
        memory.write(at + layout::FRAME_CALL, &self.id.to_le_bytes())?;
        memory.write(at + layout::FRAME_PORT, &self.port.to_le_bytes())?;
        memory.write(at + layout::FRAME_WIDTH, &self.width.to_le_bytes())?;
        memory.write_obj(at + layout::FRAME_ARGS, &self.args)?;
        memory.write(at + layout::FRAME_POKE, &self.store.0.to_le_bytes())?;
        memory.write(at + layout::FRAME_POKE + 8, &self.store.1.to_le_bytes())?;
        Ok(())
    }
}

/// What the guest found afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// RAX, RDX, RDI, RSI, R8 to R11, RBP, R12 to R15.
    pub registers: [u64; 13],
}

impl After {
    /// Status and value. Anything but a status of the registry is a failure of the host.
    ///
    /// # Errors
    ///
    /// [`Failure::Breach`].
    pub fn result(&self) -> Result<CallResult, Failure> {
        let [rax, rdx, ..] = self.registers;
        let status = rax.cast_signed();
        let result = Status::decode(status, rdx);
        check_eq!(
            (status, rdx),
            Status::encode(result),
            "RAX and RDX after a call"
        );
        Ok(result)
    }
}

/// How the guest makes its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
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
pub struct Guest {
    /// How it calls.
    pub mode: Mode,
    /// `--pv`.
    pub facilities: &'static str,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Whether it has a disk: eight sectors, each full of its own number.
    pub disk: bool,
    /// Memory contents before the first instruction.
    pub contents: Vec<(u64, Vec<u8>)>,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            mode: Mode::Cpl0,
            facilities: "",
            vcpus: 1,
            disk: false,
            contents: Vec::new(),
        }
    }
}

/// A guest that has run.
#[derive(Debug)]
pub struct Ran {
    /// One for each call; zeros for calls that were not reached.
    pub after: Vec<After>,
    /// The VMM's statistics.
    pub stats: Stats,
    /// What it printed.
    pub console: Vec<u8>,
    /// Its memory.
    pub memory: Memory,
    /// All its memory before the first instruction.
    pub before: Vec<u8>,
    /// Where its frames are.
    pub frames: Range<u64>,
}

impl Ran {
    /// The results, after the registers that must be as before have been looked at.
    ///
    /// # Errors
    ///
    /// [`Failure::Breach`].
    pub fn results(&self, calls: &[Call]) -> Result<Vec<CallResult>, Failure> {
        check_eq!(self.after.len(), calls.len(), "results");
        for (call, after) in calls.iter().zip(&self.after) {
            check_eq!(after.registers[2..8], call.args, "arguments of {call:?}");
            check_eq!(after.registers[8..], KEPT, "registers after {call:?}");
        }
        self.after.iter().map(After::result).collect()
    }

    /// Guest memory now.
    ///
    /// # Errors
    ///
    /// The range is not in it.
    pub fn bytes(&self, address: u64, length: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; length];
        self.memory.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// A `u32` of guest memory now.
    ///
    /// # Errors
    ///
    /// It is not in it.
    pub fn u32(&self, address: u64) -> Result<u32, Failure> {
        Ok(self.memory.read_obj(address)?)
    }
}

/// The facilities of a para guest with `facilities` (`--pv`) on this host.
///
/// # Errors
///
/// [`Failure::Machine`].
pub(super) fn offered(facilities: &str) -> Result<FacilitySet, Failure> {
    let set = FacilitySet::parse(facilities)?;
    Ok(delegable(&crate::kvm::open()?, set)?)
}

/// Makes `calls` in a para guest with everything and gives their results; the guest must then
/// switch itself off.
///
/// # Errors
///
/// [`Failure`], also where there is no KVM.
pub fn results(calls: &[Call]) -> Result<Vec<CallResult>, Failure> {
    let ran = Guest::default().run(calls)?;
    check_eq!(ran.stats.outcome, Outcome::PowerOff, "how the guest ended");
    ran.results(calls)
}

/// The result of one call.
///
/// # Errors
///
/// [`Failure`], also where there is no KVM.
pub fn result(id: u32, args: &[u64]) -> Result<CallResult, Failure> {
    Ok(results(&[Call::new(id, args)])?[0])
}

/// A machine with the guest `elf` loaded, its console, and the guest's file: a guest that dies is
/// explained with the symbols in it.
///
/// # Errors
///
/// [`Failure::Skipped`] where there is no KVM.
pub(super) fn boot(
    elf: &[u8],
    vcpus: u8,
    facilities: FacilitySet,
    disks: Vec<DiskSpec>,
) -> Result<(Vm, Console, TempFile), Failure> {
    if let Err(error) = crate::kvm::open() {
        return Err(Failure::Skipped(error.to_string()));
    }
    // Loaded from a file, as every kernel is.
    let file = TempFile::new()?;
    file.as_file().write_all(elf)?;
    let config = Config {
        memory_mib: MEMORY_MIB,
        vcpus,
        facilities,
        watchdog: Some(Duration::from_secs(60)),
        disks,
        ..Config::of(Profile::Para, file.as_path().to_owned())
    };
    let console = Console::memory()?;
    let mut vm = Vm::new(config, console.clone(), Instant::now())?;
    vm.boot()?;
    Ok((vm, console, file))
}

impl Guest {
    /// Boots it with these calls and runs it to its end.
    ///
    /// # Errors
    ///
    /// [`Failure::Skipped`] where there is no KVM.
    pub fn run(&self, calls: &[Call]) -> Result<Ran, Failure> {
        let facilities = FacilitySet::parse(self.facilities)?;
        let disk = TempFile::new()?;
        for sector in 0..8 {
            disk.as_file().write_all(&[sector; 512])?;
        }
        let disks = self
            .disk
            .then(|| DiskSpec::of(disk.as_path().to_owned(), false));
        let disks = disks.into_iter().collect();
        let (vm, console, _file) = boot(image::ELF, self.vcpus, facilities, disks)?;
        let memory = vm.memory().clone();
        let table = self.fill(&memory, calls)?;
        let mut before = vec![0; usize::try_from(MEMORY_END)?];
        memory.read(0, &mut before)?;
        let stats = vm.run(RunOptions::default())?;
        let mut after = Vec::new();
        let frames = table..table + layout::FRAME_BYTES * calls.len() as u64;
        for at in frames.clone().step_by(FRAME_STEP) {
            let registers = memory.read_obj(at + layout::FRAME_AFTER)?;
            after.push(After { registers });
        }
        Ok(Ran {
            after,
            stats,
            console: console.contents(),
            memory,
            before,
            frames,
        })
    }

    /// Writes parameters, tables and the check's contents. Returns where the frames are.
    fn fill(&self, memory: &Memory, calls: &[Call]) -> Result<u64, Failure> {
        let table = if calls.len() > SMALL_TABLE_FRAMES {
            LARGE_TABLE
        } else {
            SMALL_TABLE
        };
        for (at, call) in (table..).step_by(FRAME_STEP).zip(calls) {
            call.write_frame(memory, at)?;
        }
        let go_on = Image::load()?.symbol(match self.mode {
            Mode::Cpl0 => "calls_at_cpl0",
            Mode::Cpl3 => "calls_at_cpl3",
            Mode::Bits32 => "calls_in_32_bit",
            Mode::Cpuid => "leaves_at_cpl0",
            Mode::OtherAccesses => "other_accesses_at_cpl0",
        })?;
        let put = |at: u64, value: u64| memory.write_obj(at, &value);
        put(layout::PARAMETERS, table)?;
        put(layout::PARAMETERS + 8, calls.len() as u64)?;
        put(layout::PARAMETERS + 16, go_on)?;
        put(layout::PARAMETERS + 24, u64::from(DOORBELL_PORT))?;
        // The operand of LGDT: limit, base.
        put(layout::PARAMETERS + 32, GDT << 16 | 0x7f)?;
        put(layout::PARAMETERS + 40, GDT >> 48)?;
        write_segments(memory)?;
        if self.mode == Mode::Cpl3 {
            open_to_cpl3(memory)?;
        }
        for (address, bytes) in &self.contents {
            memory.write(*address, bytes)?;
        }
        Ok(table)
    }
}

/// Segments of CPL 0 and CPL 3, and a TSS whose bitmap opens all ports.
fn write_segments(memory: &Memory) -> Result<(), Failure> {
    let put = |at: u64, value: u64| memory.write_obj(at, &value);
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
        put(GDT + u64::from(selector & !7), descriptor)?;
    }
    put(TSS + 4, layout::KERNEL_STACK)?;
    memory.write(TSS + 102, &104u16.to_le_bytes())?;
    Ok(())
}

/// Sets the "user" bit on the way to the second 2 MiB.
fn open_to_cpl3(memory: &Memory) -> Result<(), Failure> {
    let tables = memory::PAGE_TABLES;
    for entry in [tables, tables + 0x1000, tables + 0x2000 + 8] {
        let value: u64 = memory.read_obj(entry)?;
        memory.write(entry, &(value | 4).to_le_bytes())?;
    }
    Ok(())
}
