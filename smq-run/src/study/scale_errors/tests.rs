//! The sweep is the converter's arithmetic: with every row sampled, its figures are those of a
//! file's statistics.

use std::path::{Path, PathBuf};

use smq_convert::convert;
use smq_format::{Family, SmqFile};

use super::*;
use crate::study::contract::{Config, Quantization, Stored};
use crate::study::conversion::{Conversion, conversion};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&fixtures().join("phi3-tiny")).unwrap()
}

/// The small contract with so many rows.
fn with_rows(dir: &Path, rows: &str) -> Contract {
    let text = std::fs::read_to_string(fixtures().join("experiment-small.toml")).unwrap();
    let path = dir.join("rows.toml");
    let to = format!("rows_per_tensor = {rows}");
    std::fs::write(&path, text.replace("rows_per_tensor = 16", &to)).unwrap();
    Contract::load(&path).unwrap()
}

#[test]
fn every_row_gives_the_files_statistics() {
    let dir = tempfile::tempdir().unwrap();
    let contract = with_rows(dir.path(), "1000000");
    let checkpoint = checkpoint();
    let sample = Sample::read(&checkpoint, &contract.scale_errors).unwrap();
    for rule in [ScaleRule::Reference, ScaleRule::Signed] {
        let path = dir.path().join(format!("{rule}.smq"));
        let config = Config {
            id: "X".to_owned(),
            scheme: Stored::Quantized(Family::Int4),
            scales: Some(ScaleChoice::e5(3)),
            target: Some("all".to_owned()),
        };
        let quantization = Quantization { group: 128, rule };
        let Conversion::File(options) = conversion(&config, &quantization) else {
            panic!("int4 is supported");
        };
        convert(&checkpoint, &path, &options, &|_| true).unwrap();
        let statistics = SmqFile::open(&path).unwrap().statistics().unwrap().unwrap();
        let record = |t| TensorErrors {
            exact: None,
            ..TensorErrors::from(t)
        };
        let expected: Vec<_> = statistics.tensors.iter().map(record).collect();
        let item = Item::Rounded {
            rule,
            mantissa_bits: 3,
        };
        assert_eq!(sample.measure(&contract, &item).unwrap().tensors, expected);
    }
    // Exact scales: what every file of rule `reference` says of them.
    let exact = sample.measure(&contract, &Item::Exact).unwrap();
    let file = SmqFile::open(&dir.path().join("reference.smq")).unwrap();
    let statistics = file.statistics().unwrap().unwrap();
    for (t, file) in exact.tensors.iter().zip(&statistics.tensors) {
        assert_eq!(Some(t.stored), TensorErrors::from(file).exact, "{}", t.name);
    }
}

#[test]
fn a_sample_has_the_rows_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let contract = with_rows(dir.path(), "3");
    let checkpoint = checkpoint();
    let sample = Sample::read(&checkpoint, &contract.scale_errors).unwrap();
    let found = sample.measure(&contract, &Item::Exact).unwrap();
    assert_eq!(found.tensors.len(), 16);
    for t in &found.tensors {
        let tensor = checkpoint.tensor(&t.name).unwrap();
        let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
        assert_eq!(t.groups, 3 * columns.div_ceil(128) as u64, "{}", t.name);
        // The naive way: rows 0, n / 3 and 2 n / 3.
        let mut weight = 0.0;
        for row in [0, rows / 3, 2 * rows / 3] {
            let mut w = vec![0.0; columns];
            checkpoint.read_row(tensor, row, &mut w);
            weight += w.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        }
        // Groups are summed in f32: 128 terms in 16 lanes of 8 and 4 halvings, each sum off by
        // 2^-24 at most: 12 x 2^-24.
        assert!(
            (t.stored.squared_weight / weight - 1.0).abs() < 12.0 * 2f64.powi(-24),
            "{}",
            t.name
        );
    }
}
