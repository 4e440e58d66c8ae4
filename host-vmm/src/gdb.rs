//! gdb: the guest under a debugger, by the remote protocol (crate `gdbstub`).
//!
//! # How it works
//!
//! `paravane run --gdb` listens, on this machine only, and holds the guest before its first instruction until a debugger has come and
//! lets it go on. One thread talks to gdb. Whatever it does to vCPUs it does while the whole machine stands still, by
//! [`crate::pause`]. Threads, in gdb's words, are vCPUs. Memory is what the vCPU at hand has at a virtual address.
//!
//! A software breakpoint is an INT3 in the guest's memory. KVM gives it to the VMM (`KVM_SET_GUEST_DEBUG`), which tells it
//! from the guest's own by its address ([`debugger`]). Hardware breakpoints and watchpoints are in the debug registers, which the guest cannot
//! use for itself meanwhile.
//!
//! # What a host must be able to do
//!
//! All of it works on VMX and SVM. On the reference host, whose emulated SVM intercepts neither INT3 nor debug registers, a
//! breakpoint of either kind is an OUT in memory, and there are no watchpoints. The same on a software KVM; a direct guest
//! has no breakpoints and no steps there, since its INT3 and its ports lead to the switcher: it can be interrupted, looked at and changed.
//!
//! # Whom it trusts
//!
//! Whoever can connect owns the guest. The port is on the loopback interface, a Unix socket is its owner's alone.

pub mod debugger;
mod registers;
mod target;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError, MultiThreadStopReason};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::socket::{Socket, SocketError};
use crate::stats::Outcome;
use crate::vm::Machine;
use debugger::Debugger;
use target::{Debugged, TargetFailure};

/// What gdb is told where the guest has not switched itself off.
const EXIT_FAILURE: u8 = 1;
/// Bytes of the protocol that are read or written at once.
const BUFFER: usize = 4096;

/// Where a debugger is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port of the loopback interface.
    Port(u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// Where its socket is, if it is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Port(_) => None,
            Self::Unix(path) => Some(path),
        }
    }
}

/// What is no address.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is neither a port number (1234) nor unix:PATH")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let unix = text.strip_prefix("unix:").filter(|path| !path.is_empty());
        unix.map(|path| Self::Unix(path.into()))
            .or_else(|| text.parse().ok().map(Self::Port))
            .ok_or_else(|| AddressError(text.to_owned()))
    }
}

impl std::fmt::Display for Address {
    /// As gdb's `target remote` takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(port) => write!(f, "127.0.0.1:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Why no debugger can be waited for.
#[derive(Debug, thiserror::Error)]
pub enum GdbError {
    /// A port that cannot be had.
    #[error("gdb cannot be waited for at port {port}: {reason}; choose another port, or unix:PATH")]
    Port {
        /// Which.
        port: u16,
        /// What the system says.
        reason: io::Error,
    },
    /// A socket that cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(Socket),
}

/// Where debuggers come in; dropping it removes its socket.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    address: Address,
    waits: bool,
}

impl Server {
    /// Listens at `address`; `waits`: the guest does not run before a debugger lets it.
    ///
    /// # Errors
    ///
    /// [`GdbError`].
    pub fn bind(address: &Address, waits: bool) -> Result<Self, GdbError> {
        let listener = match address {
            Address::Port(port) => {
                let fail = |reason| GdbError::Port {
                    port: *port,
                    reason,
                };
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).map_err(fail)?;
                listener.set_nonblocking(true).map_err(fail)?;
                Listener::Tcp(listener)
            }
            Address::Unix(path) => Listener::Unix(Socket::bind(path)?),
        };
        let address = match &listener {
            Listener::Tcp(tcp) => tcp
                .local_addr()
                .map_or_else(|_| address.clone(), |at| Address::Port(at.port())),
            Listener::Unix(_) => address.clone(),
        };
        Ok(Self {
            listener,
            address,
            waits,
        })
    }

    /// Where it listens; a port of its own choice where it was told 0.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether the guest waits for a debugger.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.waits
    }

    fn fd(&self) -> RawFd {
        match &self.listener {
            Listener::Tcp(tcp) => tcp.as_raw_fd(),
            Listener::Unix(unix) => unix.listener().as_raw_fd(),
        }
    }

    fn accept(&self) -> io::Result<File> {
        let descriptor: OwnedFd = match &self.listener {
            Listener::Tcp(tcp) => {
                let (stream, _) = tcp.accept()?;
                // Packets are small, and each waits for its answer.
                stream.set_nodelay(true)?;
                stream.into()
            }
            Listener::Unix(unix) => unix.listener().accept()?.0.into(),
        };
        Ok(descriptor.into())
    }

    /// Serves one debugger after the other until the machine has stopped. Where that fails, the machine stops.
    pub fn serve(&self, machine: &Machine, debugger: &Debugger) {
        if let Err(e) = self.try_to_serve(machine, debugger) {
            machine.stop(Outcome::Error, Some(format!("gdb cannot be served: {e}")));
        }
    }

    fn try_to_serve(&self, machine: &Machine, debugger: &Debugger) -> io::Result<()> {
        loop {
            let fds = [self.fd(), machine.stopped_fd()];
            if Waiting::new(&fds)?.wait()? == machine.stopped_fd() {
                return Ok(());
            }
            let Ok(stream) = self.accept() else { continue };
            match session(machine, debugger, stream) {
                Ok(DisconnectReason::Kill) => {
                    let why = "the debugger has killed the guest";
                    machine.pull_the_plug(Outcome::Interrupted, why);
                }
                Ok(_) => {}
                Err(e) if e.has_gone() => {}
                Err(e) => eprintln!("paravane: gdb's session has ended: {e}"),
            }
            Debugged::new(machine, debugger)
                .leave()
                .map_err(io::Error::other)?;
        }
    }
}

/// Descriptors that are waited for.
struct Waiting(Epoll);

impl Waiting {
    fn new(fds: &[RawFd]) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for fd in fds {
            let event = EpollEvent::new(EventSet::IN, u64::try_from(*fd).unwrap_or_default());
            epoll.ctl(ControlOperation::Add, *fd, event)?;
        }
        Ok(Self(epoll))
    }

    /// One that can be read, or has been closed at the other end.
    fn wait(&self) -> io::Result<RawFd> {
        let mut events = [EpollEvent::default()];
        loop {
            match self.0.wait(-1, &mut events) {
                Ok(0) => {}
                Ok(_) => return Ok(RawFd::try_from(events[0].data()).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// The way to gdb.
struct Wire {
    stream: File,
    /// What has come, and how much of it has been taken.
    came: Vec<u8>,
    taken: usize,
    goes: Vec<u8>,
}

impl Wire {
    /// The next byte, of those that have come.
    fn next(&mut self) -> Option<u8> {
        let byte = self.came.get(self.taken).copied();
        self.taken += usize::from(byte.is_some());
        byte
    }

    /// Reads what has come, which is at least a byte.
    fn fill(&mut self) -> io::Result<()> {
        self.came.resize(BUFFER, 0);
        self.taken = 0;
        let count = self.stream.read(&mut self.came)?;
        self.came.truncate(count);
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.goes.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let goes = std::mem::take(&mut self.goes);
        self.stream.write_all(&goes)
    }
}

/// What a session waits for.
enum Event {
    Byte(u8),
    Stopped,
    /// The run has ended.
    Over,
}

fn wait(wire: &mut Wire, waiting: &Waiting, machine: &Machine) -> io::Result<Event> {
    loop {
        if let Some(byte) = wire.next() {
            return Ok(Event::Byte(byte));
        }
        wire.flush()?;
        match waiting.wait()? {
            fd if fd == machine.stopped_fd() => return Ok(Event::Over),
            fd if fd == wire.stream.as_raw_fd() => wire.fill()?,
            _ => return Ok(Event::Stopped),
        }
    }
}

/// Why a session has ended early.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Target(#[from] TargetFailure),
    #[error("the debugger has gone: {0}")]
    Wire(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] GdbStubError<TargetFailure, io::Error>),
}

impl SessionError {
    fn has_gone(&self) -> bool {
        match self {
            Self::Target(_) => false,
            Self::Wire(_) => true,
            Self::Protocol(e) => e.is_connection_error(),
        }
    }
}

/// Talks to one debugger until it leaves, or the run ends.
fn session(
    machine: &Machine,
    debugger: &Debugger,
    stream: File,
) -> Result<DisconnectReason, SessionError> {
    let (stream_fd, stopped_fd) = (stream.as_raw_fd(), machine.stopped_fd());
    let idle = Waiting::new(&[stream_fd, stopped_fd])?;
    let running = Waiting::new(&[stream_fd, stopped_fd, debugger.fd()])?;
    let wire = Wire {
        stream,
        came: Vec::new(),
        taken: 0,
        goes: Vec::new(),
    };
    let mut target = Debugged::new(machine, debugger);
    target.stand_still()?;
    debugger.attach();
    let mut gdb = GdbStub::new(wire).run_state_machine(&mut target)?;
    loop {
        gdb = match gdb {
            GdbStubStateMachine::Idle(mut gdb) => match wait(gdb.borrow_conn(), &idle, machine)? {
                Event::Byte(byte) => gdb.incoming_data(&mut target, byte)?,
                Event::Stopped => gdb.into(),
                Event::Over => return Ok(DisconnectReason::Disconnect),
            },
            GdbStubStateMachine::Running(mut gdb) => {
                if let Some(stop) = debugger.next_stop() {
                    target.stand_still()?;
                    gdb.report_stop(&mut target, Debugged::reason(stop))?
                } else {
                    match wait(gdb.borrow_conn(), &running, machine)? {
                        Event::Byte(byte) => gdb.incoming_data(&mut target, byte)?,
                        Event::Stopped => gdb.into(),
                        Event::Over => gdb.report_stop(&mut target, over(machine))?,
                    }
                }
            }
            GdbStubStateMachine::CtrlCInterrupt(gdb) => {
                target.stand_still()?;
                gdb.interrupt_handled(&mut target, Some(Debugged::interrupted()))?
            }
            GdbStubStateMachine::Disconnected(mut gdb) => {
                gdb.borrow_conn().flush()?;
                return Ok(gdb.get_reason());
            }
        };
    }
}

/// How the run has ended, as a program does.
fn over(machine: &Machine) -> MultiThreadStopReason<u64> {
    let good = [Outcome::PowerOff, Outcome::Reboot];
    let well = good
        .into_iter()
        .any(|outcome| machine.has_ended_as(outcome));
    MultiThreadStopReason::Exited(if well { 0 } else { EXIT_FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_ports_or_paths() {
        let parse = |text: &str| text.parse::<Address>();
        assert_eq!(parse("1234").unwrap(), Address::Port(1234));
        assert_eq!(parse("unix:/a/b").unwrap(), Address::Unix("/a/b".into()));
        for text in ["", "unix:", "65536", "0.0.0.0:1", "/a/b"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
