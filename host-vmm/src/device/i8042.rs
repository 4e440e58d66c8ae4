//! The keyboard controller, as far as a PC without a keyboard has one: the reset line.

/// Data port.
pub const DATA: u16 = 0x60;
/// Command and status port.
pub const COMMAND: u16 = 0x64;
/// Pulse output line 0, the CPU's reset.
const PULSE_RESET: u8 = 0xfe;

/// The controller has no state: buffers are always empty.
#[derive(Clone, Copy, Debug)]
pub struct I8042;

impl I8042 {
    /// Whether a write resets the machine.
    #[must_use]
    pub fn is_reset(port: u16, value: u8) -> bool {
        port == COMMAND && value == PULSE_RESET
    }

    /// Status: both buffers empty. Data: nothing.
    #[must_use]
    pub fn read(_port: u16) -> u8 {
        0
    }
}
