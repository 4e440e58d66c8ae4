//! All launches, made once for all tests: one boot of the reference host, one script in it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;

use crate::{debug, inside, lies};

/// What the console workload writes: enough that 1/100 of it is more than the few exits of any launch.
pub(crate) const CONSOLE_BYTES: usize = 32 * 1024;

/// A line of the workload without its line feed.
pub(crate) const WORKLOAD_LINE: &str =
    "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ.";

/// Which of the two kernels.
#[derive(Clone, Copy)]
enum Kernel {
    Full,
    Para,
}

/// A launch: its name, the kernel, what `paravane run` gets, and what init gets.
const LAUNCHES: [(&str, Kernel, &str, &str); 22] = [
    (
        "full",
        Kernel::Full,
        "--guest full",
        "WORKLOAD job=null:1000 job=nap:200 end=restart",
    ),
    ("kvm-pv", Kernel::Full, "--guest kvm-pv", "end=restart"),
    (
        "para",
        Kernel::Para,
        "--guest para",
        "WORKLOAD job=null:1000 job=nap:200 end=poweroff",
    ),
    (
        "direct",
        Kernel::Para,
        "--guest direct",
        "job=null:1000 job=nap:20 end=poweroff",
    ),
    (
        "para-image-as-full",
        Kernel::Para,
        "--guest full",
        "end=restart",
    ),
    (
        "para-image-as-kvm-pv",
        Kernel::Para,
        "--guest kvm-pv",
        "end=restart",
    ),
    (
        "full-smp",
        Kernel::Full,
        "--guest full --cpus 2",
        "end=restart",
    ),
    (
        "kvm-pv-smp",
        Kernel::Full,
        "--guest kvm-pv --cpus 2",
        "end=restart",
    ),
    (
        "para-smp",
        Kernel::Para,
        "--guest para --cpus 2",
        "end=poweroff",
    ),
    (
        "para-memory",
        Kernel::Para,
        "--guest para --ctl para-memory.ctl",
        "job=memory:64 end=poweroff",
    ),
    (
        "para-without-mem",
        Kernel::Para,
        "--guest para --pv=-mem --ctl para-without-mem.ctl",
        "job=memory:64 end=poweroff",
    ),
    (
        "kvm-pv-balloon",
        Kernel::Full,
        "--guest kvm-pv --balloon --ctl kvm-pv-balloon.ctl",
        "job=memory:64 end=restart",
    ),
    (
        "para-balloon",
        Kernel::Para,
        "--guest para --pv=-mem --balloon --ctl para-balloon.ctl",
        "job=memory:64 end=poweroff",
    ),
    (
        "para-panic",
        Kernel::Para,
        "--guest para --core para-panic.core",
        "panic",
    ),
    (
        "para-module",
        Kernel::Para,
        "--guest para",
        "module end=poweroff",
    ),
    (
        "para-ops",
        Kernel::Para,
        "--guest para --cpus 2",
        "ops module end=poweroff",
    ),
    (
        "para-image-as-full-ops",
        Kernel::Para,
        "--guest full --cpus 2",
        "ops end=restart",
    ),
    (
        "para-without-clock",
        Kernel::Para,
        "--guest para --pv=-clock",
        "end=poweroff",
    ),
    (
        "para-without-console",
        Kernel::Para,
        "--guest para --pv=-console",
        "end=poweroff",
    ),
    (
        "para-awkward-5",
        Kernel::Para,
        "--guest para --awkward 5",
        "end=poweroff WORKLOAD",
    ),
    (
        "para-awkward-10",
        Kernel::Para,
        "--guest para --awkward 10 --cpus 2",
        "end=poweroff WORKLOAD",
    ),
    (
        "para-awkward-16",
        Kernel::Para,
        "--guest para --awkward 16",
        "end=poweroff WORKLOAD job=memory:64",
    ),
];

/// What `paravane ctl` is asked to do with the launch `para-hotplug`, which starts four of its 64 processors.
pub(crate) const HOTPLUG: [&str; 9] = [
    "cpus 1 --wait 60",
    "cpus 3 --wait 60",
    "pause",
    "cpus 2",
    "resume",
    "cpus 2 --wait 60",
    "cpus 4 --wait 60",
    "cpus 64 --wait 100",
    "power off",
];

/// What a launch left behind.
#[derive(Debug)]
pub(crate) struct Launch {
    /// The exit code of `paravane run`.
    pub(crate) code: i32,
    /// What the guest wrote to its console, with line feeds only.
    pub(crate) console: String,
    /// What the VMM wrote to its standard error.
    pub(crate) errors: String,
    /// The report of the guest's init; null if there is none.
    pub(crate) report: Value,
    /// What its control socket said of it, about once a second; empty without one.
    pub(crate) statuses: Vec<Value>,
    pub(crate) stats: Value,
}

impl Launch {
    fn read(folder: &Path, name: &str) -> Self {
        let text = |suffix: &str| {
            let bytes = fs::read(folder.join(format!("{name}.{suffix}"))).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\r', "")
        };
        let console = text("console");
        // A kernel message may stand before the report on its line, and another one after it.
        let report = console
            .split_once("PARAVANE-REPORT ")
            .and_then(|(_, json)| {
                serde_json::Deserializer::from_str(json)
                    .into_iter()
                    .next()?
                    .ok()
            });
        Self {
            code: text("code").trim().parse().unwrap_or(-1),
            errors: text("errors"),
            report: report.unwrap_or_default(),
            statuses: text("statuses")
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect(),
            stats: serde_json::from_str(&text("stats")).unwrap_or_default(),
            console,
        }
    }

    /// How the run ended.
    pub(crate) fn outcome(&self) -> &str {
        self.stats["outcome"].as_str().unwrap_or("no outcome")
    }

    /// How often one call was made.
    pub(crate) fn call(&self, name: &str) -> u64 {
        self.stats["hypercalls"][name].as_u64().unwrap_or(0)
    }

    /// How many calls were made.
    pub(crate) fn calls(&self) -> u64 {
        let calls = self.stats["hypercalls"]
            .as_object()
            .expect("the statistics have calls");
        calls.values().filter_map(Value::as_u64).sum()
    }

    /// Exits to the VMM for one reason.
    pub(crate) fn user_exits(&self, reason: &str) -> u64 {
        self.stats["user_exits"][reason]
            .as_u64()
            .unwrap_or_else(|| panic!("no count of {reason}: {self}"))
    }

    fn mark(&self, code: u64) -> &Value {
        let marks = self.stats["marks"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        marks
            .iter()
            .find(|mark| mark["code"] == code)
            .unwrap_or_else(|| panic!("no mark {code}: {self}"))
    }

    /// All exits up to a mark, by KVM's count.
    pub(crate) fn exits_at(&self, code: u64) -> u64 {
        self.mark(code)["exits"].as_u64().expect("a mark has exits")
    }

    /// All exits from the first mark with that code to the mark after it.
    pub(crate) fn exits_after(&self, code: u64) -> u64 {
        let marks = self.stats["marks"].as_array().expect("there are marks");
        let begin = marks.iter().position(|mark| mark["code"] == code);
        let begin = begin.unwrap_or_else(|| panic!("no mark {code}: {self}"));
        let exits = |index: usize| marks[index]["exits"].as_u64().expect("a mark has exits");
        exits(begin + 1) - exits(begin)
    }

    /// Exits to the VMM up to a mark.
    pub(crate) fn user_exits_at(&self, code: u64) -> u64 {
        self.mark(code)["user_exits"]
            .as_u64()
            .expect("a mark has exits to the VMM")
    }
}

impl fmt::Display for Launch {
    /// What helps to see why a test failed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<&str> = self
            .console
            .lines()
            .filter(|line| *line != WORKLOAD_LINE)
            .collect();
        let tail = lines.split_at(lines.len().saturating_sub(30)).1.join("\n");
        write!(
            f,
            "code {}\n{}\n{}\n…\n{tail}",
            self.code, self.stats, self.errors
        )
    }
}

/// What all launches left behind.
#[derive(Debug)]
pub(crate) struct Launches {
    launches: BTreeMap<&'static str, Launch>,
    cpuid: BTreeMap<&'static str, Value>,
    hotplug: Vec<Value>,
    gdb: BTreeMap<&'static str, String>,
    conformance: Value,
    inside: String,
}

impl Launches {
    pub(crate) fn get(&self, name: &str) -> &Launch {
        self.launches
            .get(name)
            .unwrap_or_else(|| panic!("there is no launch {name}"))
    }

    /// What `paravane ctl --json` printed, one answer after the other, while the launch `para-hotplug` ran.
    pub(crate) fn hotplug(&self) -> &[Value] {
        &self.hotplug
    }

    /// What `paravane abi check --json` prints.
    pub(crate) fn conformance(&self) -> &Value {
        &self.conformance
    }

    /// What the test inside prints.
    pub(crate) fn inside(&self) -> &str {
        &self.inside
    }

    /// What gdb printed of a guest.
    pub(crate) fn gdb(&self, guest: &str) -> &str {
        &self.gdb[guest]
    }

    /// What `paravane cpuid` prints for a guest.
    pub(crate) fn cpuid(&self, guest: &str) -> &Value {
        &self.cpuid[guest]
    }
}

/// The launches, or why there are none.
pub(crate) fn launches() -> Result<&'static Launches, &'static str> {
    static ALL: LazyLock<Result<Launches, String>> = LazyLock::new(run_all);
    ALL.as_ref().map_err(String::as_str)
}

fn run_all() -> Result<Launches, String> {
    let kernel_full = paravane_reference_host::built("kernel/full/vmlinux", "kernel full")?;
    let kernel_para = paravane_reference_host::built("kernel/para/vmlinux", "kernel para")?;
    let initrd = paravane_reference_host::built("initramfs/guest.cpio", "initramfs")?;
    paravane_reference_host::built("reference-host/current", "reference-host")?;

    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boot");
    // Nothing of an earlier run may be mistaken for one of this run.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder for the launches");
    let script = script(&folder, &kernel_full, &kernel_para, &initrd);
    let path = folder.join("script");
    fs::write(&path, script).expect("the script is written");
    let finished = paravane_reference_host::Command::new([Path::new("/bin/sh"), path.as_path()])
        .expect("the working folder is known")
        .env("PARAVANE_HOST_CLASS", "reference")
        .timeout(Duration::from_secs(1200))
        .run()
        .unwrap_or_else(|error| panic!("the reference host failed: {error}"));
    assert!(
        finished.success(),
        "the script ended with {}",
        finished.code
    );

    let names = LAUNCHES.iter().map(|(name, ..)| *name);
    let launches = names
        .chain(lies::LAUNCHES.iter().map(|(name, ..)| *name))
        .chain(["para-hotplug", "full-gdb", "para-gdb"])
        .map(|name| (name, Launch::read(&folder, name)))
        .collect();
    let answers = fs::read_to_string(folder.join("para-hotplug.answers")).unwrap_or_default();
    let cpuid = |guest: &'static str| {
        let table = fs::read(folder.join(format!("{guest}.cpuid"))).unwrap_or_default();
        (guest, serde_json::from_slice(&table).unwrap_or_default())
    };
    let gdb = |guest: &'static str| {
        let said = fs::read_to_string(folder.join(format!("{guest}-gdb.gdb")));
        (guest, said.unwrap_or_default())
    };
    Ok(Launches {
        launches,
        gdb: ["full", "para"].map(gdb).into(),
        cpuid: ["full", "kvm-pv", "para"].map(cpuid).into(),
        hotplug: answers
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_default())
            .collect(),
        conformance: fs::read(folder.join("conformance"))
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .unwrap_or_default(),
        inside: fs::read_to_string(folder.join("inside")).unwrap_or_default(),
    })
}

/// Asks a launch for its state every second until it ends. After two seconds it is told to do with 16 MiB less than it has,
/// and once it does, to use them again: on a busy host seconds are long, so the guest's state says when. Linux takes a MiB
/// back where reporting of free pages has left it none to allocate.
const WATCH: &str = "watch() {
    seen= told=
    for second in $(seq 60); do
        if [ -S $1.ctl ]; then seen=1; elif [ $seen ]; then break; fi
        state=$('PROGRAM' ctl $1.ctl status --json)
        echo \"$state\"
        case $second$told:$state in
            [12]:*) ;;
            *less:*'\"kept_mib\":1'[0-6],*) 'PROGRAM' ctl $1.ctl memory 128 >/dev/null && told=all ;;
            *[0-9]:*'\"kept_mib\":0,'*) 'PROGRAM' ctl $1.ctl memory 112 >/dev/null && told=less ;;
        esac
        sleep 1
    done >$1.statuses 2>/dev/null
}
";

/// One launch after the other; each leaves files named for it.
fn script(folder: &Path, kernel_full: &Path, kernel_para: &Path, initrd: &Path) -> String {
    let program = env!("CARGO_BIN_EXE_paravane");
    let mut script = format!("cd '{}'\n", folder.display());
    script += &WATCH.replace("PROGRAM", program);
    let lies = lies::LAUNCHES.map(|(name, lies, _)| {
        let options = format!("--guest para --lies {lies}");
        (
            name,
            Kernel::Para,
            options,
            "job=console:131072 end=poweroff",
        )
    });
    let launches =
        LAUNCHES.map(|(name, kernel, options, init)| (name, kernel, options.to_owned(), init));
    for (name, kernel, options, init) in launches.into_iter().chain(lies) {
        let kernel = match kernel {
            Kernel::Full => kernel_full,
            Kernel::Para => kernel_para,
        };
        let init = init.replace("WORKLOAD", &format!("job=console:{CONSOLE_BYTES}"));
        if options.contains("--ctl") {
            script += &format!("watch {name} &\n");
        }
        // Writing to a String cannot fail.
        let _ = writeln!(
            script,
            "'{program}' run {options} --host kvm --kernel '{}' --initrd '{}' --watchdog 240 --stats json \
             --stats-file {name}.stats --console-log {name}.console --cmdline '-- {init}' </dev/null 2>{name}.errors\n\
             echo $? >{name}.code",
            kernel.display(),
            initrd.display(),
        );
    }
    // Not every file system has sockets; this one has.
    let _ = writeln!(
        script,
        "'{program}' run --guest para --cpus 64 --host kvm --kernel '{}' --initrd '{}' --watchdog 240 --stats json \
         --stats-file para-hotplug.stats --console-log para-hotplug.console --ctl /dev/shm/ctl \
         --cmdline 'maxcpus=4 -- shell' \
         </dev/null 2>para-hotplug.errors &\n\
         ctl() {{ '{program}' ctl /dev/shm/ctl --json \"$@\"; }}\n\
         for try in $(seq 300); do ctl cpus 0 >/dev/null 2>&1 && break; sleep 0.1; done",
        kernel_para.display(),
        initrd.display(),
    );
    for command in HOTPLUG {
        let _ = writeln!(script, "ctl {command} >>para-hotplug.answers");
    }
    script.push_str("wait $!\necho $? >para-hotplug.code\n");
    for guest in ["full", "kvm-pv", "para"] {
        let _ = writeln!(
            script,
            "'{program}' cpuid --guest {guest} --json >{guest}.cpuid"
        );
    }
    for (guest, kernel) in [("full", kernel_full), ("para", kernel_para)] {
        script += &debug::script(guest, kernel, initrd);
    }
    let _ = writeln!(script, "'{program}' abi check --json >conformance");
    let test = std::env::current_exe().expect("a test has a file");
    let _ = writeln!(
        script,
        "{}='{}' {}='{}' '{}' --exact {} --ignored --nocapture >inside 2>&1 </dev/null",
        inside::KERNEL,
        kernel_para.display(),
        inside::INITRD,
        initrd.display(),
        test.display(),
        inside::TEST,
    );
    script + "exit 0\n"
}
