//! Recomputes the statistics from the checkpoint that a file was made from.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::Path;

use smq_format::statistics::TensorStatistics;
use smq_format::{Defect, Scheme, SmqFile, Statistics, TensorData, TensorView};

use super::error::InspectError;
use crate::apply::quantize_tensor;
use crate::calibrate::CALIBRATION;
use crate::choice::{recorded_levels, recorded_rule};
use crate::convert::{CODES_REQUANTIZED, IMPORT_CODES};
use crate::quantize::{
    LevelChoice, Levels, Method, QuantizeOptions, Quantized, ScaleRule, remeasure, restore,
};
use crate::source::Checkpoint;
use crate::tensor::SourceTensor;

/// The statistics by tensor.
struct Records<'a> {
    by_name: HashMap<&'a str, &'a TensorStatistics>,
    /// Whether any of them has the error of a tensor's outputs.
    say_outputs: bool,
}

impl<'a> Records<'a> {
    fn of(statistics: &'a Statistics) -> Self {
        let tensors = statistics.tensors.iter();
        Self {
            by_name: tensors.map(|t| (t.name.as_str(), t)).collect(),
            say_outputs: statistics.tensors.iter().any(|t| t.output.is_some()),
        }
    }
}

/// What recomputing the statistics found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RecheckReport {
    /// Quantized tensors whose statistics were recomputed.
    pub tensors: usize,
    /// Those of them that were calibrated: recomputed from the stored codes and scales, all but
    /// their output errors and what was under the window.
    pub calibrated: usize,
    /// Figures that do not hold, in index order; empty where all hold.
    pub differences: Vec<Difference>,
    /// What the checkpoint's reader has to say ([`Checkpoint::notes`]).
    pub notes: Vec<String>,
}

/// A figure that does not hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Name of the tensor in the file.
    pub tensor: String,
    /// What differs, named as in the JSON report.
    pub figure: String,
    /// The figure that the file has.
    pub recorded: String,
    /// The figure that follows from the source.
    pub recomputed: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "tensor {:?}: {} is recorded as {} and recomputed as {}",
            self.tensor, self.figure, self.recorded, self.recomputed
        )
    }
}

/// Recomputes from `checkpoint` all that `file` says of it: raw tensors byte for byte, and for each
/// quantized one the error of what is stored and the record that quantizing anew gives. A
/// calibrated tensor's record is that of the stored codes and scales; its output error and the
/// file's receipts, which texts decide, are taken as they are. `progress` gets source bytes as they
/// are done.
///
/// # Errors
/// A checkpoint that cannot be read or does not hold the file's tensors; a file without statistics.
pub fn recheck(
    file: &SmqFile,
    checkpoint: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<RecheckReport, InspectError> {
    let mut source = Checkpoint::open(checkpoint)?;
    let parameters = &file.index().provenance.parameters;
    if parameters.get(IMPORT_CODES).map(String::as_str) == Some(CODES_REQUANTIZED) {
        source.requantize();
    }
    let statistics = file.statistics()?.ok_or_else(|| {
        InspectError::Recheck(format!(
            "{}: has no statistics to recheck",
            file.path().display()
        ))
    })?;
    let mut report = RecheckReport {
        notes: source.notes().to_vec(),
        ..RecheckReport::default()
    };
    let records = Records::of(&statistics);
    for view in file.tensors() {
        let tensor = find(file, &source, &view)?;
        match view.data() {
            TensorData::Raw { bytes, .. } => {
                if source.bytes(tensor) != bytes {
                    report.differs(view.name(), "bytes", "these", "others");
                }
            }
            TensorData::Int4 { .. }
            | TensorData::Lut4 { .. }
            | TensorData::Nf4 { .. }
            | TensorData::Fp8 { .. } => {
                recheck_tensor(file, &source, tensor, &view, &records, &mut report)?;
            }
        }
        progress(tensor.range.len() as u64);
    }
    Ok(report)
}

impl RecheckReport {
    fn differs(
        &mut self,
        tensor: &str,
        figure: &str,
        recorded: impl Debug,
        recomputed: impl Debug,
    ) {
        self.differences.push(Difference {
            tensor: tensor.to_owned(),
            figure: figure.to_owned(),
            recorded: format!("{recorded:?}"),
            recomputed: format!("{recomputed:?}"),
        });
    }

    fn check<T: Debug + PartialEq>(&mut self, tensor: &str, figure: &str, recorded: T, again: T) {
        if recorded != again {
            self.differs(tensor, figure, recorded, again);
        }
    }
}

/// The checkpoint's tensor of the same name, which must have the same shape and element type.
fn find<'c>(
    file: &SmqFile,
    source: &'c Checkpoint,
    view: &TensorView,
) -> Result<&'c SourceTensor, InspectError> {
    let entry = view.entry();
    match source.tensor(view.name()) {
        Some(t) if t.shape == entry.shape && t.dtype == entry.source_dtype => Ok(t),
        Some(t) => Err(InspectError::Recheck(format!(
            "{}: tensor {:?} is {} {:?}, but {} was made from {} {:?}; give the checkpoint it was \
             made from",
            source.path().display(),
            t.name,
            t.dtype,
            t.shape,
            file.path().display(),
            entry.source_dtype,
            entry.shape
        ))),
        None => Err(InspectError::Recheck(format!(
            "{}: has no tensor {:?}, which {} holds; give the checkpoint it was made from",
            source.path().display(),
            view.name(),
            file.path().display()
        ))),
    }
}

fn recheck_tensor(
    file: &SmqFile,
    source: &Checkpoint,
    tensor: &SourceTensor,
    view: &TensorView,
    records: &Records,
    report: &mut RecheckReport,
) -> Result<(), InspectError> {
    let name = view.name();
    let failed = |e: String| InspectError::Recheck(format!("{}: {e}", file.path().display()));
    let (rows, columns) = view.matrix_shape();
    let (Some(record), Some(group), Some(method)) = (
        records.by_name.get(name).copied(),
        view.scheme().group(columns),
        method_of(file, view),
    ) else {
        report.differs(name, "record", "absent", "present");
        return Ok(());
    };
    let stored = remeasure(
        (rows, columns),
        group,
        |row, out| source.read_row(tensor, row, out),
        |row, out| view.dequantize_rows(row..row + 1, out),
    )
    .map_err(|defect| failed(defect.to_string()))?;
    let is_calibrated = is_calibrated(file, records, record);
    let restored = match is_calibrated {
        true => restored(source, tensor, view).map_err(|defect| failed(defect.to_string()))?,
        false => None,
    };
    let again = match restored {
        Some(restored) => restored,
        None => quantize_tensor(source, tensor, method)
            .map_err(|e| failed(format!("tensor {name:?} cannot be quantized anew: {e:?}")))?,
    };
    report.tensors += 1;
    report.calibrated += usize::from(is_calibrated);
    let (ours, theirs) = (levels_of(view.scheme()), levels_of(again.scheme));
    if ours != theirs {
        report.differs(name, "levels", ours, theirs);
    }
    let again = again.statistics;
    report.check(name, "stored", record.stored, stored);
    report.check(name, "stored (quantized anew)", record.stored, again.stored);
    report.check(name, "exact", record.exact, again.exact);
    report.check(name, "groups", record.groups, again.groups);
    report.check(name, "zero_groups", record.zero_groups, again.zero_groups);
    if !is_calibrated {
        report.check(
            name,
            "under_window",
            record.under_window,
            again.under_window,
        );
    }
    report.check(name, "clipped", record.clipped, again.clipped);
    report.check(
        name,
        "exponent_counts",
        (record.first_exponent, &record.exponent_counts),
        (again.first_exponent, &again.exponent_counts),
    );
    report.check(
        name,
        "row_blocks",
        (record.block_rows, &record.row_blocks),
        (again.block_rows, &again.row_blocks),
    );
    Ok(())
}

/// Whether a calibration text chose the tensor's codes. Where statistics have no output error at
/// all, as version 1 has none, every tensor of a calibrated file may be meant.
fn is_calibrated(file: &SmqFile, records: &Records, record: &TensorStatistics) -> bool {
    let parameters = &file.index().provenance.parameters;
    parameters.contains_key(CALIBRATION) && (record.output.is_some() || !records.say_outputs)
}

/// What [`restore`] makes of a tensor and its source.
fn restored(
    source: &Checkpoint,
    tensor: &SourceTensor,
    view: &TensorView,
) -> Result<Option<Quantized>, Defect> {
    let (rows, columns) = view.matrix_shape();
    let mut w = vec![0.0; rows * columns];
    for (row, out) in w.chunks_mut(columns.max(1)).enumerate() {
        source.read_row(tensor, row, out);
    }
    restore(view, &w)
}

/// How a tensor was quantized: its scheme, and the rule that the provenance names; `None` for a raw
/// one.
fn method_of(file: &SmqFile, view: &TensorView) -> Option<Method> {
    let (group, scales) = match view.scheme() {
        Scheme::Raw(_) => return None,
        Scheme::Nf4 { .. } => return Some(Method::Nf4),
        Scheme::Fp8 => return Some(Method::Fp8),
        Scheme::Int4 { group, scales } | Scheme::Lut4 { group, scales, .. } => (group, scales),
    };
    let parameters = &file.index().provenance.parameters;
    let rule = recorded_rule(parameters, view.name());
    let options = QuantizeOptions {
        group,
        scales: scales.into(),
        rule: rule.unwrap_or(ScaleRule::Reference),
    };
    Some(match view.scheme() {
        Scheme::Lut4 { .. } => Method::Lut4 {
            options,
            levels: recorded_levels(parameters).unwrap_or(LevelChoice::Learned),
        },
        Scheme::Int4 { .. } | Scheme::Raw(_) | Scheme::Nf4 { .. } | Scheme::Fp8 => {
            Method::Int4(options)
        }
    })
}

/// The code book of a scheme that has one.
fn levels_of(scheme: Scheme) -> Option<Levels> {
    match scheme {
        Scheme::Lut4 { levels, .. } => Some(levels),
        Scheme::Raw(_) | Scheme::Int4 { .. } | Scheme::Nf4 { .. } | Scheme::Fp8 => None,
    }
}
