//! The control socket: what `paravane ctl` says to a running VMM, and what it answers.
//!
//! # How it works
//!
//! A Unix socket that only its owner can open. A request is a JSON object on a line, and so is its answer:
//! `{"ok": …}`, or `{"error": {"code": …, "message": …, "mend": …}}`, whose `code` is one of [`Refusal`]'s names and
//! stays what it is; the other two are for people. Several requests can follow one another on a connection, and are answered in
//! their order. [`server`] has the thread that serves them, [`client`] the other side,
//! [`command`] what people type.
//!
//! | request | answer |
//! |---|---|
//! | `{"command": "status"}` | [`Status`] |
//! | `{"command": "stats"}` | what `paravane run --stats json` prints, so far: [`crate::stats::Stats`] |
//! | `{"command": "metrics"}` | `{"openmetrics": …}`, the same as text for a monitoring system |
//! | `{"command": "pause"}` | [`Status`], once every vCPU stands still |
//! | `{"command": "resume"}` | [`Status`] |
//! | `{"command": "cpus", "count": 2}` | [`Status`]; the guest is asked to have so many processors on, and does it when it can; 0: no wish |
//! | `{"command": "memory", "mib": N}` | [`Status`]; the guest follows as far as it can, and keeps the rest from itself |
//! | `{"command": "core"}`, with a file's descriptor (`SCM_RIGHTS`) | `{"bytes": N}`, once an ELF core of the guest is in the file; it stands still meanwhile |
//! | `{"command": "snapshot"}`, with an empty file's descriptor | `{"bytes": N}`, once the machine is in the file ([`crate::snapshot`]); it stands still meanwhile |
//! | `{"command": "power", "action": "off"}` | [`Status`]; the guest is not asked: the plug is pulled |
//! | `{"command": "power", "action": "reset"}` | the same, and the machine starts again where `run` was told `--on-reboot restart` |
//! | `{"command": "power", "action": "nmi"}` | [`Status`]; the boot processor gets a non-maskable interrupt |
//!
//! # Whom it trusts
//!
//! Whoever can open the socket may do all of this. What comes through it is checked all the same, and bounded: see
//! [`server`].

pub mod client;
pub mod command;
mod metrics;
pub mod server;

use std::fs::File;
use std::time::Duration;

use paravane_abi::registry::PAGE_SIZE;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::Profile;
use crate::core;
use crate::pause::Holder;
use crate::pv::smp::Processors;
use crate::snapshot::SnapshotError;
use crate::stats::Outcome;
use crate::vm::Machine;

/// How long vCPUs get to stand still. One that is in a call stands still after it.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What the machine is and does.
    Status {},
    /// Its counters.
    Stats {},
    /// Its counters as `OpenMetrics` text.
    Metrics {},
    /// Stop all vCPUs.
    Pause {},
    /// Let them go on.
    Resume {},
    /// Ask the guest to have so many processors on.
    Cpus {
        /// How many; 0: the guest has as many on as it likes.
        count: u8,
    },
    /// Let the guest do with less memory than it has.
    Memory {
        /// With so much.
        mib: u64,
    },
    /// Write a core into the file whose descriptor comes along.
    Core {},
    /// Write a snapshot into the file whose descriptor comes along.
    Snapshot {},
    /// Press a button.
    Power {
        /// Which.
        action: Power,
    },
}

/// The buttons of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// Switch the machine off; the guest is not asked.
    Off,
    /// Start the machine again; the guest is not asked.
    Reset,
    /// Send the boot processor a non-maskable interrupt, to see whether its kernel still lives.
    Nmi,
}

/// Whether the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It does.
    Running,
    /// It stands still until `resume`.
    Paused,
    /// It has ended.
    Ended,
}

/// What the machine is and does.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Whether the guest runs.
    pub state: State,
    /// Profile.
    pub guest: Profile,
    /// The VMM's process.
    pub pid: u32,
    /// The VMM's version.
    pub version: &'static str,
    /// Milliseconds since the first instruction.
    pub uptime_ms: u64,
    /// Number of vCPUs.
    pub cpus: u8,
    /// APIC ids of those that are on; null where the VMM does not know: without facility smp.
    pub cpus_on: Option<Vec<usize>>,
    /// How many the guest has been asked to have on; null where it has not been asked.
    pub cpus_wanted: Option<u8>,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// What of this process is in the host's memory, MiB.
    pub resident_mib: u64,
    /// What the guest says that it keeps from itself, MiB; null without facility mem or a balloon.
    pub kept_mib: Option<u64>,
    /// What the guest says that it would miss, MiB: its working set when it last had reason to tell; null where it does not tell.
    pub needed_mib: Option<u64>,
    /// What the guest has given back since the start, MiB; what it has given back twice counts twice.
    pub reported_mib: Option<u64>,
}

/// Why a request is not carried out. The names in kebab case are the error objects' codes.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Not a request.
    #[error("this is not a request: {reason}")]
    BadRequest {
        /// What the parser says.
        reason: String,
    },
    /// A line without an end.
    #[error("a request has at most {most} bytes; the connection is closed")]
    TooLong {
        /// Bytes.
        most: usize,
    },
    /// vCPUs that do not come out of KVM.
    #[error("{working} thread(s) did not stand still within {} s; the guest goes on", PAUSE_LIMIT.as_secs())]
    CannotPause {
        /// How many.
        working: usize,
    },
    /// A run that is over.
    #[error("the guest has ended meanwhile")]
    Ended,
    /// A guest that cannot be asked.
    #[error("this guest does not take processors on and off when asked")]
    NoHotplug,
    /// More processors than the machine has.
    #[error("{count} processors cannot be on: the machine has {vcpus}")]
    TooMany {
        /// What was asked for.
        count: u8,
        /// What there is.
        vcpus: u8,
    },
    /// More memory than there is, or no way to tell the guest.
    #[error("the guest cannot be told to do with {mib} MiB")]
    Memory {
        /// What was asked for.
        mib: u64,
    },
    /// A core or snapshot without a file.
    #[error("there is no file to write to")]
    NoFile,
    /// A machine that cannot be saved, or a file that does not take it.
    #[error(transparent)]
    Snapshot(SnapshotError),
    /// A file that takes no core.
    #[error("the core cannot be written: {reason}")]
    File {
        /// What the system says.
        reason: std::io::Error,
    },
    /// KVM has not taken it.
    #[error("KVM refused to {what}")]
    Kvm {
        /// What.
        what: &'static str,
    },
}

impl Refusal {
    /// Its name for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadRequest { .. } => "bad-request",
            Self::TooLong { .. } => "too-long",
            Self::CannotPause { .. } => "cannot-pause",
            Self::Ended => "ended",
            Self::NoHotplug => "no-hotplug",
            Self::TooMany { .. } => "too-many",
            Self::Memory { .. } => "memory",
            Self::NoFile => "no-file",
            Self::Snapshot(_) => "snapshot",
            Self::File { .. } => "file",
            Self::Kvm { .. } => "kvm",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn mend(&self) -> &'static str {
        match self {
            Self::BadRequest { .. } => {
                "send one JSON object a line, such as {\"command\":\"status\"}; `paravane ctl --help` lists the commands"
            }
            Self::TooLong { .. } => "end each request with a line feed",
            Self::CannotPause { .. } => {
                "try again; if it stays so, `power off` ends the machine whatever its vCPUs do"
            }
            Self::Ended => {
                "pause the guest first; --core of `paravane run` writes a core of one that dies"
            }
            Self::NoHotplug => {
                "use a para guest with facility smp, and wait until its kernel has started: it asks to be told"
            }
            Self::TooMany { .. } => {
                "run the guest with more (--cpus), and begin with fewer (--cmdline maxcpus=1)"
            }
            Self::Memory { .. } => {
                "ask for no more than it was started with (--memory), and start it with a balloon: facility mem (--pv) or --balloon"
            }
            Self::NoFile => {
                "send the descriptor of a file along with the request (SCM_RIGHTS), as `paravane ctl SOCKET core FILE` does"
            }
            Self::Snapshot(_) => {
                "`paravane ctl --help` says which guests can be saved; the file wants room for all of the guest's memory"
            }
            Self::File { .. } => {
                "it takes an ordinary file, and room for all of the guest's memory"
            }
            Self::Kvm { .. } => "look at the host kernel's log",
        }
    }

    fn object(&self) -> Value {
        serde_json::json!({
            "code": self.code(), "message": self.to_string(), "mend": self.mend(),
        })
    }
}

/// Any answer's line, without its end.
#[must_use]
pub fn answer(result: Result<Value, Refusal>) -> String {
    match result {
        Ok(value) => serde_json::json!({ "ok": value }),
        Err(refusal) => serde_json::json!({ "error": refusal.object() }),
    }
    .to_string()
}

/// Answers one line; `file`: what came along.
#[must_use]
pub fn serve_line(machine: &Machine, line: &[u8], file: Option<File>) -> String {
    let request = serde_json::from_slice(line).map_err(|e| Refusal::BadRequest {
        reason: e.to_string(),
    });
    answer(request.and_then(|request| carry_out(machine, request, file)))
}

/// A structure of ours as JSON: that does not fail.
fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn carry_out(machine: &Machine, request: Request, file: Option<File>) -> Result<Value, Refusal> {
    match request {
        Request::Status {} => machine.ask_balloon(),
        Request::Stats {} => {
            machine.ask_balloon();
            return Ok(json(machine.stats()));
        }
        Request::Metrics {} => {
            machine.ask_balloon();
            let text = metrics::text(&machine.stats(), &status(machine));
            return Ok(serde_json::json!({ "openmetrics": text }));
        }
        Request::Core {} => {
            let file = file.ok_or(Refusal::NoFile)?;
            let bytes = at_rest(machine, |machine| {
                core::write(machine, &file).map_err(|reason| Refusal::File { reason })
            })?;
            return Ok(serde_json::json!({ "bytes": bytes }));
        }
        Request::Snapshot {} => {
            let file = file.ok_or(Refusal::NoFile)?;
            let bytes = at_rest(machine, |machine| {
                machine.save(&file).map_err(Refusal::Snapshot)
            })?;
            return Ok(serde_json::json!({ "bytes": bytes }));
        }
        Request::Pause {} => machine
            .pause()
            .pause(Holder::Client, PAUSE_LIMIT)
            .map_err(|working| Refusal::CannotPause { working })?,
        Request::Resume {} => machine.pause().resume(Holder::Client),
        Request::Cpus { count } => {
            let vcpus = machine.config().vcpus;
            if count > vcpus {
                return Err(Refusal::TooMany { count, vcpus });
            }
            if !machine.processors().is_some_and(Processors::is_heard) {
                return Err(Refusal::NoHotplug);
            }
            let _ = machine.want_processors(count);
        }
        Request::Memory { mib } => {
            if !machine.set_memory_target(mib) {
                return Err(Refusal::Memory { mib });
            }
        }
        Request::Power { action: Power::Off } => {
            machine.pull_the_plug(Outcome::PowerOff, "`paravane ctl power off`");
        }
        Request::Power {
            action: Power::Reset,
        } => {
            machine.pull_the_plug(Outcome::Reboot, "`paravane ctl power reset`");
        }
        Request::Power { action: Power::Nmi } => {
            if !machine.send_nmi() {
                let what = "send a non-maskable interrupt";
                return Err(Refusal::Kvm { what });
            }
        }
    }
    Ok(json(status(machine)))
}

/// Does something with a machine that stands still for it.
fn at_rest<T>(
    machine: &Machine,
    work: impl FnOnce(&Machine) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let pause = machine.pause();
    pause
        .pause(Holder::Core, PAUSE_LIMIT)
        .map_err(|working| Refusal::CannotPause { working })?;
    let done = work(machine);
    pause.resume(Holder::Core);
    // Its devices may have worked again by then.
    if machine.is_stopping() {
        return Err(Refusal::Ended);
    }
    done
}

/// What of this process is in memory; zero where the host has no /proc.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<u64> = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * PAGE_SIZE as u64
}

fn status(machine: &Machine) -> Status {
    let config = machine.config();
    let memory = machine.memory_use();
    let mib = |bytes: u64| bytes >> 20;
    Status {
        state: if machine.is_stopping() {
            State::Ended
        } else if machine.pause().is_wanted() {
            State::Paused
        } else {
            State::Running
        },
        guest: config.profile,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_ms: machine.elapsed_ns() / 1_000_000,
        cpus: config.vcpus,
        cpus_on: machine.processors().map(Processors::on),
        cpus_wanted: machine.processors().and_then(Processors::wanted),
        memory_mib: config.memory_mib,
        resident_mib: resident_bytes() >> 20,
        kept_mib: memory.map(|memory| mib(memory.kept)),
        needed_mib: memory.and_then(|memory| memory.needed).map(mib),
        reported_mib: memory.map(|memory| mib(memory.reported)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_table_says() {
        let parse = |text: &str| serde_json::from_str::<Request>(text);
        for (text, request) in [
            (r#"{"command": "status"}"#, Request::Status {}),
            (r#"{"command": "pause"}"#, Request::Pause {}),
            (
                r#"{"command": "power", "action": "off"}"#,
                Request::Power { action: Power::Off },
            ),
        ] {
            assert_eq!(parse(text).unwrap(), request);
            let again = serde_json::to_string(&request).unwrap();
            assert_eq!(parse(&again).unwrap(), request);
        }
        for text in [
            "",
            "status",
            "[]",
            r#"{"command": "stop"}"#,
            r#"{"command": "status", "verbose": true}"#,
            r#"{"command": "power"}"#,
            r#"{"command": "power", "action": "on"}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_names_code_and_mend() {
        let line = answer(Err(Refusal::CannotPause { working: 2 }));
        let answer: Value = serde_json::from_str(&line).unwrap();
        let error = &answer["error"];
        assert_eq!(error["code"], "cannot-pause");
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .starts_with("2 thread(s)")
        );
        assert!(error["mend"].is_string());
    }
}
