//! cuBLASLt's descriptors, each freed on drop.

use std::ptr;

use cudarc::cublaslt::sys as lt;
use lt::cublasLtMatmulDescAttributes_t as DescAttribute;
use lt::cublasLtMatmulMatrixScale_t as Scale;
use lt::cublasLtMatmulPreferenceAttributes_t as Preference;
use lt::cublasLtReductionScheme_t as Reduction;

use super::{Form, check};
use crate::error::Result;

/// Of cublasOperation_t, which cudarc's cuBLASLt leaves out: read the matrix as it is, or transposed.
const CUBLAS_OP_N: i32 = 0;
const CUBLAS_OP_T: i32 = 1;

/// A matrix's type, size and stride.
#[derive(Debug)]
pub(super) struct Layout(pub(super) lt::cublasLtMatrixLayout_t);

impl Layout {
    pub(super) fn new(
        dtype: lt::cudaDataType_t,
        rows: usize,
        columns: usize,
        stride: usize,
    ) -> Result<Self> {
        let mut layout = ptr::null_mut();
        // SAFETY: `layout` takes the result.
        let result = unsafe {
            lt::cublasLtMatrixLayoutCreate(
                &raw mut layout,
                dtype,
                rows as u64,
                columns as u64,
                stride as i64,
            )
        };
        check(result, "describing a matrix")?;
        Ok(Self(layout))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and not used after this.
        let _ = unsafe { lt::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

/// A product but for its matrices.
#[derive(Debug)]
pub(super) struct Operation(pub(super) lt::cublasLtMatmulDesc_t);

impl Operation {
    pub(super) fn of(form: Form) -> Result<Self> {
        let mut operation = Self(ptr::null_mut());
        let f32_type = lt::cudaDataType_t::CUDA_R_32F;
        let compute = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: the pointer takes the result.
        let result =
            unsafe { lt::cublasLtMatmulDescCreate(&raw mut operation.0, compute, f32_type) };
        check(result, "describing a product")?;
        // cuBLASLt's A is w, its B is x, and it sees both transposed already.
        let (w, x) = match form {
            Form::XWt => (CUBLAS_OP_T, CUBLAS_OP_N),
            Form::XW => (CUBLAS_OP_N, CUBLAS_OP_N),
            Form::XtW => (CUBLAS_OP_N, CUBLAS_OP_T),
        };
        operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, &w)?;
        operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, &x)?;
        Ok(operation)
    }

    /// Multiplies element (row of w, row of x) of the product with the row's f32 scales, at these
    /// addresses.
    pub(super) fn scale_rows(&mut self, w: u64, x: u64) -> Result<()> {
        // cuBLASLt's default, which matters here: fast accumulation leaves parts of k in the tensor
        // cores' few bits.
        self.set(DescAttribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &0_i8)?;
        let mode = Scale::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as i32;
        self.set(DescAttribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode)?;
        self.set(DescAttribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode)?;
        self.set(DescAttribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w)?;
        self.set(DescAttribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x)
    }

    fn set<T>(&mut self, attribute: DescAttribute, value: &T) -> Result<()> {
        // SAFETY: the handle is alive, and cuBLASLt checks the size against the attribute's.
        let result = unsafe {
            lt::cublasLtMatmulDescSetAttribute(
                self.0,
                attribute,
                ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        check(result, &format!("setting {attribute:?}"))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: the handle is alive (or null, which is allowed) and not used after this.
        let _ = unsafe { lt::cublasLtMatmulDescDestroy(self.0) };
    }
}

/// What algorithms may do.
pub(super) struct Preferences(pub(super) lt::cublasLtMatmulPreference_t);

impl Preferences {
    pub(super) fn new(workspace: usize, alignment: u32) -> Result<Self> {
        let mut this = Self(ptr::null_mut());
        // SAFETY: the pointer takes the result.
        let result = unsafe { lt::cublasLtMatmulPreferenceCreate(&raw mut this.0) };
        check(result, "describing a product")?;
        this.set(
            Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            &workspace,
        )?;
        // Parts of k may be summed apart only if a later step adds them up, in a fixed order and in
        // f32. (The in-place scheme adds to y itself, in y's type.)
        let reductions = Reduction::CUBLASLT_REDUCTION_SCHEME_NONE as u32
            | Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        this.set(
            Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            &reductions,
        )?;
        for matrix in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            this.set(matrix, &alignment)?;
        }
        Ok(this)
    }

    fn set<T>(&self, attribute: Preference, value: &T) -> Result<()> {
        // SAFETY: the handle is alive, and cuBLASLt checks the size against the attribute's.
        let result = unsafe {
            lt::cublasLtMatmulPreferenceSetAttribute(
                self.0,
                attribute,
                ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        check(result, &format!("setting {attribute:?}"))
    }
}

impl Drop for Preferences {
    fn drop(&mut self) {
        // SAFETY: the handle is alive (or null, which is allowed) and not used after this.
        let _ = unsafe { lt::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}
