//! Sums over the tokens, and their factorizations.

use super::{Common, Sizes, THREADS};
use crate::cuda::activations::Activations;
use crate::cuda::arena::Arena;
use crate::cuda::args::Args;
use crate::cuda::blas::{Form, Input, MatMul, Output};
use crate::cuda::launch::Launch;
use crate::cuda::memory::Span;
use crate::cuda::solver::Solver;
use crate::error::{Error, Result};

/// Tokens whose products are summed in f32 before they join the sums in f64: tensor cores drop the
/// last bits of long sums.
const BLOCK_TOKENS: usize = 8192;
/// Edge of a tile of `calibrate.cu`'s transpositions.
const TILE: usize = 32;

/// Of one stage, `[n, n]` each.
#[derive(Debug)]
pub(super) struct Sums {
    /// Input features of the stage that was summed.
    n: usize,
    /// f64: `sum y' y`, `sum (x - y)' y`, `sum (x - y)' (x - y)`.
    h: Span,
    d: Span,
    c: Span,
    /// f64, what is factorized.
    a: Span,
    /// f32, of one block of tokens.
    block: Span,
    /// bf16 `[BLOCK_TOKENS, n]`, whose sum is x - y.
    high: Span,
    low: Span,
    /// i32 `[n]`: rows of `a`, and the order of rounding.
    from: Span,
    order: Span,
    /// f64 `[n]`.
    diagonal: Span,
    /// f32: `H`; the factor of the column loop; what leads to the target; `C`; `H + D + D' + C`.
    h32: Span,
    upper: Span,
    correction: Span,
    c32: Span,
    whole: Span,
    /// What `H` was damped with for the target.
    damping: f64,
}

impl Sums {
    /// Takes the buffers.
    pub(super) fn take(arena: &mut Arena, sizes: &Sizes) -> Result<Self> {
        let n = sizes.most_inputs();
        let tokens = BLOCK_TOKENS.min(sizes.tokens());
        let mut square = |bytes: usize| arena.take(bytes * n * n);
        let [h, d, c, a] = [square(8)?, square(8)?, square(8)?, square(8)?];
        let [block, h32, upper, correction, c32, whole] = [
            square(4)?,
            square(4)?,
            square(4)?,
            square(4)?,
            square(4)?,
            square(4)?,
        ];
        Ok(Self {
            n: 0,
            h,
            d,
            c,
            a,
            block,
            high: arena.take(2 * tokens * n)?,
            low: arena.take(2 * tokens * n)?,
            from: arena.take(4 * n)?,
            order: arena.take(4 * n)?,
            diagonal: arena.take(8 * n)?,
            h32,
            upper,
            correction,
            c32,
            whole,
            damping: 0.0,
        })
    }

    /// Input features.
    pub(super) fn features(&self) -> usize {
        self.n
    }

    /// f32 `[n, n]`: `H`.
    pub(super) fn h32(&self) -> Span {
        self.h32
    }

    /// f32 `[n, n]`: `C = sum (x - y)' (x - y)`.
    pub(super) fn c32(&self) -> Span {
        self.c32
    }

    /// f32 `[n, n]`: `sum x' x`.
    pub(super) fn whole(&self) -> Span {
        self.whole
    }

    /// f32 `[n, n]`: `D inverse(H)`.
    pub(super) fn correction(&self) -> Span {
        self.correction
    }

    /// f32 `[n, n]`: `U` of the column loop.
    pub(super) fn upper(&self) -> Span {
        self.upper
    }

    /// i32 `[n]`: the order of rounding.
    pub(super) fn order(&self) -> Span {
        self.order
    }

    /// What `H` was damped with for the target.
    pub(super) fn damping(&self) -> f64 {
        self.damping
    }

    /// Sums over all tokens of `n` features, of `x` and `y`; the diagonal of `H`.
    pub(super) fn add_all(
        &mut self,
        common: &Common,
        n: usize,
        [x, y]: [Activations; 2],
        tokens: usize,
    ) -> Result<Vec<f64>> {
        self.n = n;
        let stream = common.gpu().main();
        for sum in [self.h, self.d, self.c] {
            // SAFETY: nothing else uses the sums.
            unsafe { sum.part(0, 8 * n * n)?.fill(stream, 0) }?;
        }
        for first in (0..tokens).step_by(BLOCK_TOKENS) {
            let count = BLOCK_TOKENS.min(tokens - first);
            let at = |all: Activations| all.span.ptr() + (2 * first * all.stride) as u64;
            self.add(common, [at(x), at(y)], x.stride, count)?;
        }
        let launch = Launch::new(n.div_ceil(THREADS as usize), THREADS);
        let args = Args::new().ptr(self.h.ptr()).ptr(self.diagonal.ptr());
        let call = common.call("diagonal_of", launch, args.i32(n as i32))?;
        let mut diagonal = vec![0.0; n];
        // SAFETY: the buffers are as large; the copy is waited for.
        unsafe {
            call.run(stream)?;
            self.narrow(common, self.h, self.h32)?;
            self.narrow(common, self.c, self.c32)?;
            self.diagonal.copy_to(stream, &mut diagonal)?;
        }
        let tiles = (n / TILE) as u32;
        let mut launch = Launch::new([tiles, tiles], TILE as u32);
        launch.block[1] = THREADS / TILE as u32;
        let args = Args::new()
            .ptr(self.h.ptr())
            .ptr(self.d.ptr())
            .ptr(self.c.ptr())
            .ptr(self.whole.ptr())
            .i32(n as i32);
        // SAFETY: as above.
        unsafe { common.call("whole_of", launch, args)?.run(stream) }?;
        stream.synchronize()?;
        Ok(diagonal)
    }

    /// Adds a block of tokens.
    fn add(&self, common: &Common, [x, y]: [u64; 2], stride: usize, tokens: usize) -> Result<()> {
        let (n, stream) = (self.n, common.gpu().main());
        let args = Args::new()
            .ptr(x)
            .ptr(y)
            .ptr(self.high.ptr())
            .ptr(self.low.ptr())
            .i32(n as i32)
            .i32(stride as i32);
        let split = common.call("split_difference", Launch::new(tokens, THREADS), args)?;
        // SAFETY: the buffers hold the block's tokens.
        unsafe { split.run(stream) }?;
        let (y, high, low) = ((y, stride), (self.high.ptr(), n), (self.low.ptr(), n));
        self.product(common, y, y, tokens, false)?;
        self.add_block(common, self.h)?;
        self.product(common, high, y, tokens, false)?;
        self.product(common, low, y, tokens, true)?;
        self.add_block(common, self.d)?;
        // What the low halves would add averages out: they are as often positive as negative.
        self.product(common, high, high, tokens, false)?;
        self.add_block(common, self.c)
    }

    /// `block = a' b`, or added to it, of matrices with their strides.
    fn product(
        &self,
        common: &Common,
        a: (u64, usize),
        b: (u64, usize),
        tokens: usize,
        accumulate: bool,
    ) -> Result<()> {
        let plan = common.blas.plan(&MatMul {
            m: self.n,
            n: self.n,
            k: tokens,
            form: Form::XtW,
            x_stride: a.1,
            w_stride: b.1,
            y_stride: self.n,
            input: Input::Bf16,
            output: Output::F32,
            accumulate,
        })?;
        let stream = common.gpu().main();
        // SAFETY: the block of tokens and the sums of it are as large as the plan says.
        unsafe { common.blas.run(stream, &plan, b.0, a.0, self.block.ptr()) }
    }

    fn add_block(&self, common: &Common, sum: Span) -> Result<()> {
        let count = self.n * self.n;
        let args = Args::new().ptr(sum.ptr()).ptr(self.block.ptr());
        let call = common.call("add_block", Common::over(count), args.u64(count as u64))?;
        // SAFETY: both are as large.
        unsafe { call.run(common.gpu().main()) }
    }

    /// # Safety
    /// Both hold `[n, n]`.
    unsafe fn narrow(&self, common: &Common, from: Span, to: Span) -> Result<()> {
        let count = self.n * self.n;
        let args = Args::new().ptr(from.ptr()).ptr(to.ptr());
        let call = common.call("narrow", Common::over(count), args.u64(count as u64))?;
        // SAFETY: the caller's promise.
        unsafe { call.run(common.gpu().main()) }
    }

    /// Makes `correction = D inverse(H)`, and forgets `D`.
    pub(super) fn factor_target(&mut self, common: &mut Common, damping: f64) -> Result<bool> {
        let plain: Vec<u32> = (0..self.n as u32).collect();
        if !self.factorize(common, &plain, damping)? {
            return Ok(false);
        }
        let (solver, gpu) = solver(common, self.n)?;
        // SAFETY: both are `[n, n]`.
        unsafe { solver.solve_rows(gpu.main(), self.a, self.d) }?;
        // SAFETY: as above.
        unsafe { self.narrow(common, self.d, self.correction) }?;
        self.damping = damping;
        Ok(true)
    }

    /// Makes `upper`, of columns in `order`.
    pub(super) fn factor_columns(
        &mut self,
        common: &mut Common,
        order: &[usize],
        damping: f64,
    ) -> Result<bool> {
        let order: Vec<u32> = order.iter().map(|i| *i as u32).collect();
        let reversed: Vec<u32> = order.iter().rev().copied().collect();
        if order.len() != self.n || order.iter().any(|i| *i as usize >= self.n) {
            let (got, n) = (order.len(), self.n);
            let message = format!("an order of {got} columns was given for {n}");
            return Err(Error::Cuda(message));
        }
        if !self.factorize(common, &reversed, damping)? {
            return Ok(false);
        }
        let n = self.n;
        let (solver, gpu) = solver(common, n)?;
        // SAFETY: it is `[n, n]`; the order outlives its copy, which is waited for.
        unsafe {
            solver.invert_lower(gpu.main(), self.a)?;
            self.order.copy_from(gpu.main(), &order)?;
        }
        gpu.main().synchronize()?;
        let tiles = (n / TILE) as u32;
        let mut launch = Launch::new([tiles, tiles], TILE as u32);
        launch.block[1] = THREADS / TILE as u32;
        let args = Args::new().ptr(self.a.ptr()).ptr(self.upper.ptr());
        let call = common.call("upper_of", launch, args.i32(n as i32))?;
        // SAFETY: as above.
        unsafe { call.run(common.gpu().main()) }?;
        Ok(true)
    }

    /// `L L'` of the damped `H`, its rows and columns taken from `from`.
    fn factorize(&self, common: &mut Common, from: &[u32], damping: f64) -> Result<bool> {
        let n = self.n;
        let launch = Launch::new([n.div_ceil(64) as u32, n as u32], 64);
        let args = Args::new()
            .ptr(self.h.ptr())
            .ptr(self.from.ptr())
            .u64(damping.to_bits())
            .ptr(self.a.ptr())
            .i32(n as i32);
        let call = common.call("gather_damped", launch, args)?;
        let (solver, gpu) = solver(common, n)?;
        // SAFETY: the buffers are `[n, n]`; `from` outlives its copy, which the solver waits for.
        unsafe {
            self.from.copy_from(gpu.main(), from)?;
            call.run(gpu.main())?;
            solver.cholesky(gpu.main(), self.a)
        }
    }
}

/// That of matrices `[n, n]`, and the GPU.
fn solver(common: &mut Common, n: usize) -> Result<(&mut Solver, &crate::cuda::device::Gpu)> {
    let Common {
        solvers, kernels, ..
    } = common;
    let missing = || Error::Cuda(format!("no stage has {n} input features"));
    Ok((solvers.get_mut(&n).ok_or_else(missing)?, kernels.gpu()))
}
