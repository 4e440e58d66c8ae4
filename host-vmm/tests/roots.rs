//! Root file systems on disks, booted on the reference host: what a guest has written is what the host finds.
//!
//! All guests run in one boot of the reference host. Where the kernel, the Debian image or the reference host is not built,
//! or a tool is missing, the tests print `skipped: reason`; `cargo ci test` builds them first.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use paravane_reference_host::or_skipped;

/// A guest's name, and what its VMM gets.
const WRITERS: [(&str, &str); 2] = [
    ("dma", "--guest full"),
    ("pio", "--guest full --cmdline libata.dma=0"),
];

/// What writes: it fills a file, flushes it, and takes the file system away and back before it says what is in there.
const INIT: &str = "#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b seq 1 4000 >/numbers
$b sync
$b mount -o remount,ro / && echo 3 >/proc/sys/vm/drop_caches
echo sum=$($b md5sum </numbers)
$b reboot -f
";

/// The guests that boot the Debian image, one after the other: IDE and NE2000, virtio over MMIO, virtio by facility dev.
const DEBIANS: [&str; 3] = ["full", "kvm-pv", "para"];
/// The fourth: a full guest with the kernel that Debian has compiled.
const UNMODIFIED: &str = "own-kernel";

/// Types into a Debian guest's console what its words ask for. The fetched file comes from the host's own address.
const TYPIST: &str = r#"say() {
    for try in $(seq 1500); do
        grep -q "$1" $name.console && break
        kill -0 $guest 2>/dev/null || break
        sleep 0.2
    done
    echo "$2" >&9
}
work() {
say 'paravane login: ' root
say 'root@paravane' 'until ip route | grep -q default; do sleep 0.2; done; echo sum=$(busybox wget -qO- http://10.0.2.2:8099/data | md5sum)'
say 'sum=[0-9a-f]' reboot
}
"#;

struct Results {
    folder: PathBuf,
}

impl Results {
    fn text(&self, name: &str) -> String {
        let bytes = fs::read(self.folder.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the guest says that its file's sum is.
    fn sum(&self, name: &str) -> String {
        let console = self.text(&format!("{name}.console"));
        let errors = self.text(&format!("{name}.errors"));
        assert_eq!(
            self.text(&format!("{name}.code")).trim(),
            "0",
            "{console}\n{errors}"
        );
        // What was typed, and is echoed, has no digits there.
        let sums = console.split("sum=").filter_map(|text| text.get(..32));
        let sums = sums.filter(|sum| sum.chars().all(|c| c.is_ascii_hexdigit()));
        let sum = sums.last();
        sum.unwrap_or_else(|| panic!("no sum: {console}"))
            .to_owned()
    }

    /// Finds nothing to mend in the file system that a guest has left.
    fn check(&self, image: &str) {
        let mut fsck = Command::new("/sbin/e2fsck");
        let output = fsck
            .args(["-f", "-n"])
            .arg(self.folder.join(image))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{image}: {text}");
    }
}

fn md5(file: &Path) -> String {
    let output = Command::new("md5sum").arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn run() -> Result<Results, String> {
    let kernel = paravane_reference_host::built("kernel/full/vmlinux", "kernel full")?;
    let patched = paravane_reference_host::built("kernel/para/vmlinux", "kernel para")?;
    paravane_reference_host::built("reference-host/current", "reference-host")?;
    for tool in ["mke2fs", "e2fsck", "debugfs"] {
        paravane_reference_host::e2fsprogs(tool)?;
    }
    let debian = paravane_reference_host::built("image/debian-kernel.img", "image")?;

    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("roots");
    // Nothing of an earlier run may be mistaken for one of this run.
    let _ = fs::remove_dir_all(&folder);
    let root = folder.join("root");
    for name in ["bin", "dev", "proc", "sbin"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::write(root.join("sbin/init"), INIT).unwrap();
    let shell = |line: &str| {
        let mut sh = Command::new("sh");
        let status = sh.current_dir(&folder).args(["-c", line]).status().unwrap();
        assert!(status.success(), "{line}");
    };
    shell("chmod 755 root/sbin/init");
    for (name, _) in WRITERS {
        // Few inodes: the kernel fills their table with zeros, and with programmed I/O that takes a minute.
        shell(&format!(
            "/sbin/mke2fs -q -t ext4 -N 64 -d root {name}.img 32M"
        ));
    }
    shell(&format!(
        "cp --sparse=always '{}' debian.img",
        debian.display()
    ));
    shell("mkdir www && seq 1 50000 >www/data");

    let program = env!("CARGO_BIN_EXE_paravane");
    let mut script = format!("cd '{}'\n", folder.display());
    let with = |kernel: &Path| format!("--host kvm --watchdog 100 --kernel '{}'", kernel.display());
    let always = with(&kernel);
    for (name, options) in WRITERS {
        // Writing to a String cannot fail.
        let _ = writeln!(
            script,
            "'{program}' run {options} {always} --disk {name}.img --console-log {name}.console 2>{name}.errors\n\
             echo $? >{name}.code",
        );
    }
    let _ = writeln!(
        script,
        "busybox httpd -f -p 127.0.0.1:8099 -h www &\n\
         mkfifo /dev/shm/keys && exec 9<>/dev/shm/keys\n\
         {TYPIST}",
    );
    let part = |ending| debian.with_extension(ending).display().to_string();
    let own = format!(
        "--guest full --host kvm --watchdog 300 --memory 256 --kernel '{}' --initrd '{}'",
        part("vmlinuz"),
        part("initrd")
    );
    let guests = DEBIANS.map(|guest| {
        let kernel = with(if guest == "para" { &patched } else { &kernel });
        (guest, format!("--guest {guest} {kernel}"))
    });
    for (name, options) in guests.into_iter().chain([(UNMODIFIED, own)]) {
        let _ = writeln!(
            script,
            "name=debian-{name}\n\
             '{program}' run {options} --disk debian.img --net user --cmdline quiet \
             </dev/shm/keys >$name.console 2>$name.errors &\n\
             guest=$!\n\
             work\n\
             wait $guest\n\
             echo $? >$name.code",
        );
    }
    let path = folder.join("script");
    fs::write(&path, script).unwrap();
    let finished = paravane_reference_host::Command::new([Path::new("/bin/sh"), path.as_path()])
        .expect("the working folder is known")
        .timeout(Duration::from_secs(700))
        .run()
        .unwrap_or_else(|error| panic!("the reference host failed: {error}"));
    assert!(
        finished.success(),
        "the script ended with {}",
        finished.code
    );
    Ok(Results { folder })
}

/// What the guests left, or `return` with the reason why there were none.
macro_rules! results_or_skip {
    () => {{
        static ALL: LazyLock<Result<Results, String>> = LazyLock::new(run);
        match or_skipped(ALL.as_ref()) {
            Some(results) => results,
            None => return,
        }
    }};
}

#[test]
fn what_guests_write_and_load_is_there_afterwards() {
    let results = results_or_skip!();
    for (name, _) in WRITERS {
        let sum = results.sum(name);
        results.check(&format!("{name}.img"));
        let dump = format!("dump /numbers {name}.numbers");
        let mut debugfs = Command::new("/sbin/debugfs");
        debugfs.current_dir(&results.folder).args(["-R", &dump]);
        assert!(
            debugfs
                .arg(format!("{name}.img"))
                .output()
                .unwrap()
                .status
                .success()
        );
        assert_eq!(md5(&results.folder.join(format!("{name}.numbers"))), sum);
    }
    // And with a login, and a network, on a Debian.
    for guest in DEBIANS.into_iter().chain([UNMODIFIED]) {
        let sum = results.sum(&format!("debian-{guest}"));
        assert_eq!(sum, md5(&results.folder.join("www/data")), "{guest}");
    }
    let console = results.text(&format!("debian-{UNMODIFIED}.console"));
    assert!(console.contains("+deb12-amd64"), "{console}");
    results.check("debian.img");
}
