//! A network with the host on its other side: it answers pings, and takes what is sent.

use core::ffi::CStr;

use crate::jobs::Watch;
use crate::sys::{Errno, Fd, call};
use crate::task::Mapping;

/// What a round does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Talk {
    /// An ICMP echo request, and its reply.
    Ping,
    /// 64 KiB over a TCP connection.
    Send,
}

/// The addresses on both sides, and where the host listens: `benches/src/network.rs` has them, too.
const GUEST: [u8; 4] = [10, 9, 0, 2];
const HOST: [u8; 4] = [10, 9, 0, 1];
const PORT: u16 = 5001;
const CARD: &CStr = c"eth0";
/// What one write sends.
const PIECE: usize = 64 * 1024;
/// Bytes of an echo request: its header, and zeros.
const ECHO: usize = 64;
const IP_HEADER: usize = 20;

const SYS_IOCTL: usize = 16;
const SYS_SOCKET: usize = 41;
const SYS_CONNECT: usize = 42;
const SYS_SHUTDOWN: usize = 48;
const SIOCSIFFLAGS: usize = 0x8914;
const SIOCSIFADDR: usize = 0x8916;
const IFF_UP: u8 = 1;
const AF_INET: u8 = 2;
const SOCK_STREAM: usize = 1;
const SOCK_DGRAM: usize = 2;
const SOCK_RAW: usize = 3;
const IPPROTO_ICMP: usize = 1;
const SHUT_WR: usize = 1;

fn socket(kind: usize, protocol: usize) -> Result<Fd, Errno> {
    // SAFETY: socket takes numbers.
    unsafe { call(SYS_SOCKET, [AF_INET.into(), kind, protocol, 0, 0]) }.map(Fd::new)
}

/// A `struct sockaddr_in`.
fn address([a, b, c, d]: [u8; 4], port: u16) -> [u8; 16] {
    let [high, low] = port.to_be_bytes();
    let mut address = [0; 16];
    address[..8].copy_from_slice(&[AF_INET, 0, high, low, a, b, c, d]);
    address
}

fn connect(kind: usize, protocol: usize) -> Result<Fd, Errno> {
    let socket = socket(kind, protocol)?;
    let to = address(HOST, PORT);
    let pointer = to.as_ptr().expose_provenance();
    // SAFETY: the address lives, and has that length.
    unsafe { call(SYS_CONNECT, [socket.number(), pointer, to.len(), 0, 0]) }?;
    Ok(socket)
}

/// Gives the card its address, and switches it on.
fn set_up() -> Result<(), Errno> {
    let socket = socket(SOCK_DGRAM, 0)?;
    let mut flags = [0; 16];
    flags[0] = IFF_UP;
    for (what, value) in [(SIOCSIFADDR, address(GUEST, 0)), (SIOCSIFFLAGS, flags)] {
        // A `struct ifreq`: a name of 16 bytes, and a union of 24.
        let mut request = [0_u8; 40];
        let name = CARD.to_bytes();
        request[..name.len()].copy_from_slice(name);
        request[16..32].copy_from_slice(&value);
        let pointer = request.as_mut_ptr().expose_provenance();
        // SAFETY: the request lives, and both calls read no more than it.
        unsafe { call(SYS_IOCTL, [socket.number(), what, pointer, 0, 0]) }?;
    }
    socket.close();
    Ok(())
}

/// Makes `rounds` rounds.
pub(crate) fn talk(watch: &mut Watch<'_>, what: Talk, rounds: usize) -> Result<(), Errno> {
    set_up()?;
    match what {
        Talk::Ping => {
            let socket = connect(SOCK_RAW, IPPROTO_ICMP)?;
            // The first asks for the host's address, too.
            ping(socket, 0)?;
            let mut number = 0_u16;
            let result = watch.each(rounds, || {
                number = number.wrapping_add(1);
                ping(socket, number)
            });
            socket.close();
            result
        }
        Talk::Send => {
            let socket = connect(SOCK_STREAM, 0)?;
            let piece = Mapping::private(PIECE)?;
            let result = watch.time(|| {
                (0..rounds).try_for_each(|_| piece.write_to(socket, PIECE))?;
                // SAFETY: shutdown takes numbers.
                unsafe { call(SYS_SHUTDOWN, [socket.number(), SHUT_WR, 0, 0, 0]) }?;
                // The host closes the connection once it has taken all.
                socket.read(&mut [0; 16]).map(drop)
            });
            piece.unmap()?;
            socket.close();
            result
        }
    }
}

fn ping(socket: Fd, number: u16) -> Result<(), Errno> {
    const REQUEST: u8 = 8;
    const REPLY: u8 = 0;
    let [high, low] = number.to_be_bytes();
    let mut request = [0; ECHO];
    request[0] = REQUEST;
    request[6..8].copy_from_slice(&[high, low]);
    // The sum of all words, without a carry: the others are zero.
    let sum = (u16::from(REQUEST) << 8).overflowing_add(number);
    let sum = sum.0.wrapping_add(sum.1.into());
    request[2..4].copy_from_slice(&(!sum).to_be_bytes());
    socket.write_all(&request)?;
    let mut reply = [0; IP_HEADER + ECHO];
    loop {
        socket.read(&mut reply)?;
        if reply[IP_HEADER] == REPLY && reply[IP_HEADER + 6..][..2] == [high, low] {
            return Ok(());
        }
    }
}
