//! Work recorded once and replayed, and timing by replay.

use std::ptr;
use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};

use super::during::During;
use super::stream::{Event, Stream};
use crate::error::{Error, Result};
use crate::summary::Summary;

/// What a closure queued on a stream, ready to run again with one call.
#[derive(Debug)]
pub struct Graph {
    exec: sys::CUgraphExec,
    context: Arc<CudaContext>,
}

// SAFETY: the driver's handles may be used by any thread that has the context bound.
unsafe impl Send for Graph {}

/// A graph before it is made executable.
struct Captured(sys::CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the handle is alive and not used after this.
            let _ = unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

impl Graph {
    /// Records what `record` queues on `stream`, without running it.
    ///
    /// Kernels' arguments are fixed here: what changes from replay to replay is read from device
    /// memory. The graph holds neither the memory nor the kernels that are captured: whoever queues
    /// one ([`Kernel::launch`](super::Kernel::launch), which is `unsafe`) vouches that both live as
    /// long as the graph is launched.
    ///
    /// # Errors
    /// As `record` (what it queued is then forgotten), or if the driver refuses the graph.
    pub fn capture(stream: &Stream, record: impl FnOnce(&Stream) -> Result<()>) -> Result<Self> {
        let raw = stream.raw()?;
        // Relaxed: libraries may allocate or load code while they are recorded.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive.
        unsafe { sys::cuStreamBeginCapture_v2(raw, mode) }.during("starting to record a graph")?;
        let recorded = record(stream);
        let mut graph = Captured(ptr::null_mut());
        // SAFETY: the stream is capturing, and `graph` takes the result.
        let ended = unsafe { sys::cuStreamEndCapture(stream.raw()?, &raw mut graph.0) };
        recorded?;
        ended.during("recording a graph")?;
        let mut exec = ptr::null_mut();
        // SAFETY: the graph is alive, and `exec` takes the result.
        unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, graph.0, 0) }
            .during("making a graph executable")?;
        let context = Arc::clone(stream.context());
        let this = Self { exec, context };
        // SAFETY: both handles are alive.
        unsafe { sys::cuGraphUpload(this.exec, raw) }.during("copying a graph to the GPU")?;
        Ok(this)
    }

    /// Queues everything recorded.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both handles are alive. The graph holds no memory and no kernels, but every call
        // that was recorded is one of an `unsafe` function, whose caller promised that what it uses
        // lives, and is left alone, at each replay.
        unsafe { sys::cuGraphLaunch(self.exec, stream.raw()?) }.during("launching a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the handle is alive and not used after this.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}

/// Median microseconds of one of `launches` calls of `queue`, which are recorded as one graph and
/// replayed `replays` times after a warm-up.
///
/// `queue` gets the call's number, so that it can rotate through more data than a cache holds.
///
/// # Errors
/// As `queue`, or if the driver fails.
pub fn time_us(
    stream: &Stream,
    launches: usize,
    replays: usize,
    mut queue: impl FnMut(&Stream, usize) -> Result<()>,
) -> Result<f64> {
    // Made after `queue`, which holds what is queued, and so dropped before it.
    let graph = Graph::capture(stream, |s| (0..launches).try_for_each(|i| queue(s, i)))?;
    let (start, end) = (
        Event::timed(stream.context())?,
        Event::timed(stream.context())?,
    );
    graph.launch(stream)?;
    let mut times = Vec::with_capacity(replays);
    for _ in 0..replays {
        start.record(stream)?;
        graph.launch(stream)?;
        end.record(stream)?;
        end.synchronize()?;
        times.push(start.us_until(&end)? / launches as f64);
    }
    let summary = Summary::of(&times);
    let median =
        summary.ok_or_else(|| Error::Cuda("nothing was timed: no replays asked for".into()))?;
    Ok(median.p50)
}
