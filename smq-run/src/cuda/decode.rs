//! One decode step: every kernel of a token, recorded once and replayed.

use super::args::Args;
use super::gemv::{self, Buffers, Epilogue, Product};
use super::graph::Graph;
use super::kernels::{Call, Kernels};
use super::launch::Launch;
use super::memory::Span;
use super::state::{RING, State};
use super::stream::Stream;
use super::weights::DeviceModel;
use crate::config::ModelConfig;
use crate::error::Result;

/// Warps, tokens a turn and turns in flight of `attention_decode.cu`, as measured best; heads of 128 fit half an SM
/// only with less in flight.
fn attention_tuning(head_dim: usize) -> [(&'static str, i64); 3] {
    [
        ("DECODE_WARPS", 4),
        ("DECODE_UNROLL", if head_dim > 96 { 2 } else { 4 }),
        ("DECODE_STAGES", 2),
    ]
}

/// See `gemv.rs`: never three blocks on an SM.
const OVER_THIRD: u32 = 79 * 1024;

/// The keys and values of every layer, bf16 `[kv_heads, capacity, head_dim]` each.
#[derive(Debug, Clone, Copy)]
pub struct Cache {
    /// Layer 0's keys, then its values, then layer 1's.
    pub span: Span,
    /// Positions.
    pub capacity: usize,
    /// Bytes of one layer's keys.
    pub side_bytes: usize,
}

impl Cache {
    /// Bytes that `capacity` positions take.
    #[must_use]
    pub fn bytes(c: &ModelConfig, capacity: usize) -> usize {
        2 * c.layers * c.kv_heads * capacity * c.head_dim * 2
    }

    /// Addresses of a layer's keys and values.
    #[must_use]
    pub fn layer(&self, index: usize) -> (u64, u64) {
        let keys = self.span.ptr() + (2 * index * self.side_bytes) as u64;
        (keys, keys + self.side_bytes as u64)
    }
}

/// What a pass through the model works with.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// Compiled for this model.
    pub kernels: &'a Kernels,
    /// Its shape.
    pub config: &'a ModelConfig,
    /// Its weights.
    pub model: &'a DeviceModel,
    /// A step's buffers.
    pub state: &'a State,
    /// Keys and values.
    pub cache: &'a Cache,
}

/// Macros of both attention files.
#[must_use]
pub fn attention_defines(c: &ModelConfig) -> Vec<(&'static str, i64)> {
    vec![
        ("HEADS", c.heads as i64),
        ("KV_HEADS", c.kv_heads as i64),
        ("HEAD_DIM", c.head_dim as i64),
        ("ROTARY_HALF", (c.rope.rotary_dim / 2) as i64),
        // A window that no sequence outgrows is none.
        (
            "WINDOW",
            c.sliding_window
                .filter(|w| *w < c.max_positions)
                .unwrap_or(0) as i64,
        ),
    ]
}

/// The recorded step.
#[derive(Debug)]
pub struct Step {
    calls: Vec<Call>,
    /// The last calls: head and choice, which follow a prompt's pass too.
    head: usize,
    graph: Graph,
}

impl Step {
    /// Builds and records the step for one cache.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) from compiling or recording.
    pub fn new(parts: &Parts<'_>) -> Result<Self> {
        let calls = calls(parts)?;
        let head = calls.len() - 2;
        for call in &calls {
            // One split of L1 and shared memory for all: blocks of two kernels share an SM only then.
            call.kernel.prefer_shared(100)?;
        }
        let graph = Graph::capture(parts.kernels.gpu().main(), |stream| run(&calls, stream))?;
        Ok(Self { calls, head, graph })
    }

    /// Queues a step as one graph.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if the driver refuses.
    pub fn replay(&self, stream: &Stream) -> Result<()> {
        self.graph.launch(stream)
    }

    /// Queues a step kernel by kernel.
    ///
    /// # Errors
    /// As [`Step::replay`].
    pub fn run(&self, stream: &Stream) -> Result<()> {
        run(&self.calls, stream)
    }

    /// Queues only the head and the choice of a token.
    ///
    /// # Errors
    /// As [`Step::replay`].
    pub fn run_head(&self, stream: &Stream) -> Result<()> {
        run(&self.calls[self.head..], stream)
    }
}

fn run(calls: &[Call], stream: &Stream) -> Result<()> {
    // SAFETY: `calls` gave every kernel buffers of its model's and GPU's size, which the engine keeps.
    calls
        .iter()
        .try_for_each(|call| unsafe { call.run(stream) })
}

fn calls(parts: &Parts<'_>) -> Result<Vec<Call>> {
    let Parts {
        kernels,
        config: c,
        model,
        state: s,
        cache,
    } = *parts;
    let product = |epilogue, normed| Product {
        epilogue,
        normed,
        hidden: c.hidden,
        eps: c.rms_norm_eps,
    };
    let step_defines = || {
        vec![
            ("HIDDEN", c.hidden as i64),
            ("ROTARY_HALF", (c.rope.rotary_dim / 2) as i64),
            ("GRID", i64::from(kernels.gpu().sm_count())),
            ("RING", RING as i64),
        ]
    };
    let mut calls = vec![Call {
        kernel: kernels.get("step.cu", step_defines(), "begin_step")?,
        // No overlap: kernels of this step read the position before they wait, so the step before, whose last kernel
        // moves it on, must have ended.
        launch: Launch::new(1_u32, 1024),
        args: Args::new()
            .ptr(s.state.ptr())
            .ptr(model.embedding.ptr())
            .ptr(model.layers[0].input_norm.ptr())
            .ptr(s.inv_freq.ptr())
            .f32(c.rope.attention_factor())
            .ptr(s.x.ptr())
            .ptr(s.hidden[0].ptr())
            .ptr(s.square_sums[0].ptr())
            .ptr(s.rope.ptr()),
    }];
    let attention = Attention::new(kernels, c)?;
    for (i, layer) in model.layers.iter().enumerate() {
        let next_norm = model.layers.get(i + 1).map_or(model.norm, |l| l.input_norm);
        calls.push(gemv::call(
            kernels,
            &layer.qkv,
            &product(Epilogue::Store, true),
            &Buffers {
                x: s.hidden[0].ptr(),
                square_sums: s.square_sums[0].ptr(),
                out: s.qkv.ptr(),
                ..Buffers::default()
            },
        )?);
        calls.push(attention.call(s, cache, i));
        calls.push(gemv::call(
            kernels,
            &[layer.o],
            &product(Epilogue::Residual, false),
            &Buffers {
                x: s.attended.ptr(),
                out: s.x.ptr(),
                next_norm: layer.post_attention_norm.ptr(),
                next_x: s.hidden[1].ptr(),
                next_square_sums: s.square_sums[1].ptr(),
                ..Buffers::default()
            },
        )?);
        calls.push(gemv::call(
            kernels,
            &layer.gate_up,
            &product(Epilogue::Swiglu, true),
            &Buffers {
                x: s.hidden[1].ptr(),
                square_sums: s.square_sums[1].ptr(),
                next_x: s.activated.ptr(),
                ..Buffers::default()
            },
        )?);
        calls.push(gemv::call(
            kernels,
            &[layer.down],
            &product(Epilogue::Residual, false),
            &Buffers {
                x: s.activated.ptr(),
                out: s.x.ptr(),
                next_norm: next_norm.ptr(),
                next_x: s.hidden[0].ptr(),
                next_square_sums: s.square_sums[0].ptr(),
                ..Buffers::default()
            },
        )?);
    }
    calls.push(gemv::call(
        kernels,
        &[model.head],
        &product(Epilogue::Logits, true),
        &Buffers {
            x: s.hidden[0].ptr(),
            square_sums: s.square_sums[0].ptr(),
            out: s.logits.ptr(),
            best_value: s.best_value.ptr(),
            best_index: s.best_index.ptr(),
            ..Buffers::default()
        },
    )?);
    calls.push(Call {
        kernel: kernels.get("step.cu", step_defines(), "choose_token")?,
        launch: Launch::new(1_u32, 1024).overlap(),
        args: Args::new()
            .ptr(s.best_value.ptr())
            .ptr(s.best_index.ptr())
            .ptr(s.state.ptr())
            .ptr(s.mailbox.device_ptr()),
    });
    Ok(calls)
}

/// `attention_decode.cu` for one model.
pub(super) struct Attention {
    kernel: std::sync::Arc<super::module::Kernel>,
    launch: Launch,
}

impl Attention {
    pub(super) fn new(kernels: &Kernels, c: &ModelConfig) -> Result<Self> {
        let sms = kernels.gpu().sm_count() as usize;
        // One block an SM where that is possible, at most 8 a head.
        let splits = [8, 4, 2]
            .into_iter()
            .find(|s| s * c.kv_heads <= sms && c.head_dim.is_multiple_of(4 * s))
            .unwrap_or(1);
        let tuning = attention_tuning(c.head_dim);
        let [warps, unroll, stages] = tuning.map(|(_, v)| v as usize);
        let mut defines = attention_defines(c);
        defines.extend([("ROWS", 1), ("SPLITS", splits as i64)]);
        defines.extend(tuning);
        let d = c.head_dim;
        let queries = c.heads / c.kv_heads;
        let passes = queries.div_ceil(512 / d);
        let batch = queries.div_ceil(passes);
        let shared = 32 * d * unroll * stages * warps
            + 4 * d * (queries + 1)
            + 4 * batch * (d + 2) * warps
            + 4 * batch * (d + 2 * splits)
            + 1024;
        Ok(Self {
            kernel: kernels.get("attention_decode.cu", defines, "attention_decode")?,
            launch: Launch::new([splits as u32, c.kv_heads as u32], 32 * warps as u32)
                .shared(OVER_THIRD.max(shared as u32))
                .overlap(),
        })
    }

    pub(super) fn call(&self, s: &State, cache: &Cache, layer: usize) -> Call {
        let (keys, values) = cache.layer(layer);
        Call {
            kernel: self.kernel.clone(),
            launch: self.launch,
            args: Args::new()
                .ptr(s.qkv.ptr())
                .ptr(keys)
                .ptr(values)
                .i32(cache.capacity as i32)
                .ptr(s.state.ptr())
                .ptr(s.rope.ptr())
                .ptr(s.attended.ptr()),
        }
    }
}
