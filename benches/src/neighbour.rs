//! What runs beside a launch, for the claim about trouble: another guest, or a process of the host.

use std::fs;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::launch::{LaunchError, Launcher};

/// A kind of neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Beside {
    /// A guest that computes without end.
    BusyGuest,
    /// A guest that crashes as soon as it has booted, and is started again, without end.
    CrashingGuest,
    /// A process of the host that computes without end.
    BusyHost,
}

/// A neighbour that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Neighbour(Child);

impl Neighbour {
    /// Starts one. Its files are in the launcher's scratch folder.
    pub(crate) fn start(launcher: &Launcher, beside: Beside) -> Result<Self, LaunchError> {
        let failed = |error: std::io::Error| {
            LaunchError::Failed(format!("the neighbour cannot be started: {error}"))
        };
        let mut command = match beside {
            Beside::BusyHost => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "while :; do :; done"]);
                shell
            }
            Beside::BusyGuest | Beside::CrashingGuest => {
                let file = launcher.scratch.join("neighbour.toml");
                fs::write(&file, fleet(launcher, beside)).map_err(failed)?;
                let mut fleet = Command::new(&launcher.program);
                fleet.arg("run").arg("--file").arg(file);
                fleet
            }
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().map(Self).map_err(failed)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // It has not been waited for, so that the number is still its own. A fleet ends its guests first.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        // It fails for a child that has gone, only.
        let _ = self.0.wait();
    }
}

/// A fleet of one guest.
fn fleet(launcher: &Launcher, beside: Beside) -> String {
    let work = match beside {
        Beside::CrashingGuest => "panic",
        _ => "job=null:1000000000000",
    };
    format!(
        "[[guest]]\nname = \"neighbour\"\nguest = \"para\"\nhost = \"kvm\"\nkernel = {:?}\ninitrd = {:?}\nmemory = 64\n\
         restart = \"on-failure\"\ncmdline = \"quiet -- {work}\"\n",
        launcher.kernel_para, launcher.initrd
    )
}
