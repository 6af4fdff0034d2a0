//! What will become of each tensor, and how large the file will be, before any weight is read.

use smq_format::index::{Blob, FileEntry, align};
use smq_format::scale::{MiniFloat, ScaleFormat};
use smq_format::statistics::{
    EXPONENT_BUCKETS, ErrorSummary, MAX_ROW_BLOCKS, OutputError, TensorStatistics,
};
use smq_format::{Index, Levels, Provenance, Scheme, SourceFile, Statistics, TensorEntry};

use crate::choice::Choice;
use crate::error::ConvertError;
use crate::quantize::{Method, ScaleChoice};
use crate::source::Checkpoint;
use crate::tensor::SourceTensor;

/// An output error of the right length.
const NO_ERROR: OutputError = OutputError {
    rounded: 0.0,
    stored: 0.0,
    is_rounded: false,
};

/// What will become of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// How it is quantized; `None` is stored as it is.
    pub method: Option<Method>,
    /// Bytes of its blobs.
    pub stored_bytes: u64,
}

/// The whole conversion, weights unread.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What becomes of each tensor, in the checkpoint's order.
    pub tensors: Vec<Planned>,
    /// Length of the file: exact unless a quantized tensor is all zero, the largest scale of an
    /// int4 or lut4 one is outside 2^-68..2^22, where its bias has not two digits, or the mean
    /// absmax of an NF4 one is under 0.0047, where the bits of its offset have not ten; then the
    /// index differs by a byte or more a tensor.
    pub file_bytes: u64,
}

/// Plans a conversion of `checkpoint` as `choice` says, with `files` embedded.
///
/// # Errors
/// A tensor the format cannot hold.
pub(crate) fn plan(
    checkpoint: &Checkpoint,
    files: &[(&str, &[u8])],
    choice: &Choice,
    provenance: Provenance,
) -> Result<Plan, ConvertError> {
    let mut index = Index {
        files: Vec::new(),
        provenance,
        tensors: Vec::new(),
    };
    let mut statistics = Statistics::default();
    let mut planned = Vec::new();
    let mut end = smq_format::header::HEADER_BYTES as u64;
    let mut place = |length: u64| {
        let offset = align(end);
        end = offset + length;
        offset
    };
    for (name, contents) in files {
        index.files.push(FileEntry {
            blake3: [0; 32],
            length: contents.len() as u64,
            name: (*name).to_owned(),
            offset: place(contents.len() as u64),
        });
    }
    for (tensor, method) in checkpoint.tensors().iter().zip(&choice.methods) {
        let scheme = match method {
            Some(method) => {
                let mut record = record_of(tensor);
                record.output = choice.calibrated.contains(&tensor.name).then_some(NO_ERROR);
                statistics.tensors.push(record);
                likely_scheme(*method)
            }
            None => Scheme::Raw(tensor.dtype),
        };
        let lengths = scheme
            .blob_lengths(&tensor.name, &tensor.shape)
            .map_err(ConvertError::plan(checkpoint.path()))?;
        planned.push(Planned {
            method: *method,
            stored_bytes: lengths.iter().map(|l| l.1).sum(),
        });
        let blobs = lengths.into_iter().map(|(role, length)| Blob {
            blake3: [0; 32],
            length,
            offset: place(length),
            role,
        });
        index.tensors.push(TensorEntry {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            source_dtype: tensor.dtype,
            scheme,
            blobs: blobs.collect(),
        });
    }
    let defect = ConvertError::plan(checkpoint.path());
    let index_bytes = index.encode().map_err(&defect)?;
    place(index_bytes.len() as u64);
    let statistics_bytes = statistics.encode().map_err(&defect)?;
    place(statistics_bytes.len() as u64);
    Ok(Plan {
        tensors: planned,
        file_bytes: end,
    })
}

/// Bytes of a tensor's blobs.
///
/// # Errors
/// A tensor the format cannot hold.
pub(crate) fn stored_bytes(
    checkpoint: &Checkpoint,
    tensor: &SourceTensor,
    method: Method,
) -> Result<u64, ConvertError> {
    let lengths = likely_scheme(method).blob_lengths(&tensor.name, &tensor.shape);
    let lengths = lengths.map_err(ConvertError::plan(checkpoint.path()))?;
    Ok(lengths.iter().map(|l| l.1).sum())
}

/// A provenance with hashes still to come.
pub(crate) fn sources(checkpoint: &Checkpoint) -> Vec<SourceFile> {
    let source = |shard: &smq_model::Shard| SourceFile {
        blake3: [0; 32],
        length: shard.bytes().len() as u64,
        name: shard.name.clone(),
    };
    checkpoint.shards().iter().map(source).collect()
}

/// A scheme whose bias or offset, unknown until the weights are read, has as many digits as nearly
/// all have.
pub(crate) fn likely_scheme(method: Method) -> Scheme {
    let options = match method {
        Method::Int4(options) | Method::Lut4 { options, .. } => options,
        Method::Nf4 => {
            return Scheme::Nf4 {
                offset_bits: 0.0625f32.to_bits(),
            };
        }
        Method::Fp8 => return Scheme::Fp8,
    };
    let scales = match options.scales {
        ScaleChoice::F32 => ScaleFormat::F32,
        ScaleChoice::F16 => ScaleFormat::F16,
        ScaleChoice::Mini {
            exponent_bits,
            mantissa_bits,
        } => match MiniFloat::new(exponent_bits, mantissa_bits, 40) {
            Some(format) => ScaleFormat::Mini(format),
            None => match MiniFloat::for_largest(exponent_bits, mantissa_bits, 2f32.powi(-8)) {
                Some(format) => ScaleFormat::Mini(format),
                None => ScaleFormat::F32,
            },
        },
    };
    let group = options.group;
    match method {
        // Any levels take as many digits.
        Method::Lut4 { .. } => Scheme::Lut4 {
            group,
            scales,
            levels: Levels::nf4(),
        },
        Method::Int4(_) | Method::Nf4 | Method::Fp8 => Scheme::Int4 { group, scales },
    }
}

/// A record of the right length.
fn record_of(tensor: &SourceTensor) -> TensorStatistics {
    let rows = tensor.shape[0];
    let block_rows = rows.div_ceil(MAX_ROW_BLOCKS).max(1);
    TensorStatistics {
        name: tensor.name.clone(),
        groups: 0,
        zero_groups: 0,
        under_window: 0,
        clipped: 0,
        stored: ErrorSummary::default(),
        exact: ErrorSummary::default(),
        first_exponent: 0,
        exponent_counts: vec![0; EXPONENT_BUCKETS],
        block_rows: block_rows as u64,
        row_blocks: vec![0.0; rows.div_ceil(block_rows)],
        output: None,
    }
}
