//! The threads that work is done on.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::PyResult;
use pyo3::exceptions::PyRuntimeError;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// The pool, and the process that its threads are of.
static POOL: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);

/// Does `work` with this process's pool at hand, of one thread a core unless `RAYON_NUM_THREADS`
/// says otherwise.
///
/// rayon's own pool would not do: Python programs fork, as torch's data loaders do, and threads do
/// not survive that, so that the child would wait for ever for the parent's.
pub(crate) fn on_all_threads<T: Send>(work: impl FnOnce() -> T + Send) -> PyResult<T> {
    Ok(pool()?.install(work))
}

fn pool() -> PyResult<Arc<ThreadPool>> {
    let process = std::process::id();
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((owner, pool)) = pool.as_ref()
        && *owner == process
    {
        return Ok(Arc::clone(pool));
    }
    let new = ThreadPoolBuilder::new()
        .thread_name(|i| format!("smq-{i}"))
        .build()
        .map_err(|error| PyRuntimeError::new_err(format!("cannot start threads: {error}")))?;
    let new = Arc::new(new);
    // The parent's pool has no threads here, and dropping it could wait for them.
    mem::forget(pool.replace((process, Arc::clone(&new))));
    Ok(new)
}
