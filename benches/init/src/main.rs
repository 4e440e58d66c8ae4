//! The guest's first process: it marks the end of the kernel's boot, runs the workloads that its arguments ask for,
//! reports what its kernel is, and ends the machine.
//!
//! # Arguments
//!
//! The kernel passes what follows `--` on its command line:
//!
//! * `job=NAME:ROUNDS` or `job=NAME:ROUNDS:TASKS`: runs a workload; may be given several times. [`jobs`] has them;
//!   `"job=program:N:1:COMMAND"` runs a shell command of the distribution that is on the disk;
//!   `job=console:N` writes N bytes, in lines of 64, to the console, and waits until they are out;
//! * `ops`: loads `/lib/modules/pvbench.ko`, which measures privileged operations, and prints its file under debugfs;
//! * `module`: loads `/lib/modules/paravane.ko` and prints its files under debugfs;
//! * `shell`: runs busybox's shell on the console;
//! * `panic`: makes the kernel panic;
//! * `reboot`, `end=poweroff|restart|halt`: how the machine ends. By itself it is powered off where the kernel says
//!   that it runs on Paravane, and restarted elsewhere: a PC without ACPI has no way to power itself off;
//! * `quietly`: no report.
//!
//! # Marks
//!
//! A byte written to port 0x84 is a *mark*: the VMM notes the time and its counters. The codes are in [`Mark`]. The
//! first comes before everything that is not needed for it; what is read or executed for the report comes after the
//! last workload.
//!
//! Whatever fails is printed as `PARAVANE-INIT-ERROR …`, and the init goes on with what is left to do.

#![no_std]
#![no_main]

mod disk;
mod hash;
mod jobs;
mod memory;
mod naps;
mod net;
mod program;
mod report;
mod sched;
mod sys;
mod task;
mod text;

use core::ffi::CStr;
use core::fmt::Write as _;

use jobs::{JOBS, Job};
use report::KernelLog;
use sys::{EBUSY, Errno, Fd};
use text::Text;

const MARK_PORT: u16 = 0x84;
const PAGE: usize = 4096;
const LINE: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ.\n";

/// What happened, as the byte that goes to the mark port.
#[derive(Clone, Copy)]
enum Mark {
    InitStarted = 1,
    JobBegins = 2,
    JobEnds = 3,
    AboutToEnd = 6,
}

/// The way to the mark port.
enum MarkPort {
    Device(Fd),
    Direct,
    None,
}

impl MarkPort {
    fn open() -> Result<Self, Errno> {
        sys::open(c"/dev/port", sys::O_WRONLY)
            .map(Self::Device)
            .or_else(|errno| {
                sys::allow_port(MARK_PORT)
                    .map(|()| Self::Direct)
                    .map_err(|_| errno)
            })
    }

    fn mark(&self, mark: Mark) {
        let code = mark as u8;
        match self {
            Self::Device(device) => {
                if let Err(errno) = device.write_byte_at(usize::from(MARK_PORT), code) {
                    complain("the mark port cannot be written", errno);
                }
            }
            Self::Direct => sys::out_byte(MARK_PORT, code),
            Self::None => {}
        }
    }
}

/// How the machine ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    PowerOff,
    Restart,
    Halt,
}

/// What the arguments ask for.
#[derive(Default)]
struct Orders {
    jobs: [Option<Job>; JOBS],
    ops: bool,
    module: bool,
    shell: bool,
    panic: bool,
    quietly: bool,
    end: Option<End>,
}

impl Orders {
    /// Reads the arguments that the kernel put on the stack.
    ///
    /// # Safety
    ///
    /// `stack` is the stack pointer with which the kernel entered this process.
    unsafe fn read(stack: *const usize) -> Self {
        let mut orders = Self::default();
        // SAFETY: the kernel puts argc at the stack pointer.
        let count = unsafe { stack.read() };
        for index in 1..count {
            // SAFETY: argc pointers to C strings follow it; `index` is below argc.
            let argument = unsafe {
                CStr::from_ptr(core::ptr::with_exposed_provenance(
                    stack.add(1 + index).read(),
                ))
            };
            if !orders.take(argument) {
                let mut line = Text::<256>::new();
                line.push(b"PARAVANE-INIT-ERROR the argument is not one of this init: ");
                line.push(argument.to_bytes());
                line.push(b"\n");
                let _ = Fd::STDOUT.write_all(line.as_bytes());
            }
        }
        orders
    }

    fn take(&mut self, argument: &'static CStr) -> bool {
        let whole = argument.to_bytes_with_nul();
        let job = whole.strip_prefix(b"job=").map(CStr::from_bytes_with_nul);
        if let Some(Ok(job)) = job {
            let free = self.jobs.iter_mut().find(|slot| slot.is_none());
            let (Some(free), Some(job)) = (free, Job::parse(job)) else {
                return false;
            };
            *free = Some(job);
            return true;
        }
        match argument.to_bytes() {
            b"ops" => self.ops = true,
            b"module" => self.module = true,
            b"shell" => self.shell = true,
            b"panic" => self.panic = true,
            b"quietly" => self.quietly = true,
            b"end=poweroff" => self.end = Some(End::PowerOff),
            b"reboot" | b"end=restart" => self.end = Some(End::Restart),
            b"end=halt" => self.end = Some(End::Halt),
            _ => return false,
        }
        true
    }
}

/// The argument with which the job `exec` starts this program again.
const END_AT_ONCE: &CStr = c"end-at-once";

/// Where the process begins, called by `_start` with the stack pointer that the kernel gave it.
extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: `_start` passes the stack pointer of the process's entry.
    if unsafe { ends_at_once(stack) } {
        sys::exit(0);
    }
    // First the mark, and only what it needs.
    let devices = sys::mount(c"devtmpfs", c"/dev");
    let port = MarkPort::open();
    if let Ok(port) = &port {
        port.mark(Mark::InitStarted);
    }
    let started_ns = sys::clock_ns(sys::CLOCK_MONOTONIC).ok();
    let console = open_console();
    if let Err(errno) = devices
        && errno != EBUSY
    {
        complain("devtmpfs cannot be mounted on /dev", errno);
    }
    let port = port.unwrap_or_else(|errno| {
        complain(
            "/dev/port cannot be opened, nor ioperm used: there will be no marks",
            errno,
        );
        MarkPort::None
    });
    mount_the_rest();
    // SAFETY: `_start` passes the stack pointer of the process's entry.
    let orders = unsafe { Orders::read(stack) };

    for job in orders.jobs.iter().flatten() {
        job.run(&port, console);
    }
    if orders.ops {
        show_module(
            console,
            c"/lib/modules/pvbench.ko",
            c"/sys/kernel/debug/pvbench",
        );
    }
    if orders.module {
        show_module(
            console,
            c"/lib/modules/paravane.ko",
            c"/sys/kernel/debug/paravane",
        );
    }
    let log = KernelLog::read();
    if !orders.quietly {
        let report = report::write(&log, started_ns);
        if report.overflowed() {
            complain("the report is longer than its buffer", Errno(0));
        }
        if let Err(errno) = console.write_all(report.as_bytes()) {
            complain("the report cannot be written to the console", errno);
        }
    }
    if orders.shell {
        run_shell(console);
    }
    // A console that is slow must not lose the report to the end of the machine.
    let _ = console.drain();
    if orders.panic {
        panic_the_kernel();
    }
    port.mark(Mark::AboutToEnd);
    let default = if log.on_paravane() {
        End::PowerOff
    } else {
        End::Restart
    };
    end_the_machine(orders.end.unwrap_or(default))
}

/// Whether this process is the job `exec`'s, and has nothing to do.
///
/// # Safety
///
/// As [`Orders::read`].
unsafe fn ends_at_once(stack: *const usize) -> bool {
    // SAFETY: argc is at the stack pointer, and the pointers to that many C strings follow.
    unsafe {
        stack.read() == 2
            && CStr::from_ptr(core::ptr::with_exposed_provenance(stack.add(2).read()))
                == END_AT_ONCE
    }
}

/// The console, as standard input, output and error whatever the kernel had opened there.
fn open_console() -> Fd {
    match sys::open(c"/dev/console", sys::O_RDWR | sys::O_NOCTTY) {
        Ok(console) => {
            for number in 0..3 {
                let _ = console.duplicate_as(number);
            }
            console
        }
        // Standard output may still be a console that the kernel opened.
        Err(errno) => {
            complain("/dev/console cannot be opened", errno);
            Fd::STDOUT
        }
    }
}

fn mount_the_rest() {
    let mounts = [
        (c"proc", c"/proc"),
        (c"sysfs", c"/sys"),
        (c"tmpfs", c"/tmp"),
        (c"debugfs", c"/sys/kernel/debug"),
    ];
    for (kind, target) in mounts {
        if let Err(errno) = sys::mount(kind, target)
            && errno != EBUSY
        {
            complain_of(target, "cannot be mounted", errno);
        }
    }
}

/// Loads a module and prints every file of its debugfs directory.
fn show_module(console: Fd, module: &CStr, path: &CStr) {
    let loaded = sys::open(module, sys::O_RDONLY).and_then(|file| {
        let result = file.load_module();
        file.close();
        result
    });
    if let Err(errno) = loaded {
        complain_of(module, "cannot be loaded", errno);
        return;
    }
    let directory = match sys::open(path, sys::O_RDONLY | sys::O_DIRECTORY) {
        Ok(directory) => directory,
        Err(errno) => {
            complain_of(path, "cannot be opened", errno);
            return;
        }
    };
    let mut entries = [0; 2048];
    while let Ok(length) = directory.entries(&mut entries)
        && length > 0
    {
        let mut rest = entries.get(..length).unwrap_or_default();
        // struct linux_dirent64: inode (8), offset (8), record length (2), type (1), name, zero.
        while let Some(&[low, high]) = rest.get(16..18) {
            let record = usize::from(u16::from_le_bytes([low, high]));
            let name = rest.get(19..record).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            if !name.starts_with(b".") {
                let mut file = Text::<320>::new();
                file.push(path.to_bytes());
                file.push(b"/");
                file.push(name);
                file.push(b"\0");
                show_file(console, name, file.as_bytes());
            }
            rest = rest.get(record.max(1)..).unwrap_or_default();
        }
    }
    directory.close();
}

fn show_file(console: Fd, name: &[u8], path: &[u8]) {
    let Ok(path) = CStr::from_bytes_with_nul(path) else {
        return;
    };
    let mut heading = Text::<320>::new();
    heading.push(b"PARAVANE-MODULE ");
    heading.push(name);
    heading.push(b"\n");
    let _ = console.write_all(heading.as_bytes());
    let file = match sys::open(path, sys::O_RDONLY) {
        Ok(file) => file,
        Err(errno) => {
            complain("a file of the module cannot be opened", errno);
            return;
        }
    };
    let mut buffer = [0; 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                let _ = console.write_all(buffer.get(..length).unwrap_or_default());
            }
            Err(errno) => {
                complain("a file of the module cannot be read", errno);
                break;
            }
        }
    }
    file.close();
}

/// Runs a shell on the console with job control, and waits for its end.
fn run_shell(console: Fd) {
    let shell = match sys::fork() {
        Ok(0) => {
            if let Err(errno) = sys::setsid().and_then(|()| console.make_controlling()) {
                complain("the shell has no controlling terminal", errno);
            }
            // The applets get their names first, so that `ls` is found.
            let script = c"/bin/busybox --install -s /bin; exec /bin/busybox sh";
            let environment = [c"PATH=/bin", c"HOME=/", c"TERM=linux", c"PS1=paravane# "];
            let errno = sys::execute(c"/bin/busybox", [c"sh", c"-c", script], environment);
            complain("/bin/busybox cannot be started", errno);
            sys::exit(1)
        }
        Ok(shell) => shell,
        Err(errno) => {
            complain("the shell cannot be forked", errno);
            return;
        }
    };
    // Orphans come to PID 1 as well: wait for all of them until it is the shell.
    while let Ok(child) = sys::wait() {
        if child == shell {
            break;
        }
    }
}

/// Makes the kernel panic: by the `SysRq` key where the kernel has it, otherwise by the death of its init.
fn panic_the_kernel() -> ! {
    if let Ok(trigger) = sys::open(c"/proc/sysrq-trigger", sys::O_WRONLY) {
        let _ = trigger.write_all(b"c");
    }
    sys::exit(1)
}

fn end_the_machine(end: End) -> ! {
    let how = match end {
        End::PowerOff => sys::REBOOT_POWER_OFF,
        End::Restart => sys::REBOOT_RESTART,
        End::Halt => sys::REBOOT_HALT,
    };
    complain("the machine does not end", sys::reboot(how));
    sys::exit(1)
}

/// Says which file something failed with.
fn complain_of(path: &CStr, what: &str, errno: Errno) {
    let mut line = Text::<128>::new();
    line.push(path.to_bytes());
    line.push(b" ");
    line.push(what.as_bytes());
    complain(core::str::from_utf8(line.as_bytes()).unwrap_or(what), errno);
}

/// Says what failed, with the kernel's error number.
pub(crate) fn complain(what: &str, errno: Errno) {
    let mut line = Text::<256>::new();
    let _ = writeln!(line, "PARAVANE-INIT-ERROR {what}: errno {}", errno.0);
    let _ = Fd::STDOUT.write_all(line.as_bytes());
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut line = Text::<512>::new();
    let _ = writeln!(line, "PARAVANE-INIT-ERROR {info}");
    let _ = Fd::STDOUT.write_all(line.as_bytes());
    sys::exit(101)
}
