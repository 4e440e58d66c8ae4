//! The machine, as `gdbstub` asks for it. All of this runs while the machine stands still.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use kvm_ioctls::VcpuFd;

use super::debugger::{Debugger, Replaced, Stop, Watched, Why, pieces};
use super::registers::{Amd64, VcpuRegisters};
use crate::pause::{Holder, Pause};
use crate::sync::lock;
use crate::vm::Machine;

/// How long vCPUs get to stand still.
const STAND_LIMIT: Duration = Duration::from_secs(5);

const CANNOT_STEP: &str = "this host's KVM cannot step a direct guest, which stays where it is";

/// Why the machine cannot be debugged any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum TargetFailure {
    /// vCPUs that do not come out of KVM.
    #[error("{0} thread(s) of the machine did not stand still")]
    Moves(usize),
    /// KVM.
    #[error("KVM refused to set breakpoints: {0}")]
    Kvm(#[from] kvm_ioctls::Error),
}

/// What gdb wants of the next run.
#[derive(Debug, Default)]
struct Wanted {
    stepped: BTreeSet<usize>,
    continued: BTreeSet<usize>,
    /// Nobody else runs.
    locked: bool,
}

/// The machine and its debugger.
#[derive(Debug)]
pub(super) struct Debugged<'a> {
    machine: &'a Machine,
    debugger: &'a Debugger,
    wanted: Wanted,
}

/// The thread that gdb knows a vCPU by: zero means any of them there.
fn tid(vcpu: usize) -> Tid {
    Tid::MIN.saturating_add(vcpu)
}

fn vcpu(tid: Tid) -> usize {
    tid.get() - 1
}

impl<'a> Debugged<'a> {
    pub(super) fn new(machine: &'a Machine, debugger: &'a Debugger) -> Self {
        Self {
            machine,
            debugger,
            wanted: Wanted::default(),
        }
    }

    /// Brings the machine to a stand.
    pub(super) fn stand_still(&self) -> Result<(), TargetFailure> {
        let pause = self.machine.pause();
        pause
            .pause(Holder::Debugger, STAND_LIMIT)
            .map_err(TargetFailure::Moves)
    }

    /// Why gdb gets its prompt where it has asked for it.
    pub(super) fn interrupted() -> MultiThreadStopReason<u64> {
        MultiThreadStopReason::SignalWithThread {
            tid: tid(0),
            signal: Signal::SIGINT,
        }
    }

    /// Why a vCPU has stopped, in gdb's words.
    pub(super) fn reason((id, why): Stop) -> MultiThreadStopReason<u64> {
        let tid = tid(id);
        match why {
            Why::Software => MultiThreadStopReason::SwBreak(tid),
            Why::Hardware => MultiThreadStopReason::HwBreak(tid),
            Why::Watch { address, kind } => MultiThreadStopReason::Watch {
                tid,
                kind,
                addr: address,
            },
            Why::Step => MultiThreadStopReason::SignalWithThread {
                tid,
                signal: Signal::SIGTRAP,
            },
            Why::Dying => MultiThreadStopReason::SignalWithThread {
                tid,
                signal: Signal::SIGSEGV,
            },
        }
    }

    /// Takes all that the debugger has put into the guest out of it, and lets it run.
    pub(super) fn leave(&self) -> Result<(), TargetFailure> {
        self.stand_still()?;
        for replaced in self.debugger.detach() {
            self.restore(&replaced);
        }
        self.tell_kvm()?;
        self.machine.pause().resume(Holder::Debugger);
        Ok(())
    }

    fn tell_kvm(&self) -> Result<(), kvm_ioctls::Error> {
        (0..self.machine.vcpus().len()).try_for_each(|id| {
            let control = self.debugger.control(id, 0);
            self.with(id, |fd| fd.set_guest_debug(&control))
        })
    }

    /// Does something with a vCPU.
    fn with<T>(&self, id: usize, what: impl FnOnce(&VcpuFd) -> T) -> T {
        what(&lock(&self.machine.vcpus()[id]))
    }

    fn checked(&self, tid: Tid) -> TargetResult<usize, Self> {
        let id = vcpu(tid);
        let there = id < self.machine.vcpus().len();
        there.then_some(id).ok_or(TargetError::NonFatal)
    }

    /// Puts the guest's bytes back, unless the guest has put others there itself (Linux patches its code).
    fn restore(&self, replaced: &Replaced) {
        let code = self.debugger.code();
        let is_ours = replaced.iter().zip(code).all(|((physical, _), byte)| {
            let mut now = [0];
            self.machine.read_memory(*physical, &mut now).is_ok() && now == [*byte]
        });
        if is_ours {
            for (physical, byte) in replaced {
                // It has just been read there.
                let _ = self.machine.write_memory(*physical, &[*byte]);
            }
        }
    }

    /// Puts a software breakpoint into memory; whether it could, and there was none.
    fn insert(&self, address: u64) -> bool {
        let code = self.debugger.code();
        let bytes = (0..code.len() as u64).map(|offset| {
            let at = address.wrapping_add(offset);
            let physical = self.with(0, |fd| self.machine.translate(fd, at))?;
            let mut byte = [0];
            self.machine.read_memory(physical, &mut byte).ok()?;
            Some((physical, byte[0]))
        });
        let Some(replaced) = bytes.collect::<Option<Replaced>>() else {
            return false;
        };
        if !self.debugger.can_stop() {
            return false;
        }
        if !self.debugger.add_software(address, replaced.clone()) {
            return false;
        }
        replaced
            .iter()
            .zip(code)
            .all(|((physical, _), byte)| self.machine.write_memory(*physical, &[*byte]).is_ok())
    }

    /// Takes a software breakpoint out of memory; whether there was one.
    fn remove(&self, address: u64) -> bool {
        let removed = self.debugger.remove_software(address);
        removed.is_some_and(|replaced| {
            self.restore(&replaced);
            true
        })
    }
}

impl Target for Debugged<'_> {
    type Arch = Amd64;
    type Error = TargetFailure;

    fn base_ops(&mut self) -> BaseOps<'_, Amd64, TargetFailure> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debugged<'_> {
    fn read_registers(&mut self, regs: &mut VcpuRegisters, tid: Tid) -> TargetResult<(), Self> {
        let id = self.checked(tid)?;
        *regs = self
            .with(id, VcpuRegisters::read)
            .map_err(|_| TargetError::NonFatal)?;
        Ok(())
    }

    fn write_registers(&mut self, regs: &VcpuRegisters, tid: Tid) -> TargetResult<(), Self> {
        let id = self.checked(tid)?;
        self.with(id, |fd| regs.write(fd))
            .map_err(|_| TargetError::NonFatal)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let id = self.checked(tid)?;
        match self.with(id, |fd| self.machine.read_virtual(fd, start, data)) {
            0 => Err(TargetError::NonFatal),
            count => Ok(count),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let id = self.checked(tid)?;
        let count = self.with(id, |fd| self.machine.write_virtual(fd, start, data));
        (count == data.len())
            .then_some(())
            .ok_or(TargetError::NonFatal)
    }

    fn list_active_threads(
        &mut self,
        thread_is_active: &mut dyn FnMut(Tid),
    ) -> Result<(), TargetFailure> {
        (0..self.machine.vcpus().len()).for_each(|id| thread_is_active(tid(id)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Debugged<'_> {
    fn thread_extra_info(&self, tid: Tid, mut buf: &mut [u8]) -> Result<usize, TargetFailure> {
        let (id, room) = (vcpu(tid), buf.len());
        let all = self.machine.processors();
        let is_on = all.is_none_or(|all| all.on().contains(&id));
        // What does not fit is cut.
        let _ = write!(buf, "vCPU {id}{}", if is_on { "" } else { ", off" });
        Ok(room - buf.len())
    }
}

impl MultiThreadResume for Debugged<'_> {
    fn resume(&mut self) -> Result<(), TargetFailure> {
        let wanted = std::mem::take(&mut self.wanted);
        if !wanted.stepped.is_empty() && !self.debugger.can_stop() {
            eprintln!("paravane: {CANNOT_STEP}");
            let stopped = wanted.stepped.into_iter().map(|id| (id, Why::Step));
            self.debugger.stop_again(stopped);
            return Ok(());
        }
        let only = wanted.stepped.union(&wanted.continued).next().copied();
        self.debugger.go_on(wanted.stepped);
        if self.debugger.has_stops() {
            // The next one is told at once.
            return Ok(());
        }
        self.tell_kvm()?;
        let pause = self.machine.pause();
        match only.filter(|_| wanted.locked) {
            Some(id) => pause.resume_only(Pause::vcpu(id)),
            None => pause.resume(Holder::Debugger),
        }
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), TargetFailure> {
        self.wanted = Wanted::default();
        Ok(())
    }

    fn set_resume_action_continue(
        &mut self,
        tid: Tid,
        _signal: Option<Signal>,
    ) -> Result<(), TargetFailure> {
        self.wanted.continued.insert(vcpu(tid));
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Debugged<'_> {
    fn set_resume_action_step(
        &mut self,
        tid: Tid,
        _signal: Option<Signal>,
    ) -> Result<(), TargetFailure> {
        self.wanted.stepped.insert(vcpu(tid));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Debugged<'_> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), TargetFailure> {
        self.wanted.locked = true;
        Ok(())
    }
}

impl Breakpoints for Debugged<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debugged<'_> {
    fn add_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.insert(address))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(address))
    }
}

/// A breakpoint in a debug register.
fn execution(address: u64) -> [Watched; 1] {
    [Watched {
        address,
        length: 1,
        kind: None,
    }]
}

impl HwBreakpoint for Debugged<'_> {
    fn add_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        // Where there are none, one in memory does.
        if !self.debugger.has_registers() {
            return Ok(self.insert(address));
        }
        Ok(self.debugger.add_hardware(&execution(address)))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        if !self.debugger.has_registers() {
            return Ok(self.remove(address));
        }
        Ok(self.debugger.remove_hardware(&execution(address)))
    }
}

impl HwWatchpoint for Debugged<'_> {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let pieces = pieces(address, length, kind);
        Ok(self.debugger.has_registers() && self.debugger.add_hardware(&pieces))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self
            .debugger
            .remove_hardware(&pieces(address, length, kind)))
    }
}
