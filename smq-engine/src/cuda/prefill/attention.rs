//! Which attention a pass takes, and its angles.

use std::sync::Arc;

use super::padded;
use crate::cuda::args::Args;
use crate::cuda::contract::{BLOCK_SHARED_BYTES, Defines, attention_defines};
use crate::cuda::family::{self, Rotation};
use crate::cuda::kernels::{Call, Kernels};
use crate::cuda::kv::kv_defines;
use crate::cuda::launch::Launch;
use crate::cuda::module::Kernel;
use crate::cuda::needs::SMS;
use crate::error::Result;
use crate::kv::KvCode;
use smq_model::ModelConfig;

/// Positions of a tile of keys, and of a page of the paged cache.
pub(crate) const KEYS: usize = 64;
/// Up to so many rows one warpgroup a block is faster.
const ONE_WARPGROUP_UP_TO: usize = 512;

/// Threads of a block of `attention_single.cu`.
const SINGLE_THREADS: u32 = 128;
/// Tiles of keys, and of values, that it may have room for; of codes, which are smaller.
const SINGLE_RINGS: [usize; 3] = [2, 3, 4];
const CODED_RINGS: [usize; 2] = [4, 8];
/// Queries of a block: rows of an mma.
const SINGLE_QUERIES: usize = 16;
/// Shared memory of a multiprocessor, and what the system takes of it for each block.
const SM_SHARED_BYTES: usize = 228 << 10;
const SYSTEM_SHARED_BYTES: usize = 1 << 10;

/// Blocks of `attention_single.cu` for a token.
fn single_blocks(c: &ModelConfig) -> usize {
    c.kv_heads * (c.heads / c.kv_heads).div_ceil(SINGLE_QUERIES)
}

/// Static shared memory of a block of `attention_single.cu`, bytes: queries, two tiles' scores, and
/// the new key and value.
fn single_shared(c: &ModelConfig) -> usize {
    let queries = (c.heads / c.kv_heads).min(SINGLE_QUERIES);
    let scores = 2 * size_of::<f32>() * (KEYS + 8);
    (queries * (2 * c.head_dim + scores) + 4 * c.head_dim).next_multiple_of(128)
}

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
    /// Many sequences', in pages, each row a tile of its own: a sequence has one, or the tokens of
    /// a draft.
    Single,
    /// The same where no sequence has two, so that attention rotates the row itself.
    Distinct,
}

impl Rows {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::One,
        Self::Packed,
        Self::Paged,
        Self::Single,
        Self::Distinct,
    ];

    /// Those of a step of single tokens, `drafted` if some sequence has several.
    pub(super) fn of_single(c: &ModelConfig, drafted: bool) -> Self {
        match drafted || !family::norms_by_head(c) {
            true => Self::Single,
            false => Self::Distinct,
        }
    }

    /// Whether each is a tile of its own, which `attention_single.cu` computes.
    pub(super) fn are_single(self) -> bool {
        match self {
            Self::One | Self::Packed | Self::Paged => false,
            Self::Single | Self::Distinct => true,
        }
    }

    /// The macros that say which; whether tokens are single matters to attention alone.
    fn defines(self) -> [(&'static str, i64); 2] {
        let (packed, paged) = match self {
            Self::One => (0, 0),
            Self::Packed => (1, 0),
            Self::Paged | Self::Single | Self::Distinct => (0, 1),
        };
        [("PACKED", packed), ("PAGED", paged)]
    }
}

/// How `attention_prefill.cu`, or `attention_single.cu` for single tokens, is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Of a block.
    pub warpgroups: usize,
    /// What the rows are.
    pub rows: Rows,
    /// Tiles of keys, and of values, that a block has room for.
    pub ring: usize,
    /// How keys and values are held, where these lie in pages; bf16 of others.
    pub code: KvCode,
}

impl Attention {
    /// Every way that a pass may need: first those over bf16.
    pub fn all() -> impl Iterator<Item = Self> {
        let coded = KvCode::SMALLER.into_iter().flat_map(|code| {
            let of = move |rows, ring| Self {
                warpgroups: 1,
                rows,
                ring,
                code,
            };
            let single = CODED_RINGS
                .into_iter()
                .flat_map(move |ring| [Rows::Single, Rows::Distinct].map(|rows| of(rows, ring)));
            [of(Rows::Paged, 2)].into_iter().chain(single)
        });
        Self::OVER_BF16.into_iter().chain(coded)
    }

    const OVER_BF16: [Self; 11] = {
        const fn kind(warpgroups: usize, rows: Rows, ring: usize) -> Attention {
            Attention {
                warpgroups,
                rows,
                ring,
                code: KvCode::Bf16,
            }
        }
        [
            kind(1, Rows::One, 2),
            kind(2, Rows::One, 2),
            kind(1, Rows::Packed, 2),
            kind(2, Rows::Packed, 2),
            kind(1, Rows::Paged, 2),
            kind(1, Rows::Single, SINGLE_RINGS[0]),
            kind(1, Rows::Single, SINGLE_RINGS[1]),
            kind(1, Rows::Single, SINGLE_RINGS[2]),
            kind(1, Rows::Distinct, SINGLE_RINGS[0]),
            kind(1, Rows::Distinct, SINGLE_RINGS[1]),
            kind(1, Rows::Distinct, SINGLE_RINGS[2]),
        ]
    };

    /// That of `m` rows of a model, whose keys and values are held so where they lie in pages.
    pub fn of(c: &ModelConfig, m: usize, rows: Rows, code: KvCode) -> Self {
        let warpgroups = match rows {
            Rows::One | Rows::Packed if m > ONE_WARPGROUP_UP_TO => 2,
            Rows::One | Rows::Packed | Rows::Paged | Rows::Single | Rows::Distinct => 1,
        };
        let with_ring = |ring| Self {
            warpgroups,
            rows,
            ring,
            code,
        };
        if !rows.are_single() {
            return with_ring(2);
        }
        // The longest ring with which all blocks are at work at once hides the memory's latency
        // best; where they come one after the other anyhow, two a multiprocessor do as well. Of
        // codes four do, since these keep a multiprocessor's schedulers busy, too.
        let (rings, enough): (&[usize], _) = match code {
            KvCode::Bf16 => (&SINGLE_RINGS, 2),
            KvCode::Fp8 | KvCode::Int8 | KvCode::Int4 => (&CODED_RINGS, 4),
        };
        let blocks = (m * single_blocks(c)).div_ceil(SMS);
        let longest = |blocks| {
            let mut rings = rings.iter().rev().map(|ring| with_ring(*ring));
            rings.find(|a| a.fits(c) && a.blocks(c) >= blocks)
        };
        longest(blocks)
            .or_else(|| longest(enough))
            .unwrap_or(with_ring(rings[0]))
    }

    /// Its macros in layers with this window; `order` is that of the output, 1 for int4.
    pub fn defines(self, c: &ModelConfig, window: Option<usize>, order: i64) -> Defines {
        let mut defines = attention_defines(c, window);
        defines.extend(family::score_defines(c));
        defines.extend([
            ("X_INT4", order),
            ("PREFILL_KEYS", KEYS as i64),
            ("OUT_STRIDE", padded(c.heads * c.head_dim) as i64),
            ("DYNAMIC_SHARED", self.shared(c) as i64),
        ]);
        if self.rows.are_single() {
            defines.extend([
                ("ROTATES", self.rotates().into()),
                ("RING", self.ring as i64),
                ("THREADS", SINGLE_THREADS.into()),
                ("STATIC_SHARED", single_shared(c) as i64),
            ]);
        } else {
            defines.push(("PREFILL_WARPGROUPS", self.warpgroups as i64));
            defines.extend(self.rows.defines());
        }
        if self.rotates() {
            defines.extend(family::qkv_defines(c));
        }
        defines.extend(kv_defines(self.code));
        defines
    }

    /// Whether the kernel does the work of `rope.cu`, too.
    pub(super) fn rotates(self) -> bool {
        self.rows == Rows::Distinct
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
            kernels.get(self.file(), defines, self.name())
        };
        Ok([kernel(0)?, kernel(1)?])
    }

    /// Its kernel file.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self.rows.are_single() {
            false => "attention_prefill.cu",
            true => "attention_single.cu",
        }
    }

    fn name(self) -> &'static str {
        self.file().trim_end_matches(".cu")
    }

    /// Rows of a block.
    pub(crate) fn tile(self) -> usize {
        64 * self.warpgroups
    }

    /// Dynamic shared memory of a block, bytes: its queries, and its tiles of keys and of values. A
    /// block of single tokens reads codes as they are; the others widen a tile of each.
    fn shared(self, c: &ModelConfig) -> usize {
        let row = self.code.row(c.head_dim);
        let tiles = 2 * self.ring * KEYS * (row.codes + row.scales);
        let wide = match (self.rows.are_single(), self.code) {
            (true, _) => 0,
            (false, KvCode::Bf16) => self.tile(),
            (false, KvCode::Fp8 | KvCode::Int8 | KvCode::Int4) => self.tile() + 2 * KEYS,
        };
        2 * c.head_dim * wide + tiles
    }

    /// Blocks of single tokens that a multiprocessor has shared memory for.
    fn blocks(self, c: &ModelConfig) -> usize {
        SM_SHARED_BYTES / (self.shared(c) + single_shared(c) + SYSTEM_SHARED_BYTES)
    }

    /// Whether a model can take it: heads of 256 elements leave a block no room for the longer
    /// ring, and what is normed over all heads together is not one head's.
    #[must_use]
    pub fn fits(self, c: &ModelConfig) -> bool {
        let rotates = !self.rotates() || family::norms_by_head(c);
        let beside = if self.rows.are_single() {
            single_shared(c)
        } else {
            0
        };
        self.shared(c) + beside <= BLOCK_SHARED_BYTES && rotates
    }

    /// The launch for `m` rows.
    pub fn launch(self, c: &ModelConfig, m: usize) -> Launch {
        self.launch_tiles(c, m.div_ceil(self.tile()))
    }

    /// The launch for so many tiles of rows.
    pub(crate) fn launch_tiles(self, c: &ModelConfig, tiles: usize) -> Launch {
        let (blocks, threads) = match self.rows.are_single() {
            false => (c.heads, 2 * self.tile() as u32),
            true => (single_blocks(c), SINGLE_THREADS),
        };
        Launch::new([blocks as u32, tiles as u32], threads)
            .shared(self.shared(c) as u32)
            .overlap()
    }
}

/// The macros of `rope.cu`; `code` is how keys and values in pages are held.
pub fn rope_defines(c: &ModelConfig, rows: Rows, code: KvCode) -> Defines {
    let mut defines = attention_defines(c, c.windows.alike());
    defines.extend(rows.defines());
    defines.push(("PAGE_TOKENS", KEYS as i64));
    defines.push(("BLOCK_THREADS", ROPE_THREADS.into()));
    defines.extend(family::qkv_defines(c));
    defines.extend(kv_defines(code));
    defines
}

/// The kernel that rotates rows of a kind and writes their keys and values.
pub(in crate::cuda) fn rope(
    kernels: &Kernels,
    c: &ModelConfig,
    rows: Rows,
    code: KvCode,
) -> Result<Arc<Kernel>> {
    kernels.get("rope.cu", rope_defines(c, rows, code), "rope_and_cache")
}

/// Rows of a table of angles.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct TableRows {
    /// How many.
    pub m: usize,
    /// Rows of the cache before them.
    pub past: usize,
    /// Where each row's position is, of rows that say it themselves.
    pub seen: u64,
}

/// The call that fills the `table` of a pass's angles, of a rotary embedding whose frequencies are
/// at `inv_freq`.
pub(in crate::cuda) fn table_call(
    kernels: &Kernels,
    c: &ModelConfig,
    kind: Attention,
    rows: TableRows,
    rotation: Rotation<'_>,
    [inv_freq, table]: [u64; 2],
) -> Result<Call> {
    let defines = rope_defines(c, kind.rows, kind.code);
    Ok(Call {
        kernel: kernels.get("rope.cu", defines, "rotation_table")?,
        launch: table_launch(c, rows.m),
        args: Args::new()
            .ptr(inv_freq)
            .f32(rotation.attention_factor())
            .i32(rows.past as i32)
            .ptr(rows.seen)
            .ptr(table),
    })
}

/// Its launch for `m` rows.
pub fn table_launch(c: &ModelConfig, m: usize) -> Launch {
    let threads = (c.rope.rotary_dim / 2).next_multiple_of(32);
    Launch::new(m, threads as u32).overlap()
}
