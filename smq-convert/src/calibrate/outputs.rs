//! What storage does to a tensor's outputs, before any is chosen: a pass over the layers in which
//! nothing stands in for anything, so that both streams are those of the unquantized model.

use std::collections::HashMap;

use smq_engine::linear::Matrix;
use smq_engine::model::{Decoder, Stage};
use smq_model::LayerNames;

use super::arithmetic::{Arithmetic, Inputs, Rounding, Scales};
use super::product::{Failure, finite_error};
use super::run::{CalibrationProgress, Streams, dequantized, located, not_finite, stage_names};
use super::storage::Storage;
use crate::error::ConvertError;
use crate::quantize::{Grid, QuantizeOptions};
use crate::source::Checkpoint;

/// What a tensor gives on the calibration text, squared and summed over the tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outputs {
    /// Squared sum of the unquantized outputs, `|W x|^2`.
    pub(crate) whole: f64,
    /// `|(V - W) x|^2` of each candidate, in their order; never negative, and finite.
    pub(crate) errors: Vec<f64>,
}

/// What a pass is about.
pub(super) struct Pass<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) streams: Streams<'a>,
    /// What each tensor may be stored as, by its name.
    pub(super) candidates: &'a HashMap<&'a str, Vec<QuantizeOptions>>,
    pub(super) progress: CalibrationProgress<'a>,
}

impl Pass<'_> {
    /// Measures every candidate of every tensor.
    ///
    /// # Errors
    /// Activations or weights that are not finite, what the device meets, `progress` returning
    /// false.
    pub(super) fn measure(&self) -> Result<HashMap<String, Outputs>, ConvertError> {
        let decoder = Decoder::load(self.streams.source)?;
        let mut arithmetic = self.streams.start(&decoder)?;
        let layers = decoder.layer_count();
        let mut out = HashMap::new();
        for layer in 0..layers {
            arithmetic.enter_layer(layer)?;
            for stage in Stage::ALL {
                if !(self.progress)(layer, layers) {
                    return Err(ConvertError::Interrupted);
                }
                self.stage(&decoder, (layer, stage), &mut *arithmetic, &mut out)?;
                // Nothing behind the last measured product is looked at.
                if out.len() == self.candidates.len() {
                    (self.progress)(layers, layers);
                    return Ok(out);
                }
                arithmetic.pass(layer, stage)?;
            }
        }
        (self.progress)(layers, layers);
        Ok(out)
    }

    fn stage(
        &self,
        decoder: &Decoder<'_>,
        (layer, stage): (usize, Stage),
        arithmetic: &mut dyn Arithmetic,
        out: &mut HashMap<String, Outputs>,
    ) -> Result<(), ConvertError> {
        let names = LayerNames::of(decoder.config(), layer);
        let names = stage_names(&names, stage);
        let matrices = decoder.stage_matrices(layer, stage);
        let is_wanted = |name: &str| self.candidates.contains_key(name);
        if !names.iter().any(|named| is_wanted(&named.name)) {
            return Ok(());
        }
        let inputs = arithmetic.factorize(stage)?;
        let inputs = inputs.ok_or_else(|| not_finite(self.checkpoint, &names[0]))?;
        for (named, matrix) in names.iter().zip(matrices) {
            let Some(candidates) = self.candidates.get(named.name.as_str()) else {
                continue;
            };
            let outputs = of_matrix(arithmetic, &inputs, matrix, candidates)
                .map_err(|failure| located(self.checkpoint, named, failure))?;
            out.insert(named.name.clone(), outputs);
        }
        Ok(())
    }
}

fn of_matrix(
    arithmetic: &mut dyn Arithmetic,
    inputs: &Inputs,
    matrix: &Matrix<'_>,
    candidates: &[QuantizeOptions],
) -> Result<Outputs, Failure> {
    let columns = matrix.cols;
    let sizes = arithmetic.begin(dequantized(matrix))?;
    let mut errors = Vec::with_capacity(candidates.len());
    for &options in candidates {
        let w = arithmetic.weights();
        let storage = Storage::Groups(options, Grid::Int4);
        let settled = storage.settle(w, w, columns, Some(&inputs.squares))?;
        let scales = Scales {
            values: settled.values(),
            layout: storage.layout(columns),
            levels: storage.levels(),
        };
        let losses = arithmetic.round(Rounding::Nearest, &scales)?;
        errors.push(finite_error(losses.output));
    }
    Ok(Outputs {
        whole: sizes.whole,
        errors,
    })
}
