//! What each scale width costs a tensor's outputs on the calibration text, in place of its weights.

use std::collections::HashMap;
use std::path::Path;

use smq_format::scale::MAX_MANTISSA_BITS;

use super::measure::{Curve, Measured};
use super::{AutoOptions, ChooseBy};
use crate::apply::{not_quantized, quantize_tensor};
use crate::calibrate::{CalibrationProgress, Outputs, Prepared, SEARCHED_MANTISSA_BITS};
use crate::error::ConvertError;
use crate::plan::stored_bytes;
use crate::quantize::{Method, QuantizeOptions, ScaleChoice, ScaleRule};
use crate::source::Checkpoint;
use crate::tensor::SourceTensor;

/// Tensors measured by their outputs.
pub(super) struct OfOutputs {
    /// In the order of the tensors; errors are of outputs.
    pub curves: Vec<Curve>,
    /// By tensor, what turns the cost of a unit of its weights' squared error into that of its
    /// outputs'.
    pub factors: Vec<f64>,
}

/// Measures `tensors` with the given rule, or with `weighted`.
///
/// # Errors
/// A tensor that is no product of a layer, activations or weights that are not finite, `progress`
/// returning false.
pub(super) fn measure(
    checkpoint: &Checkpoint,
    options: &AutoOptions,
    tensors: &[&SourceTensor],
    prepared: &Prepared,
    directory: &Path,
    progress: CalibrationProgress,
) -> Result<OfOutputs, ConvertError> {
    let products = prepared.products();
    if let Some(other) = tensors.iter().find(|t| !products.contains(&t.name)) {
        return Err(unmeasured(other));
    }
    let candidates = candidates(options);
    let mut asked = candidates.clone();
    if options.sensitivity.is_some() {
        asked.push(anchor(options));
    }
    let asked: HashMap<&str, _> = tensors
        .iter()
        .map(|t| (t.name.as_str(), asked.clone()))
        .collect();
    let mut found = prepared.outputs(checkpoint, &asked, directory, progress)?;
    let mut out = OfOutputs {
        curves: Vec::new(),
        factors: Vec::new(),
    };
    for tensor in tensors {
        let outputs = found
            .remove(&tensor.name)
            .ok_or_else(|| unmeasured(tensor))?;
        let mut curve = Curve {
            widths: Vec::new(),
            raw_bytes: tensor.range.len() as u64,
            squared_whole: outputs.whole,
        };
        for (options, error) in candidates.iter().zip(&outputs.errors) {
            curve.widths.push(Measured {
                options: *options,
                bytes: stored_bytes(checkpoint, tensor, Method::Int4(*options))?,
                squared_error: *error,
            });
        }
        out.factors.push(match options.sensitivity {
            Some(_) => anchored(checkpoint, tensor, anchor(options), &outputs)?,
            None => relative(outputs.whole),
        });
        out.curves.push(curve);
    }
    Ok(out)
}

fn unmeasured(tensor: &SourceTensor) -> ConvertError {
    ConvertError::Option {
        option: "--choose-by",
        value: ChooseBy::Outputs.name().to_owned(),
        rule: format!(
            "tensor {:?} is no product of a layer, so that a calibration text says nothing of it; \
             choose a --target without it, or pass --choose-by weights",
            tensor.name
        ),
    }
}

/// Mantissa bits of the widest scales that are worth their bytes: `weighted` looks at no finer
/// steps from some width on, so that wider scales would be the same ones.
pub(super) fn most_mantissa_bits(rule: ScaleRule) -> u32 {
    match rule {
        ScaleRule::Weighted => SEARCHED_MANTISSA_BITS,
        ScaleRule::Reference | ScaleRule::Nearest | ScaleRule::Search | ScaleRule::Signed => {
            MAX_MANTISSA_BITS
        }
    }
}

/// Storage that is tried of each tensor, by mantissa bits.
fn candidates(options: &AutoOptions) -> Vec<QuantizeOptions> {
    let rule = options.rule.unwrap_or(ScaleRule::Weighted);
    let of_width = |mantissa_bits| QuantizeOptions {
        group: options.group,
        scales: ScaleChoice::e5(mantissa_bits),
        rule,
    };
    (0..=most_mantissa_bits(rule)).map(of_width).collect()
}

/// Storage such as a sensitivity is measured with, where both errors are looked at.
fn anchor(options: &AutoOptions) -> QuantizeOptions {
    QuantizeOptions {
        group: options.group,
        scales: ScaleChoice::e5(5),
        rule: ScaleRule::Reference,
    }
}

/// One over `whole`, so that errors count relative to it. Outputs that are all zero have no error.
fn relative(whole: f64) -> f64 {
    1.0 / whole.max(f64::MIN_POSITIVE)
}

/// The squared error of the weights over that of the outputs, in the storage that a sensitivity is
/// measured with: there a tensor then costs what was measured, and elsewhere what its outputs say.
fn anchored(
    checkpoint: &Checkpoint,
    tensor: &SourceTensor,
    anchor: QuantizeOptions,
    outputs: &Outputs,
) -> Result<f64, ConvertError> {
    let quantized = quantize_tensor(checkpoint, tensor, Method::Int4(anchor))
        .map_err(|error| not_quantized(checkpoint, tensor, error))?;
    // The anchor was asked for behind the candidates.
    Ok(match outputs.errors.last() {
        Some(error) if *error > 0.0 => quantized.statistics.stored.squared_error / error,
        // Where outputs do not change nothing was lost, whatever became of the weights.
        Some(_) | None => 0.0,
    })
}
