//! Checkpoints of a few tensors.
#![allow(dead_code)] // each test program uses a part

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
pub(crate) const FIRST: &str = "model-00001-of-00002.safetensors";
pub(crate) const SECOND: &str = "model-00002-of-00002.safetensors";

/// A safetensors file of f32 vectors with one element each.
pub(crate) fn weights(path: &Path, tensors: &[(&str, f32)]) {
    let bytes: BTreeMap<_, _> = tensors.iter().map(|(n, v)| (*n, v.to_le_bytes())).collect();
    let views = bytes
        .iter()
        .map(|(name, b)| (*name, TensorView::new(Dtype::F32, vec![1], b).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

pub(crate) fn index(path: &Path, map: &[(&str, &str)]) {
    let map: BTreeMap<_, _> = map.iter().copied().collect();
    let text = json!({"metadata": {"total_size": 8}, "weight_map": map}).to_string();
    std::fs::write(path, text).unwrap();
}

pub(crate) fn put(path: &Path, json: &Value) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, json.to_string()).unwrap();
}
