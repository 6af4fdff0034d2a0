//! What differs between two files: `smq-inspect diff`.
//!
//! Blobs are compared by the hashes that the files record, which [`super::verify()`] checks; only
//! the weights of tensors that differ are read, a few rows at a time.

mod fact;
mod facts;
mod text;
mod weights;

use std::collections::HashMap;

use serde::Serialize;
use smq_format::SmqFile;

use super::error::InspectError;
use super::report::{Report, TensorReport};
use super::tensor_name::natural;

pub use fact::Fact;
use facts::{count_blobs, file_changes, stored, tensor_changes};
pub use text::diff_text;
pub use weights::{Counted, WeightDiff};

/// Version of the JSON form; its rules are the report's.
const DIFF_VERSION: u32 = 2;

/// What differs between file A and file B.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// Version of the JSON form, 2.
    pub diff_version: u32,
    /// File A, as it was named.
    pub a: String,
    /// File B, as it was named.
    pub b: String,
    /// The headers, and with them every recorded hash, are equal.
    pub identical: bool,
    /// Header, provenance, embedded files, order of the tensors.
    pub file: Vec<Change>,
    /// Tensors that only A has, in its order.
    pub only_in_a: Vec<String>,
    /// Tensors that only B has, in its order.
    pub only_in_b: Vec<String>,
    /// Tensors that both files have, by name.
    pub tensors_in_both: usize,
    /// Blobs by role of the tensors in both, and embedded files.
    pub blobs: BlobCounts,
    /// Tensors in both that differ, largest difference first.
    pub tensors: Vec<TensorDiff>,
    /// Mean relative MSE over all groups in A's statistics; `null` without any.
    pub mean_rel_mse_a: Option<f64>,
    /// Mean relative MSE of B, likewise.
    pub mean_rel_mse_b: Option<f64>,
}

/// A fact that differs; `null` where a file does not have it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// What differs, such as `parameter group_size`.
    pub what: String,
    /// What A has there; `null` where it has nothing.
    pub a: Option<Fact>,
    /// What B has there; `null` where it has nothing.
    pub b: Option<Fact>,
}

/// Blobs, compared by length and recorded hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct BlobCounts {
    /// Blobs that are the same in both files.
    pub equal: usize,
    /// Blobs that both files have, with other contents.
    pub differing: usize,
    /// Blobs that A alone has.
    pub only_in_a: usize,
    /// Blobs that B alone has.
    pub only_in_b: usize,
}

/// A tensor in both files that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDiff {
    /// Name of the tensor in both files.
    pub name: String,
    /// Shape, element type, scheme and its parameters, statistics.
    pub changes: Vec<Change>,
    /// How A stores it: `e5m5/128`, `bf16`.
    pub stored_a: String,
    /// How B stores it.
    pub stored_b: String,
    /// Roles of blobs that are not the same in both.
    pub blobs: Vec<String>,
    /// The dequantized weights; `null` where the shapes differ, or where neither scheme nor blobs
    /// do.
    pub weights: Option<WeightDiff>,
    /// Mean relative MSE in A's statistics.
    pub mean_rel_mse_a: Option<f64>,
    /// Mean relative MSE that B records.
    pub mean_rel_mse_b: Option<f64>,
}

impl TensorDiff {
    /// What to sort by: no common shape, then the relative RMS difference.
    fn size(&self) -> (bool, f64) {
        let incomparable = self.changes.iter().any(|c| c.what == "shape");
        let relative = self.weights.as_ref().map(|w| w.relative_rms);
        (
            incomparable,
            relative.map_or(0.0, |r| r.unwrap_or(f64::INFINITY)),
        )
    }
}

impl Diff {
    /// Compares two open files; `progress` gets bytes of A's tensors as they are done,
    /// [`diff_bytes`] in all.
    ///
    /// # Errors
    /// An invalid scale code in a tensor whose weights are compared.
    pub fn of(
        a: &SmqFile,
        b: &SmqFile,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, InspectError> {
        let (report_a, report_b) = (Report::of(a), Report::of(b));
        let reports_b: HashMap<&str, &TensorReport> = report_b
            .tensors
            .iter()
            .map(|t| (t.name.as_str(), t))
            .collect();
        let mut blobs = BlobCounts::default();
        let file = file_changes(a, b, &report_a, &report_b, &mut blobs);
        let mut tensors = Vec::new();
        let mut in_both = 0;
        for (view_a, report_a) in a.tensors().zip(&report_a.tensors) {
            let of_b = reports_b.get(view_a.name()).zip(b.tensor(view_a.name()));
            let Some((report_b, view_b)) = of_b else {
                continue;
            };
            in_both += 1;
            let roles = count_blobs(view_a.entry(), view_b.entry(), &mut blobs);
            let changes = tensor_changes(view_a.entry(), view_b.entry(), report_a, report_b);
            let data_differs = !roles.is_empty() || view_a.scheme() != view_b.scheme();
            if data_differs || !changes.is_empty() {
                let comparable = data_differs && view_a.shape() == view_b.shape();
                let weights = match comparable {
                    true => Some(weights::compare((a, &view_a), (b, &view_b))?),
                    false => None,
                };
                let mean = |t: &TensorReport| t.errors.as_ref().map(|e| e.stored.mean_rel_mse);
                tensors.push(TensorDiff {
                    name: view_a.name().to_owned(),
                    changes,
                    stored_a: stored(view_a.entry()),
                    stored_b: stored(view_b.entry()),
                    blobs: roles,
                    weights,
                    mean_rel_mse_a: mean(report_a),
                    mean_rel_mse_b: mean(report_b),
                });
            }
            progress(view_a.entry().stored_bytes());
        }
        tensors.sort_by(|x, y| {
            let (x_size, y_size) = (x.size(), y.size());
            let larger_first = y_size.0.cmp(&x_size.0).then(y_size.1.total_cmp(&x_size.1));
            larger_first.then_with(|| natural(&x.name, &y.name))
        });
        Ok(Diff {
            diff_version: DIFF_VERSION,
            a: report_a.path.clone(),
            b: report_b.path.clone(),
            identical: a.bytes()[..HEADER] == b.bytes()[..HEADER],
            file,
            only_in_a: only_in(a, b),
            only_in_b: only_in(b, a),
            tensors_in_both: in_both,
            blobs,
            tensors,
            mean_rel_mse_a: report_a.totals.map(|t| t.mean_rel_mse),
            mean_rel_mse_b: report_b.totals.map(|t| t.mean_rel_mse),
        })
    }
}

const HEADER: usize = smq_format::header::HEADER_BYTES;

/// Bytes that [`Diff::of`] reports as progress.
pub fn diff_bytes(a: &SmqFile, b: &SmqFile) -> u64 {
    let in_both = a.tensors().filter(|t| b.tensor(t.name()).is_some());
    in_both.map(|t| t.entry().stored_bytes()).sum()
}

fn only_in(a: &SmqFile, b: &SmqFile) -> Vec<String> {
    let missing = a.tensors().filter(|t| b.tensor(t.name()).is_none());
    missing.map(|t| t.name().to_owned()).collect()
}
