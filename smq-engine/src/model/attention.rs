//! Causal attention over a preallocated cache, with grouped queries and a sliding window.

use std::ops::Range;

use rayon::prelude::*;

use super::Precision;
use crate::linear::lanes::{Lanes, dispatch};
use crate::linear::{Isa, dense_product_f32};
use smq_model::ModelConfig;
use smq_model::architecture::{Multipliers, Windows};

/// Queries that share one pass over keys and values.
const BLOCK: usize = 4;
/// Below this many multiply-adds threads cost more than they bring.
const SERIAL_MAX_MACS: usize = 1 << 15;

/// Keys and values of one layer in pages of `page_tokens` positions,
/// `[pages, kv_heads, page_tokens, head_dim]` each.
///
/// Which page holds which positions of a sequence is told by a table with each use. A cache of one
/// sequence alone is a single page with room for all of it, whose table is [`ONE_PAGE`].
#[derive(Debug)]
pub(crate) struct KvCache {
    keys: Vec<f32>,
    values: Vec<f32>,
    page_tokens: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// The table of a sequence whose cache is one page.
pub(crate) const ONE_PAGE: &[u32] = &[0];

impl KvCache {
    /// Room for `pages` of `page_tokens` positions; the system hands out the memory as it is
    /// written.
    pub(crate) fn new(config: &ModelConfig, pages: usize, page_tokens: usize) -> Self {
        let (kv_heads, head_dim) = (config.kv_heads, config.head_dim);
        let zeros = || vec![0.0; pages * kv_heads * page_tokens * head_dim];
        Self {
            keys: zeros(),
            values: zeros(),
            page_tokens,
            kv_heads,
            head_dim,
        }
    }

    /// Positions that a page has room for.
    pub(crate) fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Moves the first `len` positions of a cache of one page into one with room for `page_tokens`.
    pub(crate) fn grow(&mut self, page_tokens: usize, len: usize) {
        let (old, d) = (self.page_tokens, self.head_dim);
        for side in [&mut self.keys, &mut self.values] {
            let mut bigger = vec![0.0; self.kv_heads * page_tokens * d];
            for (head, to) in bigger.chunks_exact_mut(page_tokens * d).enumerate() {
                to[..len * d].copy_from_slice(&side[head * old * d..][..len * d]);
            }
            *side = bigger;
        }
        self.page_tokens = page_tokens;
    }

    /// Stores one position's keys and values, `[kv_heads, head_dim]` each.
    pub(crate) fn store(&mut self, table: &[u32], position: usize, keys: &[f32], values: &[f32]) {
        let d = self.head_dim;
        for head in 0..self.kv_heads {
            let at = self.row(table, head, position);
            self.keys[at..at + d].copy_from_slice(&keys[head * d..(head + 1) * d]);
            self.values[at..at + d].copy_from_slice(&values[head * d..(head + 1) * d]);
        }
    }

    /// Where a head's row of a position begins.
    fn row(&self, table: &[u32], head: usize, position: usize) -> usize {
        let page = table[position / self.page_tokens] as usize;
        let row = (page * self.kv_heads + head) * self.page_tokens + position % self.page_tokens;
        row * self.head_dim
    }

    /// A head's rows of the positions in `range`: where the rows of each page that they lie in
    /// are, in order.
    fn rows(
        &self,
        table: &[u32],
        head: usize,
        range: Range<usize>,
    ) -> impl Iterator<Item = Range<usize>> {
        let first = range.start / self.page_tokens.max(1);
        let pages = first..range.end.div_ceil(self.page_tokens.max(1));
        pages.map(move |page| {
            let start = range.start.max(page * self.page_tokens);
            let end = range.end.min((page + 1) * self.page_tokens);
            let at = self.row(table, head, start);
            at..at + (end - start) * self.head_dim
        })
    }
}

/// Attention of `m` new positions, the first at `past`, whose keys and values are already stored.
///
/// `rows` holds one row of `stride` a position, its queries first, `[heads, head_dim]`.
/// `table` says which pages of the cache are the sequence's. Returns `[m, heads * head_dim]`.
pub(crate) fn attend(
    config: &ModelConfig,
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
    let block = |kv_head: usize, index: usize, out: &mut [f32]| {
        let query = |i: usize| {
            let (row, head) = (i / shared, kv_head * shared + i % shared);
            (past + row, &rows[row * stride + head * d..][..d])
        };
        attend_block(
            config,
            precision,
            (cache, table),
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
    config: &ModelConfig,
    precision: Precision,
    (cache, table): (&KvCache, &[u32]),
    kv_head: usize,
    queries: impl Iterator<Item = (usize, &'q [f32])>,
    out: &mut [f32],
) {
    let d = config.head_dim;
    let Windows::Alike(window) = config.windows;
    let n = out.len() / d;
    let mut packed = Vec::with_capacity(n * d);
    // Each query sees positions `first ..= position`.
    let mut seen = Vec::with_capacity(n);
    for (position, query) in queries {
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        seen.push(first..position + 1);
        packed.extend_from_slice(query);
    }
    let start = seen.first().map_or(0, |r| r.start);
    let end = seen.last().map_or(0, |r| r.end);
    let mut scores = vec![0.0; (end - start) * n];
    let mut rest = scores.as_mut_slice();
    let mut values = Vec::with_capacity((end - start) / cache.page_tokens.max(1) + 2);
    for rows in cache.rows(table, kv_head, start..end) {
        let (own, others) = rest.split_at_mut(rows.len() / d * n);
        dense_product_f32(Isa::best(), &cache.keys[rows.clone()], &packed, n, own);
        values.push(&cache.values[rows]);
        rest = others;
    }
    let scale = match config.architecture.multipliers {
        Multipliers::Scores => 1.0 / (d as f32).sqrt(),
    };
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
    mix(Isa::best(), &scores, &values, n, out);
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
