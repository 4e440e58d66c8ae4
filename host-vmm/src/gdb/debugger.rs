//! What vCPUs and gdb's thread share: which breakpoints there are, who is stepped, and who has stopped why.
//!
//! A vCPU comes out of KVM with a debug exit. Either something of the debugger's has stopped it, then it is noted here and the whole
//! machine is to stand still; or the exception is the guest's own (Linux executes INT3 on purpose), and goes to the guest.
//!
//! Where KVM does not get to see INT3, a breakpoint is an OUT to the doorbell's port: a byte wide, so that it is no call, and
//! always an exit to the VMM. It has two bytes, and so hides the beginning of the next instruction where its own has but one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;

use gdbstub::target::ext::breakpoints::WatchKind;
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_debug_exit_arch,
    kvm_guest_debug, kvm_guest_debug_arch,
};
use vmm_sys_util::eventfd::EventFd;

use crate::config::Profile;
use crate::doctor::host::HostClass;
use crate::pause::{Holder, Pause};
use crate::pv::DOORBELL_PORT;
use crate::sync::lock;

/// INT3.
const INT3: &[u8] = &[0xcc];
/// OUT of AL to the doorbell's port, on which nobody in KVM listens.
const OUT: &[u8] = &[0xe6, DOORBELL];
/// The doorbell's port, which the instruction has a byte for.
const DOORBELL: u8 = DOORBELL_PORT.to_le_bytes()[0];
/// Debug registers that hold an address.
const SLOTS: usize = 4;
/// Exception #BP.
const VECTOR_BP: u32 = 3;
/// DR6: a step has been made.
const DR6_STEP: u64 = 1 << 14;
/// DR7: a bit that is always one.
const DR7_FIXED: u64 = 1 << 10;

/// What a debug register watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) address: u64,
    /// Bytes; 1, 2, 4 or 8, and `address` is a multiple of it.
    pub(super) length: u8,
    /// None: the execution of the instruction there.
    pub(super) kind: Option<WatchKind>,
}

impl Watched {
    /// Its bits of DR7 for debug register 0: length and kind.
    const fn control(self) -> u64 {
        let length = match self.length {
            2 => 0b01,
            4 => 0b11,
            8 => 0b10,
            _ => 0b00,
        };
        let kind = match self.kind {
            None => 0b00,
            Some(WatchKind::Write) => 0b01,
            // The processor does not watch for reads alone; gdb sees by the value what it was.
            Some(WatchKind::Read | WatchKind::ReadWrite) => 0b11,
        };
        length << 2 | kind
    }
}

/// Why a vCPU has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Software,
    Hardware,
    Watch {
        address: u64,
        kind: WatchKind,
    },
    Step,
    /// The guest cannot go on: a triple fault, or what KVM cannot emulate.
    Dying,
}

/// Which vCPU, and why.
pub(super) type Stop = (usize, Why);

/// The guest's bytes that a breakpoint has replaced, and where each is.
pub(super) type Replaced = Vec<(u64, u8)>;

#[derive(Debug, Default)]
struct State {
    attached: bool,
    /// Software breakpoints, by virtual address.
    software: BTreeMap<u64, Replaced>,
    hardware: [Option<Watched>; SLOTS],
    stepped: BTreeSet<usize>,
    stops: VecDeque<Stop>,
}

/// The debugger, as vCPUs know it.
#[derive(Debug)]
pub struct Debugger {
    state: Mutex<State>,
    stopped: EventFd,
    /// The instruction of a software breakpoint.
    code: &'static [u8],
    /// What the host can do: stop this guest at an instruction, have debug registers, leave interrupts out of a step.
    can_stop: bool,
    has_registers: bool,
    blocks_irq: bool,
}

impl Debugger {
    /// One that is not there yet, of a guest of this profile; `flags`: what `KVM_SET_GUEST_DEBUG` knows on this host.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn new(host: HostClass, profile: Profile, flags: u32) -> io::Result<Self> {
        let is_faithful = matches!(host, HostClass::Hardware | HostClass::Nested);
        Ok(Self {
            state: Mutex::default(),
            stopped: EventFd::new(libc::EFD_NONBLOCK)?,
            code: if is_faithful { INT3 } else { OUT },
            has_registers: is_faithful,
            can_stop: !(host == HostClass::Software && profile == Profile::Direct),
            blocks_irq: flags & KVM_GUESTDBG_BLOCKIRQ != 0,
        })
    }

    /// The instruction of a software breakpoint on this host.
    pub(super) fn code(&self) -> &'static [u8] {
        self.code
    }

    /// Whether debug registers work on this host.
    pub(super) fn has_registers(&self) -> bool {
        self.has_registers
    }

    /// Whether breakpoints and steps work on this host, for this guest.
    pub(super) fn can_stop(&self) -> bool {
        self.can_stop
    }

    /// A debug exit of vCPU `id`. Returns what the guest is to get where it is the guest's own, for
    /// [`Self::control`].
    #[must_use]
    pub fn has_stopped(&self, id: usize, exit: &kvm_debug_exit_arch, pause: &Pause) -> Option<u32> {
        let mut state = lock(&self.state);
        let hit = (0..SLOTS).find(|slot| exit.dr6 & 1 << slot != 0);
        let why = if exit.exception == VECTOR_BP {
            if !state.software.contains_key(&exit.pc) {
                return Some(KVM_GUESTDBG_INJECT_BP);
            }
            Why::Software
        } else if let Some(watched) = hit.and_then(|slot| state.hardware[slot]) {
            let address = watched.address;
            let watch = watched.kind.map(|kind| Why::Watch { address, kind });
            watch.unwrap_or(Why::Hardware)
        } else if state.stepped.contains(&id) && exit.dr6 & DR6_STEP != 0 {
            Why::Step
        } else {
            return Some(KVM_GUESTDBG_INJECT_DB);
        };
        state.stops.push_back((id, why));
        drop(state);
        self.stand(pause);
        None
    }

    /// vCPU `id` has executed OUT of a byte to the doorbell, and is at `pc` now. Where that was a breakpoint: its address, which the
    /// vCPU is to be set back to.
    #[must_use]
    pub fn has_stopped_behind(&self, id: usize, pc: u64, pause: &Pause) -> Option<u64> {
        let address = pc.wrapping_sub(OUT.len() as u64);
        let mut state = lock(&self.state);
        if self.code != OUT || !state.software.contains_key(&address) {
            return None;
        }
        state.stops.push_back((id, Why::Software));
        drop(state);
        self.stand(pause);
        Some(address)
    }

    /// vCPU `id` cannot go on. Whether somebody wants to look at it before the run ends.
    #[must_use]
    pub fn is_dying(&self, id: usize, pause: &Pause) -> bool {
        let mut state = lock(&self.state);
        if !state.attached {
            return false;
        }
        state.stops.push_back((id, Why::Dying));
        drop(state);
        self.stand(pause);
        true
    }

    fn stand(&self, pause: &Pause) {
        pause.want(Holder::Debugger);
        // A full event counter means that it has been signalled already.
        let _ = self.stopped.write(1);
    }

    /// What KVM is to do about vCPU `id`; `inject`: what [`Self::has_stopped`] has returned.
    #[must_use]
    pub fn control(&self, id: usize, inject: u32) -> kvm_guest_debug {
        let state = lock(&self.state);
        if !state.attached {
            return kvm_guest_debug::default();
        }
        let mut control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP | inject;
        let mut debugreg = [0; 8];
        for (slot, watched) in (0..).zip(&state.hardware) {
            let Some(watched) = watched else { continue };
            control |= KVM_GUESTDBG_USE_HW_BP;
            debugreg[slot] = watched.address;
            debugreg[7] |= DR7_FIXED | 0b11 << (2 * slot) | watched.control() << (16 + 4 * slot);
        }
        if state.stepped.contains(&id) {
            control |= KVM_GUESTDBG_SINGLESTEP;
            if self.blocks_irq {
                control |= KVM_GUESTDBG_BLOCKIRQ;
            }
        }
        kvm_guest_debug {
            control,
            pad: 0,
            arch: kvm_guest_debug_arch { debugreg },
        }
    }

    /// Becomes readable when a vCPU has stopped.
    pub(super) fn fd(&self) -> RawFd {
        self.stopped.as_raw_fd()
    }

    /// The next vCPU that has stopped.
    pub(super) fn next_stop(&self) -> Option<Stop> {
        let _ = self.stopped.read();
        lock(&self.state).stops.pop_front()
    }

    /// The debugger comes.
    pub(super) fn attach(&self) {
        lock(&self.state).attached = true;
    }

    /// The debugger goes; returns the breakpoints that it has left behind.
    pub(super) fn detach(&self) -> Vec<Replaced> {
        let state = std::mem::take(&mut *lock(&self.state));
        state.software.into_values().collect()
    }

    /// Who is stepped from here on. A vCPU that waits at a breakpoint will come to it again; what has passed a watchpoint
    /// will not, and is still to be told.
    pub(super) fn go_on(&self, stepped: BTreeSet<usize>) {
        let mut state = lock(&self.state);
        state.stepped = stepped;
        state
            .stops
            .retain(|(_, why)| matches!(why, Why::Watch { .. } | Why::Dying));
    }

    /// These have stopped, or rather have not gone on.
    pub(super) fn stop_again(&self, stops: impl IntoIterator<Item = Stop>) {
        lock(&self.state).stops.extend(stops);
    }

    /// Whether a stop is still to be told.
    pub(super) fn has_stops(&self) -> bool {
        !lock(&self.state).stops.is_empty()
    }

    /// Notes a software breakpoint. False: there is one.
    pub(super) fn add_software(&self, address: u64, replaced: Replaced) -> bool {
        let mut state = lock(&self.state);
        let is_new = !state.software.contains_key(&address);
        if is_new {
            state.software.insert(address, replaced);
        }
        is_new
    }

    pub(super) fn remove_software(&self, address: u64) -> Option<Replaced> {
        lock(&self.state).software.remove(&address)
    }

    /// Watches all of `wanted` or, where there are not enough debug registers, nothing; whether it does.
    pub(super) fn add_hardware(&self, wanted: &[Watched]) -> bool {
        let mut state = lock(&self.state);
        let free: Vec<usize> = (0..SLOTS)
            .filter(|slot| state.hardware[*slot].is_none())
            .collect();
        if wanted.is_empty() || free.len() < wanted.len() {
            return false;
        }
        for (slot, watched) in free.into_iter().zip(wanted) {
            state.hardware[slot] = Some(*watched);
        }
        true
    }

    /// Watches none of them any more; whether all were watched.
    pub(super) fn remove_hardware(&self, unwanted: &[Watched]) -> bool {
        let mut state = lock(&self.state);
        unwanted.iter().all(|watched| {
            let slot = state.hardware.iter_mut().find(|s| **s == Some(*watched));
            slot.is_some_and(|slot| slot.take().is_some())
        })
    }
}

/// What debug registers can watch: pieces of 8, 4, 2 or 1 bytes at multiples of their size.
pub(super) fn pieces(address: u64, length: u64, kind: WatchKind) -> Vec<Watched> {
    let mut found = Vec::new();
    let (mut at, mut left) = (address, length);
    while left > 0 && found.len() <= SLOTS {
        let fits = |size: &u8| at.is_multiple_of((*size).into()) && u64::from(*size) <= left;
        let size = [8, 4, 2].into_iter().find(fits).unwrap_or(1);
        found.push(Watched {
            address: at,
            length: size,
            kind: Some(kind),
        });
        at = at.wrapping_add(size.into());
        left -= u64::from(size);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(exception: u32, pc: u64, dr6: u64) -> kvm_debug_exit_arch {
        kvm_debug_exit_arch {
            exception,
            pc,
            dr6,
            ..Default::default()
        }
    }

    fn debugger(flags: u32) -> Debugger {
        Debugger::new(HostClass::Hardware, Profile::Para, flags).unwrap()
    }

    fn replaced() -> Replaced {
        vec![(0x1000, 0x90)]
    }

    #[test]
    fn the_guests_own_breakpoints_go_to_the_guest() {
        let (debugger, pause) = (debugger(0), Pause::new(1));
        debugger.attach();
        assert!(debugger.add_software(0x1000, replaced()));
        assert!(!debugger.add_software(0x1000, replaced()));
        let other = debugger.has_stopped(0, &exit(3, 0x2000, 0), &pause);
        assert_eq!(other, Some(KVM_GUESTDBG_INJECT_BP));
        let step = debugger.has_stopped(0, &exit(1, 0x2000, DR6_STEP), &pause);
        assert_eq!(step, Some(KVM_GUESTDBG_INJECT_DB));
        assert!(!pause.is_wanted());
        assert_eq!(debugger.has_stopped(0, &exit(3, 0x1000, 0), &pause), None);
        assert!(pause.is_wanted());
        assert_eq!(debugger.next_stop(), Some((0, Why::Software)));
        assert_eq!(debugger.detach().len(), 1);
        assert_eq!(debugger.control(0, 0).control, 0);
    }

    #[test]
    fn a_breakpoint_by_out_is_behind_its_address() {
        let debugger = Debugger::new(HostClass::Reference, Profile::Full, 0).unwrap();
        let pause = Pause::new(1);
        debugger.attach();
        debugger.add_software(0x1000, replaced());
        for pc in [0x1000, 0x1001, 1] {
            assert_eq!(debugger.has_stopped_behind(0, pc, &pause), None);
        }
        let back = debugger.has_stopped_behind(0, 0x1002, &pause);
        assert_eq!(back, Some(0x1000));
        assert_eq!(debugger.next_stop(), Some((0, Why::Software)));
    }

    #[test]
    fn a_watchpoint_that_has_been_passed_is_told_later() {
        let (debugger, pause) = (debugger(0), Pause::new(2));
        debugger.attach();
        let watched = pieces(0x1000, 4, WatchKind::Write);
        assert!(debugger.add_software(0x2000, replaced()) && debugger.add_hardware(&watched));
        assert_eq!(debugger.has_stopped(0, &exit(3, 0x2000, 0), &pause), None);
        assert_eq!(debugger.has_stopped(1, &exit(1, 0x3000, 1), &pause), None);
        debugger.go_on(BTreeSet::new());
        let (address, kind) = (0x1000, WatchKind::Write);
        assert_eq!(
            debugger.next_stop(),
            Some((1, Why::Watch { address, kind }))
        );
        assert!(!debugger.has_stops());
    }

    #[test]
    fn debug_registers_are_set_as_the_manual_says() {
        let debugger = debugger(KVM_GUESTDBG_BLOCKIRQ);
        debugger.attach();
        let code = Watched {
            address: 0x4000,
            length: 1,
            kind: None,
        };
        assert!(debugger.add_hardware(&[code]));
        assert!(debugger.add_hardware(&pieces(0x5000, 8, WatchKind::Write)));
        debugger.go_on(BTreeSet::from([1]));
        let (first, second) = (debugger.control(0, 0), debugger.control(1, 0));
        assert_eq!(first.arch.debugreg[..2], [0x4000, 0x5000]);
        assert_eq!(first.arch.debugreg[7], 0x400 | 0b1111 | 0b1001 << 20);
        assert_eq!(first.control & KVM_GUESTDBG_SINGLESTEP, 0);
        let step = KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ;
        assert_eq!(second.control & step, step);
        assert!(debugger.remove_hardware(&[code]) && !debugger.remove_hardware(&[code]));
    }

    #[test]
    fn odd_ranges_are_watched_in_pieces() {
        let sizes = |address, length| -> Vec<(u64, u8)> {
            let pieces = pieces(address, length, WatchKind::ReadWrite);
            pieces.iter().map(|p| (p.address, p.length)).collect()
        };
        assert_eq!(sizes(0x1001, 7), [(0x1001, 1), (0x1002, 2), (0x1004, 4)]);
        assert_eq!(sizes(0x1000, 16), [(0x1000, 8), (0x1008, 8)]);
        let debugger = debugger(0);
        assert!(!debugger.add_hardware(&pieces(0x1000, 4096, WatchKind::Write)));
        assert!(!debugger.add_hardware(&pieces(0x1000, 0, WatchKind::Write)));
    }
}
