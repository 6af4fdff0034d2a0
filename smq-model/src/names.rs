//! Which tensors a layer has, by architecture.

use crate::config::{Architecture, ModelConfig};

/// A matrix of a checkpoint: its name and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedMatrix {
    /// The tensor's name.
    pub name: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
}

/// The tensors of one decoder layer. Projections that a family fuses are one matrix, separate ones several to be
/// stacked in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerNames {
    /// Weight of the norm before attention, `[hidden]`.
    pub input_norm: String,
    /// Queries, keys, values.
    pub qkv: Vec<NamedMatrix>,
    /// The attention's output projection.
    pub o: NamedMatrix,
    /// Weight of the norm before the MLP, `[hidden]`.
    pub post_attention_norm: String,
    /// Gate, up.
    pub gate_up: Vec<NamedMatrix>,
    /// The MLP's output projection.
    pub down: NamedMatrix,
}

/// The embedding, `[vocab, hidden]`.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Weight of the last norm, `[hidden]`.
pub const NORM: &str = "model.norm.weight";
/// The head, `[vocab, hidden]`, where it is not the embedding.
pub const HEAD: &str = "lm_head.weight";

impl LayerNames {
    /// Of layer `index`.
    #[must_use]
    pub fn of(c: &ModelConfig, index: usize) -> Self {
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        let matrix = |part: &str, rows, cols| NamedMatrix {
            name: name(part),
            rows,
            cols,
        };
        let (q_rows, kv_rows) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let (qkv, gate_up) = match c.architecture {
            Architecture::Phi3 => (
                vec![matrix("self_attn.qkv_proj", q_rows + 2 * kv_rows, c.hidden)],
                vec![matrix("mlp.gate_up_proj", 2 * c.intermediate, c.hidden)],
            ),
            Architecture::Llama => (
                vec![
                    matrix("self_attn.q_proj", q_rows, c.hidden),
                    matrix("self_attn.k_proj", kv_rows, c.hidden),
                    matrix("self_attn.v_proj", kv_rows, c.hidden),
                ],
                vec![
                    matrix("mlp.gate_proj", c.intermediate, c.hidden),
                    matrix("mlp.up_proj", c.intermediate, c.hidden),
                ],
            ),
        };
        Self {
            input_norm: name("input_layernorm"),
            qkv,
            o: matrix("self_attn.o_proj", c.hidden, q_rows),
            post_attention_norm: name("post_attention_layernorm"),
            gate_up,
            down: matrix("mlp.down_proj", c.hidden, c.intermediate),
        }
    }
}
