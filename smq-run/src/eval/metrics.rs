//! Means and standard errors, as lm-evaluation-harness reports them (`lm_eval/api/metrics.py`,
//! 0.4.13).

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use smq_engine::divergence::mean_and_error;

/// Resamples of a bootstrap: the harness's default.
pub(crate) const RESAMPLES: usize = 100_000;
/// Resamples that share a random stream.
const BLOCK: usize = 1_000;

/// A figure of a task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Score {
    /// The figure itself, a mean over items.
    pub value: f64,
    /// Standard error of the mean; absent for one item.
    pub stderr: Option<f64>,
}

/// Mean, with the sample standard deviation over the root of `n`.
#[must_use]
pub(crate) fn mean(values: &[f64]) -> Score {
    let (value, stderr) = mean_and_error(values);
    Score { value, stderr }
}

/// `exp` of the mean negative log-likelihood; its standard error by bootstrap over the items, as
/// the harness does (whose random numbers are others).
#[must_use]
pub(crate) fn perplexity(log_likelihoods: &[f64]) -> Score {
    let statistic = |mean: f64| (-mean).exp();
    let draws: Vec<f64> = bootstrap_means(log_likelihoods, RESAMPLES)
        .into_iter()
        .map(statistic)
        .collect();
    Score {
        value: statistic(average(log_likelihoods)),
        stderr: deviation(&draws),
    }
}

/// Means of `resamples` samples of `values` with replacement. The same values give the same means.
#[must_use]
pub(crate) fn bootstrap_means(values: &[f64], resamples: usize) -> Vec<f64> {
    let n = values.len();
    if n < 2 {
        return Vec::new();
    }
    let block = |seed: usize| {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed as u64);
        let mut draw = || {
            (0..n)
                .map(|_| values[random.random_range(0..n)])
                .sum::<f64>()
                / n as f64
        };
        (0..BLOCK).map(|_| draw()).collect::<Vec<_>>()
    };
    (0..resamples.div_ceil(BLOCK))
        .into_par_iter()
        .flat_map_iter(block)
        .collect()
}

/// Arithmetic mean; NaN of nothing.
#[must_use]
pub(crate) fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Sample standard deviation; `None` of fewer than two values.
#[must_use]
pub(crate) fn deviation(values: &[f64]) -> Option<f64> {
    let n = values.len();
    let mean = average(values);
    let squares = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
    (n > 1).then(|| (squares / (n - 1) as f64).sqrt())
}

/// The value that a fraction `q` of all lies below, between neighbours by distance (NumPy's
/// default).
#[must_use]
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracies_have_the_harness_standard_error() {
        let score = mean(&[1.0, 1.0, 0.0]);
        assert!((score.value - 2.0 / 3.0).abs() < 1e-15);
        assert!((score.stderr.unwrap() - 1.0 / 3.0).abs() < 1e-15);
        assert_eq!(mean(&[1.0]).stderr, None);
    }

    /// The delta method gives `ppl * sd / sqrt(n)`; the bootstrap's sd has `n` in place of `n - 1`,
    /// itself varies by 1 / sqrt(2 * 100,000) = 0.2 %, and the curvature of exp adds about half its
    /// variance's square, here 0.05 %.
    #[test]
    fn perplexity_has_the_bootstrap_standard_error() {
        let values: Vec<f64> = (0..400).map(|i| -2.0 - f64::from(i % 7) / 5.0).collect();
        let score = perplexity(&values);
        let n = values.len() as f64;
        let delta = score.value * deviation(&values).unwrap() / n.sqrt() * ((n - 1.0) / n).sqrt();
        let ratio = score.stderr.unwrap() / delta;
        assert!((ratio - 1.0).abs() < 0.01, "{ratio}");
        assert_eq!(score, perplexity(&values));
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        let sorted = [1.0, 2.0, 4.0];
        assert_eq!(
            [0.0, 0.25, 0.5, 0.75, 1.0].map(|q| quantile(&sorted, q)),
            [1.0, 1.5, 2.0, 3.0, 4.0]
        );
        assert!(quantile(&[], 0.5).is_nan());
    }
}
