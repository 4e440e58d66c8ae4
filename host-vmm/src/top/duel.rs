//! `paravane duel`: a full and a para guest, started at once, side by side.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use paravane_benches::GuestFiles;

use super::{GuestSnapshot, Pace, Record, Snapshot, Source, TopError, ask, show};

/// Options of `paravane duel`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Both guests boot the same initramfs and do the same; what their counters and consoles say stands side by side until \
    both have ended. q or Ctrl-C ends it.\n\
    Example: paravane duel --init 'job=console:65536 job=fork:500'"
)]
pub struct DuelArgs {
    #[command(flatten)]
    files: GuestFiles,
    /// What the guests' init does.
    #[arg(long, value_name = "TEXT", default_value = "job=console:16384")]
    init: String,
    /// Milliseconds between two looks.
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(50..))]
    interval: u64,
    /// Keep what is seen in this file, for `paravane top --replay`.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// The lines of a console that are shown.
const LINES: usize = 8;

/// How long a VMM may take to make its socket.
const STARTING: Duration = Duration::from_secs(20);

/// Both guests, ended when this is dropped.
struct Pair {
    folder: PathBuf,
    guests: BTreeMap<&'static str, Child>,
    began: Instant,
}

impl Pair {
    fn start(args: &DuelArgs) -> Result<Self, TopError> {
        let file = |path: &Path, source| TopError::File {
            path: path.display().to_string(),
            source,
        };
        let folder = std::env::temp_dir().join(format!("paravane-duel-{}", std::process::id()));
        fs::create_dir_all(&folder).map_err(|source| file(&folder, source))?;
        let mut pair = Self {
            folder: folder.clone(),
            guests: BTreeMap::new(),
            began: Instant::now(),
        };
        let cache = paravane_reference_host::cache_folder().unwrap_or_default();
        let or = |given: &Option<PathBuf>, cached: &str| {
            given.clone().unwrap_or_else(|| cache.join(cached))
        };
        let program = std::env::current_exe()?;
        for (guest, kernel, end) in [
            (
                "full",
                or(&args.files.kernel_full, "kernel/full/vmlinux"),
                "restart",
            ),
            (
                "para",
                or(&args.files.kernel_para, "kernel/para/vmlinux"),
                "poweroff",
            ),
        ] {
            let path = |kind: &str| folder.join(format!("{guest}.{kind}"));
            let errors =
                fs::File::create(path("errors")).map_err(|source| file(&path("errors"), source))?;
            let child = Command::new(&program)
                .args(["run", "--host=kvm", "--guest", guest])
                .arg("--kernel")
                .arg(kernel)
                .arg("--initrd")
                .arg(or(&args.files.initrd, "initramfs/guest.cpio"))
                .arg("--ctl")
                .arg(path("sock"))
                .arg("--console-log")
                .arg(path("console"))
                .arg(format!("--cmdline=-- {} end={end}", args.init))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(errors)
                .spawn()
                .map_err(|source| file(&program, source))?;
            pair.guests.insert(guest, child);
        }
        pair.wait_for_sockets()?;
        Ok(pair)
    }

    fn path(&self, guest: &str, kind: &str) -> PathBuf {
        self.folder.join(format!("{guest}.{kind}"))
    }

    /// Waits until both can be asked, so that both are seen from their beginning.
    fn wait_for_sockets(&mut self) -> Result<(), TopError> {
        let names: Vec<&str> = self.guests.keys().copied().collect();
        for guest in names {
            let socket = self.path(guest, "sock");
            while !socket.exists() {
                let ended = match self.guests.get_mut(guest) {
                    Some(child) => child.try_wait()?,
                    None => None,
                };
                if ended.is_some() || self.began.elapsed() > STARTING {
                    let reason = fs::read_to_string(self.path(guest, "errors"));
                    return Err(TopError::Guest {
                        guest: guest.to_owned(),
                        reason: reason.unwrap_or_default().trim().to_owned(),
                    });
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// The last lines of a guest's console, without what would move the cursor.
    fn console(&self, guest: &str) -> Vec<String> {
        let bytes = fs::read(self.path(guest, "console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.len().saturating_sub(LINES);
        let plain = |line: &&str| line.chars().filter(|c| !c.is_control()).collect();
        lines
            .get(last..)
            .unwrap_or_default()
            .iter()
            .map(plain)
            .collect()
    }
}

impl Source for Pair {
    fn next(&mut self) -> Result<Option<Snapshot>, TopError> {
        let mut guests: Vec<GuestSnapshot> = Vec::new();
        for guest in self.guests.keys() {
            if let Ok(snapshot) = ask(guest, &self.path(guest, "sock")) {
                guests.push(GuestSnapshot {
                    console: self.console(guest),
                    ..snapshot
                });
            }
        }
        let t_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok((!guests.is_empty()).then_some(Snapshot { t_ms, guests }))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in self.guests.values_mut() {
            // Both fail only when it has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Runs `paravane duel`, on the host that this process is on.
///
/// # Errors
///
/// [`TopError`].
pub fn duel(args: &DuelArgs) -> Result<(), TopError> {
    let mut record = args.record.as_deref().map(Record::create).transpose()?;
    let mut pair = Pair::start(args)?;
    let pace = Pace {
        interval: Duration::from_millis(args.interval),
        count: None,
    };
    show(&mut pair, pace, record.as_mut())
}
