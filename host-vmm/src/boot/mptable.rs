//! The MP table of a legacy PC: processors, one ISA bus, one IOAPIC, the interrupt lines; and the PCI bus, where there is one.
//!
//! Source: Intel `MultiProcessor` Specification 1.4, chapter 4. A para guest has none: the
//! boot-info page says how many processors there are.

use zerocopy::{Immutable, IntoBytes};

use crate::memory::{self, Memory, MemoryError};

const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
const LAPIC_ADDRESS: u32 = 0xfee0_0000;
const APIC_VERSION: u8 = 0x14;
const ISA_INTERRUPTS: u8 = 16;

#[derive(IntoBytes, Immutable, Default)]
#[repr(C)]
struct FloatingPointer {
    signature: [u8; 4],
    table: u32,
    length: u8,
    revision: u8,
    checksum: u8,
    features: [u8; 5],
}

#[derive(IntoBytes, Immutable, Default)]
#[repr(C)]
struct Header {
    signature: [u8; 4],
    length: u16,
    revision: u8,
    checksum: u8,
    oem: [u8; 8],
    product: [u8; 12],
    oem_table: u32,
    oem_length: u16,
    entries: u16,
    lapic: u32,
    extended: u32,
}

#[derive(IntoBytes, Immutable, Default)]
#[repr(C)]
struct Processor {
    kind: u8,
    apic_id: u8,
    apic_version: u8,
    flags: u8,
    signature: u32,
    features: u32,
    reserved: [u32; 2],
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Bus {
    kind: u8,
    id: u8,
    name: [u8; 6],
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct IoApic {
    kind: u8,
    id: u8,
    version: u8,
    flags: u8,
    address: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Interrupt {
    kind: u8,
    interrupt: u8,
    flags: u16,
    bus: u8,
    bus_irq: u8,
    apic: u8,
    pin: u8,
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, b| sum.wrapping_add(*b))
        .wrapping_neg()
}

/// A PCI device's pin A.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pin {
    /// The number of the device.
    pub(super) device: u8,
    /// The line that it leads to, and no device of the ISA bus.
    pub(super) line: u8,
}

/// The table's bytes for `vcpus` processors; the IOAPIC's id follows the processors'. `pins`: of the PCI bus, if there
/// is one.
fn table(vcpus: u8, pins: Option<&[Pin]>) -> Vec<u8> {
    let ioapic_id = vcpus;
    // The number of the PCI bus is the one that its devices have it from.
    let isa = u8::from(pins.is_some());
    let mut body = Vec::new();
    let mut entries = 0_u16;
    let mut push = |entry: &[u8]| {
        body.extend_from_slice(entry);
        entries += 1;
    };
    for apic_id in 0..vcpus {
        let boot = if apic_id == 0 { 2 } else { 0 };
        let entry = Processor {
            apic_id,
            apic_version: APIC_VERSION,
            flags: 1 | boot,
            // Family 6, with FPU and APIC: what Linux prints, not what it uses.
            signature: 0x600,
            features: 0x201,
            ..Processor::default()
        };
        push(entry.as_bytes());
    }
    let names = [*b"PCI   ", *b"ISA   "];
    for (id, name) in (0..).zip(&names[usize::from(1 - isa)..]) {
        let name = *name;
        push(Bus { kind: 1, id, name }.as_bytes());
    }
    push(
        IoApic {
            kind: 2,
            id: ioapic_id,
            version: APIC_VERSION,
            flags: 1,
            address: IOAPIC_ADDRESS,
        }
        .as_bytes(),
    );
    let pins = pins.unwrap_or_default();
    for pin in pins {
        let entry = Interrupt {
            kind: 3,
            interrupt: 0,
            // As the bus has it: a level, active low.
            flags: 0,
            bus: 0,
            bus_irq: pin.device << 2,
            apic: ioapic_id,
            pin: pin.line,
        };
        push(entry.as_bytes());
    }
    for irq in 0..ISA_INTERRUPTS {
        if pins.iter().any(|pin| pin.line == irq) {
            continue;
        }
        let entry = Interrupt {
            kind: 3,
            interrupt: 0,
            flags: 0,
            bus: isa,
            bus_irq: irq,
            apic: ioapic_id,
            pin: irq,
        };
        push(entry.as_bytes());
    }
    // Local interrupts: ExtINT (the PIC) on LINT0, NMI on LINT1 of every processor.
    push(
        Interrupt {
            kind: 4,
            interrupt: 3,
            flags: 0,
            bus: isa,
            bus_irq: 0,
            apic: 0,
            pin: 0,
        }
        .as_bytes(),
    );
    push(
        Interrupt {
            kind: 4,
            interrupt: 1,
            flags: 0,
            bus: isa,
            bus_irq: 0,
            apic: 0xff,
            pin: 1,
        }
        .as_bytes(),
    );

    let mut header = Header {
        signature: *b"PCMP",
        length: u16::try_from(size_of::<Header>() + body.len()).unwrap_or(u16::MAX),
        revision: 4,
        oem: *b"PARAVANE",
        product: *b"LEGACYPC    ",
        entries,
        lapic: LAPIC_ADDRESS,
        ..Header::default()
    };
    header.checksum = checksum(&[header.as_bytes(), &body].concat());
    [header.as_bytes(), &body].concat()
}

pub(super) fn write(memory: &Memory, vcpus: u8, pins: Option<&[Pin]>) -> Result<(), MemoryError> {
    let at = memory::EBDA + size_of::<FloatingPointer>() as u64;
    let mut pointer = FloatingPointer {
        signature: *b"_MP_",
        table: u32::try_from(at).unwrap_or(u32::MAX),
        length: 1,
        revision: 4,
        ..FloatingPointer::default()
    };
    pointer.checksum = checksum(pointer.as_bytes());
    memory.write_obj(memory::EBDA, &pointer)?;
    memory.write(at, &table(vcpus, pins))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_zero_and_64_processors_fit() {
        let pin = Pin {
            device: 2,
            line: 11,
        };
        for (vcpus, pins) in [(1, None), (2, Some(&[][..])), (64, Some(&[pin][..]))] {
            let bytes = table(vcpus, pins);
            assert_eq!(bytes.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0);
            assert!(memory::EBDA + 16 + bytes.len() as u64 <= 0xa_0000 + 0x1000);
        }
    }
}
