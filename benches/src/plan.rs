//! The order of the launches: randomised ABBA blocks.
//!
//! A block launches every arm once in a random order, then once more in the opposite order. A drift of the machine
//! that is linear over a block thus adds the same to every arm, and the random order keeps a rhythm of the machine
//! from always falling on the same arm. The two halves of a block are two *pairs*: launch `n` of one arm is compared
//! with launch `n` of the others.

/// What is measured in one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Job {
    /// Boot to init with the kernel's normal messages on the console.
    Boot,
    /// The same with `quiet`.
    BootQuiet,
    /// The console-heavy and the system-call-heavy workload, after a quiet boot.
    Workload,
}

impl Job {
    /// The name under which the launch is known; the workload's samples go by `console` and `syscall`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::BootQuiet => "boot-quiet",
            Self::Workload => "workload",
        }
    }
}

/// One launch of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is measured.
    pub job: Job,
    /// Index of the arm.
    pub arm: usize,
    /// The pair that the launch belongs to: the n-th launch of the arm in this job, from 1.
    pub launch: u32,
    /// The ABBA block, from 0, within the job.
    pub block: u32,
    /// The position in the whole benchmark, from 0.
    pub order: u32,
}

/// Plans `launches` launches of each arm for each job. An odd number ends in half a block.
#[must_use]
pub fn plan(jobs: &[(Job, u32)], arms: usize, seed: u64) -> Vec<Step> {
    let mut random = fastrand::Rng::with_seed(seed);
    let blocks = jobs
        .iter()
        .map(|(_, launches)| launches.div_ceil(2))
        .max()
        .unwrap_or(0);
    let mut steps: Vec<Step> = Vec::new();
    for block in 0..blocks {
        let mut jobs: Vec<(Job, u32)> = jobs
            .iter()
            .copied()
            .filter(|(_, launches)| block * 2 < *launches)
            .collect();
        random.shuffle(&mut jobs);
        for (job, launches) in jobs {
            let mut order: Vec<usize> = (0..arms).collect();
            random.shuffle(&mut order);
            for launch in [block * 2 + 1, block * 2 + 2] {
                if launch <= launches {
                    steps.extend(order.iter().map(|arm| Step {
                        job,
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
        let steps = plan(
            &[(Job::Boot, 7), (Job::BootQuiet, 7), (Job::Workload, 2)],
            3,
            9,
        );
        assert_eq!(steps.len(), 3 * (7 + 7 + 2));
        for (job, launches) in [(Job::Boot, 7), (Job::BootQuiet, 7), (Job::Workload, 2)] {
            for arm in 0..3 {
                let mut numbers: Vec<u32> = steps
                    .iter()
                    .filter(|s| s.job == job && s.arm == arm)
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
    fn a_block_is_its_own_mirror() {
        let steps = plan(&[(Job::Boot, 10)], 2, 5);
        for block in steps.chunks(4) {
            let arms: Vec<usize> = block.iter().map(|step| step.arm).collect();
            assert_eq!((arms[0], arms[1]), (arms[3], arms[2]));
            assert_ne!(arms[0], arms[1]);
        }
    }

    #[test]
    fn seeds_change_the_order_and_are_reproducible() {
        let of = |seed| plan(&[(Job::Boot, 20)], 2, seed);
        assert_eq!(of(1), of(1));
        assert!((2..10).any(|seed| of(seed) != of(1)));
    }
}
