//! The bits of a row, against a second way of computing them: from `spec/cache.md` in binary64, by
//! search where there is something to be found, and without anything of the first but its types.

use half::bf16;
use proptest::prelude::*;

use super::*;

/// A row's codes, its scales, and what is read of it.
type Stored = (Vec<u8>, Vec<u8>, Vec<f32>);

fn stored(format: KvCode, row: &[f32]) -> Stored {
    let bytes = format.row(row.len());
    // What was there before must not matter.
    let (mut codes, mut scales) = (vec![0xa5; bytes.codes], vec![0x5a; bytes.scales]);
    encode(format, row, &mut codes, &mut scales);
    let mut read = vec![f32::NAN; row.len()];
    decode(format, row.len(), &codes, &scales, &mut read);
    (codes, scales, read)
}

/// The nearest of the values `from`, each with its code; of two such the one that is told to be
/// even.
fn nearest(v: f64, from: &[(f64, i32, bool)]) -> (f64, i32) {
    let distance = |c: &(f64, i32, bool)| (c.0 - v).abs();
    let order = |a: &&(f64, i32, bool), b: &&(f64, i32, bool)| {
        let nearer = distance(a).total_cmp(&distance(b));
        nearer.then(b.2.cmp(&a.2))
    };
    let best = from.iter().min_by(order).unwrap();
    (best.0, best.1)
}

/// E4M3's values: `mantissa 2^exponent`, as the OCP's specification lists them.
fn e4m3() -> Vec<(f64, i32, bool)> {
    let magnitude = |code: i32| match (code >> 3, code & 7) {
        (0, m) => f64::from(m) * 2f64.powi(-9),
        (e, m) => (1.0 + f64::from(m) / 8.0) * 2f64.powi(e - 7),
    };
    let positive = (0..=0x7e).map(|c| (magnitude(c), c, c % 2 == 0));
    let negative = (1..=0x7e).map(|c| (-magnitude(c), c | 0x80, c % 2 == 0));
    positive.chain(negative).collect()
}

fn integers(from: i32, to: i32) -> Vec<(f64, i32, bool)> {
    (from..=to).map(|i| (f64::from(i), i, i % 2 == 0)).collect()
}

/// The scales of int4, but for their signs.
fn group_scales() -> Vec<(f64, i32, bool)> {
    let value = |c: i32| (1.0 + f64::from(c & 3) / 4.0) * 2f64.powi((c >> 2) - 21);
    (4..128).map(|c| (value(c), c, c % 2 == 0)).collect()
}

fn naive(format: KvCode, row: &[f32]) -> Stored {
    let x: Vec<f64> = row.iter().map(|v| bf16::from_f32(*v).to_f64()).collect();
    let (mut codes, mut scales, mut read) = (Vec::new(), Vec::new(), Vec::new());
    match format {
        KvCode::Bf16 => {
            for v in row {
                codes.extend(bf16::from_f32(*v).to_le_bytes());
                read.push(bf16::from_f32(*v).to_f32());
            }
        }
        KvCode::Fp8 | KvCode::Int8 => {
            let (values, fits) = match format {
                KvCode::Fp8 => (e4m3(), 448.0),
                _ => (integers(-127, 127), 127.5),
            };
            if x.iter().any(|v| !v.is_finite()) {
                return (vec![0; row.len()], vec![255], vec![f32::NAN; row.len()]);
            }
            let max = x.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            // The least power of two under which everything fits.
            let exponent = (10..255)
                .find(|e| max <= fits * 2f64.powi(e - 127))
                .unwrap();
            scales.push(exponent as u8);
            let scale = 2f64.powi(exponent - 127);
            for v in x {
                let (value, code) = nearest(v / scale, &values);
                codes.push(code as u8);
                read.push((value * scale) as f32);
            }
        }
        KvCode::Int4 => {
            for group in x.chunks(32) {
                let nibbles = if group.iter().any(|v| !v.is_finite()) {
                    scales.push(1);
                    read.extend(vec![f32::NAN; group.len()]);
                    vec![0; group.len()]
                } else {
                    let max = group.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
                    let largest = *group.iter().find(|v| v.abs() == max).unwrap();
                    let all = group_scales();
                    // What is over the window becomes the largest.
                    let (mut scale, mut code) = nearest((max / 8.0).min(1792.0), &all);
                    // Halfway to the smallest scale what is rounded becomes that one. Two bits of
                    // mantissa there are rounded first, to `7/8 2^-21` and so on.
                    let smallest = 2f64.powi(-20);
                    let step = smallest / 8.0;
                    if max / 8.0 < smallest
                        && (max / 8.0 / step).round_ties_even() * step < smallest / 2.0
                    {
                        (scale, code) = (0.0, 0);
                    }
                    if code != 0 && largest > 0.0 {
                        (scale, code) = (-scale, code | 128);
                    }
                    scales.push(code as u8);
                    let nibble = |v: &f64| match scale {
                        0.0 => 0,
                        _ => {
                            let quotient = f64::from((*v as f32) / (scale as f32));
                            nearest(quotient.clamp(-9.0, 8.0), &integers(-8, 7)).1
                        }
                    };
                    let nibbles: Vec<i32> = group.iter().map(nibble).collect();
                    read.extend(nibbles.iter().map(|q| (f64::from(*q) * scale) as f32));
                    nibbles
                };
                let pair = |p: &[i32]| (p[0] & 15) | (p.get(1).unwrap_or(&0) & 15) << 4;
                codes.extend(nibbles.chunks(2).map(|p| pair(p) as u8));
            }
        }
    }
    (codes, scales, read)
}

/// Values that are equal, or NaN alike; of zeros the sign does not matter.
fn same(a: &[f32], b: &[f32]) -> bool {
    let pairs = a.iter().zip(b);
    a.len() == b.len()
        && pairs
            .clone()
            .all(|(a, b)| a == b || (a.is_nan() && b.is_nan()))
}

const CODES: [KvCode; 4] = [KvCode::Bf16, KvCode::Fp8, KvCode::Int8, KvCode::Int4];

fn check(row: &[f32]) {
    for format in CODES {
        let (codes, scales, read) = stored(format, row);
        let (naive_codes, naive_scales, naive_read) = naive(format, row);
        assert_eq!(scales, naive_scales, "scales of {format:?}, {row:?}");
        // A code of -0 is that of a zero, with a sign.
        let unsigned = |code: &u8| if *code == 0x80 { 0 } else { *code };
        match format {
            KvCode::Fp8 => assert_eq!(
                codes.iter().map(unsigned).collect::<Vec<_>>(),
                naive_codes.iter().map(unsigned).collect::<Vec<_>>(),
                "codes of {format:?}, {row:?}"
            ),
            _ => assert_eq!(codes, naive_codes, "codes of {format:?}, {row:?}"),
        }
        assert!(
            same(&read, &naive_read),
            "{format:?} of {row:?}: {read:?}, {naive_read:?}"
        );
    }
}

/// Values of every size, of all signs, powers of two and their neighbours among them.
fn element() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -4.0f32..4.0,
        1 => (-140i32..128, -1.0f32..1.0).prop_map(|(e, m)| m * 2f32.powi(e)),
        1 => (-30i32..20, any::<bool>()).prop_map(|(e, up)| {
            if up { 2f32.powi(e) } else { -2f32.powi(e) }
        }),
        1 => Just(0.0f32),
        1 => Just(-0.0f32),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_row_is_what_the_specification_says(
        row in prop_oneof![
            prop::collection::vec(element(), 1..100),
            prop::collection::vec(element(), 64..=64),
        ]
    ) {
        check(&row);
    }

    /// What was read and is stored again stays what it is.
    #[test]
    fn what_is_read_is_stored_as_it_is(row in prop::collection::vec(-4.0f32..4.0, 64..=64)) {
        for format in [KvCode::Bf16, KvCode::Fp8, KvCode::Int8] {
            let once = stored(format, &row);
            let twice = stored(format, &once.2);
            prop_assert!(same(&once.2, &twice.2), "{:?}", format);
        }
    }

    /// Every value that is read is exact in bf16, however a kernel multiplies.
    #[test]
    fn what_is_read_is_exact_in_bf16(row in prop::collection::vec(element(), 1..100)) {
        for format in CODES {
            for v in stored(format, &row).2 {
                prop_assert_eq!(bf16::from_f32(v).to_f32(), v, "{:?}", format);
            }
        }
    }

    /// A row is rounded by no more than its format says.
    #[test]
    fn errors_are_within_bounds(row in prop::collection::vec(-1e4f32..1e4, 96..=96)) {
        for format in CODES {
            let read = stored(format, &row).2;
            for (group, read) in row.chunks(32).zip(read.chunks(32)) {
                let max = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let group_max = group.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                for (v, r) in group.iter().zip(read) {
                    let bound = match format {
                        KvCode::Bf16 => v.abs() / 256.0,
                        // Half a step of 2^-4, and bf16's rounding before it; under the subnormals
                        // half of 2^-9 of a scale that is at most 2^-7 of the largest.
                        KvCode::Fp8 => (v.abs() / 14.0).max(max * 2f32.powi(-17)),
                        KvCode::Int8 => max / 127.0 + v.abs() / 256.0,
                        // Half a step of at most 9/8 of an eighth; where the scale was rounded down, or
                        // the sign is the largest's opposite, what is beyond the ends.
                        KvCode::Int4 => group_max * 0.24,
                    };
                    prop_assert!((v - r).abs() <= bound, "{:?}: {} is read as {}", format, v, r);
                }
            }
        }
    }
}

#[test]
fn ends_of_every_format() {
    let largest = bf16::MAX.to_f32();
    let subnormal = f32::from_bits(1 << 16);
    for row in [
        vec![0.0; 96],
        vec![-0.0; 33],
        vec![largest; 64],
        vec![-largest, 1.0, 0.0],
        vec![subnormal, -subnormal, 0.0],
        vec![subnormal, 1.0],
        vec![f32::MIN_POSITIVE; 8],
        // The last bf16 that fits an fp8 row's lower scale, and the first that does not.
        vec![1.75, 0.0],
        vec![1.757_812_5, 0.0],
        // 127.5 of int8's steps.
        vec![1.992_187_5, 0.5],
        // bf16 rounds these up to a power of two, and to infinity.
        vec![1.999, 0.3],
        vec![f32::MAX, 0.0],
        // Two largest ones, the first of which has the sign.
        vec![-2.0, 2.0, 1.0],
        vec![2.0, -2.0, 1.0],
        // Around the window of int4's scales.
        vec![8.0 * 2f32.powi(-20), 0.0],
        vec![8.0 * 2f32.powi(-21), 0.0],
        vec![8.0 * 0.99 * 2f32.powi(-21), 0.0],
        vec![8.0 * 2f32.powi(-22), 0.0],
        vec![8.0 * 1.75 * 1024.0, 1.0],
        vec![8.0 * 2048.0, 1.0],
    ] {
        check(&row);
    }
}

#[test]
fn what_is_not_finite_shows() {
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 31, 32, 63] {
            let mut row = vec![0.5; 64];
            row[at] = bad;
            check(&row);
            for format in [KvCode::Fp8, KvCode::Int8] {
                assert!(
                    stored(format, &row).2.iter().all(|v| v.is_nan()),
                    "{format:?}"
                );
            }
            let groups = stored(KvCode::Int4, &row).2;
            for (i, group) in groups.chunks(32).enumerate() {
                assert!(group.iter().all(|v| v.is_nan() == (i == at / 32)));
            }
        }
    }
}

#[test]
fn int4_uses_the_scale_codec_of_the_files() {
    let scales = smq_format::scale::MiniFloat::new(5, 2, 21).unwrap();
    assert_eq!(scales.width_bits(), 8);
    for code in 0..=255u8 {
        // 15 of -8 are every value of a scale.
        let mut read = [0.0; 1];
        decode(KvCode::Int4, 1, &[0x08], &[code], &mut read);
        match scales.decode(code.into()) {
            Some(value) => assert_eq!(read[0], -8.0 * value, "{code:#x}"),
            None if code == 1 => assert!(read[0].is_nan()),
            None => assert_eq!(read[0], 0.0, "{code:#x}"),
        }
    }
}

#[test]
fn bytes_are_those_of_the_specification() {
    let sizes = |d: usize| {
        CODES.map(|code| {
            let row = code.row(d);
            row.codes + row.scales
        })
    };
    assert_eq!(sizes(96), [192, 97, 97, 51]);
    assert_eq!(sizes(64), [128, 65, 65, 34]);
    assert_eq!(sizes(33), [66, 34, 34, 19]);
}

#[test]
fn names_are_read_as_they_are_written() {
    for format in KvCacheFormat::ALL {
        assert_eq!(format.name().parse(), Ok(format));
    }
    for name in ["", "BF16", "fp16", "int3"] {
        assert!(name.parse::<KvCacheFormat>().is_err(), "{name}");
    }
}
