//! One matrix: its target, its scales, its codes, and whether they beat rounding to nearest.

use rayon::prelude::*;

use super::columns::round_columns;
use super::factor::Factor;
use super::storage::{Settled, Storage};
use crate::quantize::{QuantizeError, Quantized};

/// A calibrated matrix.
#[derive(Debug)]
pub(super) struct Calibrated {
    /// As the file holds it.
    pub(super) quantized: Quantized,
    /// The weights that it stands for, `[rows, in]`.
    pub(super) weights: Vec<f32>,
    /// What became of the outputs.
    pub(super) outcome: Outcome,
}

/// Squared errors of a matrix's outputs on the calibration inputs, over their squares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Outcome {
    /// By rounding to nearest.
    pub(crate) rounded: f64,
    /// As stored.
    pub(crate) stored: f64,
    /// Calibration did no better than rounding, which is what is stored.
    pub(crate) fell_back: bool,
    /// Times that the damping of its inputs' sums had to be raised.
    pub(crate) raised: u32,
}

/// The weights of one matrix and what its inputs say.
pub(super) struct Problem<'a> {
    /// The tensor's name.
    pub(super) name: &'a str,
    /// `[rows, in]`.
    pub(super) w: &'a [f32],
    /// What its inputs say.
    pub(super) factor: &'a Factor,
    /// What it is stored as.
    pub(super) storage: Storage,
}

/// Codes under scales.
struct Candidate {
    scales: Settled,
    codes: Vec<i8>,
    /// What they stand for, `[rows, in]`.
    weights: Vec<f32>,
}

impl Problem<'_> {
    /// Calibrates it.
    ///
    /// # Errors
    /// A weight that is not finite, or a scale over its format's range.
    pub(super) fn solve(&self) -> Result<Calibrated, QuantizeError> {
        let (factor, n) = (self.factor, self.columns());
        let target = factor.target(self.w);
        let nearest = self.storage.nearest();
        let levels = nearest.levels();
        let layout = nearest.layout(n);
        let scales = nearest.settle(self.w, self.w, n, None)?;
        let rounded = self.candidate(scales, |codes, scales| {
            let rows = codes.par_chunks_mut(n).zip(self.w.par_chunks(n));
            rows.enumerate().for_each(|(row, (codes, w))| {
                for (c, (q, w)) in codes.iter_mut().zip(w).enumerate() {
                    *q = levels.round(*w, scales[layout.index(row, c)]).0;
                }
            });
        });
        let squares = Some(factor.diagonal.as_slice());
        let scales = self.storage.settle(&target, self.w, n, squares)?;
        let calibrated = self.candidate(scales, |codes, scales| {
            round_columns(&target, scales, layout, levels, factor, codes);
        });
        let less_w = |v: &[f32]| -> Vec<f32> { v.iter().zip(self.w).map(|(v, w)| v - w).collect() };
        let shift = less_w(&target);
        let losses = |candidate: &Candidate| factor.losses(&less_w(&candidate.weights), &shift);
        let (of_rounded, of_calibrated) = (losses(&rounded), losses(&calibrated));
        let whole = factor.losses(self.w, &shift).output.max(f64::MIN_POSITIVE);
        // Also where one isn't a number.
        let is_better = of_calibrated.objective < of_rounded.objective;
        let (chosen, stored) = match is_better {
            true => (calibrated, of_calibrated),
            false => (rounded, of_rounded),
        };
        Ok(Calibrated {
            quantized: chosen.scales.quantized(self.name, self.w, n, &chosen.codes),
            weights: chosen.weights,
            outcome: Outcome {
                rounded: of_rounded.output / whole,
                stored: stored.output / whole,
                fell_back: !is_better,
                raised: factor.raised,
            },
        })
    }

    fn columns(&self) -> usize {
        self.factor.order.len()
    }

    /// The codes that `round` gives under `scales`.
    fn candidate(&self, scales: Settled, round: impl FnOnce(&mut [i8], &[f32])) -> Candidate {
        let n = self.columns();
        let (levels, layout) = (self.storage.levels(), self.storage.layout(n));
        let mut codes = vec![0; self.w.len()];
        let values = scales.values();
        round(&mut codes, values);
        let mut weights = vec![0.0; self.w.len()];
        let rows = weights.par_chunks_mut(n).zip(codes.par_chunks(n));
        rows.enumerate().for_each(|(row, (weights, codes))| {
            for (c, (v, q)) in weights.iter_mut().zip(codes).enumerate() {
                *v = levels.value(*q) * values[layout.index(row, c)];
            }
        });
        Candidate {
            scales,
            codes,
            weights,
        }
    }
}

impl Outcome {
    /// As [`Outcome::of_text`] reads it: floats by their bits.
    pub(super) fn to_text(self) -> String {
        let (rounded, stored) = (self.rounded.to_bits(), self.stored.to_bits());
        let fell_back = u8::from(self.fell_back);
        format!("{rounded:016x} {stored:016x} {fell_back} {}", self.raised)
    }

    /// `None` of anything else.
    pub(super) fn of_text(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut float = || {
            u64::from_str_radix(words.next()?, 16)
                .ok()
                .map(f64::from_bits)
        };
        let (rounded, stored) = (float()?, float()?);
        let fell_back = match words.next()? {
            "0" => false,
            "1" => true,
            _ => return None,
        };
        Some(Self {
            rounded,
            stored,
            fell_back,
            raised: words.next()?.parse().ok()?,
        })
    }
}
