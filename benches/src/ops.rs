//! `paravane bench ops`: what each privileged operation costs in each guest, and what each facility is worth.
//!
//! # How it measures
//!
//! *Operations.* The module `pvbench.ko` measures them from inside the guest's kernel, in cycles; the VMM counts the
//! exits of each. One patched image boots as every guest, so that the instructions measured are the same: a launch is
//! the sample, and its number is the median, or the tail, over the module's rounds.
//!
//! *Attribution.* A para guest boots with everything and without one facility, and with nothing but its clock and with one
//! facility beside, in turn. What the facility saves is the difference; what the exits saved predict is their number times what `paravane doctor` says that an exit costs here;
//! the residual is the rest ([`crate::attribution`]). With one vCPU, since two on a host of one processor take turns as they
//! happen to, which is more than a facility is worth.
//!
//! Twins show what a difference must exceed: of what the others are compared with, in each part.

use anyhow::ensure;

use crate::arm::{Arm, ArmError, name_twins, twin_of};
use crate::boot::{self, SuiteArgs, finish, wanted};
use crate::experiment::Experiment;
use crate::host::Host;
use crate::job::Job;
use crate::session::{CommonArgs, session};

/// The suite, and its jobs.
pub(crate) const SUITE: &str = "ops";
pub(crate) const OPERATIONS: &str = "operations";
pub(crate) const LEFT_OUT: &str = "left-out";
pub(crate) const ALONE: &str = "alone";

/// The arm that is judged, its twin, what is easiest to beat, and what is hardest.
pub(crate) const PARA: &str = "para";
pub(crate) const TWIN: &str = "para#2";
pub(crate) const FULL: &str = "full@patched";
pub(crate) const PEER: &str = "kvm-pv@patched";
/// What facilities are added to, one at a time, and its twin: a guest that was not told the time finds it by nothing here.
pub(crate) const BARE: &str = "para+clock";
pub(crate) const BARE_TWIN: &str = "para+clock#2";

/// The guests whose operations are compared unless told.
const ARMS: &str = "full@patched,kvm-pv@patched,para,para";

/// Arguments of `paravane bench ops`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Job `operations` compares --arms, which all have the patched kernel, for the module that measures is built for it;\n\
    job `left-out` boots para without each facility, and job `alone` with its clock and each facility.\n\
    A row is marked `worse` or `better` where the interval of para/kvm-pv lies beyond that of the twins."
)]
pub struct OpsArgs {
    /// Those of all suites.
    #[command(flatten)]
    pub suite: SuiteArgs,
    /// The facilities whose worth is measured [default: all that a para guest can do without on any host: not clock].
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub facilities: Vec<String>,
}

/// Runs the benchmark and prints its tables. `facilities` are those that a para guest can do without; `unfit` is the
/// reason why this machine's KVM cannot run the guests, if it cannot.
///
/// # Errors
///
/// When the arguments make no sense, a file is missing, the reference host fails, or a launch failed.
pub fn ops(args: &OpsArgs, facilities: &[&str], unfit: Option<&str>) -> anyhow::Result<()> {
    let common = &args.suite.common;
    ensure!(
        common.until.is_none(),
        "suite ops has no one ratio whose interval could be waited for: say --launches in place of --until"
    );
    let named: Vec<&str> = args.facilities.iter().map(String::as_str).collect();
    let facilities = if named.is_empty() { facilities } else { &named };
    let jobs = wanted(SUITE, &args.suite.jobs)?;
    let make = |class| Ok(experiment(common, class, jobs, facilities)?);
    finish(session(common, make, unfit)?)
}

/// The names that these arms have in results.
fn named(words: impl IntoIterator<Item = String>) -> Result<Vec<String>, ArmError> {
    let arms: Result<Vec<Arm>, _> = words.into_iter().map(|word| word.parse()).collect();
    let mut arms = arms?;
    name_twins(&mut arms);
    Ok(arms.into_iter().map(|arm| arm.name).collect())
}

/// An experiment with these jobs, each with its own arms.
///
/// # Errors
///
/// When a word is not an arm.
pub(crate) fn experiment(
    common: &CommonArgs,
    class: Host,
    jobs: Vec<Job>,
    facilities: &[&str],
) -> Result<Experiment, ArmError> {
    let mut experiment = boot::experiment(common, class, SUITE, ARMS, jobs);
    // A module loads into the kernel that it was built for.
    let patched = |word: &String| match word.as_str() {
        "full" => FULL.to_owned(),
        "kvm-pv" => PEER.to_owned(),
        _ => word.clone(),
    };
    let compared = named(experiment.arms.iter().map(patched))?;
    let boots = |base: &str, sign: &str| {
        let others = facilities
            .iter()
            .map(|facility| format!("{base}{sign}{facility}"));
        named([base, base].map(str::to_owned).into_iter().chain(others))
    };
    let (left_out, alone) = (boots(PARA, "-")?, boots(BARE, "+")?);
    let mut all = Vec::new();
    for name in compared.iter().chain(&left_out).chain(&alone) {
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    for kind in &mut experiment.kinds {
        kind.arms.clone_from(match kind.name.as_str() {
            OPERATIONS => &compared,
            LEFT_OUT => &left_out,
            _ => &alone,
        });
    }
    let plain = |name: String| twin_of(&name).map_or(name.clone(), str::to_owned);
    experiment.arms = all.into_iter().map(plain).collect();
    Ok(experiment)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::job::suite;

    pub(crate) fn planned(arms: &[&str], facilities: &[&str]) -> Experiment {
        let common = CommonArgs {
            arms: arms.iter().map(|arm| (*arm).to_owned()).collect(),
            launches: Some(6),
            seed: Some(5),
            ..CommonArgs::default()
        };
        let jobs = suite(SUITE).cloned().collect();
        experiment(&common, Host::Reference, jobs, facilities).unwrap()
    }

    #[test]
    fn each_job_has_its_own_arms_and_all_of_them_the_patched_kernel() {
        let planned = planned(&[], &["console", "timer"]);
        assert_eq!(
            planned.arms,
            [
                FULL,
                PEER,
                PARA,
                PARA,
                "para-console",
                "para-timer",
                BARE,
                BARE,
                "para+clock+console",
                "para+clock+timer"
            ]
        );
        let arms = planned.arms().unwrap();
        assert!(arms.iter().all(Arm::has_patched_kernel));
        let of = |job: &str| {
            let kind = planned.kinds.iter().find(|kind| kind.name == job).unwrap();
            let fitting = arms.iter().filter(|arm| arm.fits(kind));
            fitting.map(|arm| arm.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(of(OPERATIONS), [FULL, PEER, PARA, TWIN]);
        assert_eq!(of(LEFT_OUT), [PARA, TWIN, "para-console", "para-timer"]);
        let alone = [BARE, BARE_TWIN, "para+clock+console", "para+clock+timer"];
        assert_eq!(of(ALONE), alone);
        // As many launches as there are fitting arms, and no place for the others.
        assert_eq!(planned.steps(&arms).len(), 6 * (4 + 4 + 4));
    }

    #[test]
    fn an_arm_of_both_jobs_is_one_and_a_plain_guest_gets_the_patched_kernel() {
        let planned = planned(&["full", "para", "para-irq"], &["irq"]);
        assert_eq!(
            planned.arms,
            [FULL, PARA, "para-irq", PARA, BARE, BARE, "para+clock+irq"]
        );
        let common = CommonArgs {
            arms: vec!["xen".to_owned()],
            ..CommonArgs::default()
        };
        assert!(experiment(&common, Host::Kvm, Vec::new(), &[]).is_err());
    }
}
