//! Figures with their spread.

use serde::Serialize;

/// One figure: the median of many samples and how far they spread.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Unit of the numbers.
    pub unit: &'static str,
    /// Median.
    pub median: f64,
    /// First and third quartile.
    pub quartiles: [f64; 2],
    /// Number of samples.
    pub samples: usize,
}

impl Figure {
    /// The figure of some samples.
    ///
    /// # Panics
    /// When there are none.
    #[must_use]
    pub fn of(name: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        assert!(!samples.is_empty(), "a figure needs samples");
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        Self {
            name: name.into(),
            unit,
            median: at(0.5),
            quartiles: [at(0.25), at(0.75)],
            samples: sorted.len(),
        }
    }
}
