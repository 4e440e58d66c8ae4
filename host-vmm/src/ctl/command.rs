//! `paravane ctl`: the control socket by hand.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{Client, ClientError};
use super::{Power, Request};

/// How often `--wait` looks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Options of `paravane ctl`.
#[derive(Debug, Args)]
#[command(
    after_help = "The socket is made by `paravane run --ctl SOCKET`, and removed when that ends.\n\
    Programs can talk to it themselves: one JSON object a line, as in\n\
    \x20   echo '{\"command\":\"status\"}' | socat - UNIX-CONNECT:SOCKET\n\
    with {\"ok\": …} or {\"error\": {\"code\", \"message\", \"mend\"}} as the answer.\n\
    Exit status: 0 it was done; 1 it was not, and the message says why."
)]
pub struct CtlArgs {
    /// The control socket of a running VMM.
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Print the answer as the VMM gives it, one JSON object.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Tell what the machine is and does.
    Status,
    /// Tell what the run has cost so far: exits, calls, console bytes, milestones.
    Stats,
    /// Tell the same as metrics in text form (`OpenMetrics`), for a monitoring system.
    Metrics,
    /// Make every vCPU stand still; returns once they do.
    Pause,
    /// Let the vCPUs go on.
    Resume,
    /// Ask the guest to have so many processors on; a para guest starts and stops them itself.
    Cpus {
        /// How many; 0: as many as it likes.
        count: u8,
        /// Wait until so many are on, at most this many seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        wait: u64,
    },
    /// Let the guest do with less memory than it has; it keeps the rest from itself, for the host.
    Memory {
        /// MiB that it may use; as much as it was started with gives it all back.
        mib: u64,
    },
    /// Write memory and registers into a file, as an ELF core; the guest stands still meanwhile. Then: gdb VMLINUX FILE.
    Core {
        /// The file; it is replaced.
        file: PathBuf,
    },
    /// Write the whole machine into a file, from which any number of runs go on: paravane run --restore FILE. The guest stands
    /// still meanwhile, and goes on.
    ///
    /// Its disks are not in the file: pause the guest first, take the snapshot, copy the disks, resume. A guest that others serve (--io,
    /// --vsock, --port), one with a debugger, and one on an awkward host cannot be saved.
    Snapshot {
        /// The file; one that is there is replaced, and runs that use it keep it.
        file: PathBuf,
    },
    /// Press a button of the machine.
    Power {
        /// Which.
        #[arg(value_enum)]
        action: Power,
    },
}

/// Why a command has failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The VMM, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A guest that does not do what it was asked for, or is slow.
    #[error(
        "the guest has not {count} processor(s) on after {wait} s; its kernel may be busy, and `status` tells how many there are"
    )]
    NotFollowed {
        /// What was asked for.
        count: u8,
        /// Seconds.
        wait: u64,
    },
    /// The file of a core or snapshot.
    #[error("`{}` cannot be written: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// The terminal or file that the answer goes to.
    #[error("the answer cannot be written: {0}")]
    Output(#[from] io::Error),
}

/// Carries out `paravane ctl`.
///
/// # Errors
///
/// [`CtlError`].
pub fn run(args: &CtlArgs) -> Result<(), CtlError> {
    let mut client = Client::connect(&args.socket)?;
    let request = match &args.command {
        Command::Status => Request::Status {},
        Command::Stats => Request::Stats {},
        Command::Metrics => Request::Metrics {},
        Command::Pause => Request::Pause {},
        Command::Resume => Request::Resume {},
        Command::Cpus { count, .. } => Request::Cpus { count: *count },
        Command::Memory { mib } => Request::Memory { mib: *mib },
        Command::Core { .. } => Request::Core {},
        Command::Snapshot { .. } => Request::Snapshot {},
        Command::Power { action } => Request::Power { action: *action },
    };
    let file = match &args.command {
        Command::Core { file } => Some(create(file)?),
        Command::Snapshot { file } => Some(create(&unfinished(file))?),
        _ => None,
    };
    let mut answer = client.ask_with(request, file.as_ref()).inspect_err(|_| {
        if let Command::Snapshot { file } = &args.command {
            let _ = fs::remove_file(unfinished(file));
        }
    })?;
    if let Command::Snapshot { file } = &args.command {
        fs::rename(unfinished(file), file).map_err(cannot_write(file))?;
    }
    if let Command::Cpus { count, wait } = args.command {
        let deadline = Instant::now() + Duration::from_secs(wait);
        while !(count == 0 || wait == 0 || has_on(&answer, count)) {
            if Instant::now() >= deadline {
                return Err(CtlError::NotFollowed { count, wait });
            }
            std::thread::sleep(POLL_INTERVAL);
            answer = client.ask(Request::Status {})?;
        }
    }
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{answer}")?;
    } else if let Some(text) = answer["openmetrics"].as_str() {
        out.write_all(text.as_bytes())?;
    } else {
        rows(&mut out, "", &answer)?;
    }
    Ok(())
}

fn create(path: &Path) -> Result<File, CtlError> {
    File::create(path).map_err(cannot_write(path))
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> CtlError {
    let path = path.to_owned();
    move |reason| CtlError::File { path, reason }
}

/// The name of a snapshot until it is whole: one that runs go on from must not change.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// Whether a status has so many processors on.
fn has_on(status: &Value, count: u8) -> bool {
    let on = status["cpus_on"].as_array().map(Vec::len);
    on == Some(usize::from(count))
}

/// A line for each number or word of an answer, nested names one after the other.
fn rows(out: &mut impl Write, name: &str, value: &Value) -> io::Result<()> {
    let Value::Object(fields) = value else {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        return writeln!(out, "{name:<32} {text}");
    };
    for (field, value) in fields {
        let name = format!("{name} {field}");
        rows(out, name.trim_start(), value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_line_for_each_leaf() {
        let answer = serde_json::json!({"a": {"b": 1}, "c": "text", "d": [0, 1]});
        let mut out = Vec::new();
        rows(&mut out, "", &answer).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines,
            [vec!["a", "b", "1"], vec!["c", "text"], vec!["d", "[0,1]"]]
        );
    }
}
