//! The guests' processes.

use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Fleet, FleetError, Guest, Restart};

/// Something that has happened.
#[derive(Debug)]
pub enum Event {
    /// A guest, or its VMM, has printed something.
    Output {
        /// The guest's place in the file.
        guest: usize,
        /// As it came.
        bytes: Vec<u8>,
    },
    /// A guest has ended.
    Ended {
        /// The guest's place in the file.
        guest: usize,
        /// The exit status of its VMM; what none has, a signal ended.
        code: Option<i32>,
        /// Whether it will be started again.
        again: bool,
    },
}

/// What became of a guest.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Record {
    /// How it is called.
    pub name: String,
    /// How often it was started.
    pub starts: u32,
    /// How often it ended otherwise than by switching itself off.
    pub failures: u32,
    /// The last exit status of its VMM.
    pub code: Option<i32>,
}

/// Least time between two starts of a guest, and the most that is waited after many failures at once.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A guest that ran so long begins anew with the shortest pause.
const GOOD_RUN: Duration = Duration::from_secs(10);
/// What a VMM may take to end when it is told to.
const PATIENCE: Duration = Duration::from_secs(5);
/// Events that wait to be looked at, of at most [`PIECE`] bytes each. A guest that prints more waits, as at any other terminal.
const EVENTS_MAX: usize = 64;
/// Bytes that are read at once.
const PIECE: usize = 4096;

#[derive(Debug)]
struct One {
    guest: Guest,
    child: Option<Child>,
    /// Its standard input: a socket, since that need not block where nobody reads it.
    input: Option<UnixStream>,
    /// They forward what it prints.
    outputs: Vec<JoinHandle<()>>,
    record: Record,
    started: Instant,
    /// Since when its process has ended, where not all that it has printed has been forwarded.
    ended: Option<Instant>,
    /// When it is to be started again.
    due: Option<Instant>,
    pause: Duration,
}

/// All processes; they end with this.
#[derive(Debug)]
pub struct Processes {
    program: PathBuf,
    all: Vec<One>,
    sender: SyncSender<Event>,
    receiver: Receiver<Event>,
}

impl Processes {
    /// Starts every guest.
    ///
    /// # Errors
    ///
    /// [`FleetError::Start`].
    pub fn start(fleet: &Fleet, program: &Path) -> Result<Self, FleetError> {
        let (sender, receiver) = sync_channel(EVENTS_MAX);
        let one = |guest: &Guest| One {
            record: Record {
                name: guest.name.clone(),
                starts: 0,
                failures: 0,
                code: None,
            },
            guest: guest.clone(),
            child: None,
            input: None,
            outputs: Vec::new(),
            started: Instant::now(),
            ended: None,
            due: None,
            pause: PAUSE,
        };
        let mut processes = Self {
            program: program.to_path_buf(),
            all: fleet.guests.iter().map(one).collect(),
            sender,
            receiver,
        };
        for index in 0..processes.all.len() {
            processes.launch(index)?;
        }
        Ok(processes)
    }

    fn launch(&mut self, index: usize) -> Result<(), FleetError> {
        let Some(one) = self.all.get_mut(index) else {
            return Ok(());
        };
        let failed = |reason| FleetError::Start {
            name: one.guest.name.clone(),
            reason,
        };
        let arguments = one.guest.arguments().map_err(io::Error::other);
        let (input, keys) = UnixStream::pair().map_err(failed)?;
        input.set_nonblocking(true).map_err(failed)?;
        let mut child = Command::new(&self.program)
            .args(arguments.map_err(failed)?)
            .stdin(OwnedFd::from(keys))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        one.input = Some(input);
        let output = child
            .stdout
            .take()
            .map(|output| forward(index, output, self.sender.clone()));
        let errors = child
            .stderr
            .take()
            .map(|errors| forward(index, errors, self.sender.clone()));
        one.outputs = output.into_iter().chain(errors).collect();
        one.child = Some(child);
        one.record.starts += 1;
        one.started = Instant::now();
        one.due = None;
        Ok(())
    }

    /// Whether a guest runs, or is to run again.
    #[must_use]
    pub fn are_running(&self) -> bool {
        self.all
            .iter()
            .any(|one| one.child.is_some() || one.due.is_some())
    }

    /// What has happened; waits for at most so long. Starts what is to be started again.
    ///
    /// # Errors
    ///
    /// [`FleetError::Start`].
    pub fn events(&mut self, wait: Duration) -> Result<Vec<Event>, FleetError> {
        // This holds a sender itself, so that an error is but a timeout.
        let mut events: Vec<_> = self.receiver.recv_timeout(wait).into_iter().collect();
        let ended: Vec<_> = self.all.iter_mut().map(One::ended).collect();
        // Whoever has ended has said all by then, and no more can wait.
        events.extend(self.receiver.try_iter().take(EVENTS_MAX));
        let now = Instant::now();
        let mut due = Vec::new();
        for (guest, (one, ended)) in self.all.iter_mut().zip(ended).enumerate() {
            if let Some(status) = ended {
                let (code, again) = (status.code(), one.follow(status, now));
                events.push(Event::Ended { guest, code, again });
            }
            if one.due.is_some_and(|due| due <= now) {
                due.push(guest);
            }
        }
        for index in due {
            self.launch(index)?;
        }
        Ok(events)
    }

    /// Types into a guest's console. Returns whether it has room for all; what it has none for is lost. A guest that has
    /// gone reads nothing.
    pub fn input(&mut self, guest: usize, bytes: &[u8]) -> bool {
        let Some(one) = self.all.get_mut(guest) else {
            return true;
        };
        match one.input.as_mut().map(|input| input.write_all(bytes)) {
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => false,
            Some(Err(_)) => {
                one.input = None;
                true
            }
            _ => true,
        }
    }

    /// Ends a guest; what its file says about its end follows.
    pub fn kill(&mut self, guest: usize) {
        if let Some(one) = self.all.get(guest) {
            one.terminate();
        }
    }

    /// Ends all of them, for good.
    pub fn end(&mut self) {
        for one in &mut self.all {
            one.due = None;
            one.terminate();
        }
        let until = Instant::now() + PATIENCE;
        for one in &mut self.all {
            while let Some(child) = &mut one.child {
                match child.try_wait() {
                    Ok(Some(status)) => {
                        one.record.code = status.code();
                        one.child = None;
                    }
                    Ok(None) if Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    _ => {
                        // It has had its time; both fail only when it has just ended.
                        let _ = child.kill();
                        let _ = child.wait();
                        one.child = None;
                    }
                }
            }
        }
    }

    /// What became of each.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.all.iter().map(|one| one.record.clone()).collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.end();
    }
}

impl One {
    /// How it has ended, once all that it has printed has been forwarded; a process that it has left behind may have its output, too.
    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        let since = *self.ended.get_or_insert_with(Instant::now);
        if !self.outputs.iter().all(JoinHandle::is_finished) && since.elapsed() < PATIENCE {
            return None;
        }
        self.ended = None;
        self.child = None;
        self.input = None;
        Some(status)
    }

    /// Asks it to end.
    fn terminate(&self) {
        let child = self.child.as_ref().filter(|_| self.ended.is_none());
        if let Some(Ok(pid)) = child.map(|child| libc::pid_t::try_from(child.id())) {
            // SAFETY: kill takes no pointer, and the child has not been waited for, so the number is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }

    /// Notes how it has ended; whether it is started again.
    fn follow(&mut self, status: ExitStatus, now: Instant) -> bool {
        self.record.code = status.code();
        if !status.success() {
            self.record.failures += 1;
        }
        let again = match self.guest.restart {
            Restart::Never => false,
            Restart::OnFailure => !status.success(),
            Restart::Always => true,
        };
        if !again || self.record.starts > self.guest.restarts {
            return false;
        }
        if now.duration_since(self.started) >= GOOD_RUN {
            self.pause = PAUSE;
        }
        self.due = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        true
    }
}

/// Sends what comes out of a guest until it ends.
fn forward(
    guest: usize,
    mut from: impl Read + Send + 'static,
    to: SyncSender<Event>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; PIECE];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    let bytes = buffer.get(..count).unwrap_or_default().to_vec();
                    if to.send(Event::Output { guest, bytes }).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    /// Starts a fleet of one guest, whose VMM is this script.
    fn fleet_of(folder: &TempDir, script: &str) -> impl Fn() -> Processes + use<> {
        let program = folder.as_path().join("vmm");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let fleet = Fleet::parse("[[guest]]\nname = \"a\"\n").unwrap();
        move || Processes::start(&fleet, &program).unwrap()
    }

    /// A VMM whose guest is paused reads no more than it can keep.
    #[test]
    fn a_guest_that_does_not_read_holds_nobody_up_and_gets_what_there_was_room_for() {
        let folder = TempDir::new().unwrap();
        let reads = folder.as_path().join("reads");
        let wait = format!("until [ -e {} ]; do sleep 0.01; done", reads.display());
        let mut processes = fleet_of(&folder, &format!("{wait}; exec cat"))();
        let pasted = [b'k'; 4096];
        let taken = (0..1000)
            .take_while(|_| processes.input(0, &pasted))
            .count();
        assert!((1..1000).contains(&taken), "{taken}");
        fs::write(reads, "").unwrap();
        let mut printed = 0;
        while printed < taken * pasted.len() {
            for event in processes.events(Duration::from_millis(1)).unwrap() {
                match event {
                    Event::Output { bytes, .. } => printed += bytes.len(),
                    Event::Ended { .. } => panic!("it has ended after {printed} bytes"),
                }
            }
        }
        assert!(processes.input(0, &pasted), "it reads again");
    }

    #[test]
    fn a_guest_that_prints_without_end_is_held_up() {
        let folder = TempDir::new().unwrap();
        let mut processes = fleet_of(&folder, "exec yes")();
        for _ in 0..10 {
            // Whoever looks is slow.
            std::thread::sleep(Duration::from_millis(20));
            let events = processes.events(Duration::from_secs(1)).unwrap();
            assert!((1..=EVENTS_MAX + 1).contains(&events.len()));
        }
        processes.end();
    }

    #[test]
    fn what_a_guest_prints_comes_whole_and_before_its_end() {
        const BYTES: usize = 300_000;
        let folder = TempDir::new().unwrap();
        let start = fleet_of(&folder, &format!("head -c {BYTES} /dev/zero"));
        for _ in 0..50 {
            let mut processes = start();
            let mut printed = 0;
            while processes.are_running() {
                for event in processes.events(Duration::from_millis(1)).unwrap() {
                    match event {
                        Event::Output { bytes, .. } => printed += bytes.len(),
                        Event::Ended { .. } => assert_eq!(printed, BYTES),
                    }
                }
            }
        }
    }
}
