//! The way back: a .smq file as a Hugging Face directory, for programs that do not read .smq.
//!
//! ```text
//!   SmqFile -> verify -> plan -> shards -> staging => OUT_DIR
//! ```
//!
//! Dequantized safetensors hold `w' = q s'` in f32, which is exact, or rounded to bf16. The other
//! forms keep the integers: compressed-tensors' `pack-quantized` with scales in bf16, which is
//! exact for E5Mx up to x = 7, or in f16 where that is exact and bf16 is not; GPTQ with scales in
//! f16; MLX with scales as the first and biases of -8 scales. FP8 is compressed-tensors'
//! `float-quantized`, codes and f32 scales as they are. config.json says the element type and the
//! quantization that are written, and names no code that is not there.

mod alike;
mod config;
mod elements;
mod layout;
mod packable;
mod plan;
mod shard;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use smq_format::{Defect, Dtype, SmqFile};

use crate::directory::{Staging, fill_shards, pretty, shard_name};
use crate::error::ConvertError;
use smq_model::{SHARD_INDEX, is_side_file};

pub use elements::{Half, Rounding};
use plan::Plan;

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// Dequantized weights in this element type: f32 is exact, bf16 and f16 are rounded to.
    Safetensors(Dtype),
    /// compressed-tensors: `pack-quantized` int4, or `float-quantized` where the file is FP8.
    CompressedTensors {
        /// Round scales that neither bf16 nor f16 holds.
        allow_inexact: bool,
    },
    /// GPTQ int4 of the first version: the zero point 8 is stored as 7.
    Gptq {
        /// Round scales that f16 does not hold.
        allow_inexact: bool,
    },
    /// MLX's affine int4, as mlx-lm writes it.
    Mlx {
        /// Round scales that neither bf16 nor f16 holds.
        allow_inexact: bool,
    },
}

impl ExportFormat {
    /// Whether scales may be rounded.
    fn allows_inexact(self) -> bool {
        match self {
            ExportFormat::Safetensors(_) => false,
            ExportFormat::CompressedTensors { allow_inexact }
            | ExportFormat::Gptq { allow_inexact }
            | ExportFormat::Mlx { allow_inexact } => allow_inexact,
        }
    }
}

/// How to export.
#[derive(Debug, Clone, Copy)]
pub struct ExportOptions {
    /// What to write.
    pub format: ExportFormat,
    /// Largest shard, in bytes of tensor data. One tensor over it gets a shard of its own.
    pub shard_bytes: u64,
    /// Write into a directory that is not empty, replacing the checkpoint in it.
    pub force: bool,
}

/// What an export did.
#[derive(Debug, Clone)]
pub struct ExportSummary {
    /// The safetensors files, in order.
    pub shards: Vec<PathBuf>,
    /// Number of quantized tensors in the .smq file.
    pub quantized_tensors: usize,
    /// Elements a group of the int4 tensors, where they agree.
    pub group: Option<usize>,
    /// Bytes of tensor data.
    pub tensor_bytes: u64,
    /// What rounding did: to the quantized tensors' weights, or to their scales.
    pub rounding: Rounding,
    /// Element type of the scales, where they are written.
    pub scales: Option<Half>,
    /// Element type with which config.json has the model loaded, where it says one.
    pub model_dtype: Option<Dtype>,
    /// config.json or tokenizer_config.json named code of their own, which is not exported.
    pub named_code: bool,
    /// The file's statistics are damaged; the weights are not.
    pub statistics_damaged: bool,
    /// Whether the file has a config.json.
    pub has_config: bool,
    /// Wall time.
    pub elapsed: Duration,
}

/// Called with bytes done and bytes in all, read and written together; returns whether to go on.
pub type ExportProgress<'a> = &'a (dyn Fn(u64, u64) -> bool + Sync);

/// Writes `file` as the directory `out_dir`, whose files appear together when all are complete, or
/// not at all.
///
/// Every hash of `file` is verified first. About 32 MiB of buffers are live, or two rows where
/// those are longer.
///
/// # Errors
/// A damaged file, an `out_dir` that may not be written, a tensor or scale that the format cannot
/// hold, `progress` returning false, an I/O error, a full disk.
pub fn export(
    file: &SmqFile,
    out_dir: &Path,
    options: &ExportOptions,
    progress: ExportProgress,
) -> Result<ExportSummary, ConvertError> {
    let started = Instant::now();
    let mut plan = Plan::new(file, options.format)?;
    let staging = Staging::open(out_dir, options.force, &[])?;
    let total_bytes = blob_bytes(file) + plan.tensor_bytes;
    let statistics_damaged = verify(file, total_bytes, progress)?;
    let settled = plan.settle_scales(file, options.format.allows_inexact())?;

    let sized = plan.outputs.iter().map(|o| (o, o.bytes()));
    let groups = fill_shards(sized, options.shard_bytes);
    let mut writer = shard::Writer {
        file,
        staging: &staging,
        total_bytes,
        done_bytes: blob_bytes(file),
        tensor_bytes: plan.tensor_bytes,
        rounding: settled.map(|(_, rounding)| rounding).unwrap_or_default(),
        progress,
    };
    let mut weight_map = BTreeMap::new();
    let mut shards = Vec::new();
    let count = groups.len();
    for (number, outputs) in (1..).zip(groups) {
        let name = shard_name(number, count);
        weight_map.extend(outputs.iter().map(|o| (o.name.clone(), name.clone())));
        writer.write(&name, outputs)?;
        shards.push(name);
    }
    let rounding = writer.rounding;

    let mut side_files = embedded_files(file, &plan)?;
    if count > 1 {
        let metadata = json!({ "total_size": plan.tensor_bytes });
        let index = json!({ "metadata": metadata, "weight_map": weight_map });
        side_files.push((SHARD_INDEX.to_owned(), pretty(&index)));
    }
    for (name, contents) in &side_files {
        staging.write(name, contents, plan.tensor_bytes)?;
    }
    let names: Vec<_> = side_files.into_iter().map(|f| f.0).collect();
    // What was verified first is not what was read, where somebody writes to it meanwhile.
    file.check_unchanged()?;
    staging.commit(&shards, &names)?;
    Ok(ExportSummary {
        shards: shards.iter().map(|name| out_dir.join(name)).collect(),
        quantized_tensors: plan.quantized_tensors,
        group: plan.group,
        tensor_bytes: plan.tensor_bytes,
        rounding,
        scales: settled.map(|(scales, _)| scales),
        model_dtype: plan
            .edit
            .dtype
            .or(file.embedded("config.json").and_then(config::dtype_of)),
        named_code: ["config.json", "tokenizer_config.json"]
            .iter()
            .any(|name| file.embedded(name).and_then(config::without_code).is_some()),
        statistics_damaged,
        has_config: names.iter().any(|name| name == "config.json"),
        elapsed: started.elapsed(),
    })
}

/// Bytes that [`SmqFile::verify`] hashes.
fn blob_bytes(file: &SmqFile) -> u64 {
    let index = file.index();
    let files = index.files.iter().map(|f| f.length);
    let blobs = index.tensors.iter().flat_map(|t| &t.blobs);
    files.chain(blobs.map(|b| b.length)).sum()
}

/// Recomputes every hash; returns whether the statistics, which are not exported, are damaged.
fn verify(
    file: &SmqFile,
    total_bytes: u64,
    progress: ExportProgress,
) -> Result<bool, ConvertError> {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
    let (done_bytes, go_on) = (AtomicU64::new(0), AtomicBool::new(true));
    let defects = file.verify(|bytes| {
        let done_bytes = done_bytes.fetch_add(bytes, Relaxed) + bytes;
        go_on.fetch_and(progress(done_bytes, total_bytes), Relaxed);
    });
    let (statistics, fatal): (Vec<_>, Vec<_>) =
        defects.into_iter().partition(Defect::spares_the_weights);
    match fatal.into_iter().next() {
        Some(defect) => Err(ConvertError::Format(smq_format::Error::Format {
            path: file.path().to_path_buf(),
            defect,
        })),
        None if !go_on.into_inner() => Err(ConvertError::Interrupted),
        None => Ok(!statistics.is_empty()),
    }
}

/// The checkpoint's other files, config.json adapted to what is written.
fn embedded_files(file: &SmqFile, plan: &Plan) -> Result<Vec<(String, Vec<u8>)>, ConvertError> {
    // Only the names of a checkpoint's side files: no other file is to appear at the user's.
    let names = file.index().files.iter().map(|entry| entry.name.as_str());
    let known = names.filter(|name| is_side_file(name));
    let contents = known.map(|name| {
        let contents = file.embedded(name).unwrap_or_default();
        let contents = match name {
            "config.json" => config::adapt(file.path(), contents, &plan.edit)?,
            "tokenizer_config.json" => {
                config::without_code(contents).unwrap_or_else(|| contents.to_vec())
            }
            _ => contents.to_vec(),
        };
        Ok((name.to_owned(), contents))
    });
    contents.collect()
}
