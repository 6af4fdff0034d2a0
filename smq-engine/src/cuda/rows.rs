//! Products of many activation rows: cuBLASLt for bf16 weights, `gemm_int4.cu` for those of four
//! bits, which for very many rows are widened to bf16 first. FP8 weights meet activations quantized
//! to FP8.

mod cut;

use super::activations::Activations;
use super::args::Args;
use super::blas::{Blas, Form, Input, MatMul, Output, Scaled};
use super::book;
use super::contract::Defines;
use super::fp8::QuantizedRows;
use super::gemm_bf16::bf16_call;
use super::kernels::{Call, Kernels};
use super::launch::Launch;
use super::memory::Span;
use super::needs::SMS;
use super::row_count::RowCount;
use super::stream::Stream;
use super::swiglu::{fuses_bf16, swiglu_call};
use super::tensor_map::TensorMap;
use super::weights::{DeviceMatrix, Format, LARGEST_GROUP};
use crate::error::{Error, Result};
use smq_model::architecture::Activation;

pub use cut::Cut;
use cut::WIDE_TILE;

/// Activation rows from which on int4 matrices of `rows` rows in all, in groups of `group`, are
/// widened to bf16 before they are multiplied.
///
/// From so many on, widening them once and cuBLASLt's product are faster than the int4 kernel:
/// sooner for matrices of few rows, as soon as their tiles take the multiprocessors a second round.
#[must_use]
pub fn int4_widened_from(rows: usize, group: usize) -> usize {
    match (rows < 8192, group == LARGEST_GROUP) {
        (true, true) => (SMS / rows.div_ceil(128) * WIDE_TILE + 1).clamp(WIDENED_FROM, 1024),
        (true, false) => WIDENED_FROM,
        (false, _) => 1024,
    }
}

/// The least of that, and NF4's: measured on an H200, Phi-3.5's 512 tokens take 9.3 ms with widened
/// weights and 9.9 without.
const WIDENED_FROM: usize = 384;

/// Rows whose algorithm FP8 products of any number of rows have where they are to add up alike:
/// about as many as a step of many sequences has.
const FP8_ROWS: usize = 64;

/// Where a product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// bf16 `[m, stride]`.
    Bf16(u64, usize),
    /// Added to f32 `[m, rows]`.
    Add(u64),
    /// f32 `[m, rows]`, whatever was there.
    F32(u64),
    /// `f(gate) up` with this function, bf16 `[m, rows / 2 rounded up to 128]`; the flag asks for
    /// int4 order. Only where `joins_gate_and_up`.
    Swiglu(u64, bool, Activation),
}

/// What multiplies rows.
#[derive(Debug)]
pub struct RowProducts {
    blas: Blas,
    /// A matrix as bf16, or activations as FP8.
    scratch: Span,
}

/// Whether the int4 kernel does the product with `matrices`.
#[must_use]
pub(super) fn is_int4_product(matrices: &[DeviceMatrix], n: impl Into<RowCount>) -> bool {
    let rows = matrices.iter().map(|w| w.rows).sum();
    let Some(group) = matrices[0].gemm_group() else {
        return false;
    };
    let from = match matrices[0].format {
        Format::Nf4 { .. } => WIDENED_FROM,
        Format::Bf16 | Format::Int4 { .. } | Format::Lut4 { .. } | Format::Fp8 { .. } => {
            int4_widened_from(rows, group)
        }
    };
    matrices.iter().all(|w| w.gemm_group() == Some(group)) && n.into().like() < from
}

/// Whether the product with `matrices` wants its activations in int4 order: where the int4 kernel
/// does it, of the largest groups; smaller ones lie within the kernel's steps in plain order only.
#[must_use]
pub fn reads_int4_order(matrices: &[DeviceMatrix], n: impl Into<RowCount>) -> bool {
    is_int4_product(matrices, n) && matrices[0].gemm_group() == Some(LARGEST_GROUP)
}

/// Whether the product with `matrices` can join gate and up, in this order.
#[must_use]
pub(super) fn joins_gate_and_up(
    matrices: &[DeviceMatrix],
    n: impl Into<RowCount>,
    int4_order: bool,
) -> bool {
    let n = n.into();
    let by_int4 = matrices.len() == 1 && is_int4_product(matrices, n);
    by_int4 || (!int4_order && fuses_bf16(matrices, n))
}

/// Bytes of scratch memory that the product with `matrices` takes: for a matrix widened to bf16, or
/// for activations as FP8; 0 where neither is done.
#[must_use]
pub fn scratch_bytes(matrices: &[DeviceMatrix], n: impl Into<RowCount>) -> usize {
    let n = n.into();
    let bytes = |w: &DeviceMatrix| match w.format {
        Format::Bf16 => 0,
        Format::Fp8 { .. } => QuantizedRows::bytes(n.m, w.cols),
        Format::Int4 { .. } | Format::Lut4 { .. } | Format::Nf4 { .. }
            if is_int4_product(matrices, n) =>
        {
            0
        }
        Format::Int4 { .. } | Format::Lut4 { .. } | Format::Nf4 { .. } => 2 * w.rows * w.cols,
    };
    matrices.iter().map(bytes).max().unwrap_or(0)
}

impl RowProducts {
    /// With `scratch`, as large as the largest [`scratch_bytes`].
    #[must_use]
    pub fn new(blas: Blas, scratch: Span) -> Self {
        Self { blas, scratch }
    }

    /// Replaces the scratch memory.
    pub(super) fn set_scratch(&mut self, scratch: Span) {
        self.scratch = scratch;
    }

    /// Queues the products of `n` rows of `x` with `matrices`, side by side in `target`.
    ///
    /// # Errors
    /// [`Error::Cuda`] from compiling or launching.
    ///
    /// # Safety
    /// `x` and `target` are large enough and stay allocated until the stream has run the products.
    pub unsafe fn run(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        matrices: &[DeviceMatrix],
        n: impl Into<RowCount>,
        x: &Activations,
        target: Target,
    ) -> Result<()> {
        let n = n.into();
        let m = n.m;
        if is_int4_product(matrices, n) {
            let mut column = 0;
            for w in matrices {
                let target = match target {
                    Target::Bf16(y, stride) => Target::Bf16(y + 2 * column as u64, stride),
                    // Of one matrix.
                    Target::Add(_) | Target::F32(_) | Target::Swiglu(..) => target,
                };
                let call = int4_call(kernels, w, n, x, target)?;
                // SAFETY: the caller's promise; the weights are the model's.
                unsafe { call.run(stream) }?;
                column += w.rows;
            }
            return Ok(());
        }
        if let Target::Swiglu(out, _, activation) = target {
            let call = swiglu_call(kernels, &matrices[0], m, x, (out, activation))?;
            // SAFETY: as above.
            return unsafe { call.run(stream) };
        }
        let is_fp8 = |w: &&DeviceMatrix| match w.format {
            Format::Fp8 { .. } => true,
            Format::Bf16 | Format::Int4 { .. } | Format::Lut4 { .. } | Format::Nf4 { .. } => false,
        };
        let quantized = match matrices.iter().find(is_fp8) {
            Some(w) => {
                let rows = QuantizedRows::place(self.scratch, m, w.cols)?;
                // SAFETY: the caller's promise; products before these in the stream are done with
                // the scratch memory.
                unsafe { rows.call(kernels, m, w.cols, x)?.run(stream) }?;
                Some(rows)
            }
            None => None,
        };
        let mut column = 0;
        for w in matrices {
            let (y, y_stride, output, accumulate) = match target {
                Target::Bf16(y, stride) => (y + 2 * column as u64, stride, Output::Bf16, false),
                Target::Add(y) => (y, w.rows, Output::F32, true),
                // The latter was done above.
                Target::F32(y) | Target::Swiglu(y, ..) => (y, w.rows, Output::F32, false),
            };
            let product = MatMul {
                m,
                n: w.rows,
                k: w.cols,
                form: Form::XWt,
                x_stride: x.stride,
                w_stride: w.cols,
                y_stride,
                input: Input::Bf16,
                output,
                accumulate,
            };
            // SAFETY: the caller's promise; the weights are the model's.
            unsafe {
                match (w.format, &quantized) {
                    (Format::Fp8 { scales }, Some(rows)) => {
                        self.fp8(stream, (&product, n.alike), (w.data, scales), rows, y)
                    }
                    (
                        Format::Bf16
                        | Format::Int4 { .. }
                        | Format::Lut4 { .. }
                        | Format::Nf4 { .. }
                        | Format::Fp8 { .. },
                        _,
                    ) => self.bf16(kernels, stream, (&product, n.alike), w, x, y),
                }
            }?;
            column += w.rows;
        }
        Ok(())
    }

    /// Multiplies in bf16, weights of codes widened first; `alike`: in one order of additions for
    /// any number of rows.
    ///
    /// # Safety
    /// As [`run`](RowProducts::run).
    unsafe fn bf16(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        (product, alike): (&MatMul, bool),
        w: &DeviceMatrix,
        x: &Activations,
        y: u64,
    ) -> Result<()> {
        let data = if w.is_coded() {
            let wide = self.scratch.part(0, 2 * w.rows * w.cols)?;
            // SAFETY: it fits; products before this one in the stream are done with the scratch
            // memory.
            unsafe { widen(kernels, w, wide.ptr())?.run(stream) }?;
            wide
        } else {
            w.data
        };
        if alike {
            let mut call = bf16_call(kernels, product, data, x, y)?;
            // The kernel reads weights before those ahead of it have ended, which are just making
            // these.
            call.launch.overlap = !w.is_coded();
            // SAFETY: the caller's promise, and the weights are the model's or just widened.
            return unsafe { call.run(stream) };
        }
        let plan = self.blas.plan(product)?;
        // SAFETY: as above.
        unsafe { self.blas.run(stream, &plan, data.ptr(), x.span.ptr(), y) }
    }

    /// Multiplies codes with codes; `alike`: by one algorithm for any number of rows, whose order of
    /// additions is the algorithm's.
    ///
    /// # Safety
    /// As [`run`](RowProducts::run), with what was quantized of its activations.
    unsafe fn fp8(
        &self,
        stream: &Stream,
        (product, alike): (&MatMul, bool),
        (codes, scales): (Span, Span),
        x: &QuantizedRows,
        y: u64,
    ) -> Result<()> {
        let product = MatMul {
            x_stride: product.k,
            input: Input::Fp8,
            ..*product
        };
        let m = if alike { FP8_ROWS } else { product.m };
        let plan = self.blas.plan_as(&product, m)?;
        let [w, x] = [(codes, scales), (x.codes, x.scales)].map(|(codes, scales)| Scaled {
            codes: codes.ptr(),
            scales: scales.ptr(),
        });
        // SAFETY: the caller's promise.
        unsafe { self.blas.run_fp8(stream, &plan, w, x, y) }
    }
}

/// Threads of a block of `dequantize.cu`.
const WIDEN_THREADS: usize = 256;
/// Chunks of 8 outputs that a block makes.
const WIDEN_CHUNKS: usize = 2 * WIDEN_THREADS;

/// The macros of `dequantize.cu` for a matrix.
pub fn widen_defines(w: &DeviceMatrix) -> Defines {
    let mut defines = vec![
        ("K", w.cols as i64),
        ("GROUP", w.group() as i64),
        ("OUT_INT4", 0),
        ("THREADS", WIDEN_THREADS as i64),
        ("CHUNKS_A_BLOCK", WIDEN_CHUNKS as i64),
    ];
    defines.extend(w.scale_defines());
    defines.extend(book_define(w));
    defines
}

/// The macro of a kernel file that is compiled for a code book.
fn book_define(w: &DeviceMatrix) -> Option<(&'static str, i64)> {
    match w.format {
        Format::Lut4 { .. } => Some(("LUT4", 1)),
        Format::Bf16 | Format::Int4 { .. } | Format::Nf4 { .. } | Format::Fp8 { .. } => None,
    }
}

/// Widens a whole matrix of codes to bf16 at `out`, plain order.
///
/// # Errors
/// As [`Kernels::get`]; [`Error::Cuda`] for a matrix that is bf16 already.
pub fn widen(kernels: &Kernels, w: &DeviceMatrix, out: u64) -> Result<Call> {
    let codes = Args::new().ptr(w.data.ptr());
    let (name, args) = match w.format {
        Format::Bf16 => return Err(Error::Cuda("a bf16 matrix needs no widening".into())),
        Format::Int4 { .. } => {
            let (scales, bias) = w.scales();
            ("dequantize_int4", codes.ptr(scales).i32(bias))
        }
        Format::Lut4 { levels, .. } => {
            let (scales, bias) = w.scales();
            let args = codes.ptr(scales).i32(bias);
            ("dequantize_lut4", args.value(&book::words(levels, 0)))
        }
        Format::Nf4 {
            absmax,
            nested_absmax,
            offset,
        } => {
            let args = codes.ptr(absmax.ptr()).ptr(nested_absmax.ptr());
            ("dequantize_nf4", args.f32(offset))
        }
        Format::Fp8 { scales } => ("dequantize_fp8", codes.ptr(scales.ptr())),
    };
    Ok(Call {
        kernel: kernels.get("dequantize.cu", widen_defines(w), name)?,
        launch: Launch::new(
            (w.rows * w.cols / 8).div_ceil(WIDEN_CHUNKS),
            WIDEN_THREADS as u32,
        )
        .overlap(),
        args: args.i32(w.rows as i32).i32(0).ptr(out),
    })
}

/// The call of `gemm_int4.cu`.
///
/// # Errors
/// As [`Kernels::get`] and [`TensorMap::bf16`].
pub fn int4_call(
    kernels: &Kernels,
    w: &DeviceMatrix,
    n: impl Into<RowCount>,
    x: &Activations,
    target: Target,
) -> Result<Call> {
    let n = n.into();
    let cut = Cut::new(w, n, target, kernels.gpu().sm_count() as usize);
    let (Target::Bf16(out, _) | Target::Add(out) | Target::F32(out) | Target::Swiglu(out, ..)) =
        target;
    let map = TensorMap::bf16(x.span, x.stride, x.capacity, (64, cut.tile as u32))?;
    let (scales, bias) = w.scales();
    let args = Args::new()
        .value(&map.words())
        .ptr(w.data.ptr())
        .ptr(scales)
        .i32(bias)
        .i32(n.m as i32)
        .ptr(out);
    Ok(Call {
        kernel: kernels.get("gemm_int4.cu", cut.defines, "gemm_int4")?,
        launch: Launch::new(cut.grid, cut.threads)
            .shared(cut.shared)
            .overlap(),
        args: match w.format {
            // A byte is a level plus 128.
            Format::Lut4 { levels, .. } => args.value(&book::words(levels, 128)),
            Format::Nf4 { nested_absmax, .. } => args.ptr(nested_absmax.ptr()),
            Format::Bf16 | Format::Int4 { .. } | Format::Fp8 { .. } => args,
        },
    })
}

#[cfg(test)]
mod tests;
