//! The tasks of this repository: `cargo ci <task>`.
//!
//! The entry points `ci/setup`, `ci/demo` and `ci/test` are a few lines of shell that bring a
//! machine to the point where this program can be built; all else is here, one module a task.
#![forbid(unsafe_code)]

mod artefact;
mod attack;
mod cycles;
mod demo;
mod fuzz;
mod hash;
mod holds;
mod initramfs;
mod kernel;
mod patches;
mod progress;
#[cfg(test)]
mod reading;
mod run;
mod selftests;
mod spec;
mod test;
mod tools;
mod tree;
mod tutorial;
mod twins;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::workspace::Workspace;

/// Paravane's build tasks.
///
/// Results go to the cache, `~/.cache/paravane` or what `PARAVANE_CACHE` names, under names made
/// from the hash of all that went into them: a task whose inputs have not changed does nothing.
/// Deleting the cache is always safe.
#[derive(Debug, Parser)]
#[command(name = "cargo ci", bin_name = "cargo ci", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what is missing: Debian packages, then the tools of `cargo ci tools`
    Setup {
        /// Only report; exit status 1 when something is missing
        #[arg(long)]
        check: bool,
    },
    /// Install what is no Debian package (bindgen), and check the versions of what is
    Tools {
        /// Only report; exit status 1 when something is missing
        #[arg(long)]
        check: bool,
    },
    /// Build a guest kernel
    ///
    /// `full` is built from the untouched source; `para` from the same source with
    /// patches/linux-6.12, guest-pv-linux and hypercall-abi laid over it. Both start from
    /// ci/kernel/base.config.
    ///
    /// Examples:
    ///   cargo ci kernel full
    ///   cargo ci kernel para --source ~/src/linux
    ///   paravane run --kernel "$(cargo ci kernel para --print-path)/vmlinux" …
    #[command(verbatim_doc_comment)]
    Kernel {
        /// Which kernel
        arm: Arm,
        /// A clean Linux 6.12 tree (kernel.org or git) instead of Debian's package
        #[arg(long, value_name = "DIR")]
        source: Option<PathBuf>,
        /// Print nothing but the folder of the finished kernel
        #[arg(long)]
        print_path: bool,
    },
    /// Build the guests' initramfs: our init, busybox, and the para kernel's modules where it is built
    Initramfs {
        /// Print nothing but the path of the finished archive
        #[arg(long)]
        print_path: bool,
    },
    /// Build the reference host: an emulated SVM machine with a stock KVM
    ReferenceHost,
    /// Build the Debian image that `paravane image debian` makes, for tests
    Image,
    /// Check that every step of the patch series applies, builds, and is clean for checkpatch
    ///
    /// A step that was built and has not changed is not built again.
    Patches {
        /// Leave out the builds (hours become seconds)
        #[arg(long)]
        no_build: bool,
    },
    /// Check what is generated from the ABI's source: C header, tables of SPEC.md, abi.lock
    ///
    /// Also checks the specification itself: clause ids, normative words, and that every clause
    /// has a test or a reason why not.
    ///
    /// Examples:
    ///   cargo ci spec
    ///   cargo ci spec --write
    ///   cargo ci spec --html --pdf paravane-abi.pdf
    #[command(verbatim_doc_comment)]
    Spec {
        /// Write the generated parts instead of comparing them
        #[arg(long)]
        write: bool,
        /// Write the specification as one HTML page that needs nothing else
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = SPEC_HTML)]
        html: Option<PathBuf>,
        /// Write the specification as PDF (needs Chromium)
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = SPEC_PDF)]
        pdf: Option<PathBuf>,
    },
    /// Pack the results of `paravane bench --all` for readers: raw samples, report, manifest, script
    ///
    /// Example:
    ///   paravane bench --all --out results && cargo ci artefact results
    #[command(verbatim_doc_comment)]
    Artefact {
        /// The folder that `paravane bench --all --out` wrote
        folder: PathBuf,
        /// The archive
        #[arg(long, value_name = "FILE", default_value = "paravane-artefact.tar.gz")]
        output: PathBuf,
    },
    /// Boot, end, restart, kill guests and take processors on and off, in a random mix: nothing may hang or leak
    ///
    /// Examples:
    ///   cargo ci cycles
    ///   cargo ci cycles --count 1000 --json cycles.jsonl
    #[command(verbatim_doc_comment)]
    Cycles(cycles::CyclesArgs),
    /// Let hostile guests poke all that they can reach: the VMM must neither fall nor grow
    ///
    /// Examples:
    ///   cargo ci attack
    ///   cargo ci attack --operations 10000000 --seed 1
    #[command(verbatim_doc_comment)]
    Attack(attack::AttackArgs),
    /// Search for inputs that break the VMM, with libFuzzer
    ///
    /// Examples:
    ///   cargo ci fuzz
    ///   cargo ci fuzz devices queues --minutes 60 --keep
    #[command(verbatim_doc_comment)]
    Fuzz(fuzz::FuzzArgs),
    /// Repeat one benchmark with an A/A twin and a planted slowdown: what it finds, and what it must not
    Twins(twins::TwinsArgs),
    /// Run the kernel's own tests (timers, futexes, membarrier, CPU hotplug) in both guests, and compare
    ///
    /// Examples:
    ///   cargo ci selftests
    ///   cargo ci selftests futex --json futex.jsonl
    #[command(verbatim_doc_comment)]
    Selftests(selftests::SelftestsArgs),
    /// Do what hypercall-abi/TUTORIAL.md says, to the letter, in a copy of the tree
    Tutorial,
    /// Run everything that must hold (what ci/test does after ci/setup)
    Test {
        /// Run only the steps whose names contain this
        only: Option<String>,
        /// List the steps
        #[arg(long)]
        list: bool,
    },
    /// The main job: both kernels and the paired boot (what ci/demo does after doctor)
    Demo {
        /// Arguments for `paravane bench boot`
        #[arg(last = true)]
        bench: Vec<String>,
    },
}

/// Where the published specification goes when no file is named.
const SPEC_HTML: &str = "target/spec/paravane-abi.html";
const SPEC_PDF: &str = "target/spec/paravane-abi.pdf";

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Arm {
    /// Unmodified; runs the profiles full and kvm-pv
    Full,
    /// With the patch series; runs all profiles
    Para,
}

impl Arm {
    fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Para => "para",
        }
    }
}

fn main() -> ExitCode {
    match start(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo ci: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(task: Task) -> anyhow::Result<()> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup { check } => tools::setup(&workspace, check),
        Task::Tools { check } => tools::check_or_install(&workspace, check),
        Task::Kernel {
            arm,
            source,
            print_path,
        } => {
            let built = kernel::build(&workspace, arm, source.as_deref())?;
            if print_path {
                println!("{}", built.display());
            } else {
                println!("{} kernel: {}", arm.name(), built.display());
            }
            Ok(())
        }
        Task::Initramfs { print_path } => {
            let built = initramfs::build(&workspace)?;
            if print_path {
                println!("{}", built.display());
            } else {
                println!("initramfs: {}", built.display());
            }
            Ok(())
        }
        Task::ReferenceHost => demo::reference_host(),
        Task::Image => demo::image(&workspace),
        Task::Patches { no_build } => {
            patches::check(&workspace)?;
            if !no_build {
                patches::build(&workspace, None)?;
            }
            Ok(())
        }
        Task::Spec { write, html, pdf } => {
            spec::run(&workspace, write, &spec::Published { html, pdf })
        }
        Task::Artefact { folder, output } => artefact::build(&workspace, &folder, &output),
        Task::Cycles(args) => cycles::run(&workspace, &args),
        Task::Attack(args) => attack::run(&workspace, &args),
        Task::Fuzz(args) => fuzz::run(&workspace, &args),
        Task::Twins(args) => twins::run(&workspace, &args),
        Task::Selftests(args) => selftests::run(&workspace, &args),
        Task::Tutorial => tutorial::run(&workspace),
        Task::Test { only, list } => test::run(&workspace, only.as_deref(), list),
        Task::Demo { bench } => demo::run(&workspace, &bench),
    }
}
