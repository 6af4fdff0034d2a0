//! A step of one sequence by the kernels of prompts, for families that `decode.cu` does not
//! compute: a pass of one row, the head and the choice of the next token.
//!
//! The token is where the step before left it, so that steps can be queued ahead; how many positions
//! precede it the host knows.

use super::attention::{Attention, Rows, rope};
use super::{CHUNK, Pass, Prefill};
use crate::cuda::args::Args;
use crate::cuda::contract::Defines;
use crate::cuda::decode::Parts;
use crate::cuda::family;
use crate::cuda::kernels::Call;
use crate::cuda::launch::Launch;
use crate::cuda::memory::Span;
use crate::cuda::row_count::RowCount;
use crate::cuda::rows::{Target, reads_int4_order};
use crate::cuda::state;
use crate::error::Result;
use crate::kv::KvCode;
use smq_model::ModelConfig;

/// Threads of a block of `finish_logits`; each has four logits.
const FINISH_THREADS: u32 = 256;
/// Threads of `choose_token`.
const CHOOSE_THREADS: u32 = 1024;

/// The macros of `logits.cu`.
#[must_use]
pub fn logits_defines(c: &ModelConfig) -> Defines {
    let mut defines = vec![
        ("VOCAB", c.vocab as i64),
        ("FINISH_THREADS", FINISH_THREADS.into()),
        ("CHOOSE_THREADS", CHOOSE_THREADS.into()),
    ];
    defines.extend(family::finish_defines(c));
    defines.extend(state::choice_defines());
    defines
}

/// The launch of `finish_logits` for `m` rows.
pub(super) fn finish_launch(c: &ModelConfig, m: usize) -> Launch {
    let blocks = c.vocab.div_ceil(4 * FINISH_THREADS as usize);
    Launch::new([blocks as u32, m as u32], FINISH_THREADS).overlap()
}

impl Prefill {
    /// Queues a step: the token that the last one chose follows `past` cached positions.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if memory is not there or the driver fails.
    pub(in crate::cuda) fn token(&mut self, parts: &Parts<'_>, past: usize) -> Result<()> {
        let Parts {
            kernels,
            config: c,
            state,
            ..
        } = parts;
        self.reserve(parts, 1, false)?;
        let b = self.buffers()?;
        let kind = Attention::of(c, 1, Rows::One, KvCode::Bf16);
        let pass = Pass {
            m: 1,
            past,
            alike: true,
            kind,
            attention: kind.of_windows(kernels, c)?,
            rope: Some(rope(kernels, c, Rows::One, kind.code)?),
            inv_freq: state.inv_freq.map(Span::ptr),
            tokens: state.next_token()?.ptr(),
            seen: b.seen.map(Span::ptr),
            tiles: None,
        };
        self.queue(parts, b, &pass)?;
        self.choose(parts, 0)
    }

    /// Queues the pass of `tokens`, which follow `past` cached positions, and the choice of the
    /// token behind them.
    ///
    /// # Errors
    /// As [`Prefill::token`].
    pub(in crate::cuda) fn run_and_choose(
        &mut self,
        parts: &Parts<'_>,
        tokens: &[u32],
        past: usize,
    ) -> Result<()> {
        self.cache(parts, tokens, past)?;
        self.choose(parts, (tokens.len() - 1) % CHUNK)
    }

    /// Queues the head over a row of the last pass, whose logits go where a step's do, and the
    /// choice.
    fn choose(&self, parts: &Parts<'_>, row: usize) -> Result<()> {
        let Parts {
            kernels,
            config: c,
            model,
            state,
            ..
        } = parts;
        let (b, stream) = (self.buffers()?, kernels.gpu().main());
        let head = std::slice::from_ref(&model.head);
        let n = RowCount { m: 1, alike: true };
        let mut rows = b.between(1);
        rows.x += (4 * row * c.hidden) as u64;
        let order = reads_int4_order(head, n);
        let norm = self.joints.norm_call(rows, model.norm, order);
        let choose = Call {
            kernel: kernels.get("logits.cu", logits_defines(c), "choose_token")?,
            launch: Launch::new(1_u32, CHOOSE_THREADS).overlap(),
            args: Args::new()
                .ptr(state.logits.ptr())
                .ptr(state.state.ptr())
                .ptr(state.mailbox.device_ptr()),
        };
        let logits = state.logits.ptr();
        // SAFETY: the activations hold the pass's rows, of which this is one, and the state's
        // logits one row; they live as long as their owner, who waits for the stream.
        unsafe {
            norm.run(stream)?;
            let target = Target::F32(logits);
            self.products.run(kernels, stream, head, n, &b.h, target)?;
            self.finish(stream, c, logits, 1)?;
            choose.run(stream)
        }
    }
}
