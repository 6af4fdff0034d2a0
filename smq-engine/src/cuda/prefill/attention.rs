//! Which attention a pass takes, and its angles.

use std::sync::Arc;

use super::{Pass, padded};
use crate::cuda::args::Args;
use crate::cuda::contract::{Defines, attention_defines};
use crate::cuda::decode::Parts;
use crate::cuda::family::{self, Rotation};
use crate::cuda::kernels::{Call, Kernels};
use crate::cuda::launch::Launch;
use crate::cuda::module::Kernel;
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

/// Kernels by the window of their layers.
pub(super) type Windowed = Vec<(Option<usize>, Orders)>;

/// What the rows of a pass are, and where their keys and values lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// One sequence's, in a cache of its own.
    One,
    /// Several sequences', one after the other in a cache.
    Packed,
    /// Many sequences', in pages.
    Paged,
}

impl Rows {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::One, Self::Packed, Self::Paged];

    /// The macros that say which.
    fn defines(self) -> [(&'static str, i64); 2] {
        let is = |kind| i64::from(self == kind);
        [("PACKED", is(Self::Packed)), ("PAGED", is(Self::Paged))]
    }
}

/// How `attention_prefill.cu` is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Of a block.
    pub warpgroups: usize,
    /// What the rows are.
    pub rows: Rows,
}

impl Attention {
    /// Every way that a pass may need.
    pub const ALL: [Self; 5] = {
        const fn kind(warpgroups: usize, rows: Rows) -> Attention {
            Attention { warpgroups, rows }
        }
        [
            kind(1, Rows::One),
            kind(2, Rows::One),
            kind(1, Rows::Packed),
            kind(2, Rows::Packed),
            kind(1, Rows::Paged),
        ]
    };

    /// That of `m` rows.
    pub fn of(m: usize, rows: Rows) -> Self {
        let warpgroups = match rows {
            Rows::One | Rows::Packed if m > ONE_WARPGROUP_UP_TO => 2,
            Rows::One | Rows::Packed | Rows::Paged => 1,
        };
        Self { warpgroups, rows }
    }

    /// Its macros in layers with this window; `order` is that of the output, 1 for int4.
    pub fn defines(self, c: &ModelConfig, window: Option<usize>, order: i64) -> Defines {
        let mut defines = attention_defines(c, window);
        defines.extend(family::score_defines(c));
        defines.extend([
            ("X_INT4", order),
            ("PREFILL_WARPGROUPS", self.warpgroups as i64),
            ("PREFILL_KEYS", KEYS as i64),
            ("OUT_STRIDE", padded(c.heads * c.head_dim) as i64),
            ("DYNAMIC_SHARED", self.shared(c) as i64),
        ]);
        defines.extend(self.rows.defines());
        defines
    }

    /// The kernels of every window that layers have, each with its window.
    ///
    /// # Errors
    /// As [`Kernels::get`].
    pub(super) fn of_windows(self, kernels: &Kernels, c: &ModelConfig) -> Result<Windowed> {
        let of = |window| Ok((window, self.kernels(kernels, c, window)?));
        family::windows(c).into_iter().map(of).collect()
    }

    /// The kernels of layers with this window, compiled or found.
    ///
    /// # Errors
    /// As [`Kernels::get`].
    pub fn kernels(
        self,
        kernels: &Kernels,
        c: &ModelConfig,
        window: Option<usize>,
    ) -> Result<Orders> {
        let kernel = |order| {
            let defines = self.defines(c, window, order);
            kernels.get(FILE, defines, "attention_prefill")
        };
        Ok([kernel(0)?, kernel(1)?])
    }

    /// Rows of a block.
    pub(crate) fn tile(self) -> usize {
        64 * self.warpgroups
    }

    /// Dynamic shared memory of a block, bytes: its queries, and two tiles of keys and of values.
    fn shared(self, c: &ModelConfig) -> usize {
        2 * c.head_dim * (self.tile() + 4 * KEYS)
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
    let mut defines = attention_defines(c, c.windows.alike());
    defines.extend(rows.defines());
    defines.push(("PAGE_TOKENS", KEYS as i64));
    defines.push(("BLOCK_THREADS", ROPE_THREADS.into()));
    defines.extend(family::qkv_defines(c));
    defines
}

/// The call that fills the table of a pass's angles, of rotary embedding `index`.
pub(super) fn table_call(
    parts: &Parts<'_>,
    pass: &Pass,
    (index, rotation): (usize, Rotation<'_>),
    table: u64,
) -> Result<Call> {
    let Parts {
        kernels, config: c, ..
    } = parts;
    let defines = rope_defines(c, pass.kind.rows);
    Ok(Call {
        kernel: kernels.get("rope.cu", defines, "rotation_table")?,
        launch: table_launch(c, pass.m),
        args: Args::new()
            .ptr(pass.inv_freq[index])
            .f32(rotation.attention_factor())
            .i32(pass.past as i32)
            .ptr(pass.seen[0])
            .ptr(table),
    })
}

/// Its launch for `m` rows.
pub fn table_launch(c: &ModelConfig, m: usize) -> Launch {
    let threads = (c.rope.rotary_dim / 2).next_multiple_of(32);
    Launch::new(m, threads as u32).overlap()
}
