//! What the fuzz targets share: where inputs are written, and mutators that know the formats.
//!
//! Hashes stop a mutator that does not know them at the first check. [`mutate_smq`] therefore takes a file
//! apart, mutates one part and puts the file together again with fitting hashes, lengths and offsets; what
//! the target gets, and what a crash leaves, is always a plain file.

mod naive;
mod safetensors;
mod smq;

use std::path::PathBuf;

pub use naive::dequantize;
pub use safetensors::mutate_safetensors;
pub use smq::{Hashes, mutate_smq};

/// Where this process may write `name`: in memory, where the system has such a directory.
pub fn scratch(name: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    let dir = parent.join(format!("smq-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the scratch directory can be made");
    dir.join(name)
}

/// The mutator's own random numbers (xorshift), from libFuzzer's seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u32) -> Self {
        Random(u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`, which is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % n
    }

    /// One of `items`, which is not empty.
    pub fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }
}

/// libFuzzer's mutations on `bytes`, which may grow by up to `growth` bytes.
pub type Mutate<'a> = &'a mut dyn FnMut(&mut Vec<u8>, usize);

/// Replaces one random scalar of a JSON value by another of its kind, or removes or doubles an item.
pub fn mutate_json(value: &mut serde_json::Value, random: &mut Random) {
    use serde_json::Value;
    let nodes = count(value);
    let mut at = random.below(nodes);
    let Some(node) = nth(value, &mut at) else {
        return;
    };
    match node {
        Value::Number(n) => {
            let old = n.as_u64().unwrap_or(0);
            let near = [
                old.wrapping_add(1),
                old.wrapping_sub(1),
                old.wrapping_mul(2),
                old / 2,
            ];
            let edges = [
                0,
                1,
                2,
                3,
                7,
                8,
                63,
                64,
                127,
                128,
                255,
                256,
                1 << 20,
                (1 << 20) + 1,
            ];
            let huge = [
                1 << 31,
                1 << 32,
                i64::MAX as u64,
                1 << 63,
                u64::MAX - 255,
                u64::MAX,
            ];
            *node = match random.below(5) {
                0 | 1 => random.pick(&near).into(),
                2 | 3 => random.pick(&edges).into(),
                _ => random.pick(&huge).into(),
            };
            if random.below(12) == 0 {
                *node = (-(old.min(300) as i64)).into();
            }
        }
        Value::String(s) => {
            let words = [
                "raw",
                "int4-e5mx",
                "int4-f16",
                "int4-f32",
                "bf16",
                "f16",
                "f32",
                "data",
                "nibbles",
                "scales",
                "",
                ".",
                "..",
                "a/b",
                "a/b/c",
                "../a",
                "additional_chat_templates/a.jinja",
                "C:a",
                "\\",
                "\u{7f}",
                "é",
                "😀",
                "a",
                "BF16",
                "F16",
                "F32",
                "I8",
                "I32",
                "I64",
                "F8_E4M3",
                "model.layers.0.mlp.up_proj.weight",
                "model.layers.18446744073709551616.w",
            ];
            *s = match random.below(8) {
                0 => "x".repeat(random.pick(&[511, 512, 513])),
                1 => s.chars().rev().collect(),
                _ => random.pick(&words).to_owned(),
            };
        }
        Value::Array(items) => {
            let twin = (!items.is_empty()).then(|| random.pick(items));
            match (random.below(4), twin) {
                (0, Some(_)) => drop(items.remove(random.below(items.len()))),
                (1, Some(twin)) => items.insert(random.below(items.len()), twin),
                (2, Some(_)) => {
                    let (i, j) = (random.below(items.len()), random.below(items.len()));
                    items.swap(i, j);
                }
                _ => items.push(random.pick(&[0u64, 1, 2, 3, 1 << 40]).into()),
            }
        }
        Value::Object(map) => {
            let keys: Vec<String> = map.keys().cloned().collect();
            if keys.is_empty() || random.below(3) == 0 {
                let names = [
                    "bias",
                    "group",
                    "dtype",
                    "exponent_bits",
                    "mantissa_bits",
                    "new",
                    "__metadata__",
                ];
                map.insert(random.pick(&names).to_owned(), random.below(12).into());
            } else {
                let value = map.remove(&random.pick(&keys));
                if random.below(2) == 0 {
                    map.insert(
                        random.pick(&["a", "b", "\u{1f}"]).to_owned(),
                        value.unwrap_or_default(),
                    );
                }
            }
        }
        other => *other = 0.into(),
    }
}

fn count(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

fn nth<'a>(value: &'a mut serde_json::Value, at: &mut usize) -> Option<&'a mut serde_json::Value> {
    use serde_json::Value;
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|v| nth(v, at)),
        Value::Object(map) => map.values_mut().find_map(|v| nth(v, at)),
        _ => None,
    }
}

/// The body of a target's `fuzz_mutator!`: `change` gets the input, its limit, random numbers and libFuzzer's
/// own mutations (`fuzzer_mutate`).
pub fn mutator(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    fuzzer_mutate: fn(&mut [u8], usize, usize) -> usize,
    change: impl FnOnce(&[u8], usize, &mut Random, Mutate) -> Vec<u8>,
) -> usize {
    let mut random = Random::new(seed);
    let mut mutate = |bytes: &mut Vec<u8>, growth: usize| {
        let size = bytes.len();
        bytes.resize((size + growth).max(1), 0);
        let limit = bytes.len();
        let new_size = fuzzer_mutate(bytes, size, limit);
        bytes.truncate(new_size);
    };
    let limit = max_size.min(data.len());
    let out = change(&data[..size], limit, &mut random, &mut mutate);
    if out.len() > limit {
        return size;
    }
    data[..out.len()].copy_from_slice(&out);
    out.len()
}
