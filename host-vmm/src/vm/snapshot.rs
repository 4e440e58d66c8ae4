//! Saving a machine that stands still, and going on from what was saved.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::time::Instant;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data,
    kvm_cpuid_entry2, kvm_irqchip,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::build::{counter, guest_tsc};
use super::{Machine, Vm, VmError, lock};
use crate::console::Console;
use crate::kvm::refused;
use crate::kvm::vcpu_state::VcpuState;
use crate::snapshot::{
    Chips, Content, PartError, Saved, SavedConfig, Snapshot, SnapshotError, file,
};

/// How CPUID is compared.
fn row(e: &kvm_cpuid_entry2) -> [u32; 7] {
    [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx]
}

impl Machine {
    /// What has a state of its own, beside memory and what is in KVM.
    pub(super) fn parts(&self) -> Vec<(String, &dyn Saved)> {
        let devices: [(String, &dyn Saved); 2] = [
            ("port devices".to_owned(), &self.ports),
            ("virtio-mmio devices".to_owned(), &self.virtio),
        ];
        let balloon = self.balloon.as_ref();
        let balloon =
            balloon.map(|balloon| -> (String, &dyn Saved) { ("balloon".to_owned(), balloon) });
        let devices = devices.into_iter().chain(balloon);
        devices.chain(self.pv.parts()).collect()
    }

    /// Writes memory and state into a file. The machine must stand still. Returns the file's length.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; what is in the file is then no snapshot.
    pub fn save(&self, file: &File) -> Result<u64, SnapshotError> {
        if self.debugger().is_some() {
            return Err(SnapshotError::Cannot {
                part: "memory".to_owned(),
                reason: PartError::because("may have a debugger's breakpoints (--gdb)"),
            });
        }
        let mut parts = BTreeMap::new();
        for (part, saved) in self.parts() {
            match saved.save() {
                Ok(state) => parts.insert(part, state),
                Err(reason) => return Err(SnapshotError::Cannot { part, reason }),
            };
        }
        let mut vcpus = Vec::new();
        for (id, fd) in self.vcpus.iter().enumerate() {
            let fd = fd.try_lock().map_err(|_| SnapshotError::Cannot {
                part: format!("vCPU {id}"),
                reason: PartError::because("does not stand still"),
            })?;
            vcpus.push(VcpuState::save(&fd, &self.msrs)?);
        }
        let clock = self.vm.get_clock().map_err(refused("tell its clock"))?;
        let has_chips = self.config.profile.has_legacy_devices();
        let content = Content {
            vmm: env!("CARGO_PKG_VERSION").to_owned(),
            config: SavedConfig::of(&self.config)?,
            cpuid: self.cpuid.iter().map(row).collect(),
            tsc_khz: self.tsc_khz()?,
            clock: clock.clock,
            chips: has_chips.then(|| save_chips(&self.vm)).transpose()?,
            vcpus,
            parts,
            memory: file::write_memory(&self.memory, file)?,
        };
        let state = serde_json::to_vec(&content).map_err(io::Error::from)?;
        Ok(file::finish(file, self.memory.bytes(), &state)?)
    }

    /// The frequency of the guest's time-stamp counter.
    fn tsc_khz(&self) -> Result<u32, SnapshotError> {
        let boot_cpu = self.vcpus.first().map(lock);
        let khz = boot_cpu.map_or(Ok(0), |fd| fd.get_tsc_khz());
        Ok(khz.map_err(refused("tell the TSC's frequency"))?)
    }

    /// Takes on the state of a snapshot, whose memory it has. Nothing of it has run.
    fn restore(&self, mut content: Content) -> Result<(), SnapshotError> {
        let here = self.cpuid.iter().map(row);
        if let Some((was, is)) = content
            .cpuid
            .iter()
            .zip(here)
            .find(|(was, is)| **was != *is)
        {
            return Err(SnapshotError::Differs {
                what: "processor or KVM",
                was: format!("one whose CPUID says {was:x?}"),
                is: format!("{is:x?}"),
                mend: "go on where it was taken",
            });
        }
        if content.cpuid.len() != self.cpuid.len() {
            return Err(SnapshotError::Differs {
                what: "number of CPUID leaves",
                was: content.cpuid.len().to_string(),
                is: self.cpuid.len().to_string(),
                mend: "go on where it was taken",
            });
        }
        let guards: Vec<_> = self.vcpus.iter().map(lock).collect();
        let tsc = content.vcpus.first().map_or(0, VcpuState::tsc);
        for (fd, state) in guards.iter().zip(&content.vcpus) {
            if fd.get_tsc_khz().ok() != Some(content.tsc_khz) {
                fd.set_tsc_khz(content.tsc_khz)
                    .map_err(refused("run the TSC as fast as in the snapshot"))?;
            }
            state.restore(fd, &self.msrs, tsc)?;
        }
        // A software KVM has no counter for its guests but the host's own, which goes on, and begins again with the host.
        let now = guards.first().map_or(tsc, |fd| guest_tsc(fd));
        if now < tsc {
            return Err(SnapshotError::Differs {
                what: "time-stamp counter",
                was: tsc.to_string(),
                is: format!("{now}, the host's own"),
                mend: "the host has started again since, and its KVM cannot set a guest's counter: take the snapshot again",
            });
        }
        if let Some(chips) = &content.chips {
            restore_chips(&self.vm, chips)?;
        }
        // It measures with KVM's clock, which is set afterwards.
        let counter = counter(&self.vm, guards.first().map(|fd| -> &VcpuFd { fd }), true)?;
        drop(guards);
        let clock = kvm_clock_data {
            clock: content.clock,
            ..Default::default()
        };
        self.vm
            .set_clock(&clock)
            .map_err(refused("set its clock"))?;
        for (part, saved) in self.parts() {
            let state = content.parts.remove(&part);
            let restored = match state {
                Some(state) => saved.restore(state),
                None => Err(PartError::because("it is missing")),
            };
            restored.map_err(|reason| SnapshotError::Part { part, reason })?;
        }
        if let Some(part) = content.parts.into_keys().next() {
            let reason = PartError::because("this VMM has no such part");
            return Err(SnapshotError::Part { part, reason });
        }
        if let Some(clock) = &self.clock {
            clock.set_counter(counter);
        }
        self.tell_balloon();
        let mut generation = [0; 8];
        getrandom::fill(&mut generation).map_err(io::Error::other)?;
        // Zero is the first run's. Spec: PV-STATE-2
        Ok(self.has_been_restored(u64::from_le_bytes(generation) | 1)?)
    }
}

impl Vm {
    /// Builds the machine of a snapshot, ready to go on. `setup_started`: when the process began.
    ///
    /// # Errors
    ///
    /// [`VmError`].
    pub fn restored(
        snapshot: Snapshot,
        config: crate::config::Config,
        console: Console,
        setup_started: Instant,
    ) -> Result<Self, VmError> {
        let memory = snapshot.memory()?;
        let vm = Self::with_memory(config, memory, console, setup_started)?;
        vm.machine.restore(snapshot.content)?;
        Ok(vm)
    }
}

fn save_chips(vm: &VmFd) -> Result<Chips, SnapshotError> {
    let mut irqchips = [
        KVM_IRQCHIP_PIC_MASTER,
        KVM_IRQCHIP_PIC_SLAVE,
        KVM_IRQCHIP_IOAPIC,
    ]
    .map(|chip_id| kvm_irqchip {
        chip_id,
        ..Default::default()
    });
    for chip in &mut irqchips {
        vm.get_irqchip(chip)
            .map_err(refused("tell an interrupt controller's state"))?;
    }
    let pit = vm
        .get_pit2()
        .map_err(refused("tell the timer chip's state"))?;
    Ok(Chips { irqchips, pit })
}

fn restore_chips(vm: &VmFd, chips: &Chips) -> Result<(), SnapshotError> {
    for chip in &chips.irqchips {
        vm.set_irqchip(chip)
            .map_err(refused("set an interrupt controller"))?;
    }
    vm.set_pit2(&chips.pit)
        .map_err(refused("set the timer chip"))?;
    Ok(())
}
