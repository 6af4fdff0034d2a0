//! The cache of keys and values on a CPU.

use std::cell::Cell;
use std::ops::Range;

use crate::kv::{Bytes, KvCacheFormat, KvCode, decode, encode};
use smq_model::ModelConfig;

/// Keys and values of one layer in pages of `page_tokens` positions,
/// `[pages, kv_heads, page_tokens]` rows of `head_dim` elements each.
///
/// Which page holds which positions of a sequence is told by a table with each use. A cache of one
/// sequence alone is a single page with room for all of it, whose table is [`ONE_PAGE`].
#[derive(Debug)]
pub(crate) struct KvCache {
    keys: Side,
    values: Side,
    format: KvCacheFormat,
    page_tokens: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// The table of a sequence whose cache is one page.
pub(crate) const ONE_PAGE: &[u32] = &[0];

/// Rows of keys, or of values: of f32 the elements, of any other format codes and scales.
#[derive(Debug)]
struct Side {
    elements: Vec<f32>,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

/// How much of each a row has.
#[derive(Debug, Clone, Copy)]
struct Widths {
    elements: usize,
    row: Bytes,
}

impl Side {
    /// Zeros, of which the system hands out the memory as it is written.
    fn new(widths: Widths, rows: usize) -> Self {
        Self {
            elements: vec![0.0; rows * widths.elements],
            codes: vec![0; rows * widths.row.codes],
            scales: vec![0; rows * widths.row.scales],
        }
    }

    /// Moves the first `len` of each head's `old` rows to where they are among `new` ones.
    fn grow(&mut self, widths: Widths, heads: usize, [old, new, len]: [usize; 3]) {
        fn copy<T: Copy>(to: &mut [T], from: &[T], [old, new, len]: [usize; 3]) {
            for (head, to) in to.chunks_exact_mut(new.max(1)).enumerate() {
                to[..len].copy_from_slice(&from[head * old..][..len]);
            }
        }
        let mut bigger = Self::new(widths, heads * new);
        let counts = |width: usize| [old * width, new * width, len * width];
        copy(
            &mut bigger.elements,
            &self.elements,
            counts(widths.elements),
        );
        copy(&mut bigger.codes, &self.codes, counts(widths.row.codes));
        copy(&mut bigger.scales, &self.scales, counts(widths.row.scales));
        *self = bigger;
    }
}

impl KvCache {
    /// Room for `pages` of `page_tokens` positions.
    pub(crate) fn new(
        config: &ModelConfig,
        format: KvCacheFormat,
        pages: usize,
        page_tokens: usize,
    ) -> Self {
        let (kv_heads, head_dim) = (config.kv_heads, config.head_dim);
        let side = || Side::new(widths(format, head_dim), pages * kv_heads * page_tokens);
        Self {
            keys: side(),
            values: side(),
            format,
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
        let widths = widths(self.format, self.head_dim);
        let counts = [self.page_tokens, page_tokens, len];
        self.keys.grow(widths, self.kv_heads, counts);
        self.values.grow(widths, self.kv_heads, counts);
        self.page_tokens = page_tokens;
    }

    /// Stores one position's keys and values, `[kv_heads, head_dim]` each.
    pub(crate) fn store(&mut self, table: &[u32], position: usize, keys: &[f32], values: &[f32]) {
        let d = self.head_dim;
        let Widths { elements, row } = widths(self.format, d);
        for head in 0..self.kv_heads {
            let at = self.row(table, head, position);
            for (side, from) in [(&mut self.keys, keys), (&mut self.values, values)] {
                let from = &from[head * d..][..d];
                match self.format {
                    KvCacheFormat::F32 => {
                        side.elements[at * elements..][..d].copy_from_slice(from);
                    }
                    KvCacheFormat::Coded(format) => encode(
                        format,
                        from,
                        &mut side.codes[at * row.codes..][..row.codes],
                        &mut side.scales[at * row.scales..][..row.scales],
                    ),
                }
            }
        }
    }

    /// Which row is a head's of a position.
    fn row(&self, table: &[u32], head: usize, position: usize) -> usize {
        let page = table[position / self.page_tokens] as usize;
        (page * self.kv_heads + head) * self.page_tokens + position % self.page_tokens
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
            at..at + (end - start)
        })
    }

    /// A head's rows of the positions in `range`, ready to be read.
    pub(crate) fn head<'c>(
        &'c self,
        table: &'c [u32],
        head: usize,
        range: Range<usize>,
    ) -> Head<'c> {
        let widened = match self.format {
            KvCacheFormat::F32 => None,
            KvCacheFormat::Coded(format) => Some(self.widened(format, table, head, range)),
        };
        Head {
            cache: self,
            table,
            head,
            widened,
        }
    }

    fn widened(&self, format: KvCode, table: &[u32], head: usize, range: Range<usize>) -> Widened {
        let (d, row) = (self.head_dim, format.row(self.head_dim));
        let count = range.len() * d;
        let mut elements = SCRATCH.take();
        if elements.len() < 2 * count {
            elements = vec![0.0; 2 * count];
        }
        let (keys, values) = elements[..2 * count].split_at_mut(count);
        for (side, mut out) in [(&self.keys, keys), (&self.values, values)] {
            for rows in self.rows(table, head, range.clone()) {
                let (own, rest) = out.split_at_mut(rows.len() * d);
                let codes = &side.codes[rows.start * row.codes..rows.end * row.codes];
                let scales = &side.scales[rows.start * row.scales..rows.end * row.scales];
                decode(format, d, codes, scales, own);
                out = rest;
            }
        }
        Widened {
            first: range.start,
            count,
            elements,
        }
    }
}

/// A head's keys and values of some positions.
pub(crate) struct Head<'c> {
    cache: &'c KvCache,
    table: &'c [u32],
    head: usize,
    /// What is not stored as f32.
    widened: Option<Widened>,
}

/// Keys, then as many elements of values, from position `first` on.
struct Widened {
    first: usize,
    count: usize,
    elements: Vec<f32>,
}

thread_local! {
    /// What a head was widened into last: memory that the system has handed out already.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl Drop for Widened {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.elements));
    }
}

impl Head<'_> {
    /// Keys of the positions in `range`, in parts of `[some of them, head_dim]`.
    pub(crate) fn keys(&self, range: Range<usize>) -> Vec<&[f32]> {
        self.parts(&self.cache.keys, 0, range)
    }

    /// Values of the positions in `range`, in the same parts.
    pub(crate) fn values(&self, range: Range<usize>) -> Vec<&[f32]> {
        let keys = self.widened.as_ref().map_or(0, |widened| widened.count);
        self.parts(&self.cache.values, keys, range)
    }

    fn parts<'h>(&'h self, side: &'h Side, offset: usize, range: Range<usize>) -> Vec<&'h [f32]> {
        let d = self.cache.head_dim;
        match &self.widened {
            Some(widened) => {
                let at = offset + (range.start - widened.first) * d;
                vec![&widened.elements[at..at + range.len() * d]]
            }
            None => {
                let rows = self.cache.rows(self.table, self.head, range);
                let elements = |rows: Range<usize>| &side.elements[rows.start * d..rows.end * d];
                rows.map(elements).collect()
            }
        }
    }
}

fn widths(format: KvCacheFormat, head_dim: usize) -> Widths {
    match format {
        KvCacheFormat::F32 => Widths {
            elements: head_dim,
            row: Bytes::default(),
        },
        KvCacheFormat::Coded(format) => Widths {
            elements: 0,
            row: format.row(head_dim),
        },
    }
}
