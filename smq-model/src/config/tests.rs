//! config.json's meaning is that of transformers 5.24: its answers are recorded, or were read off
//! `AutoConfig` and `AutoModelForCausalLM`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::names::Role;

/// Sizes of a small model, with these keys on top; null leaves a key of its own out.
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

/// Within what `powf` of two libraries may differ by, and what is computed with it.
fn assert_close(found: &[f32], expected: &Value, what: &str) {
    let expected: Vec<f32> = serde_json::from_value(expected.clone()).unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(&expected) {
        let error = (found - expected).abs() / expected;
        assert!(error < 4e-7, "{what}: {found} instead of {expected}");
    }
}

/// Values that f32 does not hold, and a part of a head: `original_inv_freq` of transformers' models in f32.
#[test]
fn numbers_are_f64_and_tensors_f32() {
    let odd = json!({"rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.3, "high_freq_factor": 4.1, "rope_theta": 5e5,
    }});
    let expected = json!([
        1.0,
        0.193922758102417,
        0.03760603070259094,
        0.0009115831344388425,
        0.00017677668074611574,
        3.428102354519069e-05,
        6.647869668086059e-06,
        1.289173155782919e-06
    ]);
    assert_close(
        &read("llama", odd).rope.inv_freq(false),
        &expected,
        "llama3",
    );
    let part = json!({"partial_rotary_factor": 0.75, "rope_parameters": {"rope_theta": 5000.0}});
    let expected = json!([
        1.0,
        0.2418271005153656,
        0.05848035216331482,
        0.014142136089503765,
        0.0034199513029307127,
        0.000827037263661623
    ]);
    assert_close(&read("phi3", part).rope.inv_freq(false), &expected, "part");
}

/// Refused by transformers too, but for dynamic, yarn and proportional, which are not implemented.
#[test]
fn rotary_embedding_that_cannot_be_followed_is_refused_by_name() {
    let at = "original_max_position_embeddings";
    let scaled = |scaling: Value| json!({ "rope_scaling": scaling });
    for kind in ["dynamic", "yarn", "proportional", "mrope", "su", "longrope"] {
        let keys = scaled(json!({"type": kind, "factor": 2.0}));
        refused("llama", keys, &["rope_scaling.type", kind, "llama3"]);
    }
    for kind in ["linear", "llama3", "dynamic"] {
        let keys = json!({"rope_parameters": {"rope_type": kind, "factor": 2.0}});
        refused(
            "phi3",
            keys,
            &["rope_parameters.rope_type", kind, "longrope"],
        );
    }
    for (keys, words) in [
        (scaled(json!("linear")), &["rope_scaling is \"linear\""][..]),
        (
            scaled(json!({"rope_type": null, "type": "linear"})),
            &["rope_scaling.rope_type is null"],
        ),
        (
            scaled(json!({"type": "linear"})),
            &["rope_scaling.factor is missing"],
        ),
        (
            scaled(json!({"type": "linear", "factor": "4"})),
            &["rope_scaling.factor is \"4\""],
        ),
        (
            scaled(json!({"type": "linear", "factor": null})),
            &["rope_scaling.factor is null"],
        ),
        (
            scaled(json!({"type": "linear", "factor": 0})),
            &["rope_scaling.factor is 0"],
        ),
        (
            json!({"rope_parameters": {"rope_theta": null}}),
            &["rope_parameters.rope_theta is null"],
        ),
        (json!({"rope_theta": null}), &["rope_theta is null"]),
        (json!({"rope_theta": "10000"}), &["rope_theta is \"10000\""]),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 5e3}}}),
            &["rope_parameters.full_attention"],
        ),
        (
            json!({"partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 2}}),
            &["partial_rotary_factor is 0.5", "linear"],
        ),
        (
            scaled(
                json!({"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, at: null}),
            ),
            &["rope_scaling.original_max_position_embeddings is null"],
        ),
        (
            json!({
                at: null,
                "rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, at: 64},
            }),
            &["original_max_position_embeddings is null"],
        ),
        (
            scaled(json!({"type": "llama3", "factor": 8, "low_freq_factor": 1})),
            &["high_freq_factor is missing"],
        ),
    ] {
        refused("llama", keys, words);
    }
    let long = |short: Value, long: Value| {
        let lists = json!({"type": "longrope", "short_factor": short, "long_factor": long});
        json!({"rope_scaling": lists, at: 64})
    };
    let eight = json!([1, 1, 1, 1, 1, 1, 1, 1]);
    for (keys, words) in [
        (
            long(json!([1.0]), eight.clone()),
            &["short_factor has 1 values", "8"][..],
        ),
        (
            long(eight.clone(), json!("no")),
            &["long_factor is \"no\"", "8"],
        ),
        (
            long(eight.clone(), json!([1, 1, 1, 1, 1, 1, 1, "1"])),
            &["long_factor holds \"1\""],
        ),
        (
            json!({"rope_scaling": {"type": "longrope", "short_factor": eight}, at: 64}),
            &["rope_scaling.long_factor is missing"],
        ),
        (
            json!({"rope_scaling": {"type": "longrope", "short_factor": eight, "long_factor": eight}, at: 1}),
            &[at, "at least 2"],
        ),
        (
            json!({"partial_rotary_factor": null}),
            &["partial_rotary_factor is null"],
        ),
        (
            json!({"partial_rotary_factor": 2.0}),
            &["partial_rotary_factor is 2"],
        ),
        (
            json!({"partial_rotary_factor": 0.1}),
            &["1 elements", "even"],
        ),
    ] {
        refused("phi3", keys, words);
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

/// `LlamaConfig()` and `Phi3Config()`.
#[test]
fn keys_that_are_left_out_have_the_defaults_of_the_family() {
    let of = |json: &str| ModelConfig::from_json(json.as_bytes()).unwrap();
    let llama = of(r#"{"model_type": "llama"}"#);
    let phi3 = of(r#"{"model_type": "phi3"}"#);
    let sizes = |c: &ModelConfig| {
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
    };
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
            json!({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}),
            &["MistralForCausalLM"],
        ),
    ] {
        let message = of(json.clone()).unwrap_err();
        assert!(
            words.iter().all(|word| message.contains(word)),
            "{json}: {message}"
        );
    }
}

/// transformers ties what is missing, and what is equal; a head of its own counts, whatever the flag says.
#[test]
fn the_tensors_decide_whether_embedding_and_head_are_one() {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    const HEAD: &str = "lm_head.weight";
    let with = |tie: Value, present: &[&str]| {
        let file = ConfigFile::from_json(&config("llama", json!({ "tie_word_embeddings": tie })));
        let file = file.unwrap().with_tensors(|name| present.contains(&name));
        file.map(|f| f.runnable().unwrap())
    };
    for (tie, present, tables, noted) in [
        (true, &[EMBEDDING, HEAD][..], Tables::Both, true),
        (true, &[EMBEDDING], Tables::Embedding, false),
        (true, &[HEAD], Tables::Head, true),
        (false, &[EMBEDDING, HEAD], Tables::Both, false),
    ] {
        let c = with(tie.into(), present).unwrap();
        assert_eq!(c.tables, tables, "{tie} {present:?}");
        assert_eq!(!c.notes.is_empty(), noted, "{:?}", c.notes);
        assert!(present.contains(&c.embedding()));
        let listed: Vec<_> = c.tensors().into_iter().map(|t| t.name).collect();
        for name in [EMBEDDING, HEAD] {
            let found = listed.iter().any(|listed| listed == name);
            assert_eq!(found, present.contains(&name), "{name}");
        }
    }
    for (tie, word) in [(json!(false), "is false"), (json!("absent"), "is absent")] {
        let message = with(tie, &[EMBEDDING]).unwrap_err().to_string();
        for word in [HEAD, "tie_word_embeddings", word] {
            assert!(message.contains(word), "{message}");
        }
    }
}

/// As `LlamaForCausalLM(...).state_dict()` and `Phi3ForCausalLM(...).state_dict()` list them.
#[test]
fn tensors_are_those_of_the_state_dict() {
    let layers = json!({"num_hidden_layers": 1, "attention_bias": true, "head_dim": 8});
    let list = |family| {
        let file = ConfigFile::from_json(&config(family, layers.clone())).unwrap();
        let tensors = file.tensors().into_iter();
        tensors
            .map(|t| {
                (
                    t.name.replace("model.layers.0.", ""),
                    t.shape,
                    t.role,
                    t.layer,
                )
            })
            .collect::<Vec<_>>()
    };
    let inside =
        |name: &str, shape: &[usize], role| (name.to_owned(), shape.to_vec(), role, Some(0));
    let outside = |name: &str, shape: &[usize], role| (name.to_owned(), shape.to_vec(), role, None);
    let norms = [
        inside("input_layernorm.weight", &[64], Role::Norm),
        inside("post_attention_layernorm.weight", &[64], Role::Norm),
        outside("model.norm.weight", &[64], Role::Norm),
        outside("lm_head.weight", &[64, 64], Role::Head),
    ];
    let mut llama = vec![
        outside("model.embed_tokens.weight", &[64, 64], Role::Embedding),
        inside("self_attn.q_proj.weight", &[32, 64], Role::AttentionIn),
        inside("self_attn.q_proj.bias", &[32], Role::Bias),
        inside("self_attn.k_proj.weight", &[16, 64], Role::AttentionIn),
        inside("self_attn.k_proj.bias", &[16], Role::Bias),
        inside("self_attn.v_proj.weight", &[16, 64], Role::AttentionIn),
        inside("self_attn.v_proj.bias", &[16], Role::Bias),
        inside("self_attn.o_proj.weight", &[64, 32], Role::AttentionOut),
        inside("self_attn.o_proj.bias", &[64], Role::Bias),
        inside("mlp.gate_proj.weight", &[96, 64], Role::MlpIn),
        inside("mlp.up_proj.weight", &[96, 64], Role::MlpIn),
        inside("mlp.down_proj.weight", &[64, 96], Role::MlpOut),
    ];
    llama.extend(norms.clone());
    assert_eq!(list("llama"), llama);
    let mut phi3 = vec![
        outside("model.embed_tokens.weight", &[64, 64], Role::Embedding),
        inside("self_attn.o_proj.weight", &[64, 32], Role::AttentionOut),
        inside("self_attn.qkv_proj.weight", &[64, 64], Role::AttentionIn),
        inside("mlp.gate_up_proj.weight", &[192, 64], Role::MlpIn),
        inside("mlp.down_proj.weight", &[64, 96], Role::MlpOut),
    ];
    phi3.extend(norms);
    assert_eq!(list("phi3"), phi3);
}

/// What is refused when it is run can still be converted: its tensors are known.
#[test]
fn a_computation_that_is_refused_leaves_the_tensors_known() {
    let keys = json!({"rope_scaling": {"type": "yarn", "factor": 4.0}, "hidden_act": "gelu"});
    let file = ConfigFile::from_json(&config("llama", keys)).unwrap();
    let plain = ConfigFile::from_json(&config("llama", json!({}))).unwrap();
    assert_eq!(file.tensors(), plain.tensors());
    assert!(file.runnable().unwrap_err().to_string().contains("gelu"));
}

/// A directory with this config.json and one tensor.
fn directory(dir: &Path, config: &[u8]) {
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]);
    let file = safetensors::serialize([("x", view.unwrap())], None).unwrap();
    fs::write(dir.join("model.safetensors"), file).unwrap();
    fs::write(dir.join("config.json"), config).unwrap();
}

#[test]
fn a_default_that_does_not_fit_the_tensors_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let keys = json!({"vocab_size": "absent", "tie_word_embeddings": true});
    directory(dir.path(), &config("llama", keys));
    let error = ModelConfig::of(&Source::open(dir.path()).unwrap()).unwrap_err();
    for word in ["vocab_size 32000", "model.embed_tokens.weight"] {
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn a_directory_of_quantized_weights_or_with_an_adapter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let of = |quantization: Value| {
        directory(
            dir.path(),
            &config(
                "llama",
                json!({"quantization_config": quantization, "tie_word_embeddings": true}),
            ),
        );
        Source::open(dir.path()).and_then(|source| ModelConfig::of(&source))
    };
    assert!(of(Value::Null).is_ok());
    for quantization in [json!({"quant_method": "gptq"}), json!({})] {
        let message = of(quantization).unwrap_err().to_string();
        for word in ["quantization_config", "smq-convert"] {
            assert!(message.contains(word), "{message}");
        }
    }
    let adapter = r#"{"base_model_name_or_path": "org/base"}"#;
    fs::write(dir.path().join("adapter_config.json"), adapter).unwrap();
    let message = Source::open(dir.path()).unwrap_err().to_string();
    for word in ["adapter_config.json", "org/base", "merge"] {
        assert!(message.contains(word), "{message}");
    }
}
