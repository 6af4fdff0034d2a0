//! The head behind a prompt's pass: logits of many positions, scored on the GPU or brought to the
//! host.

use std::sync::Arc;

use super::token::{finish_launch, logits_defines};
use super::{CHUNK, LOGIT_ROWS, Prefill, ROW_THREADS, SCORE_THREADS};
use crate::cuda::args::Args;
use crate::cuda::decode::Parts;
use crate::cuda::family::finishes_logits;
use crate::cuda::kernels::{Call, Kernels};
use crate::cuda::launch::Launch;
use crate::cuda::module::Kernel;
use crate::cuda::packing::Pack;
use crate::cuda::pinned::PinnedBuffer;
use crate::cuda::rows::{Target, reads_int4_order};
use crate::cuda::stream::Stream;
use crate::engine::TokenScore;
use crate::error::Result;
use smq_model::ModelConfig;

/// The kernel of a family that makes something of its logits.
pub(super) fn finish_kernel(kernels: &Kernels, c: &ModelConfig) -> Result<Option<Arc<Kernel>>> {
    match finishes_logits(c) {
        false => Ok(None),
        true => kernels
            .get("logits.cu", logits_defines(c), "finish_logits")
            .map(Some),
    }
}

/// Rows of a pass whose logits are asked for.
#[derive(Debug, Clone, Copy)]
enum Wanted<'a> {
    /// So many, from this one on.
    From(usize, usize),
    /// These.
    Some(&'a [i32]),
}

impl Prefill {
    /// Scores each token but the first of a new sequence. Waits for them.
    ///
    /// # Errors
    /// As [`Prefill::run`].
    pub(crate) fn scores(&mut self, parts: &Parts<'_>, tokens: &[u32]) -> Result<Vec<TokenScore>> {
        self.reserve(parts, tokens.len().min(CHUNK), true)?;
        let mut out = Vec::with_capacity(tokens.len());
        let mut targets = &tokens[1..];
        for (i, chunk) in tokens.chunks(CHUNK).enumerate() {
            self.layers(parts, chunk, i * CHUNK, None)?;
            let (these, rest) = targets.split_at(chunk.len().min(targets.len()));
            targets = rest;
            for (block, these) in these.chunks(LOGIT_ROWS).enumerate() {
                let wanted = Wanted::From(block * LOGIT_ROWS, these.len());
                self.logits(parts, wanted)?;
                self.score(parts, these, &mut out)?;
            }
        }
        Ok(out)
    }

    /// Scores every row of `pack` that is to be scored, in their order. Waits for them.
    ///
    /// # Errors
    /// As [`Prefill::run`].
    pub(crate) fn packed_scores(
        &mut self,
        parts: &Parts<'_>,
        pack: &Pack,
    ) -> Result<Vec<TokenScore>> {
        self.reserve(parts, pack.tokens.len().clamp(1, CHUNK), true)?;
        let mut out = Vec::with_capacity(pack.scored.len());
        let mut scored = &pack.scored[..];
        for (i, tokens) in pack.tokens.chunks(CHUNK).enumerate() {
            let past = i * CHUNK;
            let seen = [&pack.seen, &pack.windowed].map(|seen| match seen.is_empty() {
                true => &[][..],
                false => &seen[past..past + tokens.len()],
            });
            self.layers(parts, tokens, past, Some(seen))?;
            let inside = scored.partition_point(|s| s.row < past + tokens.len());
            let (these, rest) = scored.split_at(inside);
            scored = rest;
            for block in these.chunks(LOGIT_ROWS) {
                let rows: Vec<i32> = block.iter().map(|s| (s.row - past) as i32).collect();
                let targets: Vec<u32> = block.iter().map(|s| s.target).collect();
                self.logits(parts, Wanted::Some(&rows))?;
                self.score(parts, &targets, &mut out)?;
            }
        }
        Ok(out)
    }

    /// Passes the `[vocab]` logits after each of the last `keep` of `tokens` to `on_rows`, in
    /// order, some rows at a time, from an empty cache.
    ///
    /// # Errors
    /// As [`Prefill::run`]; whatever `on_rows` returns.
    pub(crate) fn logit_rows(
        &mut self,
        parts: &Parts<'_>,
        tokens: &[u32],
        keep: usize,
        on_rows: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        self.reserve(parts, tokens.len().min(CHUNK), true)?;
        let mut host = match self.host_logits.take() {
            Some(host) => host,
            None => PinnedBuffer::huge(parts.kernels.gpu(), 4 * LOGIT_ROWS * parts.config.vocab)?,
        };
        let done = self.logits_to(&mut host, parts, tokens, keep, on_rows);
        self.host_logits = Some(host);
        done
    }

    fn logits_to(
        &self,
        host: &mut PinnedBuffer,
        parts: &Parts<'_>,
        tokens: &[u32],
        keep: usize,
        on_rows: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let (b, stream) = (self.buffers()?, parts.kernels.gpu().main());
        let skipped = tokens.len().saturating_sub(keep);
        for (i, chunk) in tokens.chunks(CHUNK).enumerate() {
            self.layers(parts, chunk, i * CHUNK, None)?;
            let first = skipped.saturating_sub(i * CHUNK).min(chunk.len());
            for row in (first..chunk.len()).step_by(LOGIT_ROWS) {
                let m = LOGIT_ROWS.min(chunk.len() - row);
                self.logits(parts, Wanted::From(row, m))?;
                let rows = &mut host.as_mut_slice::<f32>()[..m * parts.config.vocab];
                // SAFETY: both hold LOGIT_ROWS rows, and the copy is waited for before the host
                // reads.
                unsafe { b.logits.copy_to(stream, rows)? };
                stream.synchronize()?;
                on_rows(rows)?;
            }
        }
        Ok(())
    }

    /// Queues the head over at most [`LOGIT_ROWS`] rows of the last pass.
    fn logits(&self, parts: &Parts<'_>, wanted: Wanted<'_>) -> Result<()> {
        let Parts {
            kernels,
            config: c,
            model,
            ..
        } = parts;
        let (b, stream) = (self.buffers()?, kernels.gpu().main());
        let head = std::slice::from_ref(&model.head);
        let m = match wanted {
            Wanted::From(_, m) => m,
            Wanted::Some(rows) => rows.len(),
        };
        let int4 = reads_int4_order(head, m);
        let norm = match wanted {
            Wanted::From(row, m) => {
                let mut rows = b.between(m);
                rows.x += (4 * row * c.hidden) as u64;
                self.joints.norm_call(rows, model.norm, int4)
            }
            Wanted::Some(rows) => {
                // SAFETY: the host array is read before the call returns; `tokens` holds LOGIT_ROWS
                // values or more.
                unsafe { b.tokens.part(0, 4 * m)?.copy_from(stream, rows)? };
                Call {
                    kernel: self.norm_some.clone(),
                    launch: Launch::new(m, ROW_THREADS).overlap(),
                    args: Args::new()
                        .ptr(b.x.ptr())
                        .ptr(b.tokens.ptr())
                        .ptr(model.norm.ptr())
                        .ptr(b.h.span.ptr())
                        .i32(i32::from(int4)),
                }
            }
        };
        // SAFETY: the activations hold the pass's rows, of which these are some, and the logits
        // LOGIT_ROWS; they live as long as `self`, whose owner waits for the stream.
        unsafe {
            norm.run(stream)?;
            b.logits.part(0, 4 * m * c.vocab)?.fill(stream, 0)?;
            let target = Target::Add(b.logits.ptr());
            self.products.run(kernels, stream, head, m, &b.h, target)?;
            self.finish(stream, c, b.logits.ptr(), m)
        }
    }

    /// Queues what a family makes of `m` rows of logits, if anything.
    ///
    /// # Safety
    /// The logits are there until the stream is done.
    pub(super) unsafe fn finish(
        &self,
        stream: &Stream,
        c: &ModelConfig,
        logits: u64,
        m: usize,
    ) -> Result<()> {
        let Some(kernel) = &self.finish else {
            return Ok(());
        };
        let call = Call {
            kernel: kernel.clone(),
            launch: finish_launch(c, m),
            args: Args::new().ptr(logits),
        };
        // SAFETY: the caller's promise.
        unsafe { call.run(stream) }
    }

    /// Scores `targets` by the rows of logits that are there, appends the scores to `out`, and
    /// waits for that.
    fn score(&self, parts: &Parts<'_>, targets: &[u32], out: &mut Vec<TokenScore>) -> Result<()> {
        let (b, stream) = (self.buffers()?, parts.kernels.gpu().main());
        let n = targets.len();
        let score = Call {
            kernel: self.score.clone(),
            launch: Launch::new(n, SCORE_THREADS).overlap(),
            args: Args::new()
                .ptr(b.logits.ptr())
                .ptr(b.tokens.ptr())
                .ptr(b.log_probs.ptr())
                .ptr(b.is_top.ptr()),
        };
        let (mut log_probs, mut is_top) = (vec![0.0f64; n], vec![0i32; n]);
        // SAFETY: every buffer holds LOGIT_ROWS rows; the stream is waited for below.
        unsafe {
            b.tokens.part(0, 4 * n)?.copy_from(stream, targets)?;
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
    }
}
