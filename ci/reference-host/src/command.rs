//! What to run inside: the command line, its surroundings and its streams.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::appliance::Appliance;
use crate::run::{Finished, RunError, run};

/// The variable that is set in the environment of every command on the reference host.
const INSIDE: &str = "PARAVANE_REFERENCE_HOST";

/// Its value where time is counted.
const COUNTED: &str = "counted";

/// Whether this process runs on the reference host, and time is [counted](Command::counted) there.
#[must_use]
pub fn is_counted() -> bool {
    env::var_os(INSIDE).is_some_and(|value| value == COUNTED)
}

/// Whether this process runs on the reference host: it must not start another one in there.
#[must_use]
pub fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Where the command's output or errors go while it runs.
pub type Sink = Box<dyn Write + Send>;

/// Where the command's input comes from.
#[derive(Debug, Default)]
pub enum Input {
    /// Nothing: the command reads an empty input.
    #[default]
    Null,
    /// This process's own standard input. A terminal stays in the mode it is in: see [`Command::on_start`].
    Inherit,
    /// An open file, pipe or terminal.
    File(File),
}

/// A command to run on the reference host.
///
/// It starts from the caller's working folder and environment, with no input, and with output and errors passed on to
/// the caller's.
pub struct Command {
    pub(crate) arguments: Vec<OsString>,
    pub(crate) folder: PathBuf,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) input: Input,
    pub(crate) output: Sink,
    pub(crate) errors: Sink,
    pub(crate) on_start: Option<Box<dyn FnOnce() + Send>>,
    pub(crate) boot_timeout: Duration,
    pub(crate) timeout: Option<Duration>,
    pub(crate) memory_mib: u32,
    pub(crate) counted: bool,
    pub(crate) appliance: Option<Appliance>,
}

impl Command {
    /// A command line: the program (a path, or a name looked up in `PATH`) and its arguments.
    ///
    /// # Errors
    ///
    /// When the working folder cannot be known.
    pub fn new<I, S>(arguments: I) -> io::Result<Self>
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        Ok(Self {
            arguments: arguments.into_iter().map(Into::into).collect(),
            folder: env::current_dir()?,
            environment: env::vars_os().collect(),
            input: Input::Null,
            output: Box::new(io::stdout()),
            errors: Box::new(io::stderr()),
            on_start: None,
            boot_timeout: Duration::from_secs(60),
            timeout: None,
            memory_mib: 2048,
            counted: false,
            appliance: None,
        })
    }

    /// The running program itself, with the arguments it was started with.
    ///
    /// # Errors
    ///
    /// When the program's own path or the working folder cannot be known.
    pub fn this_process() -> io::Result<Self> {
        let program = env::current_exe()?.into_os_string();
        Self::new(std::iter::once(program).chain(env::args_os().skip(1)))
    }

    /// Appends an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets a variable of the command's environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl Into<OsString>) -> Self {
        self.environment.retain(|(known, _)| known != name.as_ref());
        self.environment
            .push((name.as_ref().to_os_string(), value.into()));
        self
    }

    /// Sets the working folder.
    #[must_use]
    pub fn current_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// Sets where the input comes from.
    #[must_use]
    pub fn stdin(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Sets where the output goes.
    #[must_use]
    pub fn stdout(mut self, sink: impl Write + Send + 'static) -> Self {
        self.output = Box::new(sink);
        self
    }

    /// Sets where the errors go.
    #[must_use]
    pub fn stderr(mut self, sink: impl Write + Send + 'static) -> Self {
        self.errors = Box::new(sink);
        self
    }

    /// Calls `hook` when L1 is up and the command begins: the moment to make a terminal raw, or to take a spinner away.
    #[must_use]
    pub fn on_start(mut self, hook: impl FnOnce() + Send + 'static) -> Self {
        self.on_start = Some(Box::new(hook));
        self
    }

    /// Limits the command's run time, boot not counted. Without a limit it may run for ever.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Limits the time L1 takes to boot: two minutes unless told.
    #[must_use]
    pub fn boot_timeout(mut self, limit: Duration) -> Self {
        self.boot_timeout = limit;
        self
    }

    /// Sets L1's memory: 2048 MiB unless told.
    #[must_use]
    pub fn memory_mib(mut self, mebibytes: u32) -> Self {
        self.memory_mib = mebibytes;
        self
    }

    /// Lets L1's time be its work: an instruction is a nanosecond, whatever else the outer machine does. While L1 has nothing to
    /// do, time passes as it does outside. For measurements, which then repeat themselves; a limit of time within L1
    /// allows more work of it, or less, than one outside.
    #[must_use]
    pub fn counted(mut self) -> Self {
        self.counted = true;
        self
    }

    /// Uses this appliance, not the cache's current one.
    #[must_use]
    pub fn appliance(mut self, appliance: Appliance) -> Self {
        self.appliance = Some(appliance);
        self
    }

    /// Boots the reference host, runs the command in it and returns its exit code.
    ///
    /// # Errors
    ///
    /// Whenever the exit code is not known: see [`RunError`].
    pub fn run(self) -> Result<Finished, RunError> {
        run(self)
    }

    /// The script that L1's shell runs inside the outer machine's root folder.
    pub(crate) fn script(&self) -> Vec<u8> {
        let mut script = b"cd -- ".to_vec();
        quote(&mut script, self.folder.as_os_str());
        script.extend_from_slice(b" || exit 126\nexec env -i ");
        script.extend_from_slice(INSIDE.as_bytes());
        script.push(b'=');
        let time = if self.counted { COUNTED } else { "1" };
        script.extend_from_slice(time.as_bytes());
        for (name, value) in &self.environment {
            let mut assignment = name.clone();
            assignment.push("=");
            assignment.push(value);
            script.push(b' ');
            quote(&mut script, &assignment);
        }
        for argument in &self.arguments {
            script.push(b' ');
            quote(&mut script, argument);
        }
        script.push(b'\n');
        script
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Command")
            .field("arguments", &self.arguments)
            .field("folder", &self.folder)
            .field("input", &self.input)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Appends one shell word: everything between single quotes is itself.
fn quote(script: &mut Vec<u8>, word: &OsStr) {
    script.push(b'\'');
    for &byte in word.as_bytes() {
        if byte == b'\'' {
            script.extend_from_slice(b"'\\''");
        } else {
            script.push(byte);
        }
    }
    script.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;
    use std::process;

    #[test]
    fn script_keeps_every_byte_of_arguments_and_environment() {
        let every_byte: Vec<u8> = (1..=255).collect();
        let script = Command::new(["printf", "%s|%s|%s"])
            .expect("the working folder is known")
            .current_dir("/")
            .arg(OsString::from_vec(every_byte.clone()))
            .arg("")
            .arg("$HOME `x` \"'\\\n")
            .script();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("command");
        std::fs::write(&path, script).expect("the script is written");
        let output = process::Command::new("/bin/sh")
            .arg(&path)
            .output()
            .expect("a shell");
        let mut expected = every_byte;
        expected.extend_from_slice(b"||$HOME `x` \"'\\\n");
        assert_eq!(output.stdout, expected);
    }
}
