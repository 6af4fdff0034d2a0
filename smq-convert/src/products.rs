//! Which matrices are multiplied as one: smq-run's CUDA engine stores those alike, and so does
//! vLLM.

use std::collections::HashMap;

use smq_model::architecture::{ARCHITECTURES, GateUp, Qkv};

/// DeepSeek's and InternLM2's, which smq-run does not run but vLLM does.
const ELSEWHERE: [&[&str]; 2] = [&["q_a_proj", "kv_a_proj_with_mqa"], &["w1", "w3"]];

/// Projections of the same input that are multiplied as one, such as `self_attn.q_proj` and its
/// like.
fn fused() -> impl Iterator<Item = &'static [&'static str]> {
    let known = ARCHITECTURES.iter().flat_map(|architecture| {
        let names = &architecture.projections;
        let qkv = match &names.qkv {
            Qkv::Apart(names) => names.as_slice(),
            Qkv::Fused(_) => &[],
        };
        let gate_up = match &names.gate_up {
            GateUp::Apart(names) => names.as_slice(),
            GateUp::Fused(_) => &[],
        };
        [qkv, gate_up]
    });
    known.chain(ELSEWHERE)
}

/// The last part of a name, such as `q_proj` of `self_attn.q_proj`.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Indices of `names` by product, in the order of each product's first.
#[must_use]
pub(crate) fn products(names: &[&str]) -> Vec<Vec<usize>> {
    let mut out: Vec<Vec<usize>> = Vec::new();
    let mut places = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        let place = *places.entry(product(name)).or_insert(out.len());
        match out.get_mut(place) {
            Some(members) => members.push(index),
            None => out.push(vec![index]),
        }
    }
    out
}

/// A tensor's name, with the first of its fused projections in place of its own.
#[must_use]
pub fn product(name: &str) -> String {
    let parts = name.split('.').map(|part| {
        let fused = fused().find(|names| names.iter().any(|name| last(name) == part));
        fused
            .and_then(|names| names.first())
            .map_or(part, |first| last(first))
    });
    parts.collect::<Vec<_>>().join(".")
}

/// A tensor's name with stars for its numbers: what the same matrices of all layers have in common.
#[must_use]
pub fn kind(name: &str) -> String {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts = name.split('.');
    let parts = parts.map(|part| if number(part) { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_kind_is_of_all_layers() {
        for (name, kind) in [
            (
                "model.layers.11.mlp.up_proj.weight",
                "model.layers.*.mlp.up_proj.weight",
            ),
            ("model.layers.0.experts.3.w1", "model.layers.*.experts.*.w1"),
            ("lm_head.weight", "lm_head.weight"),
        ] {
            assert_eq!(super::kind(name), kind);
        }
    }

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
