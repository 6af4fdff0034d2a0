//! NF4 against what bitsandbytes 0.50.2 made (`tests/peers/check_nf4.py --golden`), and against its
//! definition.

use std::path::Path;

use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype as SourceDtype;
use smq_format::nf4::{ABSMAX_VALUES, MIDPOINTS, VALUES, ZERO_CODE, dequantize_naive};

use super::super::nf4_kernel::nf4_code;
use super::super::remeasure;
use super::*;

fn golden() -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/nf4");
    std::fs::read(dir.join("bitsandbytes-0.50.2.safetensors")).unwrap()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.as_chunks::<4>().0.iter();
    chunks.map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn tables_are_bitsandbytes() {
    let bytes = golden();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let values = |name| f32s(golden.tensor(name).unwrap().data());
    assert_eq!(values("code"), VALUES);
    assert_eq!(values("map"), ABSMAX_VALUES);
}

/// Nibbles, absmax, and codes given their offset are equal; our offset is the mean of the same
/// numbers, which they sum in f32, within 1e-6.
#[test]
fn golden_vectors() {
    let bytes = golden();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let names = golden.names();
    let names = names.iter().filter_map(|n| n.strip_suffix(".weight"));
    let mut tensors = 0;
    for name in names {
        let part = |part: &str| golden.tensor(&format!("{name}.{part}")).unwrap();
        let weight = part("weight");
        let dtype = match weight.dtype() {
            SourceDtype::BF16 => Dtype::Bf16,
            SourceDtype::F16 => Dtype::F16,
            _ => Dtype::F32,
        };
        let &[rows, columns] = weight.shape() else {
            panic!("{name} is no matrix")
        };
        let ours = quantize_nf4(name, weight.data(), dtype, (rows, columns)).unwrap();
        assert!(ours.blobs[0] == part("nibbles").data(), "{name}: nibbles");
        let source = Source {
            kernel: Kernel::detect(),
            bytes: weight.data(),
            dtype,
            elems: rows * columns,
        };
        let (absmax, _) = source.blocks();
        assert_eq!(absmax, f32s(part("absmax").data()), "{name}: absmax");
        let [offset] = f32s(part("offset").data())[..] else {
            panic!("{name}: one offset")
        };
        let (codes, nested) = quantize_absmax(&absmax, offset);
        assert_eq!(codes, part("codes").data(), "{name}: absmax codes");
        assert_eq!(nested, f32s(part("nested_absmax").data()), "{name}: nested");
        let Scheme::Nf4 { offset_bits } = ours.scheme else {
            panic!("{name} is not NF4")
        };
        let error = (f32::from_bits(offset_bits) - offset).abs();
        assert!(error <= 1e-6 * offset, "{name}: offset off by {error}");
        tensors += 1;
    }
    assert_eq!(tensors, 13);
}

/// Every midpoint and its neighbours, and what is no number.
#[test]
fn a_code_is_the_number_of_midpoints_below() {
    let about = MIDPOINTS.map(|m| [m.next_down(), m, m.next_up()]);
    let others = [f32::NEG_INFINITY, -1.0, 0.0, 1.0, f32::INFINITY, f32::NAN];
    for v in about.into_iter().flatten().chain(others) {
        let below = MIDPOINTS.iter().filter(|m| v > **m).count();
        assert_eq!(usize::from(nf4_code(v)), below, "{v}");
    }
}

/// Every definition in one place, element by element, in plain arithmetic.
fn naive(w: &[f32]) -> (Vec<u8>, Vec<u8>, Vec<f32>, f32) {
    let mut codes = Vec::new();
    let mut absmax = Vec::new();
    for block in w.chunks(64) {
        let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
        let short = block.len() < 64;
        absmax.push(if short { largest.max(1e-38) } else { largest });
        for v in block {
            let v = match short {
                true => v / largest.max(1e-38),
                false => v * (1.0 / largest.max(1e-38)),
            };
            let below = |m: &[f32]| v > (m[0] + m[1]) / 2.0;
            codes.push(VALUES.windows(2).filter(|m| below(m)).count() as u8);
        }
    }
    if codes.len() % 2 == 1 {
        codes.push(ZERO_CODE);
    }
    let nibbles = codes.chunks(2).map(|q| q[0] * 16 + q[1]).collect();
    let offset = mean(&absmax);
    let mut absmax_codes = Vec::new();
    let mut nested = Vec::new();
    for block in absmax.chunks(256) {
        let largest = block.iter().fold(0f32, |m, v| m.max((v - offset).abs()));
        nested.push(largest);
        for v in block {
            if largest == 0.0 {
                absmax_codes.push(0);
                continue;
            }
            let v = ((v - offset) * (1.0 / largest)).clamp(-1.0, 1.0);
            let point = (f64::from((v + 1.0) * 0.5) * 65535.0 + 0.5) as f32 as u32 as f32;
            let v = 2.0 * point / 65535.0 - 1.0;
            let below = |m: &[f32]| (m[0] + m[1]) / 2.0 < v;
            absmax_codes.push(ABSMAX_VALUES.windows(2).filter(|m| below(m)).count() as u8);
        }
    }
    (nibbles, absmax_codes, nested, offset)
}

fn f32_bytes(w: &[f32]) -> Vec<u8> {
    w.iter().flat_map(|v| v.to_le_bytes()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn equals_its_definition(
        rows in 1usize..60,
        columns in 1usize..400,
        seed: u64,
        spread in 0i32..30,
    ) {
        let mut state = seed | 1;
        let w: Vec<f32> = (0..rows * columns).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let unit = (state >> 40) as f32 / 8_388_608.0 - 1.0;
            unit * 2f32.powi(-((state >> 32) as i32 & 0xff) * spread / 256)
        }).collect();
        let q = quantize_nf4("w", &f32_bytes(&w), Dtype::F32, (rows, columns)).unwrap();
        let (nibbles, codes, nested, offset) = naive(&w);
        prop_assert_eq!(q.scheme, Scheme::Nf4 { offset_bits: offset.to_bits() });
        prop_assert_eq!(&q.blobs, &[nibbles.clone(), codes.clone(), f32_bytes(&nested)]);
        // The record is that of what is stored.
        let absmax = |(i, c): (usize, &u8)| absmax(*c, nested[i / 256], offset);
        let absmax: Vec<f32> = codes.iter().enumerate().map(absmax).collect();
        let mut v = vec![0.0; w.len()];
        dequantize_naive(&nibbles, &absmax, 0, &mut v);
        let row = |all: &[f32], i: usize, out: &mut [f32]| {
            out.copy_from_slice(&all[i * columns..][..columns]);
        };
        let again = remeasure((rows, columns), 64, |i, out| row(&w, i, out), |i, out| {
            row(&v, i, out);
            Ok::<(), ()>(())
        }).unwrap();
        prop_assert_eq!(q.statistics.stored, again);
        prop_assert_eq!(q.statistics.groups, (rows * columns.div_ceil(64)) as u64);
    }
}

#[test]
fn weights_that_are_not_finite_are_located() {
    let mut w = vec![0.5; 5 * 30];
    w[100] = f32::NAN;
    let error = quantize_nf4("w", &f32_bytes(&w), Dtype::F32, (5, 30)).unwrap_err();
    let QuantizeError::NotFinite { row, column, value } = error else {
        panic!("{error:?}")
    };
    assert_eq!((row, column), (3, 10));
    assert!(value.is_nan());
}

#[test]
fn every_instruction_set_gives_the_same_codes() {
    let w: Vec<f32> = (0..101).map(|i| (i as f32 * 0.77).sin() / 3.0).collect();
    let codes: Vec<_> = Kernel::available()
        .iter()
        .map(|kernel| {
            let (mut absmax, mut nibbles) = ([0.0; 2], [0; 51]);
            kernel.nf4_blocks(Dtype::F32, &f32_bytes(&w), &mut absmax, &mut nibbles);
            let mut f = vec![0xff; w.len()];
            kernel.fp8_codes(&w, 0.33 / 448.0, &mut f);
            (absmax, nibbles, f)
        })
        .collect();
    assert!(codes.windows(2).all(|c| c[0] == c[1]));
    assert_eq!(codes[0].1.to_vec(), naive(&w).0);
}

proptest! {
    /// Blocks at once, and row by row through dequantized values.
    #[test]
    fn errors_of_blocks_are_those_of_rows(
        rows in 1usize..5,
        blocks in 1usize..40,
        seed: u32,
    ) {
        let columns = 64 * blocks;
        let of = |i: usize| ((i as f32 + (seed % 1000) as f32) * 0.37).sin() * (1 + i % 7) as f32;
        let w: Vec<f32> = (0..rows * columns).map(of).collect();
        let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_bits().to_le_bytes()[2..].to_vec()).collect();
        for kernel in Kernel::available() {
            let source = Source { kernel, bytes: &bytes, dtype: Dtype::Bf16, elems: w.len() };
            let (exact, nibbles) = source.blocks();
            let stored: Vec<f32> = exact.iter().map(|absmax| absmax * 0.97).collect();
            let wide = source.groups_of_blocks(&nibbles, &exact, &stored);
            let twin = source.groups_of_rows(columns, &nibbles, &exact, &stored);
            prop_assert_eq!(wide.len(), twin.len());
            for (a, b) in wide.iter().zip(&twin) {
                prop_assert_eq!((a.exact, a.stored), (b.exact, b.stored));
                prop_assert_eq!((a.errors, a.exact_errors), (b.errors, b.exact_errors));
            }
        }
    }
}
