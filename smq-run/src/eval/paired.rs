//! Two models on the same items.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, DiscreteCDF};

use super::metrics::{average, bootstrap_means, quantile};
use smq_engine::{Error, Result};

/// Resamples of a confidence interval: its ends' own error is then a fiftieth of its half-width.
const RESAMPLES: usize = 10_000;

/// A mean difference, this model less the base.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Delta {
    /// Mean of the differences over the items.
    pub mean: f64,
    /// 95 % confidence interval: the paired bootstrap's 2.5th and 97.5th percentiles, from a fixed
    /// seed.
    pub ci95: [f64; 2],
}

/// McNemar's exact test of two models' right answers (McNemar 1947, Psychometrika 12:153; exact:
/// binomial).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct McNemar {
    /// Items only the base has right.
    pub only_base: u64,
    /// Items only this model has right.
    pub only_this: u64,
    /// Two-sided: how likely a split at least as uneven is where both are equally good.
    pub p_value: f64,
}

/// Mean of `these - base`, item by item, with its confidence interval.
///
/// # Errors
/// [`Error::Input`] if they are not of the same items.
pub(crate) fn delta(base: &[f64], these: &[f64]) -> Result<Delta> {
    same_length(base, these)?;
    let differences: Vec<f64> = these.iter().zip(base).map(|(t, b)| t - b).collect();
    let mean = average(&differences);
    let mut means = bootstrap_means(&differences, RESAMPLES);
    means.sort_by(f64::total_cmp);
    let ci95 = match means.is_empty() {
        true => [mean, mean],
        false => [quantile(&means, 0.025), quantile(&means, 0.975)],
    };
    Ok(Delta { mean, ci95 })
}

/// Compares right (1) and wrong (0) answers.
///
/// # Errors
/// As [`delta`].
pub(crate) fn mcnemar(base: &[f64], these: &[f64]) -> Result<McNemar> {
    same_length(base, these)?;
    let count = |b: bool, t: bool| {
        let hit = |(x, y): &(&f64, &f64)| (**x > 0.5) == b && (**y > 0.5) == t;
        base.iter().zip(these).filter(hit).count() as u64
    };
    let (only_base, only_this) = (count(true, false), count(false, true));
    let discordant = only_base + only_this;
    let tail = Binomial::new(0.5, discordant).map(|b| b.cdf(only_base.min(only_this)));
    let p_value = match discordant {
        0 => 1.0,
        _ => (2.0 * tail.unwrap_or(0.5)).min(1.0),
    };
    Ok(McNemar {
        only_base,
        only_this,
        p_value,
    })
}

/// Spearman's rank correlation, ties at their mean rank; `None` where a side does not vary.
#[must_use]
pub(crate) fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let (mean_a, mean_b) = (average(&a), average(&b));
    let products = |x: &[f64], mx: f64, y: &[f64], my: f64| -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - mx) * (y - my)).sum()
    };
    let spread = products(&a, mean_a, &a, mean_a) * products(&b, mean_b, &b, mean_b);
    (spread > 0.0).then(|| products(&a, mean_a, &b, mean_b) / spread.sqrt())
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|x, y| values[*x].total_cmp(&values[*y]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for tied in order.chunk_by(|x, y| values[*x] == values[*y]) {
        let rank = first as f64 + (tied.len() - 1) as f64 / 2.0;
        tied.iter().for_each(|index| ranks[*index] = rank);
        first += tied.len();
    }
    ranks
}

fn same_length(base: &[f64], these: &[f64]) -> Result<()> {
    if base.len() != these.len() {
        return Err(Error::Input(format!(
            "{} items are to be compared with the base's {}: they are not the same",
            these.len(),
            base.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcnemar_is_the_two_sided_binomial() {
        // 1 against 5: 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64.
        let base = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0];
        let these = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        let test = mcnemar(&base, &these).unwrap();
        assert_eq!((test.only_base, test.only_this), (5, 1));
        assert!((test.p_value - 14.0 / 64.0).abs() < 1e-12, "{test:?}");
        assert_eq!(mcnemar(&base, &base).unwrap().p_value, 1.0);
        let even = mcnemar(&[1.0, 0.0], &[0.0, 1.0]).unwrap();
        assert_eq!(even.p_value, 1.0);
        assert!(mcnemar(&base, &these[1..]).is_err());
    }

    /// A normal approximation serves as the twin: half-width 1.96 sd / sqrt(n), within 5 % at n =
    /// 500.
    #[test]
    fn the_interval_of_a_delta_is_the_normal_one() {
        let base: Vec<f64> = (0..500).map(|i| f64::from(i % 11)).collect();
        let these: Vec<f64> = (0..500).map(|i| f64::from(i % 11 + i % 3)).collect();
        let delta = delta(&base, &these).unwrap();
        let differences: Vec<f64> = (0..500).map(|i| f64::from(i % 3)).collect();
        let half = 1.96 * super::super::metrics::mean(&differences).stderr.unwrap();
        assert!((delta.mean - average(&differences)).abs() < 1e-12);
        assert!((delta.mean - delta.ci95[0]) / half - 1.0 < 0.05);
        assert!((delta.ci95[1] - delta.mean) / half - 1.0 < 0.05);
        assert!((delta.ci95[1] - delta.ci95[0]) / (2.0 * half) > 0.95);
    }

    #[test]
    fn ranks_correlate() {
        assert_eq!(spearman(&[1.0, 5.0, 9.0], &[2.0, 3.0, 100.0]), Some(1.0));
        assert_eq!(spearman(&[1.0, 5.0, 9.0], &[7.0, 3.0, -1.0]), Some(-1.0));
        assert_eq!(spearman(&[1.0, 5.0, 9.0], &[7.0, 7.0, 7.0]), None);
        // Ties share a rank: ranks (0.5, 0.5, 2) and (0, 1, 2) give 1.5 / sqrt(1.5 * 2).
        let tied = spearman(&[1.0, 1.0, 2.0], &[1.0, 2.0, 3.0]).unwrap();
        assert!((tied - 1.5 / 3f64.sqrt()).abs() < 1e-12, "{tied}");
    }
}
