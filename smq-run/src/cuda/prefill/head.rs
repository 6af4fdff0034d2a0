//! The head behind a prompt's pass: logits of many positions, scored on the GPU or brought to the host.

use super::{Buffers, CHUNK, LOGIT_ROWS, Prefill};
use crate::cuda::args::Args;
use crate::cuda::decode::Parts;
use crate::cuda::kernels::Call;
use crate::cuda::launch::Launch;
use crate::cuda::pinned::PinnedBuffer;
use crate::cuda::rows::{Target, reads_int4_order};
use crate::engine::TokenScore;
use crate::error::Result;

impl Prefill {
    /// Scores `targets`, the tokens after each of the last `keep` of `tokens` (the last one's may be left out), which
    /// follow `past` cached positions. Waits for them.
    ///
    /// # Errors
    /// As [`Prefill::run`].
    pub fn scores(
        &mut self,
        parts: &Parts<'_>,
        tokens: &[u32],
        past: usize,
        keep: usize,
        mut targets: &[u32],
    ) -> Result<Vec<TokenScore>> {
        self.reserve(parts, tokens.len().min(CHUNK), true)?;
        let stream = parts.kernels.gpu().main();
        let mut out = Vec::with_capacity(targets.len());
        self.logits(parts, tokens, past, keep, &mut |b, m| {
            let (these, rest) = targets.split_at(m.min(targets.len()));
            targets = rest;
            if these.is_empty() {
                return Ok(());
            }
            let n = these.len();
            let score = Call {
                kernel: self.score.clone(),
                launch: Launch::new(n, 512).overlap(),
                args: Args::new()
                    .ptr(b.logits.ptr())
                    .ptr(b.tokens.ptr())
                    .ptr(b.log_probs.ptr())
                    .ptr(b.is_top.ptr()),
            };
            let (mut log_probs, mut is_top) = (vec![0.0f64; n], vec![0i32; n]);
            // SAFETY: every buffer holds LOGIT_ROWS rows; the stream is waited for below.
            unsafe {
                b.tokens.part(0, 4 * n)?.copy_from(stream, these)?;
                score.run(stream)?;
                b.log_probs
                    .part(0, 8 * n)?
                    .copy_to(stream, &mut log_probs)?;
                b.is_top.part(0, 4 * n)?.copy_to(stream, &mut is_top)?;
            }
            stream.synchronize()?;
            let score = |(log_prob, is_top): (f64, i32)| TokenScore {
                log_prob,
                is_top: is_top != 0,
            };
            out.extend(log_probs.into_iter().zip(is_top).map(score));
            Ok(())
        })?;
        Ok(out)
    }

    /// Passes the `[vocab]` logits after each of the last `keep` of `tokens` to `on_rows`, in order, some rows at a time,
    /// from an empty cache.
    ///
    /// # Errors
    /// As [`Prefill::run`]; whatever `on_rows` returns.
    pub fn logit_rows(
        &mut self,
        parts: &Parts<'_>,
        tokens: &[u32],
        keep: usize,
        on_rows: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        self.reserve(parts, tokens.len().min(CHUNK), true)?;
        let (gpu, vocab) = (parts.kernels.gpu(), parts.config.vocab);
        let mut host = match self.host_logits.take() {
            Some(host) => host,
            None => PinnedBuffer::huge(gpu, 4 * LOGIT_ROWS * vocab)?,
        };
        let done = self.logits(parts, tokens, 0, keep, &mut |b, m| {
            let rows = &mut host.as_mut_slice::<f32>()[..m * vocab];
            // SAFETY: both hold LOGIT_ROWS rows, and the copy is waited for before the host reads.
            unsafe { b.logits.copy_to(gpu.main(), rows)? };
            gpu.main().synchronize()?;
            on_rows(rows)
        });
        self.host_logits = Some(host);
        done
    }

    /// Queues the pass of `tokens`, which follow `past` cached positions; each block of up to [`LOGIT_ROWS`] of the last
    /// `keep` positions goes through the head, and `on_block` is told how many rows of logits the buffers then hold.
    fn logits(
        &self,
        parts: &Parts<'_>,
        tokens: &[u32],
        past: usize,
        keep: usize,
        on_block: &mut dyn FnMut(&Buffers, usize) -> Result<()>,
    ) -> Result<()> {
        let Parts {
            kernels,
            config: c,
            model,
            ..
        } = parts;
        let (b, stream) = (self.buffers()?, kernels.gpu().main());
        let head = std::slice::from_ref(&model.head);
        let skipped = tokens.len().saturating_sub(keep);
        for (i, chunk) in tokens.chunks(CHUNK).enumerate() {
            self.layers(parts, chunk, past + i * CHUNK)?;
            let first = skipped.saturating_sub(i * CHUNK).min(chunk.len());
            for row in (first..chunk.len()).step_by(LOGIT_ROWS) {
                let m = LOGIT_ROWS.min(chunk.len() - row);
                let x = b.x.ptr() + (4 * row * c.hidden) as u64;
                let int4 = reads_int4_order(head, m);
                // SAFETY: the activations hold the chunk's rows, of which these are some, and the logits LOGIT_ROWS;
                // they live as long as `self`, whose owner waits for the stream.
                unsafe {
                    self.norm_call(x, model.norm, b, m, int4).run(stream)?;
                    b.logits.part(0, 4 * m * c.vocab)?.fill(stream, 0)?;
                    let target = Target::Add(b.logits.ptr());
                    self.products.run(kernels, stream, head, m, &b.h, target)?;
                }
                on_block(b, m)?;
            }
        }
        Ok(())
    }
}
