//! Interrupts for probes: from where one can come, and that it comes.
//!
//! The machine gets LAPICs and no IOAPIC, as a para guest's. The interrupt waits before the first
//! instruction, or the LAPIC's timer has been set to raise it, so nothing here depends on time.

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi,
    kvm_lapic_state, kvm_msi,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::machine::{MachineError, event_error, kvm_error};

/// The vector of every interrupt here.
pub const VECTOR: u8 = 0x50;

/// LAPIC registers: spurious-interrupt vector, timer's vector, initial and current count, divider.
const SPURIOUS: usize = 0xf0;
const TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

/// Where a probe's interrupt comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `KVM_SIGNAL_MSI`.
    Msi,
    /// An event bound to an interrupt: `KVM_IRQFD`.
    Irqfd,
    /// The LAPIC's timer.
    Timer,
}

/// Creates the LAPICs; before the vCPU.
pub(super) fn create_lapics(vm: &VmFd) -> Result<(), MachineError> {
    let cap = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    vm.enable_cap(&cap)
        .map_err(kvm_error("create a LAPIC without an IOAPIC"))
}

/// Raises the interrupt, or sets the timer; after the vCPU's registers. What it returns must live
/// as long as the machine.
pub(super) fn raise(
    vm: &VmFd,
    vcpu: &VcpuFd,
    source: Source,
) -> Result<Option<EventFd>, MachineError> {
    let mut lapic = vcpu.get_lapic().map_err(kvm_error("read the LAPIC"))?;
    // Switched on; the spurious vector is not used.
    set(&mut lapic, SPURIOUS, 0x1ff);
    if source == Source::Timer {
        // Once, after a millisecond; divided by one.
        set(&mut lapic, TIMER, u32::from(VECTOR));
        set(&mut lapic, DIVIDE, 0xb);
        set(&mut lapic, INITIAL_COUNT, 1_000_000);
        set(&mut lapic, CURRENT_COUNT, 1_000_000);
    }
    vcpu.set_lapic(&lapic).map_err(kvm_error("set the LAPIC"))?;
    // To APIC id 0, physical, fixed, edge.
    let (address_lo, data) = (0xfee0_0000, u32::from(VECTOR));
    match source {
        Source::Timer => Ok(None),
        Source::Msi => {
            let msi = kvm_msi {
                address_lo,
                data,
                ..Default::default()
            };
            vm.signal_msi(msi).map_err(kvm_error("raise an MSI"))?;
            Ok(None)
        }
        Source::Irqfd => {
            let msi = kvm_irq_routing_msi {
                address_lo,
                data,
                ..Default::default()
            };
            let route = kvm_irq_routing_entry {
                type_: KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
                ..Default::default()
            };
            let routing = KvmIrqRouting::from_entries(&[route]).expect("one entry is not too many");
            vm.set_gsi_routing(&routing)
                .map_err(kvm_error("route an interrupt"))?;
            let event = EventFd::new(EFD_NONBLOCK).map_err(event_error)?;
            vm.register_irqfd(&event, 0)
                .map_err(kvm_error("bind an event to an interrupt"))?;
            event.write(1).map_err(event_error)?;
            Ok(Some(event))
        }
    }
}

fn set(lapic: &mut kvm_lapic_state, register: usize, value: u32) {
    for (to, from) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
        *to = from.cast_signed();
    }
}
