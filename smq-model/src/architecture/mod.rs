//! What tells one family of decoders from another, told once: [`ARCHITECTURES`], a table with one
//! entry a family, that converting, making synthetic checkpoints and both engines read.
//!
//! # Adding an architecture
//!
//! 1. Read `modeling_*.py` and `configuration_*.py` of the family in Hugging Face transformers.
//!    They decide; a paper or a model card does not.
//! 2. Write its entry in `table.rs`. A family that differs from another only in names, defaults,
//!    biases, windows or rotary embedding is done with that: the tensors that a checkpoint must
//!    hold, the keys of config.json with their defaults, synthetic checkpoints and both engines
//!    follow from the entry.
//! 3. Where no value of a field says what the family does, add a variant to that field's type. The
//!    types are matched without a wildcard wherever they are read, so that the compiler lists every
//!    place to think about:
//!
//!    | what differs | type | who reads it |
//!    |---|---|---|
//!    | projections, their names and how they are fused | [`Qkv`], [`GateUp`] | [tensors] |
//!    | which norms a layer has, and where | [`Norms`] | [tensors], engines |
//!    | what a norm multiplies with | [`NormWeight`] | engines, synthetic weights |
//!    | norms of queries and keys | [`QkNorm`] | [tensors], engines |
//!    | biases | [`BiasRule`] | config, [tensors], engines |
//!    | activation between the MLP's products | [`Activation`] | config, engines |
//!    | which positions a layer sees | [`WindowRule`], [`Windows`] | config, engines |
//!    | rotary embedding: kinds, which layers have it | [`RopeKind`], [`Rotated`] | config, engines
//!    | | factors on embedding, attention, residual stream, logits | [`Multipliers`] | engines | |
//!    soft caps on scores and logits | [`SoftCaps`] | engines |
//!
//!    In the CPU engine that is `smq-engine/src/model`, whose layer computes the variant. The CUDA
//!    engine says in `cuda::limits` what its kernels do not compute: a variant may begin there as a
//!    refusal.
//! 4. Record what transformers makes of a config of the family, and of one that leaves out all that
//!    it may, in the tests of [`config`](crate::ModelConfig); then logits of a small random model.
//!
//! A key of config.json that the family reads and the others do not is added to the reading of
//! config.json, next to the rule that says who reads it.
//!
//! [tensors]: crate::ConfigFile::tensors

mod table;

pub use table::ARCHITECTURES;

/// A family of decoders: what `config.json` calls it, and in what it differs from the others.
#[derive(Debug, PartialEq)]
pub struct Architecture {
    /// The entry of config.json's `architectures`.
    pub name: &'static str,
    /// config.json's `model_type`.
    pub model_type: &'static str,
    /// Well-known models of it, for messages.
    pub models: &'static str,
    /// The embedding, `[vocab, hidden]`.
    pub embedding: &'static str,
    /// Weight of the last norm, `[hidden]`.
    pub last_norm: &'static str,
    /// The head, `[vocab, hidden]`.
    pub head: &'static str,
    /// A layer's matrices.
    pub projections: Projections,
    /// A layer's norms.
    pub norms: Norms,
    /// What all norms multiply with.
    pub norm_weight: NormWeight,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Which projections have biases.
    pub biases: Biases<BiasRule>,
    /// Which positions each layer sees.
    pub windows: WindowRule,
    /// Rotary position embedding.
    pub rope: RopeRule,
    /// Factors along the way.
    pub multipliers: Multipliers,
    /// Soft caps.
    pub soft_caps: SoftCaps,
    /// Values of keys that config.json leaves out.
    pub defaults: Defaults,
}

/// Names of a layer's matrices, such as `self_attn.o_proj`, behind `model.layers.N.` and before
/// `.weight`.
#[derive(Debug, PartialEq)]
pub struct Projections {
    /// Queries, keys and values.
    pub qkv: Qkv,
    /// The attention's output.
    pub o: &'static str,
    /// Gate and up.
    pub gate_up: GateUp,
    /// The MLP's output.
    pub down: &'static str,
    /// Whether the model lists [`Projections::o`] before [`Projections::qkv`]: the order decides
    /// which shard a tensor is in.
    pub o_first: bool,
}

/// How the projections of queries, keys and values are stored.
#[derive(Debug, PartialEq)]
pub enum Qkv {
    /// Their rows in one matrix, in this order.
    Fused(&'static str),
    /// A matrix each.
    Apart([&'static str; 3]),
}

/// How the MLP's two input projections are stored.
#[derive(Debug, PartialEq)]
pub enum GateUp {
    /// Gate rows, then up rows, in one matrix.
    Fused(&'static str),
    /// Gate, up.
    Apart([&'static str; 2]),
}

/// A layer's norms, RMSNorm each, by their names, such as `input_layernorm`.
#[derive(Debug, PartialEq)]
pub enum Norms {
    /// One on the input of each block, whose output is added to the residual stream as it is.
    BeforeBlocks {
        /// Before attention.
        attention: &'static str,
        /// Before the MLP.
        mlp: &'static str,
    },
}

/// What a norm multiplies its normalized input with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormWeight {
    /// The weight as it is stored.
    AsStored,
}

/// Norms of queries and keys, between their projection and the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    Absent,
}

/// Something for each group of projections that has biases or has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biases<T> {
    /// Queries, keys and values.
    pub qkv: T,
    /// The attention's output.
    pub o: T,
    /// Gate, up and down.
    pub mlp: T,
}

/// What decides whether projections have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasRule {
    /// They have none, whatever config.json says.
    Never,
    /// A flag of config.json, which is false where it is absent.
    Flag(&'static str),
}

/// The function on the gate, whose result is multiplied with up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
}

/// What decides how far back a layer sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowRule {
    /// Every layer sees all positions.
    Never,
    /// Every layer sees `sliding_window` positions, or all where it is null or absent.
    EveryLayer,
}

/// How far back the layers of a model see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// A query of any layer sees this many latest positions, itself included; `None` sees all.
    Alike(Option<usize>),
}

/// Rotary position embedding of a family.
#[derive(Debug, PartialEq)]
pub struct RopeRule {
    /// Values of `rope_type` and what they mean.
    pub kinds: &'static [(&'static str, RopeKind)],
    /// Whether `partial_rotary_factor` is read.
    pub partial: bool,
    /// Which layers rotate.
    pub rotated: Rotated,
}

/// How frequencies are changed for long contexts, by `rope_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeKind {
    /// Not at all.
    Plain,
    /// Divided by a factor.
    Linear,
    /// As for Llama 3.1.
    Llama3,
    /// By two lists of factors.
    LongRope,
}

/// Which layers rotate queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotated {
    /// All.
    EveryLayer,
}

/// Factors on the embedding, the attention's scores, what is added to the residual stream, and the
/// logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Multipliers {
    /// Only the scores', `1 / sqrt(head_dim)`.
    Scores,
}

/// Soft caps, `c tanh(x / c)`, on the attention's scores and on the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoftCaps {
    /// None.
    Absent,
}

/// Values of keys that config.json leaves out: those of the family's `Config` class in
/// transformers.
#[derive(Debug, PartialEq)]
#[allow(missing_docs)] // the keys' own names
pub struct Defaults {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    /// `None`: `max_position_embeddings`, unless the dictionary of the rotary embedding has one.
    pub original_max_position_embeddings: Option<usize>,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub hidden_act: Activation,
    pub tie_word_embeddings: bool,
}

impl Architecture {
    /// By its entry of `architectures`.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|a| a.name == name)
    }

    /// By its `model_type`.
    #[must_use]
    pub(crate) fn of_type(model_type: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|a| a.model_type == model_type)
    }
}

impl Activation {
    /// By its name in config.json.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            _ => None,
        }
    }
}
