//! What inspection can fail with, apart from the file itself.

use std::path::PathBuf;

/// Why a report cannot be made or shown: one sentence each.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The tensor asked for is not in the file.
    #[error("{}: no tensor is called {name:?}{}", path.display(), hint(candidates))]
    NoSuchTensor {
        /// The .smq file that was looked through.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// Tensors whose names contain it.
        candidates: Vec<String>,
    },
    /// A plot cannot be drawn.
    #[error("cannot draw {figure}: {reason}")]
    Plot {
        /// Which of the page's plots it is.
        figure: &'static str,
        /// The plotting library's reason.
        reason: String,
    },
    /// The rows cannot be written as CSV.
    #[error("cannot write CSV: {0}")]
    Csv(#[from] ::csv::Error),
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] crate::ConvertError),
    /// The .smq file cannot be read.
    #[error(transparent)]
    File(#[from] smq_format::Error),
    /// Rechecking failed before it could compare anything.
    #[error("{0}")]
    Recheck(String),
}

/// Most candidates that an error message names.
const HINTS: usize = 5;

fn hint(candidates: &[String]) -> String {
    if candidates.is_empty() {
        return "; --json lists every tensor".to_owned();
    }
    let shown: Vec<_> = candidates.iter().take(HINTS).map(String::as_str).collect();
    let more = candidates.len() - shown.len();
    let tail = match more {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    format!("; names that contain it: {}{tail}", shown.join(", "))
}
