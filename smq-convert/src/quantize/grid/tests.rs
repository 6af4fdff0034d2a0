use proptest::prelude::*;
use smq_format::scale::{Zero, round_mantissa};
use smq_format::{Dtype, LevelChoice, ScaleChoice, bits, lut4};

use super::super::{Method, Quantized, remeasure};
use super::*;

fn options(scales: ScaleChoice, rule: ScaleRule, group: usize) -> QuantizeOptions {
    QuantizeOptions {
        group,
        scales,
        rule,
    }
}

fn run(w: &[f32], columns: usize, options: QuantizeOptions, levels: LevelChoice) -> Quantized {
    let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
    let shape = (w.len() / columns, columns);
    let method = Method::Lut4 { options, levels };
    method.quantize("w", &bytes, Dtype::F32, shape).unwrap()
}

/// The scales and `w'` of every element, decoded from the blobs.
fn decoded(q: &Quantized, columns: usize) -> (Vec<f32>, Vec<f32>) {
    let Scheme::Lut4 {
        group,
        scales: format,
        levels,
    } = q.scheme
    else {
        panic!("not lut4")
    };
    let groups = columns.div_ceil(group);
    let rows = q.blobs[0].chunks(int4::row_bytes(columns));
    let codes =
        (0..rows.len() * groups).map(|i| bits::code_at(&q.blobs[1], format.width_bits(), i));
    let scales: Vec<f32> = codes.map(|code| format.decode(code).unwrap()).collect();
    let weights = rows
        .zip(scales.chunks(groups))
        .flat_map(|(nibbles, scales)| {
            let mut out = vec![0.0; columns];
            lut4::dequantize_row_naive(nibbles, scales, group, levels, &mut out);
            out
        });
    let weights = weights.collect();
    (scales, weights)
}

/// The code of the nearest level, the lower one of two, and whether it is more than half a step off
/// the ends.
fn naive(book: &Book, w: f32, s: f32) -> (i8, bool) {
    let v = if s == 0.0 { 0.0 } else { w / s };
    let distance = |level: f32| (f64::from(v) - f64::from(level)).abs();
    let mut best = 0;
    for i in 1..16 {
        if distance(book.values[i]) < distance(book.values[best]) {
            best = i;
        }
    }
    let half = |i: usize| f64::from(book.values[i + 1] - book.values[i]) / 2.0;
    let end = if v < 0.0 { half(0) } else { half(14) };
    let beyond = v < book.values[0] || v > book.values[15];
    (
        best as i8,
        s != 0.0 && beyond && distance(book.values[best]) > end,
    )
}

fn weights(len: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(
        prop_oneof![8 => -1f32..1.0, 1 => -1e-3f32..1e-3, 1 => Just(0.0)],
        len,
    )
}

fn books() -> impl Strategy<Value = Levels> {
    let any = prop::collection::btree_set(any::<i8>(), 16).prop_map(|set| {
        let levels: Vec<i8> = set.into_iter().collect();
        Levels::new(levels.try_into().unwrap()).unwrap()
    });
    prop_oneof![any, Just(Levels::int4()), Just(Levels::nf4())]
}

proptest! {
    /// Every instruction set against the definition: codes equal, and the errors those of the
    /// weights that they mean.
    #[test]
    fn kernels_agree_with_the_definition(
        w in weights(1..300), levels in books(), divisor in 60f32..140.0, zero in 0u8..8,
    ) {
        let book = Book::new(levels);
        let max = w.iter().fold(0f32, |m, v| m.max(v.abs()));
        let s = if zero == 0 { 0.0 } else { round_mantissa(max / divisor, 3, Zero::Nearest) };
        let (codes, clipped): (Vec<i8>, Vec<bool>) = w.iter().map(|w| naive(&book, *w, s)).unzip();
        let v: Vec<f32> = codes.iter().map(|q| book.values[*q as usize] * s).collect();
        let clipped = clipped.iter().filter(|c| **c).count() as u32;
        for kernel in Kernel::available() {
            let mut q = vec![99i8; w.len()];
            let errors = kernel.quantize_levels(&w, s, &book, &mut q);
            prop_assert_eq!(&q, &codes);
            prop_assert_eq!(errors.clipped, clipped);
            prop_assert_eq!(kernel.errors_levels(&w, s, &book), errors);
            prop_assert_eq!(GroupError { clipped, ..kernel.compare(&w, &v) }, errors);
        }
    }

    /// Levels -8 to 7 round as int4 does, but that a quotient halfway goes down.
    #[test]
    fn the_book_of_equal_steps_is_int4(w in weights(1..300), divisor in 3f32..9.0) {
        let book = Book::new(Levels::int4());
        let max = w.iter().fold(0f32, |m, v| m.max(v.abs()));
        let s = round_mantissa(max / divisor, 5, Zero::Nearest);
        prop_assume!(s > 0.0 && w.iter().all(|w| (w / s).fract().abs() != 0.5));
        let kernel = Kernel::detect();
        let (mut as_int4, mut as_book) = (vec![0; w.len()], vec![0; w.len()]);
        let errors = kernel.quantize(&w, max, s, &mut as_int4);
        prop_assert_eq!(kernel.quantize_levels(&w, s, &book, &mut as_book), errors);
        prop_assert!(as_int4.iter().zip(&as_book).all(|(a, b)| a + 8 == *b));
    }

    /// The record is that of what the blobs hold, and each element has the nearest level of the
    /// stored scale.
    #[test]
    fn statistics_are_those_of_the_stored_weights(
        rows in 1usize..6, columns in 1usize..200, group in 1usize..140, seed in weights(1200),
        rule in 0usize..4, scales in 0usize..4,
        learned: bool,
    ) {
        let w: Vec<f32> = seed[..rows * columns].to_vec();
        let e5 = ScaleChoice::e5;
        let scales = [e5(0), e5(3), ScaleChoice::F16, ScaleChoice::F32][scales];
        let choice = if learned { LevelChoice::Learned } else { LevelChoice::Nf4 };
        let q = run(&w, columns, options(scales, ScaleRule::ALL[rule], group), choice);
        let (scales, v) = decoded(&q, columns);
        let row = |all: &[f32], row: usize, out: &mut [f32]| {
            out.copy_from_slice(&all[row * columns..(row + 1) * columns]);
        };
        let again = remeasure(
            (rows, columns), group,
            |i, out| row(&w, i, out),
            |i, out| { row(&v, i, out); Ok::<(), ()>(()) },
        ).unwrap();
        prop_assert_eq!(q.statistics.stored, again);
        let Scheme::Lut4 { levels, .. } = q.scheme else { panic!("not lut4") };
        let book = Book::new(levels);
        let groups = columns.div_ceil(group);
        for (i, (w, v)) in w.iter().zip(&v).enumerate() {
            let s = scales[i / columns * groups + i % columns / group];
            let (code, _) = naive(&book, *w, s);
            prop_assert_eq!(book.values[code as usize] * s, *v);
        }
    }
}

fn normal(len: usize) -> Vec<f32> {
    let mut state = 7u64;
    let mut unit = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| (0..6).map(|_| unit()).sum()).collect()
}

/// What the scheme is for: less error than int4 of the same scales, learned levels less than NF4's,
/// and the sign bit less still.
#[test]
fn errors_fall_from_int4_to_nf4_to_learned_to_signed() {
    let w = normal(256 * 512);
    let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
    let error = |method: Method| {
        let q = method
            .quantize("w", &bytes, Dtype::F32, (256, 512))
            .unwrap();
        q.statistics.stored.squared_error
    };
    let nearest = options(ScaleChoice::e5(3), ScaleRule::Nearest, 128);
    let book = |rule, levels| {
        let options = QuantizeOptions { rule, ..nearest };
        error(Method::Lut4 { options, levels })
    };
    let errors = [
        error(Method::Int4(nearest)),
        book(ScaleRule::Nearest, LevelChoice::Nf4),
        book(ScaleRule::Nearest, LevelChoice::Learned),
        book(ScaleRule::Signed, LevelChoice::Learned),
    ];
    assert!(errors.windows(2).all(|e| e[1] < e[0]), "{errors:?}");
}

#[test]
fn the_largest_element_falls_on_the_largest_level() {
    let w = [0.25f32, -1.27, 0.5, 0.1, 0.0, 2.54, -2.54, 0.3];
    for (rule, expected) in [
        (ScaleRule::Nearest, [0.01f32, 0.02]),
        (ScaleRule::Signed, [0.01, -0.02]),
    ] {
        let q = run(&w, 8, options(ScaleChoice::F32, rule, 4), LevelChoice::Nf4);
        let (scales, v) = decoded(&q, 8);
        assert!(
            scales
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-7),
            "{scales:?}"
        );
        assert!((v[1] + 1.27).abs() < 1e-6 && (v[5] - 2.54).abs() < 1e-6);
        assert_eq!(q.statistics.clipped, 0);
    }
}

#[test]
fn groups_of_zeros_have_the_code_of_zero_and_what_is_not_finite_is_named() {
    let q = run(
        &[0.0; 12],
        6,
        options(ScaleChoice::e5(3), ScaleRule::Nearest, 4),
        LevelChoice::Learned,
    );
    assert_eq!(q.blobs[0], [0x77; 6]);
    assert!(decoded(&q, 6).1.iter().all(|v| v.to_bits() == 0));
    assert_eq!((q.statistics.zero_groups, q.statistics.groups), (4, 4));
    let mut w = [1f32; 12];
    w[9] = f32::NAN;
    let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
    for levels in LevelChoice::ALL {
        let options = options(ScaleChoice::e5(3), ScaleRule::Nearest, 4);
        let method = Method::Lut4 { options, levels };
        let error = format!(
            "{:?}",
            method
                .quantize("w", &bytes, Dtype::F32, (2, 6))
                .unwrap_err()
        );
        assert_eq!(error, "NotFinite { row: 1, column: 3, value: NaN }");
    }
}

#[test]
fn threads_change_nothing() {
    let w = normal(200 * 130);
    let made = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let options = options(ScaleChoice::e5(3), ScaleRule::Signed, 128);
        pool.install(|| run(&w, 130, options, LevelChoice::Learned))
    };
    assert_eq!(made(1), made(3));
}
