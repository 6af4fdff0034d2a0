//! An import takes what is int4, exactly, and nothing else.

use std::path::Path;
use std::process::{Command, Output};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use smq_convert::{Checkpoint, exact_scales, scale_change};
use tempfile::TempDir;

use super::*;

pub(crate) fn convert_at(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smq-convert"));
    command.args(args).output().unwrap()
}

/// Converts on the command line, so that its defaults count; returns what is printed.
fn convert_by_default(checkpoint: &Path, out: &Path, args: &[&str]) -> String {
    let paths = [checkpoint.to_str().unwrap(), out.to_str().unwrap()];
    let output = convert_at(&[args, &paths, &["--force"]].concat());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

fn gptq_config(group: i64) -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": group, "sym": true, "desc_act": false})
}

fn auto_round_config(packing: &str, group: i64) -> Value {
    json!({
        "quant_method": "auto-round", "packing_format": packing, "bits": 4, "group_size": group,
        "sym": true, "data_type": "int", "autoround_version": "0.16.1",
        "block_name_to_quantize": "model.layers",
        "extra_config": {"lm_head": {"bits": 16, "data_type": "float"}},
    })
}

/// A `config_groups` of one scheme.
fn compressed_config(weights: Value) -> Value {
    let mut config = pack_config(1)["quantization_config"].take();
    let scheme = &mut config["config_groups"]["group_0"]["weights"];
    let symmetric = json!({"num_bits": 4, "type": "int", "symmetric": true});
    *scheme = symmetric;
    for (key, value) in weights.as_object().unwrap() {
        scheme[key] = value.clone();
    }
    config
}

/// Puts the parts that a package made of a tensor into a checkpoint; returns what the package makes
/// of them.
fn checkpoint_of(dir: &Path, file: &str, name: &str, quantization: &Value) -> (PathBuf, Vec<f32>) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/int4");
    let bytes = fs::read(fixtures.join(file)).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = Vec::new();
    let mut expected = Vec::new();
    for (tensor, view) in all.iter() {
        let Some((_, part)) = tensor.split_once('.').filter(|(of, _)| *of == name) else {
            continue;
        };
        if part == "dequantized" {
            let words = view.data().as_chunks::<4>().0.iter();
            expected = words.map(|b| f32::from_le_bytes(*b)).collect();
            continue;
        }
        let (shape, data) = (view.shape().to_vec(), view.data().to_vec());
        tensors.push((format!("{MODULE}.{part}"), view.dtype(), shape, data));
    }
    let raw = "model.layers.0.self_attn.q_proj.weight".to_owned();
    tensors.push((raw, StDtype::F16, vec![8, 8], vec![0; 128]));
    let config = json!({"quantization_config": quantization});
    (write(dir, &config, &tensors), expected)
}

#[test]
fn what_others_pack_comes_in_exactly_and_goes_out_again() {
    let compressed = "compressed-tensors-0.20.1.safetensors";
    let auto_round = "auto-round-0.16.1.safetensors";
    let group = json!({"strategy": "group", "group_size": 32});
    let channel = json!({"strategy": "channel"});
    let cases = [
        (
            compressed,
            "group_bf16",
            compressed_config(group.clone()),
            "e5m7",
            StDtype::BF16,
        ),
        (
            compressed,
            "group_f16",
            compressed_config(group),
            "f16",
            StDtype::F16,
        ),
        (
            compressed,
            "channel_bf16",
            compressed_config(channel),
            "e5m7",
            StDtype::BF16,
        ),
        // As compressed-tensors has it where the strategy is left to the size.
        (
            compressed,
            "channel_bf16",
            compressed_config(json!({"group_size": -1})),
            "e5m7",
            StDtype::BF16,
        ),
        (
            auto_round,
            "auto_round_auto_gptq",
            auto_round_config("auto_round:auto_gptq", 32),
            "f16",
            StDtype::F16,
        ),
        (
            auto_round,
            "auto_round_auto_gptq",
            auto_round_config("auto_round:gptq", 32),
            "f16",
            StDtype::F16,
        ),
        (
            auto_round,
            "auto_round",
            auto_round_config("auto_round", 32),
            "f16",
            StDtype::F16,
        ),
        (
            auto_round,
            "row",
            auto_round_config("auto_round:auto_gptq", -1),
            "f16",
            StDtype::F16,
        ),
        (auto_round, "row", gptq_config(-1), "f16", StDtype::F16),
    ];
    for (file, name, quantization, format, dtype) in cases {
        let dir = TempDir::new().unwrap();
        let out = dir.path().join("a.smq");
        let (source, expected) = checkpoint_of(dir.path(), file, name, &quantization);
        let text = convert_by_default(&source, &out, &[]);
        assert!(
            text.contains("imported exactly: 1 int4 tensor in "),
            "{text}"
        );
        assert!(
            text.contains(&format!("scales exact in {format};")),
            "{text}"
        );
        let first = SmqFile::open(&out).unwrap();
        let view = first.tensor(&format!("{MODULE}.weight")).unwrap();
        assert_eq!(view.dequantize().unwrap(), expected, "{name}");
        assert_eq!(int4_names(&first), [format!("{MODULE}.weight")]);
        let rechecked = recheck(&first, &source, &|_| ()).unwrap();
        assert_eq!((rechecked.tensors, rechecked.differences), (1, vec![]));

        let packed = dir.path().join("packed");
        export_to(&first, &packed, PACKED);
        let bytes = fs::read(packed.join("model.safetensors")).unwrap();
        let written = SafeTensors::deserialize(&bytes).unwrap();
        let scales = written.tensor(&format!("{MODULE}.weight_scale")).unwrap();
        assert_eq!(scales.dtype(), dtype, "{name}");
        convert_by_default(&packed, &dir.path().join("b.smq"), &[]);
        let second = SmqFile::open(&dir.path().join("b.smq")).unwrap();
        assert_eq!(contents(&first), contents(&second), "{name}");
    }
}

#[test]
fn what_the_quantizer_left_stays_unless_a_target_is_given() {
    let dir = TempDir::new().unwrap();
    let source = Checkpoint::open(&fixture()).unwrap();
    let mlp = run(
        &source,
        &dir.path().join("a.smq"),
        &options("mlp", e5m(5), 128),
    );
    let (packed, out) = (dir.path().join("packed"), dir.path().join("b.smq"));
    export_to(&mlp, &packed, PACKED);
    let text = convert_by_default(&packed, &out, &[]);
    let file = SmqFile::open(&out).unwrap();
    assert_eq!(contents(&mlp), contents(&file));
    let parameters = &file.index().provenance.parameters;
    assert_eq!(parameters.get("target"), None);
    assert_eq!(parameters["import"], "pack-quantized");
    assert_eq!(parameters["scales"], "e5m5");
    let layers = mlp.tensors().len() / 7 + 1;
    let left = int4_names(&mlp).len();
    assert_eq!(
        left,
        2 * layers,
        "as many matrices of attention as of the MLP"
    );
    let expected = format!(
        "left as they are: {} matrices that the checkpoint does not have in int4, lm_head.weight, model.layers.*.self_attn.o_proj.weight ({layers} tensors), model.layers.*.self_attn.qkv_proj.weight ({layers} tensors); --target takes more\n",
        left + 1
    );
    assert!(text.ends_with(&expected), "{text}");

    // Requantizing takes no more either.
    convert_by_default(&packed, &out, &["--requantize", "--mbits", "3"]);
    assert_eq!(int4_names(&SmqFile::open(&out).unwrap()), int4_names(&mlp));

    let text = convert_by_default(&packed, &out, &["--target", "all"]);
    let file = SmqFile::open(&out).unwrap();
    assert_eq!(int4_names(&file).len(), 2 * left);
    assert_eq!(file.index().provenance.parameters["target"], "all");
    assert!(!text.contains("left as they are"), "{text}");
    assert!(
        text.contains("100.0 % of their elements (--target all)"),
        "{text}"
    );
}

/// A compressed-tensors checkpoint of one row of ones, a scale for each group of 8.
fn of_scales(dir: &Path, scales: &[f32], dtype: StDtype) -> Checkpoint {
    let bytes = scales.iter().flat_map(|&s| match dtype {
        StDtype::BF16 => bf16::from_f32(s).to_le_bytes().to_vec(),
        StDtype::F16 => f16::from_f32(s).to_le_bytes().to_vec(),
        _ => s.to_le_bytes().to_vec(),
    });
    let shape = [1i64, 8 * scales.len() as i64].map(i64::to_le_bytes);
    let part = |end: &str, dtype, shape, bytes| (format!("m.{end}"), dtype, shape, bytes);
    let groups = scales.len();
    let tensors = [
        part(
            "weight_packed",
            StDtype::I32,
            vec![1, groups],
            vec![0x99; 4 * groups],
        ),
        part("weight_scale", dtype, vec![1, groups], bytes.collect()),
        part("weight_shape", StDtype::I64, vec![2], shape.concat()),
    ];
    Checkpoint::open(&write(dir, &pack_config(8), &tensors)).unwrap()
}

#[test]
fn the_narrowest_format_that_is_exact() {
    let two = |e: i32| 2f32.powi(e);
    let cases: [(&[f32], StDtype, &str); 12] = [
        (&[0.0], StDtype::BF16, "e5m0"),
        (&[1.0, 0.25, two(-30)], StDtype::BF16, "e5m0"),
        (&[1.0, -1.5], StDtype::BF16, "e5m1"),
        (&[1.0 + two(-7), two(-30)], StDtype::BF16, "e5m7"),
        // Over 31 binades: as many mantissa bits with f32's exponents.
        (&[1.0 + two(-7), two(-31)], StDtype::BF16, "e8m7"),
        (&[1.0, two(-60)], StDtype::BF16, "e8m0"),
        (&[1.0 + two(-10)], StDtype::F16, "f16"),
        (&[1.0 + two(-8), 0.5], StDtype::F16, "e5m8"),
        // A subnormal number of f16's is a normal one here, in the window of this file or of any.
        (&[1.0 + two(-10), 3.0 * two(-24)], StDtype::F16, "f16"),
        (&[1.0 + two(-10), two(-40)], StDtype::F32, "e8m10"),
        (&[1.0 + two(-20)], StDtype::F32, "f32"),
        (&[98_304.0, 1.0 + two(-10)], StDtype::F32, "e5m10"),
    ];
    for (scales, dtype, expected) in cases {
        let dir = TempDir::new().unwrap();
        let checkpoint = of_scales(dir.path(), scales, dtype);
        let found = exact_scales(&checkpoint);
        assert_eq!(found.to_string(), expected, "{scales:?}");
        let options = QuantizeOptions {
            group: 8,
            scales: found,
            rule: ScaleRule::Reference,
        };
        assert_eq!(scale_change(&checkpoint, &options).changed, 0);
        let out = dir.path().join("a.smq");
        let file = run(&checkpoint, &out, &super::options("mlp", found, 8));
        let weights = file.tensor("m.weight").unwrap().dequantize().unwrap();
        let stored: Vec<f32> = weights.iter().copied().step_by(8).collect();
        assert_eq!(stored, scales);
    }
}

#[test]
fn fewer_mantissa_bits_say_what_they_change() {
    let dir = TempDir::new().unwrap();
    let gptq = Gptq::new(16, 256, 64, 7);
    let checkpoint = gptq.write(dir.path());
    let out = dir.path().join("a.smq");
    let text = convert_by_default(&checkpoint, &out, &["--mbits", "3"]);
    let file = SmqFile::open(&out).unwrap();
    let TensorData::Int4 { scales, .. } = file.tensor(&format!("{MODULE}.weight")).unwrap().data()
    else {
        panic!("not int4");
    };
    let exact = gptq.scales.concat();
    let changes = exact.iter().zip(scales.decode_all().unwrap());
    let changes = changes.map(|(&s, t)| ((f64::from(t) - f64::from(s)) / f64::from(s)).abs());
    let changed = changes.clone().filter(|c| *c > 0.0).count();
    let largest = changes.fold(0.0, f64::max);
    assert!(changed > 40 && largest > 0.04 && largest <= 0.0625);
    let expected = format!(
        "imported: 1 int4 tensor in groups of 64 (gptq, zero point 8 stored as 7), integers kept, {changed} of 64 scales changed by e5m3, by up to {:.2} %; errors are against its own q * s\n",
        100.0 * largest
    );
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn one_group_a_row_has_no_other_size() {
    let dir = TempDir::new().unwrap();
    let file = "auto-round-0.16.1.safetensors";
    let (source, _) = checkpoint_of(dir.path(), file, "row", &gptq_config(-1));
    let (path, out) = (source.to_str().unwrap(), dir.path().join("a.smq"));
    let args = [path, out.to_str().unwrap(), "--group-size", "32", "--force"];
    let output = convert_at(&args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        error,
        "error: --group-size 32: the checkpoint's integers have one group a row, and are kept; pass --requantize to make new ones\n"
    );
    // What a target takes beside them has groups of its own.
    let output = convert_at(&[&args[..], &["--target", "all"]].concat());
    assert!(output.status.success());
    let smq = SmqFile::open(&out).unwrap();
    let group = |name: &str| smq.tensor(name).unwrap().scheme().group(64);
    assert_eq!(group(&format!("{MODULE}.weight")), Some(64));
    assert_eq!(group("model.layers.0.self_attn.q_proj.weight"), Some(32));
}
