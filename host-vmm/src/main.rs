//! `paravane`: the command line. All that it does is in the library.

mod cli;

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, ValueEnum as _};

use cli::{
    AbiCheckArgs, AbiCommand, AbiGuestArgs, BenchArgs, BenchCommand, Cli, Command, CpuidArgs,
    DuelCommand, Host, ImageCommand, OnReboot, RunArgs, StatsForm,
};
use paravane::config::{Config, FACILITIES, FacilitySet, Profile};
use paravane::confine::{self, Needs};
use paravane::conformance::report::Report;
use paravane::console::Console;
use paravane::core::CoreFile;
use paravane::ctl::server::Server;
use paravane::event_loop::Signals;
use paravane::fleet::{self, Fleet};
use paravane::gdb;
use paravane::image::{DebianArgs, ImageError};
use paravane::kvm::cpuid::GuestCpuid;
use paravane::net::Net;
use paravane::pv::{BOOT_INFO, DOORBELL_PORT};
use paravane::snapshot::Snapshot;
use paravane::stats::{Outcome, Stats};
use paravane::terminal::{self, Raw};
use paravane::vm::{RunOptions, Vm};
use paravane_benches::TraceArgs;
use paravane_reference_host::Input;

fn main() -> ExitCode {
    let started = Instant::now();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Where nobody reads it there is nobody to tell.
            let _ = e.print();
            // A help text has been asked for. What is wrong is a failure like others: 2 is a guest's crash.
            return if e.use_stderr() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let result = match cli.command {
        Command::Run(args) => run(&args, started),
        Command::Doctor(args) => paravane::doctor::run(&args)
            .map(|_| ExitCode::SUCCESS)
            .map_err(Into::into),
        Command::Ctl(args) => paravane::ctl::command::run(&args)
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
        Command::Bench(args) => bench(&args),
        Command::Top(args) => paravane::top::run(&args)
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
        Command::Duel(args) => duel(&args),
        Command::Trace(args) => trace(&args),
        Command::Cpuid(args) => cpuid(&args),
        Command::Image(ImageCommand::Debian(args)) => image(&args),
        Command::Abi(AbiCommand::Check(args)) => abi_check(&args),
        Command::Abi(AbiCommand::Guest(args)) => abi_guest(&args),
    };
    terminal::restore();
    result.unwrap_or_else(|e| {
        eprintln!("paravane: {e:#}");
        ExitCode::FAILURE
    })
}

/// The class of the host that results are taken on.
fn host_class() -> String {
    paravane_benches::host::Host::here().name().to_owned()
}

/// That something has to go to the reference host.
struct Away {
    why: String,
    /// Whether time is counted there.
    counted: bool,
}

/// Whether it has to, where this host's KVM `can`not otherwise.
fn away(host: Host, can: impl FnOnce() -> Result<(), String>) -> Option<Away> {
    if paravane_reference_host::is_inside() {
        return None;
    }
    let counted = host == Host::Counted;
    let why = match host {
        Host::Kvm => return None,
        Host::Reference => "--host reference was given".to_owned(),
        Host::Counted => "--host counted was given".to_owned(),
        Host::Auto => can().err()?,
    };
    Some(Away { why, counted })
}

/// Whether a guest of `profile` has to.
fn needs_reference(host: Host, profile: Profile) -> Option<Away> {
    away(host, || paravane::doctor::can_run(profile))
}

/// What the reference host gets on top of the guest's watchdog before it counts as hung.
const REFERENCE_HOST_GRACE: Duration = Duration::from_secs(60);

/// Runs this very command line inside the reference host; `attended`: with this terminal; `limit`: how
/// long it may take.
fn in_reference_host(
    what: &str,
    away: &Away,
    attended: bool,
    limit: Option<Duration>,
) -> anyhow::Result<ExitCode> {
    eprintln!("paravane: {what} runs in the reference host: {}", away.why);
    let mut command = paravane_reference_host::Command::this_process()?;
    if away.counted {
        command = command.counted();
    }
    if let Some(limit) = limit {
        command = command.timeout(limit + REFERENCE_HOST_GRACE);
    }
    if attended {
        command = command.stdin(Input::Inherit);
    }
    if attended && terminal::is_terminal() {
        command = command.env(terminal::ATTENDED, "1").on_start(|| {
            // A terminal that cannot be made raw still works, line by line.
            if let Ok(raw) = Raw::enter() {
                // `main` restores it.
                std::mem::forget(raw);
            }
        });
    }
    let finished = command.run()?;
    Ok(ExitCode::from(u8::try_from(finished.code).unwrap_or(1)))
}

/// Runs the guests of a file.
fn run_fleet(path: &Path, host: Host) -> anyhow::Result<ExitCode> {
    let fleet = Fleet::read(path)?;
    for guest in &fleet.guests {
        let profile = guest.profile().unwrap_or("full");
        let profile = Profile::from_str(profile, false).map_err(|reason| {
            anyhow::anyhow!("guest {} of `{}`: {reason}", guest.name, path.display())
        })?;
        if let Some(away) = needs_reference(host, profile) {
            let what = format!("the fleet, since its guest {} is one that", guest.name);
            return in_reference_host(&what, &away, true, None);
        }
    }
    let program = std::env::current_exe().context("this program's own path is not known")?;
    let records = fleet::run(&fleet, &program)?;
    for record in &records {
        eprintln!(
            "paravane: {}: started {} times, {} failures, exit status {}",
            record.name,
            record.starts,
            record.failures,
            record
                .code
                .map_or_else(|| "none".to_owned(), |code| code.to_string())
        );
    }
    let codes = records.iter().map(|record| record.code.unwrap_or(1));
    Ok(ExitCode::from(
        u8::try_from(codes.max().unwrap_or(0)).unwrap_or(1),
    ))
}

fn run(args: &RunArgs, started: Instant) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.file {
        return run_fleet(path, args.host);
    }
    // Before any thread is there that has descriptors of its own, as the probes of this host's KVM have.
    if !args.no_sandbox {
        confine::descriptors()?;
    }
    let mut snapshot = match &args.restore {
        Some(spec) => {
            let read = Snapshot::open(spec, &args.instead());
            let path = spec.path.display();
            Some(read.with_context(|| format!("nothing is started from the snapshot `{path}`, which `paravane ctl SOCKET snapshot FILE` writes"))?)
        }
        None => None,
    };
    let config = args.config(snapshot.as_ref())?;
    if let Some(away) = needs_reference(args.host, config.profile) {
        let what = format!("the {} guest", config.profile);
        if let Some(path) = &args.ctl {
            eprintln!(
                "paravane: its control socket `{}` answers in there, and not out here",
                path.display()
            );
        }
        if let Some(address) = &args.gdb {
            eprintln!("paravane: gdb reaches {address} in there, and not from out here");
        }
        let attended = args.console_log.is_none();
        return in_reference_host(&what, &away, attended, config.watchdog);
    }
    if args.host == Host::Kvm
        && let Err(why) = paravane::doctor::can_run(config.profile)
    {
        eprintln!(
            "paravane: warning: this host's KVM cannot run a {} guest: {why}",
            config.profile
        );
    }
    let ctl = args.ctl.as_deref().map(Server::bind).transpose()?;
    let ctl = ctl.map(Arc::new);
    let gdb = args.gdb.as_ref();
    let gdb = gdb
        .map(|address| gdb::Server::bind(address, !args.gdb_nowait))
        .transpose()?;
    let gdb = gdb.map(Arc::new);
    if let Some(server) = &gdb {
        let kernel = config.kernel.display();
        eprintln!(
            "paravane: gdb can come: gdb {kernel} -ex 'target remote {}'",
            server.address()
        );
    }
    // Console, terminal, network and sockets stay as they are when the guest restarts.
    let console = match &args.console_log {
        Some(path) => Console::file(path).with_context(|| {
            format!(
                "the console log `{}` cannot be written: its folder must exist and let you write",
                path.display()
            )
        })?,
        None => Console::stdout()?,
    };
    // From here on every way out restores the terminal: drop, `main`, and the panic hook.
    let mut raw = (args.console_log.is_none() && terminal::is_terminal())
        .then(Raw::enter)
        .transpose()?;
    // What is written at the end is opened now: a path that cannot be is told before the guest runs, and a confined VMM opens no more.
    let core = args.core.as_deref().map(CoreFile::create).transpose()?;
    let files = Files {
        core: core.map(Arc::new),
        stats: args.stats_file.as_deref().map(stats_file).transpose()?,
    };
    let (limit, first) = (config.watchdog, started);
    let (mut config, mut started) = (config, started);
    config.open_net = config.net.as_ref().map(Net::open).transpose()?;
    loop {
        let sockets = (ctl.clone(), gdb.clone());
        let signals = Signals::block().context("signals cannot be watched")?;
        let vm = build(&config, snapshot.take(), console.clone(), started)?;
        let stats = run_once(args, vm, signals, sockets, &files)?;
        let again = stats.outcome == Outcome::Reboot && args.on_reboot == OnReboot::Restart;
        if !again {
            raw.take();
        }
        report(args, &files, &stats)?;
        if again {
            config.watchdog = limit.map(|limit| limit.saturating_sub(first.elapsed()));
            started = Instant::now();
            continue;
        }
        return Ok(ExitCode::from(match stats.outcome {
            Outcome::PowerOff | Outcome::Reboot => 0,
            Outcome::Error | Outcome::Running => 1,
            Outcome::Crash | Outcome::TripleFault => 2,
            Outcome::Watchdog => 3,
            Outcome::Interrupted => 130,
        }));
    }
}

/// A machine that is ready to begin, or to go on.
fn build(
    config: &Config,
    snapshot: Option<Snapshot>,
    console: Console,
    started: Instant,
) -> anyhow::Result<Vm> {
    if let Some(snapshot) = snapshot {
        return Vm::restored(snapshot, config.clone(), console, started)
            .context("nothing is started from the snapshot");
    }
    let mut vm = Vm::new(config.clone(), console, started)?;
    if let Some(awkward) = vm.awkward() {
        eprintln!("paravane: {awkward}");
    }
    vm.boot()?;
    Ok(vm)
}

fn run_once(
    args: &RunArgs,
    vm: Vm,
    signals: Signals,
    (ctl, gdb): (Option<Arc<Server>>, Option<Arc<gdb::Server>>),
    files: &Files,
) -> anyhow::Result<Stats> {
    if !args.no_sandbox {
        let lacks = confine::process(&Needs {
            config: vm.machine().config(),
            restarts: args.on_reboot == OnReboot::Restart,
            removes: args.removes(),
        })?;
        for lack in lacks {
            eprintln!("paravane: warning: {lack}; --no-sandbox says that it may");
        }
    }
    Ok(vm.run(RunOptions {
        stdin: args.console_log.is_none(),
        signals: Some(signals),
        host: host_class(),
        ctl,
        gdb,
        core: files.core.clone(),
    })?)
}

/// The files of a run that are written at its end.
struct Files {
    core: Option<Arc<CoreFile>>,
    stats: Option<File>,
}

fn stats_file(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| {
        format!(
            "the statistics `{}` cannot be written: its folder must exist and let you write",
            path.display()
        )
    })
}

fn report(args: &RunArgs, files: &Files, stats: &Stats) -> anyhow::Result<()> {
    if let Some(message) = &stats.message {
        eprintln!("paravane: {message}");
    }
    let text = match args.stats {
        None => return Ok(()),
        Some(StatsForm::Text) => stats.to_string(),
        Some(StatsForm::Json) => format!("{}\n", serde_json::to_string(stats)?),
    };
    match files.stats.as_ref() {
        None => eprint!("{text}"),
        Some(mut file) => {
            // Those of the last run, where the guest has started again.
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| file.write_all(text.as_bytes()))
                .context("the statistics cannot be written")?;
        }
    }
    Ok(())
}

fn bench(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let cannot = |profile| paravane::doctor::can_run(profile).err();
    let unfit = || {
        if paravane_reference_host::is_inside() {
            return None;
        }
        cannot(Profile::Full).or_else(|| cannot(Profile::Para))
    };
    let direct_here = || !paravane_reference_host::is_inside() && cannot(Profile::Direct).is_none();
    let names = FACILITIES.iter().map(|(name, _)| *name);
    // Without a clock a guest starts only where CPUID tells the frequency of the TSC.
    let optional: Vec<&str> = names
        .filter(|name| !matches!(*name, "base" | "clock"))
        .collect();
    let root = || Ok(paravane::image::bench()?);
    match &args.suite {
        None => paravane_benches::all(
            &args.all,
            &optional,
            unfit().as_deref(),
            direct_here(),
            root,
        ),
        Some(BenchCommand::Boot(args)) => paravane_benches::boot(args, unfit().as_deref()),
        Some(BenchCommand::Os(args)) => paravane_benches::run_suite("os", args, unfit().as_deref()),
        Some(BenchCommand::Sched(args)) => {
            paravane_benches::run_suite("sched", args, unfit().as_deref())
        }
        Some(BenchCommand::Neighbours(args)) => {
            paravane_benches::run_suite("neighbours", args, unfit().as_deref())
        }
        Some(BenchCommand::Io(args)) => paravane_benches::run_suite("io", args, unfit().as_deref()),
        Some(BenchCommand::Apps(args)) => {
            let mut args = args.clone();
            if args.common.files.root.is_none() {
                args.common.files.root = Some(root()?);
            }
            paravane_benches::run_suite("apps", &args, unfit().as_deref())
        }
        Some(BenchCommand::Ops(args)) => paravane_benches::ops(args, &optional, unfit().as_deref()),
        Some(BenchCommand::Report(args)) => paravane_benches::report(args),
        Some(BenchCommand::Inside(args)) => paravane_benches::inside(args),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn duel(args: &DuelCommand) -> anyhow::Result<ExitCode> {
    if let Some(away) = needs_reference(args.host, Profile::Full) {
        return in_reference_host("the duel", &away, true, None);
    }
    paravane::top::duel(&args.duel)?;
    Ok(ExitCode::SUCCESS)
}

/// What two traced launches may take on the reference host.
const TRACE_LIMIT: Duration = Duration::from_secs(600);

fn trace(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    use paravane_benches::host::Host as BenchHost;
    let host = match args.host {
        None => Host::Auto,
        Some(BenchHost::Kvm) => Host::Kvm,
        Some(BenchHost::Reference) => Host::Reference,
        Some(BenchHost::Counted) => Host::Counted,
    };
    if let Some(away) = needs_reference(host, Profile::Full) {
        return in_reference_host("the trace", &away, false, Some(TRACE_LIMIT));
    }
    paravane_benches::trace(args)?;
    Ok(ExitCode::SUCCESS)
}

/// What the checks may take on the reference host.
const ABI_CHECK_LIMIT: Duration = Duration::from_secs(600);

fn abi_check(args: &AbiCheckArgs) -> anyhow::Result<ExitCode> {
    // The guests have but a few instructions: any KVM can run them.
    let opens = || paravane::kvm::open().map(drop).map_err(|e| e.to_string());
    if let Some(away) = away(args.host, opens) {
        let what = "the conformance suite";
        return in_reference_host(what, &away, false, Some(ABI_CHECK_LIMIT));
    }
    let report = Report::make(host_class());
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(ExitCode::from(if report.conforms() { 0 } else { 2 }))
}

fn abi_guest(args: &AbiGuestArgs) -> anyhow::Result<ExitCode> {
    let path = &args.output;
    std::fs::write(path, paravane::doctor::image::CONFORMANCE_ELF).with_context(|| {
        format!(
            "the guest `{}` cannot be written: its folder must exist and let you write",
            path.display()
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn image(args: &DebianArgs) -> anyhow::Result<ExitCode> {
    match paravane::image::debian(args) {
        Err(e @ ImageError::Interrupted) => {
            eprintln!("paravane: {e}");
            Ok(ExitCode::from(130))
        }
        result => Ok(result.map(|()| ExitCode::SUCCESS)?),
    }
}

fn cpuid(args: &CpuidArgs) -> anyhow::Result<ExitCode> {
    let facilities = FacilitySet::parse(&args.pv)?;
    let kvm = paravane::kvm::open()?;
    let table = GuestCpuid::new(&kvm, args.guest, facilities, BOOT_INFO, DOORBELL_PORT)?;
    let mut out = std::io::stdout().lock();
    let entries = table.for_vcpu(0, args.cpus);
    if args.json {
        let rows: Vec<_> = entries
            .iter()
            .map(|e| {
                serde_json::json!({
                    "leaf": format!("{:#010x}", e.function), "index": e.index,
                    "eax": format!("{:#010x}", e.eax), "ebx": format!("{:#010x}", e.ebx),
                    "ecx": format!("{:#010x}", e.ecx), "edx": format!("{:#010x}", e.edx),
                })
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
    } else {
        writeln!(
            out,
            "leaf       index  eax        ebx        ecx        edx"
        )?;
        for e in entries {
            writeln!(
                out,
                "{:#010x} {:>5}  {:#010x} {:#010x} {:#010x} {:#010x}",
                e.function, e.index, e.eax, e.ebx, e.ecx, e.edx
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
