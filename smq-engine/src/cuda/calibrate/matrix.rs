//! One matrix: its target, two ways of rounding it, and what each costs.

use bytemuck::NoUninit;

use super::sums::Sums;
use super::{Common, PARTS, Sizes, THREADS};
use crate::cuda::arena::Arena;
use crate::cuda::args::Args;
use crate::cuda::blas::{Form, Input, MatMul, Output};
use crate::cuda::launch::Launch;
use crate::cuda::memory::Span;
use crate::cuda::upload::{Piece, upload};
use crate::error::{Error, Result};

/// Columns whose errors are handed on together, as `calibrate.cu` has it.
const BLOCK: usize = 128;
/// Rows of one of its blocks.
const BLOCK_ROWS: usize = 32;
/// Least weights that share a scale: sizes the scales' memory.
const LEAST_RUN: usize = 8;

/// How a matrix is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounding {
    /// Which of two results it becomes.
    pub slot: Slot,
    /// Whether the target is rounded, and not the weights.
    pub of_target: bool,
    /// Whether by the column loop, and not each weight to nearest.
    pub in_columns: bool,
}

/// Where a rounding's codes are kept until one of two is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

/// The scales of a matrix, and the values that a weight can take under a scale of 1.
#[derive(Debug, Clone, Copy)]
pub struct CalibrationScales<'a> {
    /// The weight at a row and a column has that at `(row * row_stride + column) / run`.
    pub values: &'a [f32],
    /// Weights that share a scale.
    pub run: usize,
    /// From a row to the next, in weights.
    pub row_stride: usize,
    /// Rising values that codes are indices into; without them codes are the integers -8 to 7.
    pub table: Option<[f32; 16]>,
}

/// Squared errors, summed over the tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalibrationLosses {
    /// `|(V - W) y|^2`.
    pub output: f64,
    /// `|V y - W x|^2`, less what `V = W` gives.
    pub objective: f64,
}

/// As `calibrate.cu` has them.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct DeviceScales {
    values: u64,
    run: u32,
    row_stride: u32,
}

/// As `calibrate.cu` has them.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct DeviceLevels {
    values: [f32; 16],
    is_table: i32,
}

/// The buffers of one rounding.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// i8, one a weight.
    codes: Span,
    /// f32.
    scales: Span,
    /// As they were given last.
    layout: [u32; 2],
    levels: DeviceLevels,
}

/// f32 `[rows, in]` each, of the matrix in hand.
#[derive(Debug)]
pub(super) struct Matrices {
    rows: usize,
    w: Span,
    target: Span,
    /// What the column loop works on, and then a rounding's error.
    error: Span,
    /// Its product with a sum.
    product: Span,
    /// f32 `[rows, BLOCK]`.
    block_errors: Span,
    a: Candidate,
    b: Candidate,
}

impl Matrices {
    /// Takes the buffers.
    pub(super) fn take(arena: &mut Arena, sizes: &Sizes) -> Result<Self> {
        let elems = sizes.matrix_elems;
        let mut of_weights = || arena.take(4 * elems);
        let [w, target, error, product] =
            [of_weights()?, of_weights()?, of_weights()?, of_weights()?];
        let mut candidate = || -> Result<Candidate> {
            Ok(Candidate {
                codes: arena.take(elems)?,
                scales: arena.take(4 * elems / LEAST_RUN)?,
                layout: [1, 1],
                levels: DeviceLevels {
                    values: [0.0; 16],
                    is_table: 0,
                },
            })
        };
        let (a, b) = (candidate()?, candidate()?);
        Ok(Self {
            rows: 0,
            w,
            target,
            error,
            product,
            block_errors: arena.take(4 * sizes.most_rows * BLOCK)?,
            a,
            b,
        })
    }

    /// As [`Calibrator::begin`](super::Calibrator::begin).
    pub(super) fn begin(
        &mut self,
        common: &mut Common,
        sums: &Sums,
        w: &[f32],
    ) -> Result<[f64; 2]> {
        self.take_up(common, sums.features(), w)?;
        let stream = common.gpu().main();
        let bytes = 4 * w.len();
        // SAFETY: each holds a matrix, and nothing else uses them.
        unsafe {
            self.target
                .part(0, bytes)?
                .copy_within(stream, self.w.part(0, bytes)?)?;
        }
        self.multiply(common, sums, [self.w, sums.correction(), self.target], true)?;
        let weighed = |sum: Span| {
            self.multiply(common, sums, [self.w, sum, self.product], false)?;
            self.dot(common, w.len())
        };
        let whole = [weighed(sums.whole())?, weighed(sums.c32())?];
        let stream = common.kernels.gpu().main();
        let target = &mut common.host.as_mut_slice::<f32>()[..w.len()];
        // SAFETY: the copy is waited for.
        unsafe { self.target.copy_to(stream, target) }?;
        stream.synchronize()?;
        Ok(whole)
    }

    /// Copies the weights of a matrix of `n` columns.
    fn take_up(&mut self, common: &mut Common, n: usize, w: &[f32]) -> Result<()> {
        self.rows = w.len() / n.max(1);
        let to = self.w.part(0, 4 * w.len())?;
        let Common {
            staging, kernels, ..
        } = common;
        let gpu = kernels.gpu();
        gpu.main().synchronize()?;
        let source = bytemuck::cast_slice(w);
        // SAFETY: everything that was queued has run, so nothing else uses the weights.
        unsafe { upload(gpu, staging, &[Piece { source, to }]) }?;
        Ok(())
    }

    /// As [`Calibrator::round`](super::Calibrator::round).
    pub(super) fn round(
        &mut self,
        common: &Common,
        sums: &Sums,
        rounding: Rounding,
        scales: &CalibrationScales<'_>,
    ) -> Result<CalibrationLosses> {
        let (n, stream) = (sums.features(), common.gpu().main());
        let count = self.rows * n;
        let small = |v: usize| {
            let too_large = |_| Error::Cuda(format!("{v} weights are too many for one matrix"));
            u32::try_from(v).map_err(too_large)
        };
        small(self.rows * scales.row_stride)?;
        let candidate = match rounding.slot {
            Slot::A => &mut self.a,
            Slot::B => &mut self.b,
        };
        candidate.layout = [small(scales.run)?, small(scales.row_stride)?];
        candidate.levels = DeviceLevels {
            values: scales.table.unwrap_or_default(),
            is_table: scales.table.is_some().into(),
        };
        let candidate = *candidate;
        // SAFETY: pageable memory has been read when the call returns, and nothing else uses the
        // scales.
        unsafe { candidate.scales.copy_from(stream, scales.values) }?;
        let from = match rounding.of_target {
            true => self.target,
            false => self.w,
        };
        if rounding.in_columns {
            self.round_columns(common, sums, from, &candidate)?;
        } else {
            let args = Args::new()
                .ptr(from.ptr())
                .value(&candidate.scales())
                .value(&candidate.levels)
                .ptr(candidate.codes.ptr())
                .i32(n as i32)
                .u64(count as u64);
            let call = common.call("round_nearest", Common::over(count), args)?;
            // SAFETY: all hold the matrix.
            unsafe { call.run(stream) }?;
        }
        self.losses(common, sums, &candidate, count)
    }

    /// The column loop over `from`.
    fn round_columns(
        &self,
        common: &Common,
        sums: &Sums,
        from: Span,
        to: &Candidate,
    ) -> Result<()> {
        let (n, stream) = (sums.features(), common.gpu().main());
        let args = Args::new()
            .ptr(from.ptr())
            .ptr(sums.order().ptr())
            .ptr(self.error.ptr())
            .i32(n as i32);
        let permute = common.call("permute", Launch::new(self.rows, THREADS), args)?;
        // SAFETY: all hold the matrix.
        unsafe { permute.run(stream) }?;
        for first in (0..n).step_by(BLOCK) {
            let launch = Launch::new(self.rows.div_ceil(BLOCK_ROWS), THREADS);
            let args = Args::new()
                .ptr(self.error.ptr())
                .ptr(sums.order().ptr())
                .value(&to.scales())
                .value(&to.levels)
                .ptr(sums.upper().ptr())
                .ptr(self.block_errors.ptr())
                .ptr(to.codes.ptr())
                .i32(n as i32)
                .i32(first as i32)
                .i32(self.rows as i32);
            let launch = launch.shared((4 * BLOCK * BLOCK) as u32);
            // SAFETY: as above; the block's errors hold every row.
            unsafe { common.call("round_block", launch, args)?.run(stream) }?;
            let end = first + BLOCK;
            if end >= n {
                break;
            }
            let plan = common.blas.plan(&MatMul {
                m: self.rows,
                n: n - end,
                k: BLOCK,
                form: Form::XW,
                x_stride: BLOCK,
                w_stride: n,
                y_stride: n,
                input: Input::F32,
                output: Output::F32,
                accumulate: true,
            })?;
            let upper = sums.upper().ptr() + 4 * (first * n + end) as u64;
            let rest = self.error.ptr() + 4 * end as u64;
            // SAFETY: as above; both start inside the matrices, and their rows end with them.
            unsafe {
                common
                    .blas
                    .run(stream, &plan, upper, self.block_errors.ptr(), rest)
            }?;
        }
        Ok(())
    }

    /// What a rounding costs.
    fn losses(
        &self,
        common: &Common,
        sums: &Sums,
        of: &Candidate,
        count: usize,
    ) -> Result<CalibrationLosses> {
        let (n, stream) = (sums.features(), common.gpu().main());
        let args = Args::new()
            .ptr(of.codes.ptr())
            .value(&of.scales())
            .value(&of.levels)
            .ptr(self.w.ptr())
            .ptr(self.error.ptr())
            .i32(n as i32)
            .u64(count as u64);
        let errors = common.call("errors_of", Common::over(count), args)?;
        // SAFETY: all hold the matrix.
        unsafe { errors.run(stream) }?;
        self.multiply(common, sums, [self.error, sums.h32(), self.product], false)?;
        let args = Args::new()
            .ptr(self.error.ptr())
            .ptr(self.product.ptr())
            .ptr(self.target.ptr())
            .ptr(self.w.ptr())
            .u64(sums.damping().to_bits())
            .ptr(common.parts.ptr())
            .u64(count as u64);
        let losses = common.call("losses", Launch::new(PARTS, THREADS), args)?;
        let mut parts = vec![0.0_f64; 2 * PARTS];
        // SAFETY: as above; the copy is waited for.
        unsafe {
            losses.run(stream)?;
            common.parts.copy_to(stream, &mut parts)?;
        }
        stream.synchronize()?;
        let (output, cross) = parts.split_at(PARTS);
        let [output, cross] = [output, cross].map(|p| p.iter().sum::<f64>());
        Ok(CalibrationLosses {
            output,
            objective: output - 2.0 * cross,
        })
    }

    /// As [`Calibrator::keep`](super::Calibrator::keep), to bf16 at `place`.
    pub(super) fn keep(&self, common: &Common, slot: Slot, place: Span) -> Result<Vec<i8>> {
        let of = match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        };
        let count = place.bytes() / 2;
        let stream = common.gpu().main();
        let args = Args::new()
            .ptr(of.codes.ptr())
            .value(&of.scales())
            .value(&of.levels)
            .ptr(place.ptr())
            .i32((count / self.rows.max(1)) as i32)
            .u64(count as u64);
        let call = common.call("stand_in", Common::over(count), args)?;
        let mut codes = vec![0_i8; count];
        // SAFETY: all hold the matrix; the copy is waited for.
        unsafe {
            call.run(stream)?;
            of.codes.copy_to(stream, &mut codes)?;
        }
        stream.synchronize()?;
        Ok(codes)
    }

    /// Rounds `weights` to bf16 at `place`.
    pub(super) fn place(&self, common: &Common, weights: &[f32], place: Span) -> Result<()> {
        let bf16: Vec<u16> = weights
            .iter()
            .map(|w| half::bf16::from_f32(*w).to_bits())
            .collect();
        if 2 * bf16.len() != place.bytes() {
            let (got, expected) = (bf16.len(), place.bytes() / 2);
            let message = format!("{got} weights were given for a matrix of {expected}");
            return Err(Error::Cuda(message));
        }
        let stream = common.gpu().main();
        // SAFETY: the place is as large, and the copy is waited for.
        unsafe { place.copy_from(stream, &bf16) }?;
        stream.synchronize()
    }

    /// `y = x m`, or added to it; `m` is `[n, n]`, the others hold the matrix.
    fn multiply(
        &self,
        common: &Common,
        sums: &Sums,
        [x, m, y]: [Span; 3],
        accumulate: bool,
    ) -> Result<()> {
        let n = sums.features();
        let plan = common.blas.plan(&MatMul {
            m: self.rows,
            n,
            k: n,
            form: Form::XW,
            x_stride: n,
            w_stride: n,
            y_stride: n,
            input: Input::F32,
            output: Output::F32,
            accumulate,
        })?;
        let stream = common.gpu().main();
        // SAFETY: all are as large as the plan says.
        unsafe { common.blas.run(stream, &plan, m.ptr(), x.ptr(), y.ptr()) }
    }

    /// `w . product`.
    fn dot(&self, common: &Common, count: usize) -> Result<f64> {
        let stream = common.gpu().main();
        let args = Args::new()
            .ptr(self.w.ptr())
            .ptr(self.product.ptr())
            .ptr(common.parts.ptr())
            .u64(count as u64);
        let call = common.call("dot", Launch::new(PARTS, THREADS), args)?;
        let mut parts = vec![0.0_f64; PARTS];
        // SAFETY: both hold the matrix; the copy is waited for.
        unsafe {
            call.run(stream)?;
            common.parts.copy_to(stream, &mut parts)?;
        }
        stream.synchronize()?;
        Ok(parts.iter().sum())
    }
}

impl Candidate {
    fn scales(&self) -> DeviceScales {
        let [run, row_stride] = self.layout;
        DeviceScales {
            values: self.scales.ptr(),
            run,
            row_stride,
        }
    }
}
