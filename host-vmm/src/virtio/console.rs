//! The console device, with one port that is no console: a stream of bytes, which is a file to the guest
//! (`/dev/vportNp0`, and the port's name in `/sys/class/virtio-ports`), and a Unix socket to this host.
//!
//! Queues 0 and 1 have the port's bytes, 2 and 3 messages about it: that there is one, its name, whether somebody has it open.
//! One program of the host has it at a time, the next waits. What the guest writes while nobody has it is lost, as on a
//! serial line; what the host writes waits in the socket until the guest opens the port and has buffers.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::queue::{Chain, Io, QUEUE_MAX, QueueError};
use super::{CONFIG_MAX, Device};
use crate::port::{PortError, PortSpec};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;

/// `VIRTIO_CONSOLE_F_MULTIPORT`: there are ports, and messages about them.
const MULTIPORT: u64 = 1 << 1;
/// The one port.
const PORT: u32 = 0;
/// Bytes of a message: port, event, value.
const MESSAGE: usize = 8;
/// Events of messages.
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// The most bytes that the guest can write at once: what a pipe can hold.
const WRITE_MAX: usize = 1 << 20;
/// How much is read from the socket at once.
const READ_MAX: usize = 4096;

/// What the driver is still to be told, in this order.
#[derive(Debug, Default)]
struct Untold {
    port: bool,
    name: bool,
    open: bool,
}

/// The device.
#[derive(Debug)]
pub struct Port {
    name: String,
    listener: UnixListener,
    /// Watches the socket, and who has connected; it is never waited for, only watched itself.
    watch: Epoll,
    client: Option<UnixStream>,
    untold: Untold,
    /// The driver knows of the port.
    is_known: bool,
    /// A program of the guest's has it open.
    is_open: bool,
    /// What the guest has written, and the client has not taken.
    outgoing: Vec<u8>,
    /// What the client has written; of it, what the guest has no buffer for.
    incoming: Box<[u8; READ_MAX]>,
    left: Range<usize>,
}

impl Port {
    /// A device with the port `spec`, whose socket is there from now on.
    ///
    /// # Errors
    ///
    /// [`PortError`].
    pub fn new(spec: &PortSpec) -> Result<Self, PortError> {
        let listener = spec.listener()?;
        let watch = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, 0);
        watch.ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
        Ok(Self {
            name: spec.name().to_owned(),
            listener,
            watch,
            client: None,
            untold: Untold::default(),
            is_known: false,
            is_open: false,
            outgoing: Vec::new(),
            incoming: Box::new([0; READ_MAX]),
            left: 0..0,
        })
    }

    /// Lets the next client in, where there is none.
    fn accept(&mut self) {
        if self.client.is_some() {
            return;
        }
        let Ok((client, _)) = self.listener.accept() else {
            return;
        };
        let event = EpollEvent::new(EventSet::IN | EventSet::OUT, 0);
        let add = |client: &UnixStream| {
            client.set_nonblocking(true)?;
            let fd = client.as_raw_fd();
            self.watch.ctl(ControlOperation::Add, fd, event)
        };
        // One that cannot be watched is not let in.
        if add(&client).is_ok() {
            self.client = Some(client);
            self.untold.open = self.is_known;
        }
    }

    fn leave(&mut self) {
        self.client = None;
        self.outgoing.clear();
        self.untold.open = self.is_known;
        self.accept();
    }

    /// Gives the client what the guest has written, as far as it takes it. False: some is left.
    fn write(&mut self) -> bool {
        while let (Some(client), false) = (&mut self.client, self.outgoing.is_empty()) {
            match client.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.leave(),
            }
        }
        self.outgoing.clear();
        true
    }

    /// Takes what the guest writes, as long as somebody takes it from here.
    fn transmit(&mut self, io: &mut Io<'_>) -> Result<(), QueueError> {
        for _ in 0..QUEUE_MAX {
            let taken = self.write()
                && io.one(TRANSMIT, |chain| {
                    let length = chain.readable_bytes();
                    if length > WRITE_MAX {
                        return Err(chain.too_long());
                    }
                    self.outgoing.resize(length, 0);
                    chain.take(&mut self.outgoing)?;
                    Ok(0)
                })?;
            if !taken {
                return io.flush(TRANSMIT);
            }
        }
        io.again(TRANSMIT);
        io.flush(TRANSMIT)
    }

    /// Whether something waits for the guest; reads on where nothing does.
    fn has_incoming(&mut self) -> bool {
        while let (Some(client), true) = (&mut self.client, self.left.is_empty()) {
            match client.read(&mut self.incoming[..]) {
                Ok(0) => self.leave(),
                Ok(count) => self.left = 0..count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.leave(),
            }
        }
        !self.left.is_empty()
    }

    fn receive(&mut self, io: &mut Io<'_>) -> Result<(), QueueError> {
        for _ in 0..QUEUE_MAX {
            let given = self.is_open
                && self.has_incoming()
                && io.one(RECEIVE, |chain| {
                    let count = chain.fill(&self.incoming[self.left.clone()]);
                    if count == 0 {
                        return Err(chain.too_short());
                    }
                    self.left.start += count;
                    Ok(u32::try_from(count).unwrap_or(0))
                })?;
            if !given {
                return io.flush(RECEIVE);
            }
        }
        io.again(RECEIVE);
        io.flush(RECEIVE)
    }

    /// The driver says something.
    fn hear(&mut self, chain: &mut Chain<'_>) -> Result<u32, QueueError> {
        let mut message = [0; MESSAGE];
        chain.take(&mut message)?;
        let [a, b, c, d, e, f, g, h] = message;
        let port = u32::from_le_bytes([a, b, c, d]);
        let yes = u16::from_le_bytes([g, h]) != 0;
        match u16::from_le_bytes([e, f]) {
            DEVICE_READY => self.untold.port = yes,
            PORT_READY if port == PORT && yes => {
                self.is_known = true;
                self.untold.name = true;
                self.untold.open = self.client.is_some();
            }
            PORT_OPEN if port == PORT => self.is_open = yes,
            // What is said of other ports, and that it could not make this one.
            _ => {}
        }
        Ok(0)
    }

    /// Tells the driver what it has buffers for.
    fn tell(&mut self, io: &mut Io<'_>) -> Result<(), QueueError> {
        loop {
            let (flag, event, value) = match &mut self.untold {
                Untold { port: flag, .. } if *flag => (flag, PORT_ADD, 0),
                Untold { name: flag, .. } if *flag => (flag, PORT_NAME, 0),
                Untold { open: flag, .. } if *flag => {
                    (flag, PORT_OPEN, u16::from(self.client.is_some()))
                }
                _ => return io.flush(CONTROL_RECEIVE),
            };
            let mut message = Vec::with_capacity(MESSAGE + self.name.len());
            message.extend(PORT.to_le_bytes());
            message.extend(event.to_le_bytes());
            message.extend(value.to_le_bytes());
            if event == PORT_NAME {
                message.extend(self.name.bytes());
            }
            let told = io.one(CONTROL_RECEIVE, |chain| {
                if chain.fill(&message) < message.len() {
                    return Err(chain.too_short());
                }
                Ok(u32::try_from(message.len()).unwrap_or(0))
            })?;
            if !told {
                return io.flush(CONTROL_RECEIVE);
            }
            *flag = false;
        }
    }
}

impl Device for Port {
    fn kind(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn name(&self) -> &'static str {
        "port"
    }

    fn features(&self) -> u64 {
        MULTIPORT
    }

    fn queues(&self) -> usize {
        4
    }

    /// `struct virtio_console_config`: of it, how many ports there are.
    fn config(&self) -> [u8; CONFIG_MAX] {
        let mut config = [0; CONFIG_MAX];
        config[4..8].copy_from_slice(&(PORT + 1).to_le_bytes());
        config
    }

    fn begin(&mut self, _features: u64) {
        self.untold = Untold::default();
        self.is_known = false;
        self.is_open = false;
        self.outgoing.clear();
    }

    fn backend(&self) -> Option<RawFd> {
        Some(self.watch.as_raw_fd())
    }

    fn serve(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), QueueError> {
        // A thread that looks at its queues all the time is never woken for the socket.
        self.accept();
        match queue {
            TRANSMIT => self.transmit(io)?,
            CONTROL_TRANSMIT => {
                io.each(CONTROL_TRANSMIT, |chain| self.hear(chain))?;
                self.receive(io)?;
            }
            RECEIVE => self.receive(io)?,
            _ => {}
        }
        // Any of these may have found that a client is gone.
        self.tell(io)
    }

    fn serve_backend(&mut self, io: &mut Io<'_>) -> Result<(), QueueError> {
        self.accept();
        self.transmit(io)?;
        self.receive(io)?;
        self.tell(io)
    }
}
