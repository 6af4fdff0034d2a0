//! Products in bf16 whose order of additions does not depend on the number of rows: `gemm_bf16.cu`.

use super::activations::Activations;
use super::args::Args;
use super::blas::{MatMul, Output};
use super::contract::{BLOCK_SHARED_BYTES, Defines};
use super::kernels::{Call, Kernels};
use super::launch::Launch;
use super::memory::Span;
use super::tensor_map::TensorMap;
use crate::error::Result;

/// Weight rows of a block.
const BLOCK_ROWS: usize = 128;
/// Threads of a block: two warpgroups multiply, a warp copies.
const THREADS: usize = 288;
/// Bytes of a token's outputs of a block on their way out, spread over the banks.
const OUT_PITCH_BYTES: usize = 2 * (BLOCK_ROWS + 8);

/// What `gemm_bf16.cu` does with its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Epilogue {
    /// Stores them as bf16.
    Bf16,
    /// Adds them to what is there in f32.
    Add,
}

/// How the kernel is cut for a product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bf16Cut {
    /// Macros.
    pub defines: Defines,
    /// Tokens of a tile.
    tile: usize,
    /// Blocks that share a product's columns.
    split: usize,
    /// Dynamic shared memory, bytes.
    shared: usize,
}

impl Bf16Cut {
    /// For `m` rows and a matrix of `rows` by `cols`; rows of bf16 output are `stride` elements
    /// apart, and f32 output is added to where there is no stride.
    #[must_use]
    pub fn new(m: usize, [rows, cols]: [usize; 2], stride: Option<usize>, sms: usize) -> Self {
        let tile = [16, 32, 64].into_iter().find(|t| *t >= m).unwrap_or(128);
        let epilogue = match stride {
            Some(_) => Epilogue::Bf16,
            None => Epilogue::Add,
        };
        let blocks = rows.div_ceil(BLOCK_ROWS);
        // Whatever `m` is: another split is another order of additions.
        let split = [4, 2]
            .into_iter()
            .find(|s| blocks * s <= sms && 4 * s <= cols / 64)
            .unwrap_or(1);
        let staged = match epilogue {
            Epilogue::Bf16 => tile * OUT_PITCH_BYTES,
            Epilogue::Add => 0,
        };
        let stage = 128 * (BLOCK_ROWS + tile);
        let stages = ((BLOCK_SHARED_BYTES - 1024 - staged) / (stage + 16)).min(8);
        let shared = stages * (stage + 16) + staged + 1024;
        let mut defines = vec![
            ("K", cols as i64),
            ("ROWS", rows as i64),
            ("EPILOGUE_BF16", Epilogue::Bf16 as i64),
            ("EPILOGUE_ADD", Epilogue::Add as i64),
            ("EPILOGUE", epilogue as i64),
            ("TILE_M", tile as i64),
            ("SPLIT_K", split as i64),
            ("STAGES", stages as i64),
            ("THREADS", THREADS as i64),
            ("DYNAMIC_SHARED", shared as i64),
        ];
        defines.extend(stride.map(|stride| ("OUT_STRIDE", stride as i64)));
        Self {
            defines,
            tile,
            split,
            shared,
        }
    }
}

impl Bf16Cut {
    /// The same, but f32 output replaces what is there.
    #[must_use]
    pub fn overwriting(mut self) -> Self {
        self.defines.push(("OVERWRITE", 1));
        self
    }
}

/// The call for `product` of `x`, plain order, with the weights at `w`; the result is at `y`. The
/// kernel reads weights as soon as it starts, so what makes them must have ended.
///
/// # Errors
/// As [`Kernels::get`] and [`TensorMap::bf16`].
pub(super) fn bf16_call(
    kernels: &Kernels,
    product: &MatMul,
    w: Span,
    x: &Activations,
    y: u64,
) -> Result<Call> {
    let MatMul { m, n, k, .. } = *product;
    let stride = match product.output {
        Output::Bf16 => Some(product.y_stride),
        Output::F32 => None,
    };
    let mut cut = Bf16Cut::new(m, [n, k], stride, kernels.gpu().sm_count() as usize);
    if stride.is_none() && !product.accumulate {
        cut = cut.overwriting();
    }
    let x_map = TensorMap::bf16(x.span, x.stride, x.capacity, (64, cut.tile as u32))?;
    let w_map = TensorMap::bf16(w, k, n, (64, BLOCK_ROWS as u32))?;
    let grid = [m.div_ceil(cut.tile) * cut.split, n.div_ceil(BLOCK_ROWS)].map(|n| n as u32);
    Ok(Call {
        kernel: kernels.get("gemm_bf16.cu", cut.defines, "gemm_bf16")?,
        launch: Launch::new(grid, THREADS as u32)
            .shared(cut.shared as u32)
            .overlap(),
        args: Args::new()
            .value(&x_map.words())
            .value(&w_map.words())
            .i32(m as i32)
            .ptr(y),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_fits_and_only_the_matrix_decides_the_order_of_additions() {
        for shape in [
            [3072, 3072],
            [9216, 3072],
            [3072, 8192],
            [32064, 3072],
            [576, 64],
        ] {
            for stride in [None, Some(shape[0])] {
                let cuts: Vec<Bf16Cut> = (1..=300)
                    .map(|m| Bf16Cut::new(m, shape, stride, 132))
                    .collect();
                for (cut, m) in cuts.iter().zip(1..) {
                    assert!(cut.tile >= m.min(128) && (cut.tile == 16 || cut.tile < 2 * m));
                    assert!(cut.shared <= BLOCK_SHARED_BYTES, "{cut:?}");
                    assert_eq!(cut.split, cuts[0].split);
                }
            }
        }
        let split = |shape| Bf16Cut::new(1, shape, None, 132).split;
        assert_eq!(
            [split([3072, 3072]), split([9216, 3072]), split([3072, 64])],
            [4, 1, 1]
        );
    }
}
