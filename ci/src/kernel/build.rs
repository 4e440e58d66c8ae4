//! Build trees: one for each arm and one for the series' steps, configured and made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::kernel::config;
use crate::kernel::source::Unpacked;
use crate::progress::{Effort, Progress};
use crate::workspace::{Workspace, remove};
use crate::{Arm, run, tools};

/// The file in a build tree that names the source it came from.
const SOURCE: &str = ".paravane-source";
/// What the first build of `full` is expected to be: measured on two threads of one core.
const GUESS_FULL: Effort = Effort {
    steps: 1_790,
    seconds: 1_200.0,
};
/// The same for what starts from `full`'s objects: a header that all include is touched, so that most are built again.
const GUESS_REST: Effort = Effort {
    steps: 1_300,
    seconds: 900.0,
};

/// What a build tree is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// The kernel of an arm.
    Kernel(Arm),
    /// The steps of the series, one after the other.
    Steps,
}

impl Use {
    /// The tree's folder, and what it is called.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Kernel(Arm::Full) => (Arm::Full.name(), "full kernel"),
            Self::Kernel(Arm::Para) => (Arm::Para.name(), "para kernel"),
            Self::Steps => ("steps", "step of the series"),
        }
    }
}

/// A build tree.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) of: Use,
    pub(crate) path: PathBuf,
    bindgen: PathBuf,
    /// Whether nothing was built here before.
    fresh: bool,
}

impl Tree {
    /// Finds the tree for this source, or makes it: out of that of `full`, but for that one.
    pub(crate) fn prepare(workspace: &Workspace, of: Use, source: &Unpacked) -> Result<Self> {
        let builds = workspace.cache_dir("build")?;
        let path = builds.join(of.names().0);
        let mark = path.join(SOURCE);
        let fresh = fs::read_to_string(&mark).unwrap_or_default() != source.name;
        if fresh {
            remove(&path)?;
            let mut command = Command::new("cp");
            match of {
                // Hard links to the untouched source: no space, no time.
                Use::Kernel(Arm::Full) => command.args(["-al"]).arg(&source.path),
                Use::Kernel(Arm::Para) | Use::Steps => {
                    eprintln!("copying the full kernel's build tree");
                    command
                        .args(["-a", "--reflink=auto"])
                        .arg(builds.join(Arm::Full.name()))
                }
            };
            run::read(command.arg(&path))?;
            fs::write(&mark, &source.name)?;
        }
        Ok(Self {
            of,
            path,
            bindgen: tools::bindgen(workspace)?,
            fresh,
        })
    }

    /// Configures the tree from the fragments; with `verify`, every line of theirs must hold.
    pub(crate) fn configure(&self, fragments: &[PathBuf], verify: bool) -> Result<()> {
        let log = self.path.with_extension("config.log");
        let config = self.path.join(".config");
        run::logged(self.command().arg("tinyconfig"), &log, |_| {})?;
        let mut merge = self.hermetic("scripts/kconfig/merge_config.sh");
        merge.args(["-m", ".config"]).args(fragments);
        run::logged(&mut merge, &log, |_| {})?;
        run::logged(self.command().arg("olddefconfig"), &log, |_| {})?;
        if verify {
            config::verify(fragments, &config)?;
        }
        Ok(())
    }

    /// Makes the targets, with a progress bar.
    pub(crate) fn make(&self, targets: &[&str]) -> Result<()> {
        let (_, title) = self.of.names();
        let log = self.path.with_extension("log");
        let mut progress = Progress::start(title, &self.record(), self.guess());
        run::logged(self.command().args(targets), &log, |line| {
            // Kbuild's lines: two blanks, an upper-case word, the file.
            let is_step = line
                .strip_prefix("  ")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()));
            if is_step {
                progress.step();
            }
        })
        .with_context(|| {
            format!(
                "the {title} did not build; if the tree itself is in doubt, delete {} and start \
                 again",
                self.path.display()
            )
        })?;
        progress.finish(self.fresh);
        Ok(())
    }

    /// How long a build from scratch takes, as far as is known.
    pub(crate) fn expected(&self) -> Duration {
        Duration::from_secs_f64(Effort::read(&self.record(), self.guess()).seconds)
    }

    fn record(&self) -> PathBuf {
        self.path.with_extension("effort")
    }

    fn guess(&self) -> Effort {
        match self.of {
            Use::Kernel(Arm::Full) => GUESS_FULL,
            Use::Kernel(Arm::Para) | Use::Steps => GUESS_REST,
        }
    }

    /// `make` with everything that the kernel's build needs, and nothing of our caller's
    /// environment: a RUSTFLAGS or CARGO_… of ours would change the kernel.
    fn command(&self) -> Command {
        let jobs = available_parallelism().map_or(1, usize::from);
        let mut command = self.hermetic("make");
        command
            .arg(format!("-j{jobs}"))
            .arg(format!("LLVM={}", tools::LLVM))
            .arg(format!("RUSTC={}", tools::RUSTC))
            .arg(format!("HOSTRUSTC={}", tools::RUSTC))
            .arg(format!("BINDGEN={}", self.bindgen.display()))
            .arg("KBUILD_BUILD_TIMESTAMP=2026-01-01")
            .arg("KBUILD_BUILD_VERSION=1")
            .arg("KBUILD_BUILD_USER=paravane")
            .arg("KBUILD_BUILD_HOST=paravane");
        command
    }

    fn hermetic(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.path)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path.parent().unwrap_or(Path::new("/")))
            .env("LC_ALL", "C")
            .env("LIBCLANG_PATH", format!("/usr/lib/llvm{}/lib", tools::LLVM));
        command
    }
}
