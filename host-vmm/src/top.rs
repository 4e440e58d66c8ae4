//! `paravane top` and `paravane duel`: what guests do, as they do it.
//!
//! # How it works
//!
//! Every guest is asked over its control socket for its status and its counters, at an interval; what is shown is the
//! difference of two [`Snapshot`]s. A snapshot is a JSON line, so that what was seen can be kept (`--record`) and be seen
//! again (`--replay`). `duel` starts a full and a para guest by itself and shows both, with the last lines of their
//! consoles.

mod duel;
mod rates;
mod view;

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ctl::Request;
use crate::ctl::client::{Client, ClientError};

pub use duel::{DuelArgs, duel};

/// Options of `paravane top`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The sockets are made by `paravane run --ctl SOCKET`. q or Ctrl-C leaves. Where the output is no terminal, one \
    table is printed for each interval, `--count` of them.\n\
    Example: paravane run --guest para --ctl /tmp/para.sock … & paravane top /tmp/para.sock"
)]
pub struct TopArgs {
    /// Control sockets of running VMMs.
    #[arg(value_name = "SOCKET", required_unless_present = "replay")]
    sockets: Vec<PathBuf>,
    /// Milliseconds between two looks.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..))]
    interval: u64,
    /// End after so many looks.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Keep what is seen in this file.
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    record: Option<PathBuf>,
    /// Show again what `--record` has kept.
    #[arg(long, value_name = "FILE", conflicts_with = "sockets")]
    replay: Option<PathBuf>,
}

/// Why the view cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// A VMM, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file that is written or read.
    #[error("`{path}` cannot be used: {source}")]
    File {
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// A recorded line.
    #[error("line {line} of `{path}` is not a snapshot; `paravane top --record` writes them")]
    NotASnapshot {
        /// The file.
        path: String,
        /// The line.
        line: usize,
    },
    /// The terminal.
    #[error("the terminal cannot be drawn on: {0}")]
    Terminal(#[from] io::Error),
    /// A guest of the duel.
    #[error("the {guest} guest has ended: {reason}")]
    Guest {
        /// Which.
        guest: String,
        /// What was left of it.
        reason: String,
    },
}

/// What one guest said at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestSnapshot {
    /// How it is called.
    pub name: String,
    /// The answer to `status`.
    pub status: Value,
    /// The answer to `stats`.
    pub stats: Value,
    /// The last lines of its console, where they are known.
    #[serde(default)]
    pub console: Vec<String>,
}

/// What all guests said at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Milliseconds since the first one.
    pub t_ms: u64,
    /// The guests.
    pub guests: Vec<GuestSnapshot>,
}

/// Where snapshots come from; `None` is the end.
trait Source {
    fn next(&mut self) -> Result<Option<Snapshot>, TopError>;
}

/// Running VMMs.
struct Live {
    guests: Vec<(String, PathBuf)>,
    began: Instant,
}

impl Live {
    fn new(sockets: &[PathBuf]) -> Self {
        let name = |path: &PathBuf| {
            let stem = path.file_stem().unwrap_or(path.as_os_str());
            (stem.to_string_lossy().into_owned(), path.clone())
        };
        Self {
            guests: sockets.iter().map(name).collect(),
            began: Instant::now(),
        }
    }
}

/// Asks one VMM.
fn ask(name: &str, socket: &Path) -> Result<GuestSnapshot, ClientError> {
    let mut client = Client::connect(socket)?;
    Ok(GuestSnapshot {
        name: name.to_owned(),
        status: client.ask(Request::Status {})?,
        stats: client.ask(Request::Stats {})?,
        console: Vec::new(),
    })
}

impl Source for Live {
    fn next(&mut self) -> Result<Option<Snapshot>, TopError> {
        let mut guests = Vec::new();
        for (name, socket) in &self.guests {
            match ask(name, socket) {
                Ok(guest) => guests.push(guest),
                // One that has ended is shown no more; the first look must find them all.
                Err(error) if self.began.elapsed() < Duration::from_millis(50) => {
                    return Err(error.into());
                }
                Err(_) => {}
            }
        }
        let t_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok((!guests.is_empty()).then_some(Snapshot { t_ms, guests }))
    }
}

/// A recorded run.
struct Replay {
    path: String,
    lines: io::Lines<BufReader<File>>,
    line: usize,
}

impl Replay {
    fn open(path: &Path) -> Result<Self, TopError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| TopError::File {
            path: name.clone(),
            source,
        })?;
        Ok(Self {
            path: name,
            lines: BufReader::new(file).lines(),
            line: 0,
        })
    }
}

impl Source for Replay {
    fn next(&mut self) -> Result<Option<Snapshot>, TopError> {
        let Some(line) = self.lines.next() else {
            return Ok(None);
        };
        self.line += 1;
        let wrong = || TopError::NotASnapshot {
            path: self.path.clone(),
            line: self.line,
        };
        let line = line.map_err(|_| wrong())?;
        serde_json::from_str(&line).map(Some).map_err(|_| wrong())
    }
}

/// Runs `paravane top`.
///
/// # Errors
///
/// [`TopError`].
pub fn run(args: &TopArgs) -> Result<(), TopError> {
    let mut record = args.record.as_deref().map(Record::create).transpose()?;
    let pace = Pace {
        interval: Duration::from_millis(args.interval),
        count: args.count,
    };
    match &args.replay {
        Some(path) => show(&mut Replay::open(path)?, pace, None),
        None => show(&mut Live::new(&args.sockets), pace, record.as_mut()),
    }
}

/// The file that snapshots are kept in.
struct Record {
    path: String,
    file: File,
}

impl Record {
    fn create(path: &Path) -> Result<Self, TopError> {
        let name = path.display().to_string();
        match File::create(path) {
            Ok(file) => Ok(Self { path: name, file }),
            Err(source) => Err(TopError::File { path: name, source }),
        }
    }

    fn keep(&mut self, snapshot: &Snapshot) -> Result<(), TopError> {
        let line = serde_json::to_string(snapshot).unwrap_or_default();
        writeln!(self.file, "{line}").map_err(|source| TopError::File {
            path: self.path.clone(),
            source,
        })
    }
}

/// How often, and how many times.
#[derive(Clone, Copy)]
struct Pace {
    interval: Duration,
    count: Option<u64>,
}

/// Shows what the source says until it or the user ends.
fn show(
    source: &mut dyn Source,
    pace: Pace,
    mut record: Option<&mut Record>,
) -> Result<(), TopError> {
    let mut screen = if io::stdout().is_terminal() {
        Some(view::Screen::open()?)
    } else {
        None
    };
    let mut before: Option<Snapshot> = None;
    let mut looks = 0;
    while let Some(now) = source.next()? {
        if let Some(record) = record.as_mut() {
            record.keep(&now)?;
        }
        let rows = rates::rows(before.as_ref(), &now);
        match &mut screen {
            Some(screen) => screen.draw(&now, &rows)?,
            None => print!("{}", view::text(&now, &rows)),
        }
        before = Some(now);
        looks += 1;
        if pace.count.is_some_and(|count| looks >= count) {
            break;
        }
        let left = match &mut screen {
            Some(screen) => screen.wait(pace.interval)?,
            None => {
                std::thread::sleep(pace.interval);
                false
            }
        };
        if left {
            break;
        }
    }
    Ok(())
}
