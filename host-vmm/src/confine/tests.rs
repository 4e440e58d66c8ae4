//! What a confined process can do and cannot. It is another process: this one has other tests to run.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use super::*;
use crate::config::Profile;

/// What the confined process below is told to try.
const TRY: &str = "PARAVANE_TEST_CONFINE";
/// It has got to its end.
const DONE: i32 = 77;

/// Not a test by itself: what a confined process does, for those below.
#[test]
fn confined() {
    let Ok(what) = std::env::var(TRY) else { return };
    if what == "no-seccomp" {
        calls::pretend_to_lack();
    }
    // A thread from before is confined as well.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let tries = what.clone();
    let before = std::thread::spawn(move || {
        wait.recv().unwrap();
        match tries.as_str() {
            // SAFETY: no arguments; it asks for nothing.
            "ptrace" => drop(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }),
            "execve" => {
                // SAFETY: there is no such program.
                unsafe { libc::execve(c"".as_ptr(), std::ptr::null(), std::ptr::null()) };
            }
            // SAFETY: the request types a character into the terminal that standard input is not.
            "ioctl" => drop(unsafe { libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()) }),
            // SAFETY: no such call; it does nothing.
            "number" => drop(unsafe { libc::syscall(0x7777) }),
            "vcpu" => {
                thread(Thread::Vcpu);
                // A device is started, and ended.
                let device = std::thread::spawn(|| thread(Thread::Worker));
                device.join().unwrap();
            }
            "vcpu-flock" => {
                thread(Thread::Vcpu);
                // SAFETY: a descriptor that is nobody's.
                unsafe { libc::flock(-1, libc::LOCK_UN) };
            }
            "worker-open" => {
                thread(Thread::Worker);
                drop(std::fs::File::open("/dev/null"));
            }
            _ => {
                std::fs::read("/proc/cpuinfo").unwrap();
                std::thread::spawn(|| ()).join().unwrap();
            }
        }
    });
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
    let kernel = file.as_path().to_owned();
    let config = Config::of(Profile::Para, kernel.clone());
    let lacks = process(&Needs {
        config: &config,
        restarts: what == "restarts",
        removes: vec![],
    });
    let lacks = lacks.unwrap();
    assert_eq!(lacks.contains(&Lack::Seccomp), what == "no-seccomp");
    go.send(()).unwrap();
    before.join().unwrap();
    if !lacks.contains(&Lack::Landlock) {
        std::fs::File::open(&kernel).unwrap();
        let passwords = std::fs::read("/etc/passwd").unwrap_err();
        assert_eq!(passwords.kind(), io::ErrorKind::PermissionDenied);
        let written = std::fs::File::create(&kernel).unwrap_err();
        assert_eq!(written.kind(), io::ErrorKind::PermissionDenied);
    }
    std::process::exit(DONE);
}

fn confined_process(what: &str) -> (Output, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "confine::tests::confined", "--nocapture"])
        .env(TRY, what)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, text)
}

#[test]
fn a_forbidden_call_ends_the_process_and_is_named() {
    for (what, named) in [
        ("ptrace", "`ptrace` (101)"),
        ("execve", "`execve` (59)"),
        ("ioctl", "`ioctl` (16)"),
        ("number", "`unknown to this program` (30583)"),
        ("vcpu-flock", "`flock` (73)"),
        ("worker-open", "`openat` (257)"),
    ] {
        let (output, text) = confined_process(what);
        let status = output.status;
        assert_eq!(
            status.code(),
            Some(1),
            "{what}, {:?}: {text}",
            status.signal()
        );
        assert!(text.contains("forbidden system call"), "{what}: {text}");
        assert!(text.contains(named), "{what}: {text}");
    }
}

#[test]
fn what_a_vmm_needs_is_allowed() {
    for what in ["nothing", "vcpu", "restarts"] {
        let (output, text) = confined_process(what);
        assert_eq!(output.status.code(), Some(DONE), "{what}: {text}");
    }
}

#[test]
fn a_host_without_seccomp_is_no_error() {
    let (output, text) = confined_process("no-seccomp");
    assert_eq!(output.status.code(), Some(DONE), "{text}");
}
