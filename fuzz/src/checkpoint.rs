//! A checkpoint directory around the files that an input gives.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::Parts;

/// A tokenizer of three words, for targets of which the tokenizer is not the subject.
pub const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [], "normalizer": null,
"pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
"model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1, "b": 2}, "unk_token": "<unk>"}}"#;

/// Writes the files of an input into `dir`, and those of `others` that the input does not have.
pub fn write_files(dir: &Path, parts: &Parts, others: &[(&str, &[u8])]) {
    let absent = others.iter().filter(|other| parts.get(other.0).is_none());
    for (name, contents) in parts.files().chain(absent.map(|other| (other.0, other.1))) {
        std::fs::write(dir.join(name), contents).expect("the scratch file can be written");
    }
}

/// A safetensors file of bf16 tensors, all zero, of these names and shapes.
pub fn weights(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let zeros = [0; 4096];
    let views = tensors.iter().map(|(name, shape)| {
        let bytes = 2 * shape.iter().product::<usize>();
        let view = TensorView::new(Dtype::BF16, shape.to_vec(), &zeros[..bytes]);
        (*name, view.expect("the bytes are those of the shape"))
    });
    serialize(views, None).expect("tensors of one type can be written")
}
