//! Products of many rows by cuBLASLt: `y[m, n] = x[m, k] w[n, k]^T` and its transposes; bf16, FP8 or
//! f32 in, sums in f32.

mod descriptors;

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Arc, Mutex};

use cudarc::cublaslt::sys as lt;

use descriptors::{Layout, Operation, Preferences};

use super::device::Gpu;
use super::libraries::CUBLASLT;
use super::memory::DeviceBuffer;
use super::stream::Stream;
use crate::error::{Error, Result};

/// What addresses and rows of x, w and y must be multiples of, in bytes.
const ALIGN: u32 = 16;

/// Algorithms asked for.
const MAX_RANKS: usize = 8;

/// The type of a product's factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// bf16.
    Bf16,
    /// E4M3 codes, and an f32 scale for each row of w and of x, which multiply the sum. Needs k in
    /// multiples of 16 and a GPU of compute capability 9.0 (cuBLAS's manual, "Outer Vector Scaling
    /// for FP8 Data Types").
    Fp8,
    /// f32, multiplied and summed as such.
    F32,
}

/// How the factors of a product lie; both are stored row after row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// `x[m, k] w[n, k]^T`: rows of activations with rows of weights.
    XWt,
    /// `x[m, k] w[k, n]`.
    XW,
    /// `x[k, m]^T w[k, n]`: sums over the rows of both.
    XtW,
}

/// The type of a product's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// Rounded to bf16.
    Bf16,
    /// As summed.
    F32,
}

/// A product with the result `y[m, n]`; rows of each matrix may lie any stride apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatMul {
    /// Rows of y.
    pub m: usize,
    /// Columns of y.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// How x and w lie.
    pub form: Form,
    /// Elements from a row of x to the next.
    pub x_stride: usize,
    /// Elements from a row of w to the next.
    pub w_stride: usize,
    /// Elements from a row of y to the next.
    pub y_stride: usize,
    /// Type of x and w.
    pub input: Input,
    /// Type of y.
    pub output: Output,
    /// Adds to y instead of overwriting it. In bf16 the product may be rounded before it is added.
    pub accumulate: bool,
}

/// Addresses of an FP8 factor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scaled {
    /// E4M3 codes.
    pub codes: u64,
    /// f32, one a row.
    pub scales: u64,
}

/// A product with the algorithm for it.
#[derive(Debug)]
pub struct Plan {
    product: MatMul,
    operation: Operation,
    /// Of x, and of y.
    types: [lt::cudaDataType_t; 2],
    w: Layout,
    x: Layout,
    y: Layout,
    algorithm: lt::cublasLtMatmulAlgo_t,
}

/// cuBLASLt with its workspace, for one stream at a time.
#[derive(Debug)]
pub struct Blas {
    handle: lt::cublasLtHandle_t,
    workspace: DeviceBuffer,
    /// By product, and by the rows whose algorithm it has.
    plans: Mutex<HashMap<(MatMul, usize), Arc<Plan>>>,
}

// SAFETY: a handle may be used by any thread, by several at once too (cuBLASLt's manual).
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl Blas {
    /// Opens cuBLASLt; `workspace` bytes of device memory are its to use, 32 MiB being what NVIDIA
    /// recommends for Hopper.
    ///
    /// # Errors
    /// [`Error::Cuda`] with the remedy if cuBLASLt is not installed or the memory is not there.
    pub fn new(gpu: &Gpu, workspace: usize) -> Result<Self> {
        if !CUBLASLT.is_there() {
            return Err(Error::Cuda(
                "cuBLASLt (libcublasLt.so.13) was not found, which multiplies large matrices; install the \
                 CUDA 13 toolkit, or `pip install nvidia-cublas` and put its folder (nvidia/cu13/lib) on \
                 LD_LIBRARY_PATH, or run with --device cpu"
                    .into(),
            ));
        }
        let workspace = DeviceBuffer::new(gpu, workspace, "cuBLASLt's workspace")?;
        let mut handle = ptr::null_mut();
        // SAFETY: the library is there, a context is current since the allocation, and `handle`
        // takes the result.
        check(unsafe { lt::cublasLtCreate(&raw mut handle) }, "starting")?;
        let plans = Mutex::default();
        Ok(Self {
            handle,
            workspace,
            plans,
        })
    }

    /// The algorithm for a product: always the same for the same product on the same GPU and
    /// library, so that results are, to the bit. Kept for the next call.
    ///
    /// # Errors
    /// [`Error::Cuda`] if cuBLASLt has none.
    pub fn plan(&self, product: &MatMul) -> Result<Arc<Plan>> {
        self.plan_as(product, product.m)
    }

    /// As [`plan`](Self::plan), with the algorithm for `m` rows, whatever the product has: so that a
    /// row is added up in one order whatever it is multiplied beside.
    ///
    /// # Errors
    /// [`Error::Cuda`] if cuBLASLt has none, or it does not take the product's rows.
    pub(super) fn plan_as(&self, product: &MatMul, m: usize) -> Result<Arc<Plan>> {
        let broken = |_| Error::Cuda("a thread failed while it planned a product".into());
        let key = (*product, m);
        if let Some(plan) = self.plans.lock().map_err(broken)?.get(&key) {
            return Ok(Arc::clone(plan));
        }
        let mut plan = self.make_plan(&MatMul { m, ..*product })?;
        if m != product.m {
            plan.set_rows(product.m)?;
            self.check_plan(&plan)?;
        }
        let mut plans = self.plans.lock().map_err(broken)?;
        Ok(Arc::clone(plans.entry(key).or_insert(Arc::new(plan))))
    }

    /// Whether the plan's algorithm does its product.
    fn check_plan(&self, plan: &Plan) -> Result<()> {
        let mut found = MaybeUninit::<lt::cublasLtMatmulHeuristicResult_t>::uninit();
        // SAFETY: all handles are alive; `found` takes the result.
        let result = unsafe {
            lt::cublasLtMatmulAlgoCheck(
                self.handle,
                plan.operation.0,
                plan.w.0,
                plan.x.0,
                plan.y.0,
                plan.y.0,
                &raw const plan.algorithm,
                found.as_mut_ptr(),
            )
        };
        check(
            result,
            &format!("taking an algorithm to {:?}", plan.product),
        )?;
        // SAFETY: it is written where the call succeeds.
        let needs = unsafe { found.assume_init() }.workspaceSize;
        match needs <= self.workspace.bytes() {
            true => Ok(()),
            false => Err(Error::Cuda(format!(
                "cuBLASLt needs {needs} bytes of workspace for {:?}, there are {}",
                plan.product,
                self.workspace.bytes()
            ))),
        }
    }

    fn make_plan(&self, product: &MatMul) -> Result<Plan> {
        let p = product;
        let y_type = match p.output {
            Output::Bf16 => lt::cudaDataType_t::CUDA_R_16BF,
            Output::F32 => lt::cudaDataType_t::CUDA_R_32F,
        };
        if p.input == Input::Fp8 && !(p.k | p.x_stride).is_multiple_of(ALIGN as usize) {
            let (k, stride) = (p.k, p.x_stride);
            return Err(Error::Cuda(format!(
                "an FP8 product has rows of {k} codes, {stride} apart; cuBLASLt needs multiples of {ALIGN}: run with \
                 --device cpu"
            )));
        }
        // cuBLASLt stores columns one after the other: seen so, each matrix is its transpose, as
        // many columns as it has rows here.
        let ([x_rows, x_columns], [w_rows, w_columns]) = match p.form {
            Form::XWt => ([p.m, p.k], [p.n, p.k]),
            Form::XW => ([p.m, p.k], [p.k, p.n]),
            Form::XtW => ([p.k, p.m], [p.k, p.n]),
        };
        if p.x_stride < x_columns || p.w_stride < w_columns || p.y_stride < p.n {
            return Err(Error::Cuda(format!("rows of a product overlap: {p:?}")));
        }
        let mut operation = Operation::of(p.form)?;
        let x_type = match p.input {
            Input::Bf16 => lt::cudaDataType_t::CUDA_R_16BF,
            Input::F32 => lt::cudaDataType_t::CUDA_R_32F,
            Input::Fp8 => {
                // Where the scales are is not known yet, only that they are somewhere.
                operation.scale_rows(self.workspace.ptr(), self.workspace.ptr())?;
                lt::cudaDataType_t::CUDA_R_8F_E4M3
            }
        };
        let w = Layout::new(x_type, w_columns, w_rows, p.w_stride)?;
        let x = Layout::new(x_type, x_columns, x_rows, p.x_stride)?;
        let y = Layout::new(y_type, p.n, p.m, p.y_stride)?;
        let types = [x_type, y_type];
        let preference = Preferences::new(self.workspace.bytes(), ALIGN)?;
        let mut found = [MaybeUninit::<lt::cublasLtMatmulHeuristicResult_t>::uninit(); MAX_RANKS];
        let mut count = 0;
        // SAFETY: all handles are alive; `found` has room for as many results as are asked for.
        let result = unsafe {
            lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                operation.0,
                w.0,
                x.0,
                y.0,
                y.0,
                preference.0,
                // Asking for more might change the order of the first ones.
                MAX_RANKS as i32,
                found.as_mut_ptr().cast(),
                &raw mut count,
            )
        };
        check(result, &format!("planning {p:?}"))?;
        if count < 1 {
            return Err(Error::Cuda(format!("cuBLASLt has no algorithm for {p:?}")));
        }
        // SAFETY: the first `count` are written.
        let chosen = unsafe { found[0].assume_init() };
        check(chosen.state, &format!("planning {p:?}"))?;
        Ok(Plan {
            product: *p,
            operation,
            types,
            w,
            x,
            y,
            algorithm: chosen.algo,
        })
    }

    /// Queues the product, of bf16 or f32, on `stream`, which may be capturing a graph.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the plan is of FP8, an address is not a multiple of 16, or
    /// cuBLASLt fails.
    ///
    /// # Safety
    /// `w`, `x` and `y` are addresses of device memory as large as the plan's product says, that
    /// stays allocated and otherwise untouched until the product is done, at each replay of a
    /// graph. No other product of this `Blas` runs at the same time on another stream: they share
    /// the workspace.
    pub unsafe fn run(&self, stream: &Stream, plan: &Plan, w: u64, x: u64, y: u64) -> Result<()> {
        match plan.product.input {
            Input::Bf16 | Input::F32 => {}
            Input::Fp8 => return Err(plan.mistaken("without scales")),
        }
        // SAFETY: the caller's promise.
        unsafe { self.multiply(stream, &plan.operation, plan, [w, x, y]) }
    }

    /// As [`run`](Blas::run), of FP8 codes with their scales.
    ///
    /// # Errors
    /// As [`run`](Blas::run).
    ///
    /// # Safety
    /// As [`run`](Blas::run); there are n scales of `w` and m of `x`.
    pub(super) unsafe fn run_fp8(
        &self,
        stream: &Stream,
        plan: &Plan,
        w: Scaled,
        x: Scaled,
        y: u64,
    ) -> Result<()> {
        match plan.product.input {
            Input::Fp8 => {}
            Input::Bf16 | Input::F32 => return Err(plan.mistaken("with scales")),
        }
        if !(w.scales | x.scales).is_multiple_of(u64::from(ALIGN)) {
            let both = [w.scales, x.scales];
            return Err(Error::Cuda(format!(
                "scales at {both:x?} are not aligned to {ALIGN} bytes"
            )));
        }
        // The plan serves all matrices of a shape; an operation is one matrix's.
        let mut operation = Operation::of(plan.product.form)?;
        operation.scale_rows(w.scales, x.scales)?;
        // SAFETY: the caller's promise.
        unsafe { self.multiply(stream, &operation, plan, [w.codes, x.codes, y]) }
    }

    /// # Safety
    /// As [`run`](Blas::run); `operation` is the plan's, but for the scales.
    unsafe fn multiply(
        &self,
        stream: &Stream,
        operation: &Operation,
        plan: &Plan,
        [w, x, y]: [u64; 3],
    ) -> Result<()> {
        if !(w | x | y).is_multiple_of(u64::from(ALIGN)) {
            let all = [w, x, y];
            return Err(Error::Cuda(format!(
                "matrices at {all:x?} are not aligned to {ALIGN} bytes"
            )));
        }
        let alpha = 1.0_f32;
        let beta = f32::from(u8::from(plan.product.accumulate));
        // SAFETY: all handles are alive, scalars are f32 in host memory as the operation says, the
        // workspace is as large as said. The rest is the caller's.
        let result = unsafe {
            lt::cublasLtMatmul(
                self.handle,
                operation.0,
                (&raw const alpha).cast(),
                w as *const c_void,
                plan.w.0,
                x as *const c_void,
                plan.x.0,
                (&raw const beta).cast(),
                y as *const c_void,
                plan.y.0,
                y as *mut c_void,
                plan.y.0,
                &raw const plan.algorithm,
                self.workspace.ptr() as *mut c_void,
                self.workspace.bytes(),
                stream.raw()?.cast(),
            )
        };
        match result {
            lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
            error => check(error, &format!("multiplying {:?}", plan.product)),
        }
    }
}

impl Plan {
    /// Changes how many rows x and y have, x row after row.
    fn set_rows(&mut self, m: usize) -> Result<()> {
        let p = &mut self.product;
        p.m = m;
        let [x_type, y_type] = self.types;
        match p.form {
            Form::XWt | Form::XW => {
                self.x = Layout::new(x_type, p.k, m, p.x_stride)?;
                self.y = Layout::new(y_type, p.n, m, p.y_stride)?;
                Ok(())
            }
            // Its rows are columns of x.
            Form::XtW => Err(Error::Cuda(format!(
                "an algorithm is taken over for {p:?}, whose x is transposed"
            ))),
        }
    }

    fn mistaken(&self, run: &str) -> Error {
        let product = &self.product;
        Error::Cuda(format!(
            "a product was planned as {product:?} and run {run}"
        ))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and not used after this.
        let _ = unsafe { lt::cublasLtDestroy(self.handle) };
    }
}

// SAFETY: written once, then only read by cuBLASLt.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

fn check(status: lt::cublasStatus_t, what: &str) -> Result<()> {
    match status {
        lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        error => Err(Error::Cuda(format!(
            "cuBLASLt failed at {what} ({error:?})"
        ))),
    }
}
