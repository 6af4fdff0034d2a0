//! Times decode products against a plain read of the same weight bytes: `cargo run --release --example linear`.
//!
//! Weights are rotated through 512 MB, so that every pass comes from memory and not from a cache.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;
use smq_format::Dtype;
use smq_run::linear::{Matrix, Weights, product};

const POOL_BYTES: usize = 512 << 20;
/// `[out, in]` of Phi-3.5-mini's and SmolLM2's larger products.
const SHAPES: [(usize, usize); 5] = [
    (9216, 3072),
    (16384, 3072),
    (3072, 8192),
    (1536, 576),
    (49152, 576),
];

fn main() -> smq_run::Result<()> {
    let pool: Vec<u8> = (0..POOL_BYTES / 8)
        .flat_map(|i| (i as u64 ^ 0x5bd1).wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    println!(
        "{:>14}  {:>2}  {:>5}  {:>10}  {:>8}  {:>9}",
        "[out, in]", "m", "type", "us", "GB/s", "read GB/s"
    );
    for (rows, cols) in SHAPES {
        for m in [1, 2, 4, 8] {
            let x: Vec<f32> = (0..m * cols).map(|i| (i % 17) as f32 - 8.0).collect();
            let mut out = vec![0.0; m * rows];
            let int4 = pool.chunks_exact(rows * cols / 2).map(|nibbles| {
                let scales = vec![0.5; rows * cols.div_ceil(128)];
                Matrix {
                    rows,
                    cols,
                    data: Weights::Int4 {
                        nibbles,
                        scales,
                        group: 128,
                    },
                }
            });
            let bf16 = pool.chunks_exact(rows * cols * 2).map(|bytes| Matrix {
                rows,
                cols,
                data: Weights::Dense {
                    dtype: Dtype::Bf16,
                    bytes,
                },
            });
            for (name, matrices) in [("int4", int4.collect::<Vec<_>>()), ("bf16", bf16.collect())] {
                let bytes = matrices[0].weight_bytes() as f64;
                let mut best = f64::INFINITY;
                for _ in 0..3 {
                    let start = Instant::now();
                    rayon::scope(|_| {
                        matrices
                            .iter()
                            .try_for_each(|w| product(&x, m, w, &mut out))
                    })?;
                    best = best.min(start.elapsed().as_secs_f64() / matrices.len() as f64);
                }
                black_box(&out);
                let (us, gb) = (best * 1e6, bytes / best / 1e9);
                println!(
                    "{:>14}  {m:>2}  {name:>5}  {us:>10.1}  {gb:>8.1}  {:>9.1}",
                    format!("[{rows}, {cols}]"),
                    read_gb_s(&pool)
                );
            }
        }
    }
    Ok(())
}

/// 10^9 bytes a second of a loop that only reads, on all threads.
fn read_gb_s(pool: &[u8]) -> f64 {
    let start = Instant::now();
    let sum: u64 = pool
        .par_chunks(1 << 20)
        .map(|chunk| {
            chunk
                .as_chunks::<8>()
                .0
                .iter()
                .fold(0, |sum, b| sum ^ u64::from_le_bytes(*b))
        })
        .reduce(|| 0, |a, b| a ^ b);
    black_box(sum);
    pool.len() as f64 / start.elapsed().as_secs_f64() / 1e9
}
