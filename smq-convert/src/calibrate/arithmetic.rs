//! What calibration calculates, whichever device does it.

use smq_engine::model::Stage;

use super::CalibrationMethod;
use super::levels::Levels;
use super::storage::Layout;
use crate::error::ConvertError;

/// A device with the model on it, and two streams of windows on their way through the layers.
///
/// A layer goes `enter_layer`, then for each stage `factorize`, for each of its matrices `begin`,
/// `round` in both ways and `keep`, and then `pass`. Where storage is compared a matrix is rounded
/// as often as there are candidates, and none is kept: the streams are then the same.
pub(super) trait Arithmetic {
    /// Makes the input of a layer's first stage, in both streams.
    fn enter_layer(&mut self, layer: usize) -> Result<(), ConvertError>;

    /// Sums over the tokens what a stage reads, and factorizes that. `None` where it is not finite.
    fn factorize(&mut self, stage: Stage) -> Result<Option<Inputs>, ConvertError>;

    /// Takes up a matrix of the stage, `[rows, in]`, and makes its target.
    fn begin(&mut self, w: Vec<f32>) -> Result<Sizes, ConvertError>;

    /// The matrix in hand.
    fn weights(&self) -> &[f32];

    /// The target of the matrix in hand, laid out as its weights are.
    fn target(&self) -> &[f32];

    /// Rounds it under the scales.
    fn round(&mut self, rounding: Rounding, scales: &Scales<'_>) -> Result<Losses, ConvertError>;

    /// The codes of a rounding, `[rows, in]`, whose weights stand in for the stage's matrix `index`
    /// when the stage is passed.
    fn keep(
        &mut self,
        rounding: Rounding,
        stage: Stage,
        index: usize,
    ) -> Result<Vec<i8>, ConvertError>;

    /// Lets these weights stand in for the stage's matrix `index`.
    fn stand_in(
        &mut self,
        weights: Vec<f32>,
        stage: Stage,
        index: usize,
    ) -> Result<(), ConvertError>;

    /// Leads both streams through a stage.
    fn pass(&mut self, layer: usize, stage: Stage) -> Result<(), ConvertError>;
}

/// What the inputs of a stage say.
#[derive(Debug)]
pub(super) struct Inputs {
    /// Of each feature the sum of its squares.
    pub(super) squares: Vec<f32>,
    /// Times that damping was raised.
    pub(super) raised: u32,
}

/// Squared outputs of a matrix, summed over the tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sizes {
    /// Squared sum of the unquantized outputs, `|W x|^2`.
    pub(super) whole: f64,
    /// `|W (x - y)|^2`: the objective where nothing is quantized.
    pub(super) at_weights: f64,
}

/// What an error costs, summed over the tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Losses {
    /// `|(V - W) y|^2`.
    pub(super) output: f64,
    /// `|V y - W x|^2`, less what `V = W` gives.
    pub(super) objective: f64,
}

/// A way of rounding a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rounding {
    /// Its weights to nearest: what calibration is compared with.
    Nearest,
    /// What calibration makes of it.
    Calibrated(CalibrationMethod),
}

/// Scales of a matrix, and what codes stand for under a scale of 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales<'a> {
    /// The scales themselves, where `layout` finds them.
    pub(super) values: &'a [f32],
    pub(super) layout: Layout,
    pub(super) levels: Levels,
}
