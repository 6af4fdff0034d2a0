//! The error-statistics section: what quantization did to each tensor and to the whole model,
//! readable without the weights.
//!
//! Its bytes are bincode 1's wire format, specified field by field in `spec/format.md`.

mod check;
mod wire;

use wincode::{SchemaRead, SchemaWrite};

use crate::error::Defect;

/// Largest statistics section a reader accepts.
pub const MAX_STATISTICS_BYTES: u64 = 64 << 20;
/// Versions of the section's layout, in the order in which they came.
pub const STATISTICS_VERSIONS: [u32; 2] = [1, 2];
/// Length of [`TensorStatistics::exponent_counts`]: one more than E5Mx's window.
pub const EXPONENT_BUCKETS: usize = 32;
/// Row blocks of [`TensorStatistics::row_blocks`]: at most this many.
pub const MAX_ROW_BLOCKS: usize = 64;
/// [`Statistics::receipts`]: at most this many.
pub const MAX_RECEIPTS: usize = 64;

/// Statistics of every quantized tensor, in index order, and of the model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Statistics {
    /// The records of the quantized tensors, in index order.
    pub tensors: Vec<TensorStatistics>,
    /// How far the model is from the one that was not quantized, a text each.
    pub receipts: Vec<Receipt>,
}

/// How far the model's predictions on a text are from those of the model that was not quantized.
///
/// The text is cut into windows from its start, each scored alone from its second token on.
#[derive(Debug, Clone, PartialEq, SchemaRead, SchemaWrite)]
pub struct Receipt {
    /// Plain file name of the text.
    pub text: String,
    /// BLAKE3 of the whole text.
    pub blake3: [u8; 32],
    /// Tokens of a window, each of which is a sequence of its own.
    pub window: u64,
    /// Tokens whose prediction was compared.
    pub tokens_scored: u64,
    /// Mean Kullback-Leibler divergence of the next token's distribution, nats.
    pub mean_kl: f64,
    /// Standard error of that mean.
    pub kl_stderr: f64,
    /// Perplexity of the model in the file.
    pub perplexity: f64,
    /// Perplexity of the model that was not quantized.
    pub base_perplexity: f64,
    /// Share of the tokens where both models' most likely one is the same.
    pub top1_agreement: f64,
}

/// What quantization did to one tensor.
#[derive(Debug, Clone, PartialEq, SchemaRead, SchemaWrite)]
pub struct TensorStatistics {
    /// The tensor's name in the index.
    pub name: String,
    /// Groups, as [`Scheme::groups`](crate::Scheme::groups) counts them.
    pub groups: u64,
    /// Groups whose weights are all zero.
    pub zero_groups: u64,
    /// Non-zero scales under the window (or under the smallest normal f16).
    pub under_window: u64,
    /// Weights whose quotient, rounded, was outside -8..=7 (`fp8-e4m3`: over 448; `nf4-dq`: none).
    pub clipped: u64,
    /// The tensor as stored.
    pub stored: ErrorSummary,
    /// The same quantizer with exact f32 scales (`nf4-dq`: absmax values), so that the difference
    /// is the scale format's cost.
    pub exact: ErrorSummary,
    /// Exponent (floor of log2 of the magnitude) that `exponent_counts[0]` counts.
    pub first_exponent: i16,
    /// Non-zero stored scales by exponent: [`EXPONENT_BUCKETS`] counts that ascend from
    /// `first_exponent` to the largest exponent present; the first also counts every smaller one.
    pub exponent_counts: Vec<u64>,
    /// Rows a block; the last block may have fewer.
    pub block_rows: u64,
    /// Mean relative MSE over the groups of each block of rows, at most [`MAX_ROW_BLOCKS`] blocks.
    pub row_blocks: Vec<f32>,
    /// What became of the tensor's outputs where it was calibrated; version 1 has none.
    #[wincode(skip)]
    pub output: Option<OutputError>,
}

/// Squared errors of a tensor's outputs on the calibration data, against what the unquantized
/// tensor gives in the unquantized model, over the squares of that: `|V y - W x|^2 / |W x|^2`.
#[derive(Debug, Clone, Copy, PartialEq, SchemaRead, SchemaWrite)]
pub struct OutputError {
    /// The error of rounding to nearest.
    pub rounded: f64,
    /// The error of the codes and scales that the file holds.
    pub stored: f64,
    /// Rounding to nearest is what is stored, since calibration did no better.
    pub is_rounded: bool,
}

/// Error figures over the groups of a tensor (`spec/method.md`, "Statistics").
#[derive(Debug, Clone, Copy, PartialEq, Default, SchemaRead, SchemaWrite)]
pub struct ErrorSummary {
    /// Mean over groups of the relative MSE.
    pub mean_rel_mse: f64,
    /// 50th, 90th, 99th and 99.9th percentile over groups of the relative MSE (nearest rank).
    pub percentiles_rel_mse: [f32; 4],
    /// Maximum over groups of the relative MSE.
    pub max_rel_mse: f32,
    /// Mean over groups of the cosine similarity.
    pub mean_cosine: f64,
    /// Sum over all elements of `(w - w')^2`.
    pub squared_error: f64,
    /// Sum over all elements of `w^2`.
    pub squared_weight: f64,
}

/// Which percentiles [`ErrorSummary::percentiles_rel_mse`] holds, in per mille.
pub const PERCENTILES_PER_MILLE: [u32; 4] = [500, 900, 990, 999];

impl ErrorSummary {
    /// Signal to quantization-noise ratio of the whole tensor in dB; infinite where there is no
    /// error.
    pub fn sqnr_db(&self) -> f64 {
        if self.squared_error == 0.0 {
            return f64::INFINITY;
        }
        10.0 * (self.squared_weight / self.squared_error).log10()
    }
}

impl Statistics {
    /// The layout that the section has: the oldest that holds what there is, so that older readers
    /// read all that they can.
    pub fn version(&self) -> u32 {
        let has_output = self.tensors.iter().any(|t| t.output.is_some());
        STATISTICS_VERSIONS[usize::from(has_output || !self.receipts.is_empty())]
    }

    /// The section's bytes.
    ///
    /// # Errors
    /// [`Defect::Statistics`] where they would be more than the format holds.
    pub fn encode(&self) -> Result<Vec<u8>, Defect> {
        wire::encode(self).map_err(defect)
    }

    /// Decodes a section of exactly `bytes`, of any version.
    ///
    /// # Errors
    /// [`Defect::Statistics`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Defect> {
        wire::decode(bytes)
    }

    /// The record of a tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorStatistics> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

fn defect(error: impl std::fmt::Display) -> Defect {
    Defect::Statistics {
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
