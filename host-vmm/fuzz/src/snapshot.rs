//! The state of a snapshot, as it is behind its checksum: whatever it is, it is taken or refused.

/// As much as the machine of the seed has.
const MEMORY_BYTES: u64 = 32 << 20;

/// Entry.
pub fn run(data: &[u8]) {
    let _ = paravane::snapshot::check(data, MEMORY_BYTES);
}
