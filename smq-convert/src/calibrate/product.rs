//! One matrix: its target, its scales, its codes, and whether they beat rounding to nearest.

use smq_engine::model::Stage;

use super::CalibrationMethod;
use super::arithmetic::{Arithmetic, Inputs, Rounding, Scales};
use super::storage::{Settled, Storage};
use crate::error::ConvertError;
use crate::quantize::{QuantizeError, Quantized};

/// A calibrated matrix: its codes and scales, and what became of its outputs.
#[derive(Debug)]
pub(super) struct Calibrated {
    /// The codes and scales, as the file holds them.
    pub(super) quantized: Quantized,
    /// What became of the outputs.
    pub(super) outcome: Outcome,
}

/// Squared errors of a matrix's outputs on the calibration inputs, against what the unquantized
/// matrix gives in the unquantized model, over the squares of that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Outcome {
    /// The error of rounding to nearest.
    pub(crate) rounded: f64,
    /// The error of the codes and scales that are stored.
    pub(crate) stored: f64,
    /// Calibration did no better than rounding, which is what is stored.
    pub(crate) fell_back: bool,
    /// Times that the damping of its inputs' sums had to be raised.
    pub(crate) raised: u32,
}

/// One matrix of a stage and what its inputs say.
pub(super) struct Problem<'a> {
    /// Name of the tensor, for messages.
    pub(super) name: &'a str,
    /// The inputs that the tensor's stage of the layer sees.
    pub(super) inputs: &'a Inputs,
    /// What it is stored as.
    pub(super) storage: Storage,
    /// How its codes are chosen.
    pub(super) method: CalibrationMethod,
    /// Which of the stage's matrices it is.
    pub(super) stage: Stage,
    pub(super) index: usize,
}

/// Why a matrix could not be calibrated.
pub(super) enum Failure {
    /// Something about its weights.
    Quantize(QuantizeError),
    /// The device failed, which is no fault of the tensor.
    Device(ConvertError),
}

impl From<QuantizeError> for Failure {
    fn from(error: QuantizeError) -> Self {
        Self::Quantize(error)
    }
}

impl From<ConvertError> for Failure {
    fn from(error: ConvertError) -> Self {
        Self::Device(error)
    }
}

impl Problem<'_> {
    /// Calibrates `w`, `[rows, in]`.
    ///
    /// # Errors
    /// A weight that is not finite, a scale over its format's range, and what the device meets.
    pub(super) fn solve(
        &self,
        arithmetic: &mut dyn Arithmetic,
        w: Vec<f32>,
    ) -> Result<Calibrated, Failure> {
        let n = self.inputs.squares.len();
        let sizes = arithmetic.begin(w)?;
        let nearest = self.storage.nearest();
        let w = arithmetic.weights();
        let of_rounded = nearest.settle(w, w, n, None)?;
        let rounded = arithmetic.round(Rounding::Nearest, &self.scales(&of_rounded))?;
        let calibrated = Rounding::Calibrated(self.method);
        let (w, target) = (arithmetic.weights(), arithmetic.target());
        let aim = match self.method {
            CalibrationMethod::Asymmetric => target,
            CalibrationMethod::Gptq | CalibrationMethod::Search => w,
        };
        let of_calibrated = self.storage.settle(aim, w, n, Some(&self.inputs.squares))?;
        let stored = arithmetic.round(calibrated, &self.scales(&of_calibrated))?;
        // Also where one isn't a number.
        let is_better = stored.objective < rounded.objective;
        let (rounding, scales, losses) = match is_better {
            true => (calibrated, of_calibrated, stored),
            false => (Rounding::Nearest, of_rounded, rounded),
        };
        let codes = arithmetic.keep(rounding, self.stage, self.index)?;
        let whole = sizes.whole.max(f64::MIN_POSITIVE);
        let relative = |objective: f64| (objective + sizes.at_weights) / whole;
        Ok(Calibrated {
            quantized: scales.quantized(self.name, arithmetic.weights(), n, &codes),
            outcome: Outcome {
                rounded: relative(rounded.objective),
                stored: relative(losses.objective),
                fell_back: !is_better,
                raised: self.inputs.raised,
            },
        })
    }

    fn scales<'s>(&self, settled: &'s Settled) -> Scales<'s> {
        Scales {
            values: settled.values(),
            layout: self.storage.layout(self.inputs.squares.len()),
            levels: self.storage.levels(),
        }
    }
}

/// A squared error that is never negative, and finite.
///
/// Sums of products in f32 can come out a little under zero, or, of weights that are as large as
/// f32 holds, as no number at all: then nothing is worse.
pub(crate) fn finite_error(error: f64) -> f64 {
    match error.is_finite() {
        true => error.max(0.0),
        false => f64::from(f32::MAX),
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
