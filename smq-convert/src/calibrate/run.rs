//! Layer by layer: two streams of hidden states, one through the model as it is and one through
//! what is quantized so far, meet at each set of products.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use smq_engine::Device;
use smq_engine::linear::Matrix;
use smq_engine::model::{Decoder, Stage};
use smq_model::{LayerNames, NamedMatrix, Source};

use super::CalibrationMethod;
use super::arithmetic::Arithmetic;
use super::cpu::Cpu;
use super::gpu::OnGpu;
use super::memory::States;
use super::product::{Calibrated, Failure, Outcome, Problem};
use super::saved::{Restored, Saved};
use super::storage::Storage;
use super::texts::CalibrationText;
use crate::apply::not_quantized;
use crate::choice::Choice;
use crate::error::ConvertError;
use crate::quantize::{Method, Quantized};
use crate::source::Checkpoint;

/// Called with layers done so far and in all; returns whether to go on.
pub type CalibrationProgress<'a> = &'a (dyn Fn(usize, usize) -> bool + Sync);

/// Calibrated tensors, by name.
#[derive(Debug, Default)]
pub(crate) struct Calibration {
    /// The calibrated tensors, as the file will hold them.
    pub(crate) tensors: HashMap<String, Quantized>,
    /// What became of each tensor's outputs, in the model's order.
    pub(crate) outcomes: Vec<(String, Outcome)>,
}

/// What goes through the layers, and where.
pub(super) struct Streams<'a> {
    pub(super) source: &'a Source,
    pub(super) text: &'a CalibrationText,
    /// The device that it runs on, which is no longer left open.
    pub(super) device: Device,
    pub(super) states: States,
    /// Where hidden states go that memory does not hold.
    pub(super) directory: &'a Path,
}

/// What a run is about.
pub(super) struct Task<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) streams: Streams<'a>,
    pub(super) choice: &'a Choice,
    pub(super) method: CalibrationMethod,
    pub(super) saved: &'a Saved,
    pub(super) progress: CalibrationProgress<'a>,
}

/// Calibrates the tensors of layers whose method leaves anything to choose.
///
/// # Errors
/// Activations or weights that are not finite, what the device meets, `progress` returning false.
pub(super) fn calibrate(task: &Task<'_>) -> Result<Calibration, ConvertError> {
    let decoder = Decoder::load(task.streams.source)?;
    let methods = task.checkpoint.tensors().iter().zip(&task.choice.methods);
    let methods = methods
        .filter_map(|(tensor, method)| Some((tensor.name.as_str(), (*method)?)))
        .collect();
    let mut run = Run {
        task,
        decoder: &decoder,
        methods,
        arithmetic: task.streams.start(&decoder)?,
    };
    let layers = decoder.layer_count();
    let mut out = Calibration::default();
    for layer in 0..layers {
        run.check(layer)?;
        run.layer(layer, &mut out)?;
    }
    (task.progress)(layers, layers);
    Ok(out)
}

impl Streams<'_> {
    /// The device's arithmetic, its streams at the first layer.
    ///
    /// # Errors
    /// A token outside the vocabulary, what the device meets.
    pub(super) fn start<'d>(
        &self,
        decoder: &'d Decoder<'d>,
    ) -> Result<Box<dyn Arithmetic + 'd>, ConvertError> {
        Ok(match self.device {
            Device::Cuda => Box::new(OnGpu::new(self.source, self.text)?),
            Device::Cpu | Device::Auto => Box::new(Cpu::new(decoder, self)?),
        })
    }
}

struct Run<'a> {
    task: &'a Task<'a>,
    decoder: &'a Decoder<'a>,
    methods: HashMap<&'a str, Method>,
    arithmetic: Box<dyn Arithmetic + 'a>,
}

impl Run<'_> {
    /// Stops where that is asked for.
    fn check(&self, layer: usize) -> Result<(), ConvertError> {
        match (self.task.progress)(layer, self.decoder.layer_count()) {
            true => Ok(()),
            false => Err(ConvertError::Interrupted),
        }
    }

    fn layer(&mut self, layer: usize, out: &mut Calibration) -> Result<(), ConvertError> {
        self.arithmetic.enter_layer(layer)?;
        let mut loaded = self.task.saved.load(layer)?;
        let names = LayerNames::of(self.decoder.config(), layer);
        let mut done = Vec::new();
        for stage in Stage::ALL {
            self.check(layer)?;
            let names = stage_names(&names, stage);
            done.extend(match loaded.as_mut() {
                Some(loaded) => self.restored(stage, names, loaded)?,
                None => self.calibrated(layer, stage, names)?,
            });
            self.arithmetic.pass(layer, stage)?;
        }
        if loaded.is_none() {
            self.task.saved.save(layer, &done)?;
        }
        for (name, _, calibrated) in done {
            out.outcomes.push((name.clone(), calibrated.outcome));
            out.tensors.insert(name, calibrated.quantized);
        }
        Ok(())
    }

    /// Takes a stage's tensors from those that a former run saved.
    fn restored(
        &mut self,
        stage: Stage,
        names: &[NamedMatrix],
        loaded: &mut HashMap<String, Restored>,
    ) -> Result<Vec<(String, Vec<usize>, Calibrated)>, ConvertError> {
        let mut out = Vec::new();
        for (index, named) in names.iter().enumerate() {
            if let Some(restored) = loaded.remove(&named.name) {
                self.arithmetic.stand_in(restored.weights, stage, index)?;
                let shape = vec![named.rows, named.cols];
                out.push((named.name.clone(), shape, restored.calibrated));
            }
        }
        Ok(out)
    }

    /// Calibrates a stage's tensors, as far as that is wanted; they come with their shapes.
    fn calibrated(
        &mut self,
        layer: usize,
        stage: Stage,
        names: &[NamedMatrix],
    ) -> Result<Vec<(String, Vec<usize>, Calibrated)>, ConvertError> {
        let checkpoint = self.task.checkpoint;
        let matrices = self.decoder.stage_matrices(layer, stage);
        let wanted = |n: &NamedMatrix| self.methods.get(n.name.as_str()).copied();
        if !names.iter().any(|named| wanted(named).is_some()) {
            return Ok(Vec::new());
        }
        let inputs = self.arithmetic.factorize(stage)?;
        let inputs = inputs.ok_or_else(|| not_finite(checkpoint, &names[0]))?;
        let mut out = Vec::new();
        for (index, (named, matrix)) in names.iter().zip(matrices).enumerate() {
            let Some(method) = wanted(named) else {
                continue;
            };
            let w = dequantized(matrix);
            let located = |failure| located(checkpoint, named, failure);
            let storage = Storage::of(method, &w, matrix.cols);
            let Some(storage) = storage.map_err(|e| located(e.into()))? else {
                continue;
            };
            let problem = Problem {
                name: &named.name,
                inputs: &inputs,
                storage,
                method: self.task.method,
                stage,
                index,
            };
            let calibrated = problem.solve(&mut *self.arithmetic, w).map_err(located)?;
            let shape = vec![matrix.rows, matrix.cols];
            out.push((named.name.clone(), shape, calibrated));
        }
        Ok(out)
    }
}

/// Says that what a stage reads is not finite, by the first of its matrices.
pub(super) fn not_finite(checkpoint: &Checkpoint, named: &NamedMatrix) -> ConvertError {
    ConvertError::Calibration {
        path: checkpoint.path().to_path_buf(),
        problem: format!(
            "the inputs of {} are not finite on the calibration text",
            named.name
        ),
    }
}

/// Says of a failure in which tensor it is.
pub(super) fn located(
    checkpoint: &Checkpoint,
    named: &NamedMatrix,
    failure: Failure,
) -> ConvertError {
    match (failure, checkpoint.tensor(&named.name)) {
        (Failure::Device(error), _) => error,
        (Failure::Quantize(error), Some(tensor)) => not_quantized(checkpoint, tensor, error),
        (Failure::Quantize(error), None) => ConvertError::Calibration {
            path: checkpoint.path().to_path_buf(),
            problem: format!("tensor {:?}: {error:?}", named.name),
        },
    }
}

/// A matrix in f32, `[rows, in]`.
pub(super) fn dequantized(matrix: &Matrix<'_>) -> Vec<f32> {
    /// Rows that one task widens.
    const TASK_ROWS: usize = 64;
    let mut w = vec![0.0; matrix.rows * matrix.cols];
    let tasks = w.par_chunks_mut(TASK_ROWS * matrix.cols).enumerate();
    tasks.for_each(|(task, out)| {
        let first = task * TASK_ROWS;
        matrix.dequantize(first..first + out.len() / matrix.cols, out);
    });
    w
}

/// The matrices of a stage.
pub(super) fn stage_names(names: &LayerNames, stage: Stage) -> &[NamedMatrix] {
    match stage {
        Stage::Qkv => &names.qkv,
        Stage::O => std::slice::from_ref(&names.o),
        Stage::GateUp => &names.gate_up,
        Stage::Down => std::slice::from_ref(&names.down),
    }
}
