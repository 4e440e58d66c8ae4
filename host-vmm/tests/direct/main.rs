//! The direct guest on this host's KVM: Linux at CPL 3, behind the switcher.
//!
//! Where the kernel or the initramfs is not built, or this KVM cannot run the guest, each test prints
//! `skipped: reason`. On the reference host it is one of the launches of `tests/boot`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use paravane::config::Profile;
use paravane::disk::uring::Uring;
use paravane_reference_host::or_skipped;
use serde_json::Value;

/// What is needed: kernel and initramfs.
fn built() -> Result<(PathBuf, PathBuf), String> {
    paravane::doctor::can_run(Profile::Direct)?;
    Ok((
        paravane_reference_host::built("kernel/para/vmlinux", "kernel para")?,
        paravane_reference_host::built("initramfs/guest.cpio", "initramfs")?,
    ))
}

struct Launch {
    code: Option<i32>,
    console: String,
    errors: String,
    stats: Value,
}

/// Boots a guest with so many processors, these arguments for init, more files in its initramfs, and this input.
fn launch(name: &str, cpus: u8, init: &str, files: &[u8], input: &str) -> Option<Launch> {
    launch_with(&[], name, cpus, init, files, input)
}

/// The same with more options.
fn launch_with(
    options: &[String],
    name: &str,
    cpus: u8,
    init: &str,
    files: &[u8],
    input: &str,
) -> Option<Launch> {
    let (kernel, initramfs) = or_skipped(built())?;
    let place = |suffix: &str| {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("direct-{name}-{cpus}.{suffix}"))
    };
    let initrd = place("cpio");
    let both = [fs::read(initramfs).unwrap(), files.to_vec()].concat();
    fs::write(&initrd, both).unwrap();
    let stats = place("stats");
    let mut child = Command::new(env!("CARGO_BIN_EXE_paravane"))
        .args("run --guest direct --host kvm --watchdog 120 --stats json".split(' '))
        .arg("--stats-file")
        .arg(&stats)
        .arg("--kernel")
        .arg(kernel)
        .arg("--initrd")
        .arg(initrd)
        .arg(format!("--cpus={cpus}"))
        .args(options)
        .arg(format!("--cmdline=-- {init}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\r', "");
    Some(Launch {
        code: output.status.code(),
        console: text(&output.stdout),
        errors: text(&output.stderr),
        stats: serde_json::from_str(&fs::read_to_string(stats).unwrap()).unwrap(),
    })
}

/// A file in a cpio archive of the "newc" form, and the archive's end.
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, mode, content) in [(name, 0o10_0755, content), ("TRAILER!!!", 0, &[][..])] {
        let fields = [
            1,
            mode,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        bytes.extend(b"070701");
        bytes.extend(
            fields
                .iter()
                .flat_map(|field| format!("{field:08x}").into_bytes()),
        );
        for part in [[name.as_bytes(), &[0]].concat().as_slice(), content] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

fn boots_and_powers_off(cpus: u8) {
    let Some(launch) = launch("boot", cpus, "end=poweroff", &[], "") else {
        return;
    };
    assert_eq!(
        launch.code,
        Some(0),
        "{}\n{}",
        launch.errors,
        launch.console
    );
    assert_eq!(launch.stats["outcome"], "power-off");
    assert!(launch.console.contains("Hypervisor detected: Paravane"));
    let on = if cpus == 1 {
        "0"
    } else {
        &format!("0-{}", cpus - 1)
    };
    let on = format!("\"cpus_online\":\"{on}\"");
    assert!(launch.console.contains(&on), "{on}\n{}", launch.console);
    for warning in ["WARNING:", "BUG:", "Call Trace"] {
        assert!(!launch.console.contains(warning), "{}", launch.console);
    }
    for device in ["uart_in", "uart_out", "mmio", "io_in"] {
        assert_eq!(launch.stats["user_exits"][device], 0, "{device}");
    }
    for kind in ["system_call", "page_fault", "load_root", "write_msr"] {
        let crossings = &launch.stats["crossings"];
        assert!(crossings[kind].as_u64() > Some(0), "{kind}: {crossings}");
    }
}

#[test]
fn it_boots_on_paravane_and_powers_off() {
    boots_and_powers_off(1);
}

#[test]
fn it_boots_with_several_processors() {
    for cpus in [2, 8] {
        boots_and_powers_off(cpus);
    }
}

#[test]
fn its_processors_work_together() {
    let jobs = "job=message:50:4 job=futex:200 job=shootdown:20:2 job=lock:500:4 end=poweroff";
    let Some(launch) = launch("jobs", 2, jobs, &[], "") else {
        return;
    };
    assert_eq!(launch.code, Some(0), "{}", launch.errors);
    for job in ["message 50", "futex 200", "shootdown 20", "lock 500"] {
        let line = format!("PARAVANE-JOB {job} ");
        assert!(launch.console.contains(&line), "{job}\n{}", launch.console);
    }
}

#[test]
fn a_processor_goes_and_comes_back() {
    let cpu = "/sys/devices/system/cpu/cpu1/online";
    let script = format!(
        "i=0; while [ $i -lt 5 ]; do echo 0 > {cpu}; read on < {cpu}; echo then $on; echo 1 > {cpu}; \
         read on < {cpu}; echo then $on; i=$((i+1)); done; poweroff -f\n"
    );
    let Some(launch) = launch("hotplug", 2, "shell", &[], &script) else {
        return;
    };
    assert_eq!(
        launch.code,
        Some(0),
        "{}\n{}",
        launch.errors,
        launch.console
    );
    let told: Vec<&str> = launch
        .console
        .lines()
        .filter_map(|line| line.trim().strip_prefix("then "))
        .collect();
    assert_eq!(told, ["0", "1"].repeat(5), "{}", launch.console);
}

#[test]
fn a_panic_leaves_a_record() {
    let Some(launch) = launch("panic", 1, "panic", &[], "") else {
        return;
    };
    assert_eq!(launch.stats["outcome"], "crash", "{}", launch.errors);
    for words in ["Attempted to kill init", "do_exit"] {
        assert!(launch.errors.contains(words), "{}", launch.errors);
    }
}

#[test]
fn a_kernel_for_another_switcher_is_refused() {
    let Some((kernel, _)) = or_skipped(built()) else {
        return;
    };
    let mut bytes = fs::read(kernel).unwrap();
    // Name, then the number. What looks alike in the file is the note.
    let name = b"\x09\0\0\0\x04\0\0\0\x01\0\0\0Paravane\0\0\0\0";
    let note = bytes.windows(name.len()).position(|window| window == name);
    let note = note.expect("no note: a kernel of these sources (`cargo ci kernel para`)");
    let number = &mut bytes[note + name.len()..][..4];
    let own = number.to_vec();
    let refused = |bytes: &[u8], reason: &str| {
        let kernel = Path::new(env!("CARGO_TARGET_TMPDIR")).join("direct-other-kernel");
        fs::write(&kernel, bytes).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_paravane"))
            .args("run --guest direct --host kvm --watchdog 60 --kernel".split(' '))
            .arg(kernel)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        for words in [reason, "cargo ci kernel para"] {
            assert!(errors.contains(words), "{words}: {errors}");
        }
    };
    number.copy_from_slice(&[0xff; 4]);
    refused(&bytes, "layout 4294967295");
    bytes[note + name.len()..][..4].copy_from_slice(&own);
    bytes[note + 12] = b'Q';
    refused(&bytes, "CONFIG_PARAVANE_DIRECT");
}

#[test]
fn its_users_do_what_users_do() {
    let script = "i=0; while [ $i -lt 50 ]; do busybox true; i=$((i+1)); done; echo ran $i\n\
                  dd if=/dev/zero bs=1k count=1000 | wc -c\n\
                  sleep 1; poweroff -f\n";
    let Some(launch) = launch("shell", 1, "shell", &[], script) else {
        return;
    };
    assert_eq!(
        launch.code,
        Some(0),
        "{}\n{}",
        launch.errors,
        launch.console
    );
    for line in ["ran 50", "1024000"] {
        let found = launch.console.lines().any(|l| l.trim() == line);
        assert!(found, "no {line}:\n{}", launch.console);
    }
}

#[test]
fn it_reads_and_writes_a_disk() {
    let ring = or_skipped(Uring::made()).map(|_| ",aio=io_uring");
    for aio in [""].into_iter().chain(ring) {
        let disk = Path::new(env!("CARGO_TARGET_TMPDIR")).join("direct-disk.img");
        let mut content = b"before\n".to_vec();
        content.resize(0x10_0000, 0);
        fs::write(&disk, content).unwrap();
        let script = "head -n 1 /dev/vda; dd if=/dev/vda bs=64k | wc -c; echo after > /dev/vda; sync; poweroff -f\n";
        let options = [format!("--disk={}{aio}", disk.display())];
        let Some(launch) = launch_with(&options, "disk", 2, "shell", &[], script) else {
            return;
        };
        assert_eq!(launch.code, Some(0), "{}", launch.errors);
        for line in ["before", "1048576"] {
            let found = launch.console.lines().any(|l| l.trim() == line);
            assert!(found, "no {line}:\n{}", launch.console);
        }
        assert!(fs::read(&disk).unwrap().starts_with(b"after\n"));
    }
}

/// Runs user.c in guests of one and of two processors.
fn a_user_tries(options: &[String], name: &str, argument: &str) {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("direct-{name}"));
    let status = Command::new("gcc")
        .args("-O1 -static -Wall -Wextra -Werror -pthread -o".split(' '))
        .arg(&program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/direct/user.c"))
        .status()
        .expect("gcc (ci/setup installs it)");
    assert!(status.success());
    let files = archive("user", &fs::read(program).unwrap());
    let input = format!("/user {argument}; poweroff -f\n");
    for cpus in [1, 2] {
        let Some(launch) = launch_with(options, name, cpus, "shell", &files, &input) else {
            return;
        };
        let done = launch.console.contains("user: 0 went wrong");
        assert!(done, "{}\n{}", launch.errors, launch.console);
    }
}

#[test]
fn its_users_reach_neither_kernel_nor_switcher() {
    a_user_tries(&[], "user", "");
}

#[test]
fn without_isolation_a_user_reaches_the_kernel_and_works() {
    a_user_tries(&["--no-user-isolation".into()], "shared-user", "shared");
}

#[test]
fn without_isolation_a_system_call_does_not_cross() {
    let jobs = "job=null:5000 job=clock:500 job=open:500 job=switch:200 job=pipe:500 job=fork:30 job=exec:10 job=fault:500 \
                job=map:100 job=signal:200 job=sleep:50 job=nap:20 job=message:50:4 job=futex:200 job=shootdown:20:2 \
                job=lock:500:4 end=poweroff";
    let options = ["--no-user-isolation".into()];
    for cpus in [1, 2] {
        let Some(launch) = launch_with(&options, "shared-jobs", cpus, jobs, &[], "") else {
            return;
        };
        assert_eq!(launch.code, Some(0), "{}", launch.errors);
        for job in jobs.split(' ').filter_map(|word| word.strip_prefix("job=")) {
            let line = format!("PARAVANE-JOB {} ", job.split(':').next().unwrap());
            assert!(launch.console.contains(&line), "{job}\n{}", launch.console);
        }
        for warning in ["WARNING:", "BUG:", "Call Trace", "INIT-ERROR"] {
            assert!(!launch.console.contains(warning), "{}", launch.console);
        }
    }
}

#[test]
fn a_network_and_a_disk_s_ring_stay_over_a_restart() {
    let Some((kernel, initramfs)) = or_skipped(built()) else {
        return;
    };
    let ring = or_skipped(Uring::made()).map_or("", |_| ",aio=io_uring");
    let disk = Path::new(env!("CARGO_TARGET_TMPDIR")).join("direct-restart.img");
    fs::write(&disk, [0; 4096]).unwrap();
    // The guest restarts for ever, and the watchdog ends it.
    let output = Command::new(env!("CARGO_BIN_EXE_paravane"))
        .args(
            "run --guest direct --host kvm --net user --on-reboot restart --watchdog 5".split(' '),
        )
        .arg("--kernel")
        .arg(kernel)
        .arg("--initrd")
        .arg(initramfs)
        .arg(format!("--disk={}{ring}", disk.display()))
        .arg("--cmdline=quiet -- job=write:10:1 end=restart")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (console, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(3), "{errors}");
    let boots = console.matches("PARAVANE-REPORT").count();
    assert!(boots > 1, "{boots} boots: {console}{errors}");
}

/// As the sandbox is shipped: what is done here, and by other tests with `--complete`, `--io`, `--vsock`, `--port` and `--gdb`, takes no
/// system call that is forbidden, and no file.
#[test]
fn a_guest_whose_devices_are_looked_at_is_saved_and_goes_on_confined() {
    let Some((kernel, initramfs)) = or_skipped(built()) else {
        return;
    };
    let place = |suffix: &str| {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("direct-saved.{suffix}"))
    };
    let (socket, snapshot, stats) = (place("ctl"), place("snapshot"), place("stats"));
    fs::File::create(place("img"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let run = |console: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
        command
            .args("run --host kvm --watchdog 60 --poll on --stats json --stats-file".split(' '))
            .args([&stats, Path::new("--console-log"), console])
            .stderr(Stdio::piped());
        command
    };
    let ctl = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
        command.arg("ctl").arg(&socket).args(arguments);
        command.output().unwrap()
    };
    let said = |console: &Path| fs::read_to_string(console).unwrap_or_default();
    let ended = |child: Child, console: &Path| {
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{errors}{}", said(console));
        let stats: Value = serde_json::from_str(&said(&stats)).unwrap();
        let devices = stats["devices"].as_array().unwrap();
        assert_eq!(devices.len(), 2, "{stats}");
        assert!(devices[0]["looks"].as_u64() > Some(0), "{stats}");
    };
    let console = place("first");
    let _ = fs::remove_file(&console);
    let mut first = run(&console)
        .args("--guest direct --rng --cmdline".split(' '))
        .arg("quiet -- quietly job=read:50 job=idle:3000")
        .args([
            Path::new("--ctl"),
            &socket,
            Path::new("--disk"),
            &place("img"),
        ])
        .args([
            Path::new("--kernel"),
            &kernel,
            Path::new("--initrd"),
            &initramfs,
        ])
        .spawn()
        .unwrap();
    while !said(&console).contains("PARAVANE-JOB read") {
        assert_eq!(first.try_wait().unwrap(), None, "{}", said(&console));
        std::thread::sleep(Duration::from_millis(20));
    }
    let saved = ctl(&["snapshot", snapshot.to_str().unwrap()]);
    assert!(saved.status.success(), "{saved:?}");
    assert!(ctl(&["power", "off"]).status.success());
    ended(first, &console);
    let console = place("second");
    let second = run(&console).arg("--restore").arg(&snapshot).spawn();
    ended(second.unwrap(), &console);
    assert!(said(&console).contains("PARAVANE-JOB idle"));
}

/// KiB of a process that are in memory, but for what lies in a mapping as large as guest memory.
fn resident_kib(pid: u32) -> u64 {
    const GUEST_KIB: u64 = 32 << 10;
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let kib = |line: &str, name: &str| -> Option<u64> {
        let value = line.strip_prefix(name)?.trim().strip_suffix(" kB")?;
        value.parse().ok()
    };
    let (mut sum, mut is_guest) = (0, false);
    for line in text.lines() {
        if let Some(size) = kib(line, "Size:") {
            is_guest = size >= GUEST_KIB;
        } else if let Some(resident) = kib(line, "Rss:").filter(|_| !is_guest) {
            sum += resident;
        }
    }
    sum
}

#[test]
fn a_vmm_whose_guest_has_booted_holds_little_memory() {
    // A program that is not optimised is larger, and its relocations are.
    const MOST_KIB: u64 = if cfg!(debug_assertions) { 5 } else { 3 } << 10;
    let Some((kernel, initramfs)) = or_skipped(built()) else {
        return;
    };
    let mut child = Command::new(env!("CARGO_BIN_EXE_paravane"))
        .args("run --guest direct --host kvm --watchdog 60 --console-log /dev/null".split(' '))
        .arg("--kernel")
        .arg(kernel)
        .arg("--initrd")
        .arg(initramfs)
        .arg("--cmdline=quiet -- job=idle:60000")
        .spawn()
        .unwrap();
    // Some seconds after its start it gives back what that has touched.
    let mut resident = u64::MAX;
    while resident > MOST_KIB {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(child.try_wait().unwrap(), None, "{resident} KiB at its end");
        resident = resident_kib(child.id());
    }
    println!("{resident} KiB");
    child.kill().unwrap();
    child.wait().unwrap();
}
