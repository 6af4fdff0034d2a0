//! Which matrices are multiplied as one: smq-run's CUDA engine stores those alike, and so does vLLM.

/// Projections of the same input that are multiplied as one; the last two are DeepSeek's and InternLM2's.
const FUSED: [&[&str]; 4] = [
    &["q_proj", "k_proj", "v_proj"],
    &["gate_proj", "up_proj"],
    &["q_a_proj", "kv_a_proj_with_mqa"],
    &["w1", "w3"],
];

/// Indices of `names` by product, in the order of each product's first.
#[must_use]
pub fn products(names: &[&str]) -> Vec<Vec<usize>> {
    let mut out: Vec<(String, Vec<usize>)> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let key = product(name);
        match out.iter_mut().find(|(other, _)| *other == key) {
            Some((_, members)) => members.push(index),
            None => out.push((key, vec![index])),
        }
    }
    out.into_iter().map(|(_, members)| members).collect()
}

/// A tensor's name, with the first of its fused projections in place of its own.
#[must_use]
pub fn product(name: &str) -> String {
    let parts = name.split('.').map(|part| {
        let fused = FUSED.iter().find(|fused| fused.contains(&part));
        fused.map_or(part, |fused| fused[0])
    });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    #[test]
    fn queries_keys_values_and_gate_up_are_one_each() {
        let names = [
            "model.layers.0.mlp.down_proj.weight",
            "model.layers.0.mlp.gate_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.0.self_attn.o_proj.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.v_proj.weight",
            "model.layers.1.self_attn.v_proj.weight",
            "model.layers.1.self_attn.qkv_proj.weight",
        ];
        let expected: [&[usize]; 6] = [&[0], &[1, 2], &[3, 5, 6], &[4], &[7], &[8]];
        assert_eq!(super::products(&names), expected);
    }
}
