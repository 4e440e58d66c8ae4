//! Linux saved at work, and gone on from twice: what a guest may rely on across a restore.
//!
//! A direct guest runs here, on this host's KVM, and the others on the reference host, where this program runs itself
//! ([`INSIDE`]). Where something is not built, each test prints `skipped: reason`.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use paravane::config::{Config, Profile};
use paravane::console::Console;
use paravane::disk::DiskSpec;
use paravane::pause::Holder;
use paravane::snapshot::{Instead, RestoreSpec, Snapshot};
use paravane::stats::{Outcome, Stats};
use paravane::vm::{Machine, RunOptions, Vm, VmError};
use paravane_reference_host::or_skipped;

/// The ignored test that runs on the reference host.
const INSIDE: &str = "guests_go_on";
/// What it says when it is done.
const DONE: &str = "inside: all guests have gone on";
const KERNELS: [&str; 2] = ["PARAVANE_TEST_FULL", "PARAVANE_TEST_PARA"];
const INITRD: &str = "PARAVANE_TEST_INITRD";
const DISK_BYTES: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(120);

/// A guest with a shell.
struct Guest {
    console: Console,
    machine: Arc<Machine>,
    run: JoinHandle<Result<Stats, VmError>>,
    /// What it has said so far has been read up to here.
    read: usize,
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

impl Guest {
    fn run(vm: Vm, console: Console) -> Self {
        let machine = Arc::clone(vm.machine());
        Self {
            console,
            machine,
            run: thread::spawn(move || vm.run(RunOptions::default())),
            read: 0,
        }
    }

    fn boot(config: Config) -> Self {
        let console = Console::memory().unwrap();
        let mut vm = Vm::new(config, console.clone(), Instant::now()).unwrap();
        vm.boot().unwrap();
        Self::run(vm, console)
    }

    fn restore(snapshot: &Path, disks: Vec<DiskSpec>) -> Result<Self, String> {
        let spec: RestoreSpec = snapshot.to_str().unwrap().parse()?;
        let instead = Instead {
            disks,
            ..Instead::default()
        };
        let snapshot = Snapshot::open(&spec, &instead).map_err(|e| e.to_string())?;
        let config = Config {
            watchdog: Some(LIMIT),
            ..snapshot.config().clone()
        };
        let console = Console::memory().unwrap();
        let vm = Vm::restored(snapshot, config, console.clone(), Instant::now());
        Ok(Self::run(vm.map_err(|e| e.to_string())?, console))
    }

    /// Waits for something in what the guest says.
    fn wait<T>(&mut self, what: &str, found: impl Fn(&str) -> Option<T>) -> T {
        loop {
            let over = self.run.is_finished();
            let bytes = self.console.contents();
            let text = String::from_utf8_lossy(&bytes);
            if let Some(value) = text.get(self.read..).and_then(&found) {
                self.read = text.len();
                return value;
            }
            assert!(!over, "the guest does not say {what}:\n{text}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A UART takes a few bytes at once.
    fn type_in(&self, line: &str) {
        let mut left = line.as_bytes();
        while !left.is_empty() {
            left = &left[self.machine.input(left)..];
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the shell says to a command.
    fn ask(&mut self, command: &str) -> String {
        self.type_in(&format!("echo \"<$({command})>\"\n"));
        // The echo of the line has `<$`.
        self.wait(command, |text| {
            let (_, after) = text.match_indices('<').find_map(|(at, _)| {
                let after = &text[at + 1..];
                (!after.starts_with('$')).then_some((at, after))
            })?;
            let (answer, _) = after.split_once('>')?;
            Some(answer.replace('\r', "").trim().to_owned())
        })
    }

    fn number(&mut self, command: &str) -> u64 {
        let answer = self.ask(command);
        let parsed = answer.parse();
        parsed.unwrap_or_else(|_| panic!("`{command}` says `{answer}`"))
    }

    fn save(&self, path: &Path) -> Result<u64, String> {
        let pause = self.machine.pause();
        pause.pause(Holder::Client, LIMIT).unwrap();
        let saved = self.machine.save(&File::create(path).unwrap());
        saved.map_err(|e| e.to_string())
    }

    fn go_on(&self) {
        self.machine.pause().resume(Holder::Client);
    }

    /// Switches it off, from within.
    fn off(self) {
        let profile = self.machine.config().profile;
        self.type_in("exit\n");
        let stats = self.run.join().unwrap().unwrap();
        let (_, outcome) = end(profile);
        assert_eq!(stats.outcome, outcome, "{stats}");
    }
}

/// How a guest ends: a PC without ACPI cannot switch itself off.
fn end(profile: Profile) -> (&'static str, Outcome) {
    if profile.is_paravane() {
        ("poweroff", Outcome::PowerOff)
    } else {
        ("restart", Outcome::Reboot)
    }
}

const UPTIME: &str = "cut -d. -f1 /proc/uptime";
const RANDOM: &str = "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '";
/// Ticks that others had the processors for.
const STEAL: &str = "head -n 1 /proc/stat | tr -s ' ' | cut -d' ' -f9";

/// A guest is saved at work, and two copies go on from there when it has gone.
fn goes_on(profile: Profile, cpus: u8, kernel: &Path, initrd: &Path, folder: &Path) {
    println!("{profile}, {cpus} processors");
    let place = |name: &str| folder.join(format!("{profile}-{cpus}-{name}"));
    let snapshot = place("snapshot");
    let disk = |name: &str| DiskSpec::of(place(name), false);
    let disks = |name| vec![disk(name)];
    let device = if profile == Profile::Full {
        "/dev/sda"
    } else {
        "/dev/vda"
    };
    fs::write(place("disk"), vec![0; DISK_BYTES]).unwrap();
    let mut first = Guest::boot(Config {
        initrd: Some(initrd.to_owned()),
        cmdline: format!("quiet -- shell quietly end={}", end(profile).0),
        memory_mib: 128,
        vcpus: cpus,
        disks: disks("disk"),
        watchdog: Some(LIMIT),
        ..Config::of(profile, kernel.to_owned())
    });
    first.wait("a prompt", |text| text.contains("paravane# ").then_some(()));
    // Something that runs on the last processor, and something that only the shell knows.
    first.ask(&format!("taskset {:x} true; echo", 1 << (cpus - 1)));
    let count = "i=0; while true; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; sleep 0.02; done";
    first.type_in(&format!("kept=here; mkdir -p /tmp; ({count}) &\n"));
    let count = "cat /tmp/count";
    while first.ask(count).is_empty() {}
    let write = |text: &str, sector| {
        format!("echo {text} | dd of={device} bs=512 seek={sector} conv=sync,fsync 2>&1; echo")
    };
    first.ask(&write("before", 1));
    let asked = Instant::now();
    let (uptime, counted) = (first.number(UPTIME), first.number(count));
    let bytes = first.save(&snapshot).unwrap();
    let until_saved = asked.elapsed();
    let saved_at = now();
    println!("  saved, {bytes} bytes");
    for name in ["one", "two"] {
        fs::copy(place("disk"), place(name)).unwrap();
    }
    first.go_on();
    // The first guest has the disk, and has changed it.
    first.ask(&write("after", 2));
    let refused = Guest::restore(&snapshot, Vec::new()).map(drop).unwrap_err();
    assert!(refused.contains("written to since"), "{refused}");
    // So that times of day can be told apart.
    thread::sleep((saved_at + Duration::from_secs(3)).saturating_sub(now()));

    let mut random = vec![first.ask(RANDOM)];
    first.off();
    for name in ["one", "two"] {
        let begun = (Instant::now(), now());
        let mut copy = Guest::restore(&snapshot, disks(name)).unwrap();
        assert_eq!(copy.ask("echo $kept"), "here");
        let uptime_now = copy.number(UPTIME);
        // Of the time between, the guest has seen nothing, unless its counter is the host's own. A second is lost in rounding.
        let passed = if profile == Profile::Direct {
            asked.elapsed()
        } else {
            until_saved + begun.0.elapsed()
        };
        let most = uptime + passed.as_secs() + 2;
        assert!(
            (uptime..=most).contains(&uptime_now),
            "{uptime} {uptime_now} {most}"
        );
        // The job goes on.
        while copy.number(count) <= counted {}
        if profile.is_paravane() {
            copy.wait_for_time(begun.1.as_secs());
            random.push(copy.ask(RANDOM));
        }
        let steal = copy.number(STEAL);
        assert!(
            steal <= most * 100 * u64::from(cpus),
            "{steal} ticks of steal"
        );
        if cpus > 1 && profile.is_paravane() {
            let online = "/sys/devices/system/cpu/cpu1/online";
            let script = format!("echo 0 >{online}; cat {online}; echo 1 >{online}; cat {online}");
            assert_eq!(copy.ask(&script).replace('\n', " "), "0 1");
        }
        let sector =
            |n| format!("dd if={device} bs=512 skip={n} count=1 2>/dev/null | tr -d '\\0'");
        let before = format!("echo 3 >/proc/sys/vm/drop_caches; {}", sector(1));
        assert_eq!(copy.ask(&before), "before");
        copy.ask(&write(name, 3));
        assert_eq!(copy.ask(&sector(3)), name);
        copy.off();
        let mut file = File::open(place(name)).unwrap();
        let mut sectors = [0; 1024];
        file.seek(SeekFrom::Start(1024)).unwrap();
        file.read_exact(&mut sectors).unwrap();
        assert_eq!(sectors[..5], [0; 5], "of another copy");
        assert!(sectors[512..].starts_with(name.as_bytes()));
    }
    let all = random.len();
    random.sort();
    random.dedup();
    assert_eq!(random.len(), all, "random numbers twice: {random:?}");
    println!("  two copies have gone on");
}

impl Guest {
    /// Waits until the guest's time of day is not before `seconds`: it learns of the host's soon after it goes on.
    fn wait_for_time(&mut self, seconds: u64) {
        while self.number("date +%s") < seconds {}
        let told = self.number("date +%s");
        assert!(told <= now().as_secs() + 1, "{told}");
    }
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn built(what: &str, task: &str) -> Option<PathBuf> {
    or_skipped(paravane_reference_host::built(what, task))
}

#[test]
fn pv_state_3_a_direct_guest_goes_on_here() {
    if or_skipped(paravane::doctor::can_run(Profile::Direct)).is_none() {
        return;
    }
    let kernel = built("kernel/para/vmlinux", "kernel para");
    let initrd = built("initramfs/guest.cpio", "initramfs");
    let (Some(kernel), Some(initrd)) = (kernel, initrd) else {
        return;
    };
    for cpus in [1, 2] {
        goes_on(Profile::Direct, cpus, &kernel, &initrd, &folder("snapshot"));
    }
}

#[test]
#[ignore = "the test below runs it, on the reference host"]
fn guests_go_on() {
    let file = |name| PathBuf::from(std::env::var_os(name).expect("the test names the file"));
    let [full, para] = KERNELS.map(file);
    // This one's files can be mapped.
    let folder = Path::new("/dev/shm");
    for (profile, cpus, kernel) in [
        (Profile::Para, 1, &para),
        (Profile::Para, 2, &para),
        (Profile::KvmPv, 2, &full),
        (Profile::Full, 2, &full),
    ] {
        goes_on(profile, cpus, kernel, &file(INITRD), folder);
    }
    println!("{DONE}");
}

#[test]
fn pv_state_4_the_others_go_on_on_the_reference_host() {
    let files = [
        built("kernel/full/vmlinux", "kernel full"),
        built("kernel/para/vmlinux", "kernel para"),
        built("initramfs/guest.cpio", "initramfs"),
        built("reference-host/current", "reference-host"),
    ];
    let [Some(full), Some(para), Some(initrd), Some(_)] = files else {
        return;
    };
    let said = folder("snapshot").join("inside");
    let test = std::env::current_exe().unwrap();
    let script = format!(
        "'{}' --exact {INSIDE} --ignored --nocapture >'{}' 2>&1 </dev/null",
        test.display(),
        said.display()
    );
    let finished = paravane_reference_host::Command::new(["/bin/sh", "-c", &script])
        .unwrap()
        .env(KERNELS[0], full)
        .env(KERNELS[1], para)
        .env(INITRD, initrd)
        .timeout(Duration::from_secs(600))
        .run()
        .unwrap_or_else(|error| panic!("the reference host failed: {error}"));
    let said = fs::read_to_string(said).unwrap_or_default();
    assert!(finished.success() && said.contains(DONE), "{said}");
}
