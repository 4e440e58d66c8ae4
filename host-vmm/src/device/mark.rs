//! The mark port: a guest tells how far it has come, on every profile in the same way.
//!
//! One OUT of one byte, like a BIOS's POST codes; the VMM stamps the time and its counters. It is not
//! part of the ABI, so that full and para guests are measured with the same yardstick.

/// The port.
pub const PORT: u16 = 0x84;
/// The most marks that are kept; more are counted as exits but not recorded.
pub const MARKS_MAX: usize = 256;
