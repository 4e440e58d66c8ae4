//! Guests whose devices are served elsewhere (`--io`), or are virtio's own (`--rng`, `--vsock`, `--port`), on the reference
//! host: what they do works, a pause in the middle included; and what is served elsewhere does not come by way of the VMM.
//!
//! All is done once, by one script in one boot of the reference host. Where the kernels, the initramfs or the reference
//! host are not built, or a tool is missing, each test prints `skipped: reason`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use paravane_reference_host::{e2fsprogs, or_skipped};
use serde_json::Value;

/// Guest, kernel, and how it ends.
const GUESTS: [(&str, &str, &str); 2] =
    [("kvm-pv", "full", "reboot"), ("para", "para", "poweroff")];

/// What the guest does with its network. There is no init but busybox.
const PING: &str = "B=busybox; $B mount -t devtmpfs d /dev; $B ifconfig eth0 10.9.0.2 up; $B ping -c 4 10.9.0.1; $B END -f";

/// What it does with a disk, which has a file `in`: for long enough to be paused in the middle.
const COPY: &str = "B=busybox; $B mount -t devtmpfs d /dev; $B mkdir /m; $B mount -t ext4 /dev/vda /m; for n in $($B seq 30); do \
     $B cp /m/in /m/out; $B sync; echo copied $n; done; $B umount /m; $B mount -t ext4 /dev/vda /m && $B cmp /m/in /m/out && \
     echo copy is good; $B umount /m; $B END -f";

/// What it does with the devices that no PC has: the disk has peer.c's program, `peer`.
const OTHERS: &str = "B=busybox; $B mount -t devtmpfs d /dev; $B mount -t sysfs s /sys; $B mkdir /m; $B mount -t ext4 /dev/vda /m; \
     echo queues $($B ls /sys/block/vda/mq | $B wc -l); echo port $($B cat /sys/class/virtio-ports/*/name); for n in 1 2; do \
     echo random $($B dd if=/dev/hwrng bs=32 count=1 2>/dev/null | $B md5sum); done; $B sleep 1; \
     echo port $(/m/peer file /dev/vport*p0 agent); echo socket $(/m/peer vsock 2:1234 guest); $B END -f";

/// What the script begins with: a network, and how a guest is run, paused once it has printed something, and waited for.
const BEGIN: &str = r#"ip tuntap add paravane0 mode tap && ip addr add 10.9.0.1/24 dev paravane0 && ip link set paravane0 up
guest() {
    name=$1; first=$2; shift 2
    $PARAVANE run --host kvm --watchdog 60 --ctl $name.ctl --stats json --stats-file $name.stats --console-log $name.console "$@" \
        </dev/null 2>$name.errors &
    vmm=$!
    for try in $(seq 300); do grep -q "$first" $name.console && break; sleep 0.1; done 2>/dev/null
    $PARAVANE ctl $name.ctl pause >$name.pause 2>&1 && sleep 0.3 && $PARAVANE ctl $name.ctl resume >>$name.pause 2>&1
    wait $vmm
}
"#;

fn folder() -> Option<&'static Path> {
    static DONE: LazyLock<Result<PathBuf, String>> = LazyLock::new(run);
    or_skipped(DONE.as_deref())
}

/// The content of the file `in`.
fn content() -> Vec<u8> {
    (0..100_000_u32)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes())
        .collect()
}

fn run() -> Result<PathBuf, String> {
    let initrd = paravane_reference_host::built("initramfs/guest.cpio", "initramfs")?;
    paravane_reference_host::built("reference-host/current", "reference-host")?;
    let mkfs = e2fsprogs("mke2fs")?;
    e2fsprogs("e2fsck").and(e2fsprogs("debugfs"))?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("io");
    // Nothing of an earlier run may be mistaken for one of this run.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let root = folder.join("root");
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("in"), content()).unwrap();
    let compiled = Command::new("gcc")
        .args("-O1 -static -Wall -Wextra -Werror -o".split(' '))
        .arg(root.join("peer"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/io/peer.c"))
        .status();
    if !compiled.is_ok_and(|status| status.success()) {
        return Err("gcc cannot make a static program; ci/setup installs it".to_owned());
    }
    let mut script = format!(
        "cd '{}'\nPARAVANE='{}'\n{BEGIN}",
        folder.display(),
        env!("CARGO_BIN_EXE_paravane")
    );
    for (guest, kernel, end) in GUESTS {
        let what = format!("kernel/{kernel}/vmlinux");
        let kernel = paravane_reference_host::built(&what, &format!("kernel {kernel}"))?;
        let image = format!(
            "--guest {guest} --kernel '{}' --initrd '{}'",
            kernel.display(),
            initrd.display()
        );
        let disk = folder.join(format!("{guest}.img"));
        let made = Command::new(&mkfs)
            .args(["-q", "-t", "ext4", "-d"])
            .args([&root, &disk])
            .arg("24M")
            .status();
        assert!(made.unwrap().success());
        let init = COPY.replace("END", end);
        script += &format!(
            "guest {guest}.driver-domain 'copied 2' {image} --io driver-domain --disk {guest}.img \
             --cmdline 'quiet rdinit=/bin/busybox -- sh -c \"{init}\"'\n"
        );
        let init = OTHERS.replace("END", end);
        script += &format!(
            "root/peer listen 1234 host >{guest}.socket & root/peer unix {guest}.port host >{guest}.heard &\n\
             guest {guest}.others random {image} --rng --vsock 3 --port agent={guest}.port --cpus 3 --disk {guest}.img,readonly,queues=4 \
             --cmdline 'quiet nr_cpus=2 rdinit=/bin/busybox -- sh -c \"{init}\"'\n"
        );
        for io in ["hosted", "kernel", "driver-domain"] {
            let init = PING.replace("END", end);
            script += &format!(
                "guest {guest}.ping-{io} seq=1 {image} --io {io} --net tap=paravane0 \
                 --cmdline 'quiet rdinit=/bin/busybox -- sh -c \"{init}\"'\n"
            );
        }
    }
    script += "exit 0\n";
    let path = folder.join("script");
    fs::write(&path, script).unwrap();
    let finished = paravane_reference_host::Command::new([Path::new("/bin/sh"), path.as_path()])
        .expect("the working folder is known")
        .timeout(Duration::from_secs(300))
        .run()
        .unwrap_or_else(|error| panic!("the reference host failed: {error}"));
    assert!(finished.success(), "the script: {}", finished.code);
    Ok(folder)
}

fn text(folder: &Path, name: &str) -> String {
    let bytes = fs::read(folder.join(name)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The statistics of a guest that was paused, and has printed this.
fn stats(folder: &Path, name: &str, printed: &str) -> Value {
    let console = text(folder, &format!("{name}.console"));
    let errors = text(folder, &format!("{name}.errors"));
    assert!(console.contains(printed), "{name}: {console}\n{errors}");
    let pause = text(folder, &format!("{name}.pause"));
    assert!(!pause.contains("error"), "{name}: {pause}");
    serde_json::from_str(&text(folder, &format!("{name}.stats"))).unwrap()
}

#[test]
fn the_hosts_kernel_or_another_guest_moves_frames_and_the_vmm_does_not() {
    let Some(folder) = folder() else { return };
    for (guest, ..) in GUESTS {
        let requests = |io: &str, device: usize| {
            let name = format!("{guest}.ping-{io}");
            let stats = stats(folder, &name, "4 packets received");
            let device = &stats["devices"][device];
            assert_eq!(device["broken"], Value::Null, "{stats}");
            device["requests"].as_u64().unwrap()
        };
        assert!(requests("hosted", 0) >= 8, "{guest}");
        assert_eq!(requests("kernel", 0), 0, "{guest}");
        let [guests, domains] = [0, 1].map(|device| requests("driver-domain", device));
        assert!(guests == 0 && domains >= 8, "{guest}: {guests}, {domains}");
    }
}

#[test]
fn another_guest_serves_the_disk_and_what_is_written_is_in_its_file() {
    let Some(folder) = folder() else { return };
    for (guest, ..) in GUESTS {
        let stats = stats(folder, &format!("{guest}.driver-domain"), "copy is good");
        let [guests, domains] = [0, 1].map(|n| stats["devices"][n]["requests"].as_u64().unwrap());
        assert!(guests == 0 && domains > 10, "{stats}");
        let image = folder.join(format!("{guest}.img"));
        let check = Command::new(e2fsprogs("e2fsck").unwrap())
            .arg("-fn")
            .arg(&image)
            .output()
            .unwrap();
        assert!(check.status.success(), "{guest}: {check:?}");
        let copy = folder.join("copy");
        let request = format!("dump out {}", copy.display());
        let dumped = Command::new(e2fsprogs("debugfs").unwrap())
            .args(["-R", &request])
            .arg(&image)
            .output();
        assert!(fs::read(&copy).unwrap() == content(), "{guest}: {dumped:?}");
    }
}

#[test]
fn a_guest_has_random_numbers_a_port_sockets_to_its_host_and_a_queue_for_each_processor() {
    let Some(folder) = folder() else { return };
    for (guest, ..) in GUESTS {
        let name = format!("{guest}.others");
        let stats = stats(folder, &name, "port agent");
        let console = text(folder, &format!("{name}.console"));
        for line in ["queues 2", "port heard host", "socket heard host"] {
            assert!(console.contains(line), "{name}: {console}");
        }
        let numbers = console.lines().filter(|line| line.starts_with("random "));
        let numbers: Vec<_> = numbers.collect();
        assert!(numbers.len() == 2 && numbers[0] != numbers[1], "{console}");
        assert_eq!(text(folder, &format!("{guest}.heard")), "heard agent\n");
        assert_eq!(text(folder, &format!("{guest}.socket")), "heard guest\n");
        for device in stats["devices"].as_array().unwrap() {
            let by_the_kernel = device["device"] == "vsock";
            let requests = device["requests"].as_u64().unwrap();
            assert_eq!(requests == 0, by_the_kernel, "{stats}");
            assert_eq!(device["broken"], Value::Null, "{stats}");
        }
        assert!(!folder.join(format!("{guest}.port")).exists());
    }
}
