//! What a run cost: exits by reason, calls by id, bytes and times.
//!
//! Each vCPU counts for itself; nothing on the exit path is shared between vCPUs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use paravane_abi::call::{CALLS, CallId};
use serde::Serialize;

use crate::crash::processor::ProcessorReport;
use crate::trail::{Step, Trail};
use crate::virtio::unit::UnitStats;

/// Reasons for which a vCPU comes out to the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Exit {
    /// IN on a UART port.
    UartIn,
    /// OUT on a UART port.
    UartOut,
    /// IN on any other port.
    IoIn,
    /// OUT on any other port.
    IoOut,
    /// A call through the doorbell.
    Hypercall,
    /// Memory-mapped registers.
    Mmio,
    /// A milestone (see [`crate::device::mark`]).
    Mark,
    /// A signal of ours.
    Interrupted,
    /// Whatever else.
    Other,
}

impl Exit {
    /// All reasons and their names in results.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::UartIn, "uart_in"),
        (Self::UartOut, "uart_out"),
        (Self::IoIn, "io_in"),
        (Self::IoOut, "io_out"),
        (Self::Hypercall, "hypercall"),
        (Self::Mmio, "mmio"),
        (Self::Mark, "mark"),
        (Self::Interrupted, "interrupted"),
        (Self::Other, "other"),
    ];
}

/// One vCPU's counters. Written by its thread, read by anybody.
#[derive(Debug, Default)]
pub struct VcpuCounts {
    exits: [AtomicU64; Exit::ALL.len()],
    calls: [AtomicU64; CALLS.len()],
    unknown_calls: AtomicU64,
    trail: Trail,
}

/// One more. There is one writer, so a load and a store do, without a locked instruction.
pub(crate) fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl VcpuCounts {
    /// Counts an exit.
    pub fn exit(&self, reason: Exit) {
        bump(&self.exits[reason as usize]);
    }

    /// The same of one that is remembered.
    pub fn exit_at(&self, reason: Exit, step: Step) {
        self.exit(reason);
        self.trail.push(step);
    }

    /// The last exits, newest last.
    #[must_use]
    pub fn trail(&self) -> Vec<String> {
        self.trail.last()
    }

    /// Counts a call.
    pub fn call(&self, id: CallId) {
        bump(
            CALLS
                .iter()
                .position(|known| *known == id)
                .map_or(&self.unknown_calls, |i| &self.calls[i]),
        );
    }

    /// Exits to the VMM so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.exits.iter().map(|c| c.load(Ordering::Relaxed)).sum()
    }

    fn add_to(
        &self,
        exits: &mut BTreeMap<&'static str, u64>,
        calls: &mut BTreeMap<&'static str, u64>,
    ) {
        for (reason, name) in Exit::ALL {
            *exits.entry(name).or_default() += self.exits[reason as usize].load(Ordering::Relaxed);
        }
        for (id, count) in CALLS.iter().zip(&self.calls) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                *calls.entry(id.name().unwrap_or("unknown")).or_default() += count;
            }
        }
        let unknown = self.unknown_calls.load(Ordering::Relaxed);
        if unknown > 0 {
            *calls.entry("unknown").or_default() += unknown;
        }
    }
}

/// Processor time that this process has taken.
pub(crate) fn processor_time_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes one structure, which lives.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It has not ended yet.
    Running,
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked to start again.
    Reboot,
    /// The guest's kernel reported that it has failed.
    Crash,
    /// The guest's processor shut down.
    TripleFault,
    /// The watchdog ended the run.
    Watchdog,
    /// KVM or the VMM could not go on.
    Error,
    /// Somebody pressed Ctrl-C or sent a signal.
    Interrupted,
}

impl Outcome {
    /// Whether something is wrong with the guest, or with its host.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Crash | Self::TripleFault | Self::Watchdog | Self::Error
        )
    }
}

/// One milestone.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Mark {
    /// What the guest wrote.
    pub code: u8,
    /// Nanoseconds since the first instruction.
    pub t_ns: u64,
    /// Exits of all vCPUs so far, by KVM's count.
    pub exits: u64,
    /// Exits of all vCPUs to the VMM so far.
    pub user_exits: u64,
    /// Of all exits so far, those for interrupts of the host that the guest had no part in.
    pub host_exits: u64,
    /// Processor time of this process so far, what KVM and the host's kernel do for it included.
    pub cpu_ns: u64,
    /// Console bytes so far.
    pub console_out_bytes: u64,
}

/// Bytes over the console.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ConsoleBytes {
    /// From the guest.
    pub out_bytes: u64,
    /// To the guest.
    pub in_bytes: u64,
}

/// The whole account of a run; serialised, this is `--stats json`.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Profile.
    pub guest: &'static str,
    /// Class of the host that it ran on: `kvm` or `reference`.
    pub host: String,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest memory, MiB.
    pub mem_mib: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// More about the end.
    pub message: Option<String>,
    /// From the start of the process to the first instruction, ns.
    pub setup_ns: u64,
    /// From the first instruction to the end, ns.
    pub run_ns: u64,
    /// Exits of all vCPUs by KVM's count; 0 where the host has no binary statistics.
    pub exits: u64,
    /// Exits to the VMM, by reason.
    pub user_exits: BTreeMap<&'static str, u64>,
    /// Every counter that KVM keeps of the vCPUs, summed.
    pub kvm_stats: BTreeMap<String, u64>,
    /// Calls by name.
    pub hypercalls: BTreeMap<&'static str, u64>,
    /// What has crossed the switcher of a direct guest, by kind; the guest counts.
    pub crossings: BTreeMap<&'static str, u64>,
    /// Console traffic.
    pub console: ConsoleBytes,
    /// Milestones.
    pub marks: Vec<Mark>,
    /// Virtio devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<UnitStats>,
    /// Requests to disks that have failed because they were asked to, where one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_faults: Option<u64>,
    /// What the driver of a balloon tells of the guest's memory: bytes, or events since its boot.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub guest_memory: BTreeMap<&'static str, u64>,
    /// The processors of a guest that has died.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processors: Vec<ProcessorReport>,
    /// The last that it has put out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub console_tail: String,
}

impl Stats {
    /// Fills in what the vCPUs have counted.
    pub fn add_vcpu(&mut self, counts: &VcpuCounts) {
        counts.add_to(&mut self.user_exits, &mut self.hypercalls);
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |ns: u64| format!("{}.{:03} ms", ns / 1_000_000, ns / 1_000 % 1_000);
        writeln!(
            f,
            "guest {} on host {}: {:?}",
            self.guest, self.host, self.outcome
        )?;
        writeln!(
            f,
            "  setup {:>14}   run {:>14}",
            ms(self.setup_ns),
            ms(self.run_ns)
        )?;
        writeln!(f, "  exits {:>14}   (all, by KVM's count)", self.exits)?;
        for (name, count) in self.user_exits.iter().filter(|(_, count)| **count > 0) {
            writeln!(f, "    to the VMM, {name:<16} {count:>10}")?;
        }
        for (name, count) in &self.hypercalls {
            writeln!(f, "    call {name:<23} {count:>10}")?;
        }
        for (name, count) in self.crossings.iter().filter(|(_, count)| **count > 0) {
            writeln!(f, "    switcher, {name:<18} {count:>10}")?;
        }
        writeln!(
            f,
            "  console bytes out {}, in {}",
            self.console.out_bytes, self.console.in_bytes
        )?;
        for unit in &self.devices {
            writeln!(
                f,
                "  device {:<10} requests {:>10}   wake-ups {:>10}   interrupts {:>10}",
                unit.device, unit.requests, unit.wakes, unit.interrupts
            )?;
            if let Some(broken) = &unit.broken {
                writeln!(f, "    its driver has broken the rules: {broken}")?;
            }
        }
        if let Some(failed) = self.disk_faults {
            writeln!(f, "  requests to disks that were asked to fail {failed}")?;
        }
        for (name, value) in &self.guest_memory {
            writeln!(f, "  guest memory, {name:<18} {value:>14}")?;
        }
        for mark in &self.marks {
            writeln!(
                f,
                "  mark {:<3} at {:>14}   exits {:>8}",
                mark.code,
                ms(mark.t_ns),
                mark.exits
            )?;
        }
        Ok(())
    }
}
