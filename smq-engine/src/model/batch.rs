//! Many sequences at once: their positions go through the products together, so that weights are
//! read once for all of them, and each attends to its own pages.

use super::cache::KvCache;
use super::rope::RopeTables;
use super::{Decoder, Rows};
use crate::error::Result;
use crate::kv::KvCacheFormat;
use smq_model::ModelConfig;

/// Keys and values of many sequences.
#[derive(Debug)]
pub(crate) struct Arena {
    /// One a layer.
    caches: Vec<KvCache>,
    /// For LongRoPE's short factors and for its long ones.
    ropes: [RopeTables; 2],
}

impl Arena {
    /// An arena of `pages` of `page_tokens` positions.
    pub(crate) fn new(
        config: &ModelConfig,
        format: KvCacheFormat,
        pages: usize,
        page_tokens: usize,
    ) -> Self {
        let cache = |_| KvCache::new(config, format, pages, page_tokens);
        let caches = (0..config.layers).map(cache);
        Self {
            caches: caches.collect(),
            ropes: [false, true].map(|long| RopeTables::new(config, long)),
        }
    }
}

/// The next tokens of a sequence.
pub(crate) struct Part<'a> {
    /// The sequence's pages.
    pub(crate) pages: &'a [u32],
    /// Tokens that are in them already.
    pub(crate) past: usize,
    /// Those that come.
    pub(crate) tokens: &'a [u32],
    /// Whether LongRoPE's long factors are used.
    pub(crate) long: bool,
    /// The last so many positions are wanted.
    pub(crate) keep: usize,
}

impl Decoder<'_> {
    /// Appends the tokens of each part to its sequence and returns the positions that are wanted,
    /// the parts' one after another, after the final norm: `[sum of keep, hidden]`.
    ///
    /// # Errors
    /// As [`Decoder::extend`].
    pub(crate) fn extend_many(&self, arena: &mut Arena, parts: &[Part<'_>]) -> Result<Vec<f32>> {
        let c = &self.config;
        for part in parts {
            arena.ropes[usize::from(part.long)].extend_to(0, part.past + part.tokens.len());
        }
        let rows: Vec<_> = parts
            .iter()
            .map(|part| Rows {
                count: part.tokens.len(),
                past: part.past,
                table: part.pages,
                rope: &arena.ropes[usize::from(part.long)],
            })
            .collect();
        let tokens: Vec<_> = parts.iter().flat_map(|part| part.tokens).copied().collect();
        let mut x = self.embed(&tokens)?;
        for (layer, cache) in self.layers.iter().zip(&mut arena.caches) {
            layer.forward(c, self.precision, &mut x, cache, &rows);
        }
        let mut kept = Vec::new();
        let mut end = 0;
        for part in parts {
            end += part.tokens.len() * c.hidden;
            kept.extend_from_slice(&x[end - part.keep * c.hidden..end]);
        }
        Ok(self.last_normed(&kept))
    }
}
