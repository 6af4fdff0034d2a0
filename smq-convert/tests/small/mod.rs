//! A checkpoint of a few thousand weights, to be changed.
#![allow(dead_code)] // each test program uses a part

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use smq_convert::{
    ConvertOptions, Method, QuantizeOptions, ScaleChoice, ScaleRule, SynthOptions, synth,
};

/// Name, element type, shape, bytes.
pub(crate) type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

pub(crate) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false,
        "vocab_size": 48,
    })
}

/// Writes a Llama of one layer as `parent/name`, with made-up weights.
pub(crate) fn llama(parent: &Path, name: &str) -> PathBuf {
    std::fs::create_dir_all(parent).unwrap();
    let like = parent.join(format!("{name}.json"));
    std::fs::write(&like, config().to_string()).unwrap();
    let out = parent.join(name);
    synth(&SynthOptions::new(like, &out), &|_, _| {}).unwrap();
    std::fs::remove_file(out.join("generation_config.json")).unwrap();
    out
}

/// The same with further tensors, under another architecture where `config` says so.
pub(crate) fn with_tensors(parent: &Path, name: &str, config: &Value, more: &[Tensor]) -> PathBuf {
    let dir = llama(parent, name);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let path = dir.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut views: BTreeMap<&str, TensorView> = parsed.iter().collect();
    for (name, dtype, shape, data) in more {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        views.insert(name, view);
    }
    let out = safetensors::serialize(views, None).unwrap();
    std::fs::write(&path, out).unwrap();
    dir
}

pub(crate) fn options() -> ConvertOptions {
    ConvertOptions {
        target: "mlp".parse().unwrap(),
        quantize: Method::Int4(QuantizeOptions {
            group: 32,
            scales: ScaleChoice::Mini {
                exponent_bits: 5,
                mantissa_bits: 5,
            },
            rule: ScaleRule::Reference,
        }),
        overwrite: true,
        jobs: 1,
    }
}

pub(crate) fn put(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Every file below `dir`, by its path from there.
pub(crate) fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => left.push(path),
                false => {
                    let name = path.strip_prefix(dir).unwrap().to_str().unwrap();
                    found.insert(name.to_owned(), std::fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}
