//! Linux under Debian's gdb, from before its first instruction to the end.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use paravane_reference_host::or_skipped;

use crate::launch_or_skip;
use crate::launches::launches;

/// What gdb is told. The first breakpoint is set while the kernel has no page tables yet, and is hit in early boot; the next
/// one's guest executes INT3 on purpose on the way there.
const COMMANDS: [&str; 12] = [
    "break start_kernel",
    "continue",
    "backtrace",
    "stepi",
    "hbreak kernel_init",
    "continue",
    "printf \"paging %d\\n\", $cr0 >> 31 & 1",
    "break do_sys_openat2",
    "continue",
    "info threads",
    "delete",
    "continue",
];

/// The lines of a script that run `guest` under gdb.
pub(crate) fn script(guest: &str, kernel: &Path, initrd: &Path) -> String {
    let end = if guest == "full" {
        "restart"
    } else {
        "poweroff"
    };
    let mut script = format!(
        "'{}' run --guest {guest} --host kvm --kernel '{}' --initrd '{}' --watchdog 120 --stats json \
         --stats-file {guest}-gdb.stats --console-log {guest}-gdb.console --gdb 4321 --cmdline '-- end={end}' \
         </dev/null 2>{guest}-gdb.errors &\n\
         for try in $(seq 300); do grep -q 'gdb can come' {guest}-gdb.errors && break; sleep 0.1; done\n\
         gdb -nx -batch '{}' -ex 'set remotetimeout 60' -ex 'target remote :4321'",
        env!("CARGO_BIN_EXE_paravane"),
        kernel.display(),
        initrd.display(),
        kernel.display(),
    );
    for command in COMMANDS {
        // Writing to a String cannot fail.
        let _ = write!(script, " -ex '{command}'");
    }
    script + &format!(" >{guest}-gdb.gdb 2>&1\nwait $!\necho $? >{guest}-gdb.code\n")
}

#[test]
fn linux_is_debugged_from_its_first_instruction_to_its_end() {
    let Some(all) = or_skipped(launches()) else {
        return;
    };
    for (guest, outcome) in [("full", "reboot"), ("para", "power-off")] {
        let (text, launch) = (all.gdb(guest), all.get(&format!("{guest}-gdb")));
        if text.contains("gdb: not found") {
            println!("skipped: there is no gdb");
            return;
        }
        let mut rest = text;
        for said in [
            "Breakpoint 1, ",
            "in start_kernel ()",
            // The backtrace.
            "#1 ",
            "in x86_64_start_reservations ()",
            // The step.
            "in start_kernel ()",
            "Breakpoint 2, ",
            "in kernel_init ()",
            "paging 1",
            "Breakpoint 3, ",
            "in do_sys_openat2 ()",
            "Thread 1.1 (vCPU 0)",
            "exited normally",
        ] {
            let at = rest.find(said);
            let at = at.unwrap_or_else(|| panic!("no `{said}` here:\n{rest}\n{text}\n{launch}"));
            rest = &rest[at + said.len()..];
        }
        assert_eq!((launch.code, launch.outcome()), (0, outcome), "{launch}");
    }
}

/// gdb follows the frame pointers by itself only where the kernel has debug information.
const CALLER: &str = "info symbol *(unsigned long *)($frame + 8)";

#[test]
fn gdb_opens_the_core_of_a_panic_and_shows_who_called_it() {
    let panic = launch_or_skip!("para-panic");
    assert!(panic.errors.contains("its core: gdb "), "{panic}");
    let cache = paravane_reference_host::cache_folder().expect("there was one for the launches");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boot");
    let mut gdb = Command::new("gdb");
    gdb.args([
        "-nx",
        "-batch",
        "-ex",
        "info threads",
        "-ex",
        "set $frame = $rbp",
    ]);
    // The panic's stack is in vmalloc's area, the text in the kernel's own mapping.
    for _ in 0..6 {
        gdb.args([
            "-ex",
            CALLER,
            "-ex",
            "set $frame = *(unsigned long *)$frame",
        ]);
    }
    gdb.arg(cache.join("kernel/para/vmlinux"))
        .arg(folder.join("para-panic.core"));
    let Some(output) = or_skipped(gdb.output().map_err(|e| format!("no gdb: {e}"))) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let mut rest = &*text;
    for said in ["LWP 1", "in paravane_crash ()", "panic + ", "do_exit + "] {
        let at = rest.find(said);
        let at = at.unwrap_or_else(|| panic!("no `{said}`:\n{text}"));
        rest = &rest[at..];
    }
}
