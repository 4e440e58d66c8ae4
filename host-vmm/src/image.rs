//! `paravane image`: a root file system for guests, made of Debian's packages.
//!
//! # How it works
//!
//! mmdebstrap puts a small Debian into a tar archive, without privilege where it has none; `image/customize.sh` adds what a
//! guest needs: a login on whatever the kernel's console is, DHCP on whatever card there is. Then `mke2fs -d` makes an ext4
//! image of it, with the owners that fakeroot remembers. The mirrors are those that apt uses on this machine. With `--kernel`
//! Debian's own kernel is a package of it, too, whose initramfs has a full guest's drivers (`image/kernel.sh`).
//!
//! The result stays in the cache under the hash of its recipe, and each image that somebody asks for is a copy.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vmm_sys_util::tempdir::TempDir;

/// Which Debian.
const SUITE: &str = "bookworm";
/// What there is beside mmdebstrap's `minbase`. sysvinit, since the guests' kernels have no control groups for systemd.
const PACKAGES: [&str; 5] = [
    "sysvinit-core",
    "ifupdown",
    "udhcpc",
    "netbase",
    "iputils-ping",
];
/// Debian's own kernel, of the version that the others are built from.
const KERNEL: &str = "linux-image-6.12-amd64";
/// Endings of the files that an image with a kernel is; one without has only the last.
const PARTS: [&str; 3] = ["vmlinuz", "initrd", "img"];
/// What `paravane bench apps` runs.
const BENCHED: [&str; 7] = [
    "e2fsprogs",
    "sqlite3",
    "redis-server",
    "tcc",
    "libc6-dev",
    "fio",
    "iperf3",
];
/// What nobody reads in a guest.
const LEFT_OUT: [&str; 3] = ["man", "doc", "locale"];
const CUSTOMIZE: &str = include_str!("image/customize.sh");
const DRIVERS: &str = include_str!("image/kernel.sh");
/// Changed when the same inputs make another image.
const RECIPE: &str = "1";
/// Mebibytes of the image; the file has holes where nothing is.
const SIZE_MIB: u32 = 1024;
/// Images that stay in the cache.
const KEEP: usize = 4;
/// How often a program that runs is looked after.
const POLL: Duration = Duration::from_millis(50);
/// Lines of a program's output that are worth showing when it ends badly.
const TAIL: usize = 20;

/// Options of `paravane image debian`.
#[derive(Debug, Args)]
#[command(
    after_help = "It is Debian 12 with sysvinit, a login on the console (root, without a password), DHCP and apt. Boot it with\n\
    \x20   paravane run --guest full --kernel ~/.cache/paravane/kernel/full/vmlinux --disk debian.img --net user\n\
    or as kvm-pv; the VMM tells the kernel the root file system's name. `reboot` in the guest ends it.\n\
    \n\
    With --kernel the guest can have a kernel that nobody has changed, or even compiled, for it: Debian's. Only a full guest has \
    devices that it has drivers for.\n\
    \x20   paravane run --guest full --kernel debian.vmlinuz --initrd debian.initrd --memory 256 --disk debian.img --net user\n\
    \n\
    The first time takes about two minutes and 50 MB of packages (with --kernel 160 MB), from the mirrors that apt uses here; then it is a copy of \
    what is in the cache. It needs no root, but these packages, which ci/setup installs: mmdebstrap, fakeroot, e2fsprogs."
)]
pub struct DebianArgs {
    /// Where the image goes.
    #[arg(long, value_name = "FILE", default_value = "debian.img")]
    output: PathBuf,
    /// Write over a file that is there already.
    #[arg(long)]
    force: bool,
    /// Build it anew, with today's packages, even if there is one in the cache.
    #[arg(long)]
    fresh: bool,
    /// Have Debian's own kernel in it, and a copy beside it: FILE with the endings `.vmlinuz` and `.initrd`.
    #[arg(long, value_name = "PACKAGE", value_parser = package, num_args = 0..=1, require_equals = true,
          default_missing_value = KERNEL)]
    kernel: Option<String>,
    /// Further packages to have in it.
    #[arg(long, value_name = "PACKAGES", value_delimiter = ',', value_parser = package)]
    with: Vec<String>,
}

/// A package's name, as Debian's policy (section 5.6.1) has them: nothing else comes into a command line.
fn package(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if begins && name.len() > 1 && name.chars().all(fits) {
        return Ok(name.to_owned());
    }
    Err("a package's name has small letters, digits, `+`, `-` and `.`".to_owned())
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no place for the cache.
    #[error("there is no place for the cache; set HOME or PARAVANE_CACHE")]
    NoCache,
    /// The output exists.
    #[error("`{}` is there already; name another file (--output), or write over it (--force)", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// A program that is not installed.
    #[error("`{program}` is not installed: `apt-get install {package}` (ci/setup does)")]
    Missing {
        /// The program.
        program: String,
        /// The package that has it.
        package: &'static str,
    },
    /// apt has no mirror for the suite.
    #[error(
        "apt has no mirror for Debian {SUITE} on this machine; add one to /etc/apt/sources.list, and run `apt-get update`"
    )]
    NoMirror,
    /// A program failed.
    #[error("`{program}` failed ({status}); the end of what it said:\n{tail}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// Its last lines.
        tail: String,
    },
    /// A signal came.
    #[error("interrupted; nothing is left of the unfinished image")]
    Interrupted,
    /// A file that cannot be read or written.
    #[error("`{}` cannot be written: {reason}", path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    move |reason| ImageError::File {
        path: path.to_owned(),
        reason,
    }
}

/// `paravane image debian`.
///
/// # Errors
///
/// [`ImageError`]; each names the mend.
pub fn debian(args: &DebianArgs) -> Result<(), ImageError> {
    let outputs = parts(args.kernel.is_some()).iter().map(|part| match *part {
        "img" => (*part, args.output.clone()),
        beside => (beside, args.output.with_extension(beside)),
    });
    let outputs: Vec<_> = outputs.collect();
    if let Some((_, path)) = outputs
        .iter()
        .find(|(_, path)| path.exists() && !args.force)
    {
        let path = path.clone();
        return Err(ImageError::Exists { path });
    }
    let watch = Watch::new().map_err(at(&args.output))?;
    let image = cached(&watch, args.kernel.as_deref(), &args.with, args.fresh)?;
    for (part, output) in &outputs {
        // A copy that shares its blocks where the file system can, and has the same holes where not.
        let mut copy = Command::new("cp");
        copy.args(["--reflink=auto", "--sparse=always", "--"])
            .args([&image.with_extension(part), output]);
        if let Err(e) = watch.run(&mut copy, |_| ()) {
            let _ = fs::remove_file(output);
            return Err(e);
        }
        println!("image: {}", output.display());
    }
    Ok(())
}

/// Those of [`PARTS`] that an image has.
fn parts(has_kernel: bool) -> &'static [&'static str] {
    if has_kernel { &PARTS } else { &PARTS[2..] }
}

/// The image in the cache that `paravane bench apps` mounts, for reading.
///
/// # Errors
///
/// [`ImageError`]; each names the mend.
pub fn bench() -> Result<PathBuf, ImageError> {
    let watch = Watch::new().map_err(at(Path::new("debian.img")))?;
    cached(&watch, None, &BENCHED.map(str::to_owned), false)
}

/// The cached image, built if there is none; its other [`PARTS`] are beside it.
fn cached(
    watch: &Watch,
    kernel: Option<&str>,
    with: &[String],
    fresh: bool,
) -> Result<PathBuf, ImageError> {
    let cache = paravane_reference_host::cache_folder().ok_or(ImageError::NoCache)?;
    let folder = cache.join("image");
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    // Two at once would build the same twice.
    let lock = File::create(folder.join("lock")).map_err(at(&folder))?;
    lock.lock().map_err(at(&folder))?;
    let packages: Vec<&str> = PACKAGES
        .into_iter()
        .chain(with.iter().map(String::as_str))
        .chain(kernel)
        .collect();
    let packages = packages.join(",");
    let drivers = kernel.map(|_| DRIVERS);
    let name = format!("debian-{}", recipe(&packages, drivers));
    let image = folder.join(&name).with_extension("img");
    if fresh || !image.is_file() {
        build(watch, &packages, drivers, &folder, &image)?;
        prune(&folder, &image);
    }
    if !with.is_empty() {
        return Ok(image);
    }
    // What tests and scripts look for.
    let current = kernel.map_or("debian", |_| "debian-kernel");
    for part in parts(kernel.is_some()) {
        let current = folder.join(current).with_extension(part);
        let next = folder.join("next");
        let _ = fs::remove_file(&next);
        std::os::unix::fs::symlink(format!("{name}.{part}"), &next).map_err(at(&next))?;
        fs::rename(&next, &current).map_err(at(&current))?;
    }
    Ok(image)
}

/// The hash of all that makes the image what it is, but for the packages' versions.
fn recipe(packages: &str, drivers: Option<&str>) -> String {
    let size = SIZE_MIB.to_string();
    let parts = [RECIPE, SUITE, packages, CUSTOMIZE, &size].into_iter();
    let parts: Vec<_> = parts.chain(drivers).collect();
    let hash = Sha256::digest(parts.join("\0"));
    hash.iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Removes the oldest images of other recipes.
fn prune(folder: &Path, newest: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut old: Vec<_> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("debian-"))
        .map(|entry| entry.path())
        .filter(|path| path != newest && !path.is_symlink())
        .filter(|path| path.extension() == Some(OsStr::new("img")))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    old.sort();
    for (_, path) in old.iter().rev().skip(KEEP - 1) {
        for part in PARTS {
            let _ = fs::remove_file(path.with_extension(part));
        }
    }
}

fn build(
    watch: &Watch,
    packages: &str,
    drivers: Option<&str>,
    folder: &Path,
    image: &Path,
) -> Result<(), ImageError> {
    // Gone with whatever is in it, however this ends.
    let work = TempDir::new_in(folder).map_err(|e| at(folder)(io::Error::other(e.to_string())))?;
    let work = work.as_path();
    let sources = sources(watch)?;
    let archive = work.join("root.tar");
    let said = Progress::new("Debian image: about two minutes");
    let mut strap = Command::new("mmdebstrap");
    strap
        .args(["--variant=minbase", "--format=tar"])
        .arg(format!("--include={packages}"))
        // A file that is lost at a power cut is made again.
        .arg("--dpkgopt=force-unsafe-io")
        .args(LEFT_OUT.map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")))
        .args(
            proxies(watch)?
                .iter()
                .map(|line| format!("--aptopt={line}")),
        )
        .args(drivers.map(|hook| format!("--essential-hook={hook}")))
        .arg(format!("--customize-hook={CUSTOMIZE}"))
        .arg(SUITE)
        .arg(&archive)
        .arg("-");
    watch.run_with(&mut strap, sources.as_bytes(), |line| {
        if let Some(step) = line.strip_prefix("I: ") {
            said.step(step);
        }
    })?;
    said.step("making the file system");
    // All of it in one shell, for the owners are only in fakeroot's memory.
    let script = "mkdir root && tar -C root -xpf root.tar && \
                  mke2fs -q -t ext4 -m 0 -L debian -d root img \"$1M\" && \
                  if [ -e root/vmlinuz ]; then cp root/vmlinuz vmlinuz && cp root/initrd.img initrd; fi";
    let mut make = Command::new("fakeroot");
    make.current_dir(work)
        .args(["sh", "-c", script, "sh", &SIZE_MIB.to_string()])
        // Debian has it where only root looks.
        .env("PATH", search_path());
    watch.run(&mut make, |_| ())?;
    // The image is the last: where it is, the others are.
    for part in parts(drivers.is_some()) {
        let made = image.with_extension(part);
        fs::rename(work.join(part), &made).map_err(at(&made))?;
    }
    said.end();
    Ok(())
}

fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// The mirrors that apt uses on this machine for the suite, as lines of a sources.list.
fn sources(watch: &Watch) -> Result<String, ImageError> {
    let mut apt = Command::new("apt-get");
    apt.args([
        "indextargets",
        "--format",
        "$(SITE) $(RELEASE) $(COMPONENT)",
    ])
    .arg("Created-By: Packages");
    let mut lines: Vec<String> = Vec::new();
    watch.run(&mut apt, |line| {
        let mut words = line.split(' ');
        let (_, suite, Some("main")) = (words.next(), words.next(), words.next()) else {
            return;
        };
        let line = format!("deb {line}");
        if suite.is_some_and(|suite| suite.starts_with(SUITE)) && !lines.contains(&line) {
            lines.push(line);
        }
    })?;
    if lines.is_empty() {
        return Err(ImageError::NoMirror);
    }
    Ok(lines.join("\n") + "\n")
}

/// The proxies that apt uses on this machine.
fn proxies(watch: &Watch) -> Result<Vec<String>, ImageError> {
    let mut config = Command::new("apt-config");
    config.arg("dump");
    let mut lines = Vec::new();
    watch.run(&mut config, |line| {
        if line.starts_with("Acquire::http::Proxy ") || line.starts_with("Acquire::https::Proxy ") {
            lines.push(line.to_owned());
        }
    })?;
    Ok(lines)
}

/// What is going on, for who waits.
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new(title: &'static str) -> Self {
        if !io::stderr().is_terminal() {
            eprintln!("{title}");
            return Self(None);
        }
        let bar = ProgressBar::new_spinner().with_prefix(title);
        if let Ok(style) =
            indicatif::ProgressStyle::with_template("{spinner} {prefix}, {elapsed} gone: {msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(Some(bar))
    }

    fn step(&self, what: &str) {
        match &self.0 {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("  {what}"),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Runs programs, and passes on to them that we are to end.
struct Watch {
    interrupted: Arc<AtomicBool>,
}

impl Watch {
    fn new() -> io::Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        Ok(Self { interrupted })
    }

    fn run(&self, command: &mut Command, each: impl FnMut(&str)) -> Result<(), ImageError> {
        self.run_with(command, &[], each)
    }

    /// Runs a program with `input`, and calls `each` with every line that it says on either stream.
    fn run_with(
        &self,
        command: &mut Command,
        input: &[u8],
        mut each: impl FnMut(&str),
    ) -> Result<(), ImageError> {
        let program = command.get_program().to_owned();
        let broken = |reason| ImageError::Failed {
            program: program.to_string_lossy().into_owned(),
            status: "it cannot be started".to_owned(),
            tail: format!("{reason}"),
        };
        let (reader, writer) = io::pipe().map_err(broken)?;
        command
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().map_err(broken)?)
            .stderr(writer);
        let mut child = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => missing(&program),
            _ => broken(e),
        })?;
        // The command holds the pipe's writing end; without this the reading end never sees an end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read it says what it wants instead.
            let _ = stdin.write_all(input);
        }
        let (lines, status) = thread::scope(|scope| {
            let watching = scope.spawn(|| self.wait(&mut child));
            let mut tail = VecDeque::new();
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                each(&line);
                tail.push_back(line);
                if tail.len() > TAIL {
                    tail.pop_front();
                }
            }
            (tail, watching.join())
        });
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(ImageError::Interrupted);
        }
        match status {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(ImageError::Failed {
                program: program.to_string_lossy().into_owned(),
                status: status.to_string(),
                tail: Vec::from(lines).join("\n"),
            }),
            Ok(Err(e)) => Err(broken(e)),
            Err(_) => Err(broken(io::ErrorKind::Other.into())),
        }
    }

    /// Waits for the program's end, and asks for it once a signal has come: it has files of its own to remove.
    fn wait(&self, child: &mut Child) -> io::Result<std::process::ExitStatus> {
        let mut told = false;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.interrupted.load(Ordering::Relaxed) && !told {
                told = true;
                let pid = libc::pid_t::try_from(child.id()).unwrap_or(0);
                if pid > 0 {
                    // SAFETY: a signal to our own child, which has not been waited for, so that the number is still its own.
                    unsafe { libc::kill(pid, SIGINT) };
                }
            }
            thread::sleep(POLL);
        }
    }
}

fn missing(program: &OsStr) -> ImageError {
    let program = program.to_string_lossy().into_owned();
    let package = match program.as_str() {
        "mmdebstrap" => "mmdebstrap",
        "fakeroot" => "fakeroot",
        "apt-get" | "apt-config" => "apt",
        _ => "coreutils",
    };
    ImageError::Missing { program, package }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_or_is_missing_is_told() {
        let watch = Watch::new().unwrap();
        let mut lines = Vec::new();
        let mut shell = Command::new("sh");
        shell.args(["-c", "read word; echo got $word; echo bad >&2; exit 3"]);
        let result = watch.run_with(&mut shell, b"this\n", |line| lines.push(line.to_owned()));
        assert_eq!(lines, ["got this", "bad"]);
        match result {
            Err(ImageError::Failed { status, tail, .. }) => {
                assert!(status.contains('3') && tail.ends_with("bad"));
            }
            other => panic!("{other:?}"),
        }
        let result = watch.run(&mut Command::new("/no/such/program"), |_| ());
        assert!(matches!(result, Err(ImageError::Missing { .. })));
    }

    #[test]
    fn a_signal_reaches_the_program_and_ends_the_work() {
        let watch = Watch::new().unwrap();
        let flag = Arc::clone(&watch.interrupted);
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            "trap 'echo cleaned; exit 1' INT; echo ready; while :; do sleep 0.05; done",
        ]);
        let mut lines = Vec::new();
        let result = watch.run(&mut shell, |line| {
            lines.push(line.to_owned());
            flag.store(true, Ordering::Relaxed);
        });
        assert!(matches!(result, Err(ImageError::Interrupted)));
        assert_eq!(lines, ["ready", "cleaned"]);
    }
}
