//! A vCPU: its thread, and the run loop where every exit arrives.
//!
//! # The life of a call
//!
//! 1. the guest executes `out dx, eax` on the doorbell; KVM exits with `KVM_EXIT_IO`;
//! 2. [`Vcpu::io_out`] sees the port, and takes the registers out of the shared run page
//!    (`KVM_CAP_SYNC_REGS`: no ioctl);
//! 3. [`crate::pv::Paravirt::call_in_registers`] finds the facility, which checks the arguments and acts;
//! 4. status and value go back into RAX and RDX of the run page, marked dirty; KVM loads them on
//!    the next entry.

use std::sync::{Arc, MutexGuard};

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, kvm_debug_exit_arch, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs,
    kvm_vcpu_events,
};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};
use paravane_abi::call::CallId;

use crate::boot;
use crate::complete::Completer;
use crate::confine;
use crate::device::{PortAction, uart};
use crate::kvm::port_string;
use crate::pause::{Pause, Place};
use crate::pv::smp::Start;
use crate::pv::{DOORBELL_PORT, Reply, answer};
use crate::stats::{Exit, Outcome, VcpuCounts};
use crate::switcher;
use crate::sync::lock;
use crate::trail::Step;
use crate::vm::Machine;

const NOT_EMULATED: &str = "KVM cannot emulate an instruction of this guest (KVM_EXIT_INTERNAL_ERROR); \
    `paravane doctor` tells which profiles this KVM can run";

/// A vCPU's descriptor while its thread works. It is given back where the thread parks or rests.
type Held<'a> = MutexGuard<'a, VcpuFd>;

/// A vCPU that is about to run, or runs.
#[derive(Debug)]
pub struct Vcpu {
    id: usize,
    machine: Arc<Machine>,
    counts: Arc<VcpuCounts>,
}

/// What an exit asks for, once the borrow of the run page has ended.
enum Then {
    Resume,
    Call(CallId),
    Stop(Outcome, Option<String>),
    Ports(PortAction),
    /// Several bytes from a port, or to it.
    StringIn(u16),
    StringOut(u16),
    Debug(kvm_debug_exit_arch),
    /// A byte to the doorbell: nothing, or a breakpoint.
    DoorbellByte,
    /// KVM does not know the instruction.
    Complete,
    /// The vCPU's own registers belong into the message.
    Die(Outcome, String),
}

/// A processor's state after power-on.
#[derive(Debug)]
pub(crate) struct PowerOn {
    sregs: kvm_sregs,
    lapic: kvm_lapic_state,
    /// Of a direct guest: its switcher's processor.
    direct: Option<u8>,
}

impl PowerOn {
    pub(crate) fn of(fd: &VcpuFd, direct: Option<u8>) -> Result<Self, kvm_ioctls::Error> {
        Ok(Self {
            sregs: fd.get_sregs()?,
            lapic: fd.get_lapic()?,
            direct,
        })
    }

    /// Makes a processor ready for its first instruction. Spec: PV-SMP-2
    fn begin(&self, fd: &VcpuFd, start: Start) -> Result<(), kvm_ioctls::Error> {
        let mut sregs = self.sregs;
        let rflags = if let Some(vcpu) = self.direct {
            switcher::special(&mut sregs, vcpu, start.root);
            switcher::RFLAGS
        } else {
            boot::regs::started(&mut sregs, start.root);
            2
        };
        fd.set_sregs(&sregs)?;
        fd.set_lapic(&self.lapic)?;
        fd.set_vcpu_events(&kvm_vcpu_events::default())?;
        fd.set_regs(&kvm_regs {
            rip: start.rip,
            rsp: start.rsp,
            rdi: start.argument,
            rflags,
            ..kvm_regs::default()
        })?;
        fd.set_mp_state(kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        })
    }
}

/// The descriptor of vCPU `id`: only its own thread, and who has paused the machine, ask for it.
fn hold(machine: &Machine, id: usize) -> Held<'_> {
    lock(&machine.vcpus()[id])
}

impl Vcpu {
    /// Takes vCPU `id` of the machine, whose registers are set.
    #[must_use]
    pub fn new(id: usize, machine: Arc<Machine>, counts: Arc<VcpuCounts>) -> Self {
        if machine.pv().is_present() {
            hold(&machine, id).set_sync_valid_reg(SyncReg::Register);
        }
        Self {
            id,
            machine,
            counts,
        }
    }

    /// Waits, as a processor that is off, until the guest starts it. None: the run has ended.
    fn wait_for_start<'a>(&self, machine: &'a Machine, fd: Held<'a>) -> Option<Held<'a>> {
        let power_on = machine.power_on(self.id);
        let (Some(processors), Some(power_on)) = (machine.processors(), power_on) else {
            return Some(fd);
        };
        drop(fd);
        let pause = machine.pause();
        pause.rest(Pause::vcpu(self.id));
        let start = processors.wait(self.id)?;
        pause.begin(Pause::vcpu(self.id));
        let fd = hold(machine, self.id);
        if let Err(e) = power_on.begin(&fd, start) {
            let message = format!("KVM refused to start processor {}: {e}", self.id);
            machine.stop(Outcome::Error, Some(message));
            return None;
        }
        processors.has_begun(self.id);
        Some(fd)
    }

    /// Runs until the machine stops.
    pub fn run(self) {
        confine::thread(confine::Thread::Vcpu);
        let machine = Arc::clone(&self.machine);
        let place = Pause::vcpu(self.id);
        machine.pause().begin(place);
        self.run_to_the_end(&machine, place);
        machine.pause().rest(place);
    }

    fn run_to_the_end(&self, machine: &Machine, place: Place) {
        let pause = machine.pause();
        let mut fd = hold(machine, self.id);
        if !machine.processors().is_none_or(|all| all.runs(self.id)) {
            match self.wait_for_start(machine, fd) {
                Some(started) => fd = started,
                None => return,
            }
        }
        let mut completer = machine.config().complete.then(Completer::default);
        while !machine.is_stopping() {
            // Before it parks it goes into KVM and out again: the last exit is then complete, and the registers are
            // where whoever looks at them expects them.
            let parks = pause.holds(place);
            fd.set_kvm_immediate_exit(parks.into());
            let then = match fd.run() {
                Ok(exit) => Self::handle(exit, machine, &self.counts),
                // EINTR: somebody wants us to look at the stop flag. EAGAIN: KVM wants another go.
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                    self.counts.exit(Exit::Interrupted);
                    if parks {
                        drop(fd);
                        pause.checkpoint(place);
                        fd = hold(machine, self.id);
                        // Its watchdogs shall not count the pause. A guest without KVM's clock has no way to be told.
                        let _ = fd.kvmclock_ctrl();
                    }
                    Then::Resume
                }
                Err(e) => Then::Die(Outcome::Error, format!("KVM_RUN failed: {e}")),
            };
            match then {
                Then::Resume => {}
                Then::Call(id) => {
                    if !self.call(&mut fd, id) {
                        match self.wait_for_start(machine, fd) {
                            Some(started) => fd = started,
                            None => return,
                        }
                    }
                }
                Then::Stop(outcome, message) => machine.stop(outcome, message),
                Then::Ports(action) => Self::act(machine, action),
                Then::StringIn(port) => port_string::each(&mut fd, |data| {
                    machine.ports().read(port, data);
                }),
                Then::StringOut(port) => port_string::each(&mut fd, |data| {
                    Self::act(machine, machine.ports().write(port, data));
                }),
                Then::Debug(exit) => self.debug(&fd, &exit),
                Then::DoorbellByte => self.look_for_breakpoint(&mut fd),
                Then::Complete => {
                    let done = completer.as_mut().map(|it| it.complete(machine, &fd));
                    let message = match done {
                        Some(Ok(())) => continue,
                        Some(Err(error)) => error.to_string(),
                        None => NOT_EMULATED.to_owned(),
                    };
                    fd = self.die(machine, fd, Outcome::Error, &message);
                }
                Then::Die(outcome, message) => fd = self.die(machine, fd, outcome, &message),
            }
        }
    }

    /// A debug exit: the debugger's, which wants a pause then, or the guest's own.
    fn debug(&self, fd: &VcpuFd, exit: &kvm_debug_exit_arch) {
        let Some(debugger) = self.machine.debugger() else {
            return;
        };
        if let Some(inject) = debugger.has_stopped(self.id, exit, self.machine.pause())
            && let Err(e) = fd.set_guest_debug(&debugger.control(self.id, inject))
        {
            let message = format!("KVM refused to give the guest its own debug exception: {e}");
            self.machine.stop(Outcome::Error, Some(message));
        }
    }

    /// A byte has been put out to the doorbell. Where that was a breakpoint, the vCPU goes back to it, and a pause is wanted.
    fn look_for_breakpoint(&self, fd: &mut VcpuFd) {
        let Some(debugger) = self.machine.debugger() else {
            return;
        };
        // Completes the OUT, if KVM has not yet.
        fd.set_kvm_immediate_exit(1);
        let _ = fd.run();
        let Ok(mut registers) = fd.get_regs() else {
            return;
        };
        let pause = self.machine.pause();
        if let Some(address) = debugger.has_stopped_behind(self.id, registers.rip, pause) {
            registers.rip = address;
            if let Err(e) = fd.set_regs(&registers) {
                let message = format!("KVM refused to set a vCPU back to its breakpoint: {e}");
                self.machine.stop(Outcome::Error, Some(message));
            }
        }
    }

    /// The guest cannot go on: the run ends, once a debugger has had its look.
    fn die<'a>(
        &self,
        machine: &'a Machine,
        mut fd: Held<'a>,
        outcome: Outcome,
        message: &str,
    ) -> Held<'a> {
        let debugger = machine.debugger();
        if debugger.is_some_and(|debugger| debugger.is_dying(self.id, machine.pause())) {
            drop(fd);
            machine.pause().checkpoint(Pause::vcpu(self.id));
            fd = hold(machine, self.id);
        }
        machine.stop(outcome, Some(message.to_owned()));
        fd
    }

    fn handle(exit: VcpuExit<'_>, machine: &Machine, counts: &VcpuCounts) -> Then {
        match exit {
            VcpuExit::IoOut(port, data) => Self::io_out(port, data, machine, counts),
            VcpuExit::IoIn(port, data) => {
                let is_uart = (uart::FIRST..=uart::LAST).contains(&port);
                let reason = if is_uart { Exit::UartIn } else { Exit::IoIn };
                counts.exit_at(reason, Step::In(port));
                if data.len() > 1 {
                    return Then::StringIn(port);
                }
                machine.ports().read(port, data);
                Then::Resume
            }
            VcpuExit::MmioRead(address, data) => {
                counts.exit_at(Exit::Mmio, Step::Read(address));
                if !machine.virtio().read(address, data) {
                    data.fill(0xff);
                }
                Then::Resume
            }
            VcpuExit::MmioWrite(address, data) => {
                counts.exit_at(Exit::Mmio, Step::Write(address));
                machine.virtio().write(address, data);
                Then::Resume
            }
            VcpuExit::Shutdown => {
                counts.exit_at(Exit::Other, Step::Other);
                let message = "the guest's processor shut down (triple fault)".to_owned();
                Then::Die(Outcome::TripleFault, message)
            }
            VcpuExit::InternalError => {
                counts.exit_at(Exit::Other, Step::Other);
                Then::Complete
            }
            VcpuExit::Debug(exit) => {
                counts.exit_at(Exit::Other, Step::Other);
                Then::Debug(exit)
            }
            VcpuExit::FailEntry(reason, cpu) => {
                counts.exit_at(Exit::Other, Step::Other);
                Then::Die(
                    Outcome::Error,
                    format!(
                        "the processor refused to enter the guest (reason {reason:#x} on CPU {cpu})"
                    ),
                )
            }
            VcpuExit::SystemEvent(kind, _) => {
                counts.exit_at(Exit::Other, Step::Other);
                Then::Stop(
                    Outcome::Error,
                    Some(format!("KVM reports system event {kind}")),
                )
            }
            VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen => {
                counts.exit_at(Exit::Other, Step::Other);
                Then::Resume
            }
            other => {
                counts.exit_at(Exit::Other, Step::Other);
                let message = format!("an exit that this VMM does not serve: {other:?}");
                Then::Die(Outcome::Error, message)
            }
        }
    }

    fn io_out(port: u16, data: &[u8], machine: &Machine, counts: &VcpuCounts) -> Then {
        if port == DOORBELL_PORT
            && machine.pv().is_present()
            && let Ok(id) = data.try_into()
        {
            let id = CallId(u32::from_le_bytes(id));
            counts.exit_at(Exit::Hypercall, Step::Call(id));
            return Then::Call(id);
        }
        if port == DOORBELL_PORT && data.len() == 1 && machine.debugger().is_some() {
            counts.exit(Exit::IoOut);
            return Then::DoorbellByte;
        }
        let is_uart = (uart::FIRST..=uart::LAST).contains(&port);
        if data.len() > 1 {
            let reason = if is_uart { Exit::UartOut } else { Exit::IoOut };
            counts.exit_at(reason, Step::out(port, data));
            return Then::StringOut(port);
        }
        let action = machine.ports().write(port, data);
        let reason = match action {
            PortAction::Mark(_) => Exit::Mark,
            _ if is_uart => Exit::UartOut,
            _ => Exit::IoOut,
        };
        counts.exit_at(reason, Step::out(port, data));
        Then::Ports(action)
    }

    /// Does what a device has asked for.
    fn act(machine: &Machine, action: PortAction) {
        match action {
            PortAction::Done | PortAction::Unclaimed => {}
            PortAction::Reset => machine.stop(Outcome::Reboot, None),
            PortAction::Mark(code) => machine.mark(code),
        }
    }

    /// Steps 2 to 4 of a call's life. False: this processor is off now. Spec: PV-CALL-1 to PV-CALL-11
    fn call(&self, fd: &mut VcpuFd, id: CallId) -> bool {
        let regs = &mut fd.sync_regs_mut().regs;
        if regs.rax & u64::from(u32::MAX) != u64::from(id.0) {
            // The word comes from memory: a string instruction. One whose word is also in EAX
            // cannot be told from OUT. Spec: PV-CALL-7
            return true;
        }
        self.counts.call(id);
        // Whoever the guest lets to the port may call. Spec: PV-CALL-11
        match self.machine.pv().call_in_registers(id, regs) {
            Reply::Resume(_) => fd.set_sync_dirty_reg(SyncReg::Register),
            Reply::Stop(outcome) => self.machine.stop(outcome, None),
            Reply::SwitchOff => {
                let processors = self.machine.processors();
                match processors.map_or(Ok(()), |all| all.switch_off(self.id)) {
                    Ok(()) => return false,
                    Err(status) => {
                        answer(regs, Err(status));
                        fd.set_sync_dirty_reg(SyncReg::Register);
                    }
                }
            }
        }
        true
    }
}
