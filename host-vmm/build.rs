//! Builds the bare-metal guest and puts it where `doctor::image` embeds it.
//!
//! # Why not Cargo
//!
//! Stable Cargo has no artifact dependencies, and a second Cargo below this one would wait for the
//! lock of the target folder. The guest has no dependencies and needs nothing but a compiler, so
//! the compiler is called directly, and `paravane` stays one self-contained binary.

use std::path::Path;
use std::process::Command;

include!("../benches/bare-metal/link_args.rs");

fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("Cargo sets {name}"))
}

/// Compiles `source` of the guests in folder `guest` to `file`, to be entered at `entry`.
fn build(guest: &Path, source: &str, file: &str, entry: &str) {
    let mut command = Command::new(var("RUSTC"));
    command.args(["--edition", "2024", "--crate-name", "paravane_bare_metal"]);
    command.args([
        "--crate-type",
        "bin",
        "--target",
        "x86_64-unknown-linux-gnu",
    ]);
    for option in ["opt-level=s", "panic=abort", "relocation-model=static"] {
        command.args(["-C", option]);
    }
    let script = format!("-Wl,-T,{}", guest.join("guest.ld").display());
    let entry = format!("-Wl,-e,{entry}");
    for arg in LINK_ARGS
        .into_iter()
        .chain([script.as_str(), entry.as_str()])
    {
        command.arg("-C").arg(format!("link-arg={arg}"));
    }
    command.arg("-o").arg(Path::new(&var("OUT_DIR")).join(file));
    let status = command
        .arg(guest.join("src").join(source))
        .status()
        .expect("the compiler that Cargo named can be started");
    assert!(
        status.success(),
        "the bare-metal guest does not build: {status}"
    );
}

fn main() {
    let root = Path::new(&var("CARGO_MANIFEST_DIR")).join("..");
    let guest = root.join("benches/bare-metal");
    // Entered at a call table that the VMM has written, or at the steps of the guest's own.
    build(&guest, "main.rs", "bare-metal", "entry");
    build(&guest, "main.rs", "conformance-guest", "conform");
    // What `driver_domain` embeds.
    build(&guest, "driver.rs", "driver-domain", "entry");
    let registry = root.join("hypercall-abi/src/abi/registry.rs");
    for path in [Path::new("build.rs"), &guest, &registry] {
        println!("cargo:rerun-if-changed={}", path.display());
    }
}
