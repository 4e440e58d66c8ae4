//! Running one probe, and what came of it.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::SyncReg;
use kvm_ioctls::{Kvm, VcpuExit};
use paravane_abi::call::CallId;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::image::Image;
use super::image::layout::*;
use crate::kick::kick_held;
use crate::pv::Reply;

use super::machine::{Machine, MachineError, Setup, Sync};

/// How long building a machine may take on top of a probe's deadline.
const BUILDING: Duration = Duration::from_millis(500);

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Outcome {
    /// It ran to its end with this result.
    Result {
        /// EAX at the end.
        value: u32,
    },
    /// The CPU trapped, and the guest's handler was reached.
    Exception {
        /// The vector.
        vector: u8,
        /// Error code, for vectors that have one.
        error: Option<u64>,
    },
    /// KVM gave up.
    EmulationFailure {
        /// KVM's number.
        suberror: u32,
        /// The instruction's bytes, where KVM tells.
        bytes: String,
    },
    /// The CPU shut down: an exception could not be delivered.
    TripleFault,
    /// Another exit.
    Exit {
        /// Which.
        what: String,
    },
    /// It did not come back.
    Hang {
        /// Whether only killing the process ended it.
        killed: bool,
    },
    /// The machine could not be built, or the probe was not allowed to run.
    NotProbed {
        /// Why.
        why: String,
    },
}

impl Outcome {
    /// In a few words, for people.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Result { value: 0 } => "runs".to_owned(),
            Self::Result { value } => format!("runs, result {value:#x}"),
            Self::Exception { vector, error } => {
                let name = match vector {
                    0 => "#DE",
                    1 => "#DB",
                    3 => "#BP",
                    6 => "#UD",
                    8 => "#DF",
                    13 => "#GP",
                    14 => "#PF",
                    _ => "interrupt",
                };
                let number = if name == "interrupt" {
                    format!(" {vector:#x}")
                } else {
                    String::new()
                };
                let code = error
                    .map(|code| format!(", error code {code:#x}"))
                    .unwrap_or_default();
                format!("{name}{number}{code}")
            }
            Self::EmulationFailure { suberror: 1, .. } => "KVM cannot emulate it".to_owned(),
            Self::EmulationFailure { suberror, .. } => format!("KVM internal error {suberror}"),
            Self::TripleFault => "triple fault".to_owned(),
            Self::Exit { what } => format!("unexpected exit: {what}"),
            Self::Hang { killed: false } => "hangs (a signal ends it)".to_owned(),
            Self::Hang { killed: true } => {
                "hangs the host kernel (only killing ends it)".to_owned()
            }
            Self::NotProbed { why } => format!("not probed: {why}"),
        }
    }
}

/// A finished probe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
    /// Nanoseconds of each batch, for crossings.
    pub batches_ns: Vec<u32>,
    /// Exits to the VMM in each batch, without the one that ends it.
    pub batches_exits: Vec<u32>,
}

impl From<Outcome> for Finished {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            batches_ns: Vec::new(),
            batches_exits: Vec::new(),
        }
    }
}

/// Runs one probe in a machine of its own, and gives up after `deadline`.
///
/// # How it works
///
/// A thread runs the vCPU. After the deadline, signals make `KVM_RUN` return; a thread that does
/// not even react to these is left alone and reported. The process can still be killed then.
#[must_use]
pub fn run(setup: Setup, batches: u32, deadline: Duration) -> Finished {
    let (sender, receiver) = mpsc::channel();
    let vcpu_thread = thread::spawn(move || {
        let result = build(&setup, batches).map(|mut machine| {
            // Nobody listens any more if this comes too late; so for the other one below.
            let _ = sender.send(run_to_end(&mut machine, batches, Instant::now() + deadline));
            // The machine is dropped after the answer: KVM takes its time for that.
        });
        if let Err(error) = result {
            let why = error.to_string();
            let _ = sender.send(Outcome::NotProbed { why }.into());
        }
    });
    if let Ok(finished) = receiver.recv_timeout(deadline + BUILDING) {
        return finished;
    }
    // A signal may come just before KVM_RUN; hence several.
    for _ in 0..20 {
        kick_held(&vcpu_thread);
        if let Ok(finished) = receiver.recv_timeout(Duration::from_millis(10)) {
            return finished;
        }
    }
    Outcome::Hang { killed: true }.into()
}

fn build(setup: &Setup, batches: u32) -> Result<Machine, MachineError> {
    let kvm_error = |what| move |reason| MachineError::Kvm { what, reason };
    let kvm = Kvm::new().map_err(kvm_error("be opened"))?;
    Machine::new(&kvm, Image::load()?, setup, batches)
}

fn run_to_end(machine: &mut Machine, batches: u32, end: Instant) -> Finished {
    let capacity = usize::try_from(batches).unwrap_or(0);
    let mut stamps = Vec::with_capacity(capacity + 1);
    let mut exits = 0;
    let outcome = loop {
        if Instant::now() >= end {
            break Outcome::Hang { killed: false };
        }
        if let Some(outcome) = step(machine, &mut stamps, &mut exits) {
            break outcome;
        }
    };
    let batches_ns = stamps
        .windows(2)
        .map(|pair| u32::try_from((pair[1].at - pair[0].at).as_nanos()).unwrap_or(u32::MAX))
        .collect();
    let batches_exits = stamps.iter().skip(1).map(|stamp| stamp.exits).collect();
    Finished {
        outcome,
        batches_ns,
        batches_exits,
    }
}

/// The end of a batch.
struct Stamp {
    at: Instant,
    /// Exits since the one before.
    exits: u32,
}

/// Runs the vCPU to its next exit. `Some` ends the probe.
fn step(machine: &mut Machine, stamps: &mut Vec<Stamp>, exits: &mut u32) -> Option<Outcome> {
    let exit = match machine.vcpu.run() {
        Ok(exit) => exit,
        Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => return None,
        Err(error) => {
            return Some(Outcome::Exit {
                what: format!("KVM_RUN fails: {error}"),
            });
        }
    };
    *exits += 1;
    match exit {
        VcpuExit::MmioWrite(MARK, _) => {
            *exits -= 1;
            stamps.push(Stamp {
                at: Instant::now(),
                exits: std::mem::take(exits),
            });
            if machine.sync == Sync::InTurns {
                // The first batch is one of bare OUTs, then they take turns.
                if stamps.len() % 2 == 1 {
                    machine.vcpu.set_sync_valid_reg(SyncReg::Register);
                } else {
                    machine.vcpu.clear_sync_valid_reg(SyncReg::Register);
                }
            }
            while let Ok(Some(_)) = machine.vcpu.coalesced_mmio_read() {}
        }
        VcpuExit::MmioWrite(DONE, data) => {
            let value = <[u8; 4]>::try_from(data).map_or(u32::MAX, u32::from_le_bytes);
            return Some(Outcome::Result { value });
        }
        VcpuExit::IoOut(PORT_TRAP, _) => return Some(trap(machine)),
        VcpuExit::IoOut(PORT_DOORBELL, _) => answer_in_registers(machine),
        VcpuExit::IoOut(PORT_CALL, data) => {
            let id = <[u8; 4]>::try_from(data).map_or(0, u32::from_le_bytes);
            let regs = &mut machine.vcpu.sync_regs_mut().regs;
            let reply = machine.pv.call_in_registers(CallId(id), regs);
            machine.vcpu.set_sync_dirty_reg(SyncReg::Register);
            if !matches!(reply, Reply::Resume(_)) {
                let what = format!("{reply:?}");
                return Some(Outcome::Exit { what });
            }
        }
        VcpuExit::IoOut(PORT_FRAME, _) => answer_in_memory(machine),
        VcpuExit::IoOut(..) | VcpuExit::MmioWrite(MMIO_PLAIN.., _) | VcpuExit::Hlt => (),
        VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data) => data.fill(0xff),
        VcpuExit::X86Rdmsr(exit) => *exit.data = 0,
        VcpuExit::X86Wrmsr(exit) => *exit.error = 0,
        VcpuExit::Shutdown => return Some(Outcome::TripleFault),
        VcpuExit::InternalError => return Some(emulation_failure(machine)),
        other => {
            return Some(Outcome::Exit {
                what: format!("{other:?}"),
            });
        }
    }
    None
}

/// The doorbell as the ABI has it: six arguments in, status and value out, by the run page alone.
fn answer_in_registers(machine: &mut Machine) {
    let regs = &mut machine.vcpu.sync_regs_mut().regs;
    let sum = [regs.rdi, regs.rsi, regs.r8, regs.r9, regs.r10, regs.r11]
        .iter()
        .fold(0, |sum: u64, x| sum.wrapping_add(*x));
    (regs.rax, regs.rdx) = (0, sum);
    machine.vcpu.set_sync_dirty_reg(SyncReg::Register);
}

/// The same through a frame in guest memory.
fn answer_in_memory(machine: &Machine) {
    let frame: [u64; 7] = machine
        .memory
        .mmap()
        .read_obj(GuestAddress(FRAME))
        .unwrap_or_default();
    let sum = frame[1..]
        .iter()
        .fold(0, |sum: u64, x| sum.wrapping_add(*x));
    // The frame lies in memory; so this cannot fail.
    let _ = machine
        .memory
        .mmap()
        .write_obj([0, sum], GuestAddress(FRAME + 56));
}

/// A trap stub has spoken: vector, error code and frame are on the stack.
fn trap(machine: &Machine) -> Outcome {
    let stack: Option<[u64; 7]> = machine
        .vcpu
        .get_regs()
        .ok()
        .and_then(|regs| machine.memory.mmap().read_obj(GuestAddress(regs.rsp)).ok());
    let Some(stack) = stack else {
        return Outcome::Exit {
            what: "a trap with its stack out of memory".to_owned(),
        };
    };
    // The stub pushes its vector sign-extended.
    let vector = stack[0].to_le_bytes()[0];
    let error = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30).then_some(stack[1]);
    Outcome::Exception { vector, error }
}

/// KVM has given up; it tells where, if it can.
fn emulation_failure(machine: &mut Machine) -> Outcome {
    let run = machine.vcpu.get_kvm_run();
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member; it
    // consists of integers, for which every bit pattern is valid.
    let (suberror, failure) = unsafe {
        (
            run.__bindgen_anon_1.internal.suberror,
            run.__bindgen_anon_1.emulation_failure,
        )
    };
    let mut bytes = String::new();
    if suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION
        && failure.ndata >= 4
        && failure.flags & 1 != 0
    {
        // SAFETY: as above; the flag says that the instruction's bytes are there.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let length = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
        bytes = instruction.insn_bytes[..length]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
    }
    Outcome::EmulationFailure { suberror, bytes }
}
