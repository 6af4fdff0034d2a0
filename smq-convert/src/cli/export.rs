//! `smq-convert --to`: from a .smq file back to a Hugging Face directory.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::DecimalBytes;
use smq_format::Dtype;

use super::{after_work, progress_bar, stdout};
use crate::directory::DEFAULT_SHARD_BYTES;
use crate::export::{ExportFormat, ExportOptions, ExportSummary, Half, export};
use crate::number::{count, plural};

/// Options of the way there, which the way back has not.
const OF_CONVERSION: [&str; 27] = [
    "preset",
    "reader",
    "scheme",
    "mbits",
    "scales",
    "group_size",
    "scale_rule",
    "target",
    "requantize",
    "threads",
    "dry_run",
    "verbose",
    "budget",
    "max_kl",
    "levels",
    "calibrate",
    "calibrate_tokens",
    "calibrate_window",
    "calibrate_method",
    "calibrate_memory",
    "resume",
    "device",
    "measure_kl",
    "measure_kl_tokens",
    "sensitivity",
    "mixed_widths",
    "choose_by",
];

/// Options of the way back.
#[derive(Args)]
pub(super) struct ExportArgs {
    /// Write the .smq file CHECKPOINT as a Hugging Face directory
    #[arg(long, value_enum, value_name = "FORM", conflicts_with_all = OF_CONVERSION)]
    to: Option<Form>,
    /// Element type of the dequantized weights, for --to safetensors: f32 is exact, bf16 rounds
    /// [default: f32]
    #[arg(long, value_enum, requires = "to")]
    dtype: Option<Element>,
    /// Round scales that the form's types (bf16 and f16; f16 alone for gptq) do not hold exactly
    #[arg(long, requires = "to")]
    allow_inexact: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    /// Dequantized weights
    Safetensors,
    /// int4 in groups with bf16 or f16 scales (pack-quantized), or FP8 (float-quantized), which
    /// vLLM and transformers read
    CompressedTensors,
    /// int4 in groups with f16 scales as GPTQ stores them, which GPTQModel and transformers read
    Gptq,
    /// int4 in groups with scales and biases in bf16 or f16, which mlx-lm reads
    Mlx,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Element {
    /// Rounded, half to even; how many weights change is said
    Bf16,
    /// Exact
    F32,
}

impl ExportArgs {
    /// What to export; `None` where the command line asks for a .smq file.
    ///
    /// # Errors
    /// Options that do not go together; a .smq file as input without `--to`.
    pub(super) fn format(&self, input: &Path) -> anyhow::Result<Option<ExportFormat>> {
        Ok(Some(match (self.to, self.dtype, self.allow_inexact) {
            (None, ..) if is_smq(input) => bail!(
                "{} is a .smq file already; pass --to safetensors or --to compressed-tensors and \
                 a directory to convert it back (smq-convert --help lists more forms)",
                input.display()
            ),
            (None, ..) => return Ok(None),
            (Some(Form::Safetensors), _, true) => bail!(
                "--allow-inexact is for forms that hold scales; --to safetensors rounds only with \
                 --dtype bf16"
            ),
            (Some(Form::Safetensors), Some(Element::Bf16), false) => {
                ExportFormat::Safetensors(Dtype::Bf16)
            }
            (Some(Form::Safetensors), Some(Element::F32) | None, false) => {
                ExportFormat::Safetensors(Dtype::F32)
            }
            (Some(Form::CompressedTensors | Form::Gptq | Form::Mlx), Some(_), _) => {
                bail!("--dtype is for --to safetensors; the other forms keep what is quantized")
            }
            (Some(Form::CompressedTensors), None, allow_inexact) => {
                ExportFormat::CompressedTensors { allow_inexact }
            }
            (Some(Form::Gptq), None, allow_inexact) => ExportFormat::Gptq { allow_inexact },
            (Some(Form::Mlx), None, allow_inexact) => ExportFormat::Mlx { allow_inexact },
        }))
    }
}

/// Whether a regular file starts as every .smq file does.
fn is_smq(path: &Path) -> bool {
    let mut start = [0; 8];
    path.is_file()
        && std::fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut start).is_ok())
        && start == smq_format::header::MAGIC
}

/// Exports and says what it did.
pub(super) fn run(
    input: &Path,
    out_dir: Option<PathBuf>,
    format: ExportFormat,
    force: bool,
    interrupted: &'static AtomicBool,
) -> anyhow::Result<()> {
    let file = smq_model::open_smq(input)?;
    let out_dir = out_dir.context("no output directory given; name it after the .smq file")?;
    let options = ExportOptions {
        format,
        shard_bytes: DEFAULT_SHARD_BYTES,
        force,
    };
    let bar = progress_bar(0, "exporting");
    let summary = export(&file, &out_dir, &options, &|done_bytes, total_bytes| {
        bar.set_length(total_bytes);
        bar.set_position(done_bytes);
        !interrupted.load(Ordering::Relaxed)
    });
    bar.finish_and_clear();
    let summary = summary?;
    after_work(print_summary(&out_dir, format, &summary))
}

fn print_summary(
    out_dir: &Path,
    format: ExportFormat,
    summary: &ExportSummary,
) -> anyhow::Result<()> {
    let mut out = stdout();
    writeln!(
        out,
        "{}: {} of tensors in {}, {} from quantized ones; every hash verified, {:.2} s",
        out_dir.display(),
        DecimalBytes(summary.tensor_bytes),
        plural(summary.shards.len(), "safetensors file"),
        count(summary.quantized_tensors),
        summary.elapsed.as_secs_f64(),
    )?;
    let rounding = &summary.rounding;
    let counts = match rounding.inexact {
        0 => format!("all {} are exact", count(rounding.values)),
        inexact => format!(
            "{} of {} ({:.1} %) are rounded, relative error up to {:.2e}",
            count(inexact),
            count(rounding.values),
            100.0 * inexact as f64 / rounding.values as f64,
            rounding.max_relative_error
        ),
    };
    match format {
        ExportFormat::Safetensors(dtype @ (Dtype::Bf16 | Dtype::F16)) => {
            writeln!(out, "weights in {dtype}: {counts}")?;
        }
        ExportFormat::Safetensors(Dtype::F32) => writeln!(out, "weights in f32 are exact")?,
        ExportFormat::CompressedTensors { .. }
        | ExportFormat::Gptq { .. }
        | ExportFormat::Mlx { .. } => {
            let scales = match summary.scales.map(Half::dtype) {
                Some(scales) => {
                    writeln!(out, "integers kept; scales in {scales}: {counts}")?;
                    scales
                }
                None => {
                    writeln!(out, "FP8 codes and f32 scales are kept as they are")?;
                    Dtype::F32
                }
            };
            if let Some(model) = summary
                .model_dtype
                .filter(|d| *d != scales && *d != Dtype::F32)
            {
                writeln!(
                    out,
                    "note: config.json has the model loaded in {model}, to which a loader may \
                     round the {scales} scales; load it in f32 to keep them"
                )?;
            }
            if let Some(group) = summary.group.filter(|g| ![32, 64, 128].contains(g)) {
                writeln!(
                    out,
                    "note: transformers loads groups of {group}, but vLLM's Marlin kernels take \
                     only 32, 64 and 128"
                )?;
            }
        }
    }
    if summary.statistics_damaged {
        writeln!(
            out,
            "note: the file's error statistics are damaged; its weights are not"
        )?;
    }
    if summary.named_code {
        writeln!(
            out,
            "note: auto_map and the like, which name Python files that a .smq file does not hold, \
             are left out of the directory's configs"
        )?;
    }
    if !summary.has_config {
        writeln!(
            out,
            "note: the file has no config.json, so transformers cannot load the directory"
        )?;
    }
    Ok(())
}
