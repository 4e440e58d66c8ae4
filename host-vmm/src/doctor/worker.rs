//! Probes in a process of their own, so that a KVM that hangs does not hang us.
//!
//! # How it works
//!
//! `paravane doctor --worker 3,4,5` runs the jobs of these numbers, one after the other, and writes
//! one line of JSON for each to its standard output. The process that started it waits a limited
//! time for each line; if none comes, it kills the worker, notes that the job hangs, and starts
//! another worker with the jobs that are left.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use super::host::Host;
use super::probe::{self, Finished, Outcome};
use super::probes::{CROSSINGS, INSTRUCTIONS};

/// How long one instruction may take; a software KVM needs less than a millisecond.
const INSTRUCTION_DEADLINE: Duration = Duration::from_millis(500);
/// How long the repetitions of one crossing may take.
const CROSSING_DEADLINE: Duration = Duration::from_millis(1500);
/// How much longer than a deadline the worker may take to say so.
const GRACE: Duration = Duration::from_millis(1500);
/// How many silent jobs get a second chance: a busy host can be slow, but must not make us slow.
const SECOND_CHANCES: usize = 2;

/// The worker cannot be had.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// It does not start.
    #[error("the probe process cannot be started: {0}")]
    Start(io::Error),
    /// It ends with jobs left, and again.
    #[error("the probe process ends at once; run `paravane doctor --worker 0` to see why")]
    Useless,
    /// Its line cannot be written.
    #[error("a probe's result cannot be written")]
    Write(#[from] io::Error),
}

/// Jobs are numbered: first the instructions, then the crossings.
fn run_job(job: usize, host: &Host) -> Finished {
    let refused = || {
        Outcome::NotProbed {
            why: "would spin in the host kernel: no VMX or SVM".to_owned(),
        }
        .into()
    };
    if let Some(instruction) = INSTRUCTIONS.get(job) {
        if instruction.hardware_only && !host.may_vmcall() {
            return refused();
        }
        return probe::run(instruction.setup, 1, deadline(job));
    }
    match job
        .checked_sub(INSTRUCTIONS.len())
        .and_then(|index| CROSSINGS.get(index))
    {
        Some(crossing) if crossing.hardware_only && !host.may_vmcall() => refused(),
        // One batch more: the first one warms up.
        Some(crossing) => probe::run(crossing.setup, crossing.batches + 2, CROSSING_DEADLINE),
        None => Outcome::NotProbed {
            why: format!("there is no job {job}"),
        }
        .into(),
    }
}

/// The worker's side.
///
/// # Errors
///
/// When nobody reads the results.
pub fn work(jobs: &[usize]) -> Result<(), WorkerError> {
    let host = Host::examine(true);
    for job in jobs {
        let finished = run_job(*job, &host);
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &finished).map_err(io::Error::from)?;
        writeln!(out)?;
        out.flush()?;
        if finished.outcome == (Outcome::Hang { killed: true }) {
            // A thread is stuck in the kernel; the other side goes on with a new process.
            std::process::exit(1);
        }
    }
    Ok(())
}

/// The other side: runs all `jobs` and gives their results in order.
///
/// # Errors
///
/// When no worker can be started, or workers end without a result.
pub fn employ(jobs: &[usize]) -> Result<Vec<Finished>, WorkerError> {
    let mut results = Vec::with_capacity(jobs.len());
    let mut suspects = Vec::new();
    while results.len() < jobs.len() {
        let before = results.len();
        let (mut child, lines) = start(&jobs[before..])?;
        let mut silent = false;
        while let Some(job) = jobs.get(results.len()) {
            match lines.recv_timeout(deadline(*job) + GRACE) {
                Ok(finished) => results.push(finished),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    silent = true;
                    break;
                }
            }
        }
        // Killing may fail when it has ended by itself. One that is stuck in the kernel is not
        // waited for: that could take for ever.
        let _ = child.kill();
        if silent {
            let job = results.len();
            if suspects.contains(&job) || suspects.len() >= SECOND_CHANCES {
                results.push(Outcome::Hang { killed: true }.into());
            } else {
                suspects.push(job);
            }
        } else {
            let _ = child.wait();
            if results.len() == before {
                return Err(WorkerError::Useless);
            }
        }
    }
    Ok(results)
}

/// How long a job may take in its worker.
fn deadline(job: usize) -> Duration {
    if job < INSTRUCTIONS.len() {
        INSTRUCTION_DEADLINE
    } else {
        CROSSING_DEADLINE
    }
}

/// Starts a worker and a thread that reads its lines.
fn start(jobs: &[usize]) -> Result<(Child, Receiver<Finished>), WorkerError> {
    let list: Vec<_> = jobs.iter().map(usize::to_string).collect();
    let mut child = std::env::current_exe()
        .and_then(|paravane| {
            Command::new(paravane)
                .args(["doctor", "--worker", &list.join(",")])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
        })
        .map_err(WorkerError::Start)?;
    let (sender, receiver) = mpsc::channel();
    let stdout = child.stdout.take();
    thread::spawn(move || {
        let lines = stdout
            .into_iter()
            .flat_map(|stdout| BufReader::new(stdout).lines());
        for line in lines.map_while(io::Result::ok) {
            let Ok(finished) = serde_json::from_str(&line) else {
                break;
            };
            if sender.send(finished).is_err() {
                break;
            }
        }
    });
    Ok((child, receiver))
}
