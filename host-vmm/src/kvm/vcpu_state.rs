//! A vCPU's state as KVM has it: taken out and put back, in the order that KVM wants.

use kvm_bindings::{
    KVM_MAX_MSR_ENTRIES, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::{KvmError, refused};

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// A vCPU's registers, and its local APIC's.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: kvm_xsave,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    /// Index and value.
    msrs: Vec<(u32, u64)>,
}

impl VcpuState {
    /// That of a vCPU that stands still; `msrs`: what this KVM may have.
    ///
    /// # Errors
    ///
    /// [`KvmError::Ioctl`].
    pub fn save(fd: &VcpuFd, msrs: &[u32]) -> Result<Self, KvmError> {
        let told = refused;
        Ok(Self {
            // First: KVM brings pending events into a state that can be saved (api.rst, 4.20).
            mp_state: fd.get_mp_state().map_err(told("tell a vCPU's state"))?,
            regs: fd.get_regs().map_err(told("tell a vCPU's registers"))?,
            sregs: fd
                .get_sregs()
                .map_err(told("tell a vCPU's special registers"))?,
            xcrs: fd.get_xcrs().map_err(told("tell a vCPU's XCR0"))?,
            xsave: fd
                .get_xsave()
                .map_err(told("tell a vCPU's extended state"))?,
            debug: fd
                .get_debug_regs()
                .map_err(told("tell a vCPU's debug registers"))?,
            lapic: fd.get_lapic().map_err(told("tell a vCPU's local APIC"))?,
            msrs: with_deadline(read_msrs(fd, msrs)?),
            events: fd
                .get_vcpu_events()
                .map_err(told("tell a vCPU's pending events"))?,
        })
    }

    /// The time-stamp counter when it was saved.
    #[must_use]
    pub fn tsc(&self) -> u64 {
        let tsc = self.msrs.iter().find(|(index, _)| *index == MSR_TSC);
        tsc.map_or(0, |(_, value)| *value)
    }

    /// Puts it into a vCPU that has not run, with the time-stamp counter at `tsc`: KVM takes counters for synchronised that are
    /// set to the same within a second.
    ///
    /// # Errors
    ///
    /// [`KvmError`]: KVM does not take it, or a register that it does not have.
    pub fn restore(&self, fd: &VcpuFd, msrs: &[u32], tsc: u64) -> Result<(), KvmError> {
        if let Some((index, _)) = self.msrs.iter().find(|(index, _)| !msrs.contains(index)) {
            return Err(KvmError::Msr { index: *index });
        }
        fd.set_sregs(&self.sregs)
            .map_err(refused("set a vCPU's special registers"))?;
        fd.set_xcrs(&self.xcrs)
            .map_err(refused("set a vCPU's XCR0"))?;
        // SAFETY: KVM reads the structure's 4096 bytes, and more only where the process has asked for permission to use
        // extended state that is larger (arch_prctl), which this one never does.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(refused("set a vCPU's extended state"))?;
        fd.set_debug_regs(&self.debug)
            .map_err(refused("set a vCPU's debug registers"))?;
        // The counter before what is compared with it, and the APIC's mode before its deadline.
        write_msrs(fd, &[(MSR_TSC, tsc)])?;
        fd.set_lapic(&self.lapic)
            .map_err(refused("set a vCPU's local APIC"))?;
        let is = |wanted| move |(index, _): &&(u32, u64)| *index == wanted;
        let (tsc, deadline) = (is(MSR_TSC), is(MSR_TSC_DEADLINE));
        let others = self.msrs.iter().filter(|msr| !tsc(msr) && !deadline(msr));
        write_msrs(fd, &others.copied().collect::<Vec<_>>())?;
        let deadline = self.msrs.iter().filter(deadline);
        write_msrs(fd, &deadline.copied().collect::<Vec<_>>())?;
        fd.set_regs(&self.regs)
            .map_err(refused("set a vCPU's registers"))?;
        fd.set_vcpu_events(&self.events)
            .map_err(refused("set a vCPU's pending events"))?;
        fd.set_mp_state(self.mp_state)
            .map_err(refused("set a vCPU's state"))?;
        // Its watchdogs shall not count the time in between. A guest without KVM's clock has no way to be told.
        let _ = fd.kvmclock_ctrl();
        Ok(())
    }
}

/// The same with a deadline. KVM has none any more where one has passed, and its interrupt, that has not been delivered yet, is in
/// no state that it tells: a timer that never comes hangs a guest, and one too many is nothing to it.
fn with_deadline(mut msrs: Vec<(u32, u64)>) -> Vec<(u32, u64)> {
    let tsc = msrs.iter().find(|(index, _)| *index == MSR_TSC);
    let now = tsc.map_or(0, |(_, tsc)| *tsc);
    let deadline = msrs.iter_mut().find(|msr| **msr == (MSR_TSC_DEADLINE, 0));
    if let Some((_, deadline)) = deadline {
        *deadline = now;
    }
    msrs
}

fn entries(msrs: &[(u32, u64)]) -> Result<Msrs, KvmError> {
    let entries = msrs.iter().map(|&(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let entries: Vec<_> = entries.take(KVM_MAX_MSR_ENTRIES).collect();
    Msrs::from_entries(&entries).map_err(|_| KvmError::Capability("MSR lists"))
}

/// Those that this vCPU has.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, KvmError> {
    let all: Vec<_> = indices.iter().map(|index| (*index, 0)).collect();
    let (mut read, mut left) = (Vec::new(), &all[..]);
    while !left.is_empty() {
        let mut msrs = entries(left)?;
        let count = fd
            .get_msrs(&mut msrs)
            .map_err(refused("tell a vCPU's MSRs"))?;
        let there = &msrs.as_slice()[..count];
        read.extend(there.iter().map(|msr| (msr.index, msr.data)));
        // The one behind them is not there.
        let missing = usize::from(count < msrs.as_slice().len());
        left = &left[count + missing..];
    }
    Ok(read)
}

/// Sets them. One that cannot be set must have its value already.
fn write_msrs(fd: &VcpuFd, mut left: &[(u32, u64)]) -> Result<(), KvmError> {
    while !left.is_empty() {
        let msrs = entries(left)?;
        let set = fd.set_msrs(&msrs);
        let count = set.map_err(refused("set a vCPU's MSRs"))?;
        let stopped = count < msrs.as_slice().len();
        left = &left[count..];
        if let Some((odd, rest)) = left.split_first().filter(|_| stopped) {
            if read_msrs(fd, &[odd.0])? != [*odd] {
                return Err(KvmError::Msr { index: odd.0 });
            }
            left = rest;
        }
    }
    Ok(())
}
