//! Paired statistics: ratios within a round, their median, and a bootstrap interval of it.

use serde::Serialize;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2000;

/// A median ratio with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// Median of the paired ratios.
    pub median: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Ratio {
    /// The ratio of samples taken in the same rounds.
    ///
    /// # Panics
    /// Without rounds.
    #[must_use]
    pub fn paired(ours: &[f64], base: &[f64]) -> Self {
        let ratios: Vec<f64> = ours.iter().zip(base).map(|(a, b)| a / b).collect();
        let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let resample: Vec<f64> = (0..ratios.len())
                    .map(|_| ratios[random.below(ratios.len())])
                    .collect();
                median(&resample)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        Self {
            median: median(&ratios),
            low: medians[RESAMPLES / 40],
            high: medians[RESAMPLES - 1 - RESAMPLES / 40],
        }
    }

    /// How far from 1 the interval reaches: what equal things may seem to differ by.
    #[must_use]
    pub fn error(&self) -> f64 {
        (self.high - 1.0).abs().max((self.low - 1.0).abs())
    }
}

/// The middle value; the mean of the two middle ones of an even number.
///
/// # Panics
/// Without values.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    assert!(!values.is_empty(), "a median needs values");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// xorshift64 (Marsaglia 2003): the order of samples and the bootstrap, the same in every run.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// A generator; the seed must not be zero.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// Puts items in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_common_to_a_round_cancels() {
        let base: Vec<f64> = (1..=31).map(|n| f64::from(n * n)).collect();
        let ours: Vec<f64> = base.iter().map(|value| value * 1.1).collect();
        let ratio = Ratio::paired(&ours, &base);
        assert!((ratio.median - 1.1).abs() < 1e-9, "{ratio:?}");
        assert!((ratio.high - ratio.low).abs() < 1e-9, "{ratio:?}");
    }

    #[test]
    fn noise_of_single_samples_widens_the_interval_and_it_holds_the_truth() {
        let mut random = Random::new(7);
        let mut noisy = |scale: f64| -> Vec<f64> {
            (0..60)
                .map(|_| scale * (1.0 + random.below(1000) as f64 / 5000.0))
                .collect()
        };
        let (base, ours) = (noisy(100.0), noisy(105.0));
        let ratio = Ratio::paired(&ours, &base);
        assert!(ratio.low < 1.05 && 1.05 < ratio.high, "{ratio:?}");
        assert!(ratio.low < ratio.median && ratio.median < ratio.high);
        assert!(ratio.error() > 0.05);
    }

    #[test]
    fn a_shuffle_keeps_every_item_and_changes_the_order() {
        let mut items: Vec<u32> = (0..20).collect();
        Random::new(3).shuffle(&mut items);
        assert_ne!(items, (0..20).collect::<Vec<u32>>());
        items.sort_unstable();
        assert_eq!(items, (0..20).collect::<Vec<u32>>());
    }

    #[test]
    fn medians_of_even_and_odd_numbers() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
