//! How keys and values are cached: the formats, and the bits of a row in each (`spec/cache.md`).

mod row;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use smq_model::ModelConfig;

pub(crate) use row::{Bytes, decode, encode};

/// Elements that share a scale in [`KvCode::Int4`].
pub(crate) const INT4_GROUP: usize = 32;

/// How keys and values are held between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvCacheFormat {
    /// As a CPU computes them.
    F32,
    /// In fewer bits.
    Coded(KvCode),
}

/// A format that keys and values are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvCode {
    /// bf16, as a GPU computes them.
    Bf16,
    /// E4M3, with a power of two for each head and token.
    Fp8,
    /// Integers of a byte, with a power of two for each head and token.
    Int8,
    /// Integers of four bits, with a scale of a byte for 32 elements of a head.
    Int4,
}

impl KvCacheFormat {
    /// All of them, the largest first.
    pub const ALL: [Self; 5] = [
        Self::F32,
        Self::Coded(KvCode::Bf16),
        Self::Coded(KvCode::Fp8),
        Self::Coded(KvCode::Int8),
        Self::Coded(KvCode::Int4),
    ];

    /// As given on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Coded(KvCode::Bf16) => "bf16",
            Self::Coded(KvCode::Fp8) => "fp8",
            Self::Coded(KvCode::Int8) => "int8",
            Self::Coded(KvCode::Int4) => "int4",
        }
    }

    /// Bytes that keys and values of a token take, in all layers.
    #[must_use]
    pub fn bytes_per_token(self, c: &ModelConfig) -> usize {
        let row = match self {
            Self::F32 => 4 * c.head_dim,
            Self::Coded(code) => {
                let row = code.row(c.head_dim);
                row.codes + row.scales
            }
        };
        2 * c.layers * c.kv_heads * row
    }
}

impl KvCode {
    /// Those of fewer bits than bf16.
    pub const SMALLER: [Self; 3] = [Self::Fp8, Self::Int8, Self::Int4];

    /// What a head's keys of one token take, or its values.
    pub(crate) fn row(self, head_dim: usize) -> Bytes {
        let (codes, scales) = match self {
            Self::Bf16 => (2 * head_dim, 0),
            Self::Fp8 | Self::Int8 => (head_dim, 1),
            Self::Int4 => (head_dim.div_ceil(2), head_dim.div_ceil(INT4_GROUP)),
        };
        Bytes { codes, scales }
    }

    /// The codes of a row of any length, and its scales.
    #[must_use]
    pub fn encode(self, row: &[f32]) -> [Vec<u8>; 2] {
        let bytes = self.row(row.len());
        let (mut codes, mut scales) = (vec![0; bytes.codes], vec![0; bytes.scales]);
        encode(self, row, &mut codes, &mut scales);
        [codes, scales]
    }

    /// What is read of rows of `d` elements, whose codes and scales these are.
    ///
    /// # Panics
    /// Where these are not those of whole rows.
    #[must_use]
    pub fn decode(self, d: usize, codes: &[u8], scales: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; codes.len() / self.row(d).codes * d];
        decode(self, d, codes, scales, &mut out);
        out
    }
}

impl fmt::Display for KvCacheFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvCacheFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.name() == text);
        found.ok_or_else(|| "expected f32, bf16, fp8, int8 or int4".to_owned())
    }
}

impl Serialize for KvCacheFormat {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

/// The room that an engine has for keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KvCacheReport {
    /// How they are held.
    pub format: KvCacheFormat,
    /// Bytes of a token's, in all layers.
    pub bytes_per_token: usize,
    /// Tokens that there is room for.
    pub tokens: usize,
    /// Bytes in all.
    pub bytes: usize,
}

impl KvCacheReport {
    /// Of so many tokens.
    pub(crate) fn of(format: KvCacheFormat, c: &ModelConfig, tokens: usize) -> Self {
        let bytes_per_token = format.bytes_per_token(c);
        Self {
            format,
            bytes_per_token,
            tokens,
            bytes: bytes_per_token * tokens,
        }
    }
}
