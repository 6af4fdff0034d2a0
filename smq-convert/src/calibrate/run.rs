//! Layer by layer: two streams of hidden states, one through the model as it is and one through what is quantized so
//! far, meet at each set of products.

use std::collections::HashMap;

use rayon::prelude::*;
use smq_engine::linear::{Matrix, Weights};
use smq_engine::model::{Decoder, Stage, Window};
use smq_format::Dtype;
use smq_model::{LayerNames, NamedMatrix, Source};

use super::factor::Factor;
use super::moments::Moments;
use super::product::{Calibrated, Outcome, Problem};
use super::storage::Storage;
use super::texts::CalibrationText;
use crate::apply::not_quantized;
use crate::choice::Choice;
use crate::error::ConvertError;
use crate::quantize::Quantized;
use crate::source::Checkpoint;

/// Tokens whose products are summed in f32 before they join the sums in f64.
const BLOCK_TOKENS: usize = 2048;

/// Called with tokens done so far and in all, counted once a layer; returns whether to go on.
pub type CalibrationProgress<'a> = &'a (dyn Fn(u64, u64) -> bool + Sync);

/// Calibrated tensors, by name.
#[derive(Debug, Default)]
pub struct Calibration {
    /// As the file will hold them.
    pub(crate) tensors: HashMap<String, Quantized>,
    /// What became of each tensor's outputs, in the model's order.
    pub(super) outcomes: Vec<(String, Outcome)>,
}

/// Calibrates the tensors of layers that `choice` quantizes to int4.
///
/// # Errors
/// A model that cannot be run, activations or weights that are not finite, `progress` returning false.
pub(super) fn calibrate(
    checkpoint: &Checkpoint,
    choice: &Choice,
    text: &CalibrationText,
    progress: CalibrationProgress,
) -> Result<Calibration, ConvertError> {
    let source = Source::open(checkpoint.path())?;
    let decoder = Decoder::load(&source)?;
    let storage: HashMap<&str, Storage> = checkpoint
        .tensors()
        .iter()
        .zip(&choice.methods)
        .filter_map(|(tensor, method)| Some((tensor.name.as_str(), Storage::of((*method)?)?)))
        .collect();
    let mut run = Run {
        checkpoint,
        decoder: &decoder,
        storage,
        plain: windows(&decoder, text)?,
        quantized: windows(&decoder, text)?,
        out: Calibration::default(),
    };
    let layers = decoder.layer_count();
    let tokens = text.tokens() as u64;
    for layer in 0..layers {
        run.layer(layer)?;
        if !progress((layer as u64 + 1) * tokens, layers as u64 * tokens) {
            return Err(ConvertError::Interrupted);
        }
    }
    Ok(run.out)
}

fn windows(decoder: &Decoder<'_>, text: &CalibrationText) -> Result<Vec<Window>, ConvertError> {
    let window = |ids: &Vec<u32>| Ok(decoder.window(ids)?);
    text.windows.iter().map(window).collect()
}

struct Run<'a> {
    checkpoint: &'a Checkpoint,
    decoder: &'a Decoder<'a>,
    storage: HashMap<&'a str, Storage>,
    plain: Vec<Window>,
    quantized: Vec<Window>,
    out: Calibration,
}

impl Run<'_> {
    fn layer(&mut self, layer: usize) -> Result<(), ConvertError> {
        for windows in [&mut self.plain, &mut self.quantized] {
            windows
                .par_iter_mut()
                .for_each(|window| self.decoder.enter_layer(layer, window));
        }
        let names = LayerNames::of(self.decoder.config(), layer);
        for stage in Stage::ALL {
            self.stage(layer, stage, stage_names(&names, stage))?;
        }
        Ok(())
    }

    fn stage(
        &mut self,
        layer: usize,
        stage: Stage,
        names: &[NamedMatrix],
    ) -> Result<(), ConvertError> {
        let matrices = self.decoder.stage_matrices(layer, stage);
        let is_wanted = names
            .iter()
            .any(|n| self.storage.contains_key(n.name.as_str()));
        let mut moments = is_wanted.then(|| Moments::new(matrices[0].cols));
        let step = BLOCK_TOKENS.div_ceil(self.plain[0].tokens());
        let blocks = self.plain.chunks_mut(step).zip(self.quantized.chunks(step));
        for (plain, quantized) in blocks {
            if let Some(moments) = &mut moments {
                let rows = |windows: &[Window]| -> Vec<f32> {
                    windows.iter().flat_map(Window::input).copied().collect()
                };
                moments.add(&rows(plain), &rows(quantized));
            }
        }
        self.decoder.pass(layer, stage, matrices, &mut self.plain)?;
        let calibrated = match moments {
            Some(moments) => self.calibrated(names, matrices, &moments)?,
            None => names.iter().map(|_| None).collect(),
        };
        let stand_ins: Vec<Matrix<'_>> = matrices
            .iter()
            .zip(&calibrated)
            .map(|(matrix, calibrated)| match calibrated {
                Some((_, weights)) => Matrix {
                    data: Weights::Dense {
                        dtype: Dtype::F32,
                        bytes: weights,
                    },
                    ..*matrix
                },
                None => matrix.clone(),
            })
            .collect();
        self.decoder
            .pass(layer, stage, &stand_ins, &mut self.quantized)?;
        drop(stand_ins);
        for (name, calibrated) in names.iter().zip(calibrated) {
            if let Some((calibrated, _)) = calibrated {
                self.out
                    .outcomes
                    .push((name.name.clone(), calibrated.outcome));
                self.out
                    .tensors
                    .insert(name.name.clone(), calibrated.quantized);
            }
        }
        Ok(())
    }

    /// What becomes of a stage's matrices; `None` for those that are not calibrated.
    fn calibrated(
        &self,
        names: &[NamedMatrix],
        matrices: &[Matrix<'_>],
        moments: &Moments,
    ) -> Result<Vec<Option<(Calibrated, Vec<u8>)>>, ConvertError> {
        let storage = |n: &NamedMatrix| self.storage.get(n.name.as_str());
        let factor = Factor::new(moments).ok_or_else(|| ConvertError::Calibration {
            path: self.checkpoint.path().to_path_buf(),
            problem: format!(
                "the inputs of {} are not finite on the calibration text",
                names[0].name
            ),
        })?;
        let solve = |(name, matrix): (&NamedMatrix, &Matrix<'_>)| {
            let Some(&storage) = storage(name) else {
                return Ok(None);
            };
            let mut w = vec![0.0; matrix.rows * matrix.cols];
            matrix.dequantize(0..matrix.rows, &mut w);
            let problem = Problem {
                name: &name.name,
                w: &w,
                factor: &factor,
                storage,
            };
            match (problem.solve(), self.checkpoint.tensor(&name.name)) {
                (Ok(calibrated), _) => {
                    let bytes = calibrated
                        .weights
                        .iter()
                        .flat_map(|w| w.to_le_bytes())
                        .collect();
                    Ok(Some((calibrated, bytes)))
                }
                (Err(error), Some(tensor)) => Err(not_quantized(self.checkpoint, tensor, error)),
                (Err(error), None) => Err(ConvertError::Calibration {
                    path: self.checkpoint.path().to_path_buf(),
                    problem: format!("tensor {:?}: {error:?}", name.name),
                }),
            }
        };
        names.iter().zip(matrices).map(solve).collect()
    }
}

fn stage_names(names: &LayerNames, stage: Stage) -> &[NamedMatrix] {
    match stage {
        Stage::Qkv => &names.qkv,
        Stage::O => std::slice::from_ref(&names.o),
        Stage::GateUp => &names.gate_up,
        Stage::Down => std::slice::from_ref(&names.down),
    }
}
