//! Medians, and the interval of a paired ratio.

use std::collections::BTreeMap;

/// How often the bootstrap draws the launches anew.
const RESAMPLES: usize = 10_000;

/// The launches that an interval needs before it means anything.
pub const MEANINGFUL_LAUNCHES: usize = 5;

/// The middle of the values: the mean of the two middle ones of an even number, `None` of none.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some(f64::midpoint(lower, upper))
}

/// A ratio of two medians, with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Median of the arm by median of the base.
    pub value: f64,
    /// The 2.5 % quantile of the bootstrap.
    pub low: f64,
    /// The 97.5 % quantile of the bootstrap.
    pub high: f64,
    /// How many pairs there were.
    pub pairs: usize,
}

/// The ratio of the medians of `(base, arm)` pairs, and its interval by the percentile bootstrap: the *pairs* are
/// drawn anew with replacement, so that what two launches of one pair have in common stays in common.
///
/// `None` without a pair, or when the base's median is zero.
#[must_use]
pub fn paired_ratio(pairs: &[(f64, f64)], seed: u64) -> Option<Ratio> {
    let of = |pairs: &[(f64, f64)]| {
        let base: Vec<f64> = pairs.iter().map(|(base, _)| *base).collect();
        let arm: Vec<f64> = pairs.iter().map(|(_, arm)| *arm).collect();
        let base = median(&base).filter(|base| *base != 0.0)?;
        Some(median(&arm)? / base)
    };
    let value = of(pairs)?;
    // A draw of zeroes only has no ratio; it can come when most pairs have a base of zero.
    let (low, high) = bootstrap(pairs, seed, of)?;
    Some(Ratio {
        value,
        low,
        high,
        pairs: pairs.len(),
    })
}

/// The same of values by launch, of the launches that both have.
#[must_use]
pub fn ratio_by_launch(
    base: &BTreeMap<u32, u64>,
    arm: &BTreeMap<u32, u64>,
    seed: u64,
) -> Option<Ratio> {
    let pair = |(launch, base): (&u32, &u64)| Some((float(*base), float(*arm.get(launch)?)));
    paired_ratio(&base.iter().filter_map(pair).collect::<Vec<_>>(), seed)
}

/// The percentile bootstrap: the 2.5 % and the 97.5 % quantile of what `of` makes of the values drawn anew with replacement.
pub(crate) fn bootstrap<T: Copy>(
    values: &[T],
    seed: u64,
    of: impl Fn(&[T]) -> Option<f64>,
) -> Option<(f64, f64)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut drawn = Vec::with_capacity(values.len());
    let resample = |_| {
        drawn.clear();
        drawn.extend(values.iter().filter_map(|_| random.choice(values)));
        of(&drawn)
    };
    let mut found: Vec<f64> = (0..RESAMPLES).filter_map(resample).collect();
    found.sort_by(f64::total_cmp);
    let last = found.len().checked_sub(1)?;
    Some((found[last * 25 / 1000], found[last * 975 / 1000]))
}

/// A count or a time as a number to reckon with.
#[expect(
    clippy::cast_precision_loss,
    reason = "statistics: 53 bits are 104 days in nanoseconds"
)]
#[must_use]
pub const fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn ratio_of_pairs_without_spread_has_an_interval_without_width() {
        let ratio = paired_ratio(&[(10.0, 5.0); 6], 1).unwrap();
        assert_eq!(
            ratio,
            Ratio {
                value: 0.5,
                low: 0.5,
                high: 0.5,
                pairs: 6
            }
        );
    }

    /// For two pairs the bootstrap can be reckoned by hand: both draws the first pair (a quarter), both the second (a
    /// quarter), one of each (a half). The extremes have a quarter each, so that both quantiles lie on them.
    #[test]
    fn two_pairs_give_the_extremes() {
        let ratio = paired_ratio(&[(1.0, 1.0), (1.0, 3.0)], 7).unwrap();
        assert_eq!((ratio.value, ratio.low, ratio.high), (2.0, 1.0, 3.0));
    }

    /// The bootstrap of a median needs no drawing to be known (Efron): the median of nine draws from nine values is at
    /// most the k-th when at least five draws are, which is binomial. P(Bin(9, 1/9) >= 5) is 0.001 and
    /// P(Bin(9, 2/9) >= 5) is 0.030, so that the 2.5 % quantile is the second value, and the 97.5 % one the eighth.
    #[test]
    fn nine_pairs_give_the_order_statistics_of_the_binomial() {
        let pairs: Vec<(f64, f64)> = (1..=9_u32).map(|n| (1.0, f64::from(n))).collect();
        let ratio = paired_ratio(&pairs, 42).unwrap();
        assert_eq!((ratio.value, ratio.low, ratio.high), (5.0, 2.0, 8.0));
    }

    /// An A/A twin differs by noise alone, so that 19 of 20 of its intervals must hold 1.
    #[test]
    fn the_interval_of_a_twin_holds_one() {
        let mut random = fastrand::Rng::with_seed(11);
        // Skewed, as times are: the sum of two uniform ones and now and then a neighbour's burst.
        let mut time = || {
            let burst = if random.u8(..) < 25 { 0.05 } else { 0.0 };
            1.0 + 0.01 * (random.f64() + random.f64()) + burst * random.f64()
        };
        let repeats = 100;
        let hold = (0..repeats).filter(|seed| {
            let pairs: Vec<(f64, f64)> = (0..10).map(|_| (time(), time())).collect();
            let ratio = paired_ratio(&pairs, *seed).unwrap();
            ratio.low <= 1.0 && ratio.high >= 1.0
        });
        let hold = hold.count();
        assert!(hold * 20 >= 100 * 19, "{hold} of {repeats}");
    }

    #[test]
    fn the_seed_decides() {
        let pairs: Vec<(f64, f64)> = (1..=20_u32)
            .map(|n| (f64::from(n), f64::from(40 - n)))
            .collect();
        assert_eq!(paired_ratio(&pairs, 3), paired_ratio(&pairs, 3));
    }

    #[test]
    fn no_pairs_or_a_base_of_zero_have_no_ratio() {
        assert_eq!(paired_ratio(&[], 1), None);
        assert_eq!(paired_ratio(&[(0.0, 1.0)], 1), None);
    }
}
