//! The 16550 UART of a legacy PC, COM1: every character is at least one exit.
//!
//! The registers are vm-superio's; here is what ties them to this VMM: the interrupt line (an
//! irqfd) and the console.

use std::io;

use vm_superio::serial::SerialState;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::console::Console;
use crate::snapshot::{PartError, State, from_state, to_state};

/// First port of COM1.
pub const FIRST: u16 = 0x3f8;
/// Last port of COM1.
pub const LAST: u16 = 0x3ff;
/// COM1's interrupt line.
pub const IRQ: u32 = 4;

/// An interrupt line that KVM listens to.
#[derive(Debug)]
pub struct IrqLine(EventFd);

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The device.
pub struct Uart {
    serial: Serial<IrqLine, vm_superio::serial::NoEvents, Console>,
}

impl std::fmt::Debug for Uart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uart").finish_non_exhaustive()
    }
}

impl Uart {
    /// A UART that raises `irq` and prints on `console`.
    #[must_use]
    pub fn new(irq: EventFd, console: Console) -> Self {
        Self {
            serial: Serial::new(IrqLine(irq), console),
        }
    }

    /// A register write. An interrupt that cannot be raised is one the guest does not get.
    pub fn write(&mut self, port: u16, value: u8) {
        let offset = u8::try_from(port - FIRST).unwrap_or(0);
        let _ = self.serial.write(offset, value);
    }

    /// A register read.
    pub fn read(&mut self, port: u16) -> u8 {
        self.serial.read(u8::try_from(port - FIRST).unwrap_or(0))
    }

    /// What a snapshot has of it.
    ///
    /// # Errors
    ///
    /// Never.
    pub fn save(&self) -> Result<State, PartError> {
        let s = self.serial.state();
        let registers = [
            s.baud_divisor_low,
            s.baud_divisor_high,
            s.interrupt_enable,
            s.interrupt_identification,
            s.line_control,
            s.line_status,
            s.modem_control,
            s.modem_status,
            s.scratch,
        ];
        to_state(&(registers, s.in_buffer))
    }

    /// Takes on a snapshot's state.
    ///
    /// # Errors
    ///
    /// It has more input than there is room for.
    pub fn restore(&mut self, state: State) -> Result<(), PartError> {
        let (registers, in_buffer): ([u8; 9], Vec<u8>) = from_state(state)?;
        let [low, high, enable, identification, line, line_status, ..] = registers;
        let [.., modem_control, modem_status, scratch] = registers;
        let state = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control: line,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        };
        let cannot = |e: &dyn std::fmt::Display| PartError(e.to_string());
        let irq = self.serial.interrupt_evt().0.try_clone();
        let irq = IrqLine(irq.map_err(|e| cannot(&e))?);
        let console = self.serial.writer().clone();
        self.serial = Serial::from_state(&state, irq, vm_superio::serial::NoEvents, console)
            .map_err(|e| PartError(format!("{e:?}")))?;
        Ok(())
    }

    /// Puts terminal input into the receive FIFO; returns how many bytes fitted.
    pub fn input(&mut self, bytes: &[u8]) -> usize {
        let room = self.serial.fifo_capacity().min(bytes.len());
        self.serial.enqueue_raw_bytes(&bytes[..room]).unwrap_or(0)
    }
}
