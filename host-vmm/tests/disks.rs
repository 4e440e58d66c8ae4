//! Booted guests with a disk, on the reference host: what they write is there, also when the VMM is killed.
//!
//! All is done once, by one script in one boot of the reference host. `PARAVANE_KILLS` says how often each guest's VMM is
//! killed in the middle of its writes; by itself a few times.
//!
//! Where the kernels, the initramfs or the reference host are not built, or a tool is missing, each test prints `skipped: reason`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::Duration;

use paravane_reference_host::{e2fsprogs, or_skipped};
use serde_json::Value;

/// How often a VMM is killed, by itself.
const KILLS: u32 = 2;
/// Seconds that a kill and the boot before it may take.
const SECONDS_A_KILL: u64 = 60;

/// A guest and its disk.
struct Guest {
    name: &'static str,
    guest: &'static str,
    kernel: &'static str,
    /// How it ends.
    end: &'static str,
    is_qcow2: bool,
    /// Whether many of its transfers are under way at once.
    has_ring: bool,
}

const GUESTS: [Guest; 3] = [
    Guest {
        name: "kvm-pv",
        guest: "kvm-pv",
        kernel: "full",
        end: "reboot",
        is_qcow2: false,
        has_ring: true,
    },
    Guest {
        name: "para",
        guest: "para",
        kernel: "para",
        end: "poweroff",
        is_qcow2: false,
        has_ring: false,
    },
    Guest {
        name: "para-qcow2",
        guest: "para",
        kernel: "para",
        end: "poweroff",
        is_qcow2: true,
        has_ring: false,
    },
];

impl Guest {
    /// The disk of the raw image `raw`, as a shell's words: what makes it, its name as an option, and what brings it back.
    fn disk(&self, raw: &str) -> [String; 3] {
        if !self.is_qcow2 {
            let aio = if self.has_ring { ",aio=io_uring" } else { "" };
            return ["true".to_owned(), format!("{raw}{aio}"), "true".to_owned()];
        }
        [
            format!("qemu-img convert -f raw -O qcow2 {raw} {raw}.qcow2"),
            format!("{raw}.qcow2,format=qcow2"),
            // A kill may leave room that nothing uses (3), and nothing worse.
            format!(
                "{{ qemu-img check -q {raw}.qcow2 || [ $? = 3 ]; }} && qemu-img convert -f qcow2 -O raw {raw}.qcow2 {raw}"
            ),
        ]
    }
}

/// What the guest does with its disk, which has a file `in`. There is no init but busybox.
const COPY: &str = "B=busybox; $B mount -t devtmpfs d /dev; $B mkdir /m; $B mount -t ext4 /dev/vda /m; $B cp /m/in /m/out; $B sync; \
     $B umount /m; $B mount -t ext4 /dev/vda /m && $B cmp /m/in /m/out && echo copy is good; $B rm /m/in; $B fstrim /m; \
     $B umount /m; $B END -f";

/// Makes records, and says so of each once it is on the disk, until it is killed.
const RECORDS: &str = "B=busybox; $B mount -t devtmpfs d /dev; $B mkdir /m; $B mount -t ext4 /dev/vda /m; i=0; while :; do i=$((i+1)); \
     $B dd if=/m/in of=/m/ROUND-$i bs=4k count=1 conv=fsync 2>/dev/null && echo on disk: ROUND-$i; done";

/// What it does where the host has no room for all of its disk: what it was told is there before stays, and it goes on.
const FILL: &str = "B=busybox; $B mount -t devtmpfs d /dev; $B mkdir -p /m /proc; $B mount -t proc p /proc; $B mount -t ext4 /dev/vda /m; \
     $B cp /m/in /m/out; $B sync; $B dd if=/dev/zero of=/m/big bs=64k count=256 conv=fsync 2>/dev/null || echo no room; \
     echo 3 >/proc/sys/vm/drop_caches; $B cmp /m/in /m/out && echo copy is good; $B END -f";

/// What it does with a disk that fails, block by block and without a cache of its own: it says how each request has ended.
const FAIL: &str = "B=busybox; $B mount -t devtmpfs d /dev; $B yes Paravane | $B head -c 4096 >/in; D=/dev/DISK; \
     for n in $($B seq 0 23); do $B dd if=/in of=$D bs=4k count=1 seek=$n oflag=direct 2>/dev/null; echo write $n $?; \
     $B dd if=$D of=/out bs=4k count=1 skip=$n iflag=direct 2>/dev/null; echo read $n $?; \
     $B dd if=/in of=$D bs=4k count=0 conv=fsync 2>/dev/null; echo flush $n $?; done; echo alive; $B END -f";

/// The blocks of that disk, their bytes, and what says which requests fail.
const BLOCKS: usize = 24;
const BLOCK: usize = 4096;
const SEED: u32 = 7;

/// Its guests: kernel, how they end, what they call it.
const FAILING: [(&str, &str, &str, &str); 3] = [
    ("kvm-pv", "full", "reboot", "vda"),
    ("para", "para", "poweroff", "vda"),
    ("full", "full", "reboot", "sda"),
];

/// What the script has left.
struct Done {
    folder: PathBuf,
    kills: u32,
}

fn done() -> Option<&'static Done> {
    static DONE: LazyLock<Result<Done, String>> = LazyLock::new(run);
    or_skipped(DONE.as_ref())
}

fn tool(program: &str, arguments: &[&str]) -> Output {
    let program = e2fsprogs(program).unwrap();
    Command::new(program).args(arguments).output().unwrap()
}

/// The content of the file `in`.
fn content() -> Vec<u8> {
    (0..100_000_u32)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes())
        .collect()
}

/// The guest's command in the script.
fn command(
    (guest, kernel, initrd): (&str, &Path, &Path),
    name: &str,
    disk: &str,
    init: &str,
) -> String {
    format!(
        "'{}' run --guest {guest} --host kvm --kernel '{}' --initrd '{}' --disk {disk} --watchdog 100 \
         --stats json --stats-file {name}.stats --console-log {name}.console \
         --cmdline 'quiet rdinit=/bin/busybox -- sh -c \"{init}\"' </dev/null 2>{name}.errors",
        env!("CARGO_BIN_EXE_paravane"),
        kernel.display(),
        initrd.display()
    )
}

fn run() -> Result<Done, String> {
    let initrd = paravane_reference_host::built("initramfs/guest.cpio", "initramfs")?;
    paravane_reference_host::built("reference-host/current", "reference-host")?;
    for tool in ["mkfs.ext4", "e2fsck", "debugfs"] {
        e2fsprogs(tool)?;
    }
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return Err(
            "qemu-img is missing; run `ci/setup`, or install Debian's qemu-utils".to_owned(),
        );
    }
    let kills =
        std::env::var("PARAVANE_KILLS").map_or(KILLS, |n| n.parse().expect("a number of kills"));

    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("disks");
    // Nothing of an earlier run may be mistaken for one of this run.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("root")).unwrap();
    fs::write(folder.join("root/in"), content()).unwrap();
    let mut script = format!("cd '{}'\n", folder.display());
    for guest in &GUESTS {
        let name = guest.name;
        let kernel = paravane_reference_host::built(
            &format!("kernel/{}/vmlinux", guest.kernel),
            &format!("kernel {}", guest.kernel),
        )?;
        for use_of in ["copy", "records"] {
            let image = folder.join(format!("{name}.{use_of}.img"));
            let (root, image) = (folder.join("root"), image.to_str().unwrap());
            let made = tool(
                "mkfs.ext4",
                &["-q", "-d", root.to_str().unwrap(), image, "24M"],
            );
            assert!(made.status.success(), "{made:?}");
        }
        let run = |name: &str, disk: &str, init: &str| {
            command((guest.guest, &kernel, &initrd), name, disk, init)
        };
        let [make, disk, back] = guest.disk(&format!("{name}.copy.img"));
        let copy = run(
            &format!("{name}.copy"),
            &disk,
            &COPY.replace("END", guest.end),
        );
        script += &format!("{make}\n{copy}\n{back}\n");
        let [make, disk, _] = guest.disk("small/disk.img");
        let fill = run(
            &format!("{name}.fill"),
            &disk,
            &FILL.replace("END", guest.end),
        );
        script += &format!(
            "mkdir -p small; mount -t tmpfs -o size=12m small small\n\
             cp --sparse=always {name}.records.img small/disk.img; {make}\n\
             {fill}\numount small\n"
        );
        let [make, disk, back] = guest.disk(&format!("{name}.records.img"));
        for kill in 0..kills {
            let this = format!("{name}.{kill}");
            let init = RECORDS.replace("ROUND", &kill.to_string());
            script += &format!("{make}\n{}", run(&this, &disk, &init));
            // After some records, and then anywhere in the middle of one.
            let (records, tenths) = (3 + kill * 7 % 23, kill % 5);
            script += &format!(
                " &\nfor n in $(seq 600); do\n\
                 [ $(grep -c 'on disk' {this}.console) -ge {records} ] && break; sleep 0.1; done 2>/dev/null\n\
                 sleep 0.{tenths}3; kill -9 $!; wait $!\n\
                 {back} && e2fsck -p {name}.records.img >{this}.fsck 2>&1; echo \"recovery $?\" >>{this}.fsck\n\
                 e2fsck -fn {name}.records.img >>{this}.fsck 2>&1; echo \"check $?\" >>{this}.fsck\n"
            );
        }
    }
    for (guest, kernel, end, disk) in FAILING {
        let kernel = paravane_reference_host::built(
            &format!("kernel/{kernel}/vmlinux"),
            &format!("kernel {kernel}"),
        )?;
        let name = format!("{guest}.fail");
        fs::write(folder.join(format!("{name}.img")), [b'-'; BLOCKS * BLOCK]).unwrap();
        let init = FAIL.replace("DISK", disk).replace("END", end);
        let image = format!("{name}.img,fail={SEED}");
        script += &command((guest, &kernel, &initrd), &name, &image, &init);
        script += "\n";
    }
    script += "exit 0\n";
    let path = folder.join("script");
    fs::write(&path, script).unwrap();
    let limit = 240 + SECONDS_A_KILL * u64::from(kills) * 3;
    let finished = paravane_reference_host::Command::new([Path::new("/bin/sh"), path.as_path()])
        .expect("the working folder is known")
        .timeout(Duration::from_secs(limit))
        .run()
        .unwrap_or_else(|error| panic!("the reference host failed: {error}"));
    assert!(
        finished.success(),
        "the script ended with {}",
        finished.code
    );
    Ok(Done { folder, kills })
}

impl Done {
    fn text(&self, name: &str) -> String {
        let bytes = fs::read(self.folder.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn image(&self, guest: &str, use_of: &str) -> String {
        let path = self.folder.join(format!("{guest}.{use_of}.img"));
        path.to_str().unwrap().to_owned()
    }

    /// The content of a file in an image.
    fn file(&self, image: &str, name: &str) -> Vec<u8> {
        // Of each image one, as the tests run at once.
        let copy = PathBuf::from(format!("{image}.file"));
        let request = format!("dump {name} {}", copy.display());
        let _ = fs::remove_file(&copy);
        let output = tool("debugfs", &["-R", &request, image]);
        fs::read(&copy).unwrap_or_else(|e| panic!("{name} of {image}: {e}: {output:?}"))
    }
}

#[test]
fn pv_dev_10_a_booted_guest_writes_and_remounts_its_disk() {
    let Some(done) = done() else { return };
    for Guest { name: guest, .. } in GUESTS {
        let name = format!("{guest}.copy");
        let console = done.text(&format!("{name}.console"));
        let errors = done.text(&format!("{name}.errors"));
        assert!(
            console.contains("copy is good"),
            "{guest}: {console}\n{errors}"
        );
        let image = done.image(guest, "copy");
        let check = tool("e2fsck", &["-fn", &image]);
        assert!(check.status.success(), "{guest}: {check:?}");
        assert!(done.file(&image, "out") == content(), "{guest}: the copy");

        let stats: Value = serde_json::from_str(&done.text(&format!("{name}.stats"))).unwrap();
        let device = &stats["devices"][0];
        let count = |what: &str| device[what].as_u64().unwrap_or(0);
        assert!(count("requests") > 10, "{guest}: {stats}");
        assert!(count("interrupts") <= count("requests"), "{guest}: {stats}");
        assert_eq!(device["broken"], Value::Null, "{guest}");
        // Requests do not come by way of the vCPU's thread.
        let exits = &stats["user_exits"];
        if guest != "kvm-pv" {
            assert_eq!(exits["mmio"], 0, "{stats}");
            assert_eq!(stats["hypercalls"]["dev.start"], 1, "{stats}");
        }
    }
}

/// A host's disk that is full is an error of the guest's file system, and no more.
#[test]
fn a_guest_goes_on_where_its_host_has_no_room() {
    let Some(done) = done() else { return };
    for Guest { name: guest, .. } in GUESTS {
        let console = done.text(&format!("{guest}.fill.console"));
        let errors = done.text(&format!("{guest}.fill.errors"));
        for word in ["no room", "copy is good"] {
            assert!(
                console.contains(word),
                "{guest}: {word}: {console}\n{errors}"
            );
        }
        let stats: Value =
            serde_json::from_str(&done.text(&format!("{guest}.fill.stats"))).unwrap();
        assert_eq!(stats["devices"][0]["broken"], Value::Null, "{guest}");
    }
}

/// A request that fails is an error of the program's that has made it, and has done nothing; the guest goes on.
#[test]
fn a_guest_goes_on_with_a_disk_that_fails() {
    let Some(done) = done() else { return };
    for (guest, ..) in FAILING {
        let name = format!("{guest}.fail");
        let console = done.text(&format!("{name}.console"));
        let errors = done.text(&format!("{name}.errors"));
        assert!(console.contains("alive"), "{guest}: {console}\n{errors}");
        let image = fs::read(done.folder.join(format!("{name}.img"))).unwrap();
        let written = b"Paravane\n".iter().cycle().take(BLOCK);
        let written: Vec<u8> = written.copied().collect();
        let mut failed = 0;
        for (block, now) in image.chunks_exact(BLOCK).enumerate() {
            let good = |what: &str| console.contains(&format!("{what} {block} 0\r\n"));
            let before = [b'-'; BLOCK];
            let expected = if good("write") { &written[..] } else { &before };
            assert!(now == expected, "{guest}: block {block}: {console}");
            failed += ["write", "read", "flush"]
                .iter()
                .filter(|what| !good(what))
                .count();
        }
        let stats: Value = serde_json::from_str(&done.text(&format!("{name}.stats"))).unwrap();
        // The kernel's own look for partitions may have had one, too.
        let asked = stats["disk_faults"].as_u64().unwrap();
        assert!(
            failed > 0 && failed as u64 <= asked,
            "{guest}: {failed}: {stats}\n{console}"
        );
    }
}

/// What was on the disk is on it, and the file system is whole, each time.
#[test]
fn what_a_guest_was_told_is_on_the_disk_is_there_after_a_kill() {
    let Some(done) = done() else { return };
    let expected = &content()[..4096];
    for Guest { name: guest, .. } in GUESTS {
        let image = done.image(guest, "records");
        let mut records = 0;
        for kill in 0..done.kills {
            let fsck = done.text(&format!("{guest}.{kill}.fsck"));
            let recovered = ["recovery 0", "recovery 1"].map(|code| fsck.contains(code));
            assert!(recovered.contains(&true), "{guest}, kill {kill}: {fsck}");
            assert!(fsck.contains("check 0"), "{guest}, kill {kill}: {fsck}");
            assert_eq!(
                done.text(&format!("{guest}.{kill}.stats")),
                "",
                "it was not killed"
            );
            let console = done.text(&format!("{guest}.{kill}.console"));
            for line in console.lines() {
                if let Some((_, record)) = line.trim_end().split_once("on disk: ") {
                    assert!(done.file(&image, record) == expected, "{guest}: {record}");
                    records += 1;
                }
            }
        }
        println!("{guest}: {} kills, {records} records", done.kills);
        assert!(records >= 3 * done.kills, "{guest}: {records} records");
    }
}
