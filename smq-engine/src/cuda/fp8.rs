//! Activations as FP8, for products with FP8 weights.

use super::activations::Activations;
use super::args::Args;
use super::contract::Defines;
use super::kernels::{Call, Kernels};
use super::launch::Launch;
use super::memory::Span;
use crate::error::Result;

/// What the codes start at a multiple of, bytes.
const ALIGN: usize = 256;

/// Threads of a block.
const THREADS: u32 = 256;

/// The macros of `fp8.cu` for rows of `cols` columns.
#[must_use]
pub fn fp8_defines(cols: usize) -> Defines {
    vec![("K", cols as i64), ("THREADS", THREADS.into())]
}

/// Rows of activations as E4M3 codes with a scale each.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedRows {
    /// `[m, cols]` bytes.
    pub codes: Span,
    /// f32 `[m]`.
    pub scales: Span,
}

impl QuantizedRows {
    /// Bytes that `m` rows take.
    #[must_use]
    pub fn bytes(m: usize, cols: usize) -> usize {
        (4 * m).next_multiple_of(ALIGN) + m * cols
    }

    /// At the start of `memory`.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if it has fewer than [`bytes`](Self::bytes).
    pub fn place(memory: Span, m: usize, cols: usize) -> Result<Self> {
        Ok(Self {
            scales: memory.part(0, 4 * m)?,
            codes: memory.part((4 * m).next_multiple_of(ALIGN), m * cols)?,
        })
    }

    /// The call that fills it from the first `cols` columns of `m` rows of `x`, plain order.
    ///
    /// # Errors
    /// As [`Kernels::get`].
    pub fn call(&self, kernels: &Kernels, m: usize, cols: usize, x: &Activations) -> Result<Call> {
        Ok(Call {
            kernel: kernels.get("fp8.cu", fp8_defines(cols), "quantize_rows")?,
            launch: Launch::new(m, THREADS).overlap(),
            args: Args::new()
                .ptr(x.span.ptr())
                .i32(x.stride as i32)
                .ptr(self.codes.ptr())
                .ptr(self.scales.ptr()),
        })
    }
}
