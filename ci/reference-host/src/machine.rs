//! The emulated machine: QEMU, and virtiofsd for its files.
//!
//! # Why each option of QEMU is what it is
//!
//! * `-accel tcg,thread=single -smp 1`: one emulated CPU in one thread. With two in two threads (`thread=multi`) the L1
//!   kernel was seen to panic while it patched its own text.
//! * `-cpu max,la57=off,erms=off,fsrm=off`: everything that TCG can emulate, SVM with nested paging included. Five-level page
//!   tables only make every page walk longer, twice so for nested guests. Kernels that are told of fast REP MOVSB and STOSB copy and
//!   clear with them, which TCG does byte by byte: 1.7 s instead of 0.4 for a launch whose 128 MiB are cleared beforehand.
//! * `-M q35`, `-nodefaults -no-user-config`: a plain PC with nothing but what is named here, whatever the user's
//!   configuration says.
//! * `memory-backend-memfd,share=on`: virtiofsd reads and writes L1's memory itself.
//! * `vhost-user-fs-pci`: virtiofs, because Debian's cloud kernel has it built in, and has no 9p.
//! * `virtio-serial-pci`: byte streams with no line discipline in between, end of file included; a UART would cost an
//!   exit a byte.
//! * `-kernel` with an ELF file, which QEMU enters by its PVH entry: the emulated CPU need not unpack a bzImage first, a
//!   quarter of the boot's work.
//! * One CPU of the outer machine for all of QEMU's threads: where the emulated CPU and the devices ran on two, L1 was
//!   seen to hang, idle, with a timer interrupt pending in its APIC that QEMU had forgotten. QEMU's SVM emulation changes
//!   the word of pending interrupts outside QEMU's big lock; on one CPU these single instructions cannot meet.
//! * `-icount shift=0,sleep=on`, where time is to be counted: QEMU's clocks follow the instructions that it has emulated. What the
//!   outer machine's other work does to a measurement is then nothing: on a core shared with others, the same system
//!   call took 212 to 562 ms by the clock, and 71.2 to 71.2 by instructions. It is nearer to a processor's own time, too: what TCG
//!   does at a change of CR3 or an exit is slow for reasons of its own, and no work of L1's. `sleep=on`: an idle L1 waits in
//!   real time, since what it waits for may be the file server, which has a clock on the wall.
//! * `-no-reboot` with L1's `panic=-1`: a panic ends QEMU, so it is seen at once.
//!
//! # L1's kernel command line
//!
//! * `tsc=reliable`: TCG hands the outer machine's TSC through, so it needs no watchdog, and KVM needs it stable.
//! * `tsc_early_khz`: its frequency, measured outside. L1 would measure it against an emulated timer: seen 0.1 % wrong on a
//!   loaded machine, and put right only after KVM has handed it to a guest.
//! * `no_timer_check`: the kernel's test that the timer ticks in real time fails on a loaded machine ("IO-APIC + timer
//!   doesn't work!"), and the timer is known to work.
//! * `mitigations=off`, `nokaslr`: the same costs and the same addresses in every run. There is nobody to defend against.
//! * `nowatchdog`: a loaded outer machine makes L1 stall without anything being wrong.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::appliance::Appliance;
use crate::emulator::INSTALLED;
use crate::run::RunError;
use crate::sys;

/// Where Debian's packages put the file server of QEMU 7.2.
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check nowatchdog audit=0";

/// An instruction is a nanosecond, and so is a cycle of the TSC.
const COUNTED: [&str; 2] = ["-icount", "shift=0,sleep=on"];
const COUNTED_TSC_KHZ: u64 = 1_000_000;

/// Our ends of the serial ports.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) input: UnixStream,
    pub(crate) output: UnixStream,
    pub(crate) errors: UnixStream,
    pub(crate) control: UnixStream,
}

/// A running L1. Dropping it ends its processes.
pub(crate) struct Machine {
    qemu: Child,
    files: Child,
    folder: PathBuf,
}

impl Machine {
    /// Starts L1. `folder` is the run's own, for the log files.
    pub(crate) fn start(
        appliance: &Appliance,
        memory_mib: u32,
        counted: bool,
        folder: &Path,
    ) -> Result<(Self, Ports), RunError> {
        let start = |what: &'static str| move |source| RunError::Start { what, source };

        let socket_path = folder.join("files.sock");
        let listener =
            UnixListener::bind(&socket_path).map_err(start("the file server's socket"))?;
        let mut files = file_server(&listener, &folder.join("files.log"))?;

        let (input, qemu_input) = UnixStream::pair().map_err(start("a port"))?;
        let (output, qemu_output) = UnixStream::pair().map_err(start("a port"))?;
        let (errors, qemu_errors) = UnixStream::pair().map_err(start("a port"))?;
        let (control, qemu_control) = UnixStream::pair().map_err(start("a port"))?;
        let ports = [&qemu_input, &qemu_output, &qemu_errors, &qemu_control].map(AsFd::as_fd);

        let mut command = Command::new(&appliance.emulator.program);
        for folder in &appliance.emulator.data {
            command.arg("-L").arg(folder);
        }
        command
            .args(options(memory_mib))
            .args(counted.then_some(COUNTED).into_iter().flatten())
            .arg("-kernel")
            .arg(&appliance.kernel);
        command.arg("-initrd").arg(&appliance.initrd);
        let tsc_khz = if counted {
            COUNTED_TSC_KHZ
        } else {
            sys::tsc_khz()
        };
        command
            .arg("-append")
            .arg(format!("{KERNEL_COMMAND_LINE} tsc_early_khz={tsc_khz}"));
        command
            .arg("-chardev")
            .arg(with_path("file,id=log,path=", &folder.join("console.log")));
        command
            .arg("-chardev")
            .arg(with_path("socket,id=files,path=", &socket_path));
        for (number, port) in (1..).zip(ports) {
            let descriptor = port.as_raw_fd();
            command
                .arg("-chardev")
                .arg(format!("socket,id=port{number},fd={descriptor}"));
            command
                .arg("-device")
                .arg(format!("virtserialport,nr={number},chardev=port{number}"));
        }
        let spawn = if counted {
            // Where it runs changes no result.
            sys::spawn_bound
        } else {
            sys::spawn_on_one_cpu
        };
        let spawned = log_to(&mut command, &folder.join("qemu.log"))
            .and_then(|command| spawn(command, &ports));
        match spawned {
            Ok(qemu) => {
                let machine = Self {
                    qemu,
                    files,
                    folder: folder.to_path_buf(),
                };
                Ok((
                    machine,
                    Ports {
                        input,
                        output,
                        errors,
                        control,
                    },
                ))
            }
            Err(source) => {
                end(&mut files);
                Err(missing_or(INSTALLED, source))
            }
        }
    }

    /// Says how the machine ended, if it has: the program that ended and its status.
    pub(crate) fn ended(&mut self) -> io::Result<Option<(&'static str, ExitStatus)>> {
        if let Some(status) = self.qemu.try_wait()? {
            return Ok(Some(("QEMU", status)));
        }
        Ok(self.files.try_wait()?.map(|status| ("virtiofsd", status)))
    }

    /// What the machine's logs say for an error message: from the first sign of a crash on, or else the last lines.
    pub(crate) fn log_tail(&mut self) -> String {
        let served = matches!(self.files.try_wait(), Ok(status) if status.is_none_or(|status| status.success()));
        let mut text = String::new();
        for name in ["files.log", "qemu.log", "console.log"] {
            // The file server grumbles when QEMU ends, which explains nothing.
            if name == "files.log" && served {
                continue;
            }
            let bytes = fs::read(self.folder.join(name)).unwrap_or_default();
            for line in telling_lines(&String::from_utf8_lossy(&bytes)) {
                text.push_str("\n  ");
                text.extend(line.chars().filter(|character| !character.is_control()));
            }
        }
        if text.is_empty() {
            "\n  (nothing)".into()
        } else {
            text
        }
    }

    /// Ends both programs.
    pub(crate) fn stop(&mut self) {
        end(&mut self.qemu);
        end(&mut self.files);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The lines of a log that tell most, at most 30.
fn telling_lines(log: &str) -> Vec<&str> {
    const SHOWN: usize = 30;
    const SIGNS: [&str; 4] = ["Kernel panic", "BUG: ", "Oops: ", "Out of memory"];
    let lines: Vec<&str> = log
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    let sign = |line: &&str| SIGNS.iter().any(|sign| line.contains(sign));
    let from = lines
        .iter()
        .position(sign)
        .unwrap_or(lines.len().saturating_sub(SHOWN));
    lines.into_iter().skip(from).take(SHOWN).collect()
}

/// Kills and reaps; a child that has ended already is no error.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn options(memory_mib: u32) -> Vec<String> {
    [
        "-M",
        "q35,memory-backend=memory",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-accel",
        "tcg,thread=single",
        "-smp",
        "1",
        "-cpu",
        "max,la57=off,erms=off,fsrm=off",
        "-m",
        &format!("{memory_mib}"),
        "-object",
        &format!("memory-backend-memfd,id=memory,size={memory_mib}M,share=on"),
        "-serial",
        "chardev:log",
        // First, so that init finds its ports as /dev/vport0p*.
        "-device",
        "virtio-serial-pci",
        "-device",
        "vhost-user-fs-pci,chardev=files,tag=root",
    ]
    .map(String::from)
    .into()
}

/// Starts the file server.
///
/// `cache=always`: what L1 read once it keeps; the outer machine's files do not change under a run. Writes still go
/// through at once. `announce_submounts`: a file on another file system keeps a device number of its own, so that two
/// different files never look the same. `sandbox=chroot`: the other sandbox needs a mount namespace, which containers
/// refuse, and the whole tree is shared anyway.
fn file_server(listener: &UnixListener, log: &Path) -> Result<Child, RunError> {
    if !Path::new(VIRTIOFSD).exists() {
        return Err(RunError::MissingProgram { program: VIRTIOFSD });
    }
    let mut command = if sys::is_root() {
        Command::new(VIRTIOFSD)
    } else {
        // The server switches user for every request; in a user namespace of its own it may.
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", VIRTIOFSD]);
        command.arg(format!("--rlimit-nofile={}", sys::open_files_limit()));
        command
    };
    command
        .arg("-f")
        .arg(format!("--fd={}", listener.as_raw_fd()));
    command.args([
        "-o",
        "source=/,cache=always,sandbox=chroot,announce_submounts,flock,log_level=warn",
    ]);
    let descriptor: BorrowedFd<'_> = listener.as_fd();
    log_to(&mut command, log)
        .and_then(|command| sys::spawn_bound(command, &[descriptor]))
        .map_err(|source| missing_or(VIRTIOFSD, source))
}

fn log_to<'a>(command: &'a mut Command, log: &Path) -> io::Result<&'a mut Command> {
    let log = File::create(log)?;
    Ok(command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log))
}

fn missing_or(program: &'static str, source: io::Error) -> RunError {
    if source.kind() == io::ErrorKind::NotFound {
        RunError::MissingProgram { program }
    } else {
        RunError::Start {
            what: program,
            source,
        }
    }
}

/// An option of QEMU that ends in a path: a comma in it is doubled.
fn with_path(option: &str, path: &Path) -> OsString {
    let mut bytes = option.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}
