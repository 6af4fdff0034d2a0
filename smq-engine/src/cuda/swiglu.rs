//! Gate and up projections of a short prompt in bf16, with what joins them: `swiglu_bf16.cu`.

use super::activations::Activations;
use super::args::Args;
use super::contract::BLOCK_SHARED_BYTES;
use super::contract::Defines;
use super::family::gate_define;
use super::kernels::{Call, Kernels};
use super::launch::Launch;
use super::row_count::RowCount;
use super::tensor_map::TensorMap;
use super::weights::DeviceMatrix;
use crate::error::Result;
use smq_model::architecture::Activation;

/// More rows than these are several tiles, which cuBLASLt multiplies faster.
pub(super) const MOST_ROWS: usize = 128;
/// Shared memory of a block, bytes, less what alignment may take.
const SHARED: usize = BLOCK_SHARED_BYTES - 1024;
/// Threads of a block: two warpgroups multiply, a warp copies.
const THREADS: usize = 288;

/// Whether the kernel does the product of `n` rows with `matrices`.
#[must_use]
pub fn fuses_bf16(matrices: &[DeviceMatrix], n: impl Into<RowCount>) -> bool {
    let m = n.into().like();
    let fits = |w: &DeviceMatrix| {
        // Whole groups of 128 outputs, which need no padding.
        w.rows.is_multiple_of(256) && w.cols.is_multiple_of(64)
    };
    match matrices {
        [w] => m <= MOST_ROWS && !w.is_coded() && fits(w),
        _ => false,
    }
}

/// How the kernel is cut for a number of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwigluCut {
    /// Macros.
    pub defines: Defines,
    /// Tokens of a tile.
    tile: usize,
    /// Dynamic shared memory, bytes.
    shared: usize,
}

impl SwigluCut {
    /// For `m` rows, or tiles of `MOST_ROWS`.
    #[must_use]
    pub fn new(w: &DeviceMatrix, m: usize, activation: Activation) -> Self {
        let tiles = [16, 32, 64, MOST_ROWS];
        let tile = tiles.into_iter().find(|t| *t >= m).unwrap_or(MOST_ROWS);
        let (stage, staged) = (128 * 128 + 128 * tile, 144 * tile);
        let stages = ((SHARED - staged) / (stage + 16)).min(8);
        let shared = stages * (stage + 16) + staged + 1024;
        let mut defines = vec![
            ("K", w.cols as i64),
            ("INTERMEDIATE", (w.rows / 2) as i64),
            ("TILE_M", tile as i64),
            ("STAGES", stages as i64),
            ("THREADS", THREADS as i64),
            ("DYNAMIC_SHARED", shared as i64),
        ];
        defines.extend(gate_define(activation));
        Self {
            defines,
            tile,
            shared,
        }
    }
}

/// The call for `m` rows of `x`, plain order, with `w`, gate rows first: bf16 `[m, w.rows / 2]` at
/// `out`, by the gate's function. Only where [`fuses_bf16`].
///
/// # Errors
/// As [`Kernels::get`] and [`TensorMap::bf16`].
pub fn swiglu_call(
    kernels: &Kernels,
    w: &DeviceMatrix,
    m: usize,
    x: &Activations,
    (out, activation): (u64, Activation),
) -> Result<Call> {
    let cut = SwigluCut::new(w, m, activation);
    let x_box = (64, cut.tile as u32);
    let x_map = TensorMap::bf16(x.span, x.stride, x.capacity, x_box)?;
    let w_map = TensorMap::bf16_halves(w.data, w.cols, w.rows, (64, 8))?;
    Ok(Call {
        kernel: kernels.get("swiglu_bf16.cu", cut.defines, "swiglu_bf16")?,
        launch: Launch::new(
            [m.div_ceil(cut.tile) as u32, (w.rows / 128) as u32],
            THREADS as u32,
        )
        .shared(cut.shared as u32)
        .overlap(),
        args: Args::new()
            .value(&x_map.words())
            .value(&w_map.words())
            .i32(m as i32)
            .ptr(out),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::memory::Span;
    use crate::cuda::weights::Format;

    #[test]
    fn every_cut_fits() {
        let matrix = |rows, cols, format| DeviceMatrix {
            rows,
            cols,
            data: Span::at(0, 0),
            format,
        };
        let w = matrix(16384, 3072, Format::Bf16);
        assert!(fuses_bf16(&[w], 1) && fuses_bf16(&[w], 128));
        assert!(!fuses_bf16(&[w], 129) && !fuses_bf16(&[w, w], 1));
        assert!(!fuses_bf16(&[matrix(16384 + 128, 3072, Format::Bf16)], 1));
        assert!(!fuses_bf16(&[matrix(16384, 3072 + 32, Format::Bf16)], 1));
        let scales = Span::at(0, 0);
        assert!(!fuses_bf16(
            &[matrix(16384, 3072, Format::Fp8 { scales })],
            1
        ));
        for m in 1..=MOST_ROWS {
            let cut = SwigluCut::new(&w, m, Activation::Silu);
            assert!(cut.tile >= m && (cut.tile == 16 || cut.tile < 2 * m));
            assert!(cut.shared <= BLOCK_SHARED_BYTES, "{cut:?}");
        }
    }
}
