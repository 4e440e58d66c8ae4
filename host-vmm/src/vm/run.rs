//! Running a machine: its threads, from the first instruction to the end.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::KVM_CAP_SET_GUEST_DEBUG2;

use super::{Machine, Started, Vm, VmError, host, lock, nanoseconds};
use crate::core::CoreFile;
use crate::ctl::server::Server;
use crate::doctor::host::Host;
use crate::event_loop::{EventLoop, Signals};
use crate::gdb::debugger::Debugger;
use crate::kick::kick_held;
use crate::pause::Holder;
use crate::stats::{Outcome, Stats};
use crate::vcpu::Vcpu;
use crate::{crash, gdb};

/// How long vCPU threads get to come out of KVM once the machine stops.
const JOIN_LIMIT: Duration = Duration::from_secs(3);

/// How a run is watched.
#[derive(Debug, Default)]
pub struct RunOptions {
    /// Standard input goes to the guest.
    pub stdin: bool,
    /// Signals that end the run.
    pub signals: Option<Signals>,
    /// Class of this host, for the statistics.
    pub host: String,
    /// The control socket; it is kept from one run to the next.
    pub ctl: Option<Arc<Server>>,
    /// Where a debugger may come in; it is kept from one run to the next.
    pub gdb: Option<Arc<gdb::Server>>,
    /// Where a core goes if the guest dies.
    pub core: Option<Arc<CoreFile>>,
}

impl Vm {
    /// Runs the guest to its end.
    ///
    /// # Errors
    ///
    /// [`VmError::Host`] where there are no threads or descriptors left. A guest that fails is not an
    /// error: [`Stats::outcome`] says how it ended.
    pub fn run(self, options: RunOptions) -> Result<Stats, VmError> {
        let machine = &self.machine;
        let events = EventLoop::new(
            machine,
            options.signals.as_ref(),
            options.stdin,
            machine.config.watchdog,
        )
        .map_err(host("event descriptor"))?;
        machine.started.get_or_init(|| Started {
            at: Instant::now(),
            setup_ns: nanoseconds(self.setup_started.elapsed()),
            host: options.host,
        });
        let ctl = options
            .ctl
            .map(|server| {
                let machine = Arc::clone(machine);
                std::thread::Builder::new()
                    .name("ctl".to_owned())
                    .spawn(move || server.serve(&machine))
            })
            .transpose()
            .map_err(host("thread"))?;
        let gdb = options
            .gdb
            .map(|server| debug(machine, server))
            .transpose()?;
        machine.parts().iter().for_each(|(_, part)| part.go_on());
        let (mut threads, mut failed) = (Vec::new(), None);
        for (id, counts) in machine.counts.iter().enumerate() {
            let vcpu = Vcpu::new(id, Arc::clone(machine), Arc::clone(counts));
            let spawned = std::thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || vcpu.run());
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(e) => {
                    machine.stop(Outcome::Error, None);
                    failed = Some(e);
                    break;
                }
            }
        }
        events.run();
        let run_ns = machine.elapsed_ns();
        machine.pause.end();
        if let Some(processors) = machine.processors() {
            processors.end();
        }
        let stuck = join(threads);
        machine.stop_devices();
        // The sockets' threads see the end as well.
        for thread in ctl.into_iter().chain(gdb) {
            let _ = thread.join();
        }
        if let Some(rings) = machine.pv.rings() {
            rings.close();
        }
        if let Some(rings) = &machine.rings {
            rings.last_look();
        }
        machine.console.flush_now();
        if let Some(e) = failed {
            return Err(host("thread")(e));
        }

        let (outcome, mut message) = machine.end.take().unwrap_or((Outcome::Error, None));
        if let Some(record) = lock(&self.last_words).as_deref() {
            message = Some(crash::report(record, machine.symbols()));
        }
        let died = outcome.is_failure();
        let processors = if died {
            machine.report_processors()
        } else {
            Vec::new()
        };
        let tail = if died {
            machine.console.tail()
        } else {
            Vec::new()
        };
        let console_tail = crash::printable(&tail);
        // A record has its own log and callers.
        if outcome != Outcome::Crash {
            for processor in &processors {
                let note = format!("vCPU {} was here:\n{processor}", processor.id);
                message = Some(message.map_or(note.clone(), |m| format!("{m}\n{note}")));
            }
            let off = (0..machine.counts.len()).filter(|id| died && !machine.is_on(*id));
            for id in off {
                let note = format!("vCPU {id} was off");
                message = Some(message.map_or(note.clone(), |m| format!("{m}\n{note}")));
            }
        }
        if stuck > 0 {
            let note = format!("{stuck} vCPU(s) did not come out of KVM and were left behind");
            message = Some(message.map_or(note.clone(), |m| format!("{m}\n{note}")));
        }
        if let Some(core) = options.core.filter(|_| outcome.is_failure()) {
            let path = core.path().display();
            let note = match core.write(machine) {
                Ok(_) => format!("its core: gdb VMLINUX {path}"),
                Err(e) => format!("its core `{path}` cannot be written: {e}"),
            };
            message = Some(message.map_or(note.clone(), |m| format!("{m}\n{note}")));
        }
        Ok(Stats {
            outcome,
            message,
            run_ns,
            processors,
            console_tail,
            ..machine.stats()
        })
    }
}

/// Starts the thread that debuggers talk to, and makes the machine wait for one where it shall.
fn debug(machine: &Arc<Machine>, server: Arc<gdb::Server>) -> Result<JoinHandle<()>, VmError> {
    let flags = machine
        .vm
        .check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into());
    let flags = u32::try_from(flags).unwrap_or_default();
    let class = Host::examine(true).class;
    let debugger =
        Debugger::new(class, machine.config.profile, flags).map_err(host("event descriptor"))?;
    let _ = machine.debugger.set(debugger);
    if server.waits() {
        machine.pause.want(Holder::Debugger);
    }
    let machine = Arc::clone(machine);
    std::thread::Builder::new()
        .name("gdb".to_owned())
        .spawn(move || {
            if let Some(debugger) = machine.debugger() {
                server.serve(&machine, debugger);
            }
        })
        .map_err(host("thread"))
}

/// Kicks the vCPU threads until they have ended. A signal that arrives just before `KVM_RUN` is lost,
/// hence again and again. Returns how many would not come.
fn join(threads: Vec<JoinHandle<()>>) -> usize {
    let deadline = Instant::now() + JOIN_LIMIT;
    let mut left = threads;
    loop {
        left.retain(|thread| !thread.is_finished());
        if left.is_empty() || Instant::now() >= deadline {
            return left.len();
        }
        left.iter().for_each(kick_held);
        std::thread::sleep(Duration::from_millis(1));
    }
}
