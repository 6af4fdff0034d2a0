//! Times decode products against a plain read of the same weight bytes:
//! `cargo run --release --example linear`.
//!
//! Weights are rotated through 512 MB, so that every pass comes from memory and not from a cache.
//! Each figure is the best over all matrices, which other programs disturb least.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;
use smq_engine::linear::{Matrix, Weights, product};
use smq_format::Dtype;

const POOL_BYTES: usize = 512 << 20;
/// `[out, in]` of larger products of Phi-3.5-mini and SmolLM2.
const SHAPES: [(usize, usize); 5] = [
    (9216, 3072),
    (16384, 3072),
    (3072, 8192),
    (3072, 576),
    (49152, 576),
];

fn main() {
    let word = |i: usize| (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let pool: Vec<u8> = (0..POOL_BYTES / 8)
        .flat_map(|i| word(i).to_le_bytes())
        .collect();
    println!(
        "{:>14}  {:>2}  {:>5}  {:>8}  {:>6}  {:>9}",
        "[out, in]", "m", "type", "us", "GB/s", "read GB/s"
    );
    for (rows, cols) in SHAPES {
        let groups = rows * cols.div_ceil(128);
        for m in [1, 2, 4, 8] {
            for name in ["int4", "bf16"] {
                let bytes = rows * cols * if name == "int4" { 1 } else { 4 } / 2;
                let matrices = pool.chunks_exact(bytes).map(|bytes| match name {
                    "int4" => Weights::Int4 {
                        nibbles: bytes,
                        scales: vec![0.5; groups],
                        group: 128,
                    },
                    _ => Weights::Dense {
                        dtype: Dtype::Bf16,
                        bytes,
                    },
                });
                let matrices: Vec<_> = matrices.map(|data| Matrix { rows, cols, data }).collect();
                let x: Vec<f32> = (0..m * cols).map(|i| (i % 17) as f32 - 8.0).collect();
                let mut out = vec![0.0; m * rows];
                let (mut best, mut best_read) = (f64::INFINITY, f64::INFINITY);
                let mut measure = || {
                    for (matrix, bytes) in matrices.iter().zip(pool.chunks_exact(bytes).rev()) {
                        let start = Instant::now();
                        product(&x, m, matrix, &mut out);
                        best = best.min(start.elapsed().as_secs_f64());
                        let start = Instant::now();
                        read(bytes);
                        best_read = best_read.min(start.elapsed().as_secs_f64());
                    }
                };
                rayon::scope(|_| measure());
                black_box(&out);
                let weight_bytes = matrices[0].weight_bytes() as f64;
                println!(
                    "{:>14}  {m:>2}  {name:>5}  {:>8.1}  {:>6.1}  {:>9.1}",
                    format!("[{rows}, {cols}]"),
                    best * 1e6,
                    weight_bytes / best / 1e9,
                    bytes as f64 / best_read / 1e9
                );
            }
        }
    }
}

/// A loop that only reads, on all threads.
fn read(bytes: &[u8]) {
    let sum = bytes.par_chunks(256 << 10).map(|chunk| {
        let words = chunk.as_chunks::<8>().0.iter();
        words.fold(0, |sum, b| sum ^ u64::from_le_bytes(*b))
    });
    black_box(sum.reduce(|| 0, |a, b| a ^ b));
}
