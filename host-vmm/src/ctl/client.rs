//! The client's side of the control socket.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::Request;

/// How long a VMM may take to answer, but for a file that it fills.
const LIMIT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no VMM answers at `{}`: {reason}; start one with `paravane run --ctl {}` (a guest on the reference host \
             has its socket in there, too)", path.display(), path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// The connection has broken.
    #[error("the VMM has not answered: {0}; it may have ended meanwhile")]
    Broken(io::Error),
    /// What came is no answer.
    #[error("the VMM's answer is not what this program expects; is it of another version?")]
    NoAnswer,
    /// The VMM refuses.
    #[error("{message}; {mend}")]
    Refused {
        /// For programs.
        code: String,
        /// What is wrong.
        message: String,
        /// What to do about it.
        mend: String,
    },
}

/// A connection to a running VMM.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let connect = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(LIMIT))?;
            Ok(BufReader::new(stream))
        };
        match connect() {
            Ok(stream) => Ok(Self { stream }),
            Err(reason) => Err(ClientError::Connect {
                path: path.to_owned(),
                reason,
            }),
        }
    }

    /// Asks, and waits for the answer: what is in its `ok`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn ask(&mut self, request: Request) -> Result<Value, ClientError> {
        self.ask_with(request, None)
    }

    /// Asks, and sends a file's descriptor along.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn ask_with(
        &mut self,
        request: Request,
        file: Option<&File>,
    ) -> Result<Value, ClientError> {
        let line = serde_json::to_string(&request).map_err(|_| ClientError::NoAnswer)?;
        let mut answer = String::new();
        let sent = match file {
            None => self
                .stream
                .get_mut()
                .write_all(format!("{line}\n").as_bytes()),
            Some(file) => {
                let stream = self.stream.get_ref();
                stream.set_read_timeout(None).map_err(ClientError::Broken)?;
                // The line is short: it goes whole.
                let sent = stream.send_with_fd(format!("{line}\n").as_bytes(), file.as_raw_fd());
                sent.map(drop)
                    .map_err(|e| io::Error::from_raw_os_error(e.errno()))
            }
        };
        sent.and_then(|()| self.stream.read_line(&mut answer))
            .map_err(ClientError::Broken)?;
        if answer.is_empty() {
            return Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut answer: Value = serde_json::from_str(&answer).map_err(|_| ClientError::NoAnswer)?;
        if let Some(ok) = answer.get_mut("ok") {
            return Ok(ok.take());
        }
        let text = |field: &str| {
            let text = answer["error"][field].as_str();
            text.map(str::to_owned).ok_or(ClientError::NoAnswer)
        };
        Err(ClientError::Refused {
            code: text("code")?,
            message: text("message")?,
            mend: text("mend")?,
        })
    }
}
