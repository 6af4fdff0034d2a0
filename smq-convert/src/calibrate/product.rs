//! One matrix: its target, its scales, its integers, and whether they beat rounding to nearest.

use rayon::prelude::*;

use super::columns::{Levels, round_columns};
use super::factor::{Factor, output_error};
use super::moments::Moments;
use super::scales::search;
use crate::quantize::{
    QuantizeError, QuantizeOptions, Quantized, ScaleRule, SettledScales, group_scale, settled,
};

/// A calibrated matrix.
#[derive(Debug)]
pub(super) struct Calibrated {
    /// As the file holds it.
    pub(super) quantized: Quantized,
    /// `[rows, groups]`, decoded.
    pub(super) scales: Vec<f32>,
    /// What became of the outputs.
    pub(super) outcome: Outcome,
}

/// Squared errors of a matrix's outputs on the calibration inputs, over their squares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outcome {
    /// By rounding to nearest.
    pub(super) rounded: f64,
    /// As stored.
    pub(super) stored: f64,
    /// Calibration did no better than rounding, which is what is stored.
    pub(super) fell_back: bool,
}

/// The weights of one matrix and what its inputs say.
pub(super) struct Problem<'a> {
    /// The tensor's name.
    pub(super) name: &'a str,
    /// `[rows, in]`.
    pub(super) w: &'a [f32],
    /// Its input's sums.
    pub(super) moments: &'a Moments,
    /// Their factorization.
    pub(super) factor: &'a Factor,
    /// Storage.
    pub(super) options: &'a QuantizeOptions,
}

/// Integers under scales.
struct Candidate {
    scales: SettledScales,
    integers: Vec<i8>,
    /// Weights less `w`, `[rows, in]`.
    error: Vec<f32>,
}

impl Problem<'_> {
    /// Calibrates it.
    ///
    /// # Errors
    /// A weight that is not finite, or a scale over its format's range.
    pub(super) fn solve(&self) -> Result<Calibrated, QuantizeError> {
        let (factor, n) = (self.factor, self.moments.features());
        let target = factor.target(self.w, self.moments);
        let nearest = QuantizeOptions {
            rule: match self.options.rule {
                ScaleRule::Weighted => ScaleRule::Nearest,
                rule => rule,
            },
            ..*self.options
        };
        let rounded = self.candidate(self.w, &nearest, |w, scales, integers| {
            let groups = n.div_ceil(nearest.group);
            let rows = integers.chunks_exact_mut(n).zip(w.chunks_exact(n));
            for ((integers, w), scales) in rows.zip(scales.chunks_exact(groups)) {
                for (c, (q, w)) in integers.iter_mut().zip(w).enumerate() {
                    *q = Levels::Int4.round(*w, scales[c / nearest.group]).0;
                }
            }
        })?;
        let calibrated = self.candidate(&target.weights, self.options, |w, scales, integers| {
            let (order, upper) = (&factor.order, &factor.upper);
            round_columns(
                w,
                scales,
                self.options.group,
                Levels::Int4,
                order,
                upper,
                integers,
            );
        })?;
        let h = self.moments.h();
        let fell_back = target.loss(&calibrated.error, h) >= target.loss(&rounded.error, h);
        let whole = output_error(self.w, h).max(f64::MIN_POSITIVE);
        let relative = |candidate: &Candidate| output_error(&candidate.error, h) / whole;
        let outcome = Outcome {
            rounded: relative(&rounded),
            stored: relative(if fell_back { &rounded } else { &calibrated }),
            fell_back,
        };
        let chosen = if fell_back { rounded } else { calibrated };
        Ok(Calibrated {
            scales: chosen.scales.values.clone(),
            quantized: settled(
                self.name,
                self.w,
                n,
                self.options,
                chosen.scales,
                &chosen.integers,
            ),
            outcome,
        })
    }

    /// Scales for `target`, settled, and the integers that `round` gives under them; `round` may overwrite its weights.
    fn candidate(
        &self,
        target: &[f32],
        options: &QuantizeOptions,
        round: impl FnOnce(&mut [f32], &[f32], &mut [i8]),
    ) -> Result<Candidate, QuantizeError> {
        let n = self.moments.features();
        let groups = n.div_ceil(options.group);
        let mut scales = vec![0.0; self.w.len() / n * groups];
        scales
            .par_chunks_mut(groups)
            .zip(target.par_chunks(n).zip(self.w.par_chunks(n)))
            .enumerate()
            .try_for_each(|(row, (scales, (target, w)))| {
                for (g, scale) in scales.iter_mut().enumerate() {
                    let range = g * options.group..n.min((g + 1) * options.group);
                    // A group without weights stays one, whatever its target.
                    if w[range.clone()].iter().all(|w| *w == 0.0) {
                        continue;
                    }
                    let found = self.scale(&target[range.clone()], range.clone(), options);
                    *scale = found.ok_or(QuantizeError::NotFinite {
                        row,
                        column: range.start,
                        value: f32::NAN,
                    })?;
                }
                Ok(())
            })?;
        let scales = SettledScales::new(options, scales)?;
        let mut integers = vec![0; self.w.len()];
        let mut work = target.to_vec();
        round(&mut work, &scales.values, &mut integers);
        let mut error = work;
        error
            .par_chunks_mut(n)
            .enumerate()
            .for_each(|(row, error)| {
                for (c, e) in error.iter_mut().enumerate() {
                    let i = row * n + c;
                    let scale = scales.values[row * groups + c / options.group];
                    *e = f32::from(integers[i]) * scale - self.w[i];
                }
            });
        Ok(Candidate {
            scales,
            integers,
            error,
        })
    }

    /// The scale of one group.
    fn scale(
        &self,
        target: &[f32],
        columns: std::ops::Range<usize>,
        options: &QuantizeOptions,
    ) -> Option<f32> {
        match options.rule {
            ScaleRule::Weighted => {
                let h = &self.factor.diagonal[columns];
                let finite = target.iter().all(|w| w.is_finite());
                finite.then(|| search(target, h, Levels::Int4, options.scales))
            }
            ScaleRule::Reference | ScaleRule::Nearest | ScaleRule::Search | ScaleRule::Signed => {
                group_scale(target, options)
            }
        }
    }
}
