//! What the guest that checks its host by itself finds better than a table of calls: things that take time.

use crate::config::FacilitySet;
use crate::doctor::image;
use crate::vm::RunOptions;

use super::guest::boot;
use super::{Failure, Verdict};

/// Boots the guest of `paravane abi guest`; what it has printed.
fn report() -> Result<String, Failure> {
    let (vm, console, _file) = boot(
        image::CONFORMANCE_ELF,
        1,
        FacilitySet::default(),
        Vec::new(),
    )?;
    vm.run(RunOptions::default())?;
    Ok(String::from_utf8_lossy(&console.contents()).into_owned())
}

pub(super) fn pv_console_12_what_is_published_while_the_host_looks_is_taken() -> Verdict {
    let tap = report()?;
    let point = tap.lines().find(|line| line.contains("- PV-CONSOLE-12 "));
    check!(
        point.is_some_and(|line| line.starts_with("ok ")),
        "the guest reports {point:?}"
    );
    Ok(())
}
