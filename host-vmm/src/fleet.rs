//! `paravane run --file`: several guests at once on one host, each a process of its own.
//!
//! # How it works
//!
//! The file has a table for each guest: its name, what follows its end, and any option of `paravane run`. Each guest is
//! run by a child, `paravane run` with these options: what one guest does to its VMM, no other sees. [`processes`] starts
//! the children, restarts those that are to be, and tells what they print; [`panes`] shows each guest in a pane of the
//! terminal and types into one of them; [`plain`] prints lines with the guests' names before them where there is no
//! terminal.

mod file;
mod panes;
mod plain;
mod processes;

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use file::{Fleet, Guest, Restart};
pub use processes::{Event, Processes, Record};

/// Why a fleet cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The file cannot be read.
    #[error("the fleet's file `{}` cannot be read: {reason}; `paravane run --help` says what is in it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// The file is not a fleet.
    #[error("`{}` is not a fleet: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A guest cannot be started.
    #[error("guest {name} cannot be started: {reason}")]
    Start {
        /// Which.
        name: String,
        /// What the system says.
        reason: io::Error,
    },
    /// The terminal, or the standard output.
    #[error("the terminal cannot be used: {0}")]
    Terminal(#[from] io::Error),
}

/// How often ends are looked for, and panes drawn.
const INTERVAL: Duration = Duration::from_millis(50);

/// What shows a fleet.
trait View {
    /// Something has happened.
    fn event(&mut self, event: &Event) -> io::Result<()>;
    /// Time has passed; the user's keys are looked at. Returns whether all is to end.
    fn pass(&mut self, processes: &mut Processes) -> io::Result<bool>;
}

/// Runs the fleet until every guest has ended for good, or the user or a signal ends it. Returns what became of each.
///
/// # Errors
///
/// [`FleetError::Start`], [`FleetError::Terminal`].
pub fn run(fleet: &Fleet, program: &Path) -> Result<Vec<Record>, FleetError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let mut processes = Processes::start(fleet, program)?;
    let mut view: Box<dyn View> = if io::stdout().is_terminal() && io::stdin().is_terminal() {
        Box::new(panes::Panes::open(fleet)?)
    } else {
        Box::new(plain::Plain::new(fleet))
    };
    while processes.are_running() && !stop.load(Ordering::Relaxed) {
        for event in processes.events(INTERVAL)? {
            view.event(&event)?;
        }
        if view.pass(&mut processes)? {
            break;
        }
    }
    processes.end();
    for event in processes.events(Duration::ZERO)? {
        view.event(&event)?;
    }
    drop(view);
    Ok(processes.records())
}
