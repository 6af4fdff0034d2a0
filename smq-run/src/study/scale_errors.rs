//! Weights' errors by scale rule and mantissa bits, on a sample of rows of each tensor.

use anyhow::{Context, bail};
use smq_convert::{Checkpoint, QuantizeOptions, ScaleChoice, ScaleRule, SourceTensor, quantize};
use smq_format::Dtype;

use super::contract::{Contract, ScaleErrors};
use super::conversion::target;
use super::record::{ScaleErrorsRecord, TensorErrors};

/// What one line of the sweep holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// Exact f32 scales, which the others are compared with.
    Exact,
    /// E5Mx by a rule.
    Rounded {
        /// How a group's scale is chosen.
        rule: ScaleRule,
        /// Mantissa bits: the x of E5Mx.
        mantissa_bits: u32,
    },
}

impl Item {
    /// Every line of the sweep.
    #[must_use]
    pub(crate) fn all(spec: &ScaleErrors) -> Vec<Self> {
        let widths = |&rule: &ScaleRule| {
            let item = move |&mantissa_bits: &u32| Self::Rounded {
                rule,
                mantissa_bits,
            };
            spec.mantissa_bits.iter().map(item)
        };
        let rounded = spec.rules.iter().flat_map(widths);
        std::iter::once(Self::Exact).chain(rounded).collect()
    }

    /// Id of its line.
    #[must_use]
    pub(crate) fn id(&self) -> String {
        match self {
            Self::Exact => "errors/exact".to_owned(),
            Self::Rounded {
                rule,
                mantissa_bits,
            } => format!("errors/{rule}/{}", ScaleChoice::e5(*mantissa_bits)),
        }
    }
}

/// The rows that are sampled, of every tensor.
#[derive(Debug)]
pub(crate) struct Sample {
    tensors: Vec<Rows>,
}

#[derive(Debug)]
struct Rows {
    name: String,
    dtype: Dtype,
    rows: usize,
    columns: usize,
    bytes: Vec<u8>,
}

impl Sample {
    /// Reads `rows_per_tensor` rows, evenly spaced, of every tensor of the target.
    ///
    /// # Errors
    /// A checkpoint that is int4 already, or has no such tensor.
    pub(crate) fn read(checkpoint: &Checkpoint, spec: &ScaleErrors) -> anyhow::Result<Self> {
        let target = target(&spec.target).context("scale_errors.target is unknown")?;
        if checkpoint.import().is_some() {
            bail!("the checkpoint is int4 already: its scales cannot be compared with exact ones");
        }
        let of_target = |t: &&SourceTensor| target.selects(&t.name, t.shape.len()) && t.elems() > 0;
        let tensors = checkpoint.tensors().iter().filter(of_target).map(|t| {
            let (all, columns) = (t.shape[0], t.shape[1]);
            let rows = all.min(spec.rows_per_tensor);
            let source = checkpoint.bytes(t);
            let row_bytes = columns * t.dtype.bytes();
            let at = |i: usize| (i as u128 * all as u128 / rows as u128) as usize * row_bytes;
            Rows {
                name: t.name.clone(),
                dtype: t.dtype,
                rows,
                columns,
                bytes: (0..rows)
                    .flat_map(|i| &source[at(i)..at(i) + row_bytes])
                    .copied()
                    .collect(),
            }
        });
        let tensors: Vec<_> = tensors.collect();
        if tensors.is_empty() {
            bail!("no tensor of the checkpoint is of target {}", spec.target);
        }
        Ok(Self { tensors })
    }

    /// The errors of one rule and width.
    ///
    /// # Errors
    /// A weight that is not finite.
    pub(crate) fn measure(
        &self,
        contract: &Contract,
        item: &Item,
    ) -> anyhow::Result<ScaleErrorsRecord> {
        let spec = &contract.scale_errors;
        let (name, rule, mantissa_bits) = match *item {
            Item::Exact => ("exact", ScaleRule::Reference, None),
            Item::Rounded {
                rule,
                mantissa_bits,
            } => (rule.name(), rule, Some(mantissa_bits)),
        };
        let scales = mantissa_bits.map_or(ScaleChoice::F32, ScaleChoice::e5);
        let group = contract.quantization.group;
        let options = QuantizeOptions {
            group,
            scales,
            rule,
        };
        let errors = |t: &Rows| {
            let shape = (t.rows, t.columns);
            quantize(&t.name, &t.bytes, t.dtype, shape, &options)
                .map(|q| TensorErrors {
                    // The line of exact scales has them.
                    exact: None,
                    ..TensorErrors::from(&q.statistics)
                })
                .map_err(|e| anyhow::anyhow!("tensor {}: cannot be quantized: {e:?}", t.name))
        };
        Ok(ScaleErrorsRecord {
            rule: name.to_owned(),
            mantissa_bits,
            group,
            target: spec.target.clone(),
            rows_per_tensor: spec.rows_per_tensor,
            tensors: self.tensors.iter().map(errors).collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests;
