//! What the guest that checks its host by itself finds better than a table of calls: things that take time.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::config::{Config, Entry, FacilitySet, Profile};
use crate::console::Console;
use crate::doctor::image;
use crate::vm::{RunOptions, Vm};
use vmm_sys_util::tempfile::TempFile;

use super::guest::MEMORY_MIB;
use super::{Failure, Verdict};

/// Boots the guest of `paravane abi guest`; what it has printed.
fn report() -> Result<String, Failure> {
    if let Err(error) = crate::kvm::open() {
        return Err(Failure::Skipped(error.to_string()));
    }
    let elf = TempFile::new()?;
    elf.as_file().write_all(image::CONFORMANCE_ELF)?;
    let config = Config {
        profile: Profile::Para,
        kernel: elf.as_path().to_owned(),
        initrd: None,
        cmdline: String::new(),
        memory_mib: MEMORY_MIB,
        prealloc: false,
        vcpus: 1,
        facilities: FacilitySet::default(),
        entry: Entry::Linux64,
        watchdog: Some(Duration::from_secs(60)),
        awkward: None,
    };
    let console = Console::memory()?;
    let mut vm = Vm::new(config, console.clone(), Instant::now())?;
    vm.boot()?;
    vm.run(RunOptions::default())?;
    Ok(String::from_utf8_lossy(&console.contents()).into_owned())
}

pub(super) fn pv_console_6_what_is_published_while_the_host_looks_is_taken() -> Verdict {
    let tap = report()?;
    let point = tap.lines().find(|line| line.contains("- PV-CONSOLE-6 "));
    check!(
        point.is_some_and(|line| line.starts_with("ok ")),
        "the guest reports {point:?}"
    );
    Ok(())
}
