//! One run: boot L1, start the command, carry its streams, learn its exit code.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crate::appliance::{Appliance, ApplianceError};
use crate::command::{Command, Input};
use crate::machine::{Machine, Ports};
use crate::streams::{pump_input, pump_output};
use crate::sys::SignalGuard;

/// How often the run looks whether a signal came or a program of the machine died.
const TICK: Duration = Duration::from_millis(100);

/// What a command that ran to its end did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its exit code, as a shell has it: 128 + N when signal N ended it, 127 when there is no such program.
    pub code: i32,
    /// From the start of QEMU to the start of the command.
    pub boot: Duration,
    /// From the start of the command to its end, files written back.
    pub command: Duration,
}

impl Finished {
    /// Whether the exit code is 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == 0
    }
}

/// Why the command's exit code is not known.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no appliance.
    #[error(transparent)]
    Appliance(#[from] ApplianceError),
    /// A program that the machine is made of is not installed.
    #[error("{program} is not installed; run `ci/setup`, or install Debian's qemu-system-x86")]
    MissingProgram {
        /// The program.
        program: &'static str,
    },
    /// Something could not be set up on the outer side.
    #[error("the reference host cannot be started: {what}")]
    Start {
        /// What could not be set up.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The reference host never said that it is up.
    #[error(
        "the reference host did not boot within {} s; its last messages:{log}",
        limit.as_secs()
    )]
    BootTimeout {
        /// The limit.
        limit: Duration,
        /// The logs' last lines.
        log: String,
    },
    /// The command ran for too long.
    #[error(
        "the command ran for more than {} s on the reference host and was ended; the host's last messages:{log}",
        limit.as_secs()
    )]
    Timeout {
        /// The limit.
        limit: Duration,
        /// The logs' last lines.
        log: String,
    },
    /// The machine ended before the command did: L1 panicked, or QEMU failed.
    #[error(
        "the reference host died ({program}: {status}) before the command ended; its last messages:{log}"
    )]
    Died {
        /// The program that ended.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The logs' last lines.
        log: String,
    },
    /// L1 is up but cannot run commands.
    #[error("the reference host cannot run the command: {reason}; its last messages:{log}")]
    Refused {
        /// What L1's init said.
        reason: String,
        /// The logs' last lines.
        log: String,
    },
    /// The command ended, but not all that it printed arrived.
    #[error("the command's {stream} was cut on its way out of the reference host")]
    Cut {
        /// The stream.
        stream: &'static str,
    },
    /// A stream could not be passed on.
    #[error("the command's {stream} cannot be passed on")]
    Stream {
        /// The stream.
        stream: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// Ctrl-C, or a signal like it.
    #[error("interrupted by signal {signal}; the reference host was ended")]
    Interrupted {
        /// The signal.
        signal: i32,
    },
}

/// What the threads tell the run.
enum Event {
    /// A line of the control port.
    Control(String),
    /// A stream ended: whether it is whole.
    Ended(&'static str, io::Result<bool>),
}

pub(crate) fn run(mut command: Command) -> Result<Finished, RunError> {
    let appliance = match command.appliance.take() {
        Some(appliance) => appliance,
        None => Appliance::find()?,
    };
    let signals = SignalGuard::new();
    match once(&mut command, &appliance, &signals) {
        // Seen once in some eighty starts. Nothing of the command has run, and no input of its was taken.
        Err(RunError::BootTimeout { limit, .. }) if matches!(command.input, Input::Null) => {
            let limit = limit.as_secs();
            eprintln!("the reference host did not boot within {limit} s, and is started again");
            once(&mut command, &appliance, &signals)
        }
        result => result,
    }
}

fn once(
    command: &mut Command,
    appliance: &Appliance,
    signals: &SignalGuard,
) -> Result<Finished, RunError> {
    let start = |what: &'static str| move |source| RunError::Start { what, source };
    let folder = tempfile::Builder::new()
        .prefix("paravane-reference-")
        .tempdir()
        .map_err(start("a temporary folder"))?;
    fs::write(folder.path().join("command"), command.script())
        .map_err(start("the command's script"))?;
    let token = token().map_err(start("random bytes"))?;

    let started = Instant::now();
    let (mut machine, ports) = Machine::start(
        appliance,
        command.memory_mib,
        command.counted,
        folder.path(),
    )?;

    let input = match &command.input {
        Input::Null => None,
        Input::Inherit => Some(io::stdin().as_fd().try_clone_to_owned()),
        Input::File(file) => Some(file.as_fd().try_clone_to_owned()),
    };
    let input = input.transpose().map_err(start("the command's input"))?;
    let mut greeting = folder.path().as_os_str().as_bytes().to_vec();
    greeting.extend_from_slice(format!("\n{token}\n").as_bytes());
    greeting.extend_from_slice(if input.is_some() {
        b"input\n"
    } else {
        b"no-input\n"
    });
    (&ports.control)
        .write_all(&greeting)
        .map_err(start("the control port"))?;

    let (stop, stopped) = UnixStream::pair().map_err(start("a pipe"))?;
    let (events, inbox) = channel();
    let Ports {
        input: input_port,
        output,
        errors,
        control,
    } = &ports;
    let (sink, error_sink) = (&mut command.output, &mut command.errors);
    let watch = Watch {
        signals,
        inbox,
        started,
        boot_limit: command.boot_timeout,
        limit: command.timeout,
    };
    let on_start = &mut command.on_start;
    thread::scope(|scope| {
        pump(scope, events.clone(), "output", &token, output, sink);
        pump(scope, events.clone(), "errors", &token, errors, error_sink);
        scope.spawn(move || read_control(control, &events));
        if let Some(input) = &input {
            // A caller whose input fails sees an early end of file; a machine that is gone needs no input.
            scope.spawn(move || pump_input(input.as_fd(), input_port, &stopped));
        }
        let result = watch.finish(&mut machine, on_start);
        // Ends every thread: QEMU's ends of the ports close, and the input's wait is woken.
        machine.stop();
        drop(stop);
        result
    })
}

fn pump<'scope>(
    scope: &'scope Scope<'scope, '_>,
    events: Sender<Event>,
    stream: &'static str,
    token: &'scope str,
    port: &'scope UnixStream,
    sink: &'scope mut crate::Sink,
) {
    scope.spawn(move || {
        let result = pump_output(port, sink, token.as_bytes());
        // The receiver is gone when the run failed already.
        let _ = events.send(Event::Ended(stream, result));
    });
}

fn read_control(control: &UnixStream, events: &Sender<Event>) {
    for line in BufReader::new(control).lines() {
        let Ok(line) = line else { return };
        if events.send(Event::Control(line)).is_err() {
            return;
        }
    }
}

/// The main thread's part: everything that can end a run.
struct Watch<'a> {
    signals: &'a SignalGuard,
    inbox: Receiver<Event>,
    started: Instant,
    boot_limit: Duration,
    limit: Option<Duration>,
}

impl Watch<'_> {
    fn finish(
        self,
        machine: &mut Machine,
        on_start: &mut Option<Box<dyn FnOnce() + Send>>,
    ) -> Result<Finished, RunError> {
        let mut ready: Option<Instant> = None;
        let mut ended: Option<(i32, Instant)> = None;
        let mut streams = 0;
        loop {
            if let (2, Some(ready), Some((code, at))) = (streams, ready, ended) {
                return Ok(Finished {
                    code,
                    boot: ready - self.started,
                    command: at - ready,
                });
            }
            let event = match self.inbox.recv_timeout(TICK) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    self.check(machine, ready)?;
                    continue;
                }
            };
            match event {
                Event::Control(line) => match line.split_once(' ').unwrap_or((&line, "")) {
                    ("ready", _) => {
                        ready = Some(Instant::now());
                        if let Some(hook) = on_start.take() {
                            hook();
                        }
                    }
                    ("status", code) if let Ok(code) = code.parse() => {
                        ended = Some((code, Instant::now()));
                    }
                    (_, reason) => {
                        return Err(RunError::Refused {
                            reason: reason.into(),
                            log: machine.log_tail(),
                        });
                    }
                },
                Event::Ended(_, Ok(true)) => streams += 1,
                Event::Ended(stream, Ok(false)) => {
                    // The port closed: say why if the machine is gone.
                    thread::sleep(TICK);
                    self.check(machine, ready)?;
                    return Err(RunError::Cut { stream });
                }
                Event::Ended(stream, Err(source)) => {
                    return Err(RunError::Stream { stream, source });
                }
            }
            self.check(machine, ready)?;
        }
    }

    fn check(&self, machine: &mut Machine, ready: Option<Instant>) -> Result<(), RunError> {
        if let Some(signal) = self.signals.pending() {
            return Err(RunError::Interrupted { signal });
        }
        let ended = machine.ended().map_err(|source| RunError::Start {
            what: "its programs cannot be watched",
            source,
        })?;
        if let Some((program, status)) = ended {
            return Err(RunError::Died {
                program,
                status,
                log: machine.log_tail(),
            });
        }
        match ready {
            None if self.started.elapsed() > self.boot_limit => Err(RunError::BootTimeout {
                limit: self.boot_limit,
                log: machine.log_tail(),
            }),
            Some(ready)
                if let Some(limit) = self.limit
                    && ready.elapsed() > limit =>
            {
                Err(RunError::Timeout {
                    limit,
                    log: machine.log_tail(),
                })
            }
            _ => Ok(()),
        }
    }
}

/// A word that no command prints by chance.
fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(format!("<end-{:032x}>", u128::from_ne_bytes(bytes)))
}
