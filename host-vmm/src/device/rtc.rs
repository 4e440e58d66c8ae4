//! The CMOS clock (MC146818) of a legacy PC: time of day, and 114 bytes of RAM.
//!
//! No interrupts and no alarm: Linux reads the time at boot and sets it at shutdown.

use crate::snapshot::{PartError, State, from_state, to_state};

/// Index port; bit 7 is the NMI mask and is ignored.
pub const INDEX: u16 = 0x70;
/// Data port.
pub const DATA: u16 = 0x71;

const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// Register A: 32768 Hz time base; no update in progress, ever.
const A_TIME_BASE: u8 = 0x26;
/// Register B: 24-hour mode, BCD.
const B_24_HOURS: u8 = 0x02;
/// Register D: the battery is good.
const D_VALID: u8 = 0x80;

/// The device.
#[derive(Debug)]
pub struct Rtc {
    index: u8,
    ram: [u8; 128],
}

impl Default for Rtc {
    fn default() -> Self {
        Self {
            index: 0,
            ram: [0; 128],
        }
    }
}

fn bcd(value: i32) -> u8 {
    u8::try_from(value.rem_euclid(100)).map_or(0, |v| ((v / 10) << 4) | (v % 10))
}

/// The time of day in UTC.
fn now() -> libc::tm {
    // SAFETY: `tm` is plain data for which all zeroes are a valid value; `time` takes a null
    // pointer; `gmtime_r` writes one `tm` through the pointer it is given and keeps nothing.
    unsafe {
        let mut tm = std::mem::zeroed();
        let t = libc::time(std::ptr::null_mut());
        libc::gmtime_r(&raw const t, &raw mut tm);
        tm
    }
}

impl Rtc {
    /// What a snapshot has of it: index and RAM.
    pub fn save(&self) -> Result<State, PartError> {
        to_state(&(self.index, self.ram.as_slice()))
    }

    /// Takes on a snapshot's state.
    pub fn restore(&mut self, state: State) -> Result<(), PartError> {
        let (index, ram): (u8, Vec<u8>) = from_state(state)?;
        self.ram = ram
            .try_into()
            .map_err(|_| PartError::because("it has another size"))?;
        self.index = index & 0x7f;
        Ok(())
    }

    /// A write to the index or data port.
    pub fn write(&mut self, port: u16, value: u8) {
        if port == INDEX {
            self.index = value & 0x7f;
        } else {
            self.ram[usize::from(self.index)] = value;
        }
    }

    /// A read of the data port; the index port cannot be read.
    #[must_use]
    pub fn read(&self, port: u16) -> u8 {
        if port == INDEX {
            return 0xff;
        }
        match self.index {
            0 => bcd(now().tm_sec),
            2 => bcd(now().tm_min),
            4 => bcd(now().tm_hour),
            6 => bcd(now().tm_wday + 1),
            7 => bcd(now().tm_mday),
            8 => bcd(now().tm_mon + 1),
            9 => bcd(now().tm_year),
            CENTURY => bcd(19 + now().tm_year / 100),
            REG_A => A_TIME_BASE,
            REG_B => B_24_HOURS,
            REG_C => 0,
            REG_D => D_VALID,
            other => self.ram[usize::from(other)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_bcd_and_plausible() {
        let mut rtc = Rtc::default();
        let mut get = |index| {
            rtc.write(INDEX, index);
            rtc.read(DATA)
        };
        assert!(get(CENTURY) >= 0x20);
        assert!((1..=0x12).contains(&get(8)));
        assert!((1..=0x31).contains(&get(7)));
        for index in 0..=127 {
            get(index);
        }
        assert_eq!(bcd(59), 0x59);
    }
}
