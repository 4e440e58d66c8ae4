//! Which guests can run here, decided from what the probes saw.

use serde::Serialize;

use super::probe::Outcome;
use crate::config::Profile;

/// What a profile's kernel and its VMM need of the host.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// The profile, as on the command line.
    pub name: &'static str,
    /// The instruction probes without which the kernel does not get to user space.
    pub instructions: &'static [&'static str],
    /// The few of them that tell a software KVM from others quickly.
    pub essential: &'static [&'static str],
    /// The capabilities that the VMM asks for.
    pub capabilities: &'static [&'static str],
}

const SYSCALL: &str = "cpl3.syscall_raises_privilege";

const KERNEL_IN_RING_0: &[&str] = &[
    "cpl0.int3",
    "cpl0.cmpxchg16b",
    "cpl0.fxrstor",
    "cpl0.xrstor",
    "cpl0.swapgs",
    "cpl0.wrmsr",
    "cpl0.mov_cr3",
    "cpl0.invlpg",
    "cpl0.iretq",
    "cpl0.sysretq",
    SYSCALL,
];

const ESSENTIAL: &[&str] = &["cpl0.int3", "cpl0.cmpxchg16b", SYSCALL];

const LEGACY_PC: &[&str] = &["USER_MEMORY", "IRQCHIP", "PIT2", "IMMEDIATE_EXIT"];

const FULL: Needs = Needs {
    name: Profile::Full.name(),
    instructions: KERNEL_IN_RING_0,
    essential: ESSENTIAL,
    capabilities: LEGACY_PC,
};

const KVM_PV: Needs = Needs {
    name: Profile::KvmPv.name(),
    ..FULL
};

const PARA: Needs = Needs {
    name: Profile::Para.name(),
    capabilities: &[
        "USER_MEMORY",
        "SPLIT_IRQCHIP",
        "SYNC_REGS",
        "SIGNAL_MSI",
        "IMMEDIATE_EXIT",
    ],
    ..FULL
};

/// The kernel at CPL 3, with a small switcher at CPL 0.
const DIRECT: Needs = Needs {
    name: Profile::Direct.name(),
    instructions: &[
        "cpl3.int3",
        "cpl3.page_fault",
        "cpl3.cli",
        "cpl0.iretq",
        "cpl0.mov_cr3",
    ],
    essential: &[],
    capabilities: PARA.capabilities,
};

/// All profiles of the design.
pub const ALL: [Needs; 4] = [FULL, KVM_PV, PARA, DIRECT];

impl Needs {
    /// Of a profile that this version can run.
    #[must_use]
    pub const fn of(profile: Profile) -> Self {
        match profile {
            Profile::Full => FULL,
            Profile::KvmPv => KVM_PV,
            Profile::Para => PARA,
            Profile::Direct => DIRECT,
        }
    }
}

/// Whether a profile can run, and why or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether it can.
    pub runs: bool,
    /// Why, or why not.
    pub why: String,
}

/// The verdict from what is missing.
#[must_use]
pub fn judge(
    needs: &Needs,
    capabilities: &[(String, i32)],
    failed: &[(&str, &Outcome)],
) -> Verdict {
    let missing: Vec<_> = needs
        .capabilities
        .iter()
        .filter(|name| {
            !capabilities
                .iter()
                .any(|(other, value)| other == *name && *value > 0)
        })
        .map(|name| format!("KVM_CAP_{name} is missing"))
        .collect();
    let jumps = failed.iter().any(|(name, _)| *name == SYSCALL);
    let failed: Vec<_> = failed
        .iter()
        .filter(|(name, _)| needs.instructions.contains(name))
        .map(|(name, outcome)| complaint(name, outcome))
        .collect();
    let problems = [missing, failed].concat();
    match (needs.name, problems.is_empty()) {
        ("direct", true) => Verdict {
            runs: true,
            why: if jumps {
                "KVM does all that the switcher needs; the kernel runs at CPL 3, and for one program alone \
                 --no-user-isolation makes its system calls mere jumps"
            } else {
                "KVM does all that the switcher needs; the kernel runs at CPL 3"
            }
            .to_owned(),
        },
        (_, true) => Verdict {
            runs: true,
            why: "KVM does all that its kernel needs at CPL 0".to_owned(),
        },
        (_, false) => Verdict {
            runs: false,
            why: problems.join("; "),
        },
    }
}

/// What is wrong with one instruction, in a few words.
fn complaint(name: &str, outcome: &Outcome) -> String {
    match name.split_once('.') {
        Some(("cpl3", "syscall_raises_privilege")) => {
            format!("syscall does not raise privilege ({})", outcome.text())
        }
        Some((cpl, instruction)) => {
            format!(
                "{} at {}: {}",
                instruction,
                cpl.replace("cpl", "CPL "),
                outcome.text()
            )
        }
        None => format!("{name}: {}", outcome.text()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Vec<(String, i32)> {
        let names = ALL.iter().flat_map(|needs| needs.capabilities);
        names.map(|name| ((*name).to_owned(), 1)).collect()
    }

    #[test]
    fn all_that_is_needed_lets_a_profile_run() {
        for needs in ALL {
            let verdict = judge(&needs, &everything(), &[]);
            assert!(verdict.runs, "{verdict:?}");
        }
    }

    #[test]
    fn one_missing_thing_is_named() {
        let mut few = everything();
        few.retain(|(name, _)| name != "SYNC_REGS");
        let verdict = judge(&PARA, &few, &[]);
        assert!(
            !verdict.runs && verdict.why.contains("KVM_CAP_SYNC_REGS"),
            "{verdict:?}"
        );
        assert!(judge(&FULL, &few, &[]).runs, "full has no calls");
        let failure = Outcome::EmulationFailure {
            suberror: 1,
            bytes: String::new(),
        };
        let verdict = judge(&FULL, &everything(), &[("cpl0.int3", &failure)]);
        assert!(
            !verdict.runs && verdict.why.contains("int3 at CPL 0"),
            "{verdict:?}"
        );
        assert!(
            judge(&FULL, &everything(), &[("cpl0.sha", &failure)]).runs,
            "nobody needs it"
        );
    }
}
