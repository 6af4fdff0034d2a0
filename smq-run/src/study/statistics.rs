//! Mean, standard deviation and confidence of a few repeats.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// What a figure comes to over its repeats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    /// Number of repeats.
    pub n: usize,
    /// Arithmetic mean of the repeats.
    pub mean: f64,
    /// Standard deviation of the sample, `n - 1` in the denominator; none for one repeat.
    pub sd: Option<f64>,
    /// Half the width of the mean's 95 % confidence interval, `t(0.975, n - 1) sd / sqrt(n)`; none
    /// for one repeat.
    pub ci95_half_width: Option<f64>,
}

impl Estimate {
    /// The estimate that `values` give; none without any.
    #[must_use]
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let sd = (n > 1).then(|| (squares / (n - 1) as f64).sqrt());
        let t = StudentsT::new(0.0, 1.0, (n - 1) as f64).ok();
        let t = t.map(|t| t.inverse_cdf(0.975));
        Some(Self {
            n,
            mean,
            sd,
            ci95_half_width: sd.zip(t).map(|(sd, t)| t * sd / (n as f64).sqrt()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(Estimate::of(&[]), None);
        let one = Estimate::of(&[5.0]).unwrap();
        assert_eq!(
            (one.n, one.mean, one.sd, one.ci95_half_width),
            (1, 5.0, None, None)
        );
        // 1, 2, 3: sd 1; t(0.975, 2) = 4.302652730 (tables), over sqrt(3).
        let three = Estimate::of(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((three.mean, three.sd), (2.0, Some(1.0)));
        let half = three.ci95_half_width.unwrap();
        assert!((half - 4.302_652_73 / 3f64.sqrt()).abs() < 1e-6, "{half}");
        // n = 2: t(0.975, 1) = 12.706204736; sd of 0 and 2 is sqrt(2).
        let two = Estimate::of(&[0.0, 2.0]).unwrap().ci95_half_width.unwrap();
        assert!((two - 12.706_204_736).abs() < 1e-6, "{two}");
        assert_eq!(Estimate::of(&[4.0; 3]).unwrap().ci95_half_width, Some(0.0));
    }
}
