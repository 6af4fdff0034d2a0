//! What lies between the products of a layer: a norm, or where a family does more, `leave.cu`; and
//! what else the layer's weights say about that.

use std::sync::Arc;

use super::{ROW_THREADS, row_defines, swiglu_launch};
use crate::cuda::args::Args;
use crate::cuda::family::{leave_defines, leaves};
use crate::cuda::kernels::{Call, Kernels};
use crate::cuda::launch::Launch;
use crate::cuda::memory::Span;
use crate::cuda::module::Kernel;
use crate::cuda::rows::Target;
use crate::cuda::stream::Stream;
use crate::cuda::weights::DeviceLayer;
use crate::error::{Error, Result};
use smq_model::ModelConfig;

/// What becomes of a block's output before it joins the residual stream.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Left {
    /// Is added.
    bias: Option<Span>,
    /// Weights of its norm.
    after: Option<Span>,
}

impl Left {
    /// Of the attention of `layer`.
    pub(in crate::cuda) fn attention(layer: &DeviceLayer) -> Self {
        Self {
            bias: layer.biases.o,
            after: layer.norms.after_attention,
        }
    }

    /// Of the MLP of `layer`.
    pub(in crate::cuda) fn mlp(layer: &DeviceLayer) -> Self {
        Self {
            bias: layer.biases.down,
            after: layer.norms.after_mlp,
        }
    }
}

/// What the next products read.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Next {
    /// Weights of their norm; without one they read the residual stream itself.
    pub before: Option<Span>,
    /// The order that they want it in.
    pub int4_order: bool,
}

/// Rows between two products.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Between {
    /// How many.
    pub m: usize,
    /// The residual stream, f32 `[m, hidden]`.
    pub x: u64,
    /// What leaves a block, f32 `[m, hidden]`, where [`Joints::needs_left`].
    pub left: u64,
    /// What the next products read, bf16 `[m, hidden rounded up to 128]`.
    pub h: u64,
}

/// The kernels between products.
#[derive(Debug)]
pub(in crate::cuda) struct Joints {
    norm: Arc<Kernel>,
    /// Where a family does more there.
    leave: Option<Arc<Kernel>>,
}

impl Joints {
    /// Compiles them.
    ///
    /// # Errors
    /// As [`Kernels::get`].
    pub(in crate::cuda) fn new(kernels: &Kernels, c: &ModelConfig) -> Result<Self> {
        let leave = || kernels.get("leave.cu", leave_defines(c, ROW_THREADS), "leave_rows");
        let defines = row_defines(c, kernels.gpu().sm_count() as usize);
        Ok(Self {
            norm: kernels.get("rows.cu", defines, "norm_rows")?,
            leave: leaves(c).then(leave).transpose()?,
        })
    }

    /// Whether what leaves a block is not added to the residual stream by its product.
    pub(in crate::cuda) fn needs_left(&self) -> bool {
        self.leave.is_some()
    }

    /// Where the products go whose results leave a block.
    pub(in crate::cuda) fn target(&self, rows: Between) -> Target {
        match self.leave {
            None => Target::Add(rows.x),
            Some(_) => Target::F32(rows.left),
        }
    }

    /// Queues what makes the input of a layer from the residual stream.
    ///
    /// # Safety
    /// The buffers hold so many rows, and stay until the stream is done.
    pub(in crate::cuda) unsafe fn enter(
        &self,
        stream: &Stream,
        rows: Between,
        next: Next,
    ) -> Result<()> {
        let call = match &self.leave {
            None => self.norm_between(rows, next)?,
            Some(kernel) => leave_call(kernel, rows, None, Some(next)),
        };
        // SAFETY: the caller's promise.
        unsafe { call.run(stream) }
    }

    /// Queues what lies between the attention's output and the MLP.
    ///
    /// # Safety
    /// As [`Joints::enter`].
    pub(in crate::cuda) unsafe fn leave_attention(
        &self,
        stream: &Stream,
        rows: Between,
        left: Left,
        next: Next,
    ) -> Result<()> {
        let call = match &self.leave {
            None => self.norm_between(rows, next)?,
            Some(kernel) => leave_call(kernel, rows, Some(left), Some(next)),
        };
        // SAFETY: the caller's promise.
        unsafe { call.run(stream) }
    }

    /// Queues what lies between the MLP's output and the next layer. `next`: what that reads, where
    /// there is one and it is not [entered](Joints::enter) by itself; a model whose kernel is the
    /// norm alone always enters it so.
    ///
    /// # Safety
    /// As [`Joints::enter`].
    pub(in crate::cuda) unsafe fn leave_mlp(
        &self,
        stream: &Stream,
        rows: Between,
        left: Left,
        next: Option<Next>,
    ) -> Result<()> {
        match &self.leave {
            None => Ok(()),
            // SAFETY: the caller's promise.
            Some(kernel) => unsafe { leave_call(kernel, rows, Some(left), next).run(stream) },
        }
    }

    fn norm_between(&self, rows: Between, next: Next) -> Result<Call> {
        let missing = || Error::Cuda("a layer has no norm where there should be one".into());
        let weight = next.before.ok_or_else(missing)?;
        Ok(self.norm_call(rows, weight, next.int4_order))
    }

    /// The norm of the residual stream.
    pub(super) fn norm_call(&self, rows: Between, weight: Span, int4_order: bool) -> Call {
        Call {
            kernel: self.norm.clone(),
            launch: Launch::new(rows.m, ROW_THREADS).overlap(),
            args: Args::new()
                .ptr(rows.x)
                .ptr(weight.ptr())
                .ptr(rows.h)
                .i32(i32::from(int4_order)),
        }
    }
}

/// `leave_rows`.
fn leave_call(kernel: &Arc<Kernel>, rows: Between, left: Option<Left>, next: Option<Next>) -> Call {
    let address = |span: Option<Span>| span.map_or(0, Span::ptr);
    let bias = address(left.and_then(|left| left.bias));
    let after = address(left.and_then(|left| left.after));
    let before = address(next.and_then(|next| next.before));
    let order = next.is_some_and(|next| next.int4_order);
    Call {
        kernel: kernel.clone(),
        launch: Launch::new(rows.m, ROW_THREADS).overlap(),
        args: Args::new()
            .ptr(rows.x)
            .ptr(left.map_or(0, |_| rows.left))
            .ptr(bias)
            .ptr(after)
            .ptr(before)
            .ptr(next.map_or(0, |_| rows.h))
            .i32(i32::from(order)),
    }
}

/// `args` with one more address, where there is one.
fn with(args: Args, more: Option<Span>) -> Args {
    match more {
        None => args,
        Some(span) => args.ptr(span.ptr()),
    }
}

/// `rope.cu`'s arguments with the layer's bias and norms.
pub(in crate::cuda) fn qkv_args(args: Args, layer: &DeviceLayer) -> Args {
    let args = with(args, layer.biases.qkv);
    let norms = layer.qk_norm.into_iter().flatten();
    norms.fold(args, |args, norm| args.ptr(norm.ptr()))
}

/// `swiglu_rows` of `m` rows with the layer's bias: from `gate_up`, bf16 `[m, 2 intermediate]`, to
/// `out`, bf16 `[m, intermediate rounded up to 128]`.
pub(in crate::cuda) fn activation_call(
    kernel: Arc<Kernel>,
    (c, layer): (&ModelConfig, &DeviceLayer),
    m: usize,
    [gate_up, out]: [u64; 2],
    int4_order: bool,
) -> Call {
    let args = Args::new().ptr(gate_up).ptr(out);
    Call {
        kernel,
        launch: swiglu_launch(c.intermediate, m),
        args: with(args.i32(i32::from(int4_order)), layer.biases.gate_up),
    }
}
