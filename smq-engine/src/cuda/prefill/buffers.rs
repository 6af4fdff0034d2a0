//! The memory of a prompt's pass.

use super::between::Between;
use super::{LOGIT_ROWS, Prefill, padded};
use crate::cuda::activations::Activations;
use crate::cuda::arena::Arena;
use crate::cuda::decode::Parts;
use crate::cuda::family::{rotations, windows};
use crate::cuda::memory::Span;
use crate::cuda::packing::Seen;
use crate::cuda::rows::scratch_bytes;
use crate::cuda::weights::DeviceMatrix;
use crate::error::{Error, Result};

#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) capacity: usize,
    pub(super) tokens: Span,
    /// f32 `[capacity, hidden]`.
    pub(super) x: Span,
    /// After a norm.
    pub(super) h: Activations,
    /// [`Seen`] of each row, of several packed sequences: in layers without a window of their own,
    /// and in those with one.
    pub(super) seen: [Span; 2],
    /// f32 `[capacity, 2, rotary_dim / 2]` (`rope.cu`), of each rotary embedding that layers have.
    pub(super) rotations: [Span; 2],
    /// f32 `[capacity, hidden]`: what leaves a block, where there is a kernel between.
    pub(super) left: Span,
    /// bf16 `[capacity, (heads + 2 kv_heads) head_dim]`.
    pub(super) qkv: Span,
    /// bf16 `[capacity, heads head_dim]`.
    pub(super) q: Span,
    pub(super) attended: Activations,
    /// bf16 `[capacity, 2 intermediate]`.
    pub(super) gate_up: Span,
    pub(super) activated: Activations,
    /// f32 `[LOGIT_ROWS, vocab]`; empty until several rows of logits are asked for.
    pub(super) logits: Span,
    /// f64 `[LOGIT_ROWS]`.
    pub(super) log_probs: Span,
    /// i32 `[LOGIT_ROWS]`.
    pub(super) is_top: Span,
    _arena: Arena,
}

impl Buffers {
    /// The first `m` rows between two products.
    pub(super) fn between(&self, m: usize) -> Between {
        Between {
            m,
            x: self.x.ptr(),
            left: self.left.ptr(),
            h: self.h.span.ptr(),
        }
    }
}

impl Prefill {
    pub(super) fn buffers(&self) -> Result<&Buffers> {
        let missing = || Error::Cuda("a prompt's activations were not allocated".into());
        self.buffers.as_ref().ok_or_else(missing)
    }

    /// Makes the buffers hold `m` rows.
    pub(super) fn reserve(&mut self, parts: &Parts<'_>, m: usize, logits: bool) -> Result<()> {
        let Parts {
            kernels,
            config: c,
            model,
            ..
        } = parts;
        let has = |b: &Buffers| b.capacity >= m && (!logits || b.logits.bytes() > 0);
        if self.buffers.as_ref().is_some_and(has) {
            return Ok(());
        }
        let gpu = kernels.gpu();
        // Whoever still computes in the old ones.
        gpu.main().synchronize()?;
        let old = self.buffers.take();
        let logits = logits || old.as_ref().is_some_and(|b| b.logits.bytes() > 0);
        let m = m
            .max(old.as_ref().map_or(0, |b| b.capacity))
            .next_multiple_of(128);
        drop(old);
        let one = std::slice::from_ref::<DeviceMatrix>;
        // Few rows may need what many do not, so ask for both.
        let scratch = model
            .layers
            .iter()
            .flat_map(|l| [&l.qkv[..], one(&l.o), &l.gate_up, one(&l.down)])
            .chain([one(&model.head)])
            .map(|w| scratch_bytes(w, m).max(scratch_bytes(w, 1)))
            .max()
            .unwrap_or(0);
        let width = c.heads * c.head_dim;
        let (by_layer, two_rotations) = (windows(c).len() > 1, rotations(c).len() > 1);
        let leaves = self.joints.needs_left();
        let (arena, (mut buffers, scratch)) = Arena::build(gpu, "a prompt's activations", |a| {
            let mut activations = |columns: usize| -> Result<Activations> {
                let stride = padded(columns);
                Ok(Activations {
                    span: a.take(2 * m * stride)?,
                    capacity: m,
                    stride,
                })
            };
            let (h, attended, activated) = (
                activations(c.hidden)?,
                activations(width)?,
                activations(c.intermediate)?,
            );
            let logit_rows = if logits { LOGIT_ROWS } else { 0 };
            let buffers = Buffers {
                capacity: m,
                tokens: a.take(4 * m.max(LOGIT_ROWS))?,
                x: a.take(4 * m * c.hidden)?,
                seen: [
                    a.take(size_of::<Seen>() * m)?,
                    a.take(size_of::<Seen>() * if by_layer { m } else { 0 })?,
                ],
                rotations: [
                    a.take(4 * m * c.rope.rotary_dim)?,
                    a.take(4 * c.rope.rotary_dim * if two_rotations { m } else { 0 })?,
                ],
                left: a.take(4 * c.hidden * if leaves { m } else { 0 })?,
                h,
                qkv: a.take(2 * m * (c.heads + 2 * c.kv_heads) * c.head_dim)?,
                q: a.take(2 * m * width)?,
                attended,
                gate_up: a.take(2 * m * 2 * c.intermediate)?,
                activated,
                logits: a.take(4 * logit_rows * c.vocab)?,
                log_probs: a.take(8 * logit_rows)?,
                is_top: a.take(4 * logit_rows)?,
                _arena: Arena::sizes(),
            };
            Ok((buffers, a.take(scratch)?))
        })?;
        if let Some(memory) = arena.buffer() {
            // Padding columns are read as zero.
            memory.fill(gpu.main(), 0)?;
        }
        buffers._arena = arena;
        self.products.set_scratch(scratch);
        self.buffers = Some(buffers);
        Ok(())
    }
}
