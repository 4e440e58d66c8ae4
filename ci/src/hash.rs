//! Content hashes: SHA-256, as lower-case hexadecimal text.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The hash of `data`.
pub(crate) fn bytes(data: &[u8]) -> String {
    finish(Sha256::new_with_prefix(data))
}

/// The hash of a file's content.
pub(crate) fn file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {path:?}"))?;
    let mut state = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file
            .read(&mut buffer)
            .with_context(|| format!("cannot read {path:?}"))?;
        if read == 0 {
            return Ok(finish(state));
        }
        state.update(&buffer[..read]);
    }
}

fn finish(state: Sha256) -> String {
    state
        .finalize()
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Enough of a hash for a file name.
pub(crate) fn short(hash: &str) -> &str {
    &hash[..16]
}
