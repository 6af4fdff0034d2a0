//! Factorizations of symmetric matrices by cuSOLVER, in f64.

use std::ffi::c_void;
use std::ptr;

use cudarc::cusolver::sys as cs;

use super::device::Gpu;
use super::libraries::CUSOLVER;
use super::memory::{DeviceBuffer, Span};
use super::stream::Stream;
use crate::error::{Error, Result};

const LOWER: cs::cublasFillMode_t = cs::cublasFillMode_t::CUBLAS_FILL_MODE_LOWER;
const NOT_UNIT: cs::cublasDiagType_t = cs::cublasDiagType_t::CUBLAS_DIAG_NON_UNIT;

/// cuSOLVER on the GPU's main stream, with the workspace for matrices of one size.
#[derive(Debug)]
pub(super) struct Solver {
    handle: cs::cusolverDnHandle_t,
    n: usize,
    /// `[cholesky_elems]` f64, or what the inverse takes.
    workspace: DeviceBuffer,
    cholesky_elems: usize,
    /// What the inverse takes on the device and on the host, bytes.
    inverse_bytes: (usize, usize),
    /// i32: which step failed.
    info: DeviceBuffer,
}

// SAFETY: a handle may move between threads; only one thread uses it at a time, as methods take
// `&mut self`.
unsafe impl Send for Solver {}

impl Solver {
    /// Opens cuSOLVER for matrices `[n, n]`.
    ///
    /// # Errors
    /// [`Error::Cuda`] with the remedy if cuSOLVER is not installed or memory is not there.
    pub(super) fn new(gpu: &Gpu, n: usize) -> Result<Self> {
        if !CUSOLVER.is_there() {
            return Err(Error::Cuda(
                "cuSOLVER (libcusolver.so.12) was not found, which calibration factorizes with; install the CUDA 13 \
                 toolkit, or `pip install nvidia-cusolver` and put its folder (nvidia/cu13/lib) on LD_LIBRARY_PATH, or \
                 run with --device cpu"
                    .into(),
            ));
        }
        let info = DeviceBuffer::new(gpu, size_of::<i32>(), "cuSOLVER's status")?;
        let mut handle = ptr::null_mut();
        // SAFETY: the library is there, a context is current since the allocation, and `handle`
        // takes the result.
        check(unsafe { cs::cusolverDnCreate(&raw mut handle) }, "starting")?;
        let mut this = Self {
            handle,
            n,
            workspace: DeviceBuffer::new(gpu, 0, "cuSOLVER's workspace")?,
            cholesky_elems: 0,
            inverse_bytes: (0, 0),
            info,
        };
        let stream = gpu.main().raw()?.cast();
        // SAFETY: the handle and the stream are alive; the stream is the GPU's, which outlives
        // this.
        let result = unsafe { cs::cusolverDnSetStream(this.handle, stream) };
        check(result, "taking a stream")?;
        let (size, mut elems) = (this.size()?, 0);
        let nowhere = ptr::null_mut();
        // SAFETY: the handle is alive; the matrix is not read; `elems` takes the result.
        let result = unsafe {
            cs::cusolverDnDpotrf_bufferSize(this.handle, LOWER, size, nowhere, size, &raw mut elems)
        };
        check(result, "planning a factorization")?;
        this.cholesky_elems = elems.max(0).unsigned_abs() as usize;
        // SAFETY: as above; both numbers take results.
        let result = unsafe {
            cs::cusolverDnXtrtri_bufferSize(
                this.handle,
                LOWER,
                NOT_UNIT,
                i64::from(size),
                cs::cudaDataType::CUDA_R_64F,
                nowhere.cast(),
                i64::from(size),
                &raw mut this.inverse_bytes.0,
                &raw mut this.inverse_bytes.1,
            )
        };
        check(result, "planning an inverse")?;
        let bytes = (8 * this.cholesky_elems).max(this.inverse_bytes.0);
        this.workspace = DeviceBuffer::new(gpu, bytes, "cuSOLVER's workspace")?;
        Ok(this)
    }

    /// Factorizes the symmetric matrix at `a`, f64 `[n, n]`, into `L L'`: `L` comes to lie in the
    /// lower triangle of a matrix stored by columns, the upper one keeps what it had. False where
    /// the matrix is not positive definite.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the driver fails.
    ///
    /// # Safety
    /// The memory is allocated, and nothing else on the GPU uses it meanwhile.
    pub(super) unsafe fn cholesky(&mut self, stream: &Stream, a: Span) -> Result<bool> {
        let a = a.part(0, 8 * self.n * self.n)?;
        let (size, elems) = (self.size()?, i32::try_from(self.cholesky_elems));
        let elems = elems.map_err(|_| too_large(self.n))?;
        // SAFETY: the matrix and the workspace are as large as the plan says; the rest is the
        // caller's promise.
        let result = unsafe {
            cs::cusolverDnDpotrf(
                self.handle,
                LOWER,
                size,
                a.ptr() as *mut f64,
                size,
                self.workspace.ptr() as *mut f64,
                elems,
                self.info.ptr() as *mut i32,
            )
        };
        check(result, "factorizing")?;
        Ok(self.info(stream)? == 0)
    }

    /// Replaces the lower triangular `l`, as [`cholesky`](Self::cholesky) left it, with its
    /// inverse.
    ///
    /// # Errors
    /// As [`cholesky`](Self::cholesky), or where the matrix is singular.
    ///
    /// # Safety
    /// As [`cholesky`](Self::cholesky).
    pub(super) unsafe fn invert_lower(&mut self, stream: &Stream, l: Span) -> Result<()> {
        let l = l.part(0, 8 * self.n * self.n)?;
        let size = i64::from(self.size()?);
        let (device_bytes, host_bytes) = self.inverse_bytes;
        let mut host = vec![0_u8; host_bytes];
        // SAFETY: as in `cholesky`; the host's workspace lives until the stream is waited for in
        // `info`.
        let result = unsafe {
            cs::cusolverDnXtrtri(
                self.handle,
                LOWER,
                NOT_UNIT,
                size,
                cs::cudaDataType::CUDA_R_64F,
                l.ptr() as *mut c_void,
                size,
                self.workspace.ptr() as *mut c_void,
                device_bytes,
                host.as_mut_ptr().cast(),
                host_bytes,
                self.info.ptr() as *mut i32,
            )
        };
        check(result, "inverting")?;
        match self.info(stream)? {
            0 => Ok(()),
            at => Err(Error::Cuda(format!(
                "cuSOLVER found a triangular matrix singular at row {at}"
            ))),
        }
    }

    /// Replaces the rows of `b`, f64 `[n, n]` row after row, with those of `B inverse(L L')`.
    ///
    /// # Errors
    /// As [`cholesky`](Self::cholesky).
    ///
    /// # Safety
    /// As [`cholesky`](Self::cholesky), for both.
    pub(super) unsafe fn solve_rows(&mut self, stream: &Stream, l: Span, b: Span) -> Result<()> {
        let bytes = 8 * self.n * self.n;
        let (l, b) = (l.part(0, bytes)?, b.part(0, bytes)?);
        let size = self.size()?;
        // A matrix's rows are the columns of what cuSOLVER sees, which it solves for.
        // SAFETY: as in `cholesky`.
        let result = unsafe {
            cs::cusolverDnDpotrs(
                self.handle,
                LOWER,
                size,
                size,
                l.ptr() as *const f64,
                size,
                b.ptr() as *mut f64,
                size,
                self.info.ptr() as *mut i32,
            )
        };
        check(result, "solving")?;
        match self.info(stream)? {
            0 => Ok(()),
            at => Err(Error::Cuda(format!(
                "cuSOLVER refused argument {} of a solution",
                -at
            ))),
        }
    }

    /// Waits, and reads how the last call ended.
    fn info(&self, stream: &Stream) -> Result<i32> {
        let mut info = [0_i32];
        self.info.download(stream, 0, &mut info)?;
        Ok(info[0])
    }

    fn size(&self) -> Result<i32> {
        i32::try_from(self.n).map_err(|_| too_large(self.n))
    }
}

impl Drop for Solver {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and not used after this.
        let _ = unsafe { cs::cusolverDnDestroy(self.handle) };
    }
}

fn too_large(n: usize) -> Error {
    Error::Cuda(format!(
        "cuSOLVER does not factorize a matrix of {n} rows; run with --device cpu"
    ))
}

fn check(status: cs::cusolverStatus_t, what: &str) -> Result<()> {
    match status {
        cs::cusolverStatus_t::CUSOLVER_STATUS_SUCCESS => Ok(()),
        error => Err(Error::Cuda(format!(
            "cuSOLVER failed at {what} ({error:?})"
        ))),
    }
}
