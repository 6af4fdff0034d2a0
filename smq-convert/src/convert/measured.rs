//! Conversions whose result is measured.

use std::path::Path;
use std::time::Instant;

use smq_format::SmqWriter;

use super::chosen::{chosen, chosen_calibrated};
use super::{ConvertOptions, Summary, calibrated, check_target, rounded};
use crate::auto::{Auto, AutoOptions};
use crate::calibrate::{CalibrateOptions, CalibrationProgress};
use crate::error::ConvertError;
use crate::receipt::{Measuring, Prepared};
use crate::source::Checkpoint;
use crate::work::Progress;

/// Which conversion to do.
#[derive(Clone, Copy)]
pub enum Conversion<'a> {
    /// One method for all tensors, as [`convert`](super::convert()) does it.
    Uniform(&'a ConvertOptions),
    /// Storage chosen from the weights' errors, as [`convert_auto`](super::convert_auto) does it.
    Auto(&'a AutoOptions),
    /// Storage chosen from the outputs' errors, as
    /// [`convert_auto_calibrated`](super::convert_auto_calibrated) does it.
    AutoCalibrated(
        &'a AutoOptions,
        &'a CalibrateOptions,
        CalibrationProgress<'a>,
    ),
    /// Scales and codes chosen on a text, as [`convert_calibrated`](super::convert_calibrated) does
    /// it.
    Calibrated(
        &'a ConvertOptions,
        &'a CalibrateOptions,
        CalibrationProgress<'a>,
    ),
}

/// Converts, and, with `measuring`, compares the finished file's model with the checkpoint's and
/// puts what comes of it into its statistics: then the file appears, whole or not at all.
///
/// # Errors
/// As the conversion; a checkpoint that is quantized or cannot be run, a text that cannot be read
/// or is too short, `measuring`'s progress returning false.
pub fn convert_measured(
    checkpoint: &Checkpoint,
    target: &Path,
    conversion: Conversion,
    measuring: Option<Measuring>,
    progress: Progress,
) -> Result<(Option<Auto>, Summary), ConvertError> {
    let no_choice = |summary| (None, summary);
    let with_choice = |(auto, summary)| (Some(auto), summary);
    match conversion {
        Conversion::Uniform(options) => {
            rounded(checkpoint, target, options, measuring, progress).map(no_choice)
        }
        Conversion::Auto(options) => {
            chosen(checkpoint, target, options, measuring, progress).map(with_choice)
        }
        Conversion::AutoCalibrated(options, texts, calibrating) => {
            let texts = (texts, calibrating);
            chosen_calibrated(checkpoint, target, options, texts, measuring, progress)
                .map(with_choice)
        }
        Conversion::Calibrated(options, texts, calibrating) => {
            let texts = (texts, calibrating);
            calibrated(checkpoint, target, options, texts, measuring, progress).map(no_choice)
        }
    }
}

/// A file that was begun, and what is to be done with it.
pub(super) struct Output<'a> {
    pub(super) writer: SmqWriter,
    pub(super) measured_on: Option<Prepared<'a>>,
    pub(super) started: Instant,
}

impl<'a> Output<'a> {
    /// Begins the file, once all is known that can be known to be in the way.
    pub(super) fn create(
        checkpoint: &Checkpoint,
        target: &Path,
        overwrite: bool,
        measuring: Option<Measuring<'a>>,
    ) -> Result<Self, ConvertError> {
        let started = Instant::now();
        let texts = measuring
            .as_ref()
            .map(|measuring| measuring.options.texts.as_slice());
        check_target(checkpoint, target, texts.unwrap_or_default())?;
        let prepare = |measuring: Measuring<'a>| measuring.prepare(checkpoint);
        Ok(Self {
            measured_on: measuring.map(prepare).transpose()?,
            writer: SmqWriter::create(target, overwrite)?,
            started,
        })
    }
}
