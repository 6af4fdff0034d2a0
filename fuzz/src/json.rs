//! Mutates JSON values.

use serde_json::{Value, json};

use crate::Random;

/// Strings that mean something in the index of a .smq file or the header of a safetensors file.
pub(crate) const STORAGE: [&str; 32] = [
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

/// Replaces one random scalar of a JSON value by another of its kind (a string mostly by one of
/// `words`, of which there is at least one), or removes or doubles an item.
pub(crate) fn mutate_json(value: &mut Value, random: &mut Random, words: &[&str]) {
    let nodes = count(value);
    let mut at = random.below(nodes);
    let Some(node) = nth(value, &mut at) else {
        return;
    };
    match node {
        Value::Number(n) if n.is_f64() && random.below(2) == 0 => {
            *node = random
                .pick(&[0.0, -0.0, 0.5, -1.0, 1e-40, 1e30, 1e39, 1e308])
                .into();
        }
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
            *s = match random.below(8) {
                0 => "x".repeat(random.pick(&[511, 512, 513])),
                1 => s.chars().rev().collect(),
                _ => random.pick(words).to_owned(),
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
                let key = match random.below(2) {
                    0 => random.pick(&names),
                    _ => random.pick(words),
                };
                let small = random.below(12).into();
                let text = random.pick(words).into();
                let (list, map_of_one) = (json!([0.5, "a"]), json!({ "a": 1 }));
                let any = [small, text, list, map_of_one, Value::Null, true.into()];
                map.insert(key.to_owned(), random.pick(&any));
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
        Value::Null | Value::Bool(_) => {
            let any = [
                0.into(),
                true.into(),
                false.into(),
                Value::Null,
                json!([]),
                json!({}),
            ];
            *node = random.pick(&any);
        }
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

fn nth<'a>(value: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
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
