//! Frames over a TAP device: a read or a write is a frame.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::{FRAME_MAX, NetError, unless_blocked};

const DEVICE: &str = "/dev/net/tun";

/// An open TAP device.
#[derive(Debug)]
pub(super) struct Tap(File);

impl Tap {
    pub(super) fn open(name: &str) -> Result<Self, NetError> {
        let fail = |reason: io::Error| NetError::Tap {
            name: name.to_owned(),
            mend: mend(name, &reason),
            reason,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(fail)?;
        // SAFETY: `ifreq` is plain data for which all zeroes are a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The last byte stays zero: names are shorter, as `NetSpec` has seen to.
        let room = request.ifr_name.len() - 1;
        for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        // Both flags are small.
        let flags = libc::IFF_TAP | libc::IFF_NO_PI;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
        // SAFETY: TUNSETIFF reads and writes one `ifreq` through the pointer, and keeps nothing.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 {
            return Err(fail(io::Error::last_os_error()));
        }
        Ok(Self(file))
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        match unless_blocked((&self.0).write(frame)) {
            // A device that is down loses its frames, and can come up again.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(()),
            result => result.map(drop),
        }
    }

    pub(super) fn receive(&self, into: &mut [u8; FRAME_MAX]) -> io::Result<Option<usize>> {
        unless_blocked((&self.0).read(into))
    }
}

fn mend(name: &str, reason: &io::Error) -> String {
    match reason.raw_os_error() {
        Some(libc::EBUSY) => "another process has it: use one for each guest".to_owned(),
        Some(libc::ENOENT | libc::ENODEV) => {
            format!("{DEVICE} is the kernel's module tun: `modprobe tun`")
        }
        _ => format!(
            "root makes one for you: `ip tuntap add {name} mode tap user $USER && ip link set {name} up`; --net user needs no privilege"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::net::tests::{arp_request, is_arp_reply};

    #[test]
    fn a_device_that_cannot_be_had_is_told_with_the_mend() {
        for (reason, words) in [(libc::EBUSY, "for each guest"), (libc::EPERM, "ip tuntap")] {
            let reason = io::Error::from_raw_os_error(reason);
            assert!(mend("tap0", &reason).contains(words));
        }
    }

    #[test]
    fn this_hosts_kernel_answers_over_the_device() {
        // SAFETY: this thread alone leaves the network namespace, with no memory involved.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            println!("skipped: a network of the test's own takes root");
            return;
        }
        let Ok(tap) = Tap::open("paravane-test") else {
            println!("skipped: this kernel has no TAP devices");
            return;
        };
        assert!(matches!(
            Tap::open("paravane-test"),
            Err(NetError::Tap { .. })
        ));
        for line in [
            "addr add 10.0.2.2/24 dev paravane-test",
            "link set paravane-test up",
        ] {
            let ip = Command::new("ip").args(line.split(' ')).status();
            assert!(ip.unwrap().success(), "{line}");
        }
        let request = arp_request();
        let mut frame = [0; FRAME_MAX];
        let start = Instant::now();
        loop {
            tap.send(&request).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            while let Some(length) = tap.receive(&mut frame).unwrap() {
                if is_arp_reply(&frame[..length]) {
                    return;
                }
            }
            assert!(start.elapsed() < Duration::from_secs(30), "no answer");
        }
    }
}
