//! Source -> plan -> quantize -> writer.

mod against_config;
mod chosen;
mod finite;
mod measured;
mod pipeline;

use std::path::{Path, PathBuf};
use std::time::Duration;

use smq_format::statistics::{Receipt, TensorStatistics};
use smq_format::{Provenance, Statistics, Written, input_at};

use against_config::check_against_config;
pub use chosen::{convert_auto, convert_auto_calibrated, dry_run_auto, dry_run_auto_calibrated};
use measured::Output;
pub use measured::{Conversion, convert_measured};
use pipeline::write_tensors;

use crate::apply::{check_options, check_rule};
use crate::calibrate::{
    self, CalibrateOptions, Calibration, CalibrationProgress, Outcome, Prepared, Saved,
};
use crate::choice::Choice;
use crate::error::ConvertError;
use crate::plan::{Plan, plan, sources};
use crate::quantize::Method;
use crate::receipt::Measuring;
use crate::source::Checkpoint;
use crate::source_hash::SourceHasher;
use crate::target::Target;
use crate::work::{Progress, pool};

/// What to make of a checkpoint.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Which tensors are quantized.
    pub target: Target,
    /// What the weights of those tensors become.
    pub quantize: Method,
    /// Replace an existing file.
    pub overwrite: bool,
    /// Threads; 0 takes every core. Never changes the bytes.
    pub jobs: usize,
}

/// What a conversion did.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Length of the safetensors files.
    pub source_bytes: u64,
    /// How long the finished file is, and what fsync took.
    pub written: Written,
    /// Wall time without fsync.
    pub elapsed: Duration,
    /// Statistics of the quantized tensors, in file order.
    pub statistics: Vec<TensorStatistics>,
    /// How far the file's model is from the checkpoint's, where that was to be measured.
    pub receipts: Vec<Receipt>,
    /// Bytes of all scale blobs.
    pub scale_bytes: u64,
    /// Bytes that f16 scales would take, in the same blobs.
    pub f16_scale_bytes: u64,
    /// Names of the tensors that are not finite and were carried along, since they are no weights.
    pub not_finite: Vec<String>,
    /// What calibration did; `None` without it.
    pub calibrated: Option<CalibrationSummary>,
}

/// What calibration did to the outputs of the tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalibrationSummary {
    /// Tensors that were calibrated.
    pub tensors: usize,
    /// Those that are stored rounded to nearest, since calibration did no better.
    pub fell_back: usize,
    /// How many of them needed more damping.
    pub raised: usize,
    /// Median over tensors of the outputs' relative squared error on the calibration text, rounded
    /// to nearest.
    pub rounded: f64,
    /// The same median of what is stored.
    pub stored: f64,
}

impl CalibrationSummary {
    fn of(outcomes: &[(String, Outcome)]) -> Option<Self> {
        let median = |of: fn(&Outcome) -> f64| {
            let mut all: Vec<f64> = outcomes.iter().map(|(_, o)| of(o)).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied()
        };
        Some(Self {
            tensors: outcomes.len(),
            fell_back: outcomes.iter().filter(|(_, o)| o.fell_back).count(),
            raised: outcomes.iter().filter(|(_, o)| o.raised > 0).count(),
            rounded: median(|o| o.rounded)?,
            stored: median(|o| o.stored)?,
        })
    }
}

/// Plans the conversion that [`convert`] would do: everything but reading the weights.
///
/// # Errors
/// As [`convert`], for all that can be known from headers.
pub fn dry_run(checkpoint: &Checkpoint, options: &ConvertOptions) -> Result<Plan, ConvertError> {
    check_rule_of(options.quantize)?;
    plan_of(checkpoint, &uniform(checkpoint, options)?)
}

fn check_rule_of(method: Method) -> Result<(), ConvertError> {
    method
        .options()
        .map_or(Ok(()), |options| check_rule(options.rule))
}

fn uniform(checkpoint: &Checkpoint, options: &ConvertOptions) -> Result<Choice, ConvertError> {
    check_options(checkpoint, options.quantize)?;
    check_against_config(checkpoint)?;
    Choice::uniform(checkpoint, &options.target, options.quantize)
}

fn plan_of(checkpoint: &Checkpoint, choice: &Choice) -> Result<Plan, ConvertError> {
    let files = checkpoint.embedded_files();
    plan(checkpoint, &files, choice, provenance(checkpoint, choice))
}

/// Converts `checkpoint` into the file `target`, which appears whole or not at all.
///
/// The same checkpoint and options give the same bytes, at any number of threads.
///
/// # Errors
/// Bad options, a checkpoint that disagrees with its config.json, weights that are not finite, a
/// target that cannot be written, or `progress` returning false.
pub fn convert(
    checkpoint: &Checkpoint,
    target: &Path,
    options: &ConvertOptions,
    progress: Progress,
) -> Result<Summary, ConvertError> {
    rounded(checkpoint, target, options, None, progress)
}

fn rounded(
    checkpoint: &Checkpoint,
    target: &Path,
    options: &ConvertOptions,
    measuring: Option<Measuring>,
    progress: Progress,
) -> Result<Summary, ConvertError> {
    check_rule_of(options.quantize)?;
    let choice = uniform(checkpoint, options)?;
    let output = Output::create(checkpoint, target, options.overwrite, measuring)?;
    let none = Calibration::default();
    write(checkpoint, &choice, none, output, options.jobs, progress)
}

/// Calibrates and converts; otherwise as [`convert`]. `calibrating` is told of the first part,
/// `progress` of the second.
///
/// Layers that are done lie beside `target` until it is there, so that
/// [`CalibrateOptions::resume`] can go on after a run that was killed.
///
/// # Errors
/// As [`convert`]; a model that cannot be run, texts that cannot be read or are too short,
/// activations that are not finite, too little memory.
pub fn convert_calibrated(
    checkpoint: &Checkpoint,
    target: &Path,
    options: &ConvertOptions,
    texts: &CalibrateOptions,
    calibrating: CalibrationProgress,
    progress: Progress,
) -> Result<Summary, ConvertError> {
    let texts = (texts, calibrating);
    calibrated(checkpoint, target, options, texts, None, progress)
}

fn calibrated(
    checkpoint: &Checkpoint,
    target: &Path,
    options: &ConvertOptions,
    (texts, calibrating): (&CalibrateOptions, CalibrationProgress),
    measuring: Option<Measuring>,
    progress: Progress,
) -> Result<Summary, ConvertError> {
    let mut choice = uniform(checkpoint, options)?;
    check_target(checkpoint, target, &texts.texts)?;
    let output = Output::create(checkpoint, target, options.overwrite, measuring)?;
    let jobs = options.jobs;
    let prepared = pool(jobs)?.install(|| Prepared::new(checkpoint, texts))?;
    prepared.record(checkpoint, &mut choice);
    let saved = saved(checkpoint, target, &choice, texts)?;
    let calibration =
        pool(jobs)?.install(|| prepared.calibrate(checkpoint, &choice, &saved, calibrating))?;
    drop(prepared);
    write(checkpoint, &choice, calibration, output, jobs, progress)
}

/// Where calibrated layers are saved. What the format cannot hold is found before they are
/// calibrated, which may take hours.
fn saved(
    checkpoint: &Checkpoint,
    target: &Path,
    choice: &Choice,
    texts: &CalibrateOptions,
) -> Result<Saved, ConvertError> {
    plan_of(checkpoint, choice)?;
    Saved::open(target, calibrate::key(checkpoint, choice), texts.resume)
}

/// Plans the conversion that [`convert_calibrated`] would do: texts are read, weights are not.
///
/// # Errors
/// As [`convert_calibrated`], for all that can be known without the weights.
pub fn dry_run_calibrated(
    checkpoint: &Checkpoint,
    options: &ConvertOptions,
    texts: &CalibrateOptions,
) -> Result<Plan, ConvertError> {
    let mut choice = uniform(checkpoint, options)?;
    Prepared::new(checkpoint, texts)?.record(checkpoint, &mut choice);
    plan_of(checkpoint, &choice)
}

/// Layers that a killed calibration of `target` has left, and the directory that they are in.
#[must_use]
pub fn saved_layers(target: &Path) -> Option<(usize, PathBuf)> {
    let directory = Saved::directory(target);
    let layers = Saved::layers_of(target);
    directory.is_dir().then_some((layers, directory))
}

fn write(
    checkpoint: &Checkpoint,
    choice: &Choice,
    mut calibration: Calibration,
    output: Output,
    jobs: usize,
    progress: Progress,
) -> Result<Summary, ConvertError> {
    plan_of(checkpoint, choice)?;
    let Output {
        mut writer,
        measured_on,
        started,
    } = output;
    for (name, contents) in checkpoint.embedded_files() {
        writer.add_file(name, contents)?;
    }
    let hasher = SourceHasher::new(checkpoint);
    let (done, hashes) = pool(jobs)?.install(|| {
        let done = write_tensors(
            checkpoint,
            choice,
            &mut calibration,
            &mut writer,
            &hasher,
            progress,
        )?;
        Ok::<_, ConvertError>((done, hasher.finish()))
    })?;
    let outcomes = calibration.outcomes;
    let mut provenance = provenance(checkpoint, choice);
    for (source, hash) in provenance.sources.iter_mut().zip(&hashes) {
        source.blake3 = *hash;
    }
    // A shard that is written to meanwhile gives weights of two checkpoints, under a hash of
    // neither.
    let unchanged = || -> Result<(), ConvertError> {
        let shards = checkpoint.shards().iter().zip(&hashes);
        for (shard, hash) in shards {
            shard.check_unchanged(*hash)?;
        }
        Ok(())
    };
    let mut record = Statistics {
        tensors: done.statistics,
        receipts: Vec::new(),
    };
    let written = match measured_on {
        Some(measured_on) => {
            let (key, device) = ("receipts_device", measured_on.device().name());
            let parameters = &mut provenance.parameters;
            parameters.insert(key.to_owned(), device.to_owned());
            writer.finish_measured(provenance, |file| {
                record.receipts = pool(jobs)?.install(|| measured_on.receipts(file))?;
                unchanged()?;
                Ok::<_, ConvertError>(record.clone())
            })?
        }
        None => {
            unchanged()?;
            writer.finish(provenance, Some(&record))?
        }
    };
    let groups: u64 = record.tensors.iter().map(|t| t.groups).sum();
    Ok(Summary {
        source_bytes: checkpoint.total_bytes(),
        written,
        elapsed: started.elapsed().saturating_sub(written.fsync),
        scale_bytes: done.scale_bytes,
        f16_scale_bytes: 2 * groups + 8 * record.tensors.len() as u64,
        statistics: record.tensors,
        receipts: record.receipts,
        not_finite: done.not_finite,
        calibrated: CalibrationSummary::of(&outcomes),
    })
}

/// Provenance key of an imported file, and its values.
pub(crate) const IMPORT_CODES: &str = "import_codes";
const CODES_KEPT: &str = "kept";
pub(crate) const CODES_REQUANTIZED: &str = "requantized";

/// Everything that decides the bytes; hashes of the sources are filled in later.
fn provenance(checkpoint: &Checkpoint, choice: &Choice) -> Provenance {
    let mut parameters = choice.parameters.clone();
    if let Some(import) = checkpoint.import() {
        let codes = match checkpoint.keeps_codes() {
            true => CODES_KEPT,
            false => CODES_REQUANTIZED,
        };
        parameters.insert("import".to_owned(), import.form.name().to_owned());
        if let Some(stored_zero) = import.form.stored_zero() {
            parameters.insert("import_stored_zero".to_owned(), stored_zero.to_string());
        }
        parameters.insert(IMPORT_CODES.to_owned(), codes.to_owned());
    }
    Provenance {
        parameters,
        producer: concat!("smq-convert ", env!("CARGO_PKG_VERSION")).to_owned(),
        sources: sources(checkpoint),
    }
}

/// Not even `overwrite` may replace what is being read.
fn check_target(
    checkpoint: &Checkpoint,
    target: &Path,
    texts: &[PathBuf],
) -> Result<(), ConvertError> {
    if input_at(target, &checkpoint.files().inputs()).is_some() {
        return Err(ConvertError::OutputIsInput(target.to_path_buf()));
    }
    match input_at(target, texts) {
        Some(input) => Err(ConvertError::Format(smq_format::Error::OutputIsInput {
            path: target.to_path_buf(),
            input,
        })),
        None => Ok(()),
    }
}
