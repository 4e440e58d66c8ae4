//! A kernel whose instructions this host's KVM may not know: with `--complete` it does on any host what the manual says.

use std::path::Path;
use std::process::Command;

use paravane_reference_host::or_skipped;

/// What the guest prints where each instruction did as it should.
const ALL: &str = "PEDGRWBFSTC";

#[test]
fn a_kernel_does_what_the_manual_says() {
    if or_skipped(paravane::kvm::open()).is_none() {
        return;
    }
    let elf = Path::new(env!("CARGO_TARGET_TMPDIR")).join("complete-guest.elf");
    let status = Command::new("gcc")
        .args("-nostdlib -static -no-pie -Wl,--build-id=none -Wl,-Ttext=0x1000000".split(' '))
        .args("-Wl,-z,noexecstack -Wl,--no-warn-rwx-segments -o".split(' '))
        .arg(&elf)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/complete/guest.S"))
        .status()
        .expect("gcc (ci/setup installs it)");
    assert!(status.success());
    let output = Command::new(env!("CARGO_BIN_EXE_paravane"))
        .args("run --guest full --host kvm --complete --watchdog 60 --kernel".split(' '))
        .arg(&elf)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(told.trim(), ALL, "{errors}");
    assert_eq!(output.status.code(), Some(0), "{errors}");
}
