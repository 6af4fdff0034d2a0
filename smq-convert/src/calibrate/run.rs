//! Layer by layer: two streams of hidden states, one through the model as it is and one through what is quantized so
//! far, meet at each set of products.

use std::collections::HashMap;

use smq_engine::linear::{self, Matrix, Weights};
use smq_engine::model::{Decoder, Stage, Window};
use smq_model::Source;
use smq_model::names::{LayerNames, NamedMatrix};

use super::factor::Factor;
use super::moments::Moments;
use super::product::{Calibrated, Outcome, Problem};
use super::texts::CalibrationText;
use crate::apply::not_quantized;
use crate::choice::Choice;
use crate::error::ConvertError;
use crate::quantize::{Method, QuantizeOptions, Quantized};
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
    let methods: HashMap<&str, QuantizeOptions> = checkpoint
        .tensors()
        .iter()
        .zip(&choice.methods)
        .filter_map(|(tensor, method)| match method {
            Some(Method::Int4(options)) => Some((tensor.name.as_str(), *options)),
            Some(Method::Nf4 | Method::Fp8) | None => None,
        })
        .collect();
    let mut run = Run {
        checkpoint,
        decoder: &decoder,
        methods,
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
    methods: HashMap<&'a str, QuantizeOptions>,
    plain: Vec<Window>,
    quantized: Vec<Window>,
    out: Calibration,
}

impl Run<'_> {
    fn layer(&mut self, layer: usize) -> Result<(), ConvertError> {
        for window in self.plain.iter_mut().chain(&mut self.quantized) {
            self.decoder.enter_layer(layer, window);
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
        let calibrated = self.calibrated(names, matrices)?;
        let stand_ins: Vec<Matrix<'_>> = matrices
            .iter()
            .zip(&calibrated)
            .map(|(matrix, calibrated)| match calibrated {
                Some((calibrated, group)) => Matrix {
                    data: Weights::Int4 {
                        nibbles: &calibrated.quantized.blobs[0],
                        scales: calibrated.scales.clone(),
                        group: *group,
                    },
                    ..*matrix
                },
                None => matrix.clone(),
            })
            .collect();
        for (windows, matrices) in [
            (&mut self.plain, matrices),
            (&mut self.quantized, &stand_ins),
        ] {
            for window in windows {
                let product = linear::stacked(window.input(), window.tokens(), matrices)?;
                self.decoder.leave_stage(layer, stage, product, window);
            }
        }
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
    ) -> Result<Vec<Option<(Calibrated, usize)>>, ConvertError> {
        let options = |n: &NamedMatrix| self.methods.get(n.name.as_str());
        if names.iter().all(|n| options(n).is_none()) {
            return Ok(names.iter().map(|_| None).collect());
        }
        let moments = self.moments(matrices[0].cols);
        let factor = Factor::new(&moments).ok_or_else(|| ConvertError::Calibration {
            path: self.checkpoint.path().to_path_buf(),
            problem: format!(
                "the inputs of {} are not finite on the calibration text",
                names[0].name
            ),
        })?;
        let solve = |(name, matrix): (&NamedMatrix, &Matrix<'_>)| {
            let Some(options) = options(name) else {
                return Ok(None);
            };
            let mut w = vec![0.0; matrix.rows * matrix.cols];
            matrix.dequantize(0..matrix.rows, &mut w);
            let problem = Problem {
                name: &name.name,
                w: &w,
                moments: &moments,
                factor: &factor,
                options,
            };
            match (problem.solve(), self.checkpoint.tensor(&name.name)) {
                (Ok(calibrated), _) => Ok(Some((calibrated, options.group))),
                (Err(error), Some(tensor)) => Err(not_quantized(self.checkpoint, tensor, error)),
                (Err(error), None) => Err(ConvertError::Calibration {
                    path: self.checkpoint.path().to_path_buf(),
                    problem: format!("tensor {:?}: {error:?}", name.name),
                }),
            }
        };
        names.iter().zip(matrices).map(solve).collect()
    }

    /// The sums over all windows, of the inputs that both streams give the next products.
    fn moments(&self, features: usize) -> Moments {
        let mut moments = Moments::new(features);
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for (plain, quantized) in self.plain.iter().zip(&self.quantized) {
            x.extend_from_slice(plain.input());
            y.extend_from_slice(quantized.input());
            if y.len() >= BLOCK_TOKENS * features {
                moments.add(&x, &y);
                x.clear();
                y.clear();
            }
        }
        if !y.is_empty() {
            moments.add(&x, &y);
        }
        moments
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
