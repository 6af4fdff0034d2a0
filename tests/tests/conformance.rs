//! The published reference's outputs, reproduced bit for bit (`fixtures/vectors/README.md`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use safetensors::SafeTensors;
use smq_convert::{QuantizeOptions, Quantized, ScaleChoice, ScaleRule, quantize};
use smq_format::{Dtype, Scheme, bits};
use smq_tests::{fixture, json};

const WIDTHS: [i32; 8] = [-1, 0, 1, 2, 3, 5, 7, 10];
const GROUP: usize = 128;

fn options(mantissa_bits: i32) -> QuantizeOptions {
    QuantizeOptions {
        group: GROUP,
        scales: match u32::try_from(mantissa_bits) {
            Ok(mantissa_bits) => ScaleChoice::e5(mantissa_bits),
            Err(_) => ScaleChoice::F32,
        },
        rule: ScaleRule::Reference,
    }
}

fn scales(q: &Quantized, groups: usize) -> Vec<f32> {
    let Scheme::Int4 { scales, .. } = q.scheme else {
        panic!("not int4")
    };
    let code = |i| bits::code_at(&q.blobs[1], scales.width_bits(), i);
    (0..groups)
        .map(|i| scales.decode(code(i)).unwrap())
        .collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    let (words, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    words.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn packed_bytes_scales_and_statistics_are_the_references() {
    let file = std::fs::read(fixture("vectors/reference.safetensors")).unwrap();
    let vectors = SafeTensors::deserialize(&file).unwrap();
    let statistics = json(&fixture("vectors/reference_stats.json")).unwrap();
    let names = vectors.names();
    let cases: Vec<&str> = names
        .iter()
        .filter_map(|n| n.strip_suffix(".weight"))
        .collect();
    assert!(cases.len() >= 4, "{cases:?}");
    let mut compared = 0;
    for case in cases {
        let weight = vectors.tensor(&format!("{case}.weight")).unwrap();
        let shape = (weight.shape()[0], weight.shape()[1]);
        let groups = shape.0 * shape.1 / GROUP;
        for width in WIDTHS {
            let name = format!("{case}.m{width}");
            let q = quantize(case, weight.data(), Dtype::Bf16, shape, &options(width)).unwrap();
            let expected = vectors.tensor(&format!("{name}.packed")).unwrap();
            assert!(q.blobs[0] == expected.data(), "{name}: packed bytes differ");

            let expected = f32s(vectors.tensor(&format!("{name}.scales")).unwrap().data());
            let mut rows = weight.data().chunks_exact(2 * GROUP);
            for (g, (ours, theirs)) in scales(&q, groups).into_iter().zip(expected).enumerate() {
                // An all-zero group: the reference keeps its floor, we store code 0; the same
                // weights.
                let zero = rows.next().unwrap().iter().all(|b| b & 0x7f == 0);
                assert!(
                    ours == theirs || (zero && ours == 0.0),
                    "{name} group {g}: {ours} {theirs}"
                );
            }

            // 1e-4 relative: the reference sums in f32 in another order.
            let close = |ours: f64, figure: &str| {
                let theirs = statistics[&name][figure].as_f64().unwrap();
                assert!(
                    (ours - theirs).abs() <= 1e-4 * theirs.abs(),
                    "{name} {figure}: {ours} {theirs}"
                );
            };
            close(q.statistics.stored.mean_rel_mse, "rel_mse");
            close(f64::from(q.statistics.stored.max_rel_mse), "max_rel_mse");
            close(q.statistics.stored.mean_cosine, "cosine_sim");
            compared += 1;
        }
    }
    assert_eq!(
        compared,
        names.len() / (1 + 2 * WIDTHS.len()) * WIDTHS.len()
    );
}
