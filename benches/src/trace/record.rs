//! Recording KVM's tracepoints while a guest runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;

use crate::arm::Arm;
use crate::experiment::Experiment;
use crate::job::suite;
use crate::launch::Launcher;
use crate::session::{GuestFiles, launcher};

/// Where the kernel keeps its trace buffers.
const TRACING: &str = "/sys/kernel/tracing";

/// What is recorded: every way out of the guest and back, and what was asked.
const EVENTS: [&str; 11] = [
    "kvm_entry",
    "kvm_exit",
    "kvm_userspace_exit",
    "kvm_pio",
    "kvm_mmio",
    "kvm_msr",
    "kvm_cpuid",
    "kvm_cr",
    "kvm_page_fault",
    "kvm_inj_virq",
    "kvm_hypercall",
];

/// What the VMM's other threads do for a device: a kernel without such tracepoints is traced without them.
const CALLS: [&str; 8] = [
    "pread64",
    "pwrite64",
    "preadv",
    "pwritev",
    "readv",
    "writev",
    "fdatasync",
    "write",
];

/// KiB of buffer for each CPU: a boot with messages fits.
const BUFFER_KIB: &str = "16384";

/// A trace buffer of our own, which goes when it is dropped.
struct Buffer {
    folder: PathBuf,
}

impl Buffer {
    fn new() -> anyhow::Result<Self> {
        let folder = Path::new(TRACING)
            .join("instances")
            .join(format!("paravane-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| {
            format!(
                "`{}` cannot be made: tracing needs root and tracefs, which the reference host has (`--host reference`)",
                folder.display()
            )
        })?;
        let buffer = Self { folder };
        buffer.write("buffer_size_kb", BUFFER_KIB)?;
        buffer.write("trace_clock", "mono")?;
        for event in EVENTS {
            // A kernel without one of them is traced without it.
            let _ = buffer.write(&format!("events/kvm/{event}/enable"), "1");
        }
        for call in CALLS {
            let _ = buffer.write(&format!("events/syscalls/sys_enter_{call}/enable"), "1");
        }
        Ok(buffer)
    }

    fn write(&self, file: &str, value: &str) -> anyhow::Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, value).with_context(|| format!("`{}` cannot be written", path.display()))
    }

    fn read(&self) -> anyhow::Result<String> {
        self.write("tracing_on", "0")?;
        let path = self.folder.join("trace");
        let text =
            fs::read(&path).with_context(|| format!("`{}` cannot be read", path.display()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // A buffer that stays behind takes memory until the host is off; there is nobody to tell.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Boots the arm, lets it do the operation, and returns the trace of the whole run.
pub(super) fn record(
    arm: &Arm,
    operation: &str,
    cpus: u8,
    files: &GuestFiles,
) -> anyhow::Result<String> {
    let experiment = Experiment {
        suite: "trace".to_owned(),
        arms: vec![arm.name.clone()],
        kinds: Vec::new(),
        seed: 0,
        memory_mib: 128,
        cpus,
        watchdog: 120,
        doctor: false,
        until: None,
        smoke: false,
    };
    // A request to a device takes the device that the benchmark of it has.
    let work = operation.split(':').next();
    let job = suite("io").find(|job| job.work.as_deref() == work);
    let launcher = Launcher {
        disk_mib: job.map_or(0, |job| job.disk),
        ..launcher(files, &experiment, std::slice::from_ref(arm))?
    };
    let end = if arm.is_para() { "poweroff" } else { "restart" };
    let cmdline = format!("quiet -- job={operation} end={end}");
    let buffer = Buffer::new()?;
    let result = launcher.run(arm, &cmdline, experiment.watchdog, &AtomicBool::new(false));
    // The files of the launch; a folder that stays behind is no reason to fail.
    let _ = fs::remove_dir_all(&launcher.scratch);
    result.with_context(|| format!("the {arm} guest failed"))?;
    buffer.read()
}
