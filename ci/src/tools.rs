//! Tasks `setup` and `tools`: the programs that the builds need.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::run;
use crate::workspace::Workspace;

/// The bindgen that goes with the kernel's version and `libclang` 19.
pub(crate) const BINDGEN_VERSION: &str = "0.73.2";
/// The kernel's Rust compiler: Debian's, whose library source is a package. Not the one of the
/// toolchain that comes first in PATH.
pub(crate) const RUSTC: &str = "/usr/bin/rustc";
/// Suffix of the kernel's LLVM tools.
pub(crate) const LLVM: &str = "-19";

/// Task `setup`.
pub(crate) fn setup(workspace: &Workspace, check: bool) -> Result<()> {
    let mut command = Command::new(workspace.root.join("ci/setup"));
    if check {
        command.arg("--check");
    }
    run::show(&mut command)
}

/// Task `tools`.
pub(crate) fn check_or_install(workspace: &Workspace, check: bool) -> Result<()> {
    match (find_bindgen(workspace), check) {
        (Some(path), _) => println!("tools: bindgen {BINDGEN_VERSION} is {}", path.display()),
        (None, true) => bail!("bindgen {BINDGEN_VERSION} is missing; ci/setup installs it"),
        (None, false) => {
            println!("tools: installing bindgen {BINDGEN_VERSION} (some minutes)");
            install_bindgen(workspace)?;
        }
    }
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let there = run::read(Command::new("cargo").args([subcommand, "--version"])).is_ok();
        match (there, check) {
            (true, _) => {}
            (false, true) => bail!("the Rust toolchain has no {component}; ci/setup adds it"),
            (false, false) => {
                println!("tools: adding {component} to the Rust toolchain");
                run::show(Command::new("rustup").args(["component", "add", component]))?;
            }
        }
    }
    for (name, version) in kernel_toolchain(workspace)? {
        println!("tools: {name}: {version}");
    }
    Ok(())
}

/// The kernel's tools and their versions, for the manifest and the cache key.
pub(crate) fn kernel_toolchain(workspace: &Workspace) -> Result<Vec<(&'static str, String)>> {
    let clang = format!("clang{LLVM}");
    let linker = format!("ld.lld{LLVM}");
    let bindgen = bindgen(workspace)?;
    let mut versions = Vec::new();
    for (name, program) in [
        ("clang", Path::new(&clang)),
        ("ld.lld", Path::new(&linker)),
        ("rustc", Path::new(RUSTC)),
        ("bindgen", &bindgen),
        ("make", Path::new("make")),
    ] {
        let mut command = Command::new(program);
        command.arg("--version");
        let Ok(text) = run::read(&mut command) else {
            bail!("{} does not run; ci/setup installs it", program.display());
        };
        versions.push((name, text.lines().next().unwrap_or_default().to_owned()));
    }
    Ok(versions)
}

/// The right bindgen, or an error with the mend.
pub(crate) fn bindgen(workspace: &Workspace) -> Result<PathBuf> {
    match find_bindgen(workspace) {
        Some(path) => Ok(path),
        None => bail!("bindgen {BINDGEN_VERSION} is missing; ci/setup installs it"),
    }
}

fn find_bindgen(workspace: &Workspace) -> Option<PathBuf> {
    let ours = bindgen_root(workspace).join("bin/bindgen");
    let theirs = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo")))
        .map(|home| home.join("bin/bindgen"));
    let right = |path: &PathBuf| {
        run::read(Command::new(path).arg("--version"))
            .is_ok_and(|text| text.trim() == format!("bindgen {BINDGEN_VERSION}"))
    };
    [Some(ours), theirs].into_iter().flatten().find(right)
}

fn bindgen_root(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("bindgen").join(BINDGEN_VERSION)
}

fn install_bindgen(workspace: &Workspace) -> Result<()> {
    let _lock = workspace.lock("bindgen")?;
    let target = workspace.cache_dir("bindgen")?.join("target");
    run::show(
        Command::new("cargo")
            .args(["install", "--locked", "--quiet", "bindgen-cli"])
            .args(["--version", BINDGEN_VERSION, "--root"])
            .arg(bindgen_root(workspace))
            .arg("--target-dir")
            .arg(&target),
    )?;
    crate::workspace::remove(&target)
}
