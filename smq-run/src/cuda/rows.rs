//! Products of many activation rows: cuBLASLt for bf16 weights, `gemm_int4.cu` for int4, and for very many rows
//! int4 weights are widened to bf16 first.

use super::args::Args;
use super::blas::{Blas, MatMul, Output};
use super::kernels::{Call, Kernels};
use super::launch::Launch;
use super::memory::Span;
use super::stream::Stream;
use super::tensor_map::TensorMap;
use super::weights::{DeviceMatrix, Format};
use crate::error::Result;

/// From this many activation rows on, widening the weights once and cuBLASLt's products are faster than the int4 kernel:
/// sooner for matrices of few rows, whose tiles do not fill the GPU.
fn widen_from(w: &DeviceMatrix) -> usize {
    if w.rows < 8192 { 384 } else { 1024 }
}

/// A buffer of activation rows, bf16 `[capacity, stride]`, stride in elements.
#[derive(Debug, Clone, Copy)]
pub struct Activations {
    /// Its memory.
    pub span: Span,
    /// Rows that fit.
    pub capacity: usize,
    /// Elements from a row to the next: the columns rounded up to 128.
    pub stride: usize,
}

/// Where a product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// bf16 `[m, stride]`.
    Bf16(u64, usize),
    /// Added to f32 `[m, rows]`.
    Add(u64),
    /// `silu(gate) up`, bf16 `[m, rows / 2 rounded up to 128]`; the flag asks for int4 order. Only for
    /// [`reads_int4_order`] matrices.
    Swiglu(u64, bool),
}

/// What multiplies rows.
#[derive(Debug)]
pub struct RowProducts {
    blas: Blas,
    /// A matrix as bf16.
    wide: Span,
}

/// Whether the product with `matrices` wants its activations in int4 order: where the int4 kernel does it.
#[must_use]
pub fn reads_int4_order(matrices: &[DeviceMatrix], m: usize) -> bool {
    matches!(matrices, [one] if one.is_int4() && m < widen_from(one))
}

/// Bytes that widening a matrix takes; 0 where it is never done.
#[must_use]
pub fn wide_bytes(matrices: &[DeviceMatrix], m: usize) -> usize {
    let widened = |w: &&DeviceMatrix| w.is_coded() && !reads_int4_order(matrices, m);
    let bytes = |w: &DeviceMatrix| 2 * w.rows * w.cols;
    matrices
        .iter()
        .filter(widened)
        .map(bytes)
        .max()
        .unwrap_or(0)
}

impl RowProducts {
    /// With `wide`, as large as the largest [`wide_bytes`].
    #[must_use]
    pub fn new(blas: Blas, wide: Span) -> Self {
        Self { blas, wide }
    }

    /// Replaces the memory for widened matrices.
    pub fn set_wide(&mut self, wide: Span) {
        self.wide = wide;
    }

    /// Queues the products of `m` rows of `x` with `matrices`, side by side in `target`.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) from compiling or launching.
    ///
    /// # Safety
    /// `x` and `target` are large enough and stay allocated until the stream has run the products.
    pub unsafe fn run(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        matrices: &[DeviceMatrix],
        m: usize,
        x: &Activations,
        target: Target,
    ) -> Result<()> {
        if reads_int4_order(matrices, m) {
            let call = int4_call(kernels, &matrices[0], m, x, target)?;
            // SAFETY: the caller's promise; the weights are the model's.
            return unsafe { call.run(stream) };
        }
        let mut column = 0;
        for w in matrices {
            let (y, y_stride, output) = match target {
                Target::Bf16(y, stride) => (y + 2 * column as u64, stride, Output::Bf16),
                Target::Add(y) | Target::Swiglu(y, _) => (y, w.rows, Output::F32),
            };
            let plan = self.blas.plan(&MatMul {
                m,
                n: w.rows,
                k: w.cols,
                x_stride: x.stride,
                y_stride,
                output,
                accumulate: matches!(target, Target::Add(_)),
            })?;
            let data = if w.is_coded() {
                // SAFETY: `wide` holds the largest matrix; products before this one in the stream are done with it.
                unsafe { widen(kernels, w, self.wide.ptr())?.run(stream) }?;
                self.wide.ptr()
            } else {
                w.data.ptr()
            };
            // SAFETY: the caller's promise, and the weights are the model's or just widened.
            unsafe { self.blas.run(stream, &plan, data, x.span.ptr(), y) }?;
            column += w.rows;
        }
        Ok(())
    }
}

/// Widens a whole matrix of codes to bf16 at `out`, plain order.
///
/// # Errors
/// As [`Kernels::get`].
pub fn widen(kernels: &Kernels, w: &DeviceMatrix, out: u64) -> Result<Call> {
    let mut defines = vec![("K", w.cols as i64), ("GROUP", 128), ("OUT_INT4", 0)];
    defines.extend(w.scale_defines());
    let codes = Args::new().ptr(w.data.ptr());
    let (name, args) = match w.format {
        Format::Bf16 | Format::Int4 { .. } => {
            let (scales, bias) = w.scales();
            ("dequantize_int4", codes.ptr(scales).i32(bias))
        }
        Format::Nf4 {
            absmax,
            nested_absmax,
            offset,
        } => {
            let args = codes.ptr(absmax.ptr()).ptr(nested_absmax.ptr());
            ("dequantize_nf4", args.f32(offset))
        }
        Format::Fp8 { scales } => ("dequantize_fp8", codes.ptr(scales.ptr())),
    };
    Ok(Call {
        kernel: kernels.get("dequantize.cu", defines, name)?,
        launch: Launch::new((w.rows * w.cols / 8).div_ceil(512), 256).overlap(),
        args: args.i32(w.rows as i32).i32(0).ptr(out),
    })
}

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

impl Cut {
    /// As measured best on an H100 for the shapes of Phi-3.5.
    #[must_use]
    pub fn new(w: &DeviceMatrix, m: usize, target: Target, sms: usize) -> Self {
        let tiles = m.div_ceil(128);
        let tile = [16, 32, 64, 128]
            .into_iter()
            .find(|t| *t >= m.div_ceil(tiles))
            .unwrap_or(128);
        let swiglu = matches!(target, Target::Swiglu(..));
        let loops = swiglu && tiles > 1;
        let stages = match tile {
            16 | 32 => 8,
            64 => 6,
            // Where a block loops over token tiles, its ring keeps running.
            _ if loops => 5,
            _ => 4,
        };
        let warpgroups = 2;
        let (epilogue, order) = match target {
            Target::Bf16(..) => (0, 0),
            Target::Add(_) => (1, 0),
            Target::Swiglu(_, order) => (2, i64::from(order)),
        };
        let units = if swiglu {
            (w.rows / 2).div_ceil(128) * 4
        } else {
            w.rows.div_ceil(64)
        };
        let groups = w.cols.div_ceil(128);
        let blocks = units.div_ceil(warpgroups);
        let split = if swiglu || m.div_ceil(tile) > 2 {
            1
        } else {
            [4, 2]
                .into_iter()
                .find(|s| blocks * s <= sms && *s <= groups)
                .unwrap_or(1)
        };
        let columns = if swiglu { 32 } else { 64 } + 8;
        let staged = if epilogue == 1 {
            0
        } else {
            warpgroups * tile * columns * 2
        };
        let mut defines = vec![
            ("K", w.cols as i64),
            ("ROWS", w.rows as i64),
            ("EPILOGUE", epilogue),
            ("OUT_INT4", order),
            ("TILE_M", tile as i64),
            ("WARPGROUPS", warpgroups as i64),
            ("SPLIT_K", split as i64),
            ("MULTICAST", 1),
            ("STAGES", stages as i64),
            ("MIN_BLOCKS", 1),
        ];
        defines.extend(w.scale_defines());
        Self {
            defines,
            grid: [
                (blocks * split) as u32,
                if loops { 1 } else { m.div_ceil(tile) as u32 },
            ],
            threads: 128 * (warpgroups as u32 + 1),
            shared: (stages * (tile * 256 + warpgroups * 64 * 68) + staged + 16 * stages + 1024)
                as u32,
            tile,
        }
    }
}

/// The call of `gemm_int4.cu`.
///
/// # Errors
/// As [`Kernels::get`] and [`TensorMap::bf16`].
pub fn int4_call(
    kernels: &Kernels,
    w: &DeviceMatrix,
    m: usize,
    x: &Activations,
    target: Target,
) -> Result<Call> {
    let cut = Cut::new(w, m, target, kernels.gpu().sm_count() as usize);
    let (Target::Bf16(out, _) | Target::Add(out) | Target::Swiglu(out, _)) = target;
    let map = TensorMap::bf16(x.span, x.stride, x.capacity, (64, cut.tile as u32))?;
    let (scales, bias) = w.scales();
    Ok(Call {
        kernel: kernels.get("gemm_int4.cu", cut.defines, "gemm_int4")?,
        launch: Launch::new(cut.grid, cut.threads)
            .shared(cut.shared)
            .overlap(),
        args: Args::new()
            .value(&map.words())
            .ptr(w.data.ptr())
            .ptr(scales)
            .i32(bias)
            .i32(m as i32)
            .ptr(out),
    })
}

#[cfg(test)]
mod tests {
    use smq_format::scale::{MiniFloat, ScaleFormat};

    use super::super::arena::Arena;
    use super::super::weights::Format;
    use super::*;

    /// Bytes of shared memory that a block can have.
    const BLOCK_BYTES: usize = 227 << 10;
    /// Blocks of a cluster that every GPU with clusters has.
    const CLUSTER: usize = 8;
    const SMS: usize = 132;

    fn int4(rows: usize, cols: usize) -> DeviceMatrix {
        let mut arena = Arena::sizes();
        let format = MiniFloat::new(5, 5, 100).map(ScaleFormat::Mini).unwrap();
        DeviceMatrix {
            rows,
            cols,
            data: arena.take(rows * cols / 2).unwrap(),
            format: Format::Int4 {
                scales: arena.take(rows * cols.div_ceil(128) * 2).unwrap(),
                format,
            },
        }
    }

    /// What `gemm_int4.cu` asks of its macros and its launch.
    fn check(what: &str, w: &DeviceMatrix, m: usize, target: Target) {
        let what = &format!("{what}, {m} rows");
        let cut = Cut::new(w, m, target, SMS);
        let find = |name: &str| {
            cut.defines
                .iter()
                .find(|d| d.0 == name)
                .map(|d| d.1 as usize)
        };
        let get = |name| find(name).unwrap_or_else(|| panic!("{what}: no {name}"));
        let (tile, warpgroups, split) = (get("TILE_M"), get("WARPGROUPS"), get("SPLIT_K"));
        let (multicast, stages) = (get("MULTICAST"), get("STAGES"));
        let swiglu = matches!(target, Target::Swiglu(..));

        assert_eq!((get("K"), get("ROWS")), (w.cols, w.rows), "{what}");
        assert_eq!(cut.tile, tile, "{what}");
        assert!(
            [16, 32, 64, 96, 128].contains(&tile),
            "{what}: tiles of {tile}"
        );
        assert!(
            [1, 2].contains(&multicast),
            "{what}: the box is a whole tile"
        );
        assert_eq!(w.cols % 32, 0, "{what}");
        assert_eq!(w.rows % if swiglu { 64 } else { 8 }, 0, "{what}");
        assert_eq!(cut.threads as usize, 128 * (warpgroups + 1), "{what}");

        let units = if swiglu {
            (w.rows / 2).div_ceil(128) * 4
        } else {
            w.rows.div_ceil(64)
        };
        let x = units.div_ceil(warpgroups * multicast) * multicast * split;
        // SwiGLU's blocks loop over several token tiles, which asks for no split.
        let y = if swiglu && m > 128 {
            1
        } else {
            m.div_ceil(tile)
        };
        assert!(y == m.div_ceil(tile) || split == 1, "{what}");
        assert_eq!(cut.grid, [x as u32, y as u32], "{what}");
        assert!(
            multicast * split <= CLUSTER && x % (multicast * split) == 0,
            "{what}"
        );
        assert!(
            split <= w.cols.div_ceil(128),
            "{what}: a group for each of {split}"
        );
        assert!(split == 1 || (stages >= warpgroups && !swiglu), "{what}");

        let columns = if swiglu { 32 } else { 64 } + 8;
        let staged = match target {
            Target::Add(_) => 0,
            _ => warpgroups * tile * columns * 2,
        };
        let needed = stages * (tile * 256 + warpgroups * 64 * 68) + staged + 16 * stages + 1024;
        assert!(cut.shared as usize >= needed, "{what}: {needed} bytes");
        assert!(
            cut.shared as usize <= BLOCK_BYTES,
            "{what}: {} bytes",
            cut.shared
        );
    }

    #[test]
    fn every_product_of_the_tested_models_fits() {
        // Hidden, rows of qkv, attention's width, intermediate.
        for (name, [hidden, qkv, width, inner]) in [
            ("phi3-tiny", [256, 768, 256, 768]),
            ("SmolLM2-135M", [576, 960, 576, 1536]),
            ("Phi-3.5-mini", [3072, 9216, 3072, 8192]),
            ("Llama-3-8B", [4096, 6144, 4096, 14336]),
        ] {
            let (qkv_w, o) = (int4(qkv, hidden), int4(hidden, width));
            let (gate_up, down) = (int4(2 * inner, hidden), int4(hidden, inner));
            for m in [
                1, 2, 15, 16, 17, 32, 33, 64, 65, 127, 128, 129, 200, 257, 700, 1023,
            ] {
                check(&format!("{name}, qkv"), &qkv_w, m, Target::Bf16(0, qkv));
                check(&format!("{name}, o"), &o, m, Target::Add(0));
                check(&format!("{name}, down"), &down, m, Target::Add(0));
                for order in [false, true] {
                    let target = Target::Swiglu(0, order);
                    check(&format!("{name}, gate_up"), &gate_up, m, target);
                }
            }
        }
    }

    /// The rows of log-probabilities come in blocks, and every route has room for what it widens.
    #[test]
    fn what_is_widened_has_room() {
        let (fused, apart) = (
            [int4(256, 128)],
            [int4(128, 128), int4(64, 128), int4(64, 128)],
        );
        let from = widen_from(&fused[0]);
        for m in [1, 128, from - 1] {
            assert!(reads_int4_order(&fused, m) && !reads_int4_order(&apart, m));
            assert_eq!(wide_bytes(&fused, m), 0);
            assert_eq!(wide_bytes(&apart, m), 2 * 128 * 128);
        }
        assert!(!reads_int4_order(&fused, from));
        assert_eq!(wide_bytes(&fused, from), 2 * 256 * 128);
        let bf16 = DeviceMatrix {
            format: Format::Bf16,
            ..fused[0]
        };
        assert!(!reads_int4_order(&[bf16], 1));
        assert_eq!(wide_bytes(&[bf16], 2048), 0);
    }
}
