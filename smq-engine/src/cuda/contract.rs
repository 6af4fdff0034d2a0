//! Numbers that Rust and every kernel file know, told here once: as macros of each compilation.
//!
//! What one kernel file alone shares with Rust is a macro beside the code that launches it.

use smq_format::scale::ScaleFormat;
use smq_model::ModelConfig;

/// Macros of a kernel file.
pub type Defines = Vec<(&'static str, i64)>;

/// Bytes of shared memory that a block can have, static and dynamic, on Hopper.
pub const BLOCK_SHARED_BYTES: usize = 227 << 10;

/// Bytes of the tables that NF4's products keep in shared memory (`nf4.cuh`).
pub(super) const NF4_TABLE_BYTES: usize = 4 * (256 * 32 + 256);

/// Bits of a tagged value that say which use of its buffer it belongs to.
pub(super) const TAG_MASK: u32 = 3;

/// How a kernel decodes a scale (`decode_scale` of `common.cuh`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScaleCode {
    /// Sign, exponent and mantissa.
    Mini,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl From<ScaleFormat> for ScaleCode {
    fn from(format: ScaleFormat) -> Self {
        match format {
            ScaleFormat::Mini(_) => Self::Mini,
            ScaleFormat::F16 => Self::F16,
            ScaleFormat::F32 => Self::F32,
        }
    }
}

/// Macros of the kernels that rotate or attend, a step's and those of a prompt, in layers with this
/// window.
#[must_use]
pub(super) fn attention_defines(c: &ModelConfig, window: Option<usize>) -> Defines {
    vec![
        ("HEADS", c.heads as i64),
        ("KV_HEADS", c.kv_heads as i64),
        ("HEAD_DIM", c.head_dim as i64),
        ("ROTARY_HALF", (c.rope.rotary_dim / 2) as i64),
        // A window that no sequence outgrows is none.
        (
            "WINDOW",
            window.filter(|w| *w < c.max_positions).unwrap_or(0) as i64,
        ),
    ]
}

/// Macros of every kernel file.
pub(super) fn common_defines() -> Defines {
    vec![
        ("SCALES_MINI", ScaleCode::Mini as i64),
        ("SCALES_F16", ScaleCode::F16 as i64),
        ("SCALES_F32", ScaleCode::F32 as i64),
        ("TAG_MASK", TAG_MASK.into()),
    ]
}
