//! What a file says of itself, as structures that become dictionaries in Python. Their keys are
//! those of `smq-inspect --json`; `smq_format/_types.py` describes them.

use std::collections::BTreeMap;

use pyo3::IntoPyObject;
use smq_format::scale::ScaleFormat;
use smq_format::statistics::{ErrorSummary, OutputError, Receipt, TensorStatistics};
use smq_format::{Scheme, SmqFile, TensorView};

#[derive(IntoPyObject)]
pub(crate) struct FileInfo {
    format_version: String,
    file_bytes: usize,
    has_statistics: bool,
    producer: String,
    parameters: BTreeMap<String, String>,
    sources: Vec<Source>,
    files: Vec<Source>,
}

#[derive(IntoPyObject)]
struct Source {
    name: String,
    length_bytes: u64,
    blake3: String,
}

impl FileInfo {
    pub(crate) fn of(file: &SmqFile) -> Self {
        let (header, index) = (file.header(), file.index());
        let provenance = &index.provenance;
        let sources = provenance.sources.iter();
        let files = index.files.iter();
        FileInfo {
            format_version: format!("{}.{}", header.version.0, header.version.1),
            file_bytes: file.bytes().len(),
            has_statistics: header.statistics.length > 0,
            producer: provenance.producer.clone(),
            parameters: provenance.parameters.clone(),
            sources: sources
                .map(|f| Source::new(&f.name, f.length, &f.blake3))
                .collect(),
            files: files
                .map(|f| Source::new(&f.name, f.length, &f.blake3))
                .collect(),
        }
    }
}

impl Source {
    fn new(name: &str, length_bytes: u64, blake3: &[u8]) -> Self {
        let name = name.to_owned();
        Source {
            name,
            length_bytes,
            blake3: hex(blake3),
        }
    }
}

fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(IntoPyObject)]
pub(crate) struct TensorInfo {
    name: String,
    shape: Vec<usize>,
    scheme: &'static str,
    dtype: Option<&'static str>,
    source_dtype: &'static str,
    scale_format: Option<String>,
    scale_bias: Option<i16>,
    nf4_offset: Option<f32>,
    group_elems: Option<usize>,
    elems: usize,
    stored_bytes: u64,
    blobs: Vec<&'static str>,
}

impl TensorInfo {
    pub(crate) fn of(view: &TensorView) -> Self {
        let entry = view.entry();
        let (scale_format, scale_bias) = match entry.scheme {
            Scheme::Raw(_) => (None, None),
            Scheme::Int4 { scales, .. } | Scheme::Lut4 { scales, .. } => {
                let bias = match scales {
                    ScaleFormat::Mini(mini) => Some(mini.bias()),
                    ScaleFormat::F16 | ScaleFormat::F32 => None,
                };
                (Some(scales.to_string()), bias)
            }
            Scheme::Nf4 { .. } => (Some("dq8".to_owned()), None),
            Scheme::Fp8 => (Some("f32".to_owned()), None),
        };
        let (dtype, nf4_offset) = match entry.scheme {
            Scheme::Raw(dtype) => (Some(dtype.name()), None),
            Scheme::Nf4 { offset_bits } => (None, Some(f32::from_bits(offset_bits))),
            Scheme::Int4 { .. } | Scheme::Lut4 { .. } | Scheme::Fp8 => (None, None),
        };
        TensorInfo {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            scheme: entry.scheme.name(),
            dtype,
            source_dtype: entry.source_dtype.name(),
            scale_format,
            scale_bias,
            nf4_offset,
            group_elems: entry.scheme.group(view.matrix_shape().1),
            elems: entry.elems(),
            stored_bytes: entry.stored_bytes(),
            blobs: entry.blobs.iter().map(|blob| blob.role.name()).collect(),
        }
    }
}

#[derive(IntoPyObject)]
pub(crate) struct Errors {
    groups: u64,
    zero_groups: u64,
    under_window_scales: u64,
    clipped_weights: u64,
    stored: Figures,
    exact: Figures,
    first_exponent: i16,
    exponent_counts: Vec<u64>,
    block_rows: u64,
    row_block_mean_rel_mse: Vec<f32>,
    output_error: Option<OutputFigures>,
}

#[derive(IntoPyObject)]
struct Figures {
    mean_rel_mse: f64,
    p50_rel_mse: f32,
    p90_rel_mse: f32,
    p99_rel_mse: f32,
    p999_rel_mse: f32,
    max_rel_mse: f32,
    mean_cosine: f64,
    sqnr_db: f64,
    squared_error: f64,
    squared_weight: f64,
}

#[derive(IntoPyObject)]
struct OutputFigures {
    rounded: f64,
    stored: f64,
    is_rounded: bool,
}

impl From<&TensorStatistics> for Errors {
    fn from(t: &TensorStatistics) -> Self {
        Errors {
            groups: t.groups,
            zero_groups: t.zero_groups,
            under_window_scales: t.under_window,
            clipped_weights: t.clipped,
            stored: Figures::from(&t.stored),
            exact: Figures::from(&t.exact),
            first_exponent: t.first_exponent,
            exponent_counts: t.exponent_counts.clone(),
            block_rows: t.block_rows,
            row_block_mean_rel_mse: t.row_blocks.clone(),
            output_error: t.output.as_ref().map(OutputFigures::from),
        }
    }
}

impl From<&ErrorSummary> for Figures {
    fn from(s: &ErrorSummary) -> Self {
        let [p50_rel_mse, p90_rel_mse, p99_rel_mse, p999_rel_mse] = s.percentiles_rel_mse;
        Figures {
            mean_rel_mse: s.mean_rel_mse,
            p50_rel_mse,
            p90_rel_mse,
            p99_rel_mse,
            p999_rel_mse,
            max_rel_mse: s.max_rel_mse,
            mean_cosine: s.mean_cosine,
            sqnr_db: s.sqnr_db(),
            squared_error: s.squared_error,
            squared_weight: s.squared_weight,
        }
    }
}

impl From<&OutputError> for OutputFigures {
    fn from(o: &OutputError) -> Self {
        OutputFigures {
            rounded: o.rounded,
            stored: o.stored,
            is_rounded: o.is_rounded,
        }
    }
}

#[derive(IntoPyObject)]
pub(crate) struct ReceiptInfo {
    text: String,
    blake3: String,
    window_tokens: u64,
    tokens_scored: u64,
    mean_kl_nats: f64,
    kl_stderr_nats: f64,
    perplexity: f64,
    base_perplexity: f64,
    top1_agreement_percent: f64,
}

impl From<&Receipt> for ReceiptInfo {
    fn from(r: &Receipt) -> Self {
        ReceiptInfo {
            text: r.text.clone(),
            blake3: hex(&r.blake3),
            window_tokens: r.window,
            tokens_scored: r.tokens_scored,
            mean_kl_nats: r.mean_kl,
            kl_stderr_nats: r.kl_stderr,
            perplexity: r.perplexity,
            base_perplexity: r.base_perplexity,
            top1_agreement_percent: 100.0 * r.top1_agreement,
        }
    }
}
