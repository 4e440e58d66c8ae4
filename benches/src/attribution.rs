//! What a facility is worth: a para guest with everything beside one without the facility, and one with it beside one that
//! has nothing but its clock. Where the two differ, facilities do each other's work, or want each other.
//!
//! For each pair of launches, what is saved is `without - with`, in time and in exits. What the exits saved *predict*
//! is their number times what one costs on this host, apart for exits to the VMM and for those that KVM serves itself.
//! The *residual* is the time saved less the prediction: guest work and waiting that the facility spares, and what an
//! exit costs beyond a bare one. Each stands with the interval of its median by bootstrap over the pairs.
//!
//! The same difference between a guest and its twin is what nothing saves; only what lies beyond it is a result.

use crate::ops_results::Results;
use crate::statistics::{MEANINGFUL_LAUNCHES, bootstrap, median};
use crate::table::ExitCosts;

/// The median of some differences, with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The median.
    pub value: f64,
    /// The 2.5 % quantile of the bootstrap.
    pub low: f64,
    /// The 97.5 % quantile of the bootstrap.
    pub high: f64,
    /// How many there were.
    pub pairs: usize,
}

impl Difference {
    /// The median of `differences` and its interval by the percentile bootstrap; `None` of none.
    #[must_use]
    pub fn of(differences: &[f64], seed: u64) -> Option<Self> {
        let (low, high) = bootstrap(differences, seed, median)?;
        Some(Self {
            value: median(differences)?,
            low,
            high,
            pairs: differences.len(),
        })
    }

    /// Whether it lies wholly above or below `other`, what nothing makes.
    #[must_use]
    pub fn verdict(&self, other: &Self) -> Verdict {
        if self.pairs < MEANINGFUL_LAUNCHES || other.pairs < MEANINGFUL_LAUNCHES {
            Verdict::TooFew
        } else if self.low > other.high.max(0.0) {
            Verdict::Saves
        } else if self.high < other.low.min(0.0) {
            Verdict::Costs
        } else {
            Verdict::Nothing
        }
    }
}

/// What a difference means beside that of the twins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The facility saves time.
    Saves,
    /// It costs time.
    Costs,
    /// It does neither, as far as can be told.
    Nothing,
    /// There are too few pairs to tell.
    TooFew,
}

/// What one facility, or nothing, saves of a boot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worth {
    /// Exits to the VMM removed.
    pub to_vmm: Difference,
    /// Exits that KVM serves itself removed.
    pub in_kvm: Difference,
    /// Time saved, ns.
    pub time: Difference,
    /// What the exits removed predict, and what is left of the time, ns; `None` where the cost of an exit is not known.
    pub account: Option<(Difference, Difference)>,
}

/// What `with` saves against `without`, two arms of a job of boots.
pub(crate) fn worth(results: &Results, job: &str, with: &str, without: &str) -> Option<Worth> {
    let pairs = |metric| results.pairs(job, metric, with, without);
    let (times, exits, user_exits) = (
        pairs("boot_to_init_ns"),
        pairs("exits_to_init"),
        pairs("user_exits_to_init"),
    );
    let (mut time, mut to_vmm, mut in_kvm) = (Vec::new(), Vec::new(), Vec::new());
    for (launch, (with, without)) in &times {
        let saved = |(with, without): &(f64, f64)| without - with;
        let (Some(all), Some(user)) = (exits.get(launch), user_exits.get(launch)) else {
            continue;
        };
        time.push(without - with);
        to_vmm.push(saved(user));
        in_kvm.push(saved(all) - saved(user));
    }
    let seed = results.seed;
    let account = results.costs.and_then(|costs: ExitCosts| {
        let predicted: Vec<f64> = to_vmm
            .iter()
            .zip(&in_kvm)
            .map(|(to_vmm, in_kvm)| to_vmm * costs.to_vmm + in_kvm * costs.in_kvm)
            .collect();
        let residual: Vec<f64> = time
            .iter()
            .zip(&predicted)
            .map(|(time, predicted)| time - predicted)
            .collect();
        Some((
            Difference::of(&predicted, seed)?,
            Difference::of(&residual, seed)?,
        ))
    });
    Some(Worth {
        to_vmm: Difference::of(&to_vmm, seed)?,
        in_kvm: Difference::of(&in_kvm, seed)?,
        time: Difference::of(&time, seed)?,
        account,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::LEFT_OUT;
    use crate::ops_results::tests::{line, saved};

    fn results(boots: &[(&str, u32, u64, u64, u64)]) -> Results {
        let lines = boots
            .iter()
            .flat_map(|&(arm, launch, ns, exits, user_exits)| {
                [
                    ("boot_to_init_ns", ns),
                    ("exits_to_init", exits),
                    ("user_exits_to_init", user_exits),
                ]
                .map(|(metric, value)| line(LEFT_OUT, arm, launch, metric, value))
            });
        Results::of(&saved(lines))
    }

    #[test]
    fn the_worth_is_what_the_guest_without_it_has_more() {
        let boots: Vec<_> = (1..=5)
            .flat_map(|launch| {
                [
                    ("para", launch, 10_000, 100, 10),
                    ("para-x", launch, 19_000, 160, 50),
                ]
            })
            .collect();
        let worth = worth(&results(&boots), LEFT_OUT, "para", "para-x").unwrap();
        assert_eq!((worth.to_vmm.value, worth.in_kvm.value), (40.0, 20.0));
        assert_eq!(worth.time.value, 9_000.0);
        let (predicted, residual) = worth.account.unwrap();
        // 40 exits to the VMM at 100 ns, 20 in KVM at 50 ns.
        assert_eq!((predicted.value, residual.value), (5_000.0, 4_000.0));
        assert_eq!((worth.time.low, worth.time.high), (9_000.0, 9_000.0));
    }

    #[test]
    fn only_launches_that_both_have_are_compared() {
        let boots = [("para", 1, 10, 1, 1), ("para-x", 2, 20, 2, 2)];
        assert_eq!(worth(&results(&boots), LEFT_OUT, "para", "para-x"), None);
    }

    #[test]
    fn only_what_lies_beyond_the_twins_is_a_result() {
        let of = |value: f64, spread: f64, pairs| Difference {
            value,
            low: value - spread,
            high: value + spread,
            pairs,
        };
        let twins = of(1.0, 4.0, 6);
        for (difference, verdict) in [
            (of(10.0, 2.0, 6), Verdict::Saves),
            (of(6.0, 2.0, 6), Verdict::Nothing),
            (of(-9.0, 2.0, 6), Verdict::Costs),
            (of(10.0, 2.0, 2), Verdict::TooFew),
        ] {
            assert_eq!(difference.verdict(&twins), verdict, "{difference:?}");
        }
        // Twins that happen to differ do not make a saving of nothing.
        assert_eq!(
            of(-1.0, 0.5, 6).verdict(&of(-3.0, 0.5, 6)),
            Verdict::Nothing
        );
    }

    #[test]
    fn the_interval_of_a_median_is_that_of_the_bootstrap() {
        // As in `statistics`: the order statistics of the binomial.
        let nine: Vec<f64> = (1..=9_u32).map(f64::from).collect();
        let difference = Difference::of(&nine, 42).unwrap();
        assert_eq!(
            (difference.value, difference.low, difference.high),
            (5.0, 2.0, 8.0)
        );
        assert_eq!(Difference::of(&[], 1), None);
    }
}
