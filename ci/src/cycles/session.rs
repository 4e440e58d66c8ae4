//! One guest after the other, each with what can be done to it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use serde::Serialize;
use serde_json::{Value, json};

use super::Made;
use crate::holds::Holds;

/// A guest that takes longer for one thing, a boot for example, hangs; a busy machine has made a boot take 75 s.
const LIMIT: Duration = Duration::from_secs(240);
/// How often what is waited for is looked at.
const POLL: Duration = Duration::from_millis(20);
/// The guest's first process without its report, which takes longer than the boot.
const QUIETLY: &str = "quiet -- quietly";
/// A guest that writes to a disk which fails, and reads from it, whatever becomes of that; busybox is its first process.
const FAILING_DISK: &str = "quiet rdinit=/bin/busybox -- sh -c \"B=busybox; $B mount -t devtmpfs d /dev; for n in $($B seq 40); do \
    $B dd if=/bin/busybox of=/dev/vda bs=4k count=9 seek=$n conv=fsync; $B dd if=/dev/vda of=/dev/null bs=4k count=9 skip=$n; \
    done 2>/dev/null; echo alive; $B END -f\"";

/// A guest's session, as it is reported.
#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    index: u32,
    kind: &'static str,
    arguments: String,
    cycles: u32,
    seconds: f64,
    result: &'static str,
    why: Option<String>,
}

/// Runs sessions until `count` cycles are done, and writes a line of JSON for each. `clones`: copies of direct guests only.
pub(super) fn run_all(
    made: &Made,
    seed: u64,
    count: u32,
    clones: bool,
    out: &mut impl Write,
) -> Result<()> {
    let mut random = Rng::with_seed(seed);
    let mut left = count;
    for index in 0.. {
        let mut guest = Guest::new(made, seed, index)?;
        let started = Instant::now();
        let most = left;
        let (kind, result) = match random.u32(..8) {
            _ if clones => ("clone", guest.clones(&mut random, most, "direct")),
            5 => ("clone", guest.clones(&mut random, most, "para")),
            0 | 1 => ("boot", guest.boot(&mut random)),
            2 => ("restart", guest.restart(&mut random, most)),
            3 => ("reset", guest.reset(&mut random, most)),
            6 => ("kill", guest.kill(&mut random)),
            7 => ("disk", guest.failing_disk(&mut random)),
            _ => ("hotplug", guest.hotplug(&mut random, most)),
        };
        let why = result.err().map(|error| format!("{error:#}"));
        let hangs = guest.is_running();
        if why.is_some() && hangs {
            guest.keep_state()?;
        }
        guest.end(why.is_some())?;
        let report = Report {
            seed,
            index,
            kind,
            arguments: guest.arguments,
            cycles: guest.cycles.clamp(1, left),
            seconds: started.elapsed().as_secs_f64(),
            result: match (&why, hangs) {
                (None, _) => "good",
                (_, false) => "failed",
                (_, true) => "hangs",
            },
            why,
        };
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        out.flush()?;
        left -= report.cycles;
        if left == 0 {
            break;
        }
    }
    Ok(())
}

/// A guest and its VMM.
struct Guest<'a> {
    made: &'a Made,
    arguments: String,
    child: Option<Child>,
    console: PathBuf,
    errors: PathBuf,
    socket: PathBuf,
    cycles: u32,
}

impl<'a> Guest<'a> {
    fn new(made: &'a Made, seed: u64, index: u32) -> Result<Self> {
        fs::create_dir_all(&made.folder)?;
        let log = |kind: &str| made.folder.join(format!("{seed}-{index}.{kind}"));
        Ok(Self {
            made,
            arguments: String::new(),
            child: None,
            console: log("console"),
            errors: log("errors"),
            // Not every file system has sockets; this one has.
            socket: Path::new("/dev/shm").join(format!("cycles-{}", std::process::id())),
            cycles: 0,
        })
    }

    /// A boot to init, and the end that init brings about.
    fn boot(&mut self, random: &mut Rng) -> Result<()> {
        const LEFT_OUT: [&str; 9] = [
            "console", "cpuid", "crash", "irq", "ipi", "tlb", "sched", "smp", "ring",
        ];
        let (is_para, arguments) = match random.u32(..8) {
            0 => (false, "--guest full".to_owned()),
            1 => (false, "--guest kvm-pv".to_owned()),
            2 => (true, "--guest full".to_owned()),
            3 => (true, "--guest kvm-pv".to_owned()),
            4 => {
                let facility = LEFT_OUT[random.usize(..LEFT_OUT.len())];
                (true, format!("--guest para --pv=-{facility}"))
            }
            5 => (
                true,
                format!("--guest para --awkward {}", random.u32(..1000)),
            ),
            _ => (true, "--guest para".to_owned()),
        };
        let cpus = random.u32(1..=4);
        self.start(
            is_para,
            &format!("{arguments} --cpus {cpus} --ctl SOCKET"),
            QUIETLY,
        )?;
        self.wait()?;
        self.cycles += 1;
        Ok(())
    }

    /// A guest whose disk fails now and then: it goes on, and so does its VMM.
    fn failing_disk(&mut self, random: &mut Rng) -> Result<()> {
        let image = self.socket.with_extension("img");
        File::create(&image)?.set_len(1 << 20)?;
        let is_para = random.bool();
        let (guest, end) = if is_para {
            ("para", "poweroff")
        } else {
            ("kvm-pv", "reboot")
        };
        let disk = format!("{},fail={}", image.display(), random.u32(..1000));
        let arguments = format!("--guest {guest} --disk {disk}");
        self.start(is_para, &arguments, &FAILING_DISK.replace("END", end))?;
        self.wait()?;
        fs::remove_file(image)?;
        if !fs::read_to_string(&self.console)?.contains("alive") {
            bail!("the guest has not come to the end of its work");
        }
        self.cycles += 1;
        Ok(())
    }

    /// A guest that restarts itself until it is switched off, at a moment that it has not chosen.
    fn restart(&mut self, random: &mut Rng, most: u32) -> Result<()> {
        let is_para = random.bool();
        let guest = if is_para { "para" } else { "full" };
        let cpus = random.u32(1..=3);
        let arguments =
            format!("--guest {guest} --cpus {cpus} --on-reboot restart --ctl SOCKET --stats json");
        self.start(is_para, &arguments, &format!("{QUIETLY} end=restart"))?;
        let wanted = random.u32(1..=4).min(most);
        // Statistics come with every end.
        self.until("the guest has not restarted", |guest| {
            let text = fs::read_to_string(&guest.errors).unwrap_or_default();
            let restarts = text.matches("\"outcome\":\"reboot\"").count();
            Ok(u32::try_from(restarts)? >= wanted)
        })?;
        self.cycles += wanted;
        sleep(Duration::from_millis(random.u64(..500)));
        self.power_off()
    }

    /// A guest that is reset from outside, at any moment of its boot.
    fn reset(&mut self, random: &mut Rng, most: u32) -> Result<()> {
        let arguments = "--guest para --cpus 2 --on-reboot restart --ctl SOCKET";
        self.start(true, arguments, "quiet -- shell")?;
        self.until("the VMM does not answer", Self::answers)?;
        let before = if random.bool() {
            self.until("the guest's kernel does not listen", Self::is_up)?;
            // The second machine takes about a MiB of the heap, which all later ones use again.
            self.ctl(&json!({"command": "power", "action": "reset"}))?;
            self.cycles += 1;
            self.until("the guest has not come up after a reset", Self::is_up)?;
            self.holds()
        } else {
            None
        };
        for _ in 0..random.u32(1..=4).min(most) {
            sleep(Duration::from_millis(random.u64(..1500)));
            self.ctl(&json!({"command": "power", "action": "reset"}))?;
            self.cycles += 1;
        }
        // The last one is to come up.
        self.until("the guest has not come up after a reset", Self::is_up)?;
        self.has_not_grown(before)?;
        self.power_off()
    }

    /// A guest whose processors go off and on at the host's wish.
    fn hotplug(&mut self, random: &mut Rng, most: u32) -> Result<()> {
        let cpus = [2, 2, 3, 4, 4, 8][random.usize(..6)];
        let arguments = format!("--guest para --cpus {cpus} --ctl SOCKET");
        self.start(true, &arguments, "quiet -- shell")?;
        self.until("the guest's kernel does not listen", Self::is_up)?;
        let before = self.holds();
        for _ in 0..random.u32(4..=10).min(most) {
            let paused = random.u32(..4) == 0;
            if paused {
                self.ctl(&json!({"command": "pause"}))?;
            }
            let count = random.u32(1..=cpus);
            self.ctl(&json!({"command": "cpus", "count": count}))?;
            if paused {
                self.ctl(&json!({"command": "resume"}))?;
            }
            // Half of the wishes are replaced by the next before they are followed.
            if random.bool() {
                self.has_on(count)?;
            }
            self.cycles += 1;
        }
        self.ctl(&json!({"command": "cpus", "count": cpus}))?;
        self.has_on(cpus)?;
        self.has_not_grown(before)?;
        self.power_off()
    }

    /// A guest that is saved while it has nothing to do, and copies of it, which all come to its end.
    fn clones(&mut self, random: &mut Rng, most: u32, guest: &str) -> Result<()> {
        let cpus = random.u32(1..=2);
        let arguments = format!("--guest {guest} --cpus {cpus} --ctl SOCKET");
        self.start(true, &arguments, "quiet -- quietly job=idle:1000")?;
        self.until("the guest's kernel does not listen", Self::is_up)?;
        let snapshot = self.socket.with_extension("snapshot");
        let saved = Command::new(&self.made.paravane)
            .arg("ctl")
            .arg(&self.socket)
            .arg("snapshot")
            .arg(&snapshot)
            .output()?;
        if !saved.status.success() {
            bail!("no snapshot: {}", String::from_utf8_lossy(&saved.stderr));
        }
        self.power_off()?;
        for _ in 1..random.u32(10..=50).min(most) {
            let restore = [Path::new("--restore"), &snapshot];
            self.spawn(restore)?;
            self.wait()?;
            self.cycles += 1;
        }
        fs::remove_file(snapshot)?;
        Ok(())
    }

    /// A VMM that is killed at any moment, and one that takes its place: the socket that was left behind is no obstacle.
    fn kill(&mut self, random: &mut Rng) -> Result<()> {
        let arguments = "--guest para --cpus 2 --ctl SOCKET";
        for _ in 0..2 {
            self.start(true, arguments, "quiet -- shell")?;
            self.until("the VMM does not answer", Self::answers)?;
            sleep(Duration::from_millis(random.u64(..1500)));
            if let Some(mut child) = self.child.take_if(|_| self.cycles == 0) {
                child.kill()?;
                child.wait()?;
                self.cycles += 1;
            }
        }
        self.power_off()
    }

    /// Whether the VMM holds more than it did `before`, at the same place of what it does again and again.
    fn has_not_grown(&self, before: Option<Holds>) -> Result<()> {
        let now = self.holds();
        match before
            .zip(now)
            .and_then(|(before, now)| now.grown_since(before))
        {
            None => Ok(()),
            Some(how) => bail!("{how}"),
        }
    }

    fn holds(&self) -> Option<Holds> {
        Holds::of(self.child.as_ref()?.id())
    }

    /// Whether the VMM answers.
    fn answers(&mut self) -> Result<bool> {
        Ok(UnixStream::connect(&self.socket).is_ok())
    }

    /// Whether the guest's kernel takes wishes, which it does late in its boot.
    fn is_up(&mut self) -> Result<bool> {
        if !self.answers()? {
            return Ok(false);
        }
        let answer = self.ask(&json!({"command": "cpus", "count": 0}))?;
        match answer["error"]["code"].as_str() {
            None => Ok(true),
            Some("no-hotplug") => Ok(false),
            Some(_) => bail!("{answer}"),
        }
    }

    /// Waits until so many processors are on.
    fn has_on(&mut self, count: u32) -> Result<()> {
        self.until("the guest has not followed a wish", |guest| {
            let status = guest.ctl(&json!({"command": "status"}))?;
            let on = status["cpus_on"].as_array().map_or(0, Vec::len);
            Ok(u32::try_from(on)? == count)
        })
    }

    fn start(&mut self, is_para: bool, arguments: &str, cmdline: &str) -> Result<()> {
        let kernel = if is_para {
            &self.made.para
        } else {
            &self.made.full
        };
        self.arguments = format!("{arguments} --cmdline '{cmdline}'");
        let socket = self.socket.to_string_lossy().into_owned();
        let arguments = arguments.split(' ').map(|a| a.replace("SOCKET", &socket));
        let mut all: Vec<OsString> = vec!["--kernel".into(), kernel.into()];
        all.extend(["--initrd".into(), self.made.initrd.clone().into()]);
        all.extend(["--cmdline".into(), cmdline.into()]);
        all.extend(arguments.map(OsString::from));
        self.spawn(all)
    }

    fn spawn(&mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<()> {
        let child = Command::new(&self.made.paravane)
            .args(["run", "--host", "kvm", "--watchdog", "300"])
            .arg("--console-log")
            .arg(&self.console)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&self.errors)?)
            .spawn();
        self.child = Some(child.context("the VMM cannot be started")?);
        Ok(())
    }

    /// Waits until `done`; `late` says what is wrong where that takes too long.
    fn until(&mut self, late: &str, done: impl Fn(&mut Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !done(self)? {
            if !self.is_running() {
                bail!("{late}, and its VMM has ended");
            }
            if Instant::now() >= deadline {
                bail!("{late} after {} s", LIMIT.as_secs());
            }
            sleep(POLL);
        }
        Ok(())
    }

    fn is_running(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits for a good end.
    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.is_running() {
            if Instant::now() >= deadline {
                bail!("the guest has not ended after {} s", LIMIT.as_secs());
            }
            sleep(POLL);
        }
        let status = self.child.as_mut().context("nothing was started")?.wait()?;
        if !status.success() {
            bail!("the VMM ended with {status}");
        }
        Ok(())
    }

    fn power_off(&mut self) -> Result<()> {
        self.ctl(&json!({"command": "power", "action": "off"}))?;
        self.wait()?;
        self.cycles += 1;
        Ok(())
    }

    /// Asks the VMM; a refusal is an error.
    fn ctl(&self, request: &Value) -> Result<Value> {
        let mut answer = self.ask(request)?;
        if answer["error"].is_object() {
            bail!("{request}: {}", answer["error"]);
        }
        Ok(answer["ok"].take())
    }

    /// Asks the VMM.
    fn ask(&self, request: &Value) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        writeln!(stream, "{request}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("{request}: no answer"))
    }

    /// Adds what a guest that hangs does to its logs: where its processors stand, by a core, and what it has exited for.
    fn keep_state(&self) -> Result<()> {
        let core = self.console.with_extension("core");
        for command in [
            &["status"][..],
            &["stats"],
            &["core", &core.to_string_lossy()],
        ] {
            let errors = File::options().append(true).open(&self.errors)?;
            Command::new(&self.made.paravane)
                .args(["ctl", "--json"])
                .arg(&self.socket)
                .args(command)
                .stdout(errors.try_clone()?)
                .stderr(errors)
                .status()?;
        }
        Ok(())
    }

    /// Ends what still runs; logs of what was good go.
    fn end(&mut self, keep: bool) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait()?;
        }
        if !keep {
            let _ = fs::remove_file(&self.console);
            let _ = fs::remove_file(&self.errors);
        }
        Ok(())
    }
}
