//! A guest of two vCPUs that counts in memory, for ever: what the tests of the control socket and of the debugger run.

use std::io::Write;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use paravane::config::{Config, Profile};
use paravane::console::Console;
use paravane::doctor::image;
use paravane::memory::Memory;
use paravane::stats::Stats;
use paravane::vm::{RunOptions, Vm};
use paravane_reference_host::or_skipped;
use vmm_sys_util::tempfile::TempFile;

pub(crate) const COUNTER: u64 = 0x80_0000;
/// `nop; inc dword [COUNTER]; jmp` to the latter.
pub(crate) const COUNTS: [u8; 10] = [0x90, 0xff, 0x04, 0x25, 0x00, 0x00, 0x80, 0x00, 0xeb, 0xf7];

/// Where the guest's first instruction is.
pub(crate) fn entry() -> u64 {
    u64::from_le_bytes(image::ELF[24..32].try_into().unwrap())
}

/// A path that nobody else uses.
pub(crate) fn fresh_path() -> PathBuf {
    let mut file = TempFile::new().unwrap();
    let path = file.as_path().to_owned();
    file.remove().unwrap();
    path
}

/// The guest.
pub(crate) struct Counting {
    pub(crate) memory: Memory,
    pub(crate) thread: JoinHandle<Stats>,
}

impl Counting {
    /// Starts it; `None` where there is no KVM, which is printed.
    pub(crate) fn start(options: RunOptions) -> Option<Self> {
        let limit = Duration::from_secs(120);
        Self::of(&COUNTS, Console::memory().unwrap(), limit, options)
    }

    /// Starts a guest that does something else.
    pub(crate) fn of(
        code: &[u8],
        console: Console,
        limit: Duration,
        options: RunOptions,
    ) -> Option<Self> {
        or_skipped(paravane::kvm::open())?;
        let file = TempFile::new().unwrap();
        file.as_file().write_all(image::ELF).unwrap();
        let config = Config {
            vcpus: 2,
            watchdog: Some(limit),
            ..Config::of(Profile::Para, file.as_path().to_owned())
        };
        let mut vm = Vm::new(config, console, Instant::now()).unwrap();
        let memory = vm.memory().clone();
        vm.boot().unwrap();
        memory.write(entry(), code).unwrap();
        let thread = std::thread::spawn(move || vm.run(options).unwrap());
        Some(Self { memory, thread })
    }

    pub(crate) fn counter(&self) -> u32 {
        self.memory.read_obj(COUNTER).unwrap()
    }

    /// Waits until it has counted on.
    pub(crate) fn counts(&self) {
        let before = self.counter();
        while self.counter() == before {
            assert!(!self.thread.is_finished(), "the guest has ended");
            std::thread::yield_now();
        }
    }
}
