//! A decoder layer: its weights, and the steps between its products.
//!
//! The steps are all that a layer computes but the products themselves, so that whoever puts other
//! weights in a product's place (`stages.rs`) takes the same steps.

use std::slice;

use rayon::prelude::*;
use smq_model::architecture::NormWeight;
use smq_model::{LayerNames, ModelConfig, NamedMatrix, NamedVector, Source};

use super::attention::{self, Scores};
use super::cache::KvCache;
use super::norm::rms_norm;
use super::{Precision, Rows, mlp};
use crate::error::Result;
use crate::linear::{self, Matrix, load_vector};

/// Projections that a family fuses are one matrix, separate ones several to be stacked.
#[derive(Debug)]
pub(super) struct Layer<'a> {
    /// Which one it is.
    index: usize,
    scores: Scores,
    before_attention: Option<Vec<f32>>,
    pub(super) qkv: Projection<'a>,
    qk_norm: Option<QkNorms>,
    pub(super) o: Projection<'a>,
    after_attention: Option<Vec<f32>>,
    before_mlp: Option<Vec<f32>>,
    pub(super) gate_up: Projection<'a>,
    pub(super) down: Projection<'a>,
    after_mlp: Option<Vec<f32>>,
}

/// Matrices that share their input, to be stacked.
#[derive(Debug)]
pub(super) struct Projection<'a> {
    pub(super) matrices: Vec<Matrix<'a>>,
    /// Of all their rows.
    bias: Option<Vec<f32>>,
}

/// Norms of queries and keys.
#[derive(Debug)]
struct QkNorms {
    /// A weight as long as what is normalized at a time: a head, or all heads of a position.
    queries: Vec<f32>,
    keys: Vec<f32>,
}

impl<'a> Projection<'a> {
    fn load(source: &'a Source, precision: Precision, list: &[NamedMatrix]) -> Result<Self> {
        let matrix = |m: &NamedMatrix| {
            let matrix = Matrix::load(source, &m.name, [m.rows, m.cols])?;
            Ok(precision.weights(matrix))
        };
        let mut bias = Vec::new();
        for m in list {
            if let Some(name) = &m.bias {
                bias.extend(load_vector(source, name, m.rows)?);
            }
        }
        Ok(Self {
            matrices: list.iter().map(matrix).collect::<Result<_>>()?,
            bias: (!bias.is_empty()).then_some(bias),
        })
    }

    fn product(&self, x: &[f32], m: usize) -> Vec<f32> {
        linear::stacked(x, m, &self.matrices)
    }

    /// Adds the bias to what the products gave.
    fn add_bias(&self, product: &mut [f32]) {
        if let Some(bias) = &self.bias {
            for row in product.chunks_exact_mut(bias.len()) {
                add(row, bias, 1.0);
            }
        }
    }
}

impl<'a> Layer<'a> {
    pub(super) fn load(
        source: &'a Source,
        precision: Precision,
        c: &ModelConfig,
        index: usize,
    ) -> Result<Self> {
        let names = LayerNames::of(c, index);
        let norm = |name: &Option<String>| {
            let name = name.as_deref();
            name.map(|name| load_norm(source, name, c.hidden, c))
                .transpose()
        };
        let vector = |v: &NamedVector| load_norm(source, &v.name, v.len, c);
        let qk_norm = match &names.qk_norm {
            None => None,
            Some([queries, keys]) => Some(QkNorms {
                queries: vector(queries)?,
                keys: vector(keys)?,
            }),
        };
        let projection = |list: &[NamedMatrix]| Projection::load(source, precision, list);
        Ok(Self {
            index,
            scores: Scores::of(c, index),
            before_attention: norm(&names.norms.before_attention)?,
            qkv: projection(&names.qkv)?,
            qk_norm,
            o: projection(slice::from_ref(&names.o))?,
            after_attention: norm(&names.norms.after_attention)?,
            before_mlp: norm(&names.norms.before_mlp)?,
            gate_up: projection(&names.gate_up)?,
            down: projection(slice::from_ref(&names.down))?,
            after_mlp: norm(&names.norms.after_mlp)?,
        })
    }

    /// Attention and MLP, each added to `x`, `[m, hidden]`: the rows of each part in turn.
    pub(super) fn forward(
        &self,
        c: &ModelConfig,
        precision: Precision,
        x: &mut [f32],
        cache: &mut KvCache,
        parts: &[Rows<'_>],
    ) {
        let m = x.len() / c.hidden;
        let h = self.enter_attention(c, precision, x);
        let mut qkv = self.qkv.product(&h, m);
        let attended = self.attended(c, precision, &mut qkv, cache, parts);
        self.leave_attention(c, x, self.o.product(&attended, m));
        let h = self.enter_mlp(c, precision, x);
        let mut gate_up = self.gate_up.product(&h, m);
        let activated = self.activated(c, precision, &mut gate_up);
        self.leave_mlp(c, x, self.down.product(&activated, m));
    }

    /// The input of qkv, `[m, hidden]`.
    pub(super) fn enter_attention(
        &self,
        c: &ModelConfig,
        precision: Precision,
        x: &[f32],
    ) -> Vec<f32> {
        input(c, precision, x, self.before_attention.as_deref())
    }

    /// The input of gate and up, `[m, hidden]`.
    pub(super) fn enter_mlp(&self, c: &ModelConfig, precision: Precision, x: &[f32]) -> Vec<f32> {
        input(c, precision, x, self.before_mlp.as_deref())
    }

    /// The input of o, `[m, heads * head_dim]`, from what the products for queries, keys and values
    /// gave, one row a position, the parts' one after another; keys and values go into the cache.
    pub(super) fn attended(
        &self,
        c: &ModelConfig,
        precision: Precision,
        qkv: &mut [f32],
        cache: &mut KvCache,
        parts: &[Rows<'_>],
    ) -> Vec<f32> {
        self.qkv.add_bias(qkv);
        precision.round(qkv);
        let (q_len, kv_len) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let stride = q_len + 2 * kv_len;
        let mut rows = qkv.chunks_exact_mut(stride);
        for part in parts {
            let rotation = part.rope.of_layer(c, self.index, part.past);
            for (i, row) in (0..part.count).zip(&mut rows) {
                if let Some(norms) = &self.qk_norm {
                    let (queries, rest) = row.split_at_mut(q_len);
                    norm_in_place(queries, &norms.queries, c.rms_norm_eps);
                    norm_in_place(&mut rest[..kv_len], &norms.keys, c.rms_norm_eps);
                }
                if let Some(rotation) = rotation {
                    // Queries and keys lie side by side, so all their heads are rotated in one go.
                    for head in row[..q_len + kv_len].chunks_exact_mut(c.head_dim) {
                        rotation.rotate(head, i);
                    }
                }
                precision.round(&mut row[..q_len + kv_len]);
                let (keys, values) = row[q_len..].split_at(kv_len);
                cache.store(part.table, part.past + i, keys, values);
            }
        }
        let mut rest = &*qkv;
        let each = parts.iter().map(|part| {
            let (own, others) = rest.split_at(part.count * stride);
            rest = others;
            (part, own)
        });
        let each: Vec<_> = each.collect();
        let cache = &*cache;
        let attend = |(part, rows): (&Rows<'_>, &[f32])| {
            let place = (cache, part.table);
            attention::attend(c, self.scores, precision, rows, stride, place, part.past)
        };
        let mut attended = match each[..] {
            [only] => attend(only),
            _ => {
                let parts: Vec<_> = each.into_par_iter().map(attend).collect();
                parts.concat()
            }
        };
        precision.round(&mut attended);
        attended
    }

    /// Adds what the product of o gave to the residual stream.
    pub(super) fn leave_attention(&self, c: &ModelConfig, x: &mut [f32], mut product: Vec<f32>) {
        self.o.add_bias(&mut product);
        leave_block(c, x, product, self.after_attention.as_deref());
    }

    /// The input of down, `[m, intermediate]`, from what the products for gate and up gave.
    pub(super) fn activated(
        &self,
        c: &ModelConfig,
        precision: Precision,
        gate_up: &mut [f32],
    ) -> Vec<f32> {
        self.gate_up.add_bias(gate_up);
        precision.round(gate_up);
        let mut activated = mlp::gated(c.activation, gate_up, c.intermediate);
        precision.round(&mut activated);
        activated
    }

    /// Adds what the product of down gave to the residual stream.
    pub(super) fn leave_mlp(&self, c: &ModelConfig, x: &mut [f32], mut product: Vec<f32>) {
        self.down.add_bias(&mut product);
        leave_block(c, x, product, self.after_mlp.as_deref());
    }
}

/// The input of a block's first products: the residual stream, through a norm where there is one.
fn input(c: &ModelConfig, precision: Precision, x: &[f32], norm: Option<&[f32]>) -> Vec<f32> {
    let mut h = match norm {
        Some(weight) => rms_norm(x, weight, c.rms_norm_eps),
        None => x.to_vec(),
    };
    precision.round(&mut h);
    h
}

/// Adds a block's output to the residual stream, through a norm where there is one.
fn leave_block(c: &ModelConfig, x: &mut [f32], product: Vec<f32>, norm: Option<&[f32]>) {
    let output = match norm {
        Some(weight) => rms_norm(&product, weight, c.rms_norm_eps),
        None => product,
    };
    add(x, &output, c.multipliers.residual);
}

fn norm_in_place(values: &mut [f32], weight: &[f32], eps: f32) {
    values.copy_from_slice(&rms_norm(values, weight, eps));
}

/// What a norm multiplies with, `[len]`.
pub(crate) fn load_norm(
    source: &Source,
    name: &str,
    len: usize,
    c: &ModelConfig,
) -> Result<Vec<f32>> {
    let mut weight = load_vector(source, name, len)?;
    match c.architecture.norm_weight {
        NormWeight::AsStored => {}
        NormWeight::OnePlus => weight.iter_mut().for_each(|w| *w += 1.0),
    }
    Ok(weight)
}

fn add(x: &mut [f32], y: &[f32], factor: f32) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y * factor;
    }
}
