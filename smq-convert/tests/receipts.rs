//! What a calibrated file says of itself, and that it holds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::fs;
use std::path::{Path, PathBuf};

use smq_convert::inspect::{Report, csv, output_table, overview, recheck, tensor_detail};
use smq_convert::{
    CalibrateOptions, CalibrationMethod, Checkpoint, Conversion, ConvertError, ConvertOptions,
    LevelChoice, MeasureOptions, Measuring, Method, QuantizeOptions, ScaleChoice, ScaleRule,
    Summary, convert_calibrated, convert_measured,
};
use smq_engine::Device;
use smq_format::SmqFile;
use tempfile::TempDir;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn groups(rule: ScaleRule) -> QuantizeOptions {
    QuantizeOptions {
        group: 48,
        scales: ScaleChoice::e5(3),
        rule,
    }
}

/// Calibrates the bundled checkpoint's `target` on the bundled story.
fn calibrated(dir: &TempDir, quantize: Method, target: &str) -> PathBuf {
    let path = dir.path().join("calibrated.smq");
    let options = ConvertOptions {
        target: target.parse().unwrap(),
        quantize,
        overwrite: true,
        jobs: 0,
    };
    let texts = CalibrateOptions {
        texts: vec![fixture().join("../sample.txt")],
        tokens: 512,
        window: 128,
        method: CalibrationMethod::Asymmetric,
        device: Device::Cpu,
        memory_bytes: None,
        resume: false,
    };
    let checkpoint = Checkpoint::open(&fixture()).unwrap();
    let go_on = |_, _| true;
    convert_calibrated(&checkpoint, &path, &options, &texts, &go_on, &|_| true).unwrap();
    path
}

#[test]
fn a_calibrated_files_statistics_hold_against_its_checkpoint() {
    let dir = TempDir::new().unwrap();
    let lut4 = Method::Lut4 {
        options: groups(ScaleRule::Weighted),
        levels: LevelChoice::Learned,
    };
    for (method, target) in [
        (Method::Int4(groups(ScaleRule::Weighted)), "all"),
        (Method::Int4(groups(ScaleRule::Signed)), "mlp"),
        (lut4, "mlp"),
        (Method::Nf4, "mlp"),
        // The head is no product of a layer: it is rounded to nearest.
        (Method::Nf4, "down_proj|^lm_head.weight$"),
    ] {
        let path = calibrated(&dir, method, target);
        let file = SmqFile::open(&path).unwrap();
        assert_eq!(file.verify(|_| ()), []);
        let statistics = file.statistics().unwrap().unwrap();
        assert_eq!(statistics.version(), 2);
        let with_output = statistics.tensors.iter().filter(|t| t.output.is_some());
        let with_output = with_output.count();
        assert!(with_output > 0);
        let rest = statistics.tensors.iter().filter(|t| t.output.is_none());
        assert!(
            rest.map(|t| t.name.as_str())
                .all(|name| name == "lm_head.weight")
        );
        for output in statistics.tensors.iter().filter_map(|t| t.output) {
            assert!(output.rounded > 0.0 && output.rounded < 1.0, "{output:?}");
            assert!(output.stored > 0.0 && output.stored < 1.0, "{output:?}");
        }
        let report = recheck(&file, &fixture(), &|_| ()).unwrap();
        assert_eq!(report.differences, [], "{method:?}");
        assert_eq!(report.tensors, statistics.tensors.len());
        assert_eq!(report.calibrated, with_output);
    }
}

/// A record that was changed is found in a calibrated file too.
#[test]
fn a_record_that_does_not_hold_is_found() {
    let dir = TempDir::new().unwrap();
    let path = calibrated(&dir, Method::Int4(groups(ScaleRule::Weighted)), "down_proj");
    let file = SmqFile::open(&path).unwrap();
    let statistics = file.statistics().unwrap().unwrap();
    let other = dir.path().join("other.smq");
    let mut writer = smq_format::SmqWriter::create(&other, true).unwrap();
    for f in &file.index().files {
        writer
            .add_file(&f.name, file.embedded(&f.name).unwrap())
            .unwrap();
    }
    for view in file.tensors() {
        let entry = view.entry();
        let blobs: Vec<&[u8]> = entry
            .blobs
            .iter()
            .map(|b| &file.bytes()[b.offset as usize..(b.offset + b.length) as usize])
            .collect();
        writer
            .add_tensor(
                &entry.name,
                &entry.shape,
                entry.source_dtype,
                entry.scheme,
                &blobs,
            )
            .unwrap();
    }
    let mut changed = statistics.clone();
    changed.tensors[0].clipped += 1;
    changed.tensors[1].exact.max_rel_mse *= 2.0;
    let provenance = file.index().provenance.clone();
    writer.finish(provenance, Some(&changed)).unwrap();
    let report = recheck(&SmqFile::open(&other).unwrap(), &fixture(), &|_| ()).unwrap();
    let figures: Vec<_> = report
        .differences
        .iter()
        .map(|d| d.figure.as_str())
        .collect();
    assert_eq!(figures, ["clipped", "exact"]);
}

#[test]
fn output_errors_are_shown_in_every_form() {
    let dir = TempDir::new().unwrap();
    let path = calibrated(&dir, Method::Nf4, "mlp");
    let report = Report::of(&SmqFile::open(&path).unwrap());
    let totals = report.output_errors.as_ref().unwrap();
    let calibrated = report.tensors.iter().filter_map(|t| t.output_error);
    assert_eq!(totals.tensors, calibrated.clone().count());
    assert!(totals.median_stored < totals.median_rounded);
    assert_eq!(
        totals.max_stored,
        calibrated.map(|o| o.stored).fold(0.0, f64::max)
    );
    let table = output_table(&report, 2);
    assert!(
        table.contains(&format!("of 2 of {} calibrated tensors", totals.tensors)),
        "{table}"
    );
    assert!(
        table.contains("median") && table.contains("-> stored"),
        "{table}"
    );
    let rows = csv(&report.tensors.iter().collect::<Vec<_>>()).unwrap();
    let rows = String::from_utf8(rows).unwrap();
    assert!(
        rows.lines()
            .next()
            .unwrap()
            .ends_with(",output_error_rounded,output_error_stored,output_is_rounded")
    );
    let tensor = report
        .tensors
        .iter()
        .find(|t| t.output_error.is_some())
        .unwrap();
    assert!(tensor_detail(tensor).contains("output error:"));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["report_version"], 2);
    assert_eq!(json["receipts"], serde_json::json!([]));
    assert_eq!(json["output_errors"]["tensors"], totals.tensors);
    assert!(!overview(&report).contains("measured"));
    let page = dir.path().join("page.html");
    smq_convert::inspect::write_page(&report, &page).unwrap();
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<button>output error rounded</button>"));
    let rows = page
        .lines()
        .filter(|l| l.starts_with("<tr>") && l.contains("data-v"));
    let cells: Vec<_> = rows.map(|row| row.matches("<td").count()).collect();
    assert!(cells.iter().all(|n| *n == 14), "{cells:?}");
}

/// Converts the bundled checkpoint into `out.smq` and measures it on the first `tokens` of the
/// bundled story.
fn measured(
    dir: &TempDir,
    jobs: usize,
    tokens: usize,
    progress: &(dyn Fn(usize, usize) -> bool + Sync),
) -> Result<Summary, ConvertError> {
    let options = ConvertOptions {
        target: "all".parse().unwrap(),
        quantize: Method::Nf4,
        overwrite: true,
        jobs,
    };
    let measure = MeasureOptions {
        texts: vec![fixture().join("../sample.txt")],
        tokens,
        device: Device::Cpu,
    };
    let measuring = Measuring {
        options: &measure,
        progress,
    };
    let checkpoint = Checkpoint::open(&fixture()).unwrap();
    let path = dir.path().join("out.smq");
    let conversion = Conversion::Uniform(&options);
    let result = convert_measured(&checkpoint, &path, conversion, Some(measuring), &|_| true);
    result.map(|(_, summary)| summary)
}

#[test]
fn a_file_carries_its_receipt() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("out.smq");
    let summary = measured(&dir, 1, 1100, &|_, _| true).unwrap();
    let bytes = fs::read(&path).unwrap();
    let file = SmqFile::open(&path).unwrap();
    assert_eq!(file.verify(|_| ()), []);
    let statistics = file.statistics().unwrap().unwrap();
    assert_eq!(statistics.receipts, summary.receipts);
    let [receipt] = &statistics.receipts[..] else {
        panic!("{:?}", statistics.receipts);
    };
    let text = fs::read(fixture().join("../sample.txt")).unwrap();
    assert_eq!(receipt.text, "sample.txt");
    assert_eq!(receipt.blake3, smq_format::hash(&text));
    // Two windows, of each of which all but the first token is scored.
    assert_eq!((receipt.window, receipt.tokens_scored), (512, 2 * 511));
    assert!(
        receipt.mean_kl > 4.0 * receipt.kl_stderr && receipt.mean_kl < 1.0,
        "{receipt:?}"
    );
    assert!(receipt.perplexity > 1.0 && receipt.base_perplexity > 1.0);
    assert!(receipt.top1_agreement > 0.5 && receipt.top1_agreement < 1.0);
    // The statistics hold, and the bytes are the same at another number of threads.
    assert_eq!(recheck(&file, &fixture(), &|_| ()).unwrap().differences, []);
    measured(&dir, 3, 1100, &|_, _| true).unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
    let shown = overview(&Report::of(&file));
    assert!(
        shown.contains("measured on  sample.txt, 1,022 tokens in windows of 512"),
        "{shown}"
    );
    // All but the receipt, and where it was measured, is the file that is not measured.
    let plain = dir.path().join("plain.smq");
    let mut copy = statistics.clone();
    copy.receipts.clear();
    assert_eq!((statistics.version(), copy.version()), (2, 1));
    let checkpoint = Checkpoint::open(&fixture()).unwrap();
    let options = ConvertOptions {
        target: "all".parse().unwrap(),
        quantize: Method::Nf4,
        overwrite: true,
        jobs: 0,
    };
    smq_convert::convert(&checkpoint, &plain, &options, &|_| true).unwrap();
    let plain = SmqFile::open(&plain).unwrap();
    assert_eq!(plain.statistics().unwrap().unwrap(), copy);
    let end = plain.header().index.offset as usize;
    assert!(plain.bytes()[256..end] == bytes[256..end]);
    let mut index = file.index().clone();
    let device = index.provenance.parameters.remove("receipts_device");
    assert_eq!(device.as_deref(), Some("cpu"));
    assert_eq!(&index, plain.index());
}

#[test]
fn what_cannot_be_measured_leaves_no_file() {
    let dir = TempDir::new().unwrap();
    let interrupted = measured(&dir, 1, 1100, &|done, _| done == 0).unwrap_err();
    assert!(
        matches!(interrupted, ConvertError::Interrupted),
        "{interrupted}"
    );
    let few = measured(&dir, 1, 511, &|_, _| true)
        .unwrap_err()
        .to_string();
    assert!(
        few.starts_with("--measure-kl-tokens 511: must be at least 512"),
        "{few}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let text = dir.path().join("short.txt");
    fs::write(&text, "Once upon a time").unwrap();
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_smq-convert"));
        let command = command.current_dir(dir.path()).args(args);
        let output = command.arg(fixture()).arg("out.smq").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(files.len(), 1, "{stderr}");
        stderr
    };
    let short = run(&["--measure-kl", "short.txt"]);
    assert!(
        short.contains("short.txt: the text has ") && short.contains("window"),
        "{short}"
    );
    let missing = run(&["--measure-kl", "missing.txt"]);
    assert!(missing.contains("missing.txt"), "{missing}");
    let alone = run(&["--measure-kl-tokens", "1024"]);
    assert!(alone.contains("--measure-kl"), "{alone}");
}
