//! What lies between the products of a layer: a norm, or where a family does more, `leave.cu`.

use std::sync::Arc;

use super::{Buffers, Prefill, ROW_THREADS};
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
pub(super) struct Left {
    /// Is added.
    pub bias: Option<Span>,
    /// Weights of its norm.
    pub after: Option<Span>,
}

/// What the next products read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Next {
    /// Weights of their norm; without one they read the residual stream itself.
    pub before: Option<Span>,
    /// The order that they want it in.
    pub int4_order: bool,
}

/// The kernel of a family that has something between its products.
pub(super) fn leave_kernel(kernels: &Kernels, c: &ModelConfig) -> Result<Option<Arc<Kernel>>> {
    match leaves(c) {
        false => Ok(None),
        true => kernels
            .get("leave.cu", leave_defines(c, ROW_THREADS), "leave_rows")
            .map(Some),
    }
}

/// `args` with one more address, where there is one.
pub(super) fn with(args: Args, more: Option<Span>) -> Args {
    match more {
        None => args,
        Some(span) => args.ptr(span.ptr()),
    }
}

/// `rope.cu`'s arguments with the layer's bias and norms.
pub(super) fn qkv_args(args: Args, layer: &DeviceLayer) -> Args {
    let args = with(args, layer.biases.qkv);
    let norms = layer.qk_norm.into_iter().flatten();
    norms.fold(args, |args, norm| args.ptr(norm.ptr()))
}

impl Prefill {
    /// Where the products go whose results leave a block.
    pub(super) fn left(&self, b: &Buffers) -> Target {
        match self.leave {
            None => Target::Add(b.x.ptr()),
            Some(_) => Target::F32(b.left.ptr()),
        }
    }

    /// Queues what makes the input of layer `index`.
    ///
    /// # Safety
    /// The buffers hold `m` rows, and stay until the stream is done.
    pub(super) unsafe fn enter(
        &self,
        stream: &Stream,
        b: &Buffers,
        m: usize,
        index: usize,
        next: Next,
    ) -> Result<()> {
        let call = match (&self.leave, index) {
            (None, _) => self.norm_between(b, m, next)?,
            (Some(kernel), 0) => leave_call(kernel, b, m, None, Some(next)),
            // The layer before has made it.
            (Some(_), _) => return Ok(()),
        };
        // SAFETY: the caller's promise.
        unsafe { call.run(stream) }
    }

    /// Queues what lies between the attention's output and the MLP.
    ///
    /// # Safety
    /// As [`Prefill::enter`].
    pub(super) unsafe fn leave_attention(
        &self,
        stream: &Stream,
        b: &Buffers,
        m: usize,
        left: Left,
        next: Next,
    ) -> Result<()> {
        let call = match &self.leave {
            None => self.norm_between(b, m, next)?,
            Some(kernel) => leave_call(kernel, b, m, Some(left), Some(next)),
        };
        // SAFETY: the caller's promise.
        unsafe { call.run(stream) }
    }

    /// Queues what lies between the MLP's output and the next layer, of which there is none behind
    /// the last.
    ///
    /// # Safety
    /// As [`Prefill::enter`].
    pub(super) unsafe fn leave_mlp(
        &self,
        stream: &Stream,
        b: &Buffers,
        m: usize,
        left: Left,
        next: Option<Next>,
    ) -> Result<()> {
        match &self.leave {
            None => Ok(()),
            // SAFETY: the caller's promise.
            Some(kernel) => unsafe { leave_call(kernel, b, m, Some(left), next).run(stream) },
        }
    }

    fn norm_between(&self, b: &Buffers, m: usize, next: Next) -> Result<Call> {
        let missing = || Error::Cuda("a layer has no norm where there should be one".into());
        let weight = next.before.ok_or_else(missing)?;
        Ok(self.norm_call(b.x.ptr(), weight, b, m, next.int4_order))
    }
}

/// `leave_rows` for `m` rows.
fn leave_call(
    kernel: &Arc<Kernel>,
    b: &Buffers,
    m: usize,
    left: Option<Left>,
    next: Option<Next>,
) -> Call {
    let address = |span: Option<Span>| span.map_or(0, Span::ptr);
    let bias = address(left.and_then(|left| left.bias));
    let after = address(left.and_then(|left| left.after));
    let before = address(next.and_then(|next| next.before));
    let order = next.is_some_and(|next| next.int4_order);
    Call {
        kernel: kernel.clone(),
        launch: Launch::new(m, ROW_THREADS).overlap(),
        args: Args::new()
            .ptr(b.x.ptr())
            .ptr(left.map_or(0, |_| b.left.ptr()))
            .ptr(bias)
            .ptr(after)
            .ptr(before)
            .ptr(next.map_or(0, |_| b.h.span.ptr()))
            .i32(i32::from(order)),
    }
}
