//! What transformers 5.24 makes of config.json, case by case: `tests/fixtures/hf/config_cases.json`,
//! whose README says how it was recorded and what its keys mean.

use std::path::Path;

use serde_json::{Map, Value};

use super::assert_close;
use crate::architecture::{Activation, Windows};
use crate::config::{ModelConfig, Tables, refuse_quantized};
use crate::rope::RopeScaling;

/// The config.json of a case.
fn json(case: &Value, base: &Value) -> Vec<u8> {
    let family = case["base"].as_str().unwrap();
    let json = &base[family]["config.json"]["$json"];
    let mut json: Map<String, Value> = json.as_object().unwrap().clone();
    if let Some(change) = case["files"].get("config.json") {
        for key in change["$drop"].as_array().into_iter().flatten() {
            json.remove(key.as_str().unwrap());
        }
        for (key, value) in change["$set"].as_object().into_iter().flatten() {
            json.insert(key.clone(), value.clone());
        }
    }
    serde_json::to_vec(&json).unwrap()
}

fn compare(config: &ModelConfig, expected: &Value, name: &str) {
    assert_eq!(config.architecture.name, expected["class"], "{name}");
    for (found, key) in [
        (config.hidden, "hidden"),
        (config.intermediate, "intermediate"),
        (config.layers, "layers"),
        (config.heads, "heads"),
        (config.kv_heads, "kv_heads"),
        (config.head_dim, "head_dim"),
        (config.vocab, "vocab"),
        (config.max_positions, "max_positions"),
    ] {
        assert_eq!(found as u64, expected[key], "{name}: {key}");
    }
    let eps = expected["rms_norm_eps"].as_f64().unwrap() as f32;
    assert_eq!(config.rms_norm_eps, eps, "{name}");
    let window = expected["sliding_window"].as_u64().map(|w| w as usize);
    assert_eq!(config.windows, Windows::Alike(window), "{name}");
    let activation = expected["activation"].as_str().and_then(Activation::named);
    assert_eq!(Some(config.activation), activation, "{name}");
    let tied = config.tables == Tables::Embedding;
    assert_eq!(tied, expected["tied"], "{name}");
    let rope = &config.rope;
    assert_close(&rope.inv_freq(false), &expected["inv_freq"], name);
    let scaling = Value::Array(vec![expected["attention_scaling"].clone()]);
    assert_close(&[rope.attention_factor()], &scaling, name);
    let long = expected.get("inv_freq_long");
    match &rope.scaling {
        RopeScaling::LongRope {
            original_positions, ..
        } => {
            let original = &expected["original_positions"];
            assert_eq!(*original_positions as u64, *original, "{name}");
            assert_close(&rope.inv_freq(true), long.unwrap(), name);
        }
        RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => {
            assert!(long.is_none(), "{name}");
        }
    }
}

#[test]
fn config_json_is_read_as_transformers_reads_it() {
    let path = "../tests/fixtures/hf/config_cases.json";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (mut compared, mut refused) = (0, 0);
    for case in recorded["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        // 64.0 in place of 64 was no difference to whoever recorded it; the test beside has it.
        if name == "llama: hidden_size as a decimal" {
            continue;
        }
        let allowed = |key: &str| case.get(key).is_some_and(|value| value != false);
        let json = json(case, &recorded["base"]);
        let config = refuse_quantized(&json).and_then(|()| ModelConfig::from_json(&json));
        let must_refuse =
            allowed("must_refuse") || (case.get("error").is_some() && !allowed("may_run"));
        match config {
            Ok(_) if must_refuse => panic!("{name}: is taken"),
            Ok(config) => {
                // What is read where transformers refuses has no answer to compare with.
                if let Some(expected) = case.get("effective") {
                    compare(&config, expected, name);
                    compared += 1;
                }
            }
            Err(error) => {
                let message = error.to_string().to_lowercase();
                let may = must_refuse || allowed("may_refuse") || allowed("error");
                assert!(may, "{name}: {message}");
                for word in case["words"].as_array().into_iter().flatten() {
                    let word = word.as_str().unwrap().to_lowercase();
                    assert!(message.contains(&word), "{name}: no {word} in: {message}");
                }
                refused += 1;
            }
        }
    }
    assert!(compared >= 120 && refused >= 60, "{compared}, {refused}");
}
