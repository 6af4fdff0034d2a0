//! The families that are known, an entry each, as transformers has them.

use super::{
    Activation, Architecture, BiasRule, Biases, Defaults, GateUp, MultiplierRule, NormWeight,
    Norms, Projections, QkNorm, Qkv, RopeKind, RopeRule, Rotated, SoftCapRule, WindowRule,
};

/// Every family, each by its `Config` and `ForCausalLM` classes in transformers 5.24.
pub static ARCHITECTURES: [Architecture; 11] = [
    PHI3, LLAMA, QWEN3, QWEN2, MISTRAL, SMOLLM3, GEMMA3, GEMMA2, GRANITE, OLMO2, OLMO3,
];

const PHI3: Architecture = Architecture {
    name: "Phi3ForCausalLM",
    model_type: "phi3",
    models: "Phi-3, Phi-3.5-mini, Phi-4-mini",
    projections: Projections {
        qkv: Qkv::Fused("self_attn.qkv_proj"),
        o: "self_attn.o_proj",
        gate_up: GateUp::Fused("mlp.gate_up_proj"),
        down: "mlp.down_proj",
        o_first: true,
    },
    biases: NO_BIASES,
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
    defaults: Defaults {
        vocab_size: 32064,
        hidden_size: 3072,
        intermediate_size: 8192,
        max_position_embeddings: 4096,
        original_max_position_embeddings: Some(4096),
        rms_norm_eps: 1e-5,
        ..LLAMA.defaults
    },
    ..LLAMA
};

/// The others are described by what they differ in from this one.
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
    norms: Norms {
        before_attention: Some("input_layernorm"),
        after_attention: None,
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: None,
    },
    norm_weight: NormWeight::AsStored,
    qk_norm: QkNorm::Absent,
    biases: Biases {
        qkv: BiasRule::Flag("attention_bias"),
        o: BiasRule::Flag("attention_bias"),
        mlp: BiasRule::Flag("mlp_bias"),
    },
    activation_key: "hidden_act",
    windows: WindowRule::Never,
    rope: ROPE,
    multipliers: MultiplierRule::HeadDim,
    soft_caps: SoftCapRule::Absent,
    refused_flags: &[],
    defaults: Defaults {
        vocab_size: 32000,
        hidden_size: 4096,
        intermediate_size: 11008,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        original_max_position_embeddings: None,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        activation: Activation::Silu,
        tie_word_embeddings: false,
        sliding_window: None,
        query_pre_attn_scalar: 256.0,
        attn_logit_softcapping: None,
        final_logit_softcapping: None,
    },
};

const QWEN3: Architecture = Architecture {
    name: "Qwen3ForCausalLM",
    model_type: "qwen3",
    models: "Qwen3",
    qk_norm: QkNorm::PerHead(QK_NORMS),
    biases: ATTENTION_BIASES,
    windows: WindowRule::FromLayer,
    defaults: Defaults {
        head_dim: Some(128),
        ..QWEN2.defaults
    },
    ..LLAMA
};

const QWEN2: Architecture = Architecture {
    name: "Qwen2ForCausalLM",
    model_type: "qwen2",
    models: "Qwen2, Qwen2.5",
    biases: Biases {
        qkv: BiasRule::Always,
        ..NO_BIASES
    },
    windows: WindowRule::FromLayer,
    defaults: Defaults {
        vocab_size: 151_936,
        intermediate_size: 22016,
        num_key_value_heads: Some(32),
        max_position_embeddings: 32768,
        sliding_window: Some(4096),
        ..LLAMA.defaults
    },
    ..LLAMA
};

const MISTRAL: Architecture = Architecture {
    name: "MistralForCausalLM",
    model_type: "mistral",
    models: "Mistral 7B, Nemo, Ministral 8B",
    biases: NO_BIASES,
    windows: WindowRule::EveryLayer,
    defaults: Defaults {
        intermediate_size: 14336,
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        sliding_window: Some(4096),
        ..LLAMA.defaults
    },
    ..LLAMA
};

const SMOLLM3: Architecture = Architecture {
    name: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    models: "SmolLM3",
    windows: WindowRule::NotRotated,
    rope: RopeRule {
        rotated: Rotated::Listed,
        ..ROPE
    },
    defaults: Defaults {
        vocab_size: 128_256,
        hidden_size: 2048,
        num_hidden_layers: 36,
        num_attention_heads: 16,
        num_key_value_heads: Some(4),
        max_position_embeddings: 32768,
        rope_theta: 2_000_000.0,
        tie_word_embeddings: true,
        ..LLAMA.defaults
    },
    ..LLAMA
};

const GEMMA3: Architecture = Architecture {
    name: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    models: "Gemma 3, text",
    qk_norm: QkNorm::PerHead(QK_NORMS),
    windows: WindowRule::Periodic {
        period: 6,
        key: Some("sliding_window_pattern"),
    },
    rope: RopeRule {
        rotated: Rotated::ByWindow {
            theta_key: Some("rope_local_base_freq"),
            theta: 10_000.0,
        },
        ..ROPE
    },
    // Its class reads attn_logit_softcapping and does not use it.
    soft_caps: SoftCapRule::Logits,
    defaults: Defaults {
        vocab_size: 262_208,
        max_position_embeddings: 131_072,
        rope_theta: 1_000_000.0,
        attn_logit_softcapping: None,
        final_logit_softcapping: None,
        ..GEMMA2.defaults
    },
    ..GEMMA2
};

const GEMMA2: Architecture = Architecture {
    name: "Gemma2ForCausalLM",
    model_type: "gemma2",
    models: "Gemma 2",
    norms: Norms {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
    },
    norm_weight: NormWeight::OnePlus,
    biases: ATTENTION_BIASES,
    activation_key: "hidden_activation",
    windows: WindowRule::Periodic {
        period: 2,
        key: None,
    },
    multipliers: MultiplierRule::QueryScalar,
    soft_caps: SoftCapRule::ScoresAndLogits,
    refused_flags: &["use_bidirectional_attention"],
    defaults: Defaults {
        vocab_size: 256_000,
        hidden_size: 2304,
        intermediate_size: 9216,
        num_hidden_layers: 26,
        num_attention_heads: 8,
        num_key_value_heads: Some(4),
        head_dim: Some(256),
        max_position_embeddings: 8192,
        activation: Activation::GeluTanh,
        tie_word_embeddings: true,
        sliding_window: Some(4096),
        attn_logit_softcapping: Some(50.0),
        final_logit_softcapping: Some(30.0),
        ..LLAMA.defaults
    },
    ..LLAMA
};

const GRANITE: Architecture = Architecture {
    name: "GraniteForCausalLM",
    model_type: "granite",
    models: "Granite 3",
    multipliers: MultiplierRule::Listed,
    ..LLAMA
};

const OLMO2: Architecture = Architecture {
    name: "Olmo2ForCausalLM",
    model_type: "olmo2",
    models: "OLMo 2",
    norms: Norms {
        before_attention: None,
        after_attention: Some("post_attention_layernorm"),
        before_mlp: None,
        after_mlp: Some("post_feedforward_layernorm"),
    },
    qk_norm: QkNorm::WholeWidth(QK_NORMS),
    biases: ATTENTION_BIASES,
    defaults: Defaults {
        vocab_size: 50304,
        rms_norm_eps: 1e-5,
        ..LLAMA.defaults
    },
    ..LLAMA
};

const OLMO3: Architecture = Architecture {
    name: "Olmo3ForCausalLM",
    model_type: "olmo3",
    models: "OLMo 3",
    windows: WindowRule::Periodic {
        period: 4,
        key: None,
    },
    rope: RopeRule {
        // The class takes rope_theta for layers that see everything, and no key for the others.
        rotated: Rotated::ByWindow {
            theta_key: None,
            theta: 500_000.0,
        },
        ..ROPE
    },
    defaults: Defaults {
        rope_theta: 500_000.0,
        sliding_window: Some(4096),
        ..OLMO2.defaults
    },
    ..OLMO2
};

const QK_NORMS: [&str; 2] = ["self_attn.q_norm", "self_attn.k_norm"];

const NO_BIASES: Biases<BiasRule> = Biases {
    qkv: BiasRule::Never,
    o: BiasRule::Never,
    mlp: BiasRule::Never,
};

const ATTENTION_BIASES: Biases<BiasRule> = Biases {
    qkv: BiasRule::Flag("attention_bias"),
    o: BiasRule::Flag("attention_bias"),
    mlp: BiasRule::Never,
};

/// Not "longrope": transformers computes the cache anew for Phi-3 alone where the factors change,
/// and goes on with keys of both factors elsewhere.
const ROPE: RopeRule = RopeRule {
    kinds: &[
        ("default", RopeKind::Plain),
        ("linear", RopeKind::Linear),
        ("dynamic", RopeKind::Dynamic),
        ("yarn", RopeKind::Yarn),
        ("llama3", RopeKind::Llama3),
    ],
    partial: false,
    rotated: Rotated::EveryLayer,
};
