//! The PCI bus of a legacy PC: a host bridge, configuration mechanism #1, and functions with I/O ports.
//!
//! The address register says which function and which of its 256 bytes of configuration; the data register is a window
//! on four of them. What a function decodes is in its configuration, so whoever owns the ports of a base address
//! register asks here whether a port is its own at the moment ([`Pci::claims`]).
//!
//! There is no firmware: base addresses and interrupt lines have the values that a BIOS would have left there. A guest
//! may move the former; the latter are told again by the MP table ([`crate::boot::mptable`]).
//!
//! Source: PCI Local Bus Specification 3.0, sections 3.2.2.3.2 and 6.

use std::sync::{Mutex, MutexGuard};

use crate::snapshot::{PartError, Saved, State, from_state, to_state};
use crate::sync::lock;

/// The address register, written and read as 32 bits.
pub const ADDRESS: u16 = 0xcf8;
/// The data register's first byte.
pub const DATA: u16 = 0xcfc;
/// The data register's last byte.
pub const DATA_LAST: u16 = 0xcff;

/// Address register: configuration space is reached through the data register.
const ENABLE: u32 = 1 << 31;
/// Bits of the address register that exist.
const ADDRESS_BITS: u32 = ENABLE | 0x00ff_fffc;

const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
const COMMAND: usize = 0x04;
const REVISION: usize = 0x08;
const HEADER_TYPE: usize = 0x0e;
const BARS: usize = 0x10;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
/// Command: I/O ports are decoded; the function may be a master.
const COMMAND_IO: u8 = 1;
const COMMAND_MASTER: u8 = 1 << 2;
/// Header type: the device has more functions than this one.
const MULTI_FUNCTION: u8 = 0x80;
/// Base address register: I/O space.
const BAR_IO: u32 = 1;

/// Where a function is on the bus: device and function number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u8);

impl Slot {
    /// The host bridge.
    pub const HOST_BRIDGE: Self = Self::new(0, 0);
    /// The bridge to the ISA bus, which an IDE controller is a function of.
    pub const ISA_BRIDGE: Self = Self::new(1, 0);
    /// The IDE controller.
    pub const IDE: Self = Self::new(1, 1);
    /// The network card.
    pub const NETWORK: Self = Self::new(2, 0);

    const fn new(device: u8, function: u8) -> Self {
        Self(device << 3 | function)
    }

    /// The number of the device.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }
}

/// A function's configuration: its bytes, and which bits of them a guest can change.
#[derive(Debug)]
pub struct Function {
    bytes: [u8; 256],
    writable: [u8; 256],
}

impl Function {
    /// A function that answers to nothing but its name. `class` is class, subclass and programming interface.
    #[must_use]
    pub fn new(vendor: u16, device: u16, class: u32) -> Self {
        let mut function = Self {
            bytes: [0; 256],
            writable: [0; 256],
        };
        function.put(VENDOR, &vendor.to_le_bytes());
        function.put(DEVICE, &device.to_le_bytes());
        function.put(REVISION, &(class << 8).to_le_bytes());
        function.writable[INTERRUPT_LINE] = 0xff;
        function
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// The device has other functions beside this one, its first.
    #[must_use]
    pub fn first_of_several(mut self) -> Self {
        self.bytes[HEADER_TYPE] = MULTI_FUNCTION;
        self
    }

    /// `length` I/O ports (a power of two, from 4 on) at base address register `bar`, placed at `base`.
    #[must_use]
    pub fn with_ports(mut self, bar: usize, base: u16, length: u16) -> Self {
        let at = BARS + 4 * bar;
        self.put(at, &(u32::from(base) | BAR_IO).to_le_bytes());
        // What cannot be changed is how a guest finds out the length.
        let mask = !(u32::from(length) - 1);
        self.writable[at..at + 4].copy_from_slice(&mask.to_le_bytes());
        self.writable[COMMAND] = COMMAND_IO | COMMAND_MASTER;
        self.bytes[COMMAND] = COMMAND_IO;
        self
    }

    /// Interrupt pin A, which leads to `line`.
    #[must_use]
    pub fn with_interrupt(mut self, line: u8) -> Self {
        self.bytes[INTERRUPT_LINE] = line;
        self.bytes[INTERRUPT_PIN] = 1;
        self
    }

    /// Registers of the function's own, which a guest may set as it likes and nothing follows from.
    #[must_use]
    pub fn with_registers(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.put(offset, bytes);
        self.writable[offset..offset + bytes.len()].fill(0xff);
        self
    }

    /// Bytes from `offset` on; what would lie behind the end of the space reads as all ones.
    fn read(&self, offset: usize, data: &mut [u8]) {
        for (byte, value) in data.iter_mut().zip(&self.bytes[offset..]) {
            *byte = *value;
        }
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        let old = self.bytes[offset..].iter_mut();
        for ((byte, mask), value) in old.zip(&self.writable[offset..]).zip(data) {
            *byte = *byte & !mask | value & mask;
        }
    }

    /// Where the ports of `bar` are, if they are decoded.
    fn base(&self, bar: usize) -> Option<u32> {
        let at = BARS + 4 * bar;
        let value: [u8; 4] = self.bytes[at..at + 4].try_into().ok()?;
        (self.bytes[COMMAND] & COMMAND_IO != 0).then(|| u32::from_le_bytes(value) & !3)
    }
}

/// The bus.
#[derive(Debug)]
pub struct Pci(Mutex<Bus>);

#[derive(Debug)]
struct Bus {
    address: u32,
    functions: Vec<(Slot, Function)>,
}

impl Bus {
    /// The addressed function, and the offset of its byte at `port`.
    fn target(&mut self, port: u16) -> Option<(&mut Function, usize)> {
        let [register, slot, bus, _] = self.address.to_le_bytes();
        if self.address & ENABLE == 0 || bus != 0 {
            return None;
        }
        let functions = &mut self.functions;
        let (_, function) = functions.iter_mut().find(|(at, _)| at.0 == slot)?;
        Some((function, usize::from(register) + usize::from(port - DATA)))
    }
}

impl Pci {
    /// A bus with a host bridge and `functions`.
    #[must_use]
    pub fn new(functions: Vec<(Slot, Function)>) -> Self {
        // Intel's 440FX, as a PC of the time has it.
        let bridge = (Slot::HOST_BRIDGE, Function::new(0x8086, 0x1237, 0x06_00_00));
        Self(Mutex::new(Bus {
            address: 0,
            functions: std::iter::once(bridge).chain(functions).collect(),
        }))
    }

    fn bus(&self) -> MutexGuard<'_, Bus> {
        lock(&self.0)
    }

    /// A write to the address or data register; whether `port` is one of them.
    pub fn write(&self, port: u16, data: &[u8]) -> bool {
        match (port, data) {
            (ADDRESS, [_, _, _, _]) => {
                let mut value = [0; 4];
                value.copy_from_slice(data);
                self.bus().address = u32::from_le_bytes(value) & ADDRESS_BITS;
            }
            (DATA..=DATA_LAST, _) if is_access(port, data.len()) => {
                if let Some((function, offset)) = self.bus().target(port) {
                    function.write(offset, data);
                }
            }
            _ => return false,
        }
        true
    }

    /// A read of the address or data register, which is all ones already where nothing answers; whether `port` is one of them.
    pub fn read(&self, port: u16, data: &mut [u8]) -> bool {
        match (port, data.len()) {
            (ADDRESS, 4) => data.copy_from_slice(&self.bus().address.to_le_bytes()),
            (DATA..=DATA_LAST, length) if is_access(port, length) => {
                if let Some((function, offset)) = self.bus().target(port) {
                    function.read(offset, data);
                }
            }
            _ => return false,
        }
        true
    }

    /// Which of the `length` ports at base address register `bar` of the function in `slot` this is, if it is one.
    #[must_use]
    pub fn claims(&self, slot: Slot, bar: usize, length: u16, port: u16) -> Option<u16> {
        let bus = self.bus();
        let (_, function) = bus.functions.iter().find(|(at, _)| *at == slot)?;
        let offset = u32::from(port).checked_sub(function.base(bar)?)?;
        u16::try_from(offset).ok().filter(|offset| *offset < length)
    }
}

impl Saved for Pci {
    fn save(&self) -> Result<State, PartError> {
        let bus = self.bus();
        let functions = bus.functions.iter();
        let functions: Vec<_> = functions.map(|(_, f)| f.bytes.to_vec()).collect();
        to_state(&(bus.address, functions))
    }

    fn restore(&self, state: State) -> Result<(), PartError> {
        let (address, functions): (u32, Vec<Vec<u8>>) = from_state(state)?;
        let mut bus = self.bus();
        if functions.len() != bus.functions.len() {
            return Err(PartError::because("its bus has other functions"));
        }
        bus.address = address & ADDRESS_BITS;
        // What a guest cannot change stays as it is.
        for ((_, function), bytes) in bus.functions.iter_mut().zip(functions) {
            function.write(0, &bytes);
        }
        Ok(())
    }
}

/// Whether the window can be accessed so: 1, 2 or 4 bytes that lie in it.
fn is_access(port: u16, length: usize) -> bool {
    matches!(length, 1 | 2 | 4) && usize::from(port - DATA) + length <= 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> Pci {
        let ide = Function::new(0x8086, 0x7010, 0x01_01_80)
            .with_ports(4, 0xc000, 16)
            .with_interrupt(11);
        Pci::new(vec![(Slot::IDE, ide)])
    }

    fn select(pci: &Pci, slot: Slot, register: u8) {
        let address = ENABLE | u32::from(slot.0) << 8 | u32::from(register);
        assert!(pci.write(ADDRESS, &address.to_le_bytes()));
    }

    fn read(pci: &Pci, slot: Slot, register: u8) -> u32 {
        select(pci, slot, register);
        let mut data = [0xff; 4];
        assert!(pci.read(DATA, &mut data));
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_kernel_finds_the_mechanism_and_the_functions() {
        let pci = bus();
        // Linux's pci_check_type1, and its scan of a bus.
        assert!(!pci.write(0xcfb, &[1]), "no data window there");
        assert!(pci.write(ADDRESS, &0x8000_0000_u32.to_le_bytes()));
        let mut address = [0xff; 4];
        assert!(pci.read(ADDRESS, &mut address));
        assert_eq!(u32::from_le_bytes(address), 0x8000_0000);
        assert_eq!(read(&pci, Slot::HOST_BRIDGE, 0), 0x1237_8086);
        assert_eq!(read(&pci, Slot::IDE, 0), 0x7010_8086);
        assert_eq!(read(&pci, Slot::IDE, 8) >> 8, 0x01_01_80);
        assert_eq!(read(&pci, Slot::NETWORK, 0), u32::MAX);
        // Another bus, and a closed window.
        assert!(pci.write(ADDRESS, &(ENABLE | 1 << 16).to_le_bytes()));
        let mut data = [0xff; 4];
        assert!(pci.read(DATA, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(pci.write(ADDRESS, &0_u32.to_le_bytes()));
        assert!(pci.read(DATA, &mut data));
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn ports_are_sized_moved_and_switched_off() {
        let pci = bus();
        assert_eq!(pci.claims(Slot::IDE, 4, 16, 0xc002), Some(2));
        assert_eq!(pci.claims(Slot::IDE, 4, 16, 0xc010), None);
        select(&pci, Slot::IDE, 0x20);
        assert!(pci.write(DATA, &[0xff; 4]));
        assert_eq!(read(&pci, Slot::IDE, 0x20), 0xffff_fff1);
        assert_eq!(pci.claims(Slot::IDE, 4, 16, 0xc002), None);
        assert!(pci.write(DATA, &0xd041_u32.to_le_bytes()));
        assert_eq!(pci.claims(Slot::IDE, 4, 16, 0xd04f), Some(15));
        select(&pci, Slot::IDE, 4);
        assert!(pci.write(DATA, &[0, 0]));
        assert_eq!(pci.claims(Slot::IDE, 4, 16, 0xd04f), None);
    }

    #[test]
    fn what_is_read_only_stays_and_no_access_leaves_the_space() {
        let pci = bus();
        for register in (0..=0xfc).step_by(4) {
            select(&pci, Slot::IDE, register);
            for (port, length) in [(DATA, 4), (DATA + 2, 2), (DATA + 3, 1)] {
                assert!(pci.write(port, &[0xff; 4][..length]));
                assert!(pci.read(port, &mut [0; 4][..length]));
            }
            assert!(!pci.write(DATA + 3, &[0xff; 2]));
            assert!(!pci.read(DATA + 1, &mut [0; 4]));
            assert!(!pci.read(DATA, &mut [0; 3]));
            assert!(!pci.read(DATA, &mut [0; 512]));
        }
        assert_eq!(read(&pci, Slot::IDE, 0), 0x7010_8086);
        assert_eq!(read(&pci, Slot::IDE, 8) >> 8, 0x01_01_80);
        // The pin is the card's, the line is the firmware's to write.
        assert_eq!(read(&pci, Slot::IDE, 0x3c), 0x1ff);
    }
}
