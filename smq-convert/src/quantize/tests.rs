use proptest::prelude::*;
use smq_format::scale::Zero;

use super::*;

fn options(scales: ScaleChoice, rule: ScaleRule, group: usize) -> QuantizeOptions {
    QuantizeOptions {
        group,
        scales,
        rule,
    }
}

fn f32_bytes(w: &[f32]) -> Vec<u8> {
    w.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn run(w: &[f32], columns: usize, options: &QuantizeOptions) -> Quantized {
    let shape = (w.len() / columns, columns);
    quantize("w", &f32_bytes(w), Dtype::F32, shape, options).unwrap()
}

/// `w'` of every element, decoded from the blobs.
fn dequantize(q: &Quantized, columns: usize) -> Vec<f32> {
    let Scheme::Int4 { group, scales } = q.scheme else {
        panic!("not int4")
    };
    let groups = columns.div_ceil(group);
    let rows = q.blobs[0].chunks(int4::row_bytes(columns)).enumerate();
    rows.flat_map(|(row, nibbles)| {
        let scales: Vec<f32> = (row * groups..(row + 1) * groups)
            .map(|i| bits::code_at(&q.blobs[1], scales.width_bits(), i))
            .map(|code| scales.decode(code).unwrap())
            .collect();
        let mut out = vec![0.0; columns];
        int4::dequantize_row_naive(nibbles, &scales, group, &mut out);
        out
    })
    .collect()
}

fn remeasured(w: &[f32], v: &[f32], columns: usize, group: usize) -> ErrorSummary {
    let row = |all: &[f32], row: usize, out: &mut [f32]| {
        out.copy_from_slice(&all[row * columns..(row + 1) * columns]);
    };
    let stored = |i: usize, out: &mut [f32]| {
        row(v, i, out);
        Ok::<(), ()>(())
    };
    remeasure(
        (w.len() / columns, columns),
        group,
        |i, out| row(w, i, out),
        stored,
    )
    .unwrap()
}

/// Codes and errors straight from the formula, in f64 sums.
fn naive(w: &[f32], s: f32) -> (Vec<i8>, [f64; 4], u32) {
    let (mut codes, mut sums, mut clipped) = (Vec::new(), [0.0; 4], 0);
    for &w in w {
        let rounded = if s == 0.0 {
            0.0
        } else {
            (w / s).round_ties_even()
        };
        let code = rounded.clamp(-8.0, 7.0);
        clipped += u32::from(code != rounded);
        codes.push(code as i8);
        let v = code * s;
        let terms = [(w - v) * (w - v), w * w, v * v, w * v];
        for (sum, term) in sums.iter_mut().zip(terms) {
            *sum += f64::from(term);
        }
    }
    (codes, sums, clipped)
}

fn weights(len: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(
        prop_oneof![8 => -1f32..1.0, 1 => -1e-3f32..1e-3, 1 => Just(0.0)],
        len,
    )
}

proptest! {
    /// Every instruction set against the formula: codes equal, sums within f32 rounding of n terms
    /// in 16 lanes (each lane adds at most ceil(n / 16) terms, the tree 4 more: relative error (n /
    /// 16 + 5) eps of the sum of magnitudes).
    #[test]
    fn kernels_agree_with_the_formula(w in weights(1..300), divisor in 3f32..9.0) {
        let max = w.iter().fold(0f32, |m, v| m.max(v.abs()));
        let s = round_mantissa(max / divisor, 5, Zero::Truncate);
        let (codes, sums, clipped) = naive(&w, s);
        let mut first: Option<GroupError> = None;
        for kernel in Kernel::available() {
            prop_assert_eq!(kernel.max_abs(&w), Some(max));
            let mut q = vec![99i8; w.len()];
            let errors = kernel.quantize(&w, max, s, &mut q);
            prop_assert_eq!(&q, &codes);
            prop_assert_eq!(errors.clipped, clipped);
            prop_assert_eq!(kernel.errors(&w, max, s), errors);
            let mut beside = vec![99i8; w.len()];
            let both = kernel.quantize_beside(&w, max, s, max / divisor, &mut beside);
            prop_assert_eq!(both, [errors, kernel.errors(&w, max, max / divisor)]);
            prop_assert_eq!(&beside, &codes);
            let (mut rel_mse, mut cosine) = ([0.0; 2], [0.0; 2]);
            kernel.figures(&both, w.len(), &mut rel_mse, &mut cosine);
            prop_assert_eq!(rel_mse, both.map(|errors| errors.rel_mse(w.len())));
            prop_assert_eq!(cosine, both.map(|errors| errors.cosine()));
            // One source, one order of summation: the same bits on every instruction set.
            prop_assert_eq!(*first.get_or_insert(errors), errors);
            let got = [
                errors.squared_error,
                errors.squared_weight,
                errors.squared_stored,
                errors.product,
            ];
            let magnitude = [sums[0], sums[1], sums[2], (sums[1] * sums[2]).sqrt()];
            let steps = w.len() as f64 / 16.0 + 5.0;
            for ((got, sum), magnitude) in got.into_iter().zip(sums).zip(magnitude) {
                let tolerance = steps * f64::from(f32::EPSILON) * magnitude;
                prop_assert!((f64::from(got) - sum).abs() <= tolerance);
            }
        }
    }

    /// `|w - w'| <= s'/2` unless clipped, and clipping is bounded by how far s' lies under s.
    #[test]
    fn round_trip_is_within_half_a_step(w in weights(256), mantissa_bits in 1u32..=10) {
        let columns = 64;
        let options = options(ScaleChoice::e5(mantissa_bits), ScaleRule::Reference, 32);
        let q = run(&w, columns, &options);
        let restored = dequantize(&q, columns);
        for (w, v) in w.chunks(32).zip(restored.chunks(32)) {
            let max = w.iter().fold(0f32, |m, x| m.max(x.abs()));
            let s = max.max(1e-8) / 7.0;
            let shrink = 2f32.powi(-(mantissa_bits as i32) - 1);
            let bound = s * (0.5 * (1.0 + shrink) + 7.0 * shrink) * 1.0001;
            for (w, v) in w.iter().zip(v) {
                prop_assert!((w - v).abs() <= bound, "{w} {v} {s}");
            }
        }
    }

    #[test]
    fn the_record_matches_what_is_stored(
        w in weights(480),
        mantissa_bits in 0u32..=10,
        odd in 0usize..3,
    ) {
        let columns = [96, 60, 15][odd];
        let options = options(ScaleChoice::e5(mantissa_bits), ScaleRule::Reference, 32);
        let q = run(&w, columns, &options);
        let again = remeasured(&w, &dequantize(&q, columns), columns, 32);
        prop_assert_eq!(again, q.statistics.stored);
    }

    #[test]
    fn search_is_never_worse_than_nearest(w in weights(256), mantissa_bits in 0u32..=5) {
        let error = |rule| {
            let q = run(&w, 64, &options(ScaleChoice::e5(mantissa_bits), rule, 32));
            q.statistics.stored.squared_error
        };
        prop_assert!(error(ScaleRule::Search) <= error(ScaleRule::Nearest));
    }
}

#[test]
fn error_shrinks_with_mantissa_width() {
    let w: Vec<f32> = (0..64 * 256)
        .map(|i| ((i as f32 * 0.7371).sin() + (i as f32 * 0.113).cos()) * 0.05)
        .collect();
    let errors: Vec<f64> = [0, 1, 3, 10]
        .map(|x| {
            run(
                &w,
                256,
                &options(ScaleChoice::e5(x), ScaleRule::Reference, 128),
            )
        })
        .iter()
        .map(|q| (q.statistics.stored.mean_rel_mse - q.statistics.exact.mean_rel_mse).abs())
        .collect();
    assert!(errors.is_sorted_by(|a, b| a > b), "{errors:?}");
}

#[test]
fn sign_is_kept_and_the_extremes_are_used() {
    let w: Vec<f32> = (-64..64).map(|i| i as f32 / 64.0).collect();
    let restored = dequantize(
        &run(
            &w,
            128,
            &options(ScaleChoice::e5(5), ScaleRule::Reference, 128),
        ),
        128,
    );
    for (w, v) in w.iter().zip(&restored) {
        assert!(v * w >= 0.0, "{w} became {v}");
    }
    // The signed rule maps the largest magnitude, -1, to -8 exactly: the scale 1/8 needs no
    // rounding.
    let q = run(
        &w,
        128,
        &options(ScaleChoice::e5(5), ScaleRule::Signed, 128),
    );
    assert_eq!(dequantize(&q, 128)[0], -1.0);
    let flipped: Vec<f32> = w.iter().map(|v| -v).collect();
    let q = run(
        &flipped,
        128,
        &options(ScaleChoice::e5(5), ScaleRule::Signed, 128),
    );
    assert_eq!(dequantize(&q, 128)[0], 1.0);
    assert_eq!(int4::unpack(q.blobs[0][0]).0, -8);
}

#[test]
fn zero_weights_stay_zero() {
    let mut w = vec![0.0; 256];
    w[130] = 0.5;
    let q = run(
        &w,
        256,
        &options(ScaleChoice::e5(5), ScaleRule::Reference, 128),
    );
    assert_eq!(bits::code_at(&q.blobs[1], 11, 0), 0);
    assert_eq!(q.statistics.zero_groups, 1);
    assert_eq!(q.statistics.under_window, 0);
    assert_eq!(dequantize(&q, 256)[..128], [0.0; 128]);
    let all = run(
        &[0.0; 128],
        128,
        &options(ScaleChoice::e5(5), ScaleRule::Reference, 128),
    );
    let Scheme::Int4 {
        scales: ScaleFormat::Mini(format),
        ..
    } = all.scheme
    else {
        panic!("not E5Mx")
    };
    assert_eq!(format.bias(), 0);
}

#[test]
fn an_outlier_of_a_million_keeps_its_group_and_no_other() {
    let mut w = vec![0.01; 256];
    w[7] = 1e6;
    let q = run(
        &w,
        256,
        &options(ScaleChoice::e5(5), ScaleRule::Reference, 128),
    );
    let restored = dequantize(&q, 256);
    // E5M5 rounds the scale by at most 1/64, and the outlier's code is 7.
    assert!((restored[7] - 1e6).abs() <= 1e6 / 64.0);
    assert!(restored[8..128].iter().all(|v| *v == 0.0));
    assert!(
        restored[128..]
            .iter()
            .all(|v| (v - 0.01).abs() < 0.01 / 64.0 + 1e-6)
    );
}

#[test]
fn a_scale_under_the_window_is_counted_and_requantized() {
    let mut w = vec![1e-9; 256];
    w[..128].fill(7.0 * 4.0);
    let q = run(
        &w,
        256,
        &options(ScaleChoice::e5(3), ScaleRule::Reference, 128),
    );
    // Scales 4 and about 1.4e-9 = 2^-29.4; the window of 4 = 2^2 ends at 2^-28, and half of that is
    // less.
    assert_eq!(q.statistics.under_window, 1);
    assert_eq!(dequantize(&q, 256)[200], 0.0);
    let again = remeasured(&w, &dequantize(&q, 256), 256, 128);
    assert_eq!(again, q.statistics.stored);
}

#[test]
fn not_finite_weights_are_located() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut w = vec![0.5; 300];
        w[223] = value;
        let error = quantize(
            "w",
            &f32_bytes(&w),
            Dtype::F32,
            (3, 100),
            &options(ScaleChoice::e5(5), ScaleRule::Reference, 128),
        );
        let Err(QuantizeError::NotFinite {
            row: 2, column: 23, ..
        }) = error
        else {
            panic!("{error:?}")
        };
    }
}

#[test]
fn f16_scales_overflow_and_underflow_visibly() {
    let f16 = options(ScaleChoice::F16, ScaleRule::Reference, 128);
    let huge = quantize("w", &f32_bytes(&[1e6; 128]), Dtype::F32, (1, 128), &f16);
    assert!(matches!(huge, Err(QuantizeError::ScaleOverflow(_))));
    let tiny = run(&[1e-8; 128], 128, &f16);
    assert_eq!(tiny.statistics.under_window, 1);
    assert_eq!(dequantize(&tiny, 128), [0.0; 128]);
}
