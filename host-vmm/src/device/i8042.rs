//! The keyboard controller of a PC without keyboard and mouse.
//!
//! It answers what a kernel asks while it probes (self-test, command byte, port tests), so that the
//! probe ends as it does on hardware and not in timeouts; and it has the CPU's reset line.
//!
//! Source: the IBM PC/AT Technical Reference's list of controller commands.

/// Data port.
pub const DATA: u16 = 0x60;
/// Command and status port.
pub const COMMAND: u16 = 0x64;

const READ_COMMAND_BYTE: u8 = 0x20;
const WRITE_COMMAND_BYTE: u8 = 0x60;
const TEST_AUX: u8 = 0xa9;
const SELF_TEST: u8 = 0xaa;
const TEST_KEYBOARD: u8 = 0xab;
const AUX_LOOP: u8 = 0xd3;
const PULSE_RESET: u8 = 0xfe;
/// Status: the output buffer has a byte; the self-test has passed.
const OUTPUT_FULL: u8 = 0x01;
const SYSTEM: u8 = 0x04;
/// Status: the keyboard is not locked.
const UNLOCKED: u8 = 0x10;
const SELF_TEST_PASSED: u8 = 0x55;
const CLOCK_STUCK_LOW: u8 = 0x01;

/// The device.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct I8042 {
    command_byte: u8,
    output: Option<u8>,
    /// The command that waits for its data byte.
    pending: Option<u8>,
}

impl I8042 {
    /// A write. Returns whether it pulled the reset line.
    pub fn write(&mut self, port: u16, value: u8) -> bool {
        if port == COMMAND {
            self.pending = None;
            match value {
                READ_COMMAND_BYTE => self.output = Some(self.command_byte),
                WRITE_COMMAND_BYTE | AUX_LOOP => self.pending = Some(value),
                SELF_TEST => self.output = Some(SELF_TEST_PASSED),
                TEST_KEYBOARD => self.output = Some(0),
                TEST_AUX => self.output = Some(CLOCK_STUCK_LOW),
                PULSE_RESET => return true,
                _ => {}
            }
            return false;
        }
        match self.pending.take() {
            Some(WRITE_COMMAND_BYTE) => self.command_byte = value,
            // There is no second port: what comes back is not what was sent.
            Some(AUX_LOOP) => self.output = Some(!value),
            // A byte for a keyboard that is not there.
            _ => {}
        }
        false
    }

    /// A read.
    pub fn read(&mut self, port: u16) -> u8 {
        if port == COMMAND {
            SYSTEM
                | UNLOCKED
                | if self.output.is_some() {
                    OUTPUT_FULL
                } else {
                    0
                }
        } else {
            self.output.take().unwrap_or(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_answered_at_once() {
        let mut controller = I8042::default();
        assert_eq!(controller.read(COMMAND) & OUTPUT_FULL, 0);
        assert!(!controller.write(COMMAND, WRITE_COMMAND_BYTE));
        controller.write(DATA, 0x47);
        controller.write(COMMAND, READ_COMMAND_BYTE);
        assert_eq!(controller.read(COMMAND) & OUTPUT_FULL, OUTPUT_FULL);
        assert_eq!(controller.read(DATA), 0x47);
        assert_eq!(controller.read(COMMAND) & OUTPUT_FULL, 0);
        assert!(controller.write(COMMAND, PULSE_RESET));
    }
}
