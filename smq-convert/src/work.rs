//! How long work is run: on which threads, and who is told how far it is.

use crate::error::ConvertError;

/// Called with source bytes done so far; returns whether to go on.
pub type Progress<'a> = &'a (dyn Fn(u64) -> bool + Sync);

/// Threads of our own.
pub(crate) fn pool(jobs: usize) -> Result<rayon::ThreadPool, ConvertError> {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(jobs);
    builder.build().map_err(|e| ConvertError::Threads {
        jobs,
        reason: e.to_string(),
    })
}
