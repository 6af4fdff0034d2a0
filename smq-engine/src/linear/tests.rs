//! Every kernel on every instruction set of this machine against its naive twin.
//!
//! Tolerance: a sum of `n` products in f32, in any order, with or without FMA, errs by at most
//! `gamma_n * sum |w| |x|` with `gamma_n = n u / (1 - n u)`, `u = 2^-24` (Higham, Accuracy and
//! Stability, section 3.1). The int4 kernel adds one rounding for the scale: `n + 2` covers it,
//! as it does the twin's own rounding of `q * scale`.

use half::{bf16, f16};
use proptest::prelude::*;
use smq_format::Dtype;

use super::*;

mod schemes;

fn assert_close(
    got: &[f32],
    w: &[f32],
    x: &[f32],
    cols: usize,
) -> std::result::Result<(), TestCaseError> {
    let gamma = (cols + 2) as f64 * 2f64.powi(-24);
    let expected = naive::product(w, x, cols);
    prop_assert_eq!(got.len(), expected.len());
    for (i, ((got, want), bound)) in got
        .iter()
        .zip(expected)
        .zip(naive::magnitude(w, x, cols))
        .enumerate()
    {
        let error = (f64::from(*got) - want).abs();
        prop_assert!(
            error <= gamma * bound,
            "output {}: {} instead of {}",
            i,
            got,
            want
        );
    }
    Ok(())
}

/// Deterministic values of mixed sign and magnitude.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            unit * [1.0, 0.01, 8.0][(state >> 33) as usize % 3]
        })
        .collect()
}

struct Int4Case {
    nibbles: Vec<u8>,
    scales: Vec<f32>,
}

fn int4_case(rows: usize, cols: usize, group: usize, seed: u64) -> Int4Case {
    let mut nibbles: Vec<u8> = values(rows * cols.div_ceil(2), seed)
        .iter()
        .map(|v| (v * 255.0) as i32 as u8)
        .collect();
    if cols % 2 == 1 {
        nibbles
            .chunks_exact_mut(cols.div_ceil(2))
            .for_each(|row| row[cols / 2] &= 15);
    }
    let scales = values(rows * cols.div_ceil(group), seed ^ 7)
        .iter()
        .map(|v| v.abs())
        .collect();
    Int4Case { nibbles, scales }
}

fn run(isa: Isa, matrix: &Matrix<'_>, x: &[f32], m: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * matrix.rows];
    fused(
        isa,
        x,
        m,
        &mut [Product {
            matrix,
            out: &mut out,
        }],
    );
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn int4_equals_naive(rows in 1usize..40, cols in 1usize..700, group in 1usize..260, m in 1usize..9, seed: u64) {
        let case = int4_case(rows, cols, group, seed);
        let w = naive::dequantize(&case.nibbles, &case.scales, group, cols);
        let x = values(m * cols, seed ^ 1);
        let data = Weights::Int4 { nibbles: &case.nibbles, scales: case.scales.clone(), group };
        let matrix = Matrix { rows, cols, data };
        for isa in Isa::available() {
            assert_close(&run(isa, &matrix, &x, m), &w, &x, cols)?;
        }
        let mut plain = vec![0.0; rows * cols];
        matrix.dequantize(0..rows, &mut plain);
        prop_assert_eq!(plain, w);
    }

    #[test]
    fn dense_equals_naive(rows in 1usize..40, cols in 1usize..300, m in 1usize..9, seed: u64) {
        let (w, x) = (values(rows * cols, seed), values(m * cols, seed ^ 1));
        let bf16: Vec<bf16> = w.iter().map(|v| bf16::from_f32(*v)).collect();
        let f16: Vec<f16> = w.iter().map(|v| f16::from_f32(*v)).collect();
        let cases: [(Dtype, &[u8], Vec<f32>); 3] = [
            (Dtype::Bf16, bytemuck::cast_slice(&bf16), bf16.iter().map(|v| v.to_f32()).collect()),
            (Dtype::F16, bytemuck::cast_slice(&f16), f16.iter().map(|v| v.to_f32()).collect()),
            (Dtype::F32, bytemuck::cast_slice(&w), w.clone()),
        ];
        for (dtype, bytes, w) in cases {
            // Start at an odd address: a checkpoint's tensors need not be aligned.
            let shifted: Vec<u8> = std::iter::once(0).chain(bytes.iter().copied()).collect();
            let matrix = Matrix { rows, cols, data: Weights::Dense { dtype, bytes: &shifted[1..] } };
            for isa in Isa::available() {
                assert_close(&run(isa, &matrix, &x, m), &w, &x, cols)?;
            }
        }
    }
}

/// The shapes models have: SmolLM2's short last group, Phi-3.5's long rows; few activation rows and
/// many.
#[test]
fn model_shapes() {
    for (rows, cols) in [
        (192, 576),
        (1536, 576),
        (576, 1536),
        (300, 3072),
        (64, 8192),
    ] {
        let case = int4_case(rows, cols, 128, 3);
        let w = naive::dequantize(&case.nibbles, &case.scales, 128, cols);
        let data = Weights::Int4 {
            nibbles: &case.nibbles,
            scales: case.scales,
            group: 128,
        };
        let matrix = Matrix { rows, cols, data };
        for m in [1, 3, 12, 33] {
            let x = values(m * cols, 9);
            for isa in Isa::available() {
                assert_close(&run(isa, &matrix, &x, m), &w, &x, cols).unwrap();
            }
        }
    }
}

/// A set with different groups and types gives what each product gives alone, on any pool.
#[test]
fn a_set_is_its_members_and_threads_change_nothing() {
    let cols = 576;
    let case = int4_case(700, cols, 128, 5);
    let fine = int4_case(64, cols, 32, 6);
    let dense = values(500 * cols, 7);
    let matrices = [
        Matrix {
            rows: 700,
            cols,
            data: Weights::Int4 {
                nibbles: &case.nibbles,
                scales: case.scales,
                group: 128,
            },
        },
        Matrix {
            rows: 64,
            cols,
            data: Weights::Int4 {
                nibbles: &fine.nibbles,
                scales: fine.scales,
                group: 32,
            },
        },
        Matrix {
            rows: 500,
            cols,
            data: Weights::Dense {
                dtype: Dtype::F32,
                bytes: bytemuck::cast_slice(&dense),
            },
        },
    ];
    for m in [1, 5, 40] {
        let x = values(m * cols, 8);
        let together = |threads: usize| {
            let mut outs: Vec<Vec<f32>> = matrices.iter().map(|w| vec![0.0; m * w.rows]).collect();
            let mut set: Vec<_> = matrices
                .iter()
                .zip(&mut outs)
                .map(|(matrix, out)| Product { matrix, out })
                .collect();
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| products(&x, m, &mut set));
            outs
        };
        let one = together(1);
        for (matrix, out) in matrices.iter().zip(&one) {
            let mut alone = vec![0.0; m * matrix.rows];
            product(&x, m, matrix, &mut alone);
            assert_eq!(out, &alone);
        }
        assert_eq!(one, together(3));
    }
}
