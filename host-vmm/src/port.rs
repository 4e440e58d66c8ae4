//! `--port`: a stream of bytes between a program of the guest's and one of this host's, over a Unix socket of this process.

use std::fmt;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use crate::socket::{Socket, SocketError};

/// The most bytes of a name.
const NAME_MAX: usize = 64;

/// A port's name in the guest, and its socket, which is made once and stays where the machine starts again.
#[derive(Clone, Debug)]
pub struct PortSpec {
    name: String,
    path: PathBuf,
    socket: Arc<OnceLock<Socket>>,
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// `--port` with something else.
    #[error(
        "`{0}` is no port; use --port NAME=SOCKET, with a name of letters, digits, dots and dashes (at most {NAME_MAX})"
    )]
    Spec(String),
    /// Its socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No descriptor left.
    #[error("the port's socket cannot be used: {0}")]
    Descriptor(#[from] io::Error),
}

impl PortSpec {
    /// What the guest calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its socket, which does not block.
    ///
    /// # Errors
    ///
    /// [`PortError`].
    pub fn listener(&self) -> Result<UnixListener, PortError> {
        let socket = match self.socket.get() {
            Some(socket) => socket,
            None => {
                let socket = Socket::bind(&self.path)?;
                self.socket.get_or_init(|| socket)
            }
        };
        Ok(socket.listener().try_clone()?)
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.path.display())
    }
}

impl FromStr for PortSpec {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        let wrong = || PortError::Spec(text.to_owned());
        let (name, path) = text.split_once('=').ok_or_else(wrong)?;
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if !(1..=NAME_MAX).contains(&name.len()) || !name.chars().all(known) || path.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            name: name.to_owned(),
            path: path.into(),
            socket: Arc::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_name_and_a_socket() {
        let port: PortSpec = "org.qemu.guest_agent.0=/run/agent".parse().unwrap();
        assert_eq!(
            (port.name(), port.path()),
            ("org.qemu.guest_agent.0", Path::new("/run/agent"))
        );
        for text in ["", "agent", "=/run/agent", "agent=", "a/b=/run/agent"] {
            assert!(text.parse::<PortSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn its_socket_is_made_once_and_removed_in_the_end() {
        let folder = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let path = folder.as_path().join("socket");
        let port: PortSpec = format!("p={}", path.display()).parse().unwrap();
        let again = port.clone();
        assert!(!path.exists());
        drop((port.listener().unwrap(), again.listener().unwrap()));
        drop(port);
        assert!(path.exists());
        drop(again);
        assert!(!path.exists());
    }
}
