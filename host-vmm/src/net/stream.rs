//! Frames over a stream, each with its length before it in four bytes, the first the most significant: what passt
//! speaks, and QEMU's `-netdev stream`.

use crate::sync::lock;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use super::{FRAME_MAX, MTU, NetError, unless_blocked};

const PREFIX: usize = 4;
/// Room for what one read brings.
const BUFFER: usize = 1 << 16;
/// The most bytes that a frame may say it has; more is a stream that has lost its way.
const LENGTH_MAX: usize = 1 << 16;
/// The addresses of the guest's network: itself, and the gateway, which is also this host. They are those of QEMU's user network.
const GUEST: &str = "10.0.2.15";
const GATEWAY: &str = "10.0.2.2";
const GATEWAY_MAC: &str = "52:55:0a:00:02:02";

/// A stream of frames, non-blocking.
#[derive(Debug)]
pub(super) struct Stream {
    socket: UnixStream,
    reader: Mutex<Reader>,
    /// The rest of a frame of which the socket has taken a part.
    rest: Mutex<Vec<u8>>,
}

/// What has been read and not yet taken.
#[derive(Debug)]
struct Reader {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes of a frame that is too long, still to be read and dropped.
    skip: usize,
}

impl Stream {
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            reader: Mutex::new(Reader {
                bytes: vec![0; BUFFER].into(),
                start: 0,
                end: 0,
                skip: 0,
            }),
            rest: Mutex::default(),
        })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut rest = lock(&self.rest);
        while !rest.is_empty() {
            let Some(sent) = unless_blocked(self.put(&rest))? else {
                // No room: this frame is lost, as on a wire.
                return Ok(());
            };
            rest.drain(..sent);
        }
        let mut packet = [0; PREFIX + FRAME_MAX];
        let packet = &mut packet[..PREFIX + frame.len()];
        // At most FRAME_MAX.
        let length = u32::try_from(frame.len()).unwrap_or(0);
        packet[..PREFIX].copy_from_slice(&length.to_be_bytes());
        packet[PREFIX..].copy_from_slice(frame);
        if let Some(sent) = unless_blocked(self.put(packet))? {
            // Whatever follows has to wait for it.
            rest.extend_from_slice(&packet[sent..]);
        }
        Ok(())
    }

    /// Writes, without the signal that a closed stream would send.
    fn put(&self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the kernel reads `bytes.len()` bytes from the slice, and keeps nothing.
        let sent = unsafe {
            libc::send(
                self.fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    pub(super) fn receive(&self, into: &mut [u8; FRAME_MAX]) -> io::Result<Option<usize>> {
        let mut reader = lock(&self.reader);
        loop {
            if let Some(length) = reader.take(into)? {
                return Ok(Some(length));
            }
            if !reader.fill(&self.socket)? {
                return Ok(None);
            }
        }
    }
}

impl Reader {
    /// The next frame, if all of it is there.
    fn take(&mut self, into: &mut [u8; FRAME_MAX]) -> io::Result<Option<usize>> {
        loop {
            let skipped = self.skip.min(self.end - self.start);
            self.start += skipped;
            self.skip -= skipped;
            let there = &self.bytes[self.start..self.end];
            let Some((prefix, rest)) = there.split_first_chunk::<PREFIX>() else {
                return Ok(None);
            };
            let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
            if length > LENGTH_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if length > FRAME_MAX {
                self.start += PREFIX;
                self.skip = length;
                continue;
            }
            let Some(frame) = rest.get(..length) else {
                return Ok(None);
            };
            into[..length].copy_from_slice(frame);
            self.start += PREFIX + length;
            return Ok(Some(length));
        }
    }

    /// Reads more; false: there is no more at the moment.
    fn fill(&mut self, mut socket: &UnixStream) -> io::Result<bool> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        match unless_blocked(socket.read(&mut self.bytes[self.end..]))? {
            Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(count) => {
                self.end += count;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// Starts passt. It goes into the background once it is ready, into namespaces of its own, and ends with the stream.
pub(super) fn passt() -> Result<Stream, NetError> {
    let fail = |e: io::Error| NetError::Passt {
        reason: e.to_string(),
    };
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    // It gets a descriptor of that number, and ours would be in no other program.
    let inherited = inherit(&theirs).map_err(fail)?;
    let output = Command::new("passt")
        .args(["--quiet", "--stderr", "--ipv4-only"])
        .arg("--fd")
        .arg(inherited.as_raw_fd().to_string())
        // Any interface will do, as all addresses are given: hosts without a network have this one.
        .args(["--interface", "lo"])
        .args(["--address", GUEST, "--netmask", "24"])
        .args(["--gateway", GATEWAY, "--mac-addr", GATEWAY_MAC])
        .args(["--mtu", &MTU.to_string()])
        .args(["--tcp-ports", "none", "--udp-ports", "none"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => NetError::NoPasst,
            _ => fail(e),
        })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let said = text.lines().map(str::trim).filter(|line| is_reason(line));
        let mut reason: Vec<&str> = said.collect();
        let status = output.status.to_string();
        reason.push(&status);
        return Err(NetError::Passt {
            reason: reason.join("; "),
        });
    }
    Stream::new(ours).map_err(fail)
}

/// A line that says why, and not that there is no system log, or that root is not needed.
fn is_reason(line: &str) -> bool {
    !line.is_empty() && !line.contains("syslog") && !line.contains("run as root")
}

/// A copy of the descriptor that programs we start inherit.
fn inherit(socket: &UnixStream) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: dup gives a descriptor that is ours alone.
    unsafe {
        match libc::dup(socket.as_fd().as_raw_fd()) {
            ..0 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::net::tests::{arp_request, is_arp_reply};

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::new(ours).unwrap(), theirs)
    }

    #[test]
    fn frames_come_whole_however_the_stream_brings_them() {
        let (stream, mut other) = pair();
        let mut frame = [0; FRAME_MAX];
        let mut sent = Vec::new();
        for length in [60_u16, 1514, 1, 3000, 61] {
            sent.extend_from_slice(&u32::from(length).to_be_bytes());
            sent.extend(vec![length.to_le_bytes()[0]; length.into()]);
        }
        let mut got = Vec::new();
        for part in sent.chunks(7) {
            other.write_all(part).unwrap();
            while let Some(length) = stream.receive(&mut frame).unwrap() {
                got.push(length);
                let byte = length.to_le_bytes()[0];
                assert!(frame[..length].iter().all(|b| *b == byte));
            }
        }
        assert_eq!(got, [60, 1514, 1, 61], "the long one is lost");
        other.write_all(&[0xff; 4]).unwrap();
        assert!(stream.receive(&mut frame).is_err());
    }

    #[test]
    fn a_full_stream_loses_whole_frames_and_an_ended_one_says_so() {
        let (stream, mut other) = pair();
        for number in 0..10_000_u32 {
            let mut frame = [0; FRAME_MAX];
            frame[..4].copy_from_slice(&number.to_le_bytes());
            stream.send(&frame).unwrap();
        }
        other.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        let _ = other.read_to_end(&mut bytes);
        assert!(bytes.len() > 10 * FRAME_MAX && bytes.len() < 10_000 * FRAME_MAX);
        for packet in bytes.chunks(PREFIX + FRAME_MAX) {
            assert_eq!(packet[..PREFIX], [0, 0, 5, 0xea]);
        }
        drop(other);
        assert!(stream.send(&[0; 60]).is_err());
        assert!(stream.receive(&mut [0; FRAME_MAX]).is_err());
    }

    #[test]
    fn passt_answers_for_the_gateway() {
        // ci/setup installs it; a machine without it cannot tell.
        let stream = match passt() {
            Err(NetError::NoPasst) => {
                println!("skipped: passt is not installed; ci/setup does it");
                return;
            }
            stream => stream.unwrap(),
        };
        stream.send(&arp_request()).unwrap();
        let mut frame = [0; FRAME_MAX];
        let start = Instant::now();
        let length = loop {
            if let Some(length) = stream.receive(&mut frame).unwrap() {
                break length;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "no answer");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(is_arp_reply(&frame[..length]), "{frame:x?}");
    }
}
