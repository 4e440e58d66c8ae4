//! The VMM's side of the control socket: one thread, which sleeps until somebody speaks.
//!
//! # Bounds
//!
//! Nobody can make the VMM keep more than [`CONNECTIONS`] times [`REQUEST_MAX`] bytes. Who connects beyond that takes the
//! place of the connection that has been silent for longest. A request that is longer, and a client that does not read its
//! answers, lose their connection. Requests are carried out one after the other.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use vmm_sys_util::epoll::{Epoll, EpollEvent};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{Refusal, answer, serve_line};
use crate::event_loop::watch;
use crate::socket::{Socket, SocketError};
use crate::stats::Outcome;
use crate::vm::Machine;

/// Connections at a time.
const CONNECTIONS: usize = 8;
/// Bytes of a request, its line feed included.
const REQUEST_MAX: usize = 4096;

/// How long nobody is let in after that has failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

const STOPPED: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;

/// A control socket; dropping it removes it.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    connections: Mutex<Connections>,
}

/// The clients, which keep their connections where a machine starts again. The one that has spoken last stands at the end.
#[derive(Debug, Default)]
struct Connections {
    all: Vec<Connection>,
    /// Connections so far.
    count: u64,
}

impl Server {
    /// Makes the socket at `path`, as [`Socket::bind`] does.
    ///
    /// # Errors
    ///
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Ok(Self {
            socket: Socket::bind(path)?,
            connections: Mutex::default(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Serves requests until the machine has stopped. Where it cannot, the machine stops.
    pub fn serve(&self, machine: &Machine) {
        if let Err(e) = self.try_to_serve(machine) {
            let why = format!("the control socket cannot be served: {e}");
            machine.stop(Outcome::Error, Some(why));
        }
    }

    fn try_to_serve(&self, machine: &Machine) -> io::Result<()> {
        let epoll = Epoll::new()?;
        watch(&epoll, machine.stopped_fd(), STOPPED)?;
        watch(&epoll, self.socket.listener().as_raw_fd(), LISTENER)?;
        let mut connections = self.connections.lock();
        let connections = connections.as_deref_mut().unwrap_or_else(|e| e.get_mut());
        for connection in &connections.all {
            watch(&epoll, connection.stream.as_raw_fd(), connection.token)?;
        }
        loop {
            let mut events = [EpollEvent::default(); CONNECTIONS];
            let count = match epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                Err(e) => return Err(e),
            };
            for event in &events[..count] {
                match event.data() {
                    STOPPED => return Ok(()),
                    LISTENER => {
                        let accepted = self.socket.listener().accept();
                        let is_full = connections.all.len() == CONNECTIONS;
                        if is_full || accepted.is_err() && !connections.all.is_empty() {
                            connections.all.remove(0);
                        }
                        let Ok((stream, _)) = accepted else {
                            // The client has gone again, or there is no descriptor left for it.
                            std::thread::sleep(ACCEPT_AGAIN);
                            continue;
                        };
                        connections.count += 1;
                        let token = connections.count;
                        if stream.set_nonblocking(true).is_ok()
                            && watch(&epoll, stream.as_raw_fd(), token).is_ok()
                        {
                            connections.all.push(Connection::new(token, stream));
                        }
                    }
                    token => {
                        let position = connections.all.iter().position(|c| c.token == token);
                        let Some(position) = position else { continue };
                        let mut connection = connections.all.remove(position);
                        if connection.serve(machine).is_ok() {
                            connections.all.push(connection);
                        }
                    }
                }
            }
        }
    }
}

/// A client. Closing its descriptor takes it out of the epoll set.
#[derive(Debug)]
struct Connection {
    token: u64,
    stream: UnixStream,
    /// The beginning of a request.
    begun: Vec<u8>,
    /// The file that came along with it.
    file: Option<File>,
}

impl Connection {
    fn new(token: u64, stream: UnixStream) -> Self {
        Self {
            token,
            stream,
            begun: Vec::new(),
            file: None,
        }
    }

    /// Takes what has come and answers the lines that are whole. An error ends the connection.
    fn serve(&mut self, machine: &Machine) -> io::Result<()> {
        let mut buffer = [0; REQUEST_MAX];
        let count = match self.stream.recv_with_fd(&mut buffer) {
            Ok((count, file)) => {
                self.file = file.or(self.file.take());
                count
            }
            Err(e) if e.errno() == libc::EAGAIN => return Ok(()),
            Err(e) => return Err(io::Error::from_raw_os_error(e.errno())),
        };
        self.begun.extend_from_slice(&buffer[..count]);
        while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.begun.drain(..=end).collect();
            let file = self.file.take();
            self.put(&serve_line(machine, &line, file))?;
        }
        if self.begun.len() >= REQUEST_MAX {
            let _ = self.put(&answer(Err(Refusal::TooLong { most: REQUEST_MAX })));
            return Err(io::ErrorKind::InvalidData.into());
        }
        if count == 0 {
            if !self.begun.is_empty() {
                let file = self.file.take();
                self.put(&serve_line(machine, &self.begun, file))?;
            }
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Writes an answer; a client that has left too many of them unread is none any more.
    fn put(&self, answer: &str) -> io::Result<()> {
        (&self.stream).write_all(format!("{answer}\n").as_bytes())
    }
}
