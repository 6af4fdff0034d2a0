//! What a decode step keeps on the GPU between its kernels, and how its tokens reach the host.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arena::Arena;
use super::contract::Defines;
use super::device::Gpu;
use super::memory::Span;
use super::pinned::PinnedBuffer;
use crate::error::{Error, Result};
use smq_model::ModelConfig;

/// Tokens that the mailbox holds: more than are ever on their way.
pub(super) const RING: usize = 64;
/// A step that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// The id that says a logit was not finite.
const NOT_FINITE: u32 = u32::MAX;
/// Places in [`State::state`].
const POSITION: usize = 0;
const CHOSEN: usize = 1;
const TOKEN: usize = 2;
const STEPS: usize = 3;
const CHOICES: usize = 4;
/// [`STEPS`] and [`CHOICES`] of steps of several tokens.
const GUESSING_STEPS: usize = 5;
const GUESSING_CHOICES: usize = 6;
const STATE_WORDS: usize = 7;

/// How often a step writes what all of its blocks read, each copy for some of them (`decode.cu`
/// says why).
pub const COPIES: usize = 2;

/// Blocks that share a key/value head's tokens: one block an SM where that is possible. With heads
/// of 256 elements they are no more than 16, since more measured slower.
pub(super) fn splits(c: &ModelConfig, sms: usize) -> usize {
    let fits = |s: &usize| {
        s * c.kv_heads <= sms && c.head_dim.is_multiple_of(4 * s) && s * c.head_dim <= 4096
    };
    [32, 16, 8, 4, 2].into_iter().find(fits).unwrap_or(1)
}

/// f32 of what a block of a head passes on: its output, a maximum and a sum, in whole 16 bytes.
fn part_floats(c: &ModelConfig) -> usize {
    c.head_dim + 4
}

/// What `decode.cu`, of `rows` tokens a step, knows of these buffers.
pub(super) fn defines(c: &ModelConfig, rows: usize) -> Defines {
    let (steps, choices) = match rows {
        1 => (STEPS, CHOICES),
        _ => (GUESSING_STEPS, GUESSING_CHOICES),
    };
    vec![
        ("STATE_POSITION", POSITION as i64),
        ("STATE_CHOSEN", CHOSEN as i64),
        ("STATE_TOKEN", TOKEN as i64),
        ("STATE_STEPS", steps as i64),
        ("STATE_CHOICES", choices as i64),
        ("RING", RING as i64),
        ("NOT_FINITE", NOT_FINITE.into()),
        ("EXCHANGED_FLOATS", part_floats(c) as i64),
        ("COPIES", COPIES as i64),
    ]
}

/// What whoever chooses a token knows of them.
pub(super) fn choice_defines() -> Defines {
    vec![
        ("STATE_POSITION", POSITION as i64),
        ("STATE_CHOSEN", CHOSEN as i64),
        ("STATE_TOKEN", TOKEN as i64),
        ("RING", RING as i64),
        ("NOT_FINITE", NOT_FINITE.into()),
    ]
}

/// Buffers of one sequence's step, f32 where not said otherwise. Those that hold a value for a row
/// of activations have, for steps of several tokens, those of each token, one's behind the other's.
#[derive(Debug)]
pub struct State {
    /// i32: position, tokens chosen, token; whole steps done and choices made by the kernel of one
    /// token, and the same of several (`decode.cu`).
    pub state: Span,
    /// `[rotary_dim / 2]`, of the factors in use, of each rotary embedding that layers may have.
    pub inv_freq: [Span; 2],
    /// Inputs of the products after the two norms, `[COPIES, hidden]` each.
    pub hidden: [Span; 2],
    /// Their partial sums of squares, `[SMs]` each.
    pub square_sums: [Span; 2],
    /// Partial sums of squares of what attention and MLP give, where a norm follows, `[SMs]` each.
    pub product_sums: [Span; 2],
    /// The head's input that a prompt leaves, and its sums of squares.
    pub last_hidden: Span,
    /// `[SMs]`.
    pub last_square_sums: Span,
    /// `[(heads + 2 kv_heads) head_dim]`.
    pub qkv: Span,
    /// What the blocks of a head exchange, `[heads, splits, part_floats]`.
    pub attention_parts: Span,
    /// `[COPIES, heads head_dim]`.
    pub attended: Span,
    /// `[COPIES, intermediate]`.
    pub activated: Span,
    /// `[vocab]`.
    pub logits: Span,
    /// Each block's largest logit, its row above it: u64 `[SMs]`.
    pub best: Span,
    /// u64 `[RING]`, in host memory.
    pub mailbox: Arc<PinnedBuffer>,
    _arena: Arena,
}

impl State {
    /// Allocates everything; contents are zero.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the memory is not there.
    pub fn new(gpu: &Gpu, c: &ModelConfig) -> Result<Self> {
        Self::of_rows(gpu, c, 1)
    }

    /// Others for steps of `rows` tokens, which go on from the same place.
    ///
    /// # Errors
    /// As [`State::new`].
    pub(super) fn beside(&self, gpu: &Gpu, c: &ModelConfig, rows: usize) -> Result<Self> {
        Ok(Self {
            state: self.state,
            inv_freq: self.inv_freq,
            mailbox: self.mailbox.clone(),
            ..Self::of_rows(gpu, c, rows)?
        })
    }

    fn of_rows(gpu: &Gpu, c: &ModelConfig, rows: usize) -> Result<Self> {
        let sms = gpu.sm_count() as usize;
        let mut mailbox = PinnedBuffer::mapped(gpu, 8 * RING)?;
        mailbox.as_mut_slice::<u64>().fill(0);
        let half = c.rope.rotary_dim / 2;
        let width = c.heads * c.head_dim;
        let kv_width = c.kv_heads * c.head_dim;
        let parts = c.heads * splits(c, sms) * part_floats(c);
        let (arena, spans) = Arena::build(gpu, "a decode step's buffers", |arena| {
            let mut fixed = |n: usize| arena.take(4 * n);
            let place = [fixed(STATE_WORDS)?, fixed(half)?, fixed(half)?];
            let mut words = |n: usize| arena.take(4 * rows * n);
            Ok((
                place,
                [
                    words(COPIES * c.hidden)?,
                    words(COPIES * c.hidden)?,
                    words(c.hidden)?,
                ],
                [
                    words(sms)?,
                    words(sms)?,
                    words(sms)?,
                    words(sms)?,
                    words(sms)?,
                ],
                [
                    words(width + 2 * kv_width)?,
                    words(parts)?,
                    words(COPIES * width)?,
                ],
                [words(COPIES * c.intermediate)?, words(c.vocab)?],
                words(2 * sms)?,
            ))
        })?;
        if let Some(buffer) = arena.buffer() {
            buffer.fill(gpu.main(), 0)?;
        }
        let (
            [state, inv_freq, other_inv_freq],
            [hidden0, hidden1, last_hidden],
            [sums0, sums1, last_square_sums, product0, product1],
            [qkv, attention_parts, attended],
            [activated, logits],
            best,
        ) = spans;
        Ok(Self {
            state,
            inv_freq: [inv_freq, other_inv_freq],
            hidden: [hidden0, hidden1],
            square_sums: [sums0, sums1],
            product_sums: [product0, product1],
            last_hidden,
            last_square_sums,
            qkv,
            attention_parts,
            attended,
            activated,
            logits,
            best,
            mailbox: Arc::new(mailbox),
            _arena: arena,
        })
    }

    /// Where a step finds its token, an i32.
    ///
    /// # Errors
    /// As [`Span::part`].
    pub(super) fn next_token(&self) -> Result<Span> {
        self.state.part(4 * TOKEN, 4)
    }

    /// Where a step finds its place: the position, the number of tokens chosen, the token, i32 each.
    ///
    /// # Errors
    /// As [`Span::part`].
    pub(super) fn place(&self) -> Result<Span> {
        const { assert!(POSITION == 0 && CHOSEN == 1 && TOKEN == 2) };
        self.state.part(0, 12)
    }

    /// Waits for the token of step `step` (counted from 0 since the buffers were made).
    ///
    /// # Errors
    /// [`Error::Input`] if a logit was not finite, [`Error::Cuda`] if nothing comes.
    pub fn token(&self, step: u32, check: impl Fn() -> Result<()>) -> Result<u32> {
        // A reference to what the GPU writes would promise that it does not change.
        let slot = self.mailbox.as_ptr().cast::<u64>();
        let slot = slot.wrapping_add(step as usize % RING);
        let start = Instant::now();
        let mut spins = 0u32;
        loop {
            // SAFETY: inside the mailbox's `RING` words, page-aligned and initialised, of which the
            // GPU writes whole ones: a volatile read sees one or the other.
            let value = unsafe { slot.read_volatile() };
            if (value >> 32) as u32 == step.wrapping_add(1) {
                return match value as u32 {
                    NOT_FINITE => Err(Error::Input(
                        "the model produced a logit that is not finite: its weights are damaged"
                            .into(),
                    )),
                    id => Ok(id),
                };
            }
            std::hint::spin_loop();
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(1 << 16) {
                check()?;
                if start.elapsed() > PATIENCE {
                    return Err(Error::Cuda(
                        "no token came from the GPU for a minute; is another program holding it?"
                            .into(),
                    ));
                }
            }
        }
    }
}
