//! Causal attention over a preallocated cache, with grouped queries and a sliding window.

use rayon::prelude::*;

use super::Precision;
use crate::linear::lanes::{Lanes, dispatch};
use crate::linear::{Isa, dense_product_f32};
use smq_model::ModelConfig;

/// Queries that share one pass over keys and values.
const BLOCK: usize = 4;
/// Below this many multiply-adds threads cost more than they bring.
const SERIAL_MAX_MACS: usize = 1 << 15;

/// Keys and values of one layer, `[kv_heads, capacity, head_dim]` each.
#[derive(Debug)]
pub(crate) struct KvCache {
    keys: Vec<f32>,
    values: Vec<f32>,
    capacity: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl KvCache {
    /// Room for `capacity` positions; the system hands out the memory as it is written.
    pub(crate) fn new(config: &ModelConfig, capacity: usize) -> Self {
        let (kv_heads, head_dim) = (config.kv_heads, config.head_dim);
        let zeros = || vec![0.0; kv_heads * capacity * head_dim];
        Self {
            keys: zeros(),
            values: zeros(),
            capacity,
            kv_heads,
            head_dim,
        }
    }

    /// Positions it has room for.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Moves the first `len` positions into a cache with room for `capacity`.
    pub(crate) fn grow(&mut self, capacity: usize, len: usize) {
        let (old, d) = (self.capacity, self.head_dim);
        for side in [&mut self.keys, &mut self.values] {
            let mut bigger = vec![0.0; self.kv_heads * capacity * d];
            for (head, to) in bigger.chunks_exact_mut(capacity * d).enumerate() {
                to[..len * d].copy_from_slice(&side[head * old * d..][..len * d]);
            }
            *side = bigger;
        }
        self.capacity = capacity;
    }

    /// Stores one position's keys and values, `[kv_heads, head_dim]` each.
    pub(crate) fn store(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let d = self.head_dim;
        for head in 0..self.kv_heads {
            let at = (head * self.capacity + position) * d;
            self.keys[at..at + d].copy_from_slice(&keys[head * d..(head + 1) * d]);
            self.values[at..at + d].copy_from_slice(&values[head * d..(head + 1) * d]);
        }
    }

    fn rows(side: &[f32], capacity: usize, d: usize, head: usize, range: (usize, usize)) -> &[f32] {
        &side[(head * capacity + range.0) * d..(head * capacity + range.1) * d]
    }
}

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
}

/// Attention of `m` new positions, the first at `past`, whose keys and values are already stored.
///
/// `rows` holds one row of `stride` a position, its queries first, `[heads, head_dim]`.
/// Returns `[m, heads * head_dim]`.
pub(crate) fn attend(
    config: &ModelConfig,
    scoring: Scores,
    precision: Precision,
    rows: &[f32],
    stride: usize,
    cache: &KvCache,
    past: usize,
) -> Vec<f32> {
    let (d, heads) = (config.head_dim, config.heads);
    let (m, shared) = (rows.len() / stride, heads / config.kv_heads);
    // [kv_heads, m, shared, head_dim]: the queries of one kv head together, in order of position.
    let mut grouped = vec![0.0; m * heads * d];
    let block = |kv_head: usize, index: usize, out: &mut [f32]| {
        let query = |i: usize| {
            let (row, head) = (i / shared, kv_head * shared + i % shared);
            (past + row, &rows[row * stride + head * d..][..d])
        };
        attend_block(
            config.head_dim,
            scoring,
            precision,
            cache,
            kv_head,
            (index * BLOCK..index * BLOCK + out.len() / d).map(query),
            out,
        );
    };
    let per_kv_head = m * shared * d;
    if (past + m) * m * heads * d <= SERIAL_MAX_MACS {
        for (kv_head, out) in grouped.chunks_mut(per_kv_head).enumerate() {
            out.chunks_mut(BLOCK * d)
                .enumerate()
                .for_each(|(i, out)| block(kv_head, i, out));
        }
    } else {
        grouped
            .par_chunks_mut(per_kv_head)
            .enumerate()
            .for_each(|(kv_head, out)| {
                out.par_chunks_mut(BLOCK * d)
                    .enumerate()
                    .for_each(|(i, out)| block(kv_head, i, out));
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
    cache: &KvCache,
    kv_head: usize,
    queries: impl Iterator<Item = (usize, &'q [f32])>,
    out: &mut [f32],
) {
    let n = out.len() / d;
    let mut packed = Vec::with_capacity(n * d);
    // Each query sees positions `first ..= position`.
    let mut seen = Vec::with_capacity(n);
    for (position, query) in queries {
        let first = scoring
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window));
        seen.push(first..position + 1);
        packed.extend_from_slice(query);
    }
    let start = seen.first().map_or(0, |r| r.start);
    let end = seen.last().map_or(0, |r| r.end);
    let keys = KvCache::rows(&cache.keys, cache.capacity, d, kv_head, (start, end));
    let values = KvCache::rows(&cache.values, cache.capacity, d, kv_head, (start, end));
    let mut scores = vec![0.0; (end - start) * n];
    dense_product_f32(Isa::best(), keys, &packed, n, &mut scores);
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
    mix(Isa::best(), &scores, values, n, out);
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

/// `out[i, :] = sum over keys of p[key, i] * values[key, :]`; `p` is `[keys, n]`, `out` `[n, d]`.
fn mix(isa: Isa, p: &[f32], values: &[f32], n: usize, out: &mut [f32]) {
    let d = out.len() / n;
    // These are what the kernel's pointer arithmetic relies on.
    assert!(out.len() == n * d && p.len() / n * d == values.len() && p.len().is_multiple_of(n));
    run_mix(isa, p, values, n, out);
}

dispatch! { fn run_mix => mix_kernel(p: &[f32], values: &[f32], n: usize, out: &mut [f32]) }

#[inline(always)]
unsafe fn mix_kernel<L: Lanes>(p: &[f32], values: &[f32], n: usize, out: &mut [f32]) {
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

#[inline(always)]
unsafe fn mix_queries<L: Lanes, const N: usize>(p: &[f32], values: &[f32], out: &mut [f32]) {
    let d = out.len() / N;
    let keys = p.len() / N;
    let whole = d / L::COUNT * L::COUNT;
    let mut c = 0;
    while c < whole {
        // SAFETY: key < keys and c + COUNT <= d, so both reads and the writes stay inside.
        unsafe {
            let mut sums = [L::splat(0.0); N];
            for key in 0..keys {
                let v = L::load(values.as_ptr().add(key * d + c));
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = L::fma(L::splat(*p.as_ptr().add(key * N + i)), v, *sum);
                }
            }
            for (i, sum) in sums.into_iter().enumerate() {
                L::store(out.as_mut_ptr().add(i * d + c), sum);
            }
        }
        c += L::COUNT;
    }
    for c in whole..d {
        for i in 0..N {
            out[i * d + c] = (0..keys)
                .map(|key| p[key * N + i] * values[key * d + c])
                .sum();
        }
    }
}
