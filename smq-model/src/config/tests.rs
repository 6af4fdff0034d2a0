//! config.json's meaning is that of transformers 5.24: its answers are recorded, or were read off
//! `AutoConfig` and `AutoModelForCausalLM`.

mod defaults;
mod rope;
mod tensors;

use serde_json::{Value, json};

use super::*;
use crate::architecture::ARCHITECTURES;

/// Sizes of a small model, with these keys on top; the text `absent` leaves a key of its own
/// out.
fn config(family: &str, keys: Value) -> Vec<u8> {
    let mut config = json!({
        "model_type": family,
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    });
    for (key, value) in keys.as_object().unwrap() {
        match value.as_str() {
            Some("absent") => config.as_object_mut().unwrap().remove(key),
            _ => config
                .as_object_mut()
                .unwrap()
                .insert(key.clone(), value.clone()),
        };
    }
    config.to_string().into_bytes()
}

fn read(family: &str, keys: Value) -> ModelConfig {
    ModelConfig::from_json(&config(family, keys)).unwrap()
}

/// The refusal, which holds all of `words`.
#[track_caller]
fn refused(family: &str, keys: Value, words: &[&str]) {
    let shown = keys.to_string();
    match ModelConfig::from_json(&config(family, keys)) {
        Ok(_) => panic!("{family} {shown} is taken"),
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("config.json: "), "{message}");
            for word in words {
                assert!(message.contains(word), "{shown}: no {word} in: {message}");
            }
        }
    }
}

/// What goes before what is said, so that nobody believes in the value that is not used.
#[test]
fn what_is_ignored_is_noted() {
    let notes = |family, keys: Value| read(family, keys).notes;
    let at = "original_max_position_embeddings";
    let eight = json!([1, 1, 1, 1, 1, 1, 1, 1]);
    let long = json!({"type": "longrope", "short_factor": eight, "long_factor": eight, at: 32});
    assert_eq!(notes("llama", json!({})), [""; 0]);
    assert_eq!(notes("phi3", json!({"sliding_window": 16})), [""; 0]);
    for (family, keys, words) in [
        (
            "llama",
            json!({"rope_scaling": {"type": "linear", "factor": 4}, "rope_parameters": {"rope_theta": 5e3}}),
            &["rope_scaling", "rope_parameters"][..],
        ),
        (
            "llama",
            json!({"rope_theta": 500, "rope_parameters": {"rope_theta": 5e3}}),
            &["rope_parameters.rope_theta is 5000", "rope_theta is 500;"],
        ),
        (
            "llama",
            json!({"rope_scaling": {"type": "default", "rope_type": "linear", "factor": 4}}),
            &["rope_type is linear", "type is default"],
        ),
        (
            "llama",
            json!({"rope_scaling": {"factor": 4}}),
            &["rope_scaling.factor", "\"default\""],
        ),
        (
            "llama",
            json!({"partial_rotary_factor": 0.5}),
            &["partial_rotary_factor is 0.5", "whole heads"],
        ),
        (
            "phi3",
            json!({"rope_scaling": long, at: 64}),
            &["rope_scaling.original_max_position_embeddings is 32", "64"],
        ),
        (
            "phi3",
            json!({ "rope_scaling": long }),
            &[
                "rope_scaling.original_max_position_embeddings is 32",
                "4096",
            ],
        ),
        (
            "phi3",
            json!({"sliding_window": 16, "use_sliding_window": false}),
            &["use_sliding_window is false", "16"],
        ),
    ] {
        let shown = keys.to_string();
        let found = notes(family, keys);
        assert_eq!(found.len(), 1, "{shown}: {found:?}");
        assert!(
            words.iter().all(|word| found[0].contains(word)),
            "{found:?}"
        );
    }
}

fn sizes(c: &ModelConfig) -> [usize; 8] {
    [
        c.vocab,
        c.hidden,
        c.intermediate,
        c.layers,
        c.heads,
        c.kv_heads,
        c.head_dim,
        c.max_positions,
    ]
}

/// `LlamaConfig()` and `Phi3Config()`.
#[test]
fn keys_that_are_left_out_have_the_defaults_of_the_family() {
    let of = |json: &str| ModelConfig::from_json(json.as_bytes()).unwrap();
    let llama = of(r#"{"model_type": "llama"}"#);
    let phi3 = of(r#"{"model_type": "phi3"}"#);
    assert_eq!(sizes(&llama), [32000, 4096, 11008, 32, 32, 32, 128, 2048]);
    assert_eq!(sizes(&phi3), [32064, 3072, 8192, 32, 32, 32, 96, 4096]);
    assert_eq!((llama.rms_norm_eps, phi3.rms_norm_eps), (1e-6, 1e-5));
    for c in [llama, phi3] {
        assert_eq!(c.tables, Tables::Both);
        assert_eq!(c.windows, Windows::Alike(None));
        assert_eq!(c.activation, Activation::Silu);
        assert_eq!((c.rope.theta, c.rope.rotary_dim), (10_000.0, c.head_dim));
        let none = Biases {
            qkv: false,
            o: false,
            mlp: false,
        };
        assert_eq!(c.biases, none);
    }
    let file = ConfigFile::from_json(&config("llama", json!({"vocab_size": "absent"}))).unwrap();
    assert_eq!(file.absent(), [("vocab_size", 32000)]);
    // Null is a value where the class takes it, and no other.
    let nulls = json!({"num_key_value_heads": null, "head_dim": null});
    let c = read("llama", nulls);
    assert_eq!((c.kv_heads, c.head_dim), (4, 16));
}

#[test]
fn values_that_no_model_has_are_refused_by_name() {
    for (keys, words) in [
        (
            json!({"hidden_size": null}),
            &["hidden_size is null", "1048576"][..],
        ),
        (json!({"hidden_size": 64.0}), &["hidden_size is 64.0"]),
        (json!({"hidden_size": "64"}), &["hidden_size is \"64\""]),
        (
            json!({"hidden_size": 66}),
            &["hidden_size 66", "num_attention_heads 4"],
        ),
        (
            json!({"num_key_value_heads": 3}),
            &["num_attention_heads 4", "num_key_value_heads 3"],
        ),
        (
            json!({"num_hidden_layers": 4097}),
            &["num_hidden_layers is 4097", "4096"],
        ),
        (
            json!({"head_dim": 1 << 19}),
            &["q_proj", "2097152 elements"],
        ),
        (
            json!({"tie_word_embeddings": null}),
            &["tie_word_embeddings is null"],
        ),
        (json!({"attention_bias": null}), &["attention_bias is null"]),
        (
            json!({"rms_norm_eps": "1e-6"}),
            &["rms_norm_eps is \"1e-6\""],
        ),
        (json!({"rms_norm_eps": -1.0}), &["rms_norm_eps is -1"]),
        (
            json!({"max_position_embeddings": null}),
            &["max_position_embeddings is null"],
        ),
        (
            json!({"hidden_act": "gelu"}),
            &["hidden_act is gelu", "silu"],
        ),
        (json!({"hidden_act": null}), &["hidden_act is null"]),
    ] {
        refused("llama", keys, words);
    }
    assert_eq!(
        read("llama", json!({"hidden_act": "swish"})).activation,
        Activation::Silu
    );
}

/// Keys that some part of transformers reads though the family's class does not know them.
#[test]
fn keys_that_change_what_transformers_computes_are_refused() {
    for (keys, words) in [
        (json!({"sliding_window": 16}), &["sliding_window is 16"][..]),
        (json!({"is_causal": false}), &["is_causal is false"]),
        (
            json!({"attention_chunk_size": 8}),
            &["attention_chunk_size is 8"],
        ),
        (json!({"is_encoder_decoder": true}), &["is_encoder_decoder"]),
        (
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            &["layer_types", "full_attention"],
        ),
        (
            json!({"layer_types": ["full_attention"]}),
            &["layer_types", "2 layers"],
        ),
        (
            json!({"text_config": {"hidden_size": 64}}),
            &["text_config"],
        ),
        (json!({"decoder": {"hidden_size": 64}}), &["decoder"]),
        (
            json!({"per_layer_config": {"0": {"intermediate_size": 32}}}),
            &["per_layer_config"],
        ),
        (
            json!({"compression_config": {"quant_method": "compressed-tensors"}}),
            &["compression_config"],
        ),
        (
            json!({"configuration_files": ["config.4.0.0.json"]}),
            &["configuration_files"],
        ),
    ] {
        refused("llama", keys, words);
    }
    refused(
        "phi3",
        json!({"sliding_window": 16, "layer_types": ["full_attention", "full_attention"]}),
        &["layer_types", "sliding_window"],
    );
    refused(
        "phi3",
        json!({"sliding_window": 0}),
        &["sliding_window is 0"],
    );
    let plain = read("llama", json!({}));
    for keys in [
        json!({"sliding_window": null, "layer_types": ["full_attention", "full_attention"]}),
        json!({"attention_chunk_size": null, "is_causal": true, "per_layer_config": {}}),
        // What only other families read, and what no evaluation does.
        json!({"pretraining_tp": 2, "num_experts": 8, "logits_scaling": 8.0, "layer_norm_eps": 0.1,
               "hidden_activation": "gelu", "n_layer": 7, "attn_logit_softcapping": 50.0,
               "use_bidirectional_attention": true, "attention_dropout": 0.5, "torch_dtype": "float16",
               "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}),
    ] {
        assert_eq!(read("llama", keys), plain);
    }
    let phi3 = read("phi3", json!({"attention_bias": true, "mlp_bias": true}));
    assert_eq!(phi3, read("phi3", json!({})));
    let windows = |keys| read("phi3", keys).windows;
    assert_eq!(
        windows(json!({"sliding_window": 16})),
        Windows::Alike(Some(16))
    );
    assert_eq!(
        windows(json!({"sliding_window": null})),
        Windows::Alike(None)
    );
}

#[test]
fn the_family_is_model_type_s_and_architectures_must_agree() {
    let of = |json: Value| {
        let json = json.to_string();
        let config = ModelConfig::from_json(json.as_bytes());
        config
            .map(|c| c.architecture.name)
            .map_err(|e| e.to_string())
    };
    let (llama, phi3) = ("LlamaForCausalLM", "Phi3ForCausalLM");
    for json in [
        json!({"model_type": "llama"}),
        json!({"model_type": "llama", "architectures": null}),
        json!({"model_type": "llama", "architectures": []}),
        json!({"model_type": "llama", "architectures": [llama]}),
        json!({"model_type": "llama", "architectures": [phi3, llama]}),
        json!({"model_type": "llama", "architectures": ["LlamaModel", llama]}),
        json!({"architectures": [llama]}),
    ] {
        assert_eq!(of(json.clone()), Ok(llama), "{json}");
    }
    for known in &ARCHITECTURES {
        for json in [
            json!({"model_type": known.model_type}),
            json!({"architectures": [known.name]}),
            json!({"model_type": known.model_type, "architectures": [known.name]}),
        ] {
            assert_eq!(of(json.clone()), Ok(known.name), "{json}");
        }
    }
    for (json, words) in [
        (json!({}), &["architectures is missing", llama, phi3][..]),
        (
            json!({"architectures": []}),
            &["architectures is []", llama],
        ),
        (
            json!({"architectures": ["GPT2LMHeadModel"]}),
            &["GPT2LMHeadModel", llama],
        ),
        (
            json!({"architectures": llama}),
            &["architectures is \"LlamaForCausalLM\""],
        ),
        (
            json!({"architectures": [llama, phi3]}),
            &[llama, phi3, "model_type is missing"],
        ),
        (
            json!({"model_type": "gpt2"}),
            &["model_type is \"gpt2\"", llama],
        ),
        (
            json!({"model_type": null, "architectures": [llama]}),
            &["model_type is null"],
        ),
        (
            json!({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}),
            &["LlamaForSequenceClassification"],
        ),
        (
            json!({"model_type": "llama", "architectures": ["LlamaModel"]}),
            &["LlamaModel"],
        ),
        (
            json!({"model_type": "llama", "architectures": [phi3]}),
            &[phi3, "\"llama\"", "\"phi3\""],
        ),
        (
            json!({"model_type": "mistral", "architectures": [llama]}),
            &[llama, "\"mistral\"", "\"llama\""],
        ),
        (
            json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}),
            &["GPT2LMHeadModel"],
        ),
        (
            json!({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 128}),
            &[
                "Qwen3MoeForCausalLM",
                "a mixture of experts: it converts",
                "Qwen3ForCausalLM",
            ],
        ),
        (
            json!({"model_type": "mixtral", "num_local_experts": 8}),
            &["mixtral", "a mixture of experts"],
        ),
        (
            json!({
                "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
                "text_config": {"hidden_size": 2560}, "vision_config": {"hidden_size": 1152},
            }),
            &[
                "Gemma3ForConditionalGeneration",
                "a model of text and something else",
                "Gemma3ForCausalLM",
            ],
        ),
    ] {
        let message = of(json.clone()).unwrap_err();
        assert!(
            words.iter().all(|word| message.contains(word)),
            "{json}: {message}"
        );
    }
}
