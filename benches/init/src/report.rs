//! What the init read of its kernel: one line of JSON, after all marks, so that reading costs no measured exit.

use core::arch::x86_64::__cpuid;
use core::ffi::CStr;
use core::fmt::Write as _;

use crate::complain;
use crate::sys::{self, EAGAIN, ENOENT, EPIPE};
use crate::text::{Text, contains, number, trim_end};

/// A kernel message whose time is worth knowing: its name in the report, and what it contains.
const MILESTONES: [(&str, &[u8]); 15] = [
    ("linux_version", b"Linux version "),
    ("paravirt", b"Booting paravirtualized kernel on "),
    ("memory", b"Memory: "),
    ("console", b"console [tty"),
    ("tsc", b"tsc: Detected "),
    ("apic", b"APIC: Switch to "),
    ("calibrated", b"Calibrating delay loop"),
    ("smpboot", b"smpboot: CPU0: "),
    ("smp", b"smp: Brought up "),
    ("devtmpfs", b"devtmpfs: initialized"),
    ("clocksource", b"clocksource: Switched to "),
    ("initramfs", b"Unpacking initramfs"),
    ("serial", b"Serial: 8250"),
    ("freeing", b"Freeing unused kernel image"),
    ("run_init", b"Run /init as init process"),
];

/// What the kernel's log has for the report.
pub(crate) struct KernelLog {
    /// The time of each milestone in microseconds of the kernel's own clock.
    times: [Option<u64>; MILESTONES.len()],
    paravirt: Text<128>,
    hypervisor: Text<128>,
    records: u64,
    lost: bool,
}

impl KernelLog {
    /// Reads the whole of `/dev/kmsg`. Each read gives one record, `priority,sequence,microseconds,flags;message`.
    pub(crate) fn read() -> Self {
        let mut log = Self {
            times: [None; MILESTONES.len()],
            paravirt: Text::new(),
            hypervisor: Text::new(),
            records: 0,
            lost: false,
        };
        let kmsg = match sys::open(c"/dev/kmsg", sys::O_RDONLY | sys::O_NONBLOCK) {
            Ok(kmsg) => kmsg,
            Err(errno) => {
                complain("/dev/kmsg cannot be opened", errno);
                return log;
            }
        };
        let mut buffer = [0; 2048];
        loop {
            match kmsg.read(&mut buffer) {
                Ok(0) | Err(EAGAIN) => break,
                Ok(length) => log.add(buffer.get(..length).unwrap_or_default()),
                Err(EPIPE) => log.lost = true,
                Err(errno) => {
                    complain("/dev/kmsg cannot be read", errno);
                    break;
                }
            }
        }
        kmsg.close();
        log
    }

    /// Whether the kernel says that it runs on Paravane, where it can power the machine off.
    pub(crate) fn on_paravane(&self) -> bool {
        contains(self.hypervisor.as_bytes(), b"Paravane")
    }

    fn add(&mut self, record: &[u8]) {
        self.records += 1;
        let mut parts = record.splitn(2, |byte| *byte == b';');
        let (Some(prefix), Some(message)) = (parts.next(), parts.next()) else {
            return;
        };
        let Some(microseconds) = prefix.split(|byte| *byte == b',').nth(2).and_then(number) else {
            return;
        };
        // A record's first line is the message; what follows are its `KEY=value` lines.
        let message = message
            .split(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        for ((_, text), time) in MILESTONES.iter().zip(&mut self.times) {
            if time.is_none() && contains(message, text) {
                *time = Some(microseconds);
            }
        }
        if contains(message, b"Booting paravirtualized kernel on ") {
            self.paravirt.set(message);
        }
        if contains(message, b"Hypervisor detected: ") {
            self.hypervisor.set(message);
        }
    }
}

/// The report as `PARAVANE-REPORT {json}` with a line feed.
pub(crate) fn write(log: &KernelLog, started_ns: Option<u64>) -> Text<4096> {
    let mut out = Text::new();
    out.push(b"PARAVANE-REPORT {\"version\":1,\"init_monotonic_ns\":");
    push_number(&mut out, started_ns);
    out.push(b",\"realtime_ns\":");
    push_number(&mut out, sys::clock_ns(sys::CLOCK_REALTIME).ok());
    out.push(b",\"milestones_ns\":{");
    let mut separator = "";
    for ((name, _), microseconds) in MILESTONES.iter().zip(&log.times) {
        if let Some(microseconds) = microseconds {
            let _ = write!(
                out,
                "{separator}\"{name}\":{}",
                microseconds.saturating_mul(1000)
            );
            separator = ",";
        }
    }
    let _ = write!(
        out,
        "}},\"kernel_records\":{},\"kernel_records_lost\":{}",
        log.records, log.lost
    );
    out.push(b",\"paravirt\":");
    out.push_json_or_null(log.paravirt.as_bytes());
    out.push(b",\"hypervisor\":");
    out.push_json_or_null(log.hypervisor.as_bytes());
    out.push(b",\"clocksource\":");
    push_file(
        &mut out,
        c"/sys/devices/system/clocksource/clocksource0/current_clocksource",
    );
    out.push(b",\"clocksources\":");
    push_file(
        &mut out,
        c"/sys/devices/system/clocksource/clocksource0/available_clocksource",
    );
    out.push(b",\"cpus_online\":");
    push_file(&mut out, c"/sys/devices/system/cpu/online");
    push_cpuid(&mut out);
    out.push(b"}\n");
    out
}

/// What CPUID says about a hypervisor, to user space as to the kernel.
fn push_cpuid(out: &mut Text<4096>) {
    const HYPERVISOR_BIT: u32 = 1 << 31;
    let visible = __cpuid(1).ecx & HYPERVISOR_BIT != 0;
    let _ = write!(
        out,
        ",\"cpuid_hypervisor_bit\":{visible},\"cpuid_signatures\":{{"
    );
    if visible {
        let mut separator = "";
        for base in [0x4000_0000_u32, 0x4000_0100] {
            let leaf = __cpuid(base);
            let mut signature = Text::<12>::new();
            for register in [leaf.ebx, leaf.ecx, leaf.edx] {
                signature.push(&register.to_le_bytes());
            }
            let bytes = signature.as_bytes();
            let end = bytes
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(bytes.len());
            let _ = write!(out, "{separator}\"{base:#x}\":");
            out.push_json(bytes.get(..end).unwrap_or_default());
            separator = ",";
        }
    }
    out.push(b"}");
}

fn push_number(out: &mut Text<4096>, value: Option<u64>) {
    let _ = match value {
        Some(value) => write!(out, "{value}"),
        None => write!(out, "null"),
    };
}

/// Adds what a small file of `/sys` says; a kernel without that file has `null` there.
fn push_file(out: &mut Text<4096>, path: &CStr) {
    let mut buffer = [0; 128];
    let content = sys::open(path, sys::O_RDONLY).and_then(|file| {
        let length = file.read(&mut buffer);
        file.close();
        length
    });
    match content {
        Ok(length) => out.push_json_or_null(trim_end(buffer.get(..length).unwrap_or_default())),
        Err(errno) => {
            if errno != ENOENT {
                complain("a file of /sys cannot be read", errno);
            }
            out.push(b"null");
        }
    }
}
