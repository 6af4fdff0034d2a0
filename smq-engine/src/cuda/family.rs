//! What families of decoders ask of the kernels beyond Llama's and Phi-3's layers, as macros that
//! are only there where a family asks: without them the kernels' machine code is what it was.

use super::contract::Defines;
use smq_model::architecture::{Activation, Multipliers, Norms, QkNorm, Rotations, Windows};
use smq_model::{ModelConfig, RopeConfig};

/// How queries and keys are normed (`rope.cu`); 0 is not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NormedHeads {
    /// Each head by itself.
    PerHead = 1,
    /// All heads of a position together.
    WholeWidth = 2,
}

/// The macro of a gate's function.
#[must_use]
pub(super) fn gate_define(activation: Activation) -> Option<(&'static str, i64)> {
    match activation {
        Activation::Silu => None,
        Activation::GeluTanh => Some(("GATE_GELU_TANH", 1)),
    }
}

/// The windows that layers have, each once, `None` where a layer sees everything.
#[must_use]
pub fn windows(c: &ModelConfig) -> Vec<Option<usize>> {
    match &c.windows {
        Windows::Alike(window) => vec![*window],
        Windows::ByLayer(layers) => {
            let mut windows = Vec::new();
            for window in layers {
                if !windows.contains(window) {
                    windows.push(*window);
                }
            }
            windows
        }
    }
}

/// Macros of what attention makes of its scores.
#[must_use]
pub(super) fn score_defines(c: &ModelConfig) -> Defines {
    let scale = c.multipliers.scores;
    let plain = Multipliers::of_head_dim(c.head_dim).scores;
    let scale = (scale != plain).then(|| ("SCORES_BITS", bits(scale)));
    let cap = c.soft_caps.scores.map(|cap| ("SOFT_CAP_BITS", bits(cap)));
    scale.into_iter().chain(cap).collect()
}

/// Macros of what becomes of queries, keys and values before they are rotated.
#[must_use]
pub(super) fn qkv_defines(c: &ModelConfig) -> Defines {
    let mut defines = Defines::new();
    if c.biases.qkv {
        defines.push(("QKV_BIAS", 1));
    }
    let norm = match c.architecture.qk_norm {
        QkNorm::Absent => None,
        QkNorm::PerHead(_) => Some(NormedHeads::PerHead),
        QkNorm::WholeWidth(_) => Some(NormedHeads::WholeWidth),
    };
    if let Some(norm) = norm {
        defines.extend([
            ("QK_NORM", norm as i64),
            ("PER_HEAD", NormedHeads::PerHead as i64),
            ("WHOLE_WIDTH", NormedHeads::WholeWidth as i64),
            ("EPS_BITS", bits(c.rms_norm_eps)),
        ]);
    }
    defines
}

/// Whether a head's queries or keys can be normed without the other heads.
#[must_use]
pub(super) fn norms_by_head(c: &ModelConfig) -> bool {
    match c.architecture.qk_norm {
        QkNorm::Absent | QkNorm::PerHead(_) => true,
        QkNorm::WholeWidth(_) => false,
    }
}

/// Macros of `rows.cu`.
#[must_use]
pub(super) fn row_defines(c: &ModelConfig) -> Defines {
    let embedding = c.multipliers.embedding;
    let embedding = (embedding != 1.0).then(|| ("EMBEDDING_BITS", bits(embedding)));
    let bias = c.biases.mlp.then_some(("GATE_UP_BIAS", 1));
    let gate = gate_define(c.activation);
    embedding.into_iter().chain(bias).chain(gate).collect()
}

/// Whether more is done with what attention and MLP give than to add it to the residual stream, or
/// their inputs are not always normed: `leave.cu` then lies between the products.
#[must_use]
pub fn leaves(c: &ModelConfig) -> bool {
    let Norms {
        before_attention,
        after_attention,
        before_mlp,
        after_mlp,
    } = c.architecture.norms;
    let only_before = before_attention.is_some() && before_mlp.is_some();
    let norms = !only_before || after_attention.is_some() || after_mlp.is_some();
    norms || c.biases.o || c.biases.mlp || c.multipliers.residual != 1.0
}

/// The macros of `leave.cu`.
#[must_use]
pub fn leave_defines(c: &ModelConfig, threads: u32) -> Defines {
    vec![
        ("HIDDEN", c.hidden as i64),
        ("EPS_BITS", bits(c.rms_norm_eps)),
        ("RESIDUAL_BITS", bits(c.multipliers.residual)),
        ("ROW_THREADS", threads.into()),
    ]
}

/// Whether something follows the head's product.
#[must_use]
pub(super) fn finishes_logits(c: &ModelConfig) -> bool {
    c.multipliers.logits_divisor != 1.0 || c.soft_caps.logits.is_some()
}

/// The macros of what follows the head's product.
#[must_use]
pub(super) fn finish_defines(c: &ModelConfig) -> Defines {
    let cap = c.soft_caps.logits.map(|cap| ("CAP_BITS", bits(cap)));
    let divisor = ("DIVISOR_BITS", bits(c.multipliers.logits_divisor));
    std::iter::once(divisor).chain(cap).collect()
}

/// One of the rotary embeddings that layers have.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rotation<'a> {
    /// This one.
    By(&'a RopeConfig),
    /// None: by angles of 0.
    Not,
}

/// The rotary embeddings that layers have: the model's, and where layers differ another.
#[must_use]
pub(super) fn rotations(c: &ModelConfig) -> Vec<Rotation<'_>> {
    let main = Rotation::By(&c.rope);
    match &c.rotations {
        Rotations::Alike => vec![main],
        Rotations::Listed(_) => vec![main, Rotation::Not],
        Rotations::Windowed(rope) => vec![main, Rotation::By(rope)],
    }
}

/// Which of [`rotations`] a layer has.
#[must_use]
pub(super) fn rotation_of(c: &ModelConfig, layer: usize) -> usize {
    let other = match &c.rotations {
        Rotations::Alike => false,
        Rotations::Listed(rotated) => !rotated[layer],
        Rotations::Windowed(_) => c.windows.layer(layer).is_some(),
    };
    usize::from(other)
}

impl Rotation<'_> {
    /// `half` inverse frequencies.
    pub(super) fn inv_freq(self, long: bool, half: usize) -> Vec<f32> {
        match self {
            Self::By(rope) => rope.inv_freq(long),
            Self::Not => vec![0.0; half],
        }
    }

    /// What cosines and sines are multiplied with.
    pub(super) fn attention_factor(self) -> f32 {
        match self {
            Self::By(rope) => rope.attention_factor(),
            Self::Not => 1.0,
        }
    }
}

/// Macros of `decode.cu`, beside those of rows and products.
#[must_use]
pub(super) fn step_defines(c: &ModelConfig) -> Defines {
    let Norms {
        before_attention,
        after_attention,
        before_mlp: _,
        after_mlp: _,
    } = c.architecture.norms;
    let factor = |name, value: f32| (value != 1.0).then(|| (name, bits(value)));
    let is = |name, there: bool| there.then_some((name, 1));
    let gate = gate_define(c.activation);
    let mut defines = score_defines(c);
    defines.extend(qkv_defines(c).into_iter().filter(|d| d.0 != "EPS_BITS"));
    defines.extend(
        [
            factor("EMBEDDING_BITS", c.multipliers.embedding),
            factor("RESIDUAL_BITS", c.multipliers.residual),
            factor("DIVISOR_BITS", c.multipliers.logits_divisor),
            c.soft_caps.logits.map(|cap| ("CAP_BITS", bits(cap))),
            gate,
            is("AFTER_NORM", after_attention.is_some()),
            is("PLAIN_INPUTS", before_attention.is_none()),
            is("LAYER_WINDOWS", windows(c).len() > 1),
        ]
        .into_iter()
        .flatten(),
    );
    match rotations(c).len() {
        1 => {}
        several => defines.push(("ROTATIONS", several as i64)),
    }
    defines
}

/// What keeps `decode.cu`, which makes a step of one sequence in one kernel, from a model's layers
/// on a GPU of `sms` multiprocessors; empty where it computes them. The kernels of prompts make such
/// a model's steps.
///
/// A tag tells four uses of a buffer apart, so that each of its blocks has to take part in every
/// layer: one that waits for the head from the beginning would take the first layers' values for
/// the last one's.
#[must_use]
pub(super) fn beyond_one_kernel(c: &ModelConfig, sms: usize) -> Vec<&'static str> {
    // Tiles of the largest two products of a layer.
    let qkv = (c.heads + 2 * c.kv_heads) * c.head_dim / 8;
    let idle = qkv.max(c.intermediate / 4) < sms;
    let Norms {
        before_attention,
        after_attention,
        before_mlp,
        after_mlp,
    } = c.architecture.norms;
    let uneven = before_attention.is_some() != before_mlp.is_some()
        || after_attention.is_some() != after_mlp.is_some();
    let all = [
        (c.biases.o, "a bias of the attention's output"),
        (c.biases.mlp, "biases of the MLP"),
        (uneven, "other norms around attention than around the MLP"),
        (idle, "fewer rows than multiprocessors have work for"),
    ];
    let there = all.into_iter().filter(|(there, _)| *there);
    there.map(|(_, what)| what).collect()
}

fn bits(value: f32) -> i64 {
    i64::from(value.to_bits())
}
