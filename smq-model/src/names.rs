//! Which tensors a model has: their names, shapes and what they do, by its architecture.
//!
//! This is the only place that makes them from the description: the check of a checkpoint against
//! its config.json, synthetic checkpoints and both engines take them from here.

use crate::architecture::{Biases, GateUp, Norms, QkNorm, Qkv};
use crate::config::ModelConfig;

/// A tensor that a config implies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name of the tensor in the checkpoint.
    pub name: String,
    /// Row-major shape: `[out, in]` of a matrix, one dimension of a norm or a bias.
    pub shape: Vec<usize>,
    /// What the tensor does in the model.
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
    /// Name of the tensor in the checkpoint.
    pub name: String,
    /// Output features, each a row.
    pub rows: usize,
    /// Input features, each a column.
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
    /// Queries, keys and values: three matrices, or one that has the rows of all.
    pub qkv: Vec<NamedMatrix>,
    /// Weights of the norms of queries and of keys.
    pub qk_norm: Option<[NamedVector; 2]>,
    /// The attention's output projection.
    pub o: NamedMatrix,
    /// Gate and up: two matrices, or one that has the rows of both.
    pub gate_up: Vec<NamedMatrix>,
    /// The MLP's output projection.
    pub down: NamedMatrix,
    /// Whether `o` is listed before `qkv`.
    o_first: bool,
}

/// A vector of a checkpoint: its name and length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedVector {
    /// Name of the tensor in the checkpoint.
    pub name: String,
    /// Number of its elements.
    pub len: usize,
}

/// Names of a layer's norms, in the places of [`Norms`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerNorms {
    /// The norm of the input of attention.
    pub before_attention: Option<String>,
    /// The norm of the attention's output.
    pub after_attention: Option<String>,
    /// The norm of the input of the MLP.
    pub before_mlp: Option<String>,
    /// The norm of the MLP's output.
    pub after_mlp: Option<String>,
}

impl LayerNames {
    /// The names of layer `index` of a model with this config.
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
        let vectors = |names: [&str; 2], lens: [usize; 2]| {
            let of = |i: usize| NamedVector {
                name: norm(names[i]),
                len: lens[i],
            };
            Some([of(0), of(1)])
        };
        let Norms {
            before_attention,
            after_attention,
            before_mlp,
            after_mlp,
        } = c.architecture.norms;
        Self {
            norms: LayerNorms {
                before_attention: before_attention.map(norm),
                after_attention: after_attention.map(norm),
                before_mlp: before_mlp.map(norm),
                after_mlp: after_mlp.map(norm),
            },
            qk_norm: match c.architecture.qk_norm {
                QkNorm::Absent => None,
                QkNorm::PerHead(names) => vectors(names, [c.head_dim; 2]),
                QkNorm::WholeWidth(names) => vectors(names, [q_rows, kv_rows]),
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
            qk_norm,
            o,
            gate_up,
            down,
            o_first,
        } = self;
        let with_role = |role| move |m: NamedMatrix| (m, role);
        let mut attention: Vec<_> = qkv.into_iter().map(with_role(Role::AttentionIn)).collect();
        let o_at = if o_first { 0 } else { attention.len() };
        attention.insert(o_at, (o, Role::AttentionOut));
        let mut mlp: Vec<_> = gate_up.into_iter().map(with_role(Role::MlpIn)).collect();
        mlp.push((down, Role::MlpOut));
        let spec = |name, shape: &[usize], role| TensorSpec {
            name,
            shape: shape.to_vec(),
            role,
            layer: Some(layer),
        };
        let matrix = |(matrix, role): (NamedMatrix, Role)| {
            let NamedMatrix {
                name,
                rows,
                cols,
                bias,
            } = matrix;
            let bias = bias.map(|bias| spec(bias, &[rows], Role::Bias));
            [Some(spec(name, &[rows, cols], role)), bias]
        };
        let vector = |v: NamedVector| spec(v.name, &[v.len], Role::Norm);
        let mut list: Vec<_> = attention.into_iter().flat_map(matrix).flatten().collect();
        list.extend(qk_norm.into_iter().flatten().map(vector));
        list.extend(mlp.into_iter().flat_map(matrix).flatten());
        let LayerNorms {
            before_attention,
            after_attention,
            before_mlp,
            after_mlp,
        } = norms;
        let norms = [before_attention, after_attention, before_mlp, after_mlp];
        let norms = norms.into_iter().flatten();
        list.extend(norms.map(|norm| spec(norm, &[hidden], Role::Norm)));
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
