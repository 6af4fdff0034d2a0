//! Decode products: how `gemv.cu` is cut for a matrix, and its calls.

use super::args::Args;
use super::kernels::{Call, Defines, Kernels};
use super::launch::Launch;
use super::weights::DeviceMatrix;
use crate::error::{Error, Result};

/// What surrounds the product (`gemv.cu` says exactly).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// Stores the result.
    Store,
    /// Adds it to the residual stream and prepares the next product's input.
    Residual,
    /// `silu(gate) up` of two matrices, or of the halves of one.
    Swiglu,
    /// Stores it and finds each block's largest value.
    Logits,
}

/// One product's place in the step.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// What surrounds it.
    pub epilogue: Epilogue,
    /// Whether its input still lacks RMSNorm's factor.
    pub normed: bool,
    /// Width of the residual stream.
    pub hidden: usize,
    /// RMSNorm's epsilon.
    pub eps: f32,
}

/// Addresses that a product reads and writes; those that its epilogue does not use are 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Buffers {
    /// f32 `[cols]`.
    pub x: u64,
    /// f32 `[grid]`.
    pub square_sums: u64,
    /// f32 `[rows]`.
    pub out: u64,
    /// f32 `[rows]`.
    pub next_norm: u64,
    /// f32.
    pub next_x: u64,
    /// f32 `[grid]`.
    pub next_square_sums: u64,
    /// f32 `[grid]`.
    pub best_value: u64,
    /// i32 `[grid]`.
    pub best_index: u64,
}

/// Shared memory of an SM that two blocks can share, bytes a block: 228 KiB in all, 1 KiB a block taken.
const HALF_SM: usize = 113 * 1024;
/// Over a third of an SM: never three blocks on one. The blocks of a kernel, one for each SM, then spread evenly,
/// beside those of the kernel before.
const OVER_THIRD: usize = 80 * 1024;
/// All that a block can have.
const WHOLE_SM: usize = 226 * 1024;

/// Bytes that an SM has on their way from memory at a time, as measured best (kernels/NOTES.md).
const IN_FLIGHT_INT4: usize = 25_000;
const IN_FLIGHT_BF16: usize = 37_000;
/// Largest stage of the ring, bytes.
const STAGE_INT4: usize = 24 << 10;
const STAGE_BF16: usize = 12 << 10;

/// How the kernel is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Macros.
    pub defines: Defines,
    /// Threads a block.
    pub threads: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// All of it, with static and the system's own, bytes.
    pub whole_shared: usize,
}

impl Cut {
    /// For `matrices` (stacked, stored alike) on a GPU of `sms` multiprocessors.
    #[must_use]
    pub fn new(matrices: &[DeviceMatrix], product: &Product, sms: usize) -> Self {
        let (first, swiglu) = (&matrices[0], product.epilogue == Epilogue::Swiglu);
        let (k, int4) = (first.cols, first.is_int4());
        let row_bytes = if int4 { k / 2 } else { 2 * k };
        let mut rows = [0; 3];
        for (to, m) in rows.iter_mut().zip(matrices) {
            *to = m.rows;
        }
        if swiglu && matrices.len() == 1 {
            rows = [first.rows / 2, first.rows / 2, 0];
        }
        let stage_limit = if int4 { STAGE_INT4 } else { STAGE_BF16 };
        // A ring stage in whole lines of 128 bytes.
        let splits = |n: &usize| {
            row_bytes.is_multiple_of(*n)
                && (row_bytes / n).is_multiple_of(128)
                && 8 * row_bytes / n <= stage_limit
        };
        let ksplit = (1..=64).find(splits).unwrap_or(1);
        let chunk = row_bytes / ksplit;
        let lines = chunk.div_ceil(128);
        // As many warps as share the lines with the least left over.
        let most = if int4 { 12 } else { 16 };
        let idle = |w: usize| (lines.div_ceil(w) * w - lines, lines.div_ceil(w));
        let warps = (1..=most)
            .rev()
            .filter(|w| lines.div_ceil(*w) <= 2.max(lines.div_ceil(most)))
            .min_by_key(|w| idle(*w))
            .unwrap_or(most);
        let tile_rows = if swiglu { 4 } else { 8 };
        let tiles: usize = if swiglu {
            rows[0] / 4
        } else {
            rows.iter().map(|r| r / tile_rows).sum()
        };
        let max_tiles = tiles.div_ceil(sms);
        let groups = k.div_ceil(128);
        let scale_defines = first.scale_defines();
        let width = scale_defines[1].1 as usize;
        let runs = if swiglu { 2 } else { 1 };
        let run_bytes = (8 / runs * groups * width / 8 + 16 + 4).next_multiple_of(16);
        let scales = if int4 {
            (4 * 8 * max_tiles * (groups | 1)).next_multiple_of(16) + max_tiles * runs * run_bytes
        } else {
            0
        };
        let other = 128 + 4 * 8 * max_tiles * warps + scales;
        let fixed = 1024
            + if int4 {
                warps * 768
            } else {
                k.div_ceil(64) * 256
            };
        let stage = 8 * chunk;
        let work = max_tiles * ksplit;
        let fit = |limit: usize| limit.saturating_sub(fixed + other) / stage;
        let stages = match fit(HALF_SM).min(work) {
            few if few >= 2.min(work) => few,
            _ => fit(WHOLE_SM).min(work).max(1),
        };
        let unroll = if int4 && ksplit == 1 && max_tiles >= 6 && stages >= 2 {
            2
        } else {
            1
        };
        let in_flight = if int4 { IN_FLIGHT_INT4 } else { IN_FLIGHT_BF16 } / stage;
        let shared = (stages * stage + other).max(OVER_THIRD.saturating_sub(fixed));
        let mut defines: Defines = vec![
            ("K", k as i64),
            ("INT4", i64::from(int4)),
            ("EPILOGUE", product.epilogue as i64),
            ("NORMED", i64::from(product.normed)),
            ("SEG0", rows[0] as i64),
            ("SEG1", rows[1] as i64),
            ("SEG2", rows[2] as i64),
            ("GRID", sms as i64),
            ("WARPS", warps as i64),
            ("STAGES", stages as i64),
            ("UNROLL", unroll),
            ("IN_FLIGHT", in_flight.clamp(1, stages) as i64),
            ("KSPLIT", ksplit as i64),
            ("HIDDEN", product.hidden as i64),
            ("EPS_BITS", i64::from(product.eps.to_bits())),
        ];
        defines.extend(scale_defines);
        Self {
            defines,
            threads: 32 * (warps as u32 + 1),
            shared: shared as u32,
            whole_shared: shared + fixed,
        }
    }
}

/// The call of one product.
///
/// # Errors
/// As [`Kernels::get`].
pub fn call(
    kernels: &Kernels,
    matrices: &[DeviceMatrix],
    product: &Product,
    buffers: &Buffers,
) -> Result<Call> {
    let sms = kernels.gpu().sm_count();
    let cut = Cut::new(matrices, product, sms as usize);
    if cut.whole_shared > WHOLE_SM {
        let (rows, cols) = (matrices[0].rows, matrices[0].cols);
        return Err(Error::Cuda(format!(
            "the decode kernel of a [{rows}, {cols}] matrix needs {} bytes of shared memory, a block has {WHOLE_SM}; \
             leave such a matrix unquantized (--target mlp or all), or run with --device cpu",
            cut.whole_shared
        )));
    }
    let mut args = Args::new();
    for i in 0..3 {
        let (data, scales, first_scale, bias) = match matrices.get(i) {
            Some(m) => {
                let (scales, bias) = m.scales();
                (m.data.ptr(), scales, 0, bias)
            }
            // The up projection is the second half of a fused matrix.
            None if i == 1 && product.epilogue == Epilogue::Swiglu => {
                let m = &matrices[0];
                let (scales, bias) = m.scales();
                let first = m.rows / 2 * m.cols.div_ceil(128);
                (
                    m.data.ptr() + m.data.bytes() as u64 / 2,
                    scales,
                    first,
                    bias,
                )
            }
            None => (0, 0, 0, 0),
        };
        args = args.ptr(data).ptr(scales).u32(first_scale as u32).i32(bias);
    }
    let b = buffers;
    for pointer in [
        b.x,
        b.square_sums,
        b.out,
        b.next_norm,
        b.next_x,
        b.next_square_sums,
        b.best_value,
        b.best_index,
    ] {
        args = args.ptr(pointer);
    }
    Ok(Call {
        kernel: kernels.get("gemv.cu", cut.defines, "gemv")?,
        launch: Launch::new(sms, cut.threads).shared(cut.shared).overlap(),
        args,
    })
}

#[cfg(test)]
mod tests {
    use smq_format::scale::{MiniFloat, ScaleFormat};

    use super::super::arena::Arena;
    use super::super::weights::Format;
    use super::*;

    /// Bytes of shared memory that a block can have, and of an SM; a block takes 1 KiB besides.
    const BLOCK_BYTES: usize = 227 << 10;
    const SM_BYTES: usize = 228 << 10;
    const TAKEN: usize = 1 << 10;
    const SM_REGISTERS: usize = 65536;

    fn matrix(rows: usize, cols: usize, scales: Option<ScaleFormat>) -> DeviceMatrix {
        let mut arena = Arena::sizes();
        let format = match scales {
            None => Format::Bf16,
            Some(format) => Format::Int4 {
                scales: arena.take(rows * cols.div_ceil(128) * 4).unwrap(),
                format,
            },
        };
        let bytes = if scales.is_some() {
            rows * cols / 2
        } else {
            2 * rows * cols
        };
        let data = arena.take(bytes).unwrap();
        DeviceMatrix {
            rows,
            cols,
            data,
            format,
        }
    }

    /// What `gemv.cu` asks of its macros and its launch.
    fn check(what: &str, matrices: &[DeviceMatrix], epilogue: Epilogue, sms: usize) {
        let product = Product {
            epilogue,
            normed: epilogue != Epilogue::Residual,
            hidden: 4096,
            eps: 1e-5,
        };
        let cut = Cut::new(matrices, &product, sms);
        let get = |name| {
            let mut found = cut.defines.iter().filter(|d| d.0 == name);
            let value = found.next().unwrap_or_else(|| panic!("no {name}")).1;
            assert!(found.next().is_none(), "{what}: {name} twice");
            usize::try_from(value).unwrap()
        };
        let (k, warps, stages) = (get("K"), get("WARPS"), get("STAGES"));
        let (unroll, ksplit, width) = (get("UNROLL"), get("KSPLIT"), get("SCALE_WIDTH"));
        let (int4, swiglu) = (get("INT4") == 1, epilogue == Epilogue::Swiglu);
        assert_eq!(get("GRID"), sms, "{what}");
        assert_eq!(cut.threads as usize, 32 * (warps + 1), "{what}");
        assert!(cut.threads <= 1024, "{what}");

        // Every row is some tile's.
        let rows: usize = matrices.iter().map(|m| m.rows).sum();
        let segments = [get("SEG0"), get("SEG1"), get("SEG2")];
        assert_eq!(segments.iter().sum::<usize>(), rows, "{what}");
        let step = if swiglu { 4 } else { 8 };
        assert!(segments.iter().all(|s| s % step == 0), "{what}");
        if swiglu {
            assert_eq!((segments[0], segments[2]), (segments[1], 0), "{what}");
        }
        let max_tiles = (rows / 8).div_ceil(sms);

        // The ring.
        let row_bytes = if int4 { k / 2 } else { 2 * k };
        let chunk = row_bytes / ksplit;
        assert_eq!(row_bytes % ksplit, 0, "{what}");
        assert!(
            chunk % 16 == 0 && (ksplit == 1 || chunk % 128 == 0),
            "{what}: pieces of {chunk} bytes"
        );
        assert!(stages >= 1 && unroll >= 1, "{what}");
        assert!(
            unroll <= stages && stages > ksplit * (unroll - 1),
            "{what}: {stages} stages, {unroll} tiles of {ksplit} together"
        );
        // A transaction count of a barrier has 20 bits.
        assert!(8 * chunk < 1 << 20, "{what}");
        if epilogue == Epilogue::Residual {
            assert!(8 * max_tiles <= 32 * warps, "{what}: one thread a row");
        }

        // Shared memory.
        let groups = k.div_ceil(128);
        let (runs, run_rows) = if swiglu { (2, 4) } else { (1, 8) };
        let run_bytes = (run_rows * groups * width / 8 + 16 + 4).div_ceil(16) * 16;
        let scales = if int4 {
            (32 * max_tiles * (groups | 1)).next_multiple_of(16) + max_tiles * runs * run_bytes
        } else {
            0
        };
        let needed = stages * 8 * chunk + 128 + 32 * max_tiles * warps + scales;
        assert!(cut.shared as usize >= needed, "{what}: {needed} bytes");
        let fixed = 16 * stages
            + 16 * warps
            + if int4 {
                768 * warps
            } else {
                256 * k.div_ceil(64)
            };
        let all = cut.shared as usize + fixed;
        assert!(all <= BLOCK_BYTES, "{what}: {all} bytes a block");
        // Never three blocks: the next kernel's spread evenly beside this one's.
        assert!(3 * (all + TAKEN) > SM_BYTES, "{what}: {all} bytes a block");

        // The activations of a lane stay in its registers, as two blocks share them.
        if int4 {
            let lines = ksplit * chunk.div_ceil(128).div_ceil(warps);
            let registers = SM_REGISTERS / 2 / (32 * (warps + 1));
            assert!(
                9 * lines + 32 <= registers,
                "{what}: {lines} lines a lane in {registers} registers"
            );
        }
    }

    #[test]
    fn every_product_of_the_tested_models_fits() {
        let mini = |mantissa| ScaleFormat::Mini(MiniFloat::new(5, mantissa, 100).unwrap());
        let formats = [
            None,
            Some(ScaleFormat::F32),
            Some(ScaleFormat::F16),
            Some(mini(0)),
            Some(mini(3)),
            Some(mini(5)),
            Some(mini(10)),
        ];
        // Hidden, heads, kv heads, head size, intermediate, vocabulary; projections fused or not.
        for (name, shape, fused) in [
            ("phi3-tiny", [256, 8, 8, 32, 768, 4096], true),
            ("SmolLM2-135M", [576, 9, 3, 64, 1536, 49152], false),
            ("Phi-3.5-mini", [3072, 32, 32, 96, 8192, 32064], true),
            ("Llama-3-8B", [4096, 32, 8, 128, 14336, 128_256], false),
        ] {
            let [hidden, heads, kv_heads, head, inner, vocab] = shape;
            let (q, kv) = (heads * head, kv_heads * head);
            for format in formats {
                let of = |rows, cols| matrix(rows, cols, format);
                let (qkv, gate_up) = if fused {
                    (vec![of(q + 2 * kv, hidden)], vec![of(2 * inner, hidden)])
                } else {
                    (
                        vec![of(q, hidden), of(kv, hidden), of(kv, hidden)],
                        vec![of(inner, hidden); 2],
                    )
                };
                for sms in [132, 114, 144] {
                    let name = format!("{name}, {format:?}, {sms} SMs");
                    let check = |part, matrices: &[_], epilogue| {
                        check(&format!("{name}, {part}"), matrices, epilogue, sms);
                    };
                    check("qkv", &qkv, Epilogue::Store);
                    check("o", &[of(hidden, q)], Epilogue::Residual);
                    check("gate_up", &gate_up, Epilogue::Swiglu);
                    check("down", &[of(hidden, inner)], Epilogue::Residual);
                    // An int4 head of so many rows does not fit with its scales.
                    if format.is_none() || vocab < 100_000 {
                        check("head", &[of(vocab, hidden)], Epilogue::Logits);
                    }
                }
            }
        }
    }
}
