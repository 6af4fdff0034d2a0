//! Mutates safetensors files: the JSON header and the data apart, the length before them fitted.

use serde_json::Value;

use crate::json::{STORAGE, mutate_json};
use crate::{Mutate, Random};

/// Mutates a safetensors file of at most `limit` bytes; one that cannot be taken apart is mutated
/// as bytes.
pub fn mutate_safetensors(
    file: &[u8],
    limit: usize,
    random: &mut Random,
    mutate: Mutate,
) -> Vec<u8> {
    let whole = |mutate: Mutate| {
        let mut bytes = file.to_vec();
        mutate(&mut bytes, 64);
        bytes
    };
    let choice = random.below(12);
    let parts = file.split_first_chunk::<8>().and_then(|(length, rest)| {
        let length = u64::from_le_bytes(*length);
        (length <= rest.len() as u64).then(|| rest.split_at(length as usize))
    });
    let (Some((header, data)), true) = (parts, choice > 0) else {
        return whole(mutate);
    };
    let (mut header, mut data) = (header.to_vec(), data.to_vec());
    let parsed = serde_json::from_slice::<Value>(&header);
    match (choice, parsed) {
        (1 | 2, _) => mutate(&mut header, 64),
        (3..=5, Ok(mut value)) => {
            for _ in 0..1 + random.below(3) {
                mutate_json(&mut value, random, &STORAGE);
            }
            if random.below(2) == 0 {
                fit(&mut value, &mut data);
            }
            header = value.to_string().into_bytes();
        }
        (6..=8, Ok(mut value)) => {
            reshape(&mut value, random);
            fit(&mut value, &mut data);
            header = value.to_string().into_bytes();
        }
        _ => {
            let length = data.len();
            mutate(&mut data, 16);
            if random.below(4) > 0 {
                data.resize(length, 0x3c);
            }
        }
    }
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(data);
    if out.len() > limit {
        file.to_vec()
    } else {
        out
    }
}

/// Another name, shape or element type for one tensor, or another tensor.
fn reshape(value: &mut Value, random: &mut Random) {
    let Value::Object(map) = value else { return };
    let names = [
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.10.mlp.down_proj.weight",
        "model.layers.2.self_attn.q_proj.weight",
        "lm_head.weight",
        "a.01.b",
        "a.1.b",
        "é",
        "m.qweight",
        "m.weight_packed",
        "m.weight_scale",
        "m.scales",
        "m.weight",
    ];
    let dims = [0, 1, 2, 3, 5, 8, 16, 31, 33, 64, 129];
    let shape: Vec<usize> = match random.below(4) {
        0 => (0..random.below(10))
            .map(|_| random.pick(&[0, 1, 2, 3]))
            .collect(),
        _ => vec![random.pick(&dims[..6]), random.pick(&dims)],
    };
    let keys: Vec<String> = map.keys().cloned().collect();
    if keys.len() > 8 || (random.below(3) == 0 && !keys.is_empty()) {
        map.remove(&random.pick(&keys));
    }
    let entry = serde_json::json!({
        "dtype": random.pick(&["BF16", "BF16", "F16", "F32", "I32", "I64", "I8"]),
        "shape": shape,
        "data_offsets": [0, 0],
    });
    map.insert(random.pick(&names).to_owned(), entry);
}

/// Offsets without gaps and data of their length, as far as the entries are well formed and small.
fn fit(value: &mut Value, data: &mut Vec<u8>) {
    let Value::Object(map) = value else { return };
    let mut end = 0usize;
    for (_, entry) in map.iter_mut().filter(|(name, _)| *name != "__metadata__") {
        if !entry.is_object() {
            return;
        }
        let size = match entry["dtype"].as_str() {
            Some("F64" | "I64") => 8,
            Some("F32" | "I32") => 4,
            Some("I8") => 1,
            _ => 2,
        };
        let dims = entry["shape"].as_array().into_iter().flatten();
        let elems = dims.fold(1u64, |n, d| n.saturating_mul(d.as_u64().unwrap_or(1)));
        if elems > 1 << 12 {
            return;
        }
        let start = end;
        end += elems as usize * size;
        entry["data_offsets"] = serde_json::json!([start, end]);
    }
    let pool: Vec<u8> = if data.is_empty() {
        vec![0x3f, 0x80]
    } else {
        data.clone()
    };
    *data = pool.iter().copied().cycle().take(end).collect();
}
