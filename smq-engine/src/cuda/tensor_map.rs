//! Tensor maps: how the copy engine of a multiprocessor (TMA) sees a matrix.

use cudarc::driver::sys::{self, CUtensorMap};

use super::during::During;
use super::memory::Span;
use crate::error::{Error, Result};

/// bf16 with the 128-byte swizzle.
const BF16: (sys::CUtensorMapDataType, sys::CUtensorMapSwizzle) = (
    sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
);
/// 8 bytes of anything, as they lie.
const WORDS: (sys::CUtensorMapDataType, sys::CUtensorMapSwizzle) = (
    sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT64,
    sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
);

/// A matrix that kernels load in boxes; an argument by value
/// ([`Args::value`](super::Args::value) of [`words`](TensorMap::words)), or somewhere in memory.
#[derive(Debug, Clone, Copy)]
pub struct TensorMap(CUtensorMap);

impl TensorMap {
    /// Of a row-major bf16 matrix at the start of `memory`, in boxes of `box_size` (columns, rows).
    /// What a box has outside the matrix reads as zero.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the matrix is longer than `memory`, or for what TMA does not take: an
    /// address or row that is no multiple of 16 bytes, a box wider than 128 bytes or of over 256
    /// rows.
    pub fn bf16(memory: Span, columns: usize, rows: usize, box_size: (u32, u32)) -> Result<Self> {
        memory.part(0, 2 * columns * rows)?;
        let sizes = [columns as u64, rows as u64];
        Self::tiled(
            BF16,
            memory.ptr(),
            sizes,
            [2 * columns as u64],
            box_size.into(),
        )
    }

    /// Of `rows` of `row_bytes` each from address `first` on, in boxes of `box_size` (columns of 8
    /// bytes, rows), one row behind the other in shared memory. What a box has beyond a row's end
    /// reads as zero.
    ///
    /// # Errors
    /// [`Error::Cuda`] for what TMA does not take: an address or row that is no multiple of 16
    /// bytes, a box of over 256 columns or rows.
    pub(super) fn bytes(
        first: u64,
        row_bytes: usize,
        rows: usize,
        box_size: (u32, u32),
    ) -> Result<Self> {
        let sizes = [row_bytes as u64 / 8, rows as u64];
        Self::tiled(WORDS, first, sizes, [row_bytes as u64], box_size.into())
    }

    /// Of the same, its rows in eights, one of the upper and one of the lower half in turns:
    /// dimensions column, row of eight, half, eight. Boxes have `box_columns` and `box_eights` of
    /// each half.
    ///
    /// # Errors
    /// As [`TensorMap::bf16`]; `rows` is a multiple of 16.
    pub(super) fn bf16_halves(
        memory: Span,
        columns: usize,
        rows: usize,
        (box_columns, box_eights): (u32, u32),
    ) -> Result<Self> {
        memory.part(0, 2 * columns * rows)?;
        let row_bytes = 2 * columns as u64;
        let sizes = [columns as u64, 8, 2, rows as u64 / 16];
        let strides = [row_bytes, row_bytes * rows as u64 / 2, 8 * row_bytes];
        let box_size = [box_columns, 8, 2, box_eights];
        Self::tiled(BF16, memory.ptr(), sizes, strides, box_size)
    }

    /// `strides`: bytes from one to the next in each dimension but the first.
    fn tiled<const N: usize, const STRIDES: usize>(
        (element, swizzle): (sys::CUtensorMapDataType, sys::CUtensorMapSwizzle),
        first: u64,
        sizes: [u64; N],
        strides: [u64; STRIDES],
        box_size: [u32; N],
    ) -> Result<Self> {
        const {
            assert!(
                STRIDES + 1 == N,
                "a stride for each dimension but the first"
            )
        };
        let mut map = CUtensorMap { opaque: [0; 16] };
        // SAFETY: no context is needed; the arrays are as long as N dimensions ask for, and `map`,
        // aligned as its type says, takes the result.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                element,
                N as u32,
                first as *mut _,
                sizes.as_ptr(),
                strides.as_ptr(),
                box_size.as_ptr(),
                [1; N].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        match result {
            sys::CUresult::CUDA_SUCCESS => Ok(Self(map)),
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => Err(Error::Cuda(format!(
                "the GPU cannot load boxes of {box_size:?} from a matrix of {sizes:?} at {first:#x}"
            ))),
            error => error.during("describing a matrix").map(|()| Self(map)),
        }
    }

    /// Its 128 bytes.
    #[must_use]
    pub fn words(&self) -> [u64; 16] {
        self.0.opaque
    }
}
