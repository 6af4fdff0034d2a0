//! `smq-run eval` as a user calls it: made passages, texts to calibrate on, several texts at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use smq_convert::{
    CalibrateOptions, CalibrationMethod, Checkpoint, ConvertOptions, Method, QuantizeOptions,
    ScaleChoice, ScaleRule, Target, convert_calibrated,
};
use smq_engine::Device;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// Standard output of `smq-run --device cpu eval`, or standard error where it fails.
fn eval(args: &[&str], paths: &[&Path]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_smq-run"))
        .args(["--device", "cpu", "eval"])
        .args(args)
        .args(paths)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

fn json(args: &[&str], paths: &[&Path]) -> Value {
    serde_json::from_str(&eval(args, paths).unwrap()).unwrap()
}

/// The figures of all items are those of the distances, weighed by their items; every item is
/// written with its distance.
#[test]
fn recall_is_reported_by_distance() {
    let model = fixtures().join("phi3-tiny");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("items.jsonl");
    let args = [
        "recall",
        "--distances",
        "16,64",
        "--limit",
        "5",
        "--json",
        "--out",
    ];
    let report = json(&args, &[&out, &model]);
    let mean = |of: &Value| of["log_likelihood"]["value"].as_f64().unwrap();
    let distances = report["distances"].as_array().unwrap();
    let count = |of: &Value| of["items"].as_u64().unwrap();
    let seen: Vec<_> = distances
        .iter()
        .map(|d| (d["distance"].as_u64().unwrap(), count(d)))
        .collect();
    assert_eq!(seen, [(16, 3), (64, 2)]);
    let sum: f64 = distances.iter().map(|d| count(d) as f64 * mean(d)).sum();
    assert!((sum / 5.0 - mean(&report)).abs() < 1e-9, "{report}");
    let lines = std::fs::read_to_string(&out).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let of: Vec<_> = lines
        .iter()
        .map(|l| l["distance"].as_u64().unwrap())
        .collect();
    assert_eq!(of, [16, 64, 16, 64, 16]);
    // Another seed asks other things.
    let other = [&["recall", "--seed", "2"], &args[1..6]].concat();
    assert_ne!(mean(&json(&other, &[&model])), mean(&report));
    let table = eval(&["recall", "--limit", "3"], &[&model]).unwrap();
    let rows: Vec<_> = table.lines().map(|l| l.split_whitespace().next()).collect();
    assert_eq!(
        rows[..5],
        ["distance", "32", "128", "512", "all"].map(Some),
        "{table}"
    );
}

/// The printed text is one that the converter calibrates on.
#[test]
fn a_printed_text_can_be_calibrated_on() {
    let model = fixtures().join("phi3-tiny");
    let args = [
        "recall",
        "--print-text",
        "6",
        "--distances",
        "32",
        "--seed",
        "3",
    ];
    let text = eval(&args, &[&model]).unwrap();
    assert_eq!(text.trim_end().split("\n\n").count(), 6);
    assert_eq!(eval(&args, &[&model]).unwrap(), text);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recall.txt");
    std::fs::write(&path, text).unwrap();
    let options = ConvertOptions {
        target: Target::Mlp,
        quantize: Method::Int4(QuantizeOptions {
            group: 128,
            scales: ScaleChoice::e5(3),
            rule: ScaleRule::Weighted,
        }),
        overwrite: false,
        jobs: 0,
    };
    let texts = CalibrateOptions {
        texts: vec![path],
        tokens: 512,
        window: 128,
        method: CalibrationMethod::Asymmetric,
        device: Device::Cpu,
        memory_bytes: None,
        resume: false,
    };
    let checkpoint = Checkpoint::open(&model).unwrap();
    let out = dir.path().join("calibrated.smq");
    let summary =
        convert_calibrated(&checkpoint, &out, &options, &texts, &|_, _| true, &|_| true).unwrap();
    assert!(
        summary
            .calibrated
            .is_some_and(|c| c.tensors > 0 && c.stored < c.rounded)
    );
}

/// Each text's figures are those that it has alone, and a text that is amiss is named.
#[test]
fn several_texts_are_a_table() {
    let model = fixtures().join("phi3-tiny");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.smq");
    let checkpoint = Checkpoint::open(&model).unwrap();
    let options = ConvertOptions {
        target: Target::All,
        quantize: Method::Nf4,
        overwrite: false,
        jobs: 0,
    };
    smq_convert::convert(&checkpoint, &out, &options, &|_| true).unwrap();
    let (plain, lines) = (
        fixtures().join("sample.txt"),
        fixtures().join("eval/gsm8k.jsonl"),
    );
    let kl = |texts: &[&Path], more: &[&str]| {
        let given = texts.iter().flat_map(|t| ["--text", t.to_str().unwrap()]);
        let sizes = ["--window", "64", "--text-tokens", "256"];
        let base = ["kl", "--base", model.to_str().unwrap()];
        let args: Vec<&str> = (base.into_iter().chain(sizes))
            .chain(more.iter().copied())
            .chain(given)
            .collect();
        eval(&args, &[&out])
    };
    let read = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let both = read(kl(&[&plain, &lines], &["--json"]).unwrap());
    let texts = both["texts"].as_array().unwrap();
    for (path, row) in [&plain, &lines].into_iter().zip(texts) {
        let alone = read(kl(&[path], &["--json"]).unwrap());
        assert_eq!(alone["text"], row["text"]);
        assert_eq!(alone["mean_kl"], row["mean_kl"]);
        assert!(alone["mean_kl"]["value"].as_f64().unwrap() > 1e-3);
        let windows = alone["window_kl"].as_array().unwrap();
        assert_eq!(windows.len() as u64, alone["windows"].as_u64().unwrap());
    }
    let table = kl(&[&plain, &lines], &[]).unwrap();
    assert!(
        table.contains(" sample.txt ") && table.contains(" gsm8k.jsonl "),
        "{table}"
    );
    let arc = fixtures().join("eval/arc.jsonl");
    let error = kl(&[&plain, &arc], &[]).unwrap_err();
    assert!(
        error.contains("arc.jsonl: line 1: is not a JSON object"),
        "{error}"
    );
}
