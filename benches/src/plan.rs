//! The order of the launches: randomised ABBA blocks.
//!
//! A block launches every arm once in a random order, then once more in the opposite order. A drift of the machine
//! that is linear over a block thus adds the same to every arm, and the random order keeps a rhythm of the machine
//! from always falling on the same arm. The two halves of a block are two *pairs*: launch `n` of one arm is compared
//! with launch `n` of the others.

/// One launch of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Index of the kind of launch.
    pub kind: usize,
    /// Index of the arm.
    pub arm: usize,
    /// The pair that the launch belongs to: the n-th launch of the arm of this kind, from 1.
    pub launch: u32,
    /// The ABBA block, from 0, within the kind.
    pub block: u32,
    /// The position in the whole benchmark, from 0.
    pub order: u32,
}

/// Plans the launches of each arm, so many of each kind, but for those that do not `fit`: of a kind, an arm. An odd number
/// ends in half a block.
#[must_use]
pub fn plan(
    kinds: &[u32],
    arms: usize,
    seed: u64,
    fit: impl Fn(usize, usize) -> bool,
) -> Vec<Step> {
    let mut random = fastrand::Rng::with_seed(seed);
    let blocks = kinds.iter().map(|launches| launches.div_ceil(2)).max();
    let mut steps: Vec<Step> = Vec::new();
    for block in 0..blocks.unwrap_or(0) {
        let mut kinds: Vec<(usize, u32)> = kinds
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, launches)| block * 2 < *launches)
            .collect();
        random.shuffle(&mut kinds);
        for (kind, launches) in kinds {
            let mut order: Vec<usize> = (0..arms).filter(|arm| fit(kind, *arm)).collect();
            random.shuffle(&mut order);
            for launch in [block * 2 + 1, block * 2 + 2] {
                if launch <= launches {
                    steps.extend(order.iter().map(|arm| Step {
                        kind,
                        arm: *arm,
                        launch,
                        block,
                        order: 0,
                    }));
                }
                order.reverse();
            }
        }
    }
    for (order, step) in (0..).zip(&mut steps) {
        step.order = order;
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_arm_gets_every_launch_once() {
        let kinds = [7, 7, 2];
        let steps = plan(&kinds, 3, 9, |_, _| true);
        assert_eq!(steps.len(), 3 * (7 + 7 + 2));
        for (kind, launches) in kinds.into_iter().enumerate() {
            for arm in 0..3 {
                let mut numbers: Vec<u32> = steps
                    .iter()
                    .filter(|s| s.kind == kind && s.arm == arm)
                    .map(|s| s.launch)
                    .collect();
                numbers.sort_unstable();
                assert_eq!(numbers, (1..=launches).collect::<Vec<_>>());
            }
        }
        assert!(
            steps
                .iter()
                .enumerate()
                .all(|(index, step)| usize::try_from(step.order) == Ok(index))
        );
    }

    #[test]
    fn a_block_of_the_arms_that_fit_is_its_own_mirror() {
        let steps = plan(&[10], 3, 5, |_, arm| arm != 1);
        for block in steps.chunks(4) {
            let arms: Vec<usize> = block.iter().map(|step| step.arm).collect();
            assert_eq!((arms[0], arms[1]), (arms[3], arms[2]));
            assert!([[0, 2], [2, 0]].contains(&[arms[0], arms[1]]));
        }
    }

    #[test]
    fn seeds_change_the_order_and_are_reproducible() {
        let of = |seed| plan(&[20], 2, seed, |_, _| true);
        assert_eq!(of(1), of(1));
        assert!((2..10).any(|seed| of(seed) != of(1)));
    }
}
