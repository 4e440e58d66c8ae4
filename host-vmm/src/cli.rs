//! The command line of `paravane`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use paravane::config::{Config, ConfigError, Entry, FacilitySet, Io, Profile};
use paravane::disk::DiskSpec;
use paravane::gdb;
use paravane::lies::Lie;
use paravane::net::NetSpec;
use paravane::port::PortSpec;
use paravane::snapshot::{Instead, RestoreSpec, Snapshot};
use paravane::switcher::Users;
use paravane::virtio::poll::Poll;
use paravane::virtio::vhost::vsock::CIDS;

/// Paravane: a paravirtualization toolkit for Linux on KVM.
///
/// Runs one Linux kernel tree fully virtualized (`--guest full`: unmodified, on a legacy PC) and
/// paravirtualized (`--guest para`: patched to call the VMM), and measures what the change buys.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
#[command(
    after_help = "Start with `paravane doctor`: it tells what this host's KVM can run.\n\
    Kernels and an initramfs come from `cargo ci kernel full`, `cargo ci kernel para` and `cargo ci initramfs`."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a guest and run it until it switches itself off.
    Run(Box<RunArgs>),
    /// Tell what this host's KVM can do, what each crossing costs and which guests can run.
    Doctor(paravane::doctor::DoctorArgs),
    /// Talk to a running VMM: status, statistics, pause, power.
    Ctl(paravane::ctl::command::CtlArgs),
    /// Compare guests in pairs.
    Bench(Box<BenchArgs>),
    /// Watch running guests: exits by reason, calls by name, console, and how fast they come.
    Top(paravane::top::TopArgs),
    /// Boot a full and a para guest at once and watch both, side by side.
    Duel(DuelCommand),
    /// Show one operation as it really goes, crossing by crossing, in a full and in a para guest.
    Trace(paravane_benches::TraceArgs),
    /// Print the CPUID table that a guest would get, without running it.
    Cpuid(CpuidArgs),
    /// Make a root file system for guests.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Check hosts against the ABI's specification, clause by clause.
    #[command(subcommand)]
    Abi(AbiCommand),
}

/// Of which distribution.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Debian 12, small: a disk that boots to a login, with network.
    Debian(paravane::image::DebianArgs),
}

/// What to do about the ABI.
#[derive(Debug, Subcommand)]
pub(crate) enum AbiCommand {
    /// Check this VMM against every clause that a guest can see.
    Check(AbiCheckArgs),
    /// Write the guest that checks any host by itself, to be booted by another VMM.
    Guest(AbiGuestArgs),
}

/// Options of `paravane abi guest`.
#[derive(Debug, Args)]
#[command(
    after_help = "The file is an ELF kernel that needs nothing but the ABI: it finds the host by CPUID, makes calls, prints TAP with \
    console.write and switches off with base.power. hypercall-abi/CONFORMANCE.md tells how to boot it and what to compare.\n\
    Here: paravane run --guest para --host kvm --kernel FILE"
)]
pub(crate) struct AbiGuestArgs {
    /// The ELF file to write.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

/// Options of `paravane abi check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Boots a bare-metal guest of a few instructions for each check, and compares what comes back with what \
    hypercall-abi/SPEC.md says. Prints TAP 14: a line for each check, and one for each clause that no guest can \
    check, with the reason (`# SKIP untested: …`).\n\
    Exit status: 0 no check failed; 2 one did, or none could run; 1 the checks could not be started."
)]
pub(crate) struct AbiCheckArgs {
    /// Where the guests run.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) host: Host,
    /// Print one JSON object: the counts, and each clause with its checks.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `paravane bench`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "Examples:\n\
    \x20 paravane bench boot --arms full,kvm-pv,para,para --json samples.jsonl  the second para: the twin\n\
    \x20 paravane bench io --arms para,para@driver-domain,para@poll             by who serves the disk\n\
    \x20 paravane bench os --host reference                                     on the reference host, by the clock and not by instructions\n\
    \x20 paravane bench --all --out results                                     and results/report.html\n\
    A failed launch is told, and is no number. What is interrupted goes on with --resume FILE.\n\
    Exit status: 0 it was measured; 1 it was not, or launches failed."
)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) suite: Option<BenchCommand>,
    #[command(flatten)]
    pub(crate) all: paravane_benches::AllArgs,
}

/// Suites.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Boot full and para guests in turn: time, exits and console traffic, with their ratios.
    Boot(paravane_benches::BootArgs),
    /// What a guest's system calls, switches, forks, faults and signals cost: lmbench's set.
    Os(paravane_benches::SuiteArgs),
    /// Messages, hand-overs, TLB shoot-downs and locks of guests with several vCPUs.
    Sched(paravane_benches::SuiteArgs),
    /// Requests to a disk: IDE in a full guest, virtio in the others.
    Io(paravane_benches::SuiteArgs),
    /// Programs of a distribution: a compiler, a database, a cache; in a Debian that is made for them.
    Apps(paravane_benches::SuiteArgs),
    /// A guest beside a busy guest, one that crashes in a loop, and a busy host.
    Neighbours(paravane_benches::SuiteArgs),
    /// Measure privileged operations from inside the guests, and what each facility is worth in a boot.
    Ops(paravane_benches::OpsArgs),
    /// Make a report of raw samples: an HTML page, Markdown, CSV; with the claims that they bear on.
    Report(paravane_benches::ReportArgs),
    /// Make the launches of a benchmark that another machine collects.
    #[command(hide = true)]
    Inside(paravane_benches::InsideArgs),
}

/// Options of `paravane duel`, and where its guests run. clap wants another name than that of the options.
#[derive(Debug, Args)]
pub(crate) struct DuelCommand {
    /// Where the guests run.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) host: Host,
    #[command(flatten)]
    pub(crate) duel: paravane::top::DuelArgs,
}

/// Where a guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Host {
    /// This host's /dev/kvm where it can run the guest, the reference host otherwise.
    #[default]
    Auto,
    /// This host's /dev/kvm, or an error.
    Kvm,
    /// The reference host: an emulated machine with a stock KVM (slow, the same everywhere).
    Reference,
    /// The reference host, its time counted: an instruction is a nanosecond, so that a run repeats itself.
    Counted,
}

/// What follows a guest's restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnReboot {
    /// The machine starts again, as after a reset.
    Restart,
    /// The run ends, as if the guest had switched off.
    Exit,
}

/// Form of the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatsForm {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Options of `paravane run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, with K=~/.cache/paravane/kernel and I=~/.cache/paravane/initramfs/guest.cpio:\n\
    \x20 paravane run --guest para --kernel $K/para/vmlinux --initrd $I --cmdline '-- shell'\n\
    \x20 paravane run --kernel $K/full/vmlinux --disk debian.img --net user\n\
    \x20 paravane run --guest para … --stats text          what it has cost\n\
    \x20 paravane run --guest para … --pv=-console         without one facility\n\
    \x20 paravane run --guest para … --ctl /tmp/guest.ctl  and then: paravane ctl /tmp/guest.ctl status\n\
    \x20 paravane run --restore warm.snap                  go on from a snapshot\n\
    Keys on an interactive console: Ctrl-A x leaves the guest, Ctrl-A Ctrl-A sends Ctrl-A.\n\
    Exit status: 0 the guest switched off, or restarted and --on-reboot is exit; 1 it could not run: \
    the command line or something that it names is wrong, or the host cannot; 2 its kernel crashed; 3 the watchdog ended it; 130 you did."
)]
pub(crate) struct RunArgs {
    /// How the guest is virtualized.
    #[arg(long, value_enum, default_value = "full")]
    guest: Profile,
    /// Run several guests at once, each in a VMM process of its own: a TOML file with a table [[guest]] for each.
    ///
    /// A table has a `name`, any option of this command (`kernel = "vmlinux"`, `cpus = 2`, `disk = ["a.img"]`), and `restart`:
    /// `never`, `on-failure` or `always`, at most `restarts` times. On a terminal each guest has a pane, and Ctrl-A n goes to
    /// the next; elsewhere each line has its guest's name before it. The exit status is the greatest of theirs.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "guest", "cmdline", "initrd", "console_log", "ctl", "gdb", "stats"])]
    pub(crate) file: Option<PathBuf>,
    /// Kernel: an ELF `vmlinux` or a bzImage.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["file", "restore"])]
    pub(crate) kernel: Option<PathBuf>,
    /// Initial RAM file system.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// More for the kernel command line; after `--` come arguments for init.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// Guest memory.
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    memory: u64,
    /// Allocate guest memory before the guest starts, not at its first touch.
    #[arg(long)]
    prealloc: bool,
    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u8,
    /// Say that each vCPU has a processor of this host for itself: a kvm-pv or para guest then polls for a
    /// while before it halts. A loss where it is not so.
    #[arg(long)]
    dedicated: bool,
    /// Facilities of a para guest: `-clock,-crash` leaves these out, `console` has only that one.
    /// `exitless` is facility `ring` with a host thread that looks at the rings; `-exitless` leaves the thread out.
    #[arg(
        long,
        value_name = "LIST",
        default_value = "",
        allow_hyphen_values = true
    )]
    pv: String,
    /// Show the guest an image, or a block device of this host, as a disk; once for each disk.
    ///
    /// `truncate --size=1G disk.img && mkfs.ext4 disk.img` makes one. With `,readonly` behind it the guest cannot write to it,
    /// and several guests can have it at once; with `,format=qcow2` it is QEMU's format, in one file. A full guest has an IDE controller, and its disks are /dev/sda, /dev/sdb, …
    /// Without --initrd the first disk is the root file system, unless --cmdline has a root= of its own.
    ///
    /// With `,fail=SEED` one request in 16 fails with an I/O error and is not carried out; the seed says which. What a guest's kernel and
    /// programs make of it can so be tested; --stats says how many they were.
    ///
    /// With `,queues=N` (2 to 4) a virtio disk has so many queues, but no more than the guest has processors: they do not wait for
    /// each other then to make requests. An IDE disk has none, and one that a driver domain serves has one.
    ///
    /// With `,aio=io_uring` the host's kernel has up to 128 of a virtio disk's transfers under way at once, for images on a host's disk that
    /// takes its time. What the host has in its cache comes no sooner that way. Raw images only.
    #[arg(
        long,
        value_name = "FILE[,readonly][,format=FORMAT][,queues=N][,aio=io_uring][,fail=SEED]"
    )]
    disk: Vec<DiskSpec>,
    /// Connect the guest to a network: `user`, or `tap=NAME` for a TAP device of this host.
    ///
    /// `user` needs no privilege: Debian's passt makes connections of this host of the guest's. The guest gets its address
    /// (10.0.2.15) by DHCP; 10.0.2.2 is the gateway and, to the guest, this host's own 127.0.0.1, with all that listens there.
    /// A TAP device is made by root, `ip tuntap add tap0 mode tap user $USER && ip link set tap0 up`, and then bridged or
    /// routed as you like.
    #[arg(long, value_name = "NETWORK")]
    net: Option<NetSpec>,
    /// Give the guest a source of random numbers: virtio's entropy device, /dev/hwrng.
    #[arg(long)]
    rng: bool,
    /// Give the guest a balloon: virtio's device by which it gives back memory that it does not use, and, when `paravane ctl
    /// SOCKET memory MIB` asks for it, memory that it does.
    ///
    /// A guest that runs out of memory takes it back by itself. Its driver also tells how its memory is used: `paravane ctl SOCKET stats`.
    /// A para guest does all this by facility mem, and has a balloon without that only (--pv=-mem).
    #[arg(long)]
    balloon: bool,
    /// Let programs of the guest and of this host connect to each other without a network: the guest's address (CID), 3 or more.
    ///
    /// This host is 2 to the guest. Linux calls it vsock: `socat VSOCK-LISTEN:1234,fork EXEC:date` on the one side,
    /// `socat VSOCK-CONNECT:CID:1234 -` on the other. The host's kernel does it all (its module `vhost_vsock`).
    #[arg(long, value_name = "CID", value_parser = clap::value_parser!(u32).range(CIDS))]
    vsock: Option<u32>,
    /// Connect a file of the guest's with a Unix socket of this host, which is made here; once for each.
    ///
    /// The guest has it as /dev/vportNp0, N being the number of the virtio device, and NAME is in /sys/class/virtio-ports/vportNp0/name. One
    /// program of this host has the socket at a time: `socat - UNIX-CONNECT:SOCKET`.
    #[arg(long, value_name = "NAME=SOCKET")]
    port: Vec<PortSpec>,
    /// Where the guest's devices are served.
    #[arg(long, value_enum, default_value = "hosted")]
    io: Io,
    /// Whether threads of the host look at the guest's virtio queues by themselves, so that a request costs no exit.
    #[arg(long, value_enum, default_value = "off")]
    poll: Poll,
    /// How the kernel is entered.
    #[arg(long, value_enum, default_value = "linux64")]
    entry: Entry,
    /// Let the users of a direct guest share its kernel's address space: each can then read, change and be the kernel.
    ///
    /// For a guest that is one program, or whose programs are one user's: the VMM and its host are as safe as ever, but
    /// inside the guest nothing is kept from anybody. Where KVM is software a system call is then a jump, of about 2 µs
    /// in place of 20; elsewhere it saves loading page tables.
    #[arg(long)]
    no_user_isolation: bool,
    /// Carry out in the VMM what a kernel executes and this host's KVM cannot emulate: for hosts whose KVM is software, with
    /// --host kvm.
    ///
    /// An unmodified kernel then gets further than KVM alone would bring it, correctly and very slowly: at CPL 0 an instruction takes a
    /// microsecond, and one that KVM does not know some tens. An instruction that the VMM does not know either ends the run and is named.
    #[arg(long)]
    complete: bool,
    /// Where the guest runs.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) host: Host,
    /// Print statistics on standard error when the guest has ended.
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) stats: Option<StatsForm>,
    /// Write the statistics to a file instead.
    #[arg(long, value_name = "FILE", requires = "stats")]
    pub(crate) stats_file: Option<PathBuf>,
    /// Write the guest's console to a file instead of the terminal; it then has no input.
    #[arg(long, value_name = "FILE")]
    pub(crate) console_log: Option<PathBuf>,
    /// Make a control socket here, which `paravane ctl` and programs talk to; only you can open it.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) ctl: Option<PathBuf>,
    /// Wait for gdb here, and hold the guest before its first instruction until gdb lets it go on: a port of this machine, or
    /// unix:PATH. Then, elsewhere: gdb VMLINUX -ex 'target remote :PORT'
    ///
    /// Threads are vCPUs. Software and hardware breakpoints, watchpoints, steps, Ctrl-C, registers (control registers too) and
    /// memory by virtual address work; kill ends the run, detach lets it go on. A guest that dies can be looked at before the run
    /// ends. The watchdog goes on: see --watchdog. Where KVM is software or emulated there are no watchpoints, and where it is software a
    /// direct guest has neither breakpoints nor steps.
    #[arg(long, value_name = "PORT|unix:PATH")]
    pub(crate) gdb: Option<gdb::Address>,
    /// Let the guest run at once; gdb can come at any time.
    #[arg(long, requires = "gdb")]
    pub(crate) gdb_nowait: bool,
    /// Where the guest dies (panic, triple fault, watchdog, an error), write its memory and registers here, as an ELF core
    /// that gdb opens: gdb VMLINUX FILE. `paravane ctl SOCKET core FILE` writes one of a guest that lives.
    #[arg(long, value_name = "FILE")]
    pub(crate) core: Option<PathBuf>,
    /// Go on from a snapshot, which `paravane ctl SOCKET snapshot FILE` has written; any number of runs can, at once.
    ///
    /// It says what the run is: only --disk, --net and --kernel can be given besides, each in the place of what it names. Each run is
    /// a copy, and its kernel is told so: time of day and random numbers are not those of another copy. A disk that has
    /// been written to since, or is in use, is refused: give a copy that was made when the snapshot was. The file must stay as it is
    /// while a run uses it. Its checksums are compared first; with `,unchecked` behind it, not those of the memory. What all this takes, until
    /// the guest runs, is `setup` of --stats.
    #[arg(
        long,
        value_name = "FILE[,unchecked]",
        conflicts_with_all = ["file", "guest", "initrd", "cmdline", "memory", "cpus", "dedicated", "pv", "entry", "no_user_isolation", "awkward", "lies", "rng", "balloon", "vsock", "port"]
    )]
    pub(crate) restore: Option<RestoreSpec>,
    /// Keep inherited descriptors, all files and all system calls. Without this the VMM opens no files but its guest's once that
    /// runs (Landlock), and makes only the calls that it has a use for (seccomp); one that tries another is ended, and the call is named.
    #[arg(long)]
    pub(crate) no_sandbox: bool,
    /// What to do when the guest restarts itself: a restart goes on in the same process, on the same console.
    #[arg(long, value_enum, value_name = "ACTION", default_value = "exit")]
    pub(crate) on_reboot: OnReboot,
    /// Be a difficult host to a para guest, within the rules of the ABI; the seed says in which ways, and they are printed.
    ///
    /// It leaves out facilities (never `base` or `clock`), answers `Busy` or `HostError` to console and clock calls, answers
    /// late, looks at the console ring rarely or unasked and takes a few bytes only, raises events for nothing and moves
    /// the CPUID block. A guest that hangs or dies of it does not keep to hypercall-abi/SPEC.md.
    #[arg(long, value_name = "SEED")]
    awkward: Option<u64>,
    /// Tell a para guest what is not true, against the rules of the ABI: lies by name, with commas between; one that does not
    /// exist lists them.
    ///
    /// The guest shall go on without what it was lied about, or say why it cannot.
    #[arg(long, value_name = "LIES", value_delimiter = ',', value_parser = paravane::lies::named)]
    lies: Vec<&'static Lie>,
    /// Stop the guest after so many seconds, restarts included; 0: never. [default: 0 on a terminal, else 600]
    #[arg(long, value_name = "SECONDS")]
    watchdog: Option<u64>,
}

/// Seconds after which a run without a person in front of it is stopped.
const UNATTENDED_WATCHDOG: u64 = 600;

impl RunArgs {
    /// What the run may have to remove at its end.
    pub(crate) fn removes(&self) -> Vec<&Path> {
        let gdb = self.gdb.as_ref().and_then(gdb::Address::path);
        let all = [self.ctl.as_deref(), gdb, self.core.as_deref()];
        let ports = self.port.iter().map(PortSpec::path);
        all.into_iter().flatten().chain(ports).collect()
    }

    /// What goes on from a snapshot instead of what that says.
    pub(crate) fn instead(&self) -> Instead {
        Instead {
            kernel: self.kernel.clone(),
            disks: self.disk.clone(),
            net: self.net.clone(),
        }
    }

    /// The run that goes on from a snapshot, or that was asked for.
    pub(crate) fn config(&self, snapshot: Option<&Snapshot>) -> Result<Config, ConfigError> {
        let watchdog = self.watchdog();
        if let Some(snapshot) = snapshot {
            return Ok(Config {
                prealloc: self.prealloc,
                io: self.io,
                poll: self.poll,
                watchdog,
                ..snapshot.config().clone()
            });
        }
        let config = Config {
            watchdog,
            ..self.config_asked_for()?
        };
        config.validate()?;
        Ok(config)
    }

    fn watchdog(&self) -> Option<Duration> {
        let attended = self.console_log.is_none() && paravane::terminal::is_attended();
        let seconds = self
            .watchdog
            .unwrap_or(if attended { 0 } else { UNATTENDED_WATCHDOG });
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    fn config_asked_for(&self) -> Result<Config, ConfigError> {
        Ok(Config {
            profile: self.guest,
            // The command line has one, or a fleet's file, which this is not asked about.
            kernel: self.kernel.clone().unwrap_or_default(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            memory_mib: self.memory,
            prealloc: self.prealloc,
            vcpus: self.cpus,
            dedicated: self.dedicated,
            facilities: FacilitySet::parse(&self.pv)?,
            entry: self.entry,
            complete: self.complete,
            users: if self.no_user_isolation {
                Users::Shared
            } else {
                Users::Isolated
            },
            disks: self.disk.clone(),
            net: self.net.clone(),
            open_net: None,
            rng: self.rng,
            balloon: self.balloon,
            vsock: self.vsock,
            ports: self.port.clone(),
            io: self.io,
            poll: self.poll,
            watchdog: None,
            awkward: self.awkward,
            lies: self.lies.clone(),
        })
    }
}

/// Options of `paravane cpuid`.
#[derive(Debug, Args)]
pub(crate) struct CpuidArgs {
    /// How the guest is virtualized.
    #[arg(long, value_enum, default_value = "para")]
    pub(crate) guest: Profile,
    /// Number of vCPUs; the table is the first one's.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u8,
    /// Facilities of a para guest, as for `run`.
    #[arg(
        long,
        value_name = "LIST",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub(crate) pv: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn every_command_line_can_be_parsed() {
        Cli::command().debug_assert();
    }
}
