//! Conversions whose storage is chosen from measured errors.

use std::path::Path;

use super::measured::Output;
use super::{Summary, check_against_config, plan_of, saved, write};
use crate::auto::{Auto, AutoOptions, ChooseBy, choose, choose_calibrated, measured_bytes};
use crate::calibrate::{CalibrateOptions, Calibration, CalibrationProgress, Prepared, Saved};
use crate::error::ConvertError;
use crate::plan::Plan;
use crate::receipt::Measuring;
use crate::source::Checkpoint;
use crate::work::{Progress, pool};

/// Chooses as [`convert_auto`] would, and plans that: `progress` gets the bytes that [`choose`]
/// counts.
///
/// # Errors
/// As [`convert_auto`], for all that can be known without writing.
pub fn dry_run_auto(
    checkpoint: &Checkpoint,
    options: &AutoOptions,
    progress: Progress,
) -> Result<(Auto, Plan), ConvertError> {
    check_against_config(checkpoint)?;
    let auto = choose(checkpoint, options, progress)?;
    let plan = plan_of(checkpoint, &auto.choice)?;
    Ok((auto, plan))
}

/// Chooses as [`convert_auto_calibrated`] would, for which outputs may have to be measured on the
/// texts, and plans that.
///
/// # Errors
/// As [`convert_auto_calibrated`], for all that can be known without calibrating and writing.
pub fn dry_run_auto_calibrated(
    checkpoint: &Checkpoint,
    options: &AutoOptions,
    texts: &CalibrateOptions,
    measuring: CalibrationProgress,
    progress: Progress,
) -> Result<(Auto, Plan), ConvertError> {
    check_against_config(checkpoint)?;
    let prepared = pool(options.jobs)?.install(|| Prepared::new(checkpoint, texts))?;
    let auto = choose_calibrated(
        checkpoint,
        options,
        &prepared,
        &std::env::temp_dir(),
        measuring,
        progress,
    )?;
    let plan = plan_of(checkpoint, &auto.choice)?;
    Ok((auto, plan))
}

/// Measures, chooses and converts; otherwise as [`convert`](super::convert()). `progress` gets the
/// bytes that [`choose`] counts, then these and the source bytes done.
///
/// # Errors
/// As [`choose`] and [`convert`](super::convert()).
pub fn convert_auto(
    checkpoint: &Checkpoint,
    target: &Path,
    options: &AutoOptions,
    progress: Progress,
) -> Result<(Auto, Summary), ConvertError> {
    chosen(checkpoint, target, options, None, progress)
}

pub(super) fn chosen(
    checkpoint: &Checkpoint,
    target: &Path,
    options: &AutoOptions,
    measuring: Option<Measuring>,
    progress: Progress,
) -> Result<(Auto, Summary), ConvertError> {
    check_against_config(checkpoint)?;
    // Before the weights are measured, which may take minutes.
    let output = Output::create(checkpoint, target, options.overwrite, measuring)?;
    let auto = choose(checkpoint, options, progress)?;
    let measured = measured_bytes(checkpoint, options);
    let progress = |done_bytes: u64| progress(measured + done_bytes);
    let choice = &auto.choice;
    let none = Calibration::default();
    let summary = write(checkpoint, choice, none, output, options.jobs, &progress)?;
    Ok((auto, summary))
}

/// Measures, chooses, calibrates what is chosen and converts; otherwise as [`convert_auto`] and
/// [`convert_calibrated`](super::convert_calibrated). Where outputs decide, `calibrating` is told
/// of every layer twice, since the texts go through the model twice.
///
/// After a run that was killed, storage is chosen anew before [`CalibrateOptions::resume`] goes on.
///
/// # Errors
/// As those two; by [`ChooseBy::Outputs`] a target with tensors that are no products of layers.
pub fn convert_auto_calibrated(
    checkpoint: &Checkpoint,
    target: &Path,
    options: &AutoOptions,
    texts: &CalibrateOptions,
    calibrating: CalibrationProgress,
    progress: Progress,
) -> Result<(Auto, Summary), ConvertError> {
    let texts = (texts, calibrating);
    chosen_calibrated(checkpoint, target, options, texts, None, progress)
}

pub(super) fn chosen_calibrated(
    checkpoint: &Checkpoint,
    target: &Path,
    options: &AutoOptions,
    (texts, calibrating): (&CalibrateOptions, CalibrationProgress),
    measuring: Option<Measuring>,
    progress: Progress,
) -> Result<(Auto, Summary), ConvertError> {
    check_against_config(checkpoint)?;
    let output = Output::create(checkpoint, target, options.overwrite, measuring)?;
    Saved::check(target, texts.resume)?;
    let (jobs, choose_by) = (options.jobs, options.choose_by);
    let prepared = pool(jobs)?.install(|| Prepared::new(checkpoint, texts))?;
    let first = |done: usize, layers: usize| calibrating(done, 2 * layers);
    let second = |done: usize, layers: usize| match choose_by {
        ChooseBy::Weights => calibrating(done, layers),
        ChooseBy::Outputs => calibrating(layers + done, 2 * layers),
    };
    // A file in the current directory has an empty parent.
    let beside = target.parent().filter(|p| !p.as_os_str().is_empty());
    let beside = beside.unwrap_or(Path::new("."));
    let auto = choose_calibrated(checkpoint, options, &prepared, beside, &first, progress)?;
    let choice = &auto.choice;
    let saved = saved(checkpoint, target, choice, texts)?;
    let calibration =
        pool(jobs)?.install(|| prepared.calibrate(checkpoint, choice, &saved, &second))?;
    drop(prepared);
    let measured = measured_bytes(checkpoint, options);
    let progress = |done_bytes: u64| progress(measured + done_bytes);
    let summary = write(checkpoint, choice, calibration, output, jobs, &progress)?;
    Ok((auto, summary))
}
