//! Products of many activation rows: cuBLASLt for bf16 weights, `gemm_int4.cu` for those of four
//! bits, which for very many rows are widened to bf16 first. FP8 weights meet activations quantized
//! to FP8.

use super::activations::Activations;
use super::args::Args;
use super::blas::{Blas, Form, Input, MatMul, Output, Scaled};
use super::book;
use super::contract::{BLOCK_SHARED_BYTES, Defines, NF4_TABLE_BYTES};
use super::family::gate_define;
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

/// Tokens of the widest tile of `gemm_int4.cu` in which the tensor cores go on while a group's sums
/// are added up.
const WIDE_TILE: usize = 104;

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

/// How `gemm_int4.cu` is cut for a matrix and a number of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Macros.
    pub defines: Vec<(&'static str, i64)>,
    /// Blocks.
    pub grid: [u32; 2],
    /// Threads a block.
    pub threads: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// Tokens of a tile.
    pub tile: usize,
}

/// What `gemm_int4.cu` does with its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Epilogue {
    /// Stores them as bf16.
    Bf16,
    /// Adds them to the residual stream.
    Add,
    /// Joins gate and up.
    Swiglu,
}

impl Cut {
    /// Tokens of a tile for `m` tokens, where so many tiles take the GPU `rounds` of blocks, each as
    /// long as its tile is wide and then some: measured on an H200, a round of Phi-3.5's gate_up
    /// takes 12, 17 to 18 and 21 to 22 us with tiles of 64, 104 and 128.
    fn tile(m: usize, rounds: impl Fn(usize) -> usize) -> usize {
        let widths = [(16, 52), (32, 68), (64, 100), (WIDE_TILE, 140), (128, 170)];
        let covers = widths.iter().position(|(tile, _)| *tile >= m);
        let candidates = &widths[..covers.map_or(widths.len(), |last| last + 1)];
        // Of equals the widest, which reads the weights least often.
        let best =
            (candidates.iter().rev()).min_by_key(|(tile, cost)| rounds(m.div_ceil(*tile)) * cost);
        best.map_or(128, |(tile, _)| *tile)
    }

    /// As measured best on an H100 for the shapes of Phi-3.5.
    #[must_use]
    pub fn new(w: &DeviceMatrix, n: impl Into<RowCount>, target: Target, sms: usize) -> Self {
        let n = n.into();
        let m = n.m;
        let (epilogue, order, stride) = match target {
            // Beside other matrices the rows of the output are longer.
            Target::Bf16(_, stride) => (Epilogue::Bf16, false, Some(stride)),
            Target::Add(_) | Target::F32(_) => (Epilogue::Add, false, None),
            Target::Swiglu(_, order, _) => (Epilogue::Swiglu, order, None),
        };
        // Only there where it is asked for.
        let more = match target {
            Target::Bf16(..) | Target::Add(_) => None,
            Target::F32(_) => Some(("OVERWRITE", 1)),
            Target::Swiglu(_, _, activation) => gate_define(activation),
        };
        let swiglu = epilogue == Epilogue::Swiglu;
        let units = if swiglu {
            (w.rows / 2).div_ceil(128) * 4
        } else {
            w.rows.div_ceil(64)
        };
        // The kernel takes 128 columns at a time, which have so many scales.
        let group = w.gemm_group().unwrap_or(LARGEST_GROUP);
        let (steps, parts) = (w.cols.div_ceil(128), 128 / group);
        let fits = |split: usize, warpgroups: usize| {
            units.div_ceil(warpgroups) * split <= sms && split <= steps
        };
        let (split, warpgroups) = if swiglu || n.like().div_ceil(128) > 2 {
            (1, 2)
        } else if let Some(split) = [4, 2].into_iter().find(|split| fits(*split, 2)) {
            (split, 2)
        } else if n.alike && fits(2, 3) {
            // In two parts for any number of rows; three warpgroups have the registers for few.
            (2, if m <= 32 { 3 } else { 2 })
        } else {
            (1, 2)
        };
        let blocks = units.div_ceil(warpgroups);
        let tile = Self::tile(m, |tiles| {
            if swiglu {
                tiles
            } else {
                (blocks * split * tiles).div_ceil(sms)
            }
        });
        let loops = swiglu && m > tile;
        let columns = if swiglu { 32 } else { 64 } + 8;
        let staged = match epilogue {
            Epilogue::Add => 0,
            Epilogue::Bf16 | Epilogue::Swiglu => warpgroups * tile * columns * 2,
        };
        let tables = match w.format {
            Format::Nf4 { .. } => NF4_TABLE_BYTES,
            Format::Bf16 | Format::Int4 { .. } | Format::Lut4 { .. } | Format::Fp8 { .. } => 0,
        };
        let stage = tile * 256 + warpgroups * 64 * (64 + 4 * parts) + 16;
        let room = (BLOCK_SHARED_BYTES - tables - staged - 1024) / stage;
        let stages = room.min(match tile {
            16 | 32 => 8,
            64 => 6,
            // Where a block loops over token tiles, its ring keeps running.
            _ if loops || tile == WIDE_TILE => 5,
            _ => 4,
        });
        let shared = stages * stage + staged + 1024;
        let mut defines = vec![
            ("K", w.cols as i64),
            ("ROWS", w.rows as i64),
            ("GROUP", group as i64),
            ("EPILOGUE_BF16", Epilogue::Bf16 as i64),
            ("EPILOGUE_ADD", Epilogue::Add as i64),
            ("EPILOGUE_SWIGLU", Epilogue::Swiglu as i64),
            ("EPILOGUE", epilogue as i64),
            ("OUT_INT4", order.into()),
            ("TILE_M", tile as i64),
            ("WARPGROUPS", warpgroups as i64),
            ("SPLIT_K", split as i64),
            ("STAGES", stages as i64),
            ("MIN_BLOCKS", 1),
            ("DYNAMIC_SHARED", shared as i64),
        ];
        defines.extend(stride.map(|stride| ("OUT_STRIDE", stride as i64)));
        defines.extend(more);
        defines.extend(w.scale_defines());
        defines.extend(book_define(w));
        if tables > 0 {
            defines.extend([("NF4", 1), ("NF4_TABLE_BYTES", tables as i64)]);
        }
        Self {
            defines,
            grid: [
                (blocks * split) as u32,
                if loops { 1 } else { m.div_ceil(tile) as u32 },
            ],
            threads: 128 * (warpgroups as u32 + 1),
            shared: shared as u32,
            tile,
        }
    }
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
