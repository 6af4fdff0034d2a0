//! Which tensors a model has: their names, shapes and what they do, by its architecture.
//!
//! This is the only place that makes them from the description: the check of a checkpoint against
//! its config.json, synthetic checkpoints and both engines take them from here.

use crate::architecture::{Biases, GateUp, Norms, QkNorm, Qkv};
use crate::config::ModelConfig;

/// A tensor that a config implies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// Row-major shape: `[out, in]` of a matrix, one dimension of a norm or a bias.
    pub shape: Vec<usize>,
    /// What it does.
    pub role: Role,
    /// The layer that it is part of; `None` outside of them.
    pub layer: Option<usize>,
}

/// What a tensor does in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Looked up by token.
    Embedding,
    /// Projects to queries, keys, values.
    AttentionIn,
    /// Projects back from attention.
    AttentionOut,
    /// Projects to gate, up.
    MlpIn,
    /// Projects back from the MLP.
    MlpOut,
    /// Weight of a norm.
    Norm,
    /// Bias of a projection.
    Bias,
    /// Projects to logits; the embedding may serve as it.
    Head,
}

/// A matrix of a checkpoint: its name and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedMatrix {
    /// The tensor's name.
    pub name: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// The name of its bias, `[rows]`, where it has one.
    pub bias: Option<String>,
}

/// The tensors of one decoder layer. Projections that a family fuses are one matrix, separate ones
/// several to be stacked in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerNames {
    /// Weights of the norms, `[hidden]` each.
    pub norms: LayerNorms,
    /// Queries, keys, values.
    pub qkv: Vec<NamedMatrix>,
    /// The attention's output projection.
    pub o: NamedMatrix,
    /// Gate, up.
    pub gate_up: Vec<NamedMatrix>,
    /// The MLP's output projection.
    pub down: NamedMatrix,
    /// Whether `o` is listed before `qkv`.
    o_first: bool,
}

/// Names of a layer's norms, as [`Norms`] places them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerNorms {
    /// As [`Norms::BeforeBlocks`].
    BeforeBlocks {
        /// Before attention.
        attention: String,
        /// Before the MLP.
        mlp: String,
    },
}

impl LayerNames {
    /// Of layer `index`.
    #[must_use]
    pub fn of(c: &ModelConfig, index: usize) -> Self {
        let part = |part: &str| format!("model.layers.{index}.{part}");
        let norm = |name: &str| part(name) + ".weight";
        let matrix = |name: &str, rows, cols, bias: bool| NamedMatrix {
            name: part(name) + ".weight",
            rows,
            cols,
            bias: bias.then(|| part(name) + ".bias"),
        };
        let (q_rows, kv_rows) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let Biases { qkv, o, mlp } = c.biases;
        let names = &c.architecture.projections;
        let QkNorm::Absent = c.architecture.qk_norm;
        Self {
            norms: match c.architecture.norms {
                Norms::BeforeBlocks { attention, mlp } => LayerNorms::BeforeBlocks {
                    attention: norm(attention),
                    mlp: norm(mlp),
                },
            },
            qkv: match names.qkv {
                Qkv::Fused(name) => vec![matrix(name, q_rows + 2 * kv_rows, c.hidden, qkv)],
                Qkv::Apart([q, k, v]) => vec![
                    matrix(q, q_rows, c.hidden, qkv),
                    matrix(k, kv_rows, c.hidden, qkv),
                    matrix(v, kv_rows, c.hidden, qkv),
                ],
            },
            o: matrix(names.o, c.hidden, q_rows, o),
            gate_up: match names.gate_up {
                GateUp::Fused(name) => vec![matrix(name, 2 * c.intermediate, c.hidden, mlp)],
                GateUp::Apart(names) => names
                    .map(|name| matrix(name, c.intermediate, c.hidden, mlp))
                    .into(),
            },
            down: matrix(names.down, c.hidden, c.intermediate, mlp),
            o_first: names.o_first,
        }
    }

    /// Its tensors in the order in which the model lists them (PyTorch's `state_dict()`).
    fn tensors(self, hidden: usize, layer: usize) -> Vec<TensorSpec> {
        // A field that is not taken here would be a tensor that nobody writes or checks.
        let Self {
            norms,
            qkv,
            o,
            gate_up,
            down,
            o_first,
        } = self;
        let with_role = |role| move |m: NamedMatrix| (m, role);
        let mut matrices: Vec<_> = qkv.into_iter().map(with_role(Role::AttentionIn)).collect();
        let o_at = if o_first { 0 } else { matrices.len() };
        matrices.insert(o_at, (o, Role::AttentionOut));
        matrices.extend(gate_up.into_iter().map(with_role(Role::MlpIn)));
        matrices.push((down, Role::MlpOut));
        let spec = |name, shape: &[usize], role| TensorSpec {
            name,
            shape: shape.to_vec(),
            role,
            layer: Some(layer),
        };
        let mut list = Vec::new();
        for (matrix, role) in matrices {
            let NamedMatrix {
                name,
                rows,
                cols,
                bias,
            } = matrix;
            list.push(spec(name, &[rows, cols], role));
            list.extend(bias.map(|bias| spec(bias, &[rows], Role::Bias)));
        }
        let LayerNorms::BeforeBlocks { attention, mlp } = norms;
        list.extend([attention, mlp].map(|norm| spec(norm, &[hidden], Role::Norm)));
        list
    }
}

/// All tensors of a model, in the order of its `state_dict()`.
pub(crate) fn tensors(c: &ModelConfig) -> Vec<TensorSpec> {
    let outside = |name: &str, shape: &[usize], role| TensorSpec {
        name: name.to_owned(),
        shape: shape.to_vec(),
        role,
        layer: None,
    };
    let table = [c.vocab, c.hidden];
    let mut list = vec![outside(c.embedding(), &table, Role::Embedding)];
    for layer in 0..c.layers {
        list.extend(LayerNames::of(c, layer).tensors(c.hidden, layer));
    }
    list.push(outside(c.architecture.last_norm, &[c.hidden], Role::Norm));
    list.extend(c.own_head().map(|head| outside(head, &table, Role::Head)));
    list
}
