//! Order statistics of a sample.

use serde::{Deserialize, Serialize};

/// Mean and percentiles of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
}

impl Summary {
    /// Of `values`; `None` if there are none. Percentiles interpolate linearly between ranks.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        if sorted.is_empty() {
            return None;
        }
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(Self {
            mean,
            p50: percentile(&sorted, 0.5),
            p95: percentile(&sorted, 0.95),
        })
    }
}

/// The value below which `share`, of 0 to 1, of the `sorted` values lie, linearly interpolated
/// between ranks; not a number where there are no values.
#[must_use]
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let rank = share * last as f64;
    let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    below + (above - below) * rank.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_of_known_values() {
        let values: Vec<f64> = (1..=21).rev().map(f64::from).collect();
        let s = Summary::of(&values).unwrap();
        assert_eq!((s.mean, s.p50, s.p95), (11.0, 11.0, 20.0));
        let one = Summary::of(&[2.0]).unwrap();
        assert_eq!((one.mean, one.p50, one.p95), (2.0, 2.0, 2.0));
        assert!(Summary::of(&[]).is_none());
    }
}
