//! Code books, NF4 and FP8 on every instruction set against their definitions. The tolerance of the
//! first two is int4's: a sum of `n` products and one scale. An FP8 sum has two scales more: two
//! roundings for their product and its application, and as the weights' and the activations' values
//! are exact in f32, none else, so `n + 2` covers it too.

use smq_format::{Levels, fp8, lut4, nf4};

use super::*;

struct Nf4Case {
    nibbles: Vec<u8>,
    absmax: Vec<f32>,
}

fn nf4_case(elems: usize, seed: u64) -> Nf4Case {
    let nibbles = values(elems.div_ceil(2), seed);
    Nf4Case {
        nibbles: nibbles.iter().map(|v| (v * 255.0) as i32 as u8).collect(),
        absmax: values(nf4::blocks(elems), seed ^ 7),
    }
}

impl Nf4Case {
    fn matrix(&self, rows: usize, cols: usize) -> Matrix<'_> {
        let data = Weights::Nf4 {
            nibbles: &self.nibbles,
            absmax: self.absmax.clone(),
            bf16: false,
        };
        Matrix { rows, cols, data }
    }

    fn weights(&self, elems: usize) -> Vec<f32> {
        let mut w = vec![0.0; elems];
        nf4::dequantize_naive(&self.nibbles, &self.absmax, 0, &mut w);
        w
    }
}

fn fp8_codes(n: usize, seed: u64) -> Vec<u8> {
    values(n, seed)
        .iter()
        .map(|v| fp8::encode(v * 60.0))
        .collect()
}

/// The definition: each row of `x` in E4M3, `[m, rows]` sums in f64 with both scales, and the sums
/// of magnitudes.
fn fp8_naive(codes: &[u8], scales: &[f32], x: &[f32], cols: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let x_scale = largest.max(1e-12) / 448.0;
        let x: Vec<f32> = x
            .iter()
            .map(|x| fp8::VALUES[usize::from(fp8::encode_naive(x / x_scale))])
            .collect();
        for (codes, &scale) in codes.chunks_exact(cols).zip(scales) {
            let scale = f64::from(x_scale) * f64::from(scale);
            let products = codes
                .iter()
                .zip(&x)
                .map(|(&code, x)| f64::from(fp8::VALUES[usize::from(code)]) * f64::from(*x));
            let products: Vec<f64> = products.collect();
            let sum: f64 = products.iter().sum();
            let magnitude: f64 = products.iter().map(|p| p.abs()).sum();
            out.push((sum * scale, magnitude * scale.abs()));
        }
    }
    out
}

fn assert_fp8_close(got: &[f32], want: &[(f64, f64)], cols: usize) {
    let gamma = (cols + 2) as f64 * 2f64.powi(-24);
    assert_eq!(got.len(), want.len());
    for (i, (got, (want, magnitude))) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(
            error <= gamma * magnitude,
            "output {i}: {got} instead of {want}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn nf4_equals_naive(rows in 1usize..40, blocks in 1usize..8, cut in 0usize..64, m in 1usize..9, seed: u64) {
        // Half of the cases have whole blocks a row, which the fused kernel takes.
        let cols = if seed % 2 == 0 { 64 * blocks } else { 64 * blocks - cut };
        let case = nf4_case(rows * cols, seed);
        let (w, x) = (case.weights(rows * cols), values(m * cols, seed ^ 1));
        let matrix = case.matrix(rows, cols);
        let rounded: Vec<f32> = w.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
        for isa in Isa::available() {
            assert_close(&run(isa, &matrix, &x, m), &w, &x, cols)?;
            let matrix = case.matrix(rows, cols).in_bf16();
            assert_close(&run(isa, &matrix, &x, m), &rounded, &x, cols)?;
        }
        let mut plain = vec![0.0; (rows - rows / 2) * cols];
        matrix.dequantize(rows / 2..rows, &mut plain);
        prop_assert_eq!(&plain, &w[rows / 2 * cols..]);
        case.matrix(rows, cols).in_bf16().dequantize(rows / 2..rows, &mut plain);
        prop_assert_eq!(&plain, &rounded[rows / 2 * cols..]);
    }

    #[test]
    fn lut4_equals_naive(
        rows in 1usize..40, cols in 1usize..700, group in 1usize..260, m in 1usize..9, seed: u64,
        levels in prop::collection::btree_set(any::<i8>(), 16),
    ) {
        let levels: Vec<i8> = levels.into_iter().collect();
        let levels = Levels::new(levels.try_into().unwrap()).unwrap();
        let case = int4_case(rows, cols, group, seed);
        let row_bytes = cols.div_ceil(2);
        let mut w = vec![0.0; rows * cols];
        let scales = case.scales.chunks_exact(cols.div_ceil(group));
        for ((w, nibbles), scales) in
            w.chunks_exact_mut(cols).zip(case.nibbles.chunks_exact(row_bytes)).zip(scales)
        {
            lut4::dequantize_row_naive(nibbles, scales, group, levels, w);
        }
        let x = values(m * cols, seed ^ 1);
        let data = Weights::Lut4 {
            nibbles: &case.nibbles,
            scales: case.scales.clone(),
            group,
            levels,
        };
        let matrix = Matrix { rows, cols, data };
        for isa in Isa::available() {
            assert_close(&run(isa, &matrix, &x, m), &w, &x, cols)?;
        }
        let mut plain = vec![0.0; rows * cols];
        matrix.dequantize(0..rows, &mut plain);
        prop_assert_eq!(plain, w);
    }

    #[test]
    fn fp8_equals_naive(rows in 1usize..40, cols in 1usize..300, m in 1usize..9, seed: u64) {
        let (codes, scales) = (fp8_codes(rows * cols, seed), values(rows, seed ^ 7));
        let x = values(m * cols, seed ^ 1);
        let want = fp8_naive(&codes, &scales, &x, cols);
        let matrix = Matrix { rows, cols, data: Weights::Fp8 { codes: &codes, scales } };
        for isa in Isa::available() {
            assert_fp8_close(&run(isa, &matrix, &x, m), &want, cols);
        }
    }
}

/// All 254 numbers, each alone in a product with 1.
#[test]
fn every_fp8_code_has_its_value() {
    let codes: Vec<u8> = (0..=255).filter(|c| !fp8::is_nan(*c)).collect();
    for isa in Isa::available() {
        for at in 0..32 {
            let w: Vec<u8> = codes
                .iter()
                .flat_map(|code| (0..32).map(|i| if i == at { *code } else { 0 }))
                .collect();
            let mut out = vec![0.0; codes.len()];
            dense::product_e4m3(isa, &w, &[1.0; 32], 1, &mut out);
            let want: Vec<f32> = codes.iter().map(|c| fp8::VALUES[usize::from(*c)]).collect();
            assert_eq!(out, want);
        }
    }
}

/// One row and many, at Phi-3.5's row lengths.
#[test]
fn model_shapes() {
    for (rows, cols) in [(300, 3072), (64, 8192), (192, 576)] {
        let case = nf4_case(rows * cols, 3);
        let (w, codes, scales) = (
            case.weights(rows * cols),
            fp8_codes(rows * cols, 4),
            values(rows, 5),
        );
        let (nf4, fp8) = (
            case.matrix(rows, cols),
            Matrix {
                rows,
                cols,
                data: Weights::Fp8 {
                    codes: &codes,
                    scales: scales.clone(),
                },
            },
        );
        for m in [1, 33] {
            let x = values(m * cols, 9);
            let mut out = vec![f32::NAN; m * rows];
            product(&x, m, &nf4, &mut out);
            assert_close(&out, &w, &x, cols).unwrap();
            product(&x, m, &fp8, &mut out);
            assert_fp8_close(&out, &fp8_naive(&codes, &scales, &x, cols), cols);
        }
    }
}

/// Zeros stay zeros, and a NaN or an infinity in one token is in that token's outputs and no
/// other's.
#[test]
fn fp8_tokens_are_their_own() {
    let (codes, scales) = (fp8_codes(4 * 32, 1), vec![0.5; 4]);
    let data = Weights::Fp8 {
        codes: &codes,
        scales,
    };
    let matrix = Matrix {
        rows: 4,
        cols: 32,
        data,
    };
    let mut x = values(4 * 32, 2);
    x[..32].fill(0.0);
    x[40] = f32::NAN;
    x[70] = f32::INFINITY;
    for isa in Isa::available() {
        let out = run(isa, &matrix, &x, 4);
        assert_eq!(out[..4], [0.0; 4]);
        assert!(out[4..12].iter().all(|v| v.is_nan()));
        assert!(out[12..].iter().all(|v| v.is_finite() && *v != 0.0));
    }
}

/// Each row has the same outputs, to the last bit, alone and among any number of others: in every
/// scheme, on every instruction set, with odd groups and short last ones.
#[test]
fn rows_do_not_depend_on_each_other() {
    let most = 35;
    for (rows, cols, group) in [(37, 576, 128), (21, 333, 32), (9, 195, 65), (70, 64, 200)] {
        let (case, nf4) = (int4_case(rows, cols, group, 3), nf4_case(rows * cols, 4));
        let (codes, dense) = (fp8_codes(rows * cols, 5), values(rows * cols, 6));
        let bf16: Vec<bf16> = dense.iter().map(|v| bf16::from_f32(*v)).collect();
        let f16: Vec<f16> = dense.iter().map(|v| f16::from_f32(*v)).collect();
        let levels = Levels::new(std::array::from_fn(|i| {
            (16 * i as i16 - 120 + i as i16 % 3) as i8
        }))
        .unwrap();
        let of = |dtype, bytes| Weights::Dense { dtype, bytes };
        let nibbles = &case.nibbles;
        let all = [
            of(Dtype::F32, bytemuck::cast_slice(&dense)),
            of(Dtype::Bf16, bytemuck::cast_slice(&bf16)),
            of(Dtype::F16, bytemuck::cast_slice(&f16)),
            Weights::Int4 {
                nibbles,
                scales: case.scales.clone(),
                group,
            },
            Weights::Lut4 {
                nibbles,
                scales: case.scales.clone(),
                group,
                levels,
            },
            nf4.matrix(rows, cols).data,
            nf4.matrix(rows, cols).in_bf16().data,
            Weights::Fp8 {
                codes: &codes,
                scales: values(rows, 7),
            },
        ];
        let x = values(most * cols, 8);
        for (data, isa) in all
            .iter()
            .flat_map(|d| Isa::available().into_iter().map(move |i| (d, i)))
        {
            let data = data.clone();
            let matrix = Matrix { rows, cols, data };
            let alone: Vec<f32> = x
                .chunks_exact(cols)
                .flat_map(|x| run(isa, &matrix, x, 1))
                .collect();
            for m in [2, 3, 8, most] {
                let together = run(isa, &matrix, &x[..m * cols], m);
                let same = together
                    .iter()
                    .zip(&alone)
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(
                    same,
                    "{m} rows of [{rows}, {cols}], {isa:?}, {:?}",
                    matrix.data
                );
            }
        }
    }
}
