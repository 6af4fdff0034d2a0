//! A step of many sequences: a pass over rows whose keys and values lie in pages, and the logits of
//! those that want them.

use super::attention::{Attention, Rows, rope};
use super::{CHUNK, LOGIT_ROWS, Pass, Prefill, ROW_THREADS};
use crate::cuda::args::Args;
use crate::cuda::decode::Parts;
use crate::cuda::kernels::Call;
use crate::cuda::launch::Launch;
use crate::cuda::memory::Span;
use crate::cuda::row_count::RowCount;
use crate::cuda::rows::{Target, reads_int4_order};
use crate::error::Result;

/// Rows of a step, at most.
pub(in crate::cuda) const STEP_ROWS: usize = CHUNK;
/// Rows of logits of a step that the GPU holds at a time.
pub(in crate::cuda) const WANTED_ROWS: usize = LOGIT_ROWS;
/// The tiles of rows that attend together (`attention_prefill.cu`).
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Tiles {
    /// Where they are.
    pub tiles: u64,
    /// How many.
    pub count: usize,
    /// Where the page tables are.
    pub tables: u64,
}

/// A step's arrays on the GPU.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct StepInputs {
    /// Rows.
    pub rows: usize,
    /// Whether each is a tile of its own.
    pub single: bool,
    /// Whether some sequence has several of them.
    pub drafted: bool,
    /// A token a row.
    pub tokens: u64,
    /// Where each row's key and value go, and its position.
    pub places: u64,
    /// Tiles of rows.
    pub tiles: Tiles,
    /// Frequencies of the short and the long factors, f32 `[2, rotary_dim / 2]`, of each rotary
    /// embedding.
    pub inv_freq: [u64; 2],
}

impl Prefill {
    /// Makes room for steps of [`STEP_ROWS`] rows, of which [`WANTED_ROWS`] want logits. What is
    /// recorded of a step stays valid from then on.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if the memory is not there.
    pub(in crate::cuda) fn reserve_steps(&mut self, parts: &Parts<'_>) -> Result<()> {
        self.reserve(parts, STEP_ROWS, true)
    }

    /// Queues every layer for the rows of a step, whose arrays are on the GPU.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) from compiling or launching.
    pub(in crate::cuda) fn step(&self, parts: &Parts<'_>, inputs: &StepInputs) -> Result<()> {
        let rows = match inputs.single {
            true => Rows::of_single(parts.config, inputs.drafted),
            false => Rows::Paged,
        };
        let code = parts.cache.code;
        let kind = Attention::of(parts.config, inputs.rows, rows, code);
        let pass = Pass {
            m: inputs.rows,
            past: 0,
            alike: true,
            kind,
            attention: kind.of_windows(parts.kernels, parts.config)?,
            rope: match kind.rotates() {
                true => None,
                false => Some(rope(parts.kernels, parts.config, rows, code)?),
            },
            inv_freq: inputs.inv_freq,
            tokens: inputs.tokens,
            seen: [inputs.places; 2],
            tiles: Some(inputs.tiles),
        };
        self.queue(parts, self.buffers()?, &pass)
    }

    /// Queues the logits of `count` rows of the last step, at most [`WANTED_ROWS`], whose numbers
    /// are at `wanted`.
    ///
    /// # Errors
    /// As [`Prefill::step`].
    pub(in crate::cuda) fn step_logits(
        &self,
        parts: &Parts<'_>,
        wanted: u64,
        count: usize,
    ) -> Result<()> {
        let (b, stream) = (self.buffers()?, parts.kernels.gpu().main());
        let head = std::slice::from_ref(&parts.model.head);
        let n = RowCount {
            m: count,
            alike: true,
        };
        let norm = Call {
            kernel: self.norm_some.clone(),
            launch: Launch::new(count, ROW_THREADS).overlap(),
            args: Args::new()
                .ptr(b.x.ptr())
                .ptr(wanted)
                .ptr(parts.model.norm.ptr())
                .ptr(b.h.span.ptr())
                .i32(i32::from(reads_int4_order(head, n))),
        };
        // SAFETY: the activations hold the step's rows, the logits WANTED_ROWS (`reserve_steps`);
        // they live as long as `self`, whose owner waits for the stream.
        unsafe {
            b.logits
                .part(0, 4 * count * parts.config.vocab)?
                .fill(stream, 0)?;
            norm.run(stream)?;
            let target = Target::Add(b.logits.ptr());
            self.products
                .run(parts.kernels, stream, head, n, &b.h, target)?;
            self.finish(stream, parts.config, b.logits.ptr(), count)
        }
    }

    /// Where the logits are, f32 `[WANTED_ROWS, vocab]`.
    ///
    /// # Errors
    /// If no room was made for them.
    pub(in crate::cuda) fn logits_span(&self) -> Result<Span> {
        Ok(self.buffers()?.logits)
    }
}
