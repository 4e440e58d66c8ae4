//! A network's back end: Ethernet frames in and out, whatever carries them on this host.
//!
//! # How it works
//!
//! * `user`: Debian's [passt](https://passt.top) makes sockets of this host of what the guest sends, as one of its programs
//!   would. It needs no privilege. We start it with one end of a socket pair, over which each frame has its length before it
//!   ([`stream`]), and it ends when the other end is closed, however this process ends.
//! * `tap`: a TAP device of this host, for who has the privilege to make one ([`tap`]).
//!
//! A frame that finds no room is lost, as on a wire.
//!
//! # What a device must do
//!
//! Watch [`Net::fd`] for input, and then take frames ([`Net::receive`]) until there is none: some may have been read from
//! the descriptor already, and it does not report those again.

mod stream;
mod tap;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::str::FromStr;
use std::sync::Arc;

use self::stream::Stream;
use self::tap::Tap;

/// The most bytes of a frame: addresses, type, and the usual MTU.
pub const FRAME_MAX: usize = 14 + MTU;
/// The most bytes of a frame's payload.
const MTU: usize = 1500;

/// `--net`: what carries the frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetSpec {
    /// passt: the guest's connections are this host's.
    User,
    /// A TAP device of this host.
    Tap {
        /// Its name.
        name: String,
    },
}

impl NetSpec {
    /// The guest's own address: the same in each run, and another for another TAP device.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        let name = match self {
            Self::User => "",
            Self::Tap { name } => name,
        };
        // FNV-1a.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        let [a, b, c, _] = hash.to_le_bytes();
        // The prefix that VMMs use.
        [0x52, 0x54, 0x00, a, b, c]
    }
}

impl fmt::Display for NetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::Tap { name } => write!(f, "tap={name}"),
        }
    }
}

impl FromStr for NetSpec {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        match text.split_once('=') {
            None if text == "user" => Ok(Self::User),
            Some(("tap", name)) if (1..libc::IFNAMSIZ).contains(&name.len()) => {
                let name = name.to_owned();
                Ok(Self::Tap { name })
            }
            _ => Err(NetError::Spec {
                text: text.to_owned(),
            }),
        }
    }
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// `--net` with something else.
    #[error(
        "there is no network `{text}`; use --net user, or --net tap=NAME with the name of a TAP device"
    )]
    Spec {
        /// What was asked for.
        text: String,
    },
    /// passt is not installed.
    #[error("--net user needs the program passt: `apt-get install passt` (ci/setup does)")]
    NoPasst,
    /// passt does not start.
    #[error("passt cannot be started: {reason}; --net tap=NAME does without it")]
    Passt {
        /// What it, or the system, says.
        reason: String,
    },
    /// The TAP device cannot be used.
    #[error("the TAP device `{name}` cannot be used: {reason}; {mend}")]
    Tap {
        /// Its name.
        name: String,
        /// What the system says.
        reason: io::Error,
        /// What to do about it.
        mend: String,
    },
    /// vhost-net cannot be had.
    #[error(
        "the kernel's network device, /dev/vhost-net, cannot be used: {0}; it is the module vhost_net (`modprobe vhost_net`) and \
         opens to root and the group kvm; --io hosted does without"
    )]
    Kernel(io::Error),
    /// The other side is gone, and frames go nowhere from now on.
    #[error("the network has gone: {0}")]
    Gone(#[from] io::Error),
}

/// A network that a guest is connected to, and stays so when it starts again; a clone is the same one.
#[derive(Clone, Debug)]
pub struct Net {
    back_end: Arc<BackEnd>,
    mac: [u8; 6],
}

#[derive(Debug)]
enum BackEnd {
    Stream(Stream),
    Tap(Tap),
}

impl Net {
    /// Connects a guest.
    ///
    /// # Errors
    ///
    /// [`NetError`]; each names what to do about it.
    pub fn open(spec: &NetSpec) -> Result<Self, NetError> {
        let back_end = match spec {
            NetSpec::User => BackEnd::Stream(stream::passt()?),
            NetSpec::Tap { name } => BackEnd::Tap(Tap::open(name)?),
        };
        Ok(Self {
            back_end: Arc::new(back_end),
            mac: spec.mac(),
        })
    }

    /// A network whose other side is the other end of `socket`, as passt is.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn over(socket: std::os::unix::net::UnixStream) -> io::Result<Self> {
        Ok(Self {
            back_end: Arc::new(BackEnd::Stream(Stream::new(socket)?)),
            mac: NetSpec::User.mac(),
        })
    }

    /// The guest's own address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The TAP device, where it is one.
    #[must_use]
    pub(crate) fn tap(&self) -> Option<&File> {
        match &*self.back_end {
            BackEnd::Stream(_) => None,
            BackEnd::Tap(tap) => Some(tap.file()),
        }
    }

    /// Becomes readable when there are frames.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        match &*self.back_end {
            BackEnd::Stream(stream) => stream.fd(),
            BackEnd::Tap(tap) => tap.fd(),
        }
    }

    /// Sends a frame, without its check sum. One that is too long, or finds no room, is lost.
    ///
    /// # Errors
    ///
    /// [`NetError::Gone`].
    pub fn send(&self, frame: &[u8]) -> Result<(), NetError> {
        if frame.is_empty() || frame.len() > FRAME_MAX {
            return Ok(());
        }
        match &*self.back_end {
            // passt takes padding for payload: its usual guests' cards send none.
            BackEnd::Stream(stream) => stream.send(without_padding(frame))?,
            BackEnd::Tap(tap) => tap.send(frame)?,
        }
        Ok(())
    }

    /// Copies the next frame, and tells its length; `None`: there is none at the moment. One that is longer than [`FRAME_MAX`] is lost.
    ///
    /// # Errors
    ///
    /// [`NetError::Gone`]; the descriptor then stays readable, so do not watch it any more.
    pub fn receive(&self, into: &mut [u8; FRAME_MAX]) -> Result<Option<usize>, NetError> {
        Ok(match &*self.back_end {
            BackEnd::Stream(stream) => stream.receive(into)?,
            BackEnd::Tap(tap) => tap.receive(into)?,
        })
    }
}

/// A frame without what fills it up to the least length of Ethernet, where its packet says how long it is.
fn without_padding(frame: &[u8]) -> &[u8] {
    const HEADER: usize = 14;
    const IPV4: [u8; 2] = [8, 0];
    let is_ipv4 = frame.get(12..HEADER) == Some(&IPV4);
    match frame.get(HEADER + 2..HEADER + 4) {
        Some(&[high, low]) if is_ipv4 => {
            let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
            frame.get(..length).unwrap_or(frame)
        }
        _ => frame,
    }
}

/// Nothing, where a call would have to wait.
fn unless_blocked<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ARP request for the gateway.
    pub(super) fn arp_request() -> Vec<u8> {
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let mut frame = [[0xff; 6], mac].concat();
        frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend_from_slice(&mac);
        frame.extend_from_slice(&[10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
        frame
    }

    /// Whether the gateway answers.
    pub(super) fn is_arp_reply(frame: &[u8]) -> bool {
        frame.len() >= 42 && frame[20..22] == [0, 2] && frame[28..32] == [10, 0, 2, 2]
    }

    #[test]
    fn padding_goes_and_nothing_else() {
        let mut frame = [0; 60];
        frame[12..18].copy_from_slice(&[8, 0, 0x45, 0, 0, 40]);
        assert_eq!(without_padding(&frame).len(), 54);
        frame[17] = 47;
        assert_eq!(without_padding(&frame).len(), 60, "more than there is");
        frame[13] = 6;
        frame[17] = 40;
        assert_eq!(without_padding(&frame).len(), 60);
        assert_eq!(without_padding(&frame[..17]).len(), 17);
    }

    #[test]
    fn a_network_is_named_by_what_carries_it() {
        for text in ["user", "tap=tap0"] {
            let spec: NetSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
        for text in ["", "tap", "tap=", "user=1", "tap=a-name-that-is-too-long"] {
            assert!(text.parse::<NetSpec>().is_err(), "{text}");
        }
        let mac = |text: &str| text.parse::<NetSpec>().unwrap().mac();
        assert_ne!(mac("tap=tap0"), mac("tap=tap1"));
        assert_eq!(mac("user")[0] & 3, 2, "of nobody's making, and for one");
    }
}
