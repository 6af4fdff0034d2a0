//! What a method does to the tensors of a checkpoint: those that are int4 already keep their
//! integers, unless these are to be made anew.

mod scales;

use smq_format::Dtype;

pub use scales::{ScaleChange, exact_scales, scale_change};

use crate::error::ConvertError;
use crate::import::Grouping;
use crate::quantize::{Method, QuantizeError, Quantized, ScaleRule, keep};
use crate::source::Checkpoint;
use crate::tensor::SourceTensor;

/// Refuses a method that a checkpoint cannot be given.
///
/// # Errors
/// An option out of range, or one that would change integers that are kept.
/// Refuses a rule that weights alone do not decide, where nothing is calibrated.
pub(crate) fn check_rule(rule: ScaleRule) -> Result<(), ConvertError> {
    match ScaleRule::OF_WEIGHTS.contains(&rule) {
        true => Ok(()),
        false => Err(ConvertError::Option {
            option: "--scale-rule",
            value: rule.to_string(),
            rule: "weighs errors by what a calibration text says of the inputs: give one with \
                   --calibrate, or take another rule"
                .to_owned(),
        }),
    }
}

pub(crate) fn check_options(checkpoint: &Checkpoint, method: Method) -> Result<(), ConvertError> {
    let wrong = |option, value, rule| {
        Err(ConvertError::Option {
            option,
            value,
            rule,
        })
    };
    let import = checkpoint.import().filter(|_| checkpoint.keeps_codes());
    if let (Some(import), Method::Lut4 { .. } | Method::Nf4 | Method::Fp8) = (import, method) {
        let rule = format!(
            "the checkpoint is int4 ({}), and its integers are kept; pass --requantize to \
             quantize its dequantized weights anew",
            import.form
        );
        return wrong("--scheme", method.family().to_string(), rule);
    }
    let Some(options) = method.options() else {
        return Ok(());
    };
    let range = smq_format::scheme::GROUP_RANGE;
    if !range.contains(&options.group) {
        let rule = format!("must be {} to {}", range.start(), range.end());
        return wrong("--group-size", options.group.to_string(), rule);
    }
    let Some(import) = import else {
        return Ok(());
    };
    if let Grouping::Runs(group) = import.grouping
        && options.group != group
    {
        let rule = format!(
            "the checkpoint's integers have groups of {group}, and are kept; pass --requantize to \
             make new ones"
        );
        return wrong("--group-size", options.group.to_string(), rule);
    }
    match options.rule {
        ScaleRule::Reference | ScaleRule::Nearest => Ok(()),
        rule @ (ScaleRule::Search | ScaleRule::Signed | ScaleRule::Weighted) => wrong(
            "--scale-rule",
            rule.to_string(),
            "chooses scales and integers together, and the checkpoint's integers are kept; pass \
             --requantize, or use reference or nearest"
                .to_owned(),
        ),
    }
}

/// Quantizes a matrix of the checkpoint, or keeps the integers of one that is int4 already.
pub(crate) fn quantize_tensor(
    checkpoint: &Checkpoint,
    tensor: &SourceTensor,
    method: Method,
) -> Result<Quantized, QuantizeError> {
    let shape = (tensor.shape[0], tensor.shape[1]);
    let name = &tensor.name;
    match (checkpoint.packed(tensor), method) {
        (None, _) => method.quantize(name, checkpoint.bytes(tensor), tensor.dtype, shape),
        (Some(view), Method::Int4(options)) if checkpoint.keeps_codes() => {
            keep(name, shape, &options, |rows, nibbles, scales| {
                view.fill(rows, nibbles, scales);
            })
        }
        (Some(view), Method::Int4(_) | Method::Lut4 { .. } | Method::Nf4 | Method::Fp8) => {
            method.quantize(name, &view.to_f32_bytes(), Dtype::F32, shape)
        }
    }
}

/// Says of an error in which tensor of which file it is.
pub(crate) fn not_quantized(
    checkpoint: &Checkpoint,
    tensor: &SourceTensor,
    error: QuantizeError,
) -> ConvertError {
    let path = checkpoint.file_of(tensor).to_path_buf();
    let tensor = tensor.name.clone();
    match error {
        QuantizeError::NotFinite { row, column, value } => ConvertError::NotFinite {
            path,
            tensor,
            row,
            column,
            value,
        },
        QuantizeError::ScaleOverflow(scale) => ConvertError::ScaleOverflow {
            path,
            tensor,
            scale,
        },
    }
}
