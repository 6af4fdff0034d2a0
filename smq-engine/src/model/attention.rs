//! Causal attention over a cache, with grouped queries and a sliding window.

use std::ops::Range;

use rayon::prelude::*;

use super::Precision;
use super::cache::{Head, KvCache};
use crate::linear::lanes::{Lanes, dispatch};
use crate::linear::{Isa, dense_product_f32};
use smq_model::ModelConfig;

/// Queries that share one pass over keys and values.
const BLOCK: usize = 4;
/// Below this many multiply-adds threads cost more than they bring.
const SERIAL_MAX_MACS: usize = 1 << 15;

/// What a layer makes of the products of queries and keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scores {
    /// Latest positions that a query sees, itself included; `None` sees all.
    window: Option<usize>,
    /// Their factor.
    scale: f32,
    /// `c tanh(x / c)` of what is scaled.
    soft_cap: Option<f32>,
}

impl Scores {
    /// Of layer `layer`.
    pub(crate) fn of(config: &ModelConfig, layer: usize) -> Self {
        Self {
            window: config.windows.layer(layer),
            scale: config.multipliers.scores,
            soft_cap: config.soft_caps.scores,
        }
    }

    /// What a query at `position` sees.
    fn seen(&self, position: usize) -> Range<usize> {
        let first = |window| (position + 1).saturating_sub(window);
        self.window.map_or(0, first)..position + 1
    }
}

/// Attention of `m` new positions, the first at `past`, whose keys and values are already stored.
///
/// `rows` holds one row of `stride` a position, its queries first, `[heads, head_dim]`.
/// `table` says which pages of the cache are the sequence's. Returns `[m, heads * head_dim]`.
pub(crate) fn attend(
    config: &ModelConfig,
    scoring: Scores,
    precision: Precision,
    rows: &[f32],
    stride: usize,
    (cache, table): (&KvCache, &[u32]),
    past: usize,
) -> Vec<f32> {
    let (d, heads) = (config.head_dim, config.heads);
    let (m, shared) = (rows.len() / stride, heads / config.kv_heads);
    // [kv_heads, m, shared, head_dim]: the queries of one kv head together, in order of position.
    let mut grouped = vec![0.0; m * heads * d];
    // All that some of the queries see.
    let seen = scoring.seen(past).start..past + m;
    let head = |kv_head: usize| cache.head(table, kv_head, seen.clone());
    let block = |head: &Head<'_>, kv_head: usize, index: usize, out: &mut [f32]| {
        let query = |i: usize| {
            let (row, head) = (i / shared, kv_head * shared + i % shared);
            (past + row, &rows[row * stride + head * d..][..d])
        };
        attend_block(
            config.head_dim,
            scoring,
            precision,
            head,
            (index * BLOCK..index * BLOCK + out.len() / d).map(query),
            out,
        );
    };
    let per_kv_head = m * shared * d;
    if (past + m) * m * heads * d <= SERIAL_MAX_MACS {
        for (kv_head, out) in grouped.chunks_mut(per_kv_head).enumerate() {
            let head = head(kv_head);
            out.chunks_mut(BLOCK * d)
                .enumerate()
                .for_each(|(i, out)| block(&head, kv_head, i, out));
        }
    } else {
        grouped
            .par_chunks_mut(per_kv_head)
            .enumerate()
            .for_each(|(kv_head, out)| {
                let head = head(kv_head);
                out.par_chunks_mut(BLOCK * d)
                    .enumerate()
                    .for_each(|(i, out)| block(&head, kv_head, i, out));
            });
    }
    if m == 1 {
        return grouped;
    }
    let mut out = vec![0.0; grouped.len()];
    for (kv_head, from) in grouped.chunks_exact(per_kv_head).enumerate() {
        for (row, from) in from.chunks_exact(shared * d).enumerate() {
            out[row * heads * d + kv_head * shared * d..][..shared * d].copy_from_slice(from);
        }
    }
    out
}

/// Softmax attention of up to [`BLOCK`] queries of one kv head; `out` is `[queries, head_dim]`.
fn attend_block<'q>(
    d: usize,
    scoring: Scores,
    precision: Precision,
    head: &Head<'_>,
    queries: impl Iterator<Item = (usize, &'q [f32])>,
    out: &mut [f32],
) {
    let n = out.len() / d;
    let mut packed = Vec::with_capacity(n * d);
    // Each query sees positions `first ..= position`.
    let mut seen = Vec::with_capacity(n);
    for (position, query) in queries {
        seen.push(scoring.seen(position));
        packed.extend_from_slice(query);
    }
    let start = seen.first().map_or(0, |r| r.start);
    let end = seen.last().map_or(0, |r| r.end);
    let mut scores = vec![0.0; (end - start) * n];
    let mut rest = scores.as_mut_slice();
    for keys in head.keys(start..end) {
        let (own, others) = rest.split_at_mut(keys.len() / d * n);
        dense_product_f32(Isa::best(), keys, &packed, n, own);
        rest = others;
    }
    let mut scale = scoring.scale;
    if let Some(cap) = scoring.soft_cap {
        for score in &mut scores {
            *score = cap * (*score * scale / cap).tanh();
        }
        scale = 1.0;
    }
    for (i, seen) in seen.iter().enumerate() {
        softmax_column(
            &mut scores,
            n,
            i,
            seen.start - start..seen.end - start,
            scale,
        );
    }
    precision.round(&mut scores);
    mix(Isa::best(), &scores, &head.values(start..end), n, out);
}

/// Softmax over column `i` of `scores`, `[keys, n]`, restricted to `seen`; others become zero.
fn softmax_column(
    scores: &mut [f32],
    n: usize,
    i: usize,
    seen: std::ops::Range<usize>,
    scale: f32,
) {
    let mut max = f32::NEG_INFINITY;
    for key in seen.clone() {
        max = max.max(scores[key * n + i]);
    }
    let mut sum = 0.0;
    for (key, row) in scores.chunks_exact_mut(n).enumerate() {
        row[i] = if seen.contains(&key) {
            ((row[i] - max) * scale).exp()
        } else {
            0.0
        };
        sum += row[i];
    }
    for row in scores.chunks_exact_mut(n) {
        row[i] /= sum;
    }
}

/// `out[i, :] = sum over keys of p[key, i] * values[key, :]`; `p` is `[keys, n]`, `out` `[n, d]`,
/// and the parts of `values` are `[some of the keys, d]` each.
fn mix(isa: Isa, p: &[f32], values: &[&[f32]], n: usize, out: &mut [f32]) {
    let d = out.len() / n;
    let count: usize = values.iter().map(|part| part.len()).sum();
    // These are what the kernel's pointer arithmetic relies on.
    assert!(out.len() == n * d && p.len() / n * d == count && p.len().is_multiple_of(n));
    assert!(values.iter().all(|part| part.len().is_multiple_of(d)));
    run_mix(isa, p, values, n, out);
}

dispatch! { fn run_mix => mix_kernel(p: &[f32], values: &[&[f32]], n: usize, out: &mut [f32]) }

#[inline(always)]
unsafe fn mix_kernel<L: Lanes>(p: &[f32], values: &[&[f32]], n: usize, out: &mut [f32]) {
    // SAFETY: `mix` checked the lengths and L's instruction set is there.
    unsafe {
        match n {
            1 => mix_queries::<L, 1>(p, values, out),
            2 => mix_queries::<L, 2>(p, values, out),
            3 => mix_queries::<L, 3>(p, values, out),
            4 => mix_queries::<L, 4>(p, values, out),
            _ => unreachable!("a block has at most 4 queries"),
        }
    }
}

/// Keys are added one after another, whatever part they are in: the sum does not depend on where
/// parts begin.
#[inline(always)]
unsafe fn mix_queries<L: Lanes, const N: usize>(p: &[f32], values: &[&[f32]], out: &mut [f32]) {
    let d = out.len() / N;
    let whole = d / L::COUNT * L::COUNT;
    let mut c = 0;
    while c < whole {
        // SAFETY: a part has `keys` rows of d values, and all of them have as many as `p`;
        // c + COUNT <= d, so the reads and the writes stay inside.
        unsafe {
            let mut sums = [L::splat(0.0); N];
            let mut p = p.as_ptr();
            for part in values {
                let keys = part.len() / d;
                for key in 0..keys {
                    let v = L::load(part.as_ptr().add(key * d + c));
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum = L::fma(L::splat(*p.add(key * N + i)), v, *sum);
                    }
                }
                p = p.add(keys * N);
            }
            for (i, sum) in sums.into_iter().enumerate() {
                L::store(out.as_mut_ptr().add(i * d + c), sum);
            }
        }
        c += L::COUNT;
    }
    for c in whole..d {
        for i in 0..N {
            let rows = values.iter().flat_map(|part| part.chunks_exact(d));
            let terms = rows.zip(p.chunks_exact(N)).map(|(row, p)| p[i] * row[c]);
            out[i * d + c] = terms.sum();
        }
    }
}
