//! What each scale width costs a tensor: it is quantized with every one, and the file's own
//! statistics say.

use smq_format::scale::MAX_MANTISSA_BITS;

use crate::apply::{not_quantized, quantize_tensor};
use crate::error::ConvertError;
use crate::quantize::{Method, QuantizeOptions, ScaleChoice, ScaleRule};
use crate::source::Checkpoint;
use crate::tensor::SourceTensor;

/// Rules that are tried where none is asked for. `reference` differs from `nearest` only at E5M0,
/// where it truncates. `search` lowers the squared error by clipping large weights, which costs
/// more divergence than that error says (results/quality/README.md).
const RULES: [ScaleRule; 2] = [ScaleRule::Nearest, ScaleRule::Signed];

/// A tensor with E5Mx scales of one width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measured {
    /// How: the rule with the least squared error.
    pub options: QuantizeOptions,
    /// Bytes of its blobs.
    pub bytes: u64,
    /// `sum (w - w')^2` over all elements.
    pub squared_error: f64,
}

/// A tensor with scales of every width.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Curve {
    /// Errors by mantissa bits, from 0 on.
    pub widths: Vec<Measured>,
    /// Bytes as the checkpoint has it.
    pub raw_bytes: u64,
    /// What errors are compared with: `sum w^2` over all elements.
    pub squared_whole: f64,
}

/// How often a tensor is quantized to measure it.
#[must_use]
pub(super) fn passes(rule: Option<ScaleRule>) -> u64 {
    let rules = rule.map_or(RULES.len(), |_| 1);
    rules as u64 * (u64::from(MAX_MANTISSA_BITS) + 1)
}

/// Measures a tensor with `rule`, or with the best of the default ones; `goes_on` is asked after
/// each pass over it.
///
/// # Errors
/// A weight that is not finite; `goes_on` returning false.
pub(super) fn measure(
    checkpoint: &Checkpoint,
    tensor: &SourceTensor,
    group: usize,
    rule: Option<ScaleRule>,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Curve, ConvertError> {
    let rules = rule.as_ref().map_or(&RULES[..], std::slice::from_ref);
    let mut curve = Curve {
        widths: Vec::new(),
        raw_bytes: tensor.range.len() as u64,
        squared_whole: 0.0,
    };
    for mantissa_bits in 0..=MAX_MANTISSA_BITS {
        let mut best: Option<Measured> = None;
        for &rule in rules {
            let options = QuantizeOptions {
                group,
                scales: ScaleChoice::e5(mantissa_bits),
                rule,
            };
            let quantized = quantize_tensor(checkpoint, tensor, Method::Int4(options))
                .map_err(|error| not_quantized(checkpoint, tensor, error))?;
            let stored = quantized.statistics.stored;
            curve.squared_whole = stored.squared_weight;
            if best.is_none_or(|best| stored.squared_error < best.squared_error) {
                best = Some(Measured {
                    options,
                    bytes: quantized.blobs.iter().map(|b| b.len() as u64).sum(),
                    squared_error: stored.squared_error,
                });
            }
            if !goes_on() {
                return Err(ConvertError::Interrupted);
            }
        }
        curve.widths.extend(best);
    }
    Ok(curve)
}
