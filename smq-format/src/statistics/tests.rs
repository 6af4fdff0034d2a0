use proptest::prelude::*;

use super::*;
use crate::index::{Index, TensorEntry};
use crate::scheme::Scheme;

fn sample() -> Statistics {
    let summary = ErrorSummary {
        mean_rel_mse: 0.25,
        percentiles_rel_mse: [1.0, 2.0, 3.0, 4.0],
        max_rel_mse: 5.0,
        mean_cosine: 0.5,
        squared_error: 1.0,
        squared_weight: 100.0,
    };
    Statistics {
        tensors: vec![TensorStatistics {
            name: "ab".into(),
            groups: 3,
            zero_groups: 0,
            under_window: 1,
            clipped: 2,
            stored: summary,
            exact: ErrorSummary::default(),
            first_exponent: -7,
            exponent_counts: vec![9],
            block_rows: 4,
            row_blocks: vec![0.5],
            output: None,
        }],
        receipts: Vec::new(),
    }
}

fn receipt() -> Receipt {
    Receipt {
        text: "t".into(),
        blake3: [7; 32],
        window: 512,
        tokens_scored: 511,
        mean_kl: 0.125,
        kl_stderr: 0.5,
        perplexity: 6.0,
        base_perplexity: 5.0,
        top1_agreement: 0.75,
    }
}

/// The sample with all that only version 2 has.
fn sample_2() -> Statistics {
    let mut statistics = sample();
    statistics.tensors[0].output = Some(OutputError {
        rounded: 0.5,
        stored: 0.25,
        is_rounded: false,
    });
    statistics.receipts.push(receipt());
    statistics
}

/// The sample in an index that it fits.
fn fitting(mut statistics: Statistics, rows: usize) -> (Statistics, Index) {
    let entry = TensorEntry {
        name: "ab".into(),
        shape: vec![rows, 4],
        source_dtype: crate::scheme::Dtype::F32,
        scheme: Scheme::Int4 {
            group: 4,
            scales: crate::scale::ScaleFormat::F16,
        },
        blobs: Vec::new(),
    };
    let record = &mut statistics.tensors[0];
    record.groups = rows as u64;
    record.exponent_counts = vec![0; EXPONENT_BUCKETS];
    record.block_rows = 1;
    record.row_blocks = vec![0.0; rows];
    let index = Index {
        tensors: vec![entry],
        ..Index::default()
    };
    (statistics, index)
}

/// The layout of `spec/format.md`, written out by hand.
#[test]
fn bytes_are_the_specified_ones() {
    let mut expected = version_1(1);
    assert_eq!(sample().encode().unwrap(), expected);
    assert_eq!(Statistics::decode(&expected).unwrap(), sample());
    assert_eq!(sample().tensors[0].stored.sqnr_db(), 20.0);
    // Version 2 has the same, an option after each record, and receipts after them all.
    expected[0] = 2;
    expected.push(1);
    expected.extend(0.5f64.to_le_bytes());
    expected.extend(0.25f64.to_le_bytes());
    expected.push(0);
    expected.extend(1u64.to_le_bytes());
    expected.extend(1u64.to_le_bytes());
    expected.extend(b"t");
    expected.extend([7; 32]);
    expected.extend(512u64.to_le_bytes());
    expected.extend(511u64.to_le_bytes());
    for v in [0.125f64, 0.5, 6.0, 5.0, 0.75] {
        expected.extend(v.to_le_bytes());
    }
    assert_eq!(sample_2().encode().unwrap(), expected);
    assert_eq!(Statistics::decode(&expected).unwrap(), sample_2());
}

/// The sample's bytes up to the end of its record.
fn version_1(version: u32) -> Vec<u8> {
    let mut expected = Vec::new();
    expected.extend(version.to_le_bytes());
    expected.extend(1u64.to_le_bytes());
    expected.extend(2u64.to_le_bytes());
    expected.extend(b"ab");
    for count in [3u64, 0, 1, 2] {
        expected.extend(count.to_le_bytes());
    }
    expected.extend(0.25f64.to_le_bytes());
    for p in [1f32, 2.0, 3.0, 4.0, 5.0] {
        expected.extend(p.to_le_bytes());
    }
    for v in [0.5f64, 1.0, 100.0] {
        expected.extend(v.to_le_bytes());
    }
    expected.extend([0; 8 + 20 + 24]);
    expected.extend((-7i16).to_le_bytes());
    expected.extend(1u64.to_le_bytes());
    expected.extend(9u64.to_le_bytes());
    expected.extend(4u64.to_le_bytes());
    expected.extend(1u64.to_le_bytes());
    expected.extend(0.5f32.to_le_bytes());
    expected
}

/// What needs version 2 gets it, and nothing else does.
#[test]
fn the_version_is_the_oldest_that_holds_everything() {
    let mut only_receipt = sample();
    only_receipt.receipts.push(receipt());
    let mut only_output = sample_2();
    only_output.receipts.clear();
    for (statistics, version) in [
        (Statistics::default(), 1),
        (sample(), 1),
        (only_receipt, 2),
        (only_output, 2),
        (sample_2(), 2),
    ] {
        let bytes = statistics.encode().unwrap();
        assert_eq!(
            (statistics.version(), u32::from(bytes[0])),
            (version, version)
        );
        assert_eq!(Statistics::decode(&bytes).unwrap(), statistics);
    }
    let mut needless = version_1(2);
    needless.extend([0; 1 + 8]);
    let problem = Statistics::decode(&needless).unwrap_err().to_string();
    assert!(problem.contains("without anything"), "{problem}");
    let unknown = Statistics::decode(&version_1(3)).unwrap_err().to_string();
    assert!(
        unknown.contains("layout version 3, this reader knows 1 and 2"),
        "{unknown}"
    );
}

#[test]
fn every_truncation_and_an_extra_byte_are_refused() {
    for statistics in [sample(), sample_2()] {
        let mut bytes = statistics.encode().unwrap();
        for end in 0..bytes.len() {
            assert!(Statistics::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        bytes.push(0);
        assert!(Statistics::decode(&bytes).is_err());
    }
}

#[test]
fn at_most_64_blocks_of_rows() {
    for (rows, block_rows, fits) in [(64usize, 1u64, true), (65, 1, false), (65, 2, true)] {
        let (mut statistics, index) = fitting(sample(), rows);
        let record = &mut statistics.tensors[0];
        record.block_rows = block_rows;
        record.row_blocks = vec![0.0; rows.div_ceil(block_rows as usize)];
        assert_eq!(statistics.check(&index).is_ok(), fits, "{rows} rows");
    }
}

#[test]
fn a_huge_count_is_refused_before_allocating() {
    for version in [1u32, 2] {
        let mut bytes = version.to_le_bytes().to_vec();
        bytes.extend(u64::MAX.to_le_bytes());
        assert!(Statistics::decode(&bytes).is_err());
    }
}

/// An edit of a receipt, and what the complaint must have in it.
type Edit = (fn(&mut Receipt), &'static str);

#[test]
fn figures_that_cannot_be_are_refused() {
    let (good, index) = fitting(sample_2(), 3);
    good.check(&index).unwrap();
    let refused = |statistics: &Statistics| match statistics.check(&index) {
        Err(Defect::StatisticsFigure { owner, problem }) => format!("{owner} {problem}"),
        other => panic!("{other:?}"),
    };
    for (rounded, stored, is_rounded, expected) in [
        (f64::NAN, 0.5, false, "(rounded) of NaN"),
        (0.5, f64::INFINITY, false, "(stored) of inf"),
        (0.5, -0.25, false, "(stored) of -0.25"),
        (0.5, 0.25, true, "is 0.25 and not 0.5"),
    ] {
        let mut statistics = good.clone();
        statistics.tensors[0].output = Some(OutputError {
            rounded,
            stored,
            is_rounded,
        });
        let problem = refused(&statistics);
        assert!(
            problem.starts_with("tensor \"ab\"") && problem.contains(expected),
            "{problem}"
        );
    }
    let edits: [Edit; 9] = [
        (|r| r.text.clear(), "name of 0 bytes"),
        (|r| r.text = "t".repeat(513), "name of 513 bytes"),
        (|r| r.window = 1, "windows of 1"),
        (|r| r.tokens_scored = 0, "scores 0 tokens"),
        (|r| r.mean_kl = -1.0, "mean_kl of -1"),
        (|r| r.kl_stderr = f64::NAN, "kl_stderr of NaN"),
        (|r| r.perplexity = f64::INFINITY, "perplexity of inf"),
        (
            |r| r.base_perplexity = f64::NEG_INFINITY,
            "base_perplexity of -inf",
        ),
        (|r| r.top1_agreement = 1.5, "top1_agreement of 1.5"),
    ];
    for (edit, expected) in edits {
        let mut statistics = good.clone();
        edit(&mut statistics.receipts[0]);
        let problem = refused(&statistics);
        assert!(
            problem.starts_with("receipt 0") && problem.contains(expected),
            "{problem}"
        );
    }
    let mut many = good.clone();
    many.receipts = vec![receipt(); MAX_RECEIPTS];
    many.check(&index).unwrap();
    many.receipts.push(receipt());
    assert!(refused(&many).contains("65 receipts"));
}

prop_compose! {
    fn any_record()(
        name in ".{0,12}",
        counts in any::<[u64; 4]>(),
        figures in any::<[u32; 12]>(),
        first_exponent in any::<i16>(),
        exponent_counts in prop::collection::vec(any::<u64>(), 0..40),
        row_blocks in prop::collection::vec(0f32..1.0, 0..70),
        output in prop::option::of((0f64..1.0, 0f64..1.0, any::<bool>())),
    ) -> TensorStatistics {
        let summary = |f: &[u32]| ErrorSummary {
            mean_rel_mse: f64::from(f[0]),
            percentiles_rel_mse: [0, 1, 2, 3].map(|i| f[i] as f32),
            max_rel_mse: f[4] as f32,
            mean_cosine: f64::from(f[5]),
            squared_error: f64::from(f[0]) * 1e-9,
            squared_weight: f64::from(f[1]) * 1e9,
        };
        TensorStatistics {
            name,
            groups: counts[0],
            zero_groups: counts[1],
            under_window: counts[2],
            clipped: counts[3],
            stored: summary(&figures[..6]),
            exact: summary(&figures[6..]),
            first_exponent,
            exponent_counts,
            block_rows: counts[3],
            row_blocks,
            output: output.map(|(rounded, stored, is_rounded)| OutputError {
                rounded,
                stored,
                is_rounded,
            }),
        }
    }
}

proptest! {
    /// What is written is read, and there is one form of it.
    #[test]
    fn both_versions_are_read_as_written(
        tensors in prop::collection::vec(any_record(), 0..4),
        names in prop::collection::vec(".{0,12}", 0..3),
    ) {
        let receipts = names.into_iter().map(|text| Receipt { text, ..receipt() }).collect();
        let statistics = Statistics { tensors, receipts };
        let bytes = statistics.encode().unwrap();
        prop_assert_eq!(u32::from(bytes[0]), statistics.version());
        let read = Statistics::decode(&bytes).unwrap();
        prop_assert_eq!(&read, &statistics);
        prop_assert_eq!(read.encode().unwrap(), bytes);
    }

    /// No bytes panic, and those that are read are written again as they were.
    #[test]
    fn damaged_bytes_are_refused_or_have_one_form(
        second in any::<bool>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let statistics = if second { sample_2() } else { sample() };
        let mut bytes = statistics.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = Statistics::decode(&bytes) {
            prop_assert_eq!(read.encode().unwrap(), bytes);
        }
    }
}
