//! Layer by layer: two streams of hidden states, one through the model as it is and one through what
//! is quantized so far, meet at each set of products.

use std::collections::HashMap;

use rayon::prelude::*;
use smq_engine::linear::{Matrix, Weights};
use smq_engine::model::{Decoder, Stage, Window};
use smq_format::Dtype;
use smq_model::{LayerNames, NamedMatrix, Source};

use super::factor::Factor;
use super::moments::Moments;
use super::product::{Calibrated, Outcome, Problem};
use super::saved::Saved;
use super::storage::Storage;
use super::texts::CalibrationText;
use crate::apply::not_quantized;
use crate::choice::Choice;
use crate::error::ConvertError;
use crate::quantize::{Method, Quantized};
use crate::source::Checkpoint;

/// Tokens whose products are summed in f32 before they join the sums in f64.
const BLOCK_TOKENS: usize = 2048;

/// Called with layers done so far and in all; returns whether to go on.
pub type CalibrationProgress<'a> = &'a (dyn Fn(usize, usize) -> bool + Sync);

/// Calibrated tensors, by name.
#[derive(Debug, Default)]
pub(crate) struct Calibration {
    /// As the file will hold them.
    pub(crate) tensors: HashMap<String, Quantized>,
    /// What became of each tensor's outputs, in the model's order.
    pub(crate) outcomes: Vec<(String, Outcome)>,
}

/// Calibrates the tensors of layers whose method in `choice` leaves anything to choose.
///
/// # Errors
/// Activations or weights that are not finite, `progress` returning false.
pub(super) fn calibrate(
    checkpoint: &Checkpoint,
    source: &Source,
    choice: &Choice,
    text: &CalibrationText,
    saved: &Saved,
    progress: CalibrationProgress,
) -> Result<Calibration, ConvertError> {
    let decoder = Decoder::load(source)?;
    let methods = checkpoint.tensors().iter().zip(&choice.methods);
    let methods = methods
        .filter_map(|(tensor, method)| Some((tensor.name.as_str(), (*method)?)))
        .collect();
    let mut run = Run {
        checkpoint,
        decoder: &decoder,
        methods,
        plain: windows(&decoder, text)?,
        quantized: windows(&decoder, text)?,
    };
    let layers = decoder.layer_count();
    let mut out = Calibration::default();
    for layer in 0..layers {
        if !progress(layer, layers) {
            return Err(ConvertError::Interrupted);
        }
        run.layer(layer, saved, progress, &mut out)?;
    }
    progress(layers, layers);
    Ok(out)
}

fn windows(decoder: &Decoder<'_>, text: &CalibrationText) -> Result<Vec<Window>, ConvertError> {
    let window = |ids: &Vec<u32>| Ok(decoder.window(ids)?);
    text.windows.iter().map(window).collect()
}

struct Run<'a> {
    checkpoint: &'a Checkpoint,
    decoder: &'a Decoder<'a>,
    methods: HashMap<&'a str, Method>,
    plain: Vec<Window>,
    quantized: Vec<Window>,
}

impl Run<'_> {
    fn layer(
        &mut self,
        layer: usize,
        saved: &Saved,
        progress: CalibrationProgress,
        out: &mut Calibration,
    ) -> Result<(), ConvertError> {
        for windows in [&mut self.plain, &mut self.quantized] {
            let enter = |window| self.decoder.enter_layer(layer, window);
            windows.par_iter_mut().for_each(enter);
        }
        let mut loaded = saved.load(layer)?;
        let names = LayerNames::of(self.decoder.config(), layer);
        let mut done = Vec::new();
        for stage in Stage::ALL {
            if !progress(layer, self.decoder.layer_count()) {
                return Err(ConvertError::Interrupted);
            }
            done.extend(self.stage(layer, stage, stage_names(&names, stage), loaded.as_mut())?);
        }
        if loaded.is_none() {
            saved.save(layer, &done)?;
        }
        for (name, _, calibrated) in done {
            out.outcomes.push((name.clone(), calibrated.outcome));
            out.tensors.insert(name, calibrated.quantized);
        }
        Ok(())
    }

    /// Calibrates the products of a stage, or takes them from `loaded`, and leads both streams
    /// through it. Tensors come with their shapes.
    fn stage(
        &mut self,
        layer: usize,
        stage: Stage,
        names: &[NamedMatrix],
        loaded: Option<&mut HashMap<String, Calibrated>>,
    ) -> Result<Vec<(String, Vec<usize>, Calibrated)>, ConvertError> {
        let matrices = self.decoder.stage_matrices(layer, stage);
        let is_wanted = |n: &NamedMatrix| self.methods.contains_key(n.name.as_str());
        let calibrated: Vec<Option<Calibrated>> = match loaded {
            Some(loaded) => names.iter().map(|n| loaded.remove(&n.name)).collect(),
            None if names.iter().any(is_wanted) => self.calibrated(names, matrices)?,
            None => names.iter().map(|_| None).collect(),
        };
        let bytes: Vec<Option<Vec<u8>>> = calibrated
            .iter()
            .map(|c| {
                Some(
                    c.as_ref()?
                        .weights
                        .iter()
                        .flat_map(|w| w.to_le_bytes())
                        .collect(),
                )
            })
            .collect();
        let stand_ins: Vec<Matrix<'_>> = matrices
            .iter()
            .zip(&bytes)
            .map(|(matrix, bytes)| stand_in(matrix, bytes))
            .collect();
        self.decoder.pass(layer, stage, matrices, &mut self.plain)?;
        self.decoder
            .pass(layer, stage, &stand_ins, &mut self.quantized)?;
        let named = names.iter().zip(matrices).zip(calibrated);
        let named = named.filter_map(|((name, matrix), calibrated)| {
            Some((
                name.name.clone(),
                vec![matrix.rows, matrix.cols],
                calibrated?,
            ))
        });
        Ok(named.collect())
    }

    /// What becomes of a stage's matrices; `None` for those that are not calibrated.
    fn calibrated(
        &self,
        names: &[NamedMatrix],
        matrices: &[Matrix<'_>],
    ) -> Result<Vec<Option<Calibrated>>, ConvertError> {
        let failed = |problem: String| ConvertError::Calibration {
            path: self.checkpoint.path().to_path_buf(),
            problem,
        };
        let moments = self.moments(matrices[0].cols);
        let factor = Factor::new(&moments).ok_or_else(|| {
            failed(format!(
                "the inputs of {} are not finite on the calibration text",
                names[0].name
            ))
        })?;
        drop(moments);
        let solve = |(name, matrix): (&NamedMatrix, &Matrix<'_>)| {
            let Some(&method) = self.methods.get(name.name.as_str()) else {
                return Ok(None);
            };
            let mut w = vec![0.0; matrix.rows * matrix.cols];
            matrix.dequantize(0..matrix.rows, &mut w);
            let solve = |storage: Option<Storage>| {
                let problem = |storage| Problem {
                    name: &name.name,
                    w: &w,
                    factor: &factor,
                    storage,
                };
                storage.map(|storage| problem(storage).solve()).transpose()
            };
            let storage = Storage::of(method, &w, matrix.cols);
            storage
                .and_then(solve)
                .map_err(|error| match self.checkpoint.tensor(&name.name) {
                    Some(tensor) => not_quantized(self.checkpoint, tensor, error),
                    None => failed(format!("tensor {:?}: {error:?}", name.name)),
                })
        };
        names.iter().zip(matrices).map(solve).collect()
    }

    /// The sums over all windows, of the inputs that both streams give the next products.
    fn moments(&self, features: usize) -> Moments {
        let mut moments = Moments::new(features);
        let step = BLOCK_TOKENS.div_ceil(self.plain[0].tokens());
        let rows = |windows: &[Window]| -> Vec<f32> {
            windows.iter().flat_map(Window::input).copied().collect()
        };
        for (plain, quantized) in self.plain.chunks(step).zip(self.quantized.chunks(step)) {
            moments.add(&rows(plain), &rows(quantized));
        }
        moments
    }
}

/// The matrix with its calibrated weights, if there are any.
fn stand_in<'b>(matrix: &Matrix<'b>, bytes: &'b Option<Vec<u8>>) -> Matrix<'b> {
    match bytes {
        Some(bytes) => Matrix {
            data: Weights::Dense {
                dtype: Dtype::F32,
                bytes,
            },
            ..*matrix
        },
        None => matrix.clone(),
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
