//! A logarithmic axis whose ticks suit ranges within a decade as well, where plotters' own has one
//! or none.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use smq_convert::inspect::figure::tick;

/// Positive values, by their logarithms.
#[derive(Debug, Clone)]
pub(super) struct LogAxis(pub Range<f64>);

/// Digits of ticks within a decade, from few to many.
const DIGITS: [&[f64]; 4] = [
    &[1.0],
    &[1.0, 3.0],
    &[1.0, 2.0, 5.0],
    &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
];

impl LogAxis {
    /// The densest ticks that are no more than `most`.
    fn ticks(&self, most: usize) -> Vec<f64> {
        let Range { start, end } = self.0;
        let decades = start.log10().floor() as i32..=end.log10().ceil() as i32;
        let of = |digits: &[f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|e| {
                let decade = 10f64.powi(e);
                digits.iter().map(move |d| d * decade)
            });
            all.filter(|v| (start..=end).contains(v)).collect()
        };
        let fitting = DIGITS.iter().rev().map(|d| of(d));
        fitting
            .into_iter()
            .find(|t| t.len() <= most)
            .unwrap_or_else(|| {
                let all = of(DIGITS[0]);
                let step = all.len().div_ceil(most.max(1));
                all.into_iter().step_by(step).collect()
            })
    }
}

impl Ranged for LogAxis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (low, high): (i32, i32)) -> i32 {
        let Range { start, end } = self.0;
        let part = (value.max(f64::MIN_POSITIVE) / start).ln() / (end / start).ln();
        low + (part * f64::from(high - low)).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, hint: H) -> Vec<f64> {
        self.ticks(hint.max_num_points())
    }

    fn range(&self) -> Range<f64> {
        self.0.clone()
    }
}

impl ValueFormatter<f64> for LogAxis {
    fn format(value: &f64) -> String {
        tick(*value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_few_but_never_one_alone() {
        let close = |ticks: &[f64], expected: &[f64]| {
            assert_eq!(ticks.len(), expected.len(), "{ticks:?}");
            for (t, e) in ticks.iter().zip(expected) {
                assert!((t / e - 1.0).abs() < 1e-12, "{ticks:?}");
            }
        };
        close(&LogAxis(0.08..0.41).ticks(7), &[0.1, 0.15, 0.2, 0.3, 0.4]);
        close(&LogAxis(0.002..0.03).ticks(7), &[0.002, 0.005, 0.01, 0.02]);
        close(&LogAxis(1e-3..10.0).ticks(7), &[1e-3, 1e-2, 0.1, 1.0, 10.0]);
        assert!(LogAxis(1e-9..1e9).ticks(7).len() <= 7);
        assert_eq!(LogAxis(1.0..100.0).map(&10.0, (0, 200)), 100);
    }
}
