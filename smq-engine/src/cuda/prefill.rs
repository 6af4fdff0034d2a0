//! A prompt's pass: many positions at once through every layer.

pub(super) mod attention;
pub(super) mod between;
mod buffers;
mod head;
mod step;
mod token;

use std::sync::Arc;

use super::arena::Arena;
use super::args::Args;
use super::blas::Blas;
use super::contract::Defines;
use super::decode::Parts;
use super::family::{self, rotation_of, rotations};
use super::kernels::{Call, Kernels};
use super::launch::Launch;
use super::memory::Span;
use super::module::Kernel;
use super::packing::Seen;
use super::pinned::PinnedBuffer;
use super::row_count::RowCount;
use super::rows::{RowProducts, Target, joins_gate_and_up, reads_int4_order};
use super::weights::DeviceMatrix;
use crate::error::{Error, Result};
use crate::kv::KvCode;
use attention::{Attention, ROPE_THREADS, Rows, TableRows, Windowed, rope, table_call};
use between::{Joints, Left, Next};
use buffers::Buffers;
use smq_model::ModelConfig;
pub(super) use step::{STEP_ROWS, StepInputs, Tiles, WANTED_ROWS};
pub use token::logits_defines;

/// Positions that go through the layers together; bounds the activations' memory.
pub const CHUNK: usize = 2048;
/// cuBLASLt's workspace, bytes.
const WORKSPACE: usize = 32 << 20;
/// Rows of logits that the GPU holds at a time: a vocabulary is wide.
const LOGIT_ROWS: usize = 256;
/// Threads of a block of `rows.cu`, and of those kernels that have others.
pub const ROW_THREADS: u32 = 256;
const LAST_ROW_THREADS: u32 = 1024;
const SCORE_THREADS: u32 = 512;

/// The macros of `rows.cu`.
pub fn row_defines(c: &ModelConfig, sms: usize) -> Defines {
    let mut defines = vec![
        ("HIDDEN", c.hidden as i64),
        ("INTERMEDIATE", c.intermediate as i64),
        ("VOCAB", c.vocab as i64),
        ("EPS_BITS", i64::from(c.rms_norm_eps.to_bits())),
        ("GRID", sms as i64),
        ("ROW_THREADS", ROW_THREADS.into()),
        ("LAST_ROW_THREADS", LAST_ROW_THREADS.into()),
        ("SCORE_THREADS", SCORE_THREADS.into()),
    ];
    defines.extend(family::row_defines(c));
    defines
}

/// The launch of `swiglu_rows` for `m` rows.
#[must_use]
pub fn swiglu_launch(intermediate: usize, m: usize) -> Launch {
    let blocks = padded(intermediate).div_ceil(8 * ROW_THREADS as usize);
    Launch::new([blocks as u32, m as u32], ROW_THREADS).overlap()
}

/// The pass's kernels and buffers.
#[derive(Debug)]
pub(super) struct Prefill {
    embed: Arc<Kernel>,
    swiglu: Arc<Kernel>,
    last_row: Arc<Kernel>,
    score: Arc<Kernel>,
    norm_some: Arc<Kernel>,
    /// Between products.
    joints: Joints,
    /// Behind the head, where something is.
    finish: Option<Arc<Kernel>>,
    products: RowProducts,
    buffers: Option<Buffers>,
    /// f32 `[LOGIT_ROWS, vocab]`, once logits are asked for.
    host_logits: Option<PinnedBuffer>,
}

/// What every layer of a pass has in common.
#[derive(Debug)]
pub(super) struct Pass {
    /// Rows.
    m: usize,
    /// Rows of the cache before them; 0 of paged ones, which say it themselves.
    past: usize,
    /// Whether a row's result may not depend on how many rows there are.
    alike: bool,
    kind: Attention,
    attention: Windowed,
    /// Rotates the rows, where attention does not.
    rope: Option<Arc<Kernel>>,
    /// The frequencies of the factors in use, of each rotary embedding; of paged rows, of the short
    /// and the long ones.
    inv_freq: [u64; 2],
    /// Where the tokens are, i32 each.
    tokens: u64,
    /// What each row sees, in layers without a window of their own and in those with one, or where
    /// it goes (`rope.cu`).
    seen: [u64; 2],
    /// The tiles of paged rows.
    tiles: Option<step::Tiles>,
}

impl Prefill {
    /// Compiles the kernels; buffers come with the first prompt.
    ///
    /// # Errors
    /// [`Error::Cuda`] from compiling, or if cuBLASLt is not there.
    pub(super) fn new(kernels: &Kernels, c: &ModelConfig) -> Result<Self> {
        let gpu = kernels.gpu();
        let rows = |name| {
            let defines = row_defines(c, gpu.sm_count() as usize);
            kernels.get("rows.cu", defines, name)
        };
        // Packed sequences are what evaluations need.
        for kind in Attention::all().filter(|k| k.rows == Rows::One) {
            kind.of_windows(kernels, c)?;
        }
        rope(kernels, c, Rows::One, KvCode::Bf16)?;
        Ok(Self {
            embed: rows("embed_rows")?,
            swiglu: rows("swiglu_rows")?,
            last_row: rows("last_row")?,
            score: rows("score_rows")?,
            norm_some: rows("norm_some_rows")?,
            joints: Joints::new(kernels, c)?,
            finish: head::finish_kernel(kernels, c)?,
            products: RowProducts::new(Blas::new(gpu, WORKSPACE)?, Arena::sizes().take(0)?),
            buffers: None,
            host_logits: None,
        })
    }

    /// Queues the pass of `tokens`, which follow `past` cached positions, and leaves the last
    /// position's input of the head in `state`.
    ///
    /// # Errors
    /// [`Error::Cuda`] if memory is not there or the driver fails.
    pub(super) fn run(&mut self, parts: &Parts<'_>, tokens: &[u32], past: usize) -> Result<()> {
        let Parts { model, state, .. } = parts;
        self.cache(parts, tokens, past)?;
        let stream = parts.kernels.gpu().main();
        let b = self.buffers()?;
        let last = (tokens.len() - 1) % CHUNK;
        let call = Call {
            kernel: self.last_row.clone(),
            launch: Launch::new(1_u32, LAST_ROW_THREADS).overlap(),
            args: Args::new()
                .ptr(b.x.ptr() + (4 * last * parts.config.hidden) as u64)
                .ptr(model.norm.ptr())
                .ptr(state.last_hidden.ptr())
                .ptr(state.last_square_sums.ptr()),
        };
        // SAFETY: the buffers hold CHUNK or all rows, and live as long as `self`, whose owner waits
        // for the stream.
        unsafe { call.run(stream) }
    }

    /// Queues the pass of `tokens`, which follow `past` cached positions, for their keys and values
    /// alone.
    ///
    /// # Errors
    /// As [`Prefill::run`].
    pub(super) fn cache(&mut self, parts: &Parts<'_>, tokens: &[u32], past: usize) -> Result<()> {
        self.reserve(parts, tokens.len().clamp(1, CHUNK), false)?;
        for (i, chunk) in tokens.chunks(CHUNK).enumerate() {
            self.layers(parts, chunk, past + i * CHUNK, None)?;
        }
        Ok(())
    }

    /// Queues the pass of up to [`CHUNK`] tokens, which go into the cache behind `past` others: of
    /// one sequence, or of several, each row with what it sees.
    fn layers(
        &self,
        parts: &Parts<'_>,
        tokens: &[u32],
        past: usize,
        seen: Option<[&[Seen]; 2]>,
    ) -> Result<()> {
        let Parts {
            kernels,
            config: c,
            state,
            ..
        } = parts;
        let b = self.buffers()?;
        let stream = kernels.gpu().main();
        let m = tokens.len();
        let rows = match seen {
            None => Rows::One,
            Some(_) => Rows::Packed,
        };
        let kind = Attention::of(c, m, rows, KvCode::Bf16);
        let pass = Pass {
            m,
            past,
            alike: false,
            kind,
            attention: kind.of_windows(kernels, c)?,
            rope: Some(rope(kernels, c, rows, kind.code)?),
            inv_freq: state.inv_freq.map(Span::ptr),
            tokens: b.tokens.ptr(),
            seen: b.seen.map(Span::ptr),
            tiles: None,
        };
        // SAFETY: what is copied outlives the copy (pageable memory is read before the call
        // returns), and every buffer holds at least `m` rows.
        unsafe {
            b.tokens.part(0, 4 * m)?.copy_from(stream, tokens)?;
            for (to, seen) in b.seen.iter().zip(seen.into_iter().flatten()) {
                to.part(0, size_of_val(seen))?.copy_from(stream, seen)?;
            }
        }
        self.queue(parts, b, &pass)
    }

    /// Queues a pass whose tokens are on the GPU: embedding, angles and every layer.
    fn queue(&self, parts: &Parts<'_>, b: &Buffers, pass: &Pass) -> Result<()> {
        let Parts {
            kernels,
            config: c,
            model,
            ..
        } = parts;
        let stream = kernels.gpu().main();
        let embed = Call {
            kernel: self.embed.clone(),
            launch: Launch::new(pass.m, ROW_THREADS).overlap(),
            args: Args::new()
                .ptr(pass.tokens)
                .ptr(model.embedding.ptr())
                .ptr(b.x.ptr()),
        };
        // SAFETY: every buffer holds at least `m` rows.
        unsafe {
            embed.run(stream)?;
            let places = pass.inv_freq.into_iter().zip(b.rotations);
            for (rotation, (inv_freq, table)) in rotations(c).into_iter().zip(places) {
                let at = [inv_freq, table.ptr()];
                table_call(kernels, c, pass.kind, pass.table_rows(), rotation, at)?.run(stream)?;
            }
        }
        (0..model.layers.len()).try_for_each(|i| self.layer(parts, b, i, pass))
    }

    fn layer(&self, parts: &Parts<'_>, b: &Buffers, index: usize, pass: &Pass) -> Result<()> {
        let Parts {
            kernels,
            config: c,
            model,
            cache,
            ..
        } = parts;
        let layer = &model.layers[index];
        let stream = kernels.gpu().main();
        // Kernels of one sequence read and write bf16: where the cache is not, in one layer's room
        // for it. Those of many have codes, with scales beside them.
        let (coded, scales) = match &pass.tiles {
            None => (cache.coded(c, index), None),
            Some(_) => (None, cache.scales(c, index)),
        };
        let (keys, values) = match &coded {
            None => cache.layer(index),
            Some(rows) => (rows.wide[0], rows.wide[1]),
        };
        let cached = |args: Args| {
            let addresses = [keys, values]
                .into_iter()
                .chain(scales.into_iter().flatten());
            addresses.fold(args, Args::ptr)
        };
        let one = std::slice::from_ref::<DeviceMatrix>;
        let Pass { m, past, kind, .. } = *pass;
        let n = RowCount {
            m,
            alike: pass.alike,
        };
        let o_order = reads_int4_order(one(&layer.o), n);
        let down_order = reads_int4_order(one(&layer.down), n);
        let width = (c.heads + 2 * c.kv_heads) * c.head_dim;
        let rope_args = cached(Args::new().ptr(b.qkv.ptr()).ptr(b.q.ptr()));
        let queries = match pass.rope {
            Some(_) => b.q.ptr(),
            None => b.qkv.ptr(),
        };
        let attention_args = cached(Args::new().ptr(queries));
        let window = c.windows.layer(index);
        let (attention_kernels, seen) = pass.of_window(window)?;
        let (rope_args, attention_args, attention_launch) = match &pass.tiles {
            None => (
                rope_args.i32(cache.capacity as i32).i32(past as i32),
                attention_args
                    .i32(cache.capacity as i32)
                    .i32(m as i32)
                    .i32(past as i32)
                    .ptr(seen),
                kind.launch(c, m),
            ),
            Some(tiles) => (
                rope_args.ptr(seen),
                match kind.rows.are_single() {
                    false => attention_args.i32(cache.capacity as i32),
                    true => attention_args,
                }
                .ptr(tiles.tiles)
                .ptr(tiles.tables),
                kind.launch_tiles(c, tiles.count),
            ),
        };
        let attention_args = attention_args.ptr(b.attended.span.ptr());
        let angles = b.rotations[rotation_of(c, index)].ptr();
        let rotating = |args: Args| between::qkv_args(args.ptr(angles), layer);
        let rope = pass.rope.as_ref().map(|kernel| Call {
            kernel: kernel.clone(),
            launch: Launch::new(m, ROPE_THREADS).overlap(),
            args: rotating(rope_args),
        });
        let attention = Call {
            kernel: attention_kernels[usize::from(o_order)].clone(),
            launch: attention_launch,
            args: match rope {
                Some(_) => attention_args,
                None => rotating(attention_args),
            },
        };
        let (products, joints, rows) = (&self.products, &self.joints, b.between(m));
        // SAFETY: every buffer holds at least `m` rows (`reserve`), the cache `past + m` positions
        // or the pages of every row (the engine), and both live until the engine has waited for the
        // stream.
        unsafe {
            let next = Next {
                before: layer.norms.before_attention,
                int4_order: reads_int4_order(&layer.qkv, n),
            };
            // The layer before has made it where there is more than a norm.
            if index == 0 || !joints.needs_left() {
                joints.enter(stream, rows, next)?;
            }
            let qkv = Target::Bf16(b.qkv.ptr(), width);
            products.run(kernels, stream, &layer.qkv, n, &b.h, qkv)?;
            if let Some(rows) = coded.filter(|_| past > 0) {
                rows.widen(kernels, c, cache.code, past)?.run(stream)?;
            }
            if let Some(rope) = &rope {
                rope.run(stream)?;
            }
            if let Some(rows) = coded {
                rows.encode(kernels, c, cache.code, (past, m))?
                    .run(stream)?;
            }
            attention.run(stream)?;
            let left = joints.target(rows);
            products.run(kernels, stream, one(&layer.o), n, &b.attended, left)?;
            let next = Next {
                before: layer.norms.before_mlp,
                int4_order: reads_int4_order(&layer.gate_up, n),
            };
            joints.leave_attention(stream, rows, Left::attention(layer), next)?;
            let joined = joins_gate_and_up(&layer.gate_up, n, down_order);
            if joined && layer.biases.gate_up.is_none() {
                let activated = b.activated.span.ptr();
                let activated = Target::Swiglu(activated, down_order, c.activation);
                products.run(kernels, stream, &layer.gate_up, n, &b.h, activated)?;
            } else {
                let gate_up = Target::Bf16(b.gate_up.ptr(), 2 * c.intermediate);
                products.run(kernels, stream, &layer.gate_up, n, &b.h, gate_up)?;
                let at = [b.gate_up.ptr(), b.activated.span.ptr()];
                let of = (*c, layer);
                between::activation_call(self.swiglu.clone(), of, m, at, down_order).run(stream)?;
            }
            products.run(kernels, stream, one(&layer.down), n, &b.activated, left)?;
            let next = model.layers.get(index + 1).map(|next| Next {
                before: next.norms.before_attention,
                int4_order: reads_int4_order(&next.qkv, n),
            });
            joints.leave_mlp(stream, rows, Left::mlp(layer), next)
        }
    }
}

/// Columns of activations in memory: rounded up to what the int4 kernels take at a time.
pub(super) fn padded(columns: usize) -> usize {
    columns.next_multiple_of(128)
}

impl Pass {
    /// The rows, as the tables of angles have them.
    fn table_rows(&self) -> TableRows {
        TableRows {
            m: self.m,
            past: self.past,
            seen: self.seen[0],
        }
    }

    /// The attention of layers with this window, and what their rows see.
    fn of_window(&self, window: Option<usize>) -> Result<(&attention::Orders, u64)> {
        let missing = || Error::Cuda(format!("no attention with a window of {window:?} was made"));
        let found = self.attention.iter().find(|(w, _)| *w == window);
        let (_, kernels) = found.ok_or_else(missing)?;
        let own = self.attention.len() > 1 && window.is_some() && self.tiles.is_none();
        Ok((kernels, self.seen[usize::from(own)]))
    }
}
