//! Moving the command's streams between L1's serial ports and the caller.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::sys;

/// Passes a stream on until the token that ends it. L1 sends the token after the last byte, because the control port may
/// overtake the streams.
///
/// Returns whether the token was seen: a stream that just ends was cut.
pub(crate) fn pump_output(
    mut port: impl Read,
    sink: &mut dyn Write,
    token: &[u8],
) -> io::Result<bool> {
    let mut held: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = match port.read(&mut buffer) {
            Ok(0) => {
                sink.write_all(&held)?;
                sink.flush()?;
                return Ok(false);
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // QEMU was killed with bytes of ours unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error),
        };
        held.extend_from_slice(&buffer[..read]);
        if held.ends_with(token) {
            sink.write_all(&held[..held.len() - token.len()])?;
            sink.flush()?;
            return Ok(true);
        }
        if read == 0 {
            sink.write_all(&held)?;
            return Ok(false);
        }
        let kept = token_begun(&held, token);
        let ready = held.len() - kept;
        if ready > 0 {
            sink.write_all(&held[..ready])?;
            sink.flush()?;
            held.drain(..ready);
        }
    }
}

/// How many of the last bytes may be the token's first.
fn token_begun(bytes: &[u8], token: &[u8]) -> usize {
    (1..token.len())
        .rev()
        .find(|&length| bytes.ends_with(&token[..length]))
        .unwrap_or(0)
}

/// Passes the caller's input on until its end, or until `stop` is closed.
pub(crate) fn pump_input(
    input: BorrowedFd<'_>,
    mut port: &UnixStream,
    stop: &UnixStream,
) -> io::Result<()> {
    let mut input = std::fs::File::from(input.try_clone_to_owned()?);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (readable, stopped) = sys::wait_readable(input.as_fd(), stop.as_fd())?;
        if stopped {
            return Ok(());
        }
        if !readable {
            continue;
        }
        match input.read(&mut buffer) {
            // Half a close: a full one could make QEMU drop what it has not read yet.
            Ok(0) => return port.shutdown(std::net::Shutdown::Write),
            Ok(read) => port.write_all(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Gives its chunks one read at a time.
    struct Chunks(VecDeque<Vec<u8>>);

    impl Read for Chunks {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let chunk = self.0.pop_front().unwrap_or_default();
            buffer[..chunk.len()].copy_from_slice(&chunk);
            Ok(chunk.len())
        }
    }

    #[test]
    fn output_is_whole_however_it_is_cut() {
        let stream = b"one EN two ENEND";
        for first in 0..stream.len() {
            for second in first..stream.len() {
                let chunks = [&stream[..first], &stream[first..second], &stream[second..]];
                let chunks = chunks
                    .iter()
                    .filter(|chunk| !chunk.is_empty())
                    .map(|chunk| chunk.to_vec())
                    .collect();
                let mut sink = Vec::new();
                assert!(pump_output(Chunks(chunks), &mut sink, b"END").expect("memory"));
                assert_eq!(sink, b"one EN two EN", "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn a_stream_without_the_token_is_known_as_cut() {
        let mut sink = Vec::new();
        let chunks = Chunks([b"abc EN".to_vec()].into());
        assert!(!pump_output(chunks, &mut sink, b"END").expect("memory"));
        assert_eq!(sink, b"abc EN");
    }
}
