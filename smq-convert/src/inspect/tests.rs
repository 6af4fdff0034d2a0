//! The report and its forms, on a small file with statistics made up here.

use std::path::{Path, PathBuf};

use smq_format::SmqFile;
use smq_format::header::HEADER_BYTES;
use smq_format::scale::{MiniFloat, ScaleFormat};
use smq_format::statistics::{EXPONENT_BUCKETS, ErrorSummary, TensorStatistics};
use smq_format::{Dtype, Provenance, Scheme, SmqWriter, SourceFile, Statistics, bits, int4};

use super::html::page;
use super::*;

mod names;
mod page;

const GROUP: usize = 128;
/// A name that would break a page which does not escape.
const EVIL: &str = "model.layers.1.<script>alert('x')</script>&\"up.weight";

fn summary(mean: f64) -> ErrorSummary {
    ErrorSummary {
        mean_rel_mse: mean,
        percentiles_rel_mse: [1.0, 1.1, 1.5, 1.8].map(|f| f * mean as f32),
        max_rel_mse: 2.0 * mean as f32,
        mean_cosine: 1.0 - mean / 2.0,
        squared_error: mean,
        squared_weight: 1.0,
    }
}

fn record(name: &str, groups: u64, stored: f64, exact: f64) -> TensorStatistics {
    let mut exponent_counts = vec![0; EXPONENT_BUCKETS];
    exponent_counts[EXPONENT_BUCKETS - 1] = groups;
    TensorStatistics {
        name: name.to_owned(),
        groups,
        zero_groups: 1,
        under_window: 2,
        clipped: 3,
        stored: summary(stored),
        exact: summary(exact),
        first_exponent: -40,
        exponent_counts,
        block_rows: 2,
        row_blocks: vec![stored as f32; 2],
        output: None,
    }
}

/// Quantized tensors: name, shape, stored and exact mean relative MSE.
fn quantized() -> [(&'static str, [usize; 2], f64, f64); 4] {
    [
        ("model.layers.0.mlp.up.weight", [4, 256], 0.010, 0.008),
        (EVIL, [4, 128], 0.020, 0.020),
        ("model.layers.10.mlp.up.weight", [4, 200], 0.005, 0.004),
        ("lm_head.weight", [3, 128], 0.001, 0.001),
    ]
}

fn write(dir: &Path, statistics: Option<&Statistics>) -> PathBuf {
    let path = dir.join("t.smq");
    let mut writer = SmqWriter::create(&path, true).unwrap();
    writer.add_file("config.json", b"{}").unwrap();
    let norm = [0u8; 256];
    writer
        .add_tensor(
            "norm.weight",
            &[128],
            Dtype::Bf16,
            Scheme::Raw(Dtype::Bf16),
            &[&norm],
        )
        .unwrap();
    let format = MiniFloat::for_largest(5, 5, 0.5).unwrap();
    let scheme = Scheme::Int4 {
        group: GROUP,
        scales: ScaleFormat::Mini(format),
    };
    for (name, [rows, columns], _, _) in quantized() {
        let nibbles = vec![0x21; rows * int4::row_bytes(columns)];
        let code = format.encode(0.5).code;
        let scales = bits::pack(
            vec![code; rows * columns.div_ceil(GROUP)],
            format.width_bits(),
        );
        writer
            .add_tensor(
                name,
                &[rows, columns],
                Dtype::Bf16,
                scheme,
                &[&nibbles, &scales],
            )
            .unwrap();
    }
    let provenance = Provenance {
        parameters: [("mbits".to_owned(), "5".to_owned())].into(),
        producer: "test \u{1b}[31m1.0".to_owned(),
        sources: vec![SourceFile {
            blake3: [0xab; 32],
            length: 5000,
            name: "m.safetensors".into(),
        }],
    };
    writer.finish(provenance, statistics).unwrap();
    path
}

fn statistics() -> Statistics {
    let groups = |[rows, columns]: [usize; 2]| (rows * columns.div_ceil(GROUP)) as u64;
    Statistics {
        tensors: quantized()
            .into_iter()
            .map(|(n, s, a, b)| record(n, groups(s), a, b))
            .collect(),
        receipts: Vec::new(),
    }
}

fn report() -> Report {
    let dir = tempfile::tempdir().unwrap();
    Report::of(&SmqFile::open(&write(dir.path(), Some(&statistics()))).unwrap())
}

#[test]
fn sizes_add_up() {
    let s = report().sizes;
    let parts = s.header_bytes
        + s.nibble_bytes
        + s.scale_bytes
        + s.raw_bytes
        + s.embedded_bytes
        + s.index_bytes
        + s.statistics_bytes
        + s.padding_bytes;
    assert_eq!(parts, s.file_bytes);
    // [4,256] [4,128] [4,200] [3,128]: nibbles by hand, and 8 + 4 + 8 + 3 scales of 11 bits with 8
    // zero bytes each.
    assert_eq!(s.nibble_bytes, 512 + 256 + 400 + 192);
    assert_eq!(s.scale_bytes, (11 + 8) + (6 + 8) + (11 + 8) + (5 + 8));
    assert_eq!(s.scale_f16_bytes, 2 * (8 + 4 + 8 + 3) + 4 * 8);
    assert_eq!(s.raw_bytes, 256);
    assert_eq!(s.quantized_elems, 1024 + 512 + 800 + 384);
    assert_eq!(s.total_elems, s.quantized_elems + 128);
    assert_eq!(s.source_tensor_bytes, 2 * s.total_elems);
    let near = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-12;
    assert!(near(
        s.bits_per_quantized_weight,
        8.0 * (1360.0 + 65.0) / 2720.0
    ));
    assert!(near(
        s.bits_per_weight_in_file,
        8.0 * s.file_bytes as f64 / 2848.0
    ));
    assert!(near(
        s.scale_savings_vs_f16_percent,
        100.0 - 100.0 * 65.0 / 78.0
    ));
}

#[test]
fn totals_are_weighted_by_groups() {
    let t = report().totals.unwrap();
    let groups = [8.0, 4.0, 8.0, 3.0];
    let (mut stored, mut exact) = (0.0, 0.0);
    for ((_, _, a, b), g) in quantized().iter().zip(groups) {
        stored += a * g / 23.0;
        exact += b * g / 23.0;
    }
    assert!((t.mean_rel_mse - stored).abs() < 1e-15);
    assert!((t.exact_mean_rel_mse - exact).abs() < 1e-15);
    assert!((t.scale_format_cost_percent.unwrap() - 100.0 * (stored / exact - 1.0)).abs() < 1e-9);
    assert_eq!(
        (
            t.tensors,
            t.groups,
            t.clipped_weights,
            t.under_window_scales
        ),
        (4, 23, 12, 8)
    );
    assert_eq!(t.max_rel_mse, 0.04);
    // 4 units of signal, the errors summed.
    let noise: f64 = quantized().iter().map(|q| q.2).sum();
    assert!((t.sqnr_db.unwrap() - 10.0 * (4.0 / noise).log10()).abs() < 1e-9);
}

#[test]
fn cost_has_a_value_only_where_there_is_one() {
    assert_eq!(collect::cost_percent(0.0, 0.0), Some(0.0));
    assert_eq!(collect::cost_percent(0.1, 0.0), None);
    assert!((collect::cost_percent(0.011, 0.010).unwrap() - 10.0).abs() < 1e-9);
}

#[test]
fn sorts_worst_first() {
    let report = report();
    let names = |sort| {
        let layer = |t: &&TensorReport| t.layer.map_or(-1, |n| n as i32);
        let all = sorted(&report.tensors, sort);
        // The raw tensor has no errors and is last, whatever the order, except by name.
        all.iter().map(layer).collect::<Vec<_>>()
    };
    for sort in [Sort::RelMse, Sort::Max, Sort::Sqnr] {
        assert_eq!(names(sort), [1, 0, 10, -1, -1], "{sort:?}");
    }
    // Costs: layers 0 and 10 have 25 %, the rest none; equal ones go by name.
    assert_eq!(names(Sort::Cost), [0, 10, -1, 1, -1]);
    assert_eq!(names(Sort::Name), [-1, 0, 1, 10, -1]);
}

#[test]
fn the_table_fits_120_columns_and_says_what_it_leaves_out() {
    let report = report();
    let table = error_table(&report, 2, Sort::RelMse);
    assert!(table.lines().all(|l| l.chars().count() <= 120), "{table}");
    assert!(table.contains("errors of 2 of 4"), "{table}");
    assert!(
        !table.contains("lm_head") && table.contains("--top 0"),
        "{table}"
    );
    let all = error_table(&report, 0, Sort::Name);
    assert!(all.contains(".10.mlp.up") && all.contains("lm_head") && !all.contains("--top"));
    assert!(all.contains("+25.00") && all.contains("1.000e-2"), "{all}");
}

#[test]
fn texts_carry_no_control_characters_from_the_file() {
    let report = report();
    let text = overview(&report);
    assert!(
        !text.contains('\u{1b}') && text.contains("\\u{1b}[31m"),
        "{text}"
    );
    assert!(text.contains("16.7 % saved"), "{text}");
    for t in &report.tensors {
        let detail = tensor_detail(t);
        assert_eq!(detail.contains("2^-9"), t.errors.is_some(), "{detail}");
        assert_eq!(
            detail.contains("not quantized") || detail.contains("as it was"),
            t.errors.is_none()
        );
    }
}

#[test]
fn a_file_without_statistics_is_still_shown() {
    let dir = tempfile::tempdir().unwrap();
    let report = Report::of(&SmqFile::open(&write(dir.path(), None)).unwrap());
    assert_eq!(report.statistics, StatisticsState::Absent);
    assert_eq!(report.totals, None);
    assert!(overview(&report).contains("no error statistics"));
    assert_eq!(error_table(&report, 0, Sort::Name), "");
    let page = page(&report).unwrap();
    assert!(page.contains("nothing to plot") && !page.contains("<svg"));
}

#[test]
fn damaged_statistics_are_said_so_and_the_rest_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), Some(&statistics()));
    let offset = SmqFile::open(&path).unwrap().header().statistics.offset as usize;
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[offset + 40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let file = SmqFile::open(&path).unwrap();
    let report = Report::of(&file);
    assert!(matches!(
        &report.statistics,
        StatisticsState::Damaged { reason } if reason.contains("t.smq")
    ));
    assert_eq!(report.tensors.len(), 5);
    assert_eq!(verify(&file).defects.len(), 1);
}

#[test]
fn statistics_of_another_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = statistics();
    other.tensors[0].groups = 7;
    // The writer refuses them too, so they are put into a file that is already written.
    let path = write(dir.path(), Some(&statistics()));
    let mut header = *SmqFile::open(&path).unwrap().header();
    let section = other.encode().unwrap();
    header.statistics.hash = smq_format::hash(&section);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[header.statistics.offset as usize..].copy_from_slice(&section);
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    std::fs::write(&path, bytes).unwrap();
    let report = Report::of(&SmqFile::open(&path).unwrap());
    assert!(matches!(
        &report.statistics,
        StatisticsState::Damaged { reason } if reason.contains("8 groups, its record says 7")
    ));
}

/// Figures that no converter writes, but a hash does not rule out, must not stop a report.
#[test]
fn absurd_figures_do_not_panic() {
    let dir = tempfile::tempdir().unwrap();
    for v in [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MAX,
        -1.0,
        5e-324,
    ] {
        let mut s = statistics();
        for t in &mut s.tensors {
            t.stored = summary(v);
            t.exact.mean_rel_mse = v;
            t.clipped = u64::MAX;
            t.first_exponent = i16::MAX;
            t.exponent_counts = vec![u64::MAX; EXPONENT_BUCKETS];
            t.row_blocks.fill(v as f32);
        }
        let report = Report::of(&SmqFile::open(&write(dir.path(), Some(&s))).unwrap());
        error_table(&report, 0, Sort::Sqnr);
        report
            .tensors
            .iter()
            .for_each(|t| assert!(!tensor_detail(t).is_empty()));
        serde_json::to_vec(&report).unwrap();
        page(&report).unwrap();
    }
}

#[test]
fn the_page_is_well_formed_and_self_contained() {
    let page = page(&report()).unwrap();
    assert_eq!(page.matches("<svg").count(), 5);
    for reference in [
        "<script src",
        "<link",
        "<img",
        "http://",
        "https://",
        "url(",
        "@import",
        "xmlns",
    ] {
        assert!(!page.contains(reference), "{reference}");
    }
    assert!(!page.contains("<script>alert") && !page.contains("alert('x')"));
    assert!(page.contains("&lt;script&gt;alert("));
    assert_eq!(balance(&page), Vec::<String>::new());
}

/// Tags left open at the end, or the first that closes another than the innermost open one.
fn balance(page: &str) -> Vec<String> {
    const VOID: [&str; 2] = ["meta", "!DOCTYPE"];
    let (head, script) = page.split_once("<script>").unwrap();
    assert_eq!(script.matches("</script>").count(), 1);
    let (head, style) = head.split_once("<style>").unwrap();
    let markup = format!(
        "{head}{}{}",
        style.split_once("</style>").unwrap().1,
        script.split_once("</script>").unwrap().1
    );
    let mut open = Vec::new();
    for tag in markup.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag is closed");
        let name = tag.split_whitespace().next().unwrap();
        if let Some(closed) = name.strip_prefix('/') {
            if open.last().map(String::as_str) != Some(closed) {
                open.push(format!("</{closed}>"));
                return open;
            }
            open.pop();
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name.to_owned());
        }
    }
    open
}

#[test]
fn a_page_replaces_a_page_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let smq = write(dir.path(), Some(&statistics()));
    let report = Report::of(&SmqFile::open(&smq).unwrap());
    let target = dir.path().join("t.html");
    for _ in 0..2 {
        let bytes = write_page(&report, &target).unwrap();
        assert_eq!(std::fs::metadata(&target).unwrap().len(), bytes);
    }
    let other = dir.path().join("other.smq");
    std::fs::copy(&smq, &other).unwrap();
    for (path, what) in [
        (smq.as_path(), "is an input"),
        (&other, "is a .smq file"),
        (dir.path(), "is a directory"),
    ] {
        let error = write_page(&report, path).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    assert!(write_page(&report, &dir.path().join("none/t.html")).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn verifies_every_blob() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), Some(&statistics()));
    let good = verify(&SmqFile::open(&path).unwrap());
    assert_eq!((good.blobs, good.defects.len()), (1 + 1 + 2 * 4, 0));
    assert_eq!(good.bytes, 2 + 256 + 1360 + 65);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[256] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let bad = verify(&SmqFile::open(&path).unwrap());
    assert_eq!(bad.defects.len(), 1);
    assert!(bad.defects[0].to_string().contains("config.json"));
}
