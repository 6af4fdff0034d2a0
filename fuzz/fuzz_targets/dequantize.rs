//! Opens a file and dequantizes every tensor of at most 64 Ki elements, whole and in two runs of
//! rows, against a bit-by-bit reading of the specification.
#![no_main]

use smq_format::SmqFile;
use smq_fuzz::{Hashes, mutate_smq, scratch};

const MAX_ELEMS: usize = 1 << 16;

smq_fuzz::target! {
    mutate: |file, limit, random, mutate| mutate_smq(file, limit, random, Hashes::Stale, mutate),
    run: run,
}

fn run(data: &[u8]) {
    let dir = scratch();
    let path = dir.path().join("dequantize.smq");
    std::fs::write(&path, data).expect("the scratch file can be written");
    let Ok(file) = SmqFile::open(&path) else {
        return;
    };
    for tensor in file.tensors() {
        let (rows, columns) = tensor.matrix_shape();
        if rows.checked_mul(columns).is_none_or(|n| n > MAX_ELEMS) {
            continue;
        }
        let whole = tensor.dequantize().ok();
        let naive = smq_fuzz::dequantize(&tensor);
        assert_eq!(bits(&whole), bits(&naive), "tensor {:?}", tensor.name());
        let Some(whole) = whole else { continue };
        let middle = data.len() % (rows + 1);
        let mut parts = vec![f32::NAN; rows * columns];
        let (first, second) = parts.split_at_mut(middle * columns);
        assert!(tensor.dequantize_rows(0..middle, first).is_ok());
        assert!(tensor.dequantize_rows(middle..rows, second).is_ok());
        assert_eq!(bits(&Some(whole)), bits(&Some(parts)));
    }
}

/// Bits of every value, where all NaN count as one.
fn bits(values: &Option<Vec<f32>>) -> Option<Vec<u32>> {
    let bits = |v: &f32| if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() };
    values
        .as_ref()
        .map(|values| values.iter().map(bits).collect())
}
