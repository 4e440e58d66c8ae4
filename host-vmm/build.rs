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

fn main() {
    let var = |name| std::env::var(name).unwrap_or_else(|_| panic!("Cargo sets {name}"));
    let guest = Path::new(&var("CARGO_MANIFEST_DIR")).join("../benches/bare-metal");
    let status = Command::new(var("RUSTC"))
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "paravane_bare_metal",
            "--crate-type",
            "bin",
        ])
        .args([
            "--target",
            "x86_64-unknown-linux-gnu",
            "-C",
            "opt-level=s",
            "-C",
            "panic=abort",
        ])
        .args(["-C", "relocation-model=static"])
        .args(
            LINK_ARGS
                .iter()
                .flat_map(|arg| ["-C".to_owned(), format!("link-arg={arg}")]),
        )
        .arg("-C")
        .arg(format!(
            "link-arg=-Wl,-T,{}",
            guest.join("guest.ld").display()
        ))
        .arg("-o")
        .arg(Path::new(&var("OUT_DIR")).join("bare-metal"))
        .arg(guest.join("src/main.rs"))
        .status()
        .expect("the compiler that Cargo named can be started");
    assert!(
        status.success(),
        "the bare-metal guest does not build: {status}"
    );
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", guest.display());
}
