//! The families.

use super::{
    Activation, Architecture, BiasRule, Biases, Defaults, GateUp, Multipliers, NormWeight, Norms,
    Projections, QkNorm, Qkv, RopeKind, RopeRule, Rotated, SoftCaps, WindowRule,
};

/// Every family, each by its `Config` and `ForCausalLM` classes in transformers 5.24.
pub static ARCHITECTURES: [Architecture; 2] = [PHI3, LLAMA];

const PHI3: Architecture = Architecture {
    name: "Phi3ForCausalLM",
    model_type: "phi3",
    models: "Phi-3, Phi-3.5-mini, Phi-4-mini",
    embedding: "model.embed_tokens.weight",
    last_norm: "model.norm.weight",
    head: "lm_head.weight",
    projections: Projections {
        qkv: Qkv::Fused("self_attn.qkv_proj"),
        o: "self_attn.o_proj",
        gate_up: GateUp::Fused("mlp.gate_up_proj"),
        down: "mlp.down_proj",
        o_first: true,
    },
    norms: BEFORE_BLOCKS,
    norm_weight: NormWeight::AsStored,
    qk_norm: QkNorm::Absent,
    biases: Biases {
        qkv: BiasRule::Never,
        o: BiasRule::Never,
        mlp: BiasRule::Never,
    },
    windows: WindowRule::EveryLayer,
    rope: RopeRule {
        // "su" and "yarn" are what the first releases called LongRoPE.
        kinds: &[
            ("default", RopeKind::Plain),
            ("longrope", RopeKind::LongRope),
            ("su", RopeKind::LongRope),
            ("yarn", RopeKind::LongRope),
        ],
        partial: true,
        rotated: Rotated::EveryLayer,
    },
    multipliers: Multipliers::Scores,
    soft_caps: SoftCaps::Absent,
    defaults: Defaults {
        vocab_size: 32064,
        hidden_size: 3072,
        intermediate_size: 8192,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        max_position_embeddings: 4096,
        original_max_position_embeddings: Some(4096),
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        hidden_act: Activation::Silu,
        tie_word_embeddings: false,
    },
};

const LLAMA: Architecture = Architecture {
    name: "LlamaForCausalLM",
    model_type: "llama",
    models: "Llama, SmolLM2",
    embedding: "model.embed_tokens.weight",
    last_norm: "model.norm.weight",
    head: "lm_head.weight",
    projections: Projections {
        qkv: Qkv::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        o: "self_attn.o_proj",
        gate_up: GateUp::Apart(["mlp.gate_proj", "mlp.up_proj"]),
        down: "mlp.down_proj",
        o_first: false,
    },
    norms: BEFORE_BLOCKS,
    norm_weight: NormWeight::AsStored,
    qk_norm: QkNorm::Absent,
    biases: Biases {
        qkv: BiasRule::Flag("attention_bias"),
        o: BiasRule::Flag("attention_bias"),
        mlp: BiasRule::Flag("mlp_bias"),
    },
    windows: WindowRule::Never,
    rope: RopeRule {
        // Not "longrope": transformers computes the cache anew for Phi-3 alone where the factors
        // change, and goes on with keys of both factors here.
        kinds: &[
            ("default", RopeKind::Plain),
            ("linear", RopeKind::Linear),
            ("llama3", RopeKind::Llama3),
        ],
        partial: false,
        rotated: Rotated::EveryLayer,
    },
    multipliers: Multipliers::Scores,
    soft_caps: SoftCaps::Absent,
    defaults: Defaults {
        vocab_size: 32000,
        hidden_size: 4096,
        intermediate_size: 11008,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        max_position_embeddings: 2048,
        original_max_position_embeddings: None,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        hidden_act: Activation::Silu,
        tie_word_embeddings: false,
    },
};

const BEFORE_BLOCKS: Norms = Norms::BeforeBlocks {
    attention: "input_layernorm",
    mlp: "post_attention_layernorm",
};
