//! What a tensor is for, read from its name and shape.

/// Parts of names of what turns pictures or sound into embeddings, and of what joins it to the
/// language model.
const TOWERS: [&str; 10] = [
    "audio",
    "connector",
    "image",
    "img_",
    "multi_modal",
    "projector",
    "qformer",
    "resampler",
    "speech",
    "vision",
];

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A matrix that a decoder layer multiplies by.
    Linear,
    /// Such matrices of all experts in one tensor of three dimensions.
    Stacked,
    /// A matrix of a vision or audio tower.
    Tower,
    /// Rows that are looked up.
    Embedding,
    /// The projection to the vocabulary.
    Head,
    /// Factors of a norm.
    Norm,
    /// Scores of a layer's experts.
    Router,
    /// A vector, or none of these.
    Other,
}

impl Role {
    /// Of a tensor by its name and shape, where the layers of a model are numbered in its tensors'
    /// names.
    pub(crate) fn of(name: &str, shape: &[usize]) -> Self {
        let parts: Vec<&str> = name.split('.').collect();
        let (module, is_weight) = match parts.as_slice() {
            [path @ .., "weight"] => (path, true),
            path => (path, false),
        };
        let last = module.last().copied().unwrap_or_default();
        let in_layer = module.iter().any(|part| is_number(part));
        let of_experts = module
            .iter()
            .any(|p| p.contains("expert") || p.contains("moe"));
        match *shape {
            [rows, columns] => {
                if is_embedding(last) {
                    Role::Embedding
                } else if in_tower(name) {
                    Role::Tower
                } else if last.contains("norm") || last.starts_with("ln_") {
                    Role::Norm
                } else if routes(module, rows <= columns) {
                    Role::Router
                } else if is_head(last) && !in_layer {
                    Role::Head
                } else if in_layer && (is_weight || of_experts && !last.contains("bias")) {
                    Role::Linear
                } else {
                    Role::Other
                }
            }
            [_, _, _] if in_layer && !in_tower(name) => {
                let linear = last.ends_with("_proj") || last.ends_with("linear");
                match of_experts || linear {
                    true => Role::Stacked,
                    false => Role::Other,
                }
            }
            _ => Role::Other,
        }
    }
}

/// Whether the last part of a module's name is an embedding's. GPT-NeoX calls its head `embed_out`.
pub(crate) fn is_embedding(last: &str) -> bool {
    let named = ["wte", "wpe", "shared", "relative_attention_bias"].contains(&last);
    named || last.contains("embed") && last != "embed_out"
}

/// Whether a tensor is of a vision or audio tower.
pub(crate) fn in_tower(name: &str) -> bool {
    let of_tower = |part: &str| {
        let part = part.to_ascii_lowercase();
        part == "visual" || part == "vit" || TOWERS.iter().any(|word| part.contains(word))
    };
    name.split('.').any(of_tower)
}

/// A module called a gate scores experts where it has no more outputs than inputs; other gates are
/// wide.
fn routes(module: &[&str], narrow: bool) -> bool {
    let last = module.last().copied().unwrap_or_default();
    let gate = matches!(last, "gate" | "gating" | "wg") || last.ends_with("expert_gate");
    // A gate of attention is a projection like the others.
    let of_attention = module.iter().any(|part| part.contains("attn"));
    module.iter().any(|part| part.contains("router")) || gate && narrow && !of_attention
}

fn is_head(last: &str) -> bool {
    let names = ["lm_head", "embed_out", "output", "output_layer", "head"];
    names.contains(&last)
}

pub(super) fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names as transformers' models of these families save them, and what the modules are there.
    #[test]
    fn names_of_many_families() {
        let (wide, square, narrow): (&[usize], &[usize], &[usize]) =
            (&[256, 64], &[64, 64], &[8, 64]);
        let cases: &[(&str, &[usize], Role)] = &[
            (
                "model.layers.0.self_attn.q_proj.weight",
                square,
                Role::Linear,
            ),
            ("model.layers.0.self_attn.q_norm.weight", narrow, Role::Norm),
            ("model.layers.0.input_layernorm.weight", &[64], Role::Other),
            ("model.embed_tokens.weight", wide, Role::Embedding),
            ("lm_head.weight", wide, Role::Head),
            // Mixtral
            (
                "model.layers.0.block_sparse_moe.experts.7.w1.weight",
                wide,
                Role::Linear,
            ),
            (
                "model.layers.0.block_sparse_moe.gate.weight",
                narrow,
                Role::Router,
            ),
            (
                "model.layers.0.mlp.experts.gate_up_proj",
                &[8, 256, 64],
                Role::Stacked,
            ),
            (
                "model.layers.0.mlp.experts.gate_up_proj_bias",
                narrow,
                Role::Other,
            ),
            // Qwen2-MoE
            (
                "model.layers.0.mlp.shared_expert.gate_proj.weight",
                wide,
                Role::Linear,
            ),
            (
                "model.layers.0.mlp.shared_expert_gate.weight",
                &[1, 64],
                Role::Router,
            ),
            // a dense gate
            ("model.layers.0.mlp.gate.weight", wide, Role::Linear),
            // DeepSeek
            (
                "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
                square,
                Role::Linear,
            ),
            // Phi-2, GPT-NeoX, GPT-2, OPT, MPT, InternLM2, ChatGLM
            ("model.layers.0.mlp.fc1.weight", wide, Role::Linear),
            (
                "gpt_neox.layers.3.attention.query_key_value.weight",
                wide,
                Role::Linear,
            ),
            ("gpt_neox.embed_in.weight", wide, Role::Embedding),
            ("embed_out.weight", wide, Role::Head),
            ("transformer.wte.weight", wide, Role::Embedding),
            ("transformer.h.0.attn.c_attn.weight", wide, Role::Linear),
            ("transformer.h.0.ln_1.weight", square, Role::Norm),
            (
                "model.decoder.embed_positions.weight",
                wide,
                Role::Embedding,
            ),
            ("transformer.blocks.0.attn.Wqkv.weight", wide, Role::Linear),
            ("model.layers.0.feed_forward.w1.weight", wide, Role::Linear),
            ("model.tok_embeddings.weight", wide, Role::Embedding),
            ("output.weight", wide, Role::Head),
            ("transformer.output_layer.weight", wide, Role::Head),
            (
                "transformer.encoder.layers.0.self_attention.dense.weight",
                square,
                Role::Linear,
            ),
            // BLOOM's word_embeddings; T5's bias of positions
            ("word_embeddings.weight", wide, Role::Embedding),
            (
                "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                wide,
                Role::Embedding,
            ),
            // Mamba
            ("backbone.layers.0.mixer.in_proj.weight", wide, Role::Linear),
            ("backbone.layers.0.mixer.A_log", wide, Role::Other),
            (
                "backbone.layers.0.mixer.conv1d.weight",
                &[64, 1, 4],
                Role::Other,
            ),
            // DBRX, Llama 4
            (
                "transformer.blocks.0.ffn.experts.mlp.w1",
                wide,
                Role::Linear,
            ),
            (
                "transformer.blocks.0.ffn.router.layer.weight",
                narrow,
                Role::Router,
            ),
            (
                "language_model.model.layers.0.feed_forward.router.weight",
                narrow,
                Role::Router,
            ),
            // towers
            ("visual.blocks.0.mlp.gate_proj.weight", wide, Role::Tower),
            (
                "model.vision_embed_tokens.img_processor.layers.0.mlp.fc1.weight",
                wide,
                Role::Tower,
            ),
            ("multi_modal_projector.linear_1.weight", square, Role::Tower),
            ("audio_tower.layers.0.fc1.weight", wide, Role::Tower),
            (
                "model.connector.modality_projection.proj.weight",
                square,
                Role::Tower,
            ),
        ];
        for &(name, shape, expected) in cases {
            assert_eq!(Role::of(name, shape), expected, "{name}");
        }
    }
}
