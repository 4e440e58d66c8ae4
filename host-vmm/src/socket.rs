//! A Unix socket that clients of this VMM connect to: its control socket, a debugger's, a port's.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another VMM answers there.
    #[error("another VMM answers at the socket `{}`; choose another path", .0.display())]
    Taken(PathBuf),
    /// Something else is there.
    #[error("`{}` is there already and is no socket; choose another path", .0.display())]
    NoSocket(PathBuf),
    /// It cannot be made.
    #[error("the socket `{}` cannot be made: {reason}; its folder must exist and let you write, and \
             the path may have at most 107 bytes", path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
}

/// A socket for its owner only, which does not block; dropping it removes it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Makes the socket at `path`. One that a VMM has left behind when it was killed is replaced.
    ///
    /// # Errors
    ///
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let fail = |reason| SocketError::Bind {
            path: path.to_owned(),
            reason,
        };
        if let Ok(there) = path.symlink_metadata() {
            if !there.file_type().is_socket() {
                return Err(SocketError::NoSocket(path.to_owned()));
            }
            if UnixStream::connect(path).is_ok() {
                return Err(SocketError::Taken(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(fail)?;
        }
        // SAFETY: umask takes a number and cannot fail. No other thread makes files yet.
        let mask = unsafe { libc::umask(0o177) };
        let bound = UnixListener::bind(path);
        // SAFETY: as above.
        unsafe { libc::umask(mask) };
        let listener = bound.map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Where clients come in.
    #[must_use]
    pub const fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}
