//! The reference host: an emulated machine with a stock KVM, the same everywhere, to run a command of ours in.
//!
//! # Background
//!
//! Paravane's guests need a KVM that behaves as the processor manuals say. A machine may have no `/dev/kvm` at all, or a
//! software KVM that interprets ring 0. So the tools bring their own: QEMU's TCG emulates an AMD processor with SVM and
//! nested paging, Debian's cloud kernel boots on it and loads its stock `kvm-amd`. It is slow but faithful. We call this
//! machine L1, and the guests that run in it L2.
//!
//! # How it works
//!
//! * [`build()`] makes the *appliance*, L1's kernel and initramfs, from Debian packages, and caches it.
//! * [`Command::run`] boots it. L1 mounts the outer machine's root folder by virtiofs and changes its root into it, so that a
//!   command line, its paths and its binaries are the same inside and outside; only `/dev`, `/proc` and `/sys` are L1's.
//!   The command runs as root, with the caller's working folder and environment. Its three streams and a control channel are
//!   the four ports of one virtio serial device; L1's own kernel messages go to a log that is shown when something fails.
//! * When the command ends, L1 writes its files back, says the exit status and is stopped.
//!
//! A program runs *itself* there with `Command::this_process()?.run()`.
//!
//! # What the caller must know
//!
//! Files are shared, not copied. What L1 wrote is visible outside when `run` returns; what changes outside while L1 runs is
//! not reliably seen inside, because L1 caches.

mod appliance;
mod command;
mod emulator;
mod machine;
mod mend;
mod run;
mod streams;
mod sys;

pub use appliance::{Appliance, ApplianceError, build, built, cache_folder, e2fsprogs};
pub use command::{Command, Input, Sink, is_counted, is_inside};
pub use emulator::Emulator;
pub use run::{Finished, RunError};

/// What a test needs. Where that is not there the reason is printed, as `cargo ci test` counts them, and the test is to return.
pub fn or_skipped<T, E: std::fmt::Display>(needed: Result<T, E>) -> Option<T> {
    needed.map_err(|reason| println!("skipped: {reason}")).ok()
}
