//! What tells one family of decoders from another, told once: [`ARCHITECTURES`], a table with one
//! entry a family, that converting, making synthetic checkpoints and both engines read.
//!
//! # Adding an architecture
//!
//! 1. Read `modeling_*.py` and `configuration_*.py` of the family in Hugging Face transformers.
//!    They decide; a paper or a model card does not.
//! 2. Write its entry in `table.rs`. A family that differs from another only in what the fields say
//!    is done with that: the tensors that a checkpoint must hold, the keys of config.json with
//!    their defaults, synthetic checkpoints and both engines follow from the entry.
//! 3. Where no value of a field says what the family does, add a variant to that field's type. The
//!    types are matched without a wildcard wherever they are read, so that the compiler lists every
//!    place to think about:
//!
//!    | what differs | the rule | what a config makes of it | who reads it |
//!    |---|---|---|---|
//!    | projections, their names and how they are fused | [`Qkv`], [`GateUp`] | | [tensors] |
//!    | which norms a layer has, and where | [`Norms`] | | [tensors], engines |
//!    | what a norm multiplies with | [`NormWeight`] | | engines, synthetic weights |
//!    | norms of queries and keys | [`QkNorm`] | | [tensors], engines |
//!    | biases | [`BiasRule`] | [`Biases`] | [tensors], engines |
//!    | activation between the MLP's products | a key and a default | [`Activation`] | engines |
//!    | which positions a layer sees | [`WindowRule`] | [`Windows`] | engines |
//!    | rotary embedding | [`RopeKind`], [`Rotated`] | [`RopeConfig`], [`Rotations`] | engines |
//!    | factors on embedding, scores, residual stream, logits | [`MultiplierRule`] | [`Multipliers`] | engines |
//!    | soft caps on scores and logits | [`SoftCapRule`] | [`SoftCaps`] | engines |
//!
//!    In the CPU engine that is `smq-engine/src/model`, whose layer computes the variant. The CUDA
//!    engine says in `cuda::limits` what its kernels do not compute: a variant may begin there as a
//!    refusal.
//! 4. Record what transformers makes of a config of the family, and of one that leaves out all that
//!    it may, in the tests of [`config`](crate::ModelConfig); then give
//!    `tests/peers/hf/families.py` some small random models of it, whose answers it records for the
//!    tests.
//!
//! A key of config.json that the family reads and the others do not is added to the reading of
//! config.json, next to the rule that says who reads it.
//!
//! [tensors]: crate::ConfigFile::tensors
//! [`RopeConfig`]: crate::RopeConfig

mod features;
mod table;

pub use features::{Multipliers, Rotations, SoftCaps, Windows};
pub use table::ARCHITECTURES;

/// A family of decoders: what `config.json` calls it, and in what it differs from the others.
#[derive(Debug, PartialEq)]
pub struct Architecture {
    /// The entry of config.json's `architectures`.
    pub name: &'static str,
    /// What config.json has as `model_type`.
    pub model_type: &'static str,
    /// Well-known models of it, for messages.
    pub models: &'static str,
    /// The embedding, `[vocab, hidden]`.
    pub embedding: &'static str,
    /// Weight of the last norm, `[hidden]`.
    pub last_norm: &'static str,
    /// The head, `[vocab, hidden]`.
    pub head: &'static str,
    /// Names of a layer's matrices, and which of them are stored as one.
    pub projections: Projections,
    /// Which norms a layer has, and their names.
    pub norms: Norms,
    /// What all norms multiply with.
    pub norm_weight: NormWeight,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Which projections have biases.
    pub biases: Biases<BiasRule>,
    /// The key of config.json that names the function on the gate.
    pub activation_key: &'static str,
    /// Which positions each layer sees.
    pub windows: WindowRule,
    /// How positions rotate queries and keys.
    pub rope: RopeRule,
    /// Factors along the way.
    pub multipliers: MultiplierRule,
    /// Which scores are bent towards a limit, where config.json gives one.
    pub soft_caps: SoftCapRule,
    /// Flags of config.json that change what the family computes and that no engine follows: a
    /// model where one is true is refused.
    pub refused_flags: &'static [&'static str],
    /// Values of keys that config.json leaves out.
    pub defaults: Defaults,
}

/// Names of a layer's matrices, such as `self_attn.o_proj`, behind `model.layers.N.` and before
/// `.weight`.
#[derive(Debug, PartialEq)]
pub struct Projections {
    /// Queries, keys and values.
    pub qkv: Qkv,
    /// The projection of the attention's output.
    pub o: &'static str,
    /// The two input projections of the MLP.
    pub gate_up: GateUp,
    /// The output projection of the MLP.
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
    /// Three matrices, by these names.
    Apart([&'static str; 3]),
}

/// How the MLP's two input projections are stored.
#[derive(Debug, PartialEq)]
pub enum GateUp {
    /// Gate rows, then up rows, in one matrix.
    Fused(&'static str),
    /// Two matrices, gate and up, by these names.
    Apart([&'static str; 2]),
}

/// A layer's norms, RMSNorm each, by their names, such as `input_layernorm`; `None` where the
/// family has no norm in that place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Norms {
    /// The norm of the input of attention.
    pub before_attention: Option<&'static str>,
    /// Of the attention's output, before it is added to the residual stream.
    pub after_attention: Option<&'static str>,
    /// The norm of the input of the MLP.
    pub before_mlp: Option<&'static str>,
    /// Of the MLP's output, before it is added to the residual stream.
    pub after_mlp: Option<&'static str>,
}

/// What a norm multiplies its normalized input with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormWeight {
    /// The weight as it is stored.
    AsStored,
    /// One more than the weight that is stored.
    OnePlus,
}

/// Norms of queries and keys, between their projection and the rotation. The names are those of
/// the queries' and of the keys', such as `self_attn.q_norm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Queries and keys are rotated as they are projected.
    Absent,
    /// Each head by itself, all with one weight of `head_dim` elements.
    PerHead([&'static str; 2]),
    /// All heads of a position together.
    WholeWidth([&'static str; 2]),
}

/// Something for each group of projections that has biases or has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biases<T> {
    /// Queries, keys and values.
    pub qkv: T,
    /// The projection of the attention's output.
    pub o: T,
    /// Gate, up and down.
    pub mlp: T,
}

/// What decides whether projections have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasRule {
    /// They have none, whatever config.json says.
    Never,
    /// They have them, whatever config.json says.
    Always,
    /// A flag of config.json, which is false where it is absent.
    Flag(&'static str),
}

/// The function on the gate, whose result is multiplied with up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    GeluTanh,
}

/// What decides how far back a layer sees. Where it depends on the layer, a list `layer_types` of
/// config.json goes before the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowRule {
    /// Every layer sees all positions.
    Never,
    /// Every layer sees `sliding_window` positions, or all where it is null.
    EveryLayer,
    /// Where `use_sliding_window` is true, the layers from `max_window_layers` on see
    /// `sliding_window` positions.
    FromLayer,
    /// Of so many layers the last one sees all positions, the others `sliding_window`.
    Periodic {
        /// Layers of a period.
        period: usize,
        /// The key of config.json that replaces it.
        key: Option<&'static str>,
    },
    /// Where `use_sliding_window` is true, the layers that do not rotate see `sliding_window`
    /// positions.
    NotRotated,
}

/// Rotary position embedding of a family.
#[derive(Debug, PartialEq)]
pub struct RopeRule {
    /// Values of `rope_type` and what they mean.
    pub kinds: &'static [(&'static str, RopeKind)],
    /// Whether `partial_rotary_factor` is read.
    pub partial: bool,
    /// Which layers rotate, and by which base.
    pub rotated: Rotated,
}

/// How frequencies are changed for long contexts, by `rope_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeKind {
    /// Frequencies stay as they are.
    Plain,
    /// Divided by a factor.
    Linear,
    /// Low ones divided, with a smooth change to the others, as for Llama 3.1.
    Llama3,
    /// By a base that grows with a sequence beyond `max_position_embeddings`.
    Dynamic,
    /// YaRN: low ones divided, high ones kept, and the attention sharpened.
    Yarn,
    /// Divided by one of two lists of factors, which the length of the sequence chooses.
    LongRope,
}

/// Which layers rotate queries and keys, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rotated {
    /// All layers rotate, with the same frequencies.
    EveryLayer,
    /// Those for which `no_rope_layers` is not 0, or all but the last of every
    /// `no_rope_layer_interval`.
    Listed,
    /// All: layers that see all positions by `rope_parameters.full_attention`, the others by
    /// `rope_parameters.sliding_attention`.
    ByWindow {
        /// The key of config.json that gives the base of the latter, where the dictionary has
        /// none.
        theta_key: Option<&'static str>,
        /// The base where neither is there.
        theta: f64,
    },
}

/// What decides the factors on the embedding, the attention's scores, what is added to the residual
/// stream, and the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MultiplierRule {
    /// Only scores have one, `1 / sqrt(head_dim)`.
    HeadDim,
    /// The embedding has `sqrt(hidden_size)`, scores `1 / sqrt(query_pre_attn_scalar)`.
    QueryScalar,
    /// `embedding_multiplier`, `attention_multiplier`, `residual_multiplier`, and a divisor
    /// `logits_scaling`; 1 where one is absent.
    Listed,
}

/// Which soft caps, `c tanh(x / c)`, config.json may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoftCapRule {
    /// Nothing is capped, whatever config.json says.
    Absent,
    /// On scores by `attn_logit_softcapping`, on logits by `final_logit_softcapping`.
    ScoresAndLogits,
    /// Logits are capped by `final_logit_softcapping`.
    Logits,
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
    /// `None`: as many as attention heads, and null means that too.
    pub num_key_value_heads: Option<usize>,
    /// `None`: `hidden_size / num_attention_heads`, and null means that too.
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    /// `None`: `max_position_embeddings`, unless the dictionary of the rotary embedding has one.
    pub original_max_position_embeddings: Option<usize>,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub activation: Activation,
    pub tie_word_embeddings: bool,
    /// Read by a family whose [`WindowRule`] does.
    pub sliding_window: Option<usize>,
    /// Read by a family with [`MultiplierRule::QueryScalar`] alone.
    pub query_pre_attn_scalar: f64,
    /// Read as [`SoftCapRule`] says.
    pub attn_logit_softcapping: Option<f64>,
    pub final_logit_softcapping: Option<f64>,
}

impl Architecture {
    /// The family that `architectures` of config.json names so.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|a| a.name == name)
    }

    /// The family whose `model_type` this is.
    #[must_use]
    pub(crate) fn of_type(model_type: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|a| a.model_type == model_type)
    }
}

impl Activation {
    /// The function that config.json names so.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            _ => None,
        }
    }
}
