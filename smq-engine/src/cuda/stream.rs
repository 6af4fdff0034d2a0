//! Streams and events.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use super::during::During;
use crate::error::Result;

/// A queue of work that runs in order, beside other streams.
#[derive(Debug, Clone)]
pub struct Stream(Arc<CudaStream>);

impl Stream {
    /// A new one, which does not wait for the legacy default stream.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        context.new_stream().during("creating a stream").map(Self)
    }

    /// The driver's handle, with this thread ready to use it.
    ///
    /// # Errors
    /// If the context is broken.
    pub fn raw(&self) -> Result<sys::CUstream> {
        self.context().bind_to_thread().during("using the GPU")?;
        Ok(self.0.cu_stream())
    }

    /// Its context.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        self.0.context()
    }

    /// Waits until everything on it has run.
    ///
    /// # Errors
    /// If something that ran failed.
    pub fn synchronize(&self) -> Result<()> {
        self.0.synchronize().during("waiting for the GPU")
    }

    /// Asks, without waiting, whether something that ran failed.
    ///
    /// # Errors
    /// If it did.
    pub fn check(&self) -> Result<()> {
        // SAFETY: the handle is alive.
        match unsafe { sys::cuStreamQuery(self.raw()?) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(()),
            result => result.during("running on the GPU"),
        }
    }
}

/// A mark in a stream, to wait for or to time with.
#[derive(Debug)]
pub(super) struct Event {
    raw: sys::CUevent,
    context: Arc<CudaContext>,
}

// SAFETY: the driver's handles may be used by any thread that has the context bound.
unsafe impl Send for Event {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Event {}

impl Event {
    /// For ordering only, which is cheaper.
    ///
    /// # Errors
    /// If the driver fails.
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        Self::with(context, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// Also takes the time.
    ///
    /// # Errors
    /// If the driver fails.
    pub(super) fn timed(context: &Arc<CudaContext>) -> Result<Self> {
        Self::with(context, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(context: &Arc<CudaContext>, flags: sys::CUevent_flags) -> Result<Self> {
        context.bind_to_thread().during("creating an event")?;
        let raw = result::event::create(flags).during("creating an event")?;
        let context = Arc::clone(context);
        Ok(Self { raw, context })
    }

    /// Marks what is queued on `stream` so far.
    ///
    /// # Errors
    /// If the driver fails.
    pub(super) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both handles are alive.
        unsafe { sys::cuEventRecord(self.raw, stream.raw()?) }.during("recording an event")
    }

    /// Waits until what was marked has run; at once if nothing was.
    ///
    /// # Errors
    /// If something that ran failed.
    pub(super) fn synchronize(&self) -> Result<()> {
        let what = "waiting for the GPU";
        self.context.bind_to_thread().during(what)?;
        // SAFETY: the handle is alive.
        unsafe { sys::cuEventSynchronize(self.raw) }.during(what)
    }

    /// Microseconds from `self` to `end`, both timed, recorded and over.
    ///
    /// # Errors
    /// If one of them is not.
    pub(super) fn us_until(&self, end: &Self) -> Result<f64> {
        let mut ms = 0.0_f32;
        // SAFETY: both handles are alive and `ms` is where the result goes.
        unsafe { sys::cuEventElapsedTime_v2(&raw mut ms, self.raw, end.raw) }
            .during("reading the time between two events")?;
        Ok(f64::from(ms) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the handle is alive, and nothing uses it after this. What went wrong on the
            // GPU before is reported where it is waited for.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}
