//! Opens a checkpoint of three small shards by an index that is arbitrary, and reads every tensor.
#![no_main]

use smq_fuzz::{Kind, Known, Parts, mutate_parts, scratch, weights, write_files};
use smq_model::{Checkpoint, SHARD_INDEX};

const WORDS: &[&str] = &[
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "other.safetensors",
    "model.safetensors",
    "config.json",
    "../model-00001-of-00002.safetensors",
    "/dev/null",
    ".",
    "..",
    "",
    "a\\b",
    "C:a.safetensors",
    "\u{0}",
    "a",
    "b",
    "c",
    "model.layers.0.w",
    "absent",
    "weight_map",
    "metadata",
    "total_size",
    "transformers_weights",
    "model_type",
    "x.safetensors.index.json",
    "subdirectory/model.safetensors",
];
const KNOWN: Known = &[
    (SHARD_INDEX, Kind::Json(WORDS)),
    ("config.json", Kind::Json(WORDS)),
];

smq_fuzz::target! {
    mutate: |input, limit, random, mutate| mutate_parts(KNOWN, input, limit, random, mutate),
    run: run,
}

fn run(data: &[u8]) {
    let parts = Parts::of(KNOWN, data);
    let dir = scratch();
    let first = weights(&[("a", &[2, 3]), ("model.layers.0.w", &[1])]);
    let second = weights(&[("b", &[4])]);
    // A name that the first shard has too.
    let third = weights(&[("a", &[1]), ("c", &[0])]);
    let others = [
        ("config.json", &br#"{"model_type": "fuzz"}"#[..]),
        ("model-00001-of-00002.safetensors", &first[..]),
        ("model-00002-of-00002.safetensors", &second[..]),
        ("other.safetensors", &third[..]),
    ];
    write_files(dir.path(), &parts, &others);
    let checkpoint = match Checkpoint::open(dir.path()) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    for shard in checkpoint.shards() {
        let inside = shard.path.parent() == Some(dir.path());
        assert!(inside, "{} is in the checkpoint", shard.path.display());
    }
    for tensor in checkpoint.tensors() {
        let elems: usize = tensor.shape.iter().product();
        assert_eq!(checkpoint.bytes(tensor).len(), 2 * elems);
        let found = checkpoint.tensor(&tensor.name);
        assert_eq!(found.map(|t| &t.name), Some(&tensor.name));
    }
    for (name, file) in checkpoint.absent() {
        assert!(!checkpoint.why_absent(name).is_empty());
        assert!(!file.is_empty());
    }
    let _ = (
        checkpoint.total_bytes(),
        checkpoint.notes(),
        checkpoint.inputs(),
    );
}
