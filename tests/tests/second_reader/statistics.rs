//! Statistics as both readers have them, of both versions.

use std::path::Path;

use smq_format::scale::ScaleFormat;
use smq_format::statistics::{ErrorSummary, OutputError, Receipt, TensorStatistics};
use smq_format::{Provenance, SmqFile, SmqWriter, Statistics, hash};
use tempfile::TempDir;

use super::{all_integers, bytes_of, compare, hex, read};

/// JSON against what we decode. serde_json may read a number two units in the last place off, so an
/// f64 is equal within 4 * 2^-53 relative; an f32 is widened exactly, and cast back it is equal to
/// the bit.
pub(super) fn compare_statistics(path: &Path) {
    let ours = SmqFile::open(path).unwrap().statistics().unwrap().unwrap();
    let theirs: serde_json::Value = serde_json::from_slice(&read(path, &["--statistics"])).unwrap();
    assert_eq!(theirs["version"], ours.version());
    compare_receipts(theirs.get("receipts"), &ours.receipts);
    let theirs = theirs["tensors"].as_array().unwrap();
    assert_eq!(theirs.len(), ours.tensors.len());
    for (ours, theirs) in ours.tensors.iter().zip(theirs) {
        assert_eq!(theirs["name"], ours.name);
        for (field, value) in [
            ("groups", ours.groups),
            ("zero_groups", ours.zero_groups),
            ("under_window", ours.under_window),
            ("clipped", ours.clipped),
            ("block_rows", ours.block_rows),
        ] {
            assert_eq!(theirs[field], value, "{field}");
        }
        assert_eq!(theirs["first_exponent"], ours.first_exponent);
        assert_eq!(
            theirs["exponent_counts"],
            serde_json::json!(ours.exponent_counts)
        );
        same_f32(&theirs["row_blocks"], &ours.row_blocks);
        for (theirs, ours) in [
            (&theirs["stored"], &ours.stored),
            (&theirs["exact"], &ours.exact),
        ] {
            same_f32(&theirs["percentiles_rel_mse"], &ours.percentiles_rel_mse);
            same_f32(
                &serde_json::json!([theirs["max_rel_mse"]]),
                &[ours.max_rel_mse],
            );
            for (field, value) in [
                ("mean_rel_mse", ours.mean_rel_mse),
                ("mean_cosine", ours.mean_cosine),
                ("squared_error", ours.squared_error),
                ("squared_weight", ours.squared_weight),
            ] {
                same_f64(field, &theirs[field], value);
            }
        }
        match &ours.output {
            Some(ours) => {
                let theirs = &theirs["output"];
                same_f64("rounded", &theirs["rounded"], ours.rounded);
                same_f64("stored", &theirs["stored"], ours.stored);
                assert_eq!(theirs["is_rounded"], ours.is_rounded);
            }
            None => assert!(theirs.get("output").is_none_or(serde_json::Value::is_null)),
        }
    }
}

fn compare_receipts(theirs: Option<&serde_json::Value>, ours: &[Receipt]) {
    let theirs = theirs.map_or(&[][..], |theirs| theirs.as_array().unwrap());
    assert_eq!(theirs.len(), ours.len());
    for (theirs, ours) in theirs.iter().zip(ours) {
        assert_eq!(theirs["text"], ours.text);
        assert_eq!(theirs["blake3"], hex(&ours.blake3));
        assert_eq!(theirs["window"], ours.window);
        assert_eq!(theirs["tokens_scored"], ours.tokens_scored);
        for (field, value) in [
            ("mean_kl", ours.mean_kl),
            ("kl_stderr", ours.kl_stderr),
            ("perplexity", ours.perplexity),
            ("base_perplexity", ours.base_perplexity),
            ("top1_agreement", ours.top1_agreement),
        ] {
            same_f64(field, &theirs[field], value);
        }
    }
}

fn same_f64(field: &str, theirs: &serde_json::Value, ours: f64) {
    let theirs = theirs.as_f64().unwrap();
    let close = (theirs - ours).abs() <= 4.0 * 2f64.powi(-53) * ours.abs();
    assert!(close, "{field}: {ours} {theirs}");
}

fn same_f32(theirs: &serde_json::Value, ours: &[f32]) {
    let theirs = theirs.as_array().unwrap().iter();
    let theirs: Vec<f32> = theirs.map(|v| v.as_f64().unwrap() as f32).collect();
    assert_eq!(bytes_of(&theirs), bytes_of(ours));
}

/// One record, of the tensor that [`all_integers`] calls é, whose figures are as far out as they
/// go.
pub(super) fn extreme_statistics() -> Statistics {
    Statistics {
        tensors: vec![TensorStatistics {
            name: "é".to_owned(),
            groups: 65,
            zero_groups: 1,
            under_window: 2,
            clipped: 3,
            stored: ErrorSummary {
                mean_rel_mse: 0.1,
                percentiles_rel_mse: [0.1, 0.2, 0.3, 0.4],
                max_rel_mse: f32::MIN_POSITIVE,
                mean_cosine: -1.5,
                squared_error: 1e300,
                squared_weight: 5e-324,
            },
            exact: ErrorSummary::default(),
            first_exponent: -150,
            exponent_counts: (0..32).map(|i| u64::MAX >> (2 * i)).collect(),
            block_rows: 2,
            row_blocks: vec![f32::MAX; 33],
            output: None,
        }],
        receipts: Vec::new(),
    }
}

#[test]
fn version_2_of_the_statistics_is_the_same_to_both_readers() {
    let dir = TempDir::new().unwrap();
    let receipt = Receipt {
        text: "held out é.txt".to_owned(),
        blake3: hash(b"held out"),
        window: 512,
        tokens_scored: u64::MAX,
        mean_kl: 5e-324,
        kl_stderr: 0.0,
        perplexity: 1e300,
        base_perplexity: 5.75,
        top1_agreement: 1.0,
    };
    let output = OutputError {
        rounded: 0.1,
        stored: 1e-17,
        is_rounded: false,
    };
    let fallen_back = OutputError {
        stored: 0.1,
        is_rounded: true,
        ..output
    };
    for (output, receipts) in [
        (Some(output), vec![]),
        (None, vec![receipt.clone()]),
        (Some(fallen_back), vec![receipt.clone(), receipt]),
    ] {
        let path = dir.path().join("second.smq");
        let mut writer = SmqWriter::create(&path, true).unwrap();
        all_integers(&mut writer, "é", ScaleFormat::F16, &[0; 65]);
        let mut statistics = extreme_statistics();
        statistics.tensors[0].output = output;
        statistics.receipts = receipts;
        assert_eq!(statistics.version(), 2);
        writer
            .finish(Provenance::default(), Some(&statistics))
            .unwrap();
        compare(&path);
        compare_statistics(&path);
    }
}
