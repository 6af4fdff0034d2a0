//! How long work is run: on which threads, and who is told how far it is.

use crate::error::ConvertError;

/// Called with source bytes done so far; returns whether to go on.
pub type Progress<'a> = &'a (dyn Fn(u64) -> bool + Sync);

/// Threads started for each core, at most: more of them do not make work faster, and thousands take
/// the machine's memory.
pub const MAX_THREADS_PER_CORE: usize = 8;

/// So many threads, or as many as are started at most.
#[must_use]
pub fn threads(wanted: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    wanted.min(MAX_THREADS_PER_CORE * cores)
}

/// Threads of our own; 0 is one for each core.
pub(crate) fn pool(jobs: usize) -> Result<rayon::ThreadPool, ConvertError> {
    let jobs = threads(jobs);
    let builder = rayon::ThreadPoolBuilder::new().num_threads(jobs);
    builder.build().map_err(|e| ConvertError::Threads {
        jobs,
        reason: e.to_string(),
    })
}
