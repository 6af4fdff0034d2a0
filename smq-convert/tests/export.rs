//! From .smq files back to Hugging Face directories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

#[path = "export/elsewhere.rs"]
mod elsewhere;
#[path = "export/float_quantized.rs"]
mod float_quantized;
#[path = "export/layouts.rs"]
mod layouts;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use half::bf16;
use safetensors::{Dtype as StDtype, SafeTensors};
use serde_json::Value;
use smq_convert::{
    Checkpoint, ConvertError, ConvertOptions, DEFAULT_SHARD_BYTES, ExportFormat, ExportOptions,
    ExportSummary, Method, QuantizeOptions, ScaleChoice, ScaleRule, convert, export,
};
use smq_format::{Dtype, Provenance, Scheme, SmqFile, SmqWriter, TensorData, int4};
use tempfile::TempDir;

const F32: ExportFormat = ExportFormat::Safetensors(Dtype::F32);
const BF16: ExportFormat = ExportFormat::Safetensors(Dtype::Bf16);
const PACKED: ExportFormat = ExportFormat::CompressedTensors {
    allow_inexact: false,
};
const PACKED_INEXACT: ExportFormat = ExportFormat::CompressedTensors {
    allow_inexact: true,
};

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn e5m(mantissa_bits: u32) -> ScaleChoice {
    ScaleChoice::Mini {
        exponent_bits: 5,
        mantissa_bits,
    }
}

/// The fixture as a .smq file with every projection quantized.
fn quantized(dir: &TempDir, quantize: Method) -> SmqFile {
    let path = dir.path().join("model.smq");
    let options = ConvertOptions {
        target: "all".parse().unwrap(),
        quantize,
        overwrite: true,
        jobs: 0,
    };
    let source = Checkpoint::open(&fixture()).unwrap();
    convert(&source, &path, &options, &|_| true).unwrap();
    SmqFile::open(&path).unwrap()
}

/// The same in int4.
fn smq(dir: &TempDir, scales: ScaleChoice, group: usize, rule: ScaleRule) -> SmqFile {
    let int4 = QuantizeOptions {
        group,
        scales,
        rule,
    };
    quantized(dir, Method::Int4(int4))
}

fn options(format: ExportFormat) -> ExportOptions {
    ExportOptions {
        format,
        shard_bytes: DEFAULT_SHARD_BYTES,
        force: false,
    }
}

fn run(file: &SmqFile, out: &Path, format: ExportFormat) -> Result<ExportSummary, ConvertError> {
    export(file, out, &options(format), &|_, _| true)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Every tensor's elements in f32, through [`Checkpoint`].
fn read_back(dir: &Path) -> BTreeMap<String, (Vec<usize>, Dtype, Vec<f32>)> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let tensors = checkpoint.tensors().iter().map(|t| {
        let mut values = vec![0.0; t.elems()];
        smq_format::widen(t.dtype, checkpoint.bytes(t), &mut values);
        (t.name.clone(), (t.shape.clone(), t.dtype, values))
    });
    tensors.collect()
}

#[test]
fn dequantized_in_f32_is_exact_and_the_rest_is_as_it_was() {
    for (scales, rule) in [
        (e5m(5), ScaleRule::Reference),
        (e5m(0), ScaleRule::Signed),
        (ScaleChoice::F32, ScaleRule::Reference),
    ] {
        let dir = TempDir::new().unwrap();
        let file = smq(&dir, scales, 96, rule);
        let out = dir.path().join("a/b");
        // Small shards, so that there are several.
        let options = ExportOptions {
            shard_bytes: 4_000_000,
            ..options(F32)
        };
        let summary = export(&file, &out, &options, &|_, _| true).unwrap();
        assert!(summary.shards.len() > 3);
        assert_eq!(summary.rounding.inexact, 0);
        let written = read_back(&out);
        assert_eq!(written.len(), file.tensors().len());
        let source = Checkpoint::open(&fixture()).unwrap();
        for view in file.tensors() {
            let (shape, dtype, values) = &written[view.name()];
            assert_eq!(shape, view.shape());
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(values), bits(&view.dequantize().unwrap()));
            let expected = match view.scheme().is_quantized() {
                true => Dtype::F32,
                false => source.tensor(view.name()).unwrap().dtype,
            };
            assert_eq!(*dtype, expected);
        }
        let mut expected: Vec<String> = summary
            .shards
            .iter()
            .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        for (name, mut contents) in smq_model::side_files(&fixture()).unwrap() {
            if name == "config.json" {
                let text = String::from_utf8(contents).unwrap();
                contents = text.replace("bfloat16", "float32").into_bytes();
            }
            assert!(fs::read(out.join(&name)).unwrap() == contents, "{name}");
            expected.push(name);
        }
        expected.push(smq_model::SHARD_INDEX.to_owned());
        expected.sort();
        assert_eq!(names(&out), expected);
    }
}

#[test]
fn bf16_rounds_to_nearest_even_and_says_how_much() {
    let dir = TempDir::new().unwrap();
    for (mantissa_bits, exact) in [(5, false), (4, true), (0, true)] {
        let file = smq(&dir, e5m(mantissa_bits), 128, ScaleRule::Reference);
        let out = dir.path().join(format!("out{mantissa_bits}"));
        let rounding = run(&file, &out, BF16).unwrap().rounding;
        let written = read_back(&out);
        let (mut weights, mut inexact, mut worst) = (0, 0, 0f64);
        for view in file.tensors() {
            let exact = view.dequantize().unwrap();
            let (_, dtype, values) = &written[view.name()];
            assert_eq!(*dtype, Dtype::Bf16);
            let quantized = matches!(view.data(), TensorData::Int4 { .. });
            for (&w, &v) in exact.iter().zip(values) {
                assert_eq!(v.to_bits(), bf16::from_f32(w).to_f32().to_bits());
                weights += u64::from(quantized);
                inexact += u64::from(v != w);
                if v != w {
                    worst = worst.max(((f64::from(v) - f64::from(w)) / f64::from(w)).abs());
                }
            }
        }
        assert_eq!((rounding.values, rounding.inexact), (weights, inexact));
        assert_eq!(rounding.max_relative_error, worst);
        // A product has 3 bits of q and 1 + x of the scale; bf16 has 8, so half a step is 2^-9 of 2
        // at most.
        assert_eq!(rounding.inexact == 0, exact, "{mantissa_bits}");
        assert!(worst <= 2f64.powi(-8));
    }
}

/// The integer of column `c` as compressed-tensors' `unpack_from_int32` finds it.
fn unpack(words: &[u8], c: usize) -> i8 {
    let word = i32::from_le_bytes(words[c / 8 * 4..][..4].try_into().unwrap());
    (((word >> (4 * (c % 8))) & 15) - 8) as i8
}

#[test]
fn compressed_tensors_keep_integers_and_scales() {
    for (scales, group, rule) in [
        (e5m(5), 128, ScaleRule::Reference),
        (e5m(7), 64, ScaleRule::Search),
        (e5m(0), 32, ScaleRule::Signed),
    ] {
        let dir = TempDir::new().unwrap();
        let file = smq(&dir, scales, group, rule);
        let out = dir.path().join("out");
        let summary = run(&file, &out, PACKED).unwrap();
        let bytes = fs::read(&summary.shards[0]).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut expected = 0;
        for view in file.tensors() {
            let TensorData::Int4 {
                nibbles, scales, ..
            } = view.data()
            else {
                expected += 1;
                let written = tensors.tensor(view.name()).unwrap();
                let TensorData::Raw { bytes, .. } = view.data() else {
                    unreachable!()
                };
                assert_eq!(written.data(), bytes);
                continue;
            };
            expected += 3;
            let part = |suffix| tensors.tensor(&format!("{}{suffix}", view.name())).unwrap();
            let (rows, columns) = view.matrix_shape();
            let (packed, scale, shape) = (part("_packed"), part("_scale"), part("_shape"));
            assert_eq!(packed.dtype(), StDtype::I32);
            assert_eq!(packed.shape(), [rows, columns / 8]);
            for (row, nibbles) in nibbles.chunks_exact(columns / 2).enumerate() {
                let words = &packed.data()[row * columns / 2..][..columns / 2];
                for (c, &byte) in nibbles.iter().enumerate() {
                    let pair = (unpack(words, 2 * c), unpack(words, 2 * c + 1));
                    assert_eq!(pair, int4::unpack(byte));
                }
            }
            assert_eq!(scale.dtype(), StDtype::BF16);
            assert_eq!(scale.shape(), [rows, columns / group]);
            let mut values = vec![0.0; scales.count];
            smq_format::widen(Dtype::Bf16, scale.data(), &mut values);
            assert_eq!(values, scales.decode_all().unwrap());
            assert_eq!((shape.dtype(), shape.shape()), (StDtype::I64, &[2][..]));
            let sizes = [rows as i64, columns as i64];
            assert_eq!(shape.data(), sizes.map(i64::to_le_bytes).as_flattened());
        }
        assert_eq!(tensors.len(), expected);

        let config: Value =
            serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        let quantization = &config["quantization_config"];
        assert_eq!(quantization["format"], "pack-quantized");
        assert_eq!(quantization["ignore"], serde_json::json!(["lm_head"]));
        let weights = &quantization["config_groups"]["group_0"]["weights"];
        assert_eq!(weights["group_size"], group);
        let mut rest = config.clone();
        rest.as_object_mut().unwrap().remove("quantization_config");
        let original = fs::read(fixture().join("config.json")).unwrap();
        assert_eq!(rest, serde_json::from_slice::<Value>(&original).unwrap());
    }
}

#[test]
fn inexact_scales_need_a_flag_that_says_the_error() {
    // f32 scales have more than f16's 10 mantissa bits.
    let dir = TempDir::new().unwrap();
    let file = smq(&dir, ScaleChoice::F32, 128, ScaleRule::Reference);
    let out = dir.path().join("out");
    let error = run(&file, &out, PACKED).unwrap_err();
    let ConvertError::InexactScales {
        inexact,
        scales,
        dtype: Dtype::Bf16,
        max_relative_error,
        tensor,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(tensor, "model.layers.0.mlp.down_proj.weight");
    // Half a step of 2^-7 is at most 2^-8 of the value.
    assert!(inexact > scales / 2 && inexact <= scales && scales == 26_624);
    assert!(max_relative_error > 2f64.powi(-10) && max_relative_error <= 2f64.powi(-8));
    assert!(!out.exists());

    let rounding = run(&file, &out, PACKED_INEXACT).unwrap().rounding;
    assert_eq!((rounding.inexact, rounding.values), (inexact, scales));
    assert_eq!(rounding.max_relative_error, max_relative_error);
}

/// A .smq file with one int4 tensor of ones and scales 1, and a config.json.
fn one_tensor(
    dir: &TempDir,
    name: &str,
    columns: usize,
    group: usize,
    config: Option<&str>,
) -> SmqFile {
    let path = dir.path().join("one.smq");
    let mut writer = SmqWriter::create(&path, true).unwrap();
    if let Some(config) = config {
        writer.add_file("config.json", config.as_bytes()).unwrap();
    }
    let scheme = Scheme::Int4 {
        group,
        scales: smq_format::scale::ScaleFormat::F32,
    };
    let nibbles = vec![0x11; 2 * columns / 2];
    let ones = vec![1f32.to_bits(); 2 * columns.div_ceil(group)];
    let scales = smq_format::bits::pack(ones, 32);
    writer
        .add_tensor(
            name,
            &[2, columns],
            Dtype::Bf16,
            scheme,
            &[&nibbles, &scales],
        )
        .unwrap();
    writer.finish(Provenance::default(), None).unwrap();
    SmqFile::open(&path).unwrap()
}

#[test]
fn what_compressed_tensors_cannot_hold_is_refused_with_the_remedy() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let cases = [
        (
            "a.weight",
            576,
            128,
            Some("{}"),
            "\"a.weight\" has 576 columns, which groups of 128 do not divide, and compressed-tensors has no shorter last group; convert the checkpoint again with --group-size 64, which divides",
        ),
        ("a.weight", 40, 32, Some("{}"), "a --target that leaves"),
        (
            "a.bias",
            64,
            32,
            Some("{}"),
            "is not the weight of a module",
        ),
        (
            "model.embed_tokens.weight",
            64,
            32,
            Some("{}"),
            "is an embedding",
        ),
        ("a.weight", 64, 32, None, "has no config.json"),
        ("a.weight", 64, 32, Some("[]"), "expected a JSON object"),
        ("__metadata__", 64, 32, Some("{}"), "is not the weight"),
    ];
    for (name, columns, group, config, expected) in cases {
        let file = one_tensor(&dir, name, columns, group, config);
        let error = run(&file, &out, PACKED).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!out.exists(), "{name}");
    }
    let file = one_tensor(&dir, "__metadata__", 64, 32, Some("{}"));
    let error = run(&file, &out, F32).unwrap_err().to_string();
    assert!(
        error.contains("two entries called \"__metadata__\""),
        "{error}"
    );

    let file = one_tensor(&dir, "a.weight", 64, 32, Some("{}"));
    run(&file, &out, PACKED).unwrap();
}

#[test]
fn a_damaged_file_is_refused_and_damaged_statistics_are_not() {
    let dir = TempDir::new().unwrap();
    let file = smq(&dir, e5m(5), 128, ScaleRule::Reference);
    let bytes = file.bytes().to_vec();
    let entries = &file.index().tensors;
    let blobs = entries.iter().flat_map(|t| &t.blobs).map(|b| b.offset);
    let files = file.index().files.iter().map(|f| f.offset);
    let offsets: Vec<u64> = blobs.chain(files).collect();
    let path = dir.path().join("damaged.smq");
    let out = dir.path().join("out");
    let damage = |offset: u64| {
        let mut bytes = bytes.clone();
        bytes[offset as usize] ^= 1;
        fs::write(&path, bytes).unwrap();
        SmqFile::open(&path).unwrap()
    };
    for offset in offsets {
        for format in [F32, PACKED] {
            let error = run(&damage(offset), &out, format).unwrap_err().to_string();
            assert!(error.contains("hash does not match"), "{error}");
            assert!(!out.exists());
        }
    }
    let summary = run(&damage(file.header().statistics.offset), &out, F32).unwrap();
    assert!(summary.statistics_damaged);
}

#[test]
fn a_directory_that_is_not_empty_needs_force_and_keeps_what_is_not_a_checkpoint() {
    let dir = TempDir::new().unwrap();
    let file = smq(&dir, e5m(5), 128, ScaleRule::Reference);
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    for name in ["model-00001-of-00002.safetensors", "notes.txt"] {
        fs::write(out.join(name), "old").unwrap();
    }
    let error = run(&file, &out, F32).unwrap_err().to_string();
    assert!(error.contains("directory is not empty"), "{error}");
    assert_eq!(names(&out).len(), 2);

    // Stopped half way, even with force, the old files are still there and nothing else is.
    let force = ExportOptions {
        force: true,
        ..options(F32)
    };
    let stop = export(&file, &out, &force, &|done, total| done < total / 2);
    assert!(matches!(stop, Err(ConvertError::Interrupted)));
    let stop = export(&file, &out, &force, &|done, total| done < total * 3 / 4);
    assert!(matches!(stop, Err(ConvertError::Interrupted)));
    assert_eq!(names(&out).len(), 2);

    export(&file, &out, &force, &|_, _| true).unwrap();
    let names = names(&out);
    assert!(names.contains(&"notes.txt".to_owned()));
    assert!(!names.iter().any(|n| n.starts_with("model-")), "{names:?}");

    let taken = dir.path().join("model.smq");
    let error = run(&file, &taken, F32).unwrap_err().to_string();
    assert!(error.contains("is not a directory"), "{error}");
}

#[test]
fn the_command_line() {
    let dir = TempDir::new().unwrap();
    let file = smq(&dir, e5m(5), 128, ScaleRule::Reference);
    let (smq, out) = (file.path().to_str().unwrap(), dir.path().join("out"));
    let out = out.to_str().unwrap();
    let source = fixture();
    let source = source.to_str().unwrap();
    let convert = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_smq-convert"))
            .args(args)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    for (args, expected) in [
        (
            vec![smq, out],
            "pass --to safetensors or --to compressed-tensors",
        ),
        (
            vec![source, out, "--to", "safetensors"],
            "is a directory; give a .smq file",
        ),
        (
            vec![smq, "--to", "safetensors"],
            "no output directory given",
        ),
        (vec![smq, out, "--dtype", "f32"], "--to"),
        (
            vec![smq, out, "--to", "safetensors", "--mbits", "3"],
            "cannot be used with",
        ),
        (
            vec![smq, out, "--to", "safetensors", "--allow-inexact"],
            "is for forms that hold scales",
        ),
        (
            vec![smq, out, "--to", "compressed-tensors", "--dtype", "f32"],
            "is for --to safetensors",
        ),
    ] {
        let (ok, text) = convert(&args);
        assert!(!ok && text.contains(expected), "{args:?}: {text}");
        assert!(!Path::new(out).exists());
    }
    let not_smq = fixture().join("config.json");
    let (ok, text) = convert(&[not_smq.to_str().unwrap(), out, "--to", "safetensors"]);
    assert!(
        !ok && text.contains("is the configuration of a checkpoint"),
        "{text}"
    );

    for (args, expected) in [
        (vec!["--to", "safetensors"], "weights in f32 are exact"),
        (
            vec!["--to", "safetensors", "--dtype", "bf16"],
            "are rounded, relative error up to 3.",
        ),
        (
            vec!["--to", "compressed-tensors"],
            "scales in bf16: all 26,624 are exact",
        ),
    ] {
        let (ok, text) = convert(&[&[smq, out, "--force"], args.as_slice()].concat());
        assert!(ok && text.contains(expected), "{text}");
    }
}
