//! The cache of one sequence, or of many in pages: where its rows lie, and what a prompt's pass of
//! one does where they have fewer bits than bf16 (`kernels/kv_cache.cu`, `spec/cache.md`).

use super::args::Args;
use super::contract::Defines;
use super::kernels::{Call, Kernels};
use super::launch::Launch;
use super::memory::Span;
use crate::error::Result;
use crate::kv::{KvCacheFormat, KvCode};
use smq_model::ModelConfig;

/// The kernels that widen and encode rows.
pub const KV_FILE: &str = "kv_cache.cu";
/// Threads of their blocks.
const THREADS: usize = 256;

/// The keys and values of every layer: bf16 `[kv_heads, capacity, head_dim]` each, or codes and
/// behind them scales; in pages, each of them `[pages, kv_heads, tokens of a page, …]`. Where those
/// of one sequence are not bf16, one layer's room in bf16 comes behind all.
#[derive(Debug, Clone, Copy)]
pub struct Cache {
    /// Layer 0's keys, then its values, then layer 1's.
    pub span: Span,
    /// Positions.
    pub capacity: usize,
    /// Bytes of one layer's keys.
    pub side_bytes: usize,
    /// How they are held.
    pub code: KvCode,
}

/// Rows of one layer's cache that a pass reads or writes.
#[derive(Debug, Clone, Copy)]
pub struct KvRows {
    /// Codes of keys and of values.
    pub codes: [u64; 2],
    /// Their scales.
    pub scales: [u64; 2],
    /// The room in bf16.
    pub wide: [u64; 2],
    /// Positions that the cache holds.
    pub capacity: usize,
}

impl Cache {
    /// A cache of `capacity` positions in `span`, which has [`Cache::bytes`] of them, or in pages
    /// [`Cache::bytes_of_rows`].
    #[must_use]
    pub fn new(span: Span, c: &ModelConfig, code: KvCode, capacity: usize) -> Self {
        let row = code.row(c.head_dim);
        Self {
            span,
            capacity,
            side_bytes: c.kv_heads * capacity * (row.codes + row.scales),
            code,
        }
    }

    /// Bytes that `capacity` positions of one sequence take.
    #[must_use]
    pub fn bytes(c: &ModelConfig, code: KvCode, capacity: usize) -> usize {
        Self::bytes_of_rows(c, code, capacity) + 2 * Self::wide_bytes(c, code, capacity)
    }

    /// Bytes of the rows themselves, without the room of a layer in bf16: pages have none.
    pub(super) fn bytes_of_rows(c: &ModelConfig, code: KvCode, capacity: usize) -> usize {
        capacity * KvCacheFormat::Coded(code).bytes_per_token(c)
    }

    /// Bytes of one layer's keys in bf16, where that is not how they are held.
    fn wide_bytes(c: &ModelConfig, code: KvCode, capacity: usize) -> usize {
        match code {
            KvCode::Bf16 => 0,
            KvCode::Fp8 | KvCode::Int8 | KvCode::Int4 => 2 * c.kv_heads * capacity * c.head_dim,
        }
    }

    /// Addresses of a layer's keys and values, or of their codes.
    #[must_use]
    pub fn layer(&self, index: usize) -> (u64, u64) {
        let keys = self.span.ptr() + (2 * index * self.side_bytes) as u64;
        (keys, keys + self.side_bytes as u64)
    }

    /// Addresses of the scales of a layer's keys and values; `None` where these have none.
    #[must_use]
    pub fn scales(&self, c: &ModelConfig, index: usize) -> Option<[u64; 2]> {
        let row = self.code.row(c.head_dim);
        let codes = (c.kv_heads * self.capacity * row.codes) as u64;
        let (keys, values) = self.layer(index);
        (row.scales > 0).then_some([keys + codes, values + codes])
    }

    /// Where else one sequence's keys and values of a layer are, which are not bf16 in the cache;
    /// `None` of those that are.
    #[must_use]
    pub fn coded(&self, c: &ModelConfig, index: usize) -> Option<KvRows> {
        let scales = self.scales(c, index)?;
        let wide_bytes = Self::wide_bytes(c, self.code, self.capacity) as u64;
        let (keys, values) = self.layer(index);
        let wide = self.span.ptr() + (2 * c.layers * self.side_bytes) as u64;
        Some(KvRows {
            codes: [keys, values],
            scales,
            wide: [wide, wide + wide_bytes],
            capacity: self.capacity,
        })
    }
}

/// The macros that say how keys and values are cached, where that is not bf16.
#[must_use]
pub fn kv_defines(code: KvCode) -> Defines {
    let number = match code {
        KvCode::Bf16 => return Defines::new(),
        KvCode::Fp8 => 1,
        KvCode::Int8 => 2,
        KvCode::Int4 => 3,
    };
    vec![
        ("KV_CODE", number),
        ("KV_BF16", 0),
        ("KV_FP8", 1),
        ("KV_INT8", 2),
        ("KV_INT4", 3),
    ]
}

/// The macros of [`KV_FILE`].
#[must_use]
pub fn kv_cache_defines(c: &ModelConfig, code: KvCode) -> Defines {
    let mut defines = kv_defines(code);
    defines.extend([
        ("KV_HEADS", c.kv_heads as i64),
        ("HEAD_DIM", c.head_dim as i64),
        ("KV_THREADS", THREADS as i64),
    ]);
    defines
}

impl KvRows {
    /// Makes the room in bf16 have the first `rows` positions of the cache.
    ///
    /// # Errors
    /// As [`Kernels::get`].
    pub fn widen(
        &self,
        kernels: &Kernels,
        c: &ModelConfig,
        code: KvCode,
        rows: usize,
    ) -> Result<Call> {
        let threads = rows * c.head_dim / 8;
        self.call(kernels, c, code, "widen_rows", (0, rows), threads)
    }

    /// Caches `rows` positions from `first` on of the room in bf16, which then has what is read of
    /// them.
    ///
    /// # Errors
    /// As [`Kernels::get`].
    pub fn encode(
        &self,
        kernels: &Kernels,
        c: &ModelConfig,
        code: KvCode,
        (first, rows): (usize, usize),
    ) -> Result<Call> {
        let threads = rows * 32;
        self.call(kernels, c, code, "encode_rows", (first, rows), threads)
    }

    fn call(
        &self,
        kernels: &Kernels,
        c: &ModelConfig,
        code: KvCode,
        name: &'static str,
        (first, rows): (usize, usize),
        threads: usize,
    ) -> Result<Call> {
        let (blocks, heads) = (threads.div_ceil(THREADS), 2 * c.kv_heads);
        let pair = |args: Args, [keys, values]: [u64; 2]| args.ptr(keys).ptr(values);
        let args = [self.wide, self.codes, self.scales];
        Ok(Call {
            kernel: kernels.get(KV_FILE, kv_cache_defines(c, code), name)?,
            launch: Launch::new([blocks as u32, heads as u32], THREADS as u32).overlap(),
            args: args
                .into_iter()
                .fold(Args::new(), pair)
                .i32(self.capacity as i32)
                .i32(first as i32)
                .i32(rows as i32),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        let fixture =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny");
        ModelConfig::of(&smq_model::Source::open(&fixture).unwrap()).unwrap()
    }

    /// Nothing overlaps, all begins at 16 bytes as bulk copies need it, and the last part ends
    /// where the memory does.
    #[test]
    fn parts_of_a_cache_lie_side_by_side() {
        let c = config();
        for code in [KvCode::Bf16].into_iter().chain(KvCode::SMALLER) {
            let bytes = Cache::bytes(&c, code, 256);
            let cache = Cache::new(Span::at(1 << 20, bytes), &c, code, 256);
            let mut at = 1 << 20;
            for layer in 0..c.layers {
                let (keys, values) = cache.layer(layer);
                assert_eq!((keys, values), (at, at + cache.side_bytes as u64));
                at = values + cache.side_bytes as u64;
                let Some(rows) = cache.coded(&c, layer) else {
                    assert_eq!(code, KvCode::Bf16);
                    continue;
                };
                assert_eq!(rows.codes, [keys, values]);
                let scales = (c.kv_heads * 256 * code.row(c.head_dim).scales) as u64;
                assert_eq!(rows.scales, [values - scales, at - scales]);
                let all = [rows.codes, rows.scales, rows.wide].concat();
                assert!(all.iter().all(|address| address % 16 == 0));
                let wide = (2 * c.kv_heads * 256 * c.head_dim) as u64;
                assert_eq!(rows.wide[1], rows.wide[0] + wide);
                assert_eq!(rows.wide[1] + wide, (1 << 20) + bytes as u64);
            }
            let wide = cache.coded(&c, 0).map_or(at, |rows| rows.wide[0]);
            assert_eq!(wide, at);
            if code == KvCode::Bf16 {
                assert_eq!(at, (1 << 20) + bytes as u64);
            }
        }
    }
}
