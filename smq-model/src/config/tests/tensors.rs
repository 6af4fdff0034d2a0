//! Which tensors a config.json implies, and directories whose tensors are others.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::config;
use crate::config::{ConfigFile, ModelConfig, Tables};
use crate::names::Role;
use crate::source::Source;

/// transformers ties what is missing, and what is equal; a head of its own counts, whatever the
/// flag says.
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
    let keys = json!({"rope_scaling": {"type": "mrope", "factor": 4.0}, "hidden_act": "gelu"});
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
