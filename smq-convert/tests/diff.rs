//! `smq-inspect diff` as a user runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use smq_convert::{
    Checkpoint, ConvertOptions, DEFAULT_SHARD_BYTES, ExportFormat, ExportOptions, Method,
    QuantizeOptions, ScaleChoice, ScaleRule, SynthOptions, convert, export, synth,
};
use smq_format::scale::{MiniFloat, ScaleFormat};
use smq_format::{
    Dtype, Provenance, Scheme, SmqFile, SmqWriter, TensorData, bits, int4, remove_statistics,
};
use tempfile::TempDir;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn make(checkpoint: &Path, out: &Path, mantissa_bits: u32) {
    let options = ConvertOptions {
        target: "mlp".parse().unwrap(),
        quantize: Method::Int4(QuantizeOptions {
            group: 128,
            scales: ScaleChoice::Mini {
                exponent_bits: 5,
                mantissa_bits,
            },
            rule: ScaleRule::Reference,
        }),
        overwrite: false,
        jobs: 0,
    };
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    convert(&checkpoint, out, &options, &|_| true).unwrap();
}

/// Runs in `dir`, so that the output holds plain names.
fn diff(dir: &TempDir, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smq-inspect"));
    let command = command.current_dir(dir.path()).arg("diff").args(args);
    command.output().unwrap()
}

fn text(dir: &TempDir, args: &[&str], code: i32) -> String {
    let output = diff(dir, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn json_of(dir: &TempDir, args: &[&str], code: i32) -> Value {
    serde_json::from_str(&text(dir, &[args, &["--json"]].concat(), code)).unwrap()
}

#[test]
fn a_file_is_identical_to_itself_and_to_its_copy() {
    let dir = TempDir::new().unwrap();
    make(&fixture(), &dir.path().join("a.smq"), 5);
    make(&fixture(), &dir.path().join("b.smq"), 5);
    for other in ["a.smq", "b.smq"] {
        let bytes = std::fs::metadata(dir.path().join("a.smq")).unwrap().len();
        let found = text(&dir, &["a.smq", other], 0);
        let start = format!("A  a.smq\nB  {other}\n\nidentical: 27 tensors, 40 blobs, ");
        assert!(found.starts_with(&start), "{found}");
        let found = json_of(&dir, &["a.smq", other], 0);
        assert_eq!(found["identical"], true);
        assert_eq!(
            found["blobs"],
            json!({"equal": 40, "differing": 0, "only_in_a": 0, "only_in_b": 0})
        );
        assert_eq!(
            (&found["file"], &found["tensors"]),
            (&json!([]), &json!([]))
        );
        assert!(bytes > 7_000_000);
    }
}

#[test]
fn e5m5_against_e5m3() {
    let dir = TempDir::new().unwrap();
    let paths = ["a.smq", "b.smq"].map(|name| dir.path().join(name));
    make(&fixture(), &paths[0], 5);
    make(&fixture(), &paths[1], 3);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/diff_e5m5_e5m3.txt");
    let golden = std::fs::read_to_string(golden).unwrap();
    let found = text(&dir, &["a.smq", "b.smq", "--top", "3"], 1);
    assert_eq!(found, golden, "{found}");

    let found = json_of(&dir, &["a.smq", "b.smq"], 1);
    let [a, b] = paths.map(|path| SmqFile::open(&path).unwrap());
    let [of_a, of_b] = [&a, &b].map(|file| file.statistics().unwrap().unwrap());
    let tensors = found["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 8);
    assert_eq!(found["blobs"]["differing"], 16);
    let mut last = f64::INFINITY;
    for tensor in tensors {
        let name = tensor["name"].as_str().unwrap();
        let (x, y) = (a.tensor(name).unwrap(), b.tensor(name).unwrap());
        let close = |value: &Value, expected: f64| {
            let value = value.as_f64().unwrap();
            assert!(
                (value - expected).abs() <= 1e-12 * expected,
                "{name}: {value} {expected}"
            );
        };
        // The naive twin: everything at once, in f64.
        let pairs: Vec<(f64, f64)> = x
            .dequantize()
            .unwrap()
            .into_iter()
            .zip(y.dequantize().unwrap())
            .map(|(x, y)| (f64::from(x), f64::from(y)))
            .collect();
        let squares: f64 = pairs.iter().map(|(x, y)| (x - y).powi(2)).sum();
        let of_x: f64 = pairs.iter().map(|(x, _)| x * x).sum();
        let weights = &tensor["weights"];
        close(
            &weights["max_abs"],
            pairs.iter().map(|(x, y)| (x - y).abs()).fold(0.0, f64::max),
        );
        close(&weights["rms"], (squares / pairs.len() as f64).sqrt());
        close(&weights["relative_rms"], (squares / of_x).sqrt());
        let differ = pairs.iter().filter(|(x, y)| x != y).count();
        assert_eq!(
            weights["weights"],
            json!({"differ": differ, "of": pairs.len()})
        );
        let parts = [x, y].map(|view| match view.data() {
            TensorData::Int4 {
                nibbles, scales, ..
            } => {
                let integers: Vec<_> = nibbles.iter().map(|n| int4::unpack(*n)).collect();
                let integers = integers
                    .into_iter()
                    .flat_map(|(l, h)| [l, h])
                    .collect::<Vec<_>>();
                (integers, scales.decode_all().unwrap())
            }
            _ => panic!("{name} is not int4"),
        });
        let [(q, s), (r, t)] = &parts;
        let nibbles = q.iter().zip(r).filter(|(q, r)| q != r).count();
        let scales = s.iter().zip(t).filter(|(s, t)| s != t).count();
        assert_eq!(
            weights["nibbles"],
            json!({"differ": nibbles, "of": q.len()})
        );
        assert_eq!(weights["scales"], json!({"differ": scales, "of": s.len()}));
        let change = json!({"what": "scale_format", "a": "e5m5", "b": "e5m3"});
        assert!(tensor["changes"].as_array().unwrap().contains(&change));
        assert_eq!(tensor["blobs"], json!(["nibbles", "scales"]));
        let mean = |s: &smq_format::Statistics| s.tensor(name).unwrap().stored.mean_rel_mse;
        close(&tensor["mean_rel_mse_a"], mean(&of_a));
        close(&tensor["mean_rel_mse_b"], mean(&of_b));
        let size = weights["relative_rms"].as_f64().unwrap();
        assert!(size <= last, "not sorted at {name}");
        last = size;
    }
    let change = json!({"what": "parameter scales", "a": "e5m5", "b": "e5m3"});
    assert!(found["file"].as_array().unwrap().contains(&change));
}

#[test]
fn without_statistics_only_they_differ() {
    let dir = TempDir::new().unwrap();
    make(&fixture(), &dir.path().join("a.smq"), 5);
    std::fs::copy(dir.path().join("a.smq"), dir.path().join("b.smq")).unwrap();
    remove_statistics(&dir.path().join("b.smq")).unwrap();
    let found = json_of(&dir, &["a.smq", "b.smq"], 1);
    assert_eq!(found["tensors"], json!([]));
    assert_eq!(found["blobs"]["equal"], 40);
    assert_eq!(found["mean_rel_mse_b"], Value::Null);
    let changes = found["file"].as_array().unwrap();
    let whats: Vec<_> = changes
        .iter()
        .map(|c| c["what"].as_str().unwrap())
        .collect();
    assert_eq!(whats, ["file length", "statistics"]);
    assert_eq!(changes[1]["b"], "none");
    let found = text(&dir, &["a.smq", "b.smq"], 1);
    let end =
        "differ: 0 of 27 tensors in both, 40 of 40 blobs equal, mean rel. MSE 1.394e-2 -> none\n";
    assert!(found.ends_with(end), "{found}");
}

#[test]
fn an_import_of_an_export_differs_in_where_it_came_from() {
    let dir = TempDir::new().unwrap();
    make(&fixture(), &dir.path().join("a.smq"), 5);
    let options = ExportOptions {
        format: ExportFormat::CompressedTensors {
            allow_inexact: false,
        },
        shard_bytes: DEFAULT_SHARD_BYTES,
        force: false,
    };
    let packed = dir.path().join("packed");
    let file = SmqFile::open(&dir.path().join("a.smq")).unwrap();
    export(&file, &packed, &options, &|_, _| true).unwrap();
    make(&packed, &dir.path().join("b.smq"), 5);
    let found = json_of(&dir, &["a.smq", "b.smq"], 1);
    assert_eq!(found["blobs"]["differing"], 1, "config.json");
    for tensor in found["tensors"].as_array().unwrap() {
        assert_eq!(tensor["changes"][0]["what"], "statistics");
        assert_eq!(
            (&tensor["weights"], &tensor["blobs"]),
            (&Value::Null, &json!([]))
        );
    }
    let found = text(&dir, &["a.smq", "b.smq"], 1);
    let row = "0.mlp.down_proj     e5m5/128  e5m5/128     same    same  same  same      same   1.456e-2    0.000e0\n";
    assert!(found.contains(row), "{found}");
}

#[test]
fn another_model() {
    let dir = TempDir::new().unwrap();
    let other = dir.path().join("synthetic");
    let mut options = SynthOptions::new(fixture().join("config.json"), other.clone());
    options.layers = Some(2);
    synth(&options, &|_, _| ()).unwrap();
    make(&fixture(), &dir.path().join("a.smq"), 5);
    make(&other, &dir.path().join("b.smq"), 5);
    let found = json_of(&dir, &["a.smq", "b.smq"], 1);
    assert_eq!(found["only_in_a"].as_array().unwrap().len(), 12);
    assert_eq!(found["only_in_b"], json!([]));
    assert_eq!(found["tensors_in_both"], 15);
    let whats: Vec<_> = found["file"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| {
            (
                c["what"].as_str().unwrap(),
                c["a"].is_null(),
                c["b"].is_null(),
            )
        })
        .collect();
    assert!(
        whats.contains(&("embedded file config.json", false, false)),
        "{whats:?}"
    );
    assert!(
        whats.contains(&("embedded file tokenizer.json", false, true)),
        "{whats:?}"
    );
    let found = text(&dir, &["a.smq", "b.smq", "--top", "2"], 1);
    let listed = "only in A: 12 tensors\n  model.layers.2.input_layernorm.weight\n  model.layers.2.mlp.down_proj.weight\n  ... (--top 0 shows all)\n";
    assert!(found.contains(listed), "{found}");
    assert!(
        found.contains("12 tensors only in A, mean rel. MSE"),
        "{found}"
    );
    assert!(
        found.lines().all(|line| line.chars().count() <= 120),
        "{found}"
    );
}

/// A raw or E5M0 tensor of `[1, columns]` with every weight 1.
fn add(writer: &mut SmqWriter, name: &str, columns: usize, int4: bool) {
    if !int4 {
        let bytes = [0x80, 0x3f].repeat(columns);
        let scheme = Scheme::Raw(Dtype::Bf16);
        return writer
            .add_tensor(name, &[1, columns], Dtype::Bf16, scheme, &[&bytes])
            .unwrap();
    }
    let format = MiniFloat::for_largest(5, 0, 1.0).unwrap();
    let scheme = Scheme::Int4 {
        group: 8,
        scales: ScaleFormat::Mini(format),
    };
    let scales = bits::pack(vec![31; columns.div_ceil(8)], 6);
    let blobs: [&[u8]; 2] = [&vec![0x11; columns / 2], &scales];
    writer
        .add_tensor(name, &[1, columns], Dtype::Bf16, scheme, &blobs)
        .unwrap();
}

#[test]
fn schemes_shapes_and_order() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, tensors: &[(&str, usize, bool)]| {
        let mut writer = SmqWriter::create(&dir.path().join(name), false).unwrap();
        for (tensor, columns, int4) in tensors {
            add(&mut writer, tensor, *columns, *int4);
        }
        writer.finish(Provenance::default(), None).unwrap();
    };
    write(
        "a.smq",
        &[("x", 16, true), ("y", 16, true), ("z", 8, false)],
    );
    write(
        "b.smq",
        &[
            ("y", 24, true),
            ("x", 16, false),
            ("z", 8, false),
            ("w", 8, false),
        ],
    );
    let found = json_of(&dir, &["a.smq", "b.smq"], 1);
    assert_eq!(
        found["blobs"],
        json!({"equal": 1, "differing": 2, "only_in_a": 2, "only_in_b": 1})
    );
    assert_eq!(found["only_in_b"], json!(["w"]));
    let file = found["file"].as_array().unwrap();
    let order = json!({"what": "order from tensor", "a": "x", "b": "y"});
    assert!(file.contains(&order), "{file:?}");
    let [y, x] = found["tensors"].as_array().unwrap().as_slice() else {
        panic!("{found}");
    };
    assert_eq!((&y["name"], &y["weights"]), (&json!("y"), &Value::Null));
    assert_eq!(
        y["changes"],
        json!([{"what": "shape", "a": [1, 16], "b": [1, 24]}])
    );
    // Stored otherwise, and the same weights.
    assert_eq!(
        (&x["stored_a"], &x["stored_b"]),
        (&json!("e5m0/8"), &json!("bf16"))
    );
    assert_eq!(
        x["weights"],
        json!({
            "nibbles": null, "scales": null, "weights": {"differ": 0, "of": 16},
            "max_abs": 0.0, "rms": 0.0, "relative_rms": 0.0,
        })
    );
    let found = text(&dir, &["a.smq", "b.smq"], 1);
    assert!(found.contains("1x16 e5m0/8"), "{found}");
}

#[test]
fn errors_end_with_2() {
    let dir = TempDir::new().unwrap();
    make(&fixture(), &dir.path().join("a.smq"), 5);
    std::fs::write(dir.path().join("bad.smq"), b"no .smq file").unwrap();
    for (args, message) in [
        (
            ["a.smq", "absent.smq"],
            "error: absent.smq: cannot open it: No such file or directory",
        ),
        (
            ["bad.smq", "a.smq"],
            "error: bad.smq: file is 12 bytes, shorter than",
        ),
        (
            ["a.smq", "--top=x"],
            "error: invalid value 'x' for '--top <N>'",
        ),
    ] {
        let output = diff(&dir, &args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.starts_with(message), "{stderr}");
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
    }
    // An invalid scale code: exponent field 0 and a mantissa.
    let format = MiniFloat::for_largest(5, 1, 1.0).unwrap();
    let scheme = Scheme::Int4 {
        group: 8,
        scales: ScaleFormat::Mini(format),
    };
    for (name, code) in [("valid.smq", 62), ("invalid.smq", 1)] {
        let mut writer = SmqWriter::create(&dir.path().join(name), false).unwrap();
        let blobs: [&[u8]; 2] = [&[0x11; 4], &bits::pack([code], 7)];
        writer
            .add_tensor("x", &[1, 8], Dtype::Bf16, scheme, &blobs)
            .unwrap();
        writer.finish(Provenance::default(), None).unwrap();
    }
    let output = diff(&dir, &["valid.smq", "invalid.smq"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.starts_with("error: invalid.smq: tensor \"x\""),
        "{stderr}"
    );
    assert_eq!(output.status.code(), Some(2));
}
