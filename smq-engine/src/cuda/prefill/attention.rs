//! Which attention a pass takes, and its angles.

use std::sync::Arc;

use super::{Pass, padded};
use crate::cuda::args::Args;
use crate::cuda::contract::{Defines, attention_defines};
use crate::cuda::decode::Parts;
use crate::cuda::kernels::{Call, Kernels};
use crate::cuda::launch::Launch;
use crate::cuda::module::Kernel;
use crate::error::Result;
use smq_model::ModelConfig;

const FILE: &str = "attention_prefill.cu";
/// Positions of a tile of keys.
const KEYS: usize = 64;
/// Up to so many rows one warpgroup a block is faster.
const ONE_WARPGROUP_UP_TO: usize = 512;

/// Threads of a block of `rope.cu`'s `rope_and_cache`.
pub const ROPE_THREADS: u32 = 256;

/// A kernel by the order of what it writes: plain, int4.
pub(crate) type Orders = [Arc<Kernel>; 2];

/// How `attention_prefill.cu` is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Of a block.
    pub warpgroups: usize,
    /// Several sequences.
    pub packed: bool,
}

impl Attention {
    /// Every way that a pass may need.
    pub const ALL: [Self; 4] = {
        const fn kind(warpgroups: usize, packed: bool) -> Attention {
            Attention { warpgroups, packed }
        }
        [kind(1, false), kind(2, false), kind(1, true), kind(2, true)]
    };

    /// That of `m` rows.
    pub fn of(m: usize, packed: bool) -> Self {
        let warpgroups = if m > ONE_WARPGROUP_UP_TO { 2 } else { 1 };
        Self { warpgroups, packed }
    }

    /// Its macros; `order` is that of the output, 1 for int4.
    pub fn defines(self, c: &ModelConfig, order: i64) -> Defines {
        let mut defines = attention_defines(c);
        defines.extend([
            ("X_INT4", order),
            ("PACKED", i64::from(self.packed)),
            ("PREFILL_WARPGROUPS", self.warpgroups as i64),
            ("PREFILL_KEYS", KEYS as i64),
            ("OUT_STRIDE", padded(c.heads * c.head_dim) as i64),
            ("DYNAMIC_SHARED", self.shared(c) as i64),
        ]);
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
    fn tile(self) -> usize {
        64 * self.warpgroups
    }

    /// Dynamic shared memory of a block, bytes: its queries, and two tiles of keys and of values.
    fn shared(self, c: &ModelConfig) -> usize {
        2 * c.head_dim * (self.tile() + 4 * KEYS)
    }

    /// The launch for `m` rows.
    pub fn launch(self, c: &ModelConfig, m: usize) -> Launch {
        let tile = self.tile();
        Launch::new([c.heads as u32, m.div_ceil(tile) as u32], 2 * tile as u32)
            .shared(self.shared(c) as u32)
            .overlap()
    }
}

/// The macros of `rope.cu`.
pub fn rope_defines(c: &ModelConfig, packed: bool) -> Defines {
    let mut defines = attention_defines(c);
    defines.push(("PACKED", i64::from(packed)));
    defines.push(("BLOCK_THREADS", ROPE_THREADS.into()));
    defines
}

/// The call that fills the table of a pass's angles.
pub(super) fn table_call(
    parts: &Parts<'_>,
    pass: &Pass,
    seen: u64,
    rotations: u64,
) -> Result<Call> {
    let Parts {
        kernels,
        config: c,
        state,
        ..
    } = parts;
    let defines = rope_defines(c, pass.kind.packed);
    Ok(Call {
        kernel: kernels.get("rope.cu", defines, "rotation_table")?,
        launch: table_launch(c, pass.m),
        args: Args::new()
            .ptr(state.inv_freq.ptr())
            .f32(c.rope.attention_factor())
            .i32(pass.past as i32)
            .ptr(seen)
            .ptr(rotations),
    })
}

/// Its launch for `m` rows.
pub fn table_launch(c: &ModelConfig, m: usize) -> Launch {
    let threads = (c.rope.rotary_dim / 2).next_multiple_of(32);
    Launch::new(m, threads as u32).overlap()
}
