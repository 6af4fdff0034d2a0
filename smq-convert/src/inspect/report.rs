//! Everything `smq-inspect` reports, as one structure. Its serde form is what `--json` prints.
//!
//! Units are in the field names: `_bytes`, `_elems`, `_percent`, `_db`; `*_rel_mse` is the relative
//! mean squared error of groups, `sum((w - w')^2) / sum(w^2)`, without unit; hashes are BLAKE3 in
//! hex. A value that does not exist (a raw tensor's errors, the SQNR in dB of a tensor without
//! error) is `null`, and a number is never a string. A field may be added in the same
//! `report_version`; a field that changes meaning or goes raises it.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::{Number, Value};

/// Version of the JSON form.
pub(super) const REPORT_VERSION: u32 = 2;

/// Everything that is known of a file without reading its weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Version of the JSON form, 2.
    pub report_version: u32,
    /// The file, as it was named.
    pub path: String,
    /// What its header says.
    pub header: HeaderReport,
    /// Who made it, how, and from what.
    pub provenance: ProvenanceReport,
    /// The checkpoint's files that are inside it.
    pub embedded_files: Vec<EmbeddedFileReport>,
    /// Where its bytes go.
    pub sizes: SizeReport,
    /// How many tensors are stored how, most bytes first.
    pub schemes: Vec<SchemeCount>,
    /// Whether there are error statistics.
    pub statistics: StatisticsState,
    /// Figures over all tensors with statistics; `null` without any.
    pub totals: Option<Totals>,
    /// Output errors over all calibrated tensors; `null` where none is.
    pub output_errors: Option<OutputTotals>,
    /// How far the model is from the unquantized one, a text each.
    pub receipts: Vec<ReceiptReport>,
    /// Every tensor, in file order.
    pub tensors: Vec<TensorReport>,
}

/// Output errors over the calibrated tensors: of `|V y - W x|^2 / |W x|^2` on the calibration text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputTotals {
    /// Number of calibrated tensors.
    pub tensors: usize,
    /// Those that are stored rounded to nearest, since calibration did no better.
    pub rounded_tensors: usize,
    /// Median over tensors by rounding to nearest (nearest rank, as the others).
    pub median_rounded: f64,
    /// Median over tensors as stored.
    pub median_stored: f64,
    /// Maximum over tensors by rounding to nearest.
    pub max_rounded: f64,
    /// Maximum over tensors as stored.
    pub max_stored: f64,
}

/// A text on which the model was compared with the unquantized one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReceiptReport {
    /// Plain file name of the text.
    pub text: String,
    /// BLAKE3 of it, 64 hex digits.
    pub blake3: String,
    /// Tokens of a window, each of which is a sequence of its own.
    pub window_tokens: u64,
    /// Tokens whose prediction was compared.
    pub tokens_scored: u64,
    /// Mean Kullback-Leibler divergence from the unquantized model.
    pub mean_kl_nats: f64,
    /// Standard error of that mean.
    pub kl_stderr_nats: f64,
    /// Perplexity of the model in the file.
    pub perplexity: f64,
    /// Perplexity of the model that was not quantized.
    pub base_perplexity: f64,
    /// Share of tokens where both models' most likely one is the same.
    pub top1_agreement_percent: f64,
}

/// What the header says, with the places of what it points to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeaderReport {
    /// Format version, such as `1.0`.
    pub version: String,
    /// Length of the file.
    pub file_bytes: u64,
    /// Where the index is.
    pub index: SectionReport,
    /// The error statistics; `null` where there are none.
    pub statistics: Option<SectionReport>,
    /// Feature bits a reader must know, in hex (`0x0`).
    pub incompatible_feature_bits: String,
    /// Feature bits a reader may ignore, in hex.
    pub compatible_feature_bits: String,
}

/// A section of the file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SectionReport {
    /// Bytes from the start of the file.
    pub offset_bytes: u64,
    /// Length of the section in bytes.
    pub length_bytes: u64,
    /// BLAKE3, 64 hex digits.
    pub blake3: String,
}

/// Who made the file, how, and from what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProvenanceReport {
    /// Name and version of the program that wrote the file.
    pub producer: String,
    /// The parameters that decide the bytes. The file has them as text; JSON has those that are
    /// numbers as numbers.
    #[serde(serialize_with = "with_numbers")]
    pub parameters: BTreeMap<String, String>,
    /// Files it was made from.
    pub sources: Vec<SourceReport>,
}

/// A file that the tensors were made from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceReport {
    /// Plain file name, without a directory.
    pub name: String,
    /// Length of the file in bytes.
    pub length_bytes: u64,
    /// BLAKE3, 64 hex digits.
    pub blake3: String,
}

/// A file of the checkpoint that is inside the .smq file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EmbeddedFileReport {
    /// Plain file name, or one behind the name of a directory.
    pub name: String,
    /// Where in the .smq file it is.
    #[serde(flatten)]
    pub section: SectionReport,
}

/// Where the bytes go. `header_bytes` to `padding_bytes` add up to `file_bytes`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SizeReport {
    /// Bytes of the whole file.
    pub file_bytes: u64,
    /// All tensors, in the dtype they had in the checkpoint.
    pub source_tensor_bytes: u64,
    /// How much of `source_tensor_bytes` the `file_bytes` are.
    pub file_of_source_percent: Option<f64>,
    /// Bytes of the header.
    pub header_bytes: u64,
    /// Codes of quantized weights: int4, NF4 or FP8.
    pub nibble_bytes: u64,
    /// Scales, with the zero tails of int4's; of NF4 absmax codes and nested absmax.
    pub scale_bytes: u64,
    /// Tensors stored as they were.
    pub raw_bytes: u64,
    /// Bytes of the embedded files.
    pub embedded_bytes: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Bytes of the error statistics.
    pub statistics_bytes: u64,
    /// Zeros that align the blobs.
    pub padding_bytes: u64,
    /// Elements of quantized tensors.
    pub quantized_elems: u64,
    /// Elements of all tensors.
    pub total_elems: u64,
    /// Codes and scales in bits, over `quantized_elems`.
    pub bits_per_quantized_weight: Option<f64>,
    /// The whole file in bits, over `total_elems`.
    pub bits_per_weight_in_file: Option<f64>,
    /// What the scale streams would take with f16 scales.
    pub scale_f16_bytes: u64,
    /// How much smaller `scale_bytes` is than `scale_f16_bytes`; negative where it is larger.
    pub scale_savings_vs_f16_percent: Option<f64>,
}

/// Tensors stored in the same way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SchemeCount {
    /// Scheme in the index, such as `int4-e5mx`.
    pub scheme: String,
    /// Scale format, such as `e5m5`; `dq8` for the double quantization of NF4, `null` for `raw`.
    pub scale_format: Option<String>,
    /// Bits of a stored scale, for NF4 of an absmax code; `null` for `raw`.
    pub scale_bits: Option<u32>,
    /// Elements that share a scale; `null` for `raw`, and for FP8, whose rows do.
    pub group_elems: Option<usize>,
    /// Stored element type; `null` unless `raw`.
    pub dtype: Option<String>,
    /// How many tensors are stored so.
    pub tensors: usize,
    /// Elements of these tensors together.
    pub elems: u64,
    /// Bytes of their blobs, without padding.
    pub stored_bytes: u64,
}

/// Whether a file has error statistics.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum StatisticsState {
    /// They are there and intact.
    Present,
    /// The file carries none.
    Absent,
    /// They are there and cannot be used; the weights are not affected.
    Damaged {
        /// What is wrong, with the file's name.
        reason: String,
    },
}

/// Figures over all tensors with statistics; means are weighted by groups.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Totals {
    /// How many tensors have statistics.
    pub tensors: usize,
    /// Groups of these tensors together.
    pub groups: u64,
    /// Groups whose weights are all zero.
    pub zero_groups: u64,
    /// Non-zero scales too small for the scale format's window.
    pub under_window_scales: u64,
    /// Weights beyond the int4 range after rounding.
    pub clipped_weights: u64,
    /// `clipped_weights` of all weights of these tensors.
    pub clipped_percent: Option<f64>,
    /// Mean relative MSE, as stored.
    pub mean_rel_mse: f64,
    /// Mean relative MSE with exact f32 scales.
    pub exact_mean_rel_mse: f64,
    /// How much larger the former is than the latter.
    pub scale_format_cost_percent: Option<f64>,
    /// Largest relative MSE of a group, as stored.
    pub max_rel_mse: f32,
    /// Mean cosine similarity, as stored.
    pub mean_cosine: f64,
    /// Mean cosine similarity with exact f32 scales.
    pub exact_mean_cosine: f64,
    /// SQNR of all weights together, as stored; `null` where there is no error.
    pub sqnr_db: Option<f64>,
    /// SQNR of all weights together with exact f32 scales.
    pub exact_sqnr_db: Option<f64>,
}

/// What is known of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorReport {
    /// Name in the checkpoint.
    pub name: String,
    /// First number in the name; `null` outside the layers.
    pub layer: Option<u32>,
    /// The name with `*` for each number, without a final `.weight`.
    pub projection: String,
    /// Row-major shape, `[out, in]` for a linear layer.
    pub shape: Vec<usize>,
    /// Element type in the checkpoint.
    pub source_dtype: String,
    /// Scheme in the index.
    pub scheme: String,
    /// Scale format, such as `e5m5`; `dq8` for the double quantization of NF4, `null` for `raw`.
    pub scale_format: Option<String>,
    /// Scale rule as the provenance records it; `null` unless int4
    /// or lut4.
    pub scale_rule: Option<String>,
    /// Exponent bias of the scale format, where it has one.
    pub scale_bias: Option<i16>,
    /// Code book of `lut4-*`; absent of other schemes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub levels: Option<[i8; 16]>,
    /// Elements that share a scale; `null` for `raw`.
    pub group_elems: Option<usize>,
    /// Number of its elements.
    pub elems: u64,
    /// Groups; 0 for `raw`.
    pub groups: u64,
    /// Bytes it had in the checkpoint.
    pub source_bytes: u64,
    /// Bytes of its blobs, without padding.
    pub stored_bytes: u64,
    /// Bytes of its scale stream; 0 for `raw`.
    pub scale_bytes: u64,
    /// `stored_bytes` in bits over `elems`.
    pub bits_per_weight: Option<f64>,
    /// Where its bytes are, by what they hold.
    pub blobs: Vec<BlobReport>,
    /// What quantization did; `null` where that is not known.
    pub errors: Option<TensorErrors>,
    /// What became of its outputs; `null` where it was not calibrated.
    pub output_error: Option<OutputReport>,
}

/// Relative squared error of a tensor's outputs on the calibration text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OutputReport {
    /// The error of rounding to nearest.
    pub rounded: f64,
    /// The error of what is stored.
    pub stored: f64,
    /// Rounding to nearest is what is stored.
    pub is_rounded: bool,
}

/// A run of a tensor's bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlobReport {
    /// `data`, `nibbles` or `scales`.
    pub role: String,
    /// Where in the file it is.
    #[serde(flatten)]
    pub section: SectionReport,
}

/// What quantization did to a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorErrors {
    /// Groups whose weights are all zero.
    pub zero_groups: u64,
    /// Non-zero scales too small for the scale format's window.
    pub under_window_scales: u64,
    /// Weights beyond the int4 range after rounding.
    pub clipped_weights: u64,
    /// The tensor as stored.
    pub stored: ErrorReport,
    /// What the same quantizer does with exact f32 scales.
    pub exact: ErrorReport,
    /// How much larger the stored mean relative MSE is than the exact one.
    pub scale_format_cost_percent: Option<f64>,
    /// Exponent (floor of log2) that the first count is for.
    pub first_exponent: i16,
    /// Non-zero stored scales by exponent, ascending; the first also counts every smaller one.
    pub exponent_counts: Vec<u64>,
    /// Rows of a block in `row_block_mean_rel_mse`.
    pub block_rows: u64,
    /// Mean relative MSE of each block of rows.
    pub row_block_mean_rel_mse: Vec<f32>,
}

/// Error figures over the groups of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ErrorReport {
    /// Mean of the relative MSE.
    pub mean_rel_mse: f64,
    /// Median of the relative MSE (nearest rank, as all percentiles).
    pub p50_rel_mse: f32,
    /// 90th percentile of the relative MSE.
    pub p90_rel_mse: f32,
    /// 99th percentile of the relative MSE.
    pub p99_rel_mse: f32,
    /// 99.9th percentile of the relative MSE.
    pub p999_rel_mse: f32,
    /// Maximum of the relative MSE.
    pub max_rel_mse: f32,
    /// Mean cosine similarity of a group and what is stored of it.
    pub mean_cosine: f64,
    /// SQNR of the whole tensor; `null` where there is no error.
    pub sqnr_db: Option<f64>,
    /// Sum over the elements of `(w - w')^2`.
    pub squared_error: f64,
    /// Sum over the elements of `w^2`.
    pub squared_weight: f64,
}

/// The number that a text spells as JSON would; `None` for any other text, such as `inf` or `007`.
pub(super) fn number_of(text: &str) -> Option<Number> {
    let number = match text.parse::<i64>() {
        Ok(n) => Some(Number::from(n)),
        Err(_) => text.parse().ok().and_then(Number::from_f64),
    };
    number.filter(|number| number.to_string() == text)
}

fn with_numbers<S: Serializer>(
    parameters: &BTreeMap<String, String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(parameters.iter().map(|(name, value)| {
        let text = || Value::String(value.clone());
        (name, number_of(value).map_or_else(text, Value::Number))
    }))
}

impl TensorReport {
    /// Whether the tensor is stored as codes and scales.
    pub fn is_quantized(&self) -> bool {
        self.group_elems.is_some()
    }
}
