//! How `gemm_int4.cu` is cut: tiles, splits, warpgroups and shared memory.

use super::{Target, book_define};
use crate::cuda::contract::{BLOCK_SHARED_BYTES, NF4_TABLE_BYTES};
use crate::cuda::family::gate_define;
use crate::cuda::row_count::RowCount;
use crate::cuda::weights::{DeviceMatrix, Format, LARGEST_GROUP};

/// Tokens of the widest tile of `gemm_int4.cu` in which the tensor cores go on while a group's sums
/// are added up.
pub(super) const WIDE_TILE: usize = 104;

/// How `gemm_int4.cu` is cut for a matrix and a number of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Macros.
    pub defines: Vec<(&'static str, i64)>,
    /// Blocks.
    pub grid: [u32; 2],
    /// Threads a block.
    pub threads: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// Tokens of a tile.
    pub tile: usize,
}

/// What `gemm_int4.cu` does with its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Epilogue {
    /// Stores them as bf16.
    Bf16,
    /// Adds them to the residual stream.
    Add,
    /// Joins gate and up.
    Swiglu,
}

impl Cut {
    /// Tokens of a tile for `m` tokens, where so many tiles take the GPU `rounds` of blocks, each
    /// as long as its tile is wide and then some: measured on an H200, a round of Phi-3.5's gate_up
    /// takes 12, 17 to 18 and 21 to 22 us with tiles of 64, 104 and 128.
    fn tile(m: usize, rounds: impl Fn(usize) -> usize) -> usize {
        let widths = [(16, 52), (32, 68), (64, 100), (WIDE_TILE, 140), (128, 170)];
        let covers = widths.iter().position(|(tile, _)| *tile >= m);
        let candidates = &widths[..covers.map_or(widths.len(), |last| last + 1)];
        // Of equals the widest, which reads the weights least often.
        let best =
            (candidates.iter().rev()).min_by_key(|(tile, cost)| rounds(m.div_ceil(*tile)) * cost);
        best.map_or(128, |(tile, _)| *tile)
    }

    /// As measured best on an H100 for the shapes of Phi-3.5.
    #[must_use]
    pub fn new(w: &DeviceMatrix, n: impl Into<RowCount>, target: Target, sms: usize) -> Self {
        let n = n.into();
        let m = n.m;
        let (epilogue, order, stride) = match target {
            // Beside other matrices the rows of the output are longer.
            Target::Bf16(_, stride) => (Epilogue::Bf16, false, Some(stride)),
            Target::Add(_) | Target::F32(_) => (Epilogue::Add, false, None),
            Target::Swiglu(_, order, _) => (Epilogue::Swiglu, order, None),
        };
        // Only there where it is asked for.
        let more = match target {
            Target::Bf16(..) | Target::Add(_) => None,
            Target::F32(_) => Some(("OVERWRITE", 1)),
            Target::Swiglu(_, _, activation) => gate_define(activation),
        };
        let swiglu = epilogue == Epilogue::Swiglu;
        let units = if swiglu {
            (w.rows / 2).div_ceil(128) * 4
        } else {
            w.rows.div_ceil(64)
        };
        // The kernel takes 128 columns at a time, which have so many scales.
        let group = w.gemm_group().unwrap_or(LARGEST_GROUP);
        let (steps, parts) = (w.cols.div_ceil(128), 128 / group);
        let fits = |split: usize, warpgroups: usize| {
            units.div_ceil(warpgroups) * split <= sms && split <= steps
        };
        let (split, warpgroups) = if swiglu || n.like().div_ceil(128) > 2 {
            (1, 2)
        } else if let Some(split) = [4, 2].into_iter().find(|split| fits(*split, 2)) {
            (split, 2)
        } else if n.alike && fits(2, 3) {
            // In two parts for any number of rows; three warpgroups have the registers for few.
            (2, if m <= 32 { 3 } else { 2 })
        } else {
            (1, 2)
        };
        let blocks = units.div_ceil(warpgroups);
        let tile = Self::tile(m, |tiles| {
            if swiglu {
                tiles
            } else {
                (blocks * split * tiles).div_ceil(sms)
            }
        });
        let loops = swiglu && m > tile;
        let columns = if swiglu { 32 } else { 64 } + 8;
        let staged = match epilogue {
            Epilogue::Add => 0,
            Epilogue::Bf16 | Epilogue::Swiglu => warpgroups * tile * columns * 2,
        };
        let tables = match w.format {
            Format::Nf4 { .. } => NF4_TABLE_BYTES,
            Format::Bf16 | Format::Int4 { .. } | Format::Lut4 { .. } | Format::Fp8 { .. } => 0,
        };
        let stage = tile * 256 + warpgroups * 64 * (64 + 4 * parts) + 16;
        let room = (BLOCK_SHARED_BYTES - tables - staged - 1024) / stage;
        let stages = room.min(match tile {
            16 | 32 => 8,
            64 => 6,
            // Where a block loops over token tiles, its ring keeps running.
            _ if loops || tile == WIDE_TILE => 5,
            _ => 4,
        });
        let shared = stages * stage + staged + 1024;
        let mut defines = vec![
            ("K", w.cols as i64),
            ("ROWS", w.rows as i64),
            ("GROUP", group as i64),
            ("EPILOGUE_BF16", Epilogue::Bf16 as i64),
            ("EPILOGUE_ADD", Epilogue::Add as i64),
            ("EPILOGUE_SWIGLU", Epilogue::Swiglu as i64),
            ("EPILOGUE", epilogue as i64),
            ("OUT_INT4", order.into()),
            ("TILE_M", tile as i64),
            ("WARPGROUPS", warpgroups as i64),
            ("SPLIT_K", split as i64),
            ("STAGES", stages as i64),
            ("MIN_BLOCKS", 1),
            ("DYNAMIC_SHARED", shared as i64),
        ];
        defines.extend(stride.map(|stride| ("OUT_STRIDE", stride as i64)));
        defines.extend(more);
        defines.extend(w.scale_defines());
        defines.extend(book_define(w));
        if tables > 0 {
            defines.extend([("NF4", 1), ("NF4_TABLE_BYTES", tables as i64)]);
        }
        Self {
            defines,
            grid: [
                (blocks * split) as u32,
                if loops { 1 } else { m.div_ceil(tile) as u32 },
            ],
            threads: 128 * (warpgroups as u32 + 1),
            shared: shared as u32,
            tile,
        }
    }
}
