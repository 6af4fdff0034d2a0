//! Which attention a pass takes, and its angles.

use std::sync::Arc;

use super::{Pass, padded};
use crate::cuda::args::Args;
use crate::cuda::contract::{BLOCK_SHARED_BYTES, Defines, attention_defines};
use crate::cuda::decode::Parts;
use crate::cuda::kernels::{Call, Kernels};
use crate::cuda::launch::Launch;
use crate::cuda::module::Kernel;
use crate::cuda::needs::SMS;
use crate::error::Result;
use smq_model::ModelConfig;

const FILE: &str = "attention_prefill.cu";
/// Positions of a tile of keys, and of a page of the paged cache.
pub(crate) const KEYS: usize = 64;
/// Up to so many rows one warpgroup a block is faster.
const ONE_WARPGROUP_UP_TO: usize = 512;

/// Threads of a block of `rope.cu`'s `rope_and_cache`.
pub const ROPE_THREADS: u32 = 256;

/// A kernel by the order of what it writes: plain, int4.
pub(crate) type Orders = [Arc<Kernel>; 2];

/// What the rows of a pass are, and where their keys and values lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// One sequence's, in a cache of its own.
    One,
    /// Several sequences', one after the other in a cache.
    Packed,
    /// Many sequences', in pages.
    Paged,
    /// Many sequences', one new token of each, in pages.
    Single,
}

impl Rows {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::One, Self::Packed, Self::Paged, Self::Single];

    /// The macros that say which; whether tokens are single matters to attention alone.
    fn defines(self) -> [(&'static str, i64); 2] {
        let (packed, paged) = match self {
            Self::One => (0, 0),
            Self::Packed => (1, 0),
            Self::Paged | Self::Single => (0, 1),
        };
        [("PACKED", packed), ("PAGED", paged)]
    }
}

/// How `attention_prefill.cu` is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Of a block.
    pub warpgroups: usize,
    /// What the rows are.
    pub rows: Rows,
    /// Tiles of keys, and of values, that a block has room for.
    pub ring: usize,
}

impl Attention {
    /// Every way that a pass may need.
    pub const ALL: [Self; 7] = {
        const fn kind(warpgroups: usize, rows: Rows, ring: usize) -> Attention {
            Attention {
                warpgroups,
                rows,
                ring,
            }
        }
        [
            kind(1, Rows::One, 2),
            kind(2, Rows::One, 2),
            kind(1, Rows::Packed, 2),
            kind(2, Rows::Packed, 2),
            kind(1, Rows::Paged, 2),
            kind(1, Rows::Single, 2),
            kind(1, Rows::Single, 4),
        ]
    };

    /// That of `m` rows of a model.
    pub fn of(c: &ModelConfig, m: usize, rows: Rows) -> Self {
        let warpgroups = match rows {
            Rows::One | Rows::Packed if m > ONE_WARPGROUP_UP_TO => 2,
            Rows::One | Rows::Packed | Rows::Paged | Rows::Single => 1,
        };
        let with_ring = |ring| Self {
            warpgroups,
            rows,
            ring,
        };
        match rows {
            Rows::One | Rows::Packed | Rows::Paged => with_ring(2),
            // Where all blocks are at work at once and each has room for more tiles, these hide the
            // memory's latency; where they are not, more blocks a multiprocessor do.
            Rows::Single => {
                let blocks = (m * c.heads).div_ceil(SMS);
                let fits = |a: &Self| a.shared(c) * blocks <= BLOCK_SHARED_BYTES;
                Some(with_ring(4)).filter(fits).unwrap_or(with_ring(2))
            }
        }
    }

    /// Its macros; `order` is that of the output, 1 for int4.
    pub fn defines(self, c: &ModelConfig, order: i64) -> Defines {
        let mut defines = attention_defines(c);
        defines.extend([
            ("X_INT4", order),
            ("PREFILL_WARPGROUPS", self.warpgroups as i64),
            ("PREFILL_KEYS", KEYS as i64),
            ("OUT_STRIDE", padded(c.heads * c.head_dim) as i64),
            ("SINGLE", (self.rows == Rows::Single).into()),
            ("RING", self.ring as i64),
            ("DYNAMIC_SHARED", self.shared(c) as i64),
        ]);
        defines.extend(self.rows.defines());
        defines
    }

    /// The kernels, compiled or found.
    ///
    /// # Errors
    /// As [`Kernels::get`].
    pub fn kernels(self, kernels: &Kernels, c: &ModelConfig) -> Result<Orders> {
        let kernel = |order| kernels.get(FILE, self.defines(c, order), "attention_prefill");
        Ok([kernel(0)?, kernel(1)?])
    }

    /// Rows of a block.
    pub(crate) fn tile(self) -> usize {
        64 * self.warpgroups
    }

    /// Dynamic shared memory of a block, bytes: its queries, and its tiles of keys and of values.
    fn shared(self, c: &ModelConfig) -> usize {
        2 * c.head_dim * (self.tile() + 2 * self.ring * KEYS)
    }

    /// The launch for `m` rows.
    pub fn launch(self, c: &ModelConfig, m: usize) -> Launch {
        self.launch_tiles(c, m.div_ceil(self.tile()))
    }

    /// The launch for so many tiles of rows.
    pub(crate) fn launch_tiles(self, c: &ModelConfig, tiles: usize) -> Launch {
        Launch::new([c.heads as u32, tiles as u32], 2 * self.tile() as u32)
            .shared(self.shared(c) as u32)
            .overlap()
    }
}

/// The macros of `rope.cu`.
pub fn rope_defines(c: &ModelConfig, rows: Rows) -> Defines {
    let mut defines = attention_defines(c);
    defines.extend(rows.defines());
    defines.push(("PAGE_TOKENS", KEYS as i64));
    defines.push(("BLOCK_THREADS", ROPE_THREADS.into()));
    defines
}

/// The call that fills the table of a pass's angles.
pub(super) fn table_call(parts: &Parts<'_>, pass: &Pass, rotations: u64) -> Result<Call> {
    let Parts {
        kernels, config: c, ..
    } = parts;
    let defines = rope_defines(c, pass.kind.rows);
    Ok(Call {
        kernel: kernels.get("rope.cu", defines, "rotation_table")?,
        launch: table_launch(c, pass.m),
        args: Args::new()
            .ptr(pass.inv_freq)
            .f32(c.rope.attention_factor())
            .i32(pass.past as i32)
            .ptr(pass.seen)
            .ptr(rotations),
    })
}

/// Its launch for `m` rows.
pub fn table_launch(c: &ModelConfig, m: usize) -> Launch {
    let threads = (c.rope.rotary_dim / 2).next_multiple_of(32);
    Launch::new(m, threads as u32).overlap()
}
