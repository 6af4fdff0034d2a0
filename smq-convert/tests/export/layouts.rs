//! GPTQ's and MLX's int4: what their readers' formulas make of it, and what these cannot hold.

use std::fs;
use std::path::Path;

use safetensors::{Dtype as StDtype, SafeTensors};
use serde_json::{Value, json};
use smq_convert::{
    Checkpoint, ConvertError, ConvertOptions, ExportFormat, Form, Method, QuantizeOptions,
    ScaleChoice, ScaleRule, convert,
};
use smq_format::scale::ScaleFormat;
use smq_format::{Dtype, SmqFile, TensorData};
use tempfile::TempDir;

use super::elsewhere::{INT4, Kind, RAW, SHAPE, config_of, smq_of};
use super::{one_tensor, quantized, run, smq};

const GPTQ: ExportFormat = ExportFormat::Gptq {
    allow_inexact: false,
};
const MLX: ExportFormat = ExportFormat::Mlx {
    allow_inexact: false,
};

/// The elements of a tensor of halves in f32, with its shape.
fn halves(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = tensors.tensor(name).unwrap();
    let dtype = match tensor.dtype() {
        StDtype::BF16 => Dtype::Bf16,
        StDtype::F16 => Dtype::F16,
        other => panic!("{name} is {other:?}"),
    };
    let mut values = vec![0.0; tensor.data().len() / 2];
    smq_format::widen(dtype, tensor.data(), &mut values);
    values
}

fn words(tensors: &SafeTensors, name: &str, dtype: StDtype, shape: &[usize]) -> Vec<u32> {
    let tensor = tensors.tensor(name).unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape), "{name}");
    let words = tensor.data().as_chunks::<4>().0.iter();
    words.map(|word| u32::from_le_bytes(*word)).collect()
}

/// Number `i` of words that hold eight each.
fn nibble(words: &[u32], i: usize) -> f32 {
    (words[i / 8] >> (4 * (i % 8)) & 15) as f32
}

/// Checks the weights of every quantized tensor, bit for bit, and returns config.json.
fn check(
    file: &SmqFile,
    out: &Path,
    weights: impl Fn(&SafeTensors, &str, [usize; 3]) -> Vec<f32>,
) -> Value {
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for view in file.tensors() {
        let (rows, columns) = view.matrix_shape();
        let TensorData::Int4 { group, .. } = view.data() else {
            assert!(tensors.tensor(view.name()).is_ok());
            continue;
        };
        let module = view.name().strip_suffix(".weight").unwrap();
        let found = weights(&tensors, module, [rows, columns, group]);
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        // A zero has no sign to keep: 0 s is what a reader computes in its own order.
        let expected: Vec<f32> = view.dequantize().unwrap().iter().map(|w| w + 0.0).collect();
        let found: Vec<f32> = found.iter().map(|w| w + 0.0).collect();
        assert!(bits(&found) == bits(&expected), "{module}");
    }
    config_of(out)
}

const CASES: [(ScaleChoice, usize, ScaleRule); 3] = [
    (ScaleChoice::F16, 128, ScaleRule::Reference),
    (ScaleChoice::e5(5), 64, ScaleRule::Search),
    (ScaleChoice::e5(0), 32, ScaleRule::Signed),
];

#[test]
fn gptq_dequantizes_to_the_same_weights() {
    for (scales, group, rule) in CASES {
        let dir = TempDir::new().unwrap();
        let file = smq(&dir, scales, group, rule);
        let out = dir.path().join("out");
        let summary = run(&file, &out, GPTQ).unwrap();
        assert_eq!(summary.rounding.inexact, 0);
        let config = check(&file, &out, |tensors, module, [rows, columns, group]| {
            let name = |part: &str| format!("{module}.{part}");
            let (i32, groups) = (StDtype::I32, columns / group);
            let qweight = words(tensors, &name("qweight"), i32, &[columns / 8, rows]);
            let qzeros = words(tensors, &name("qzeros"), i32, &[groups, rows / 8]);
            let g_idx = words(tensors, &name("g_idx"), i32, &[columns]);
            let scales = tensors.tensor(&name("scales")).unwrap();
            assert_eq!(
                (scales.dtype(), scales.shape()),
                (StDtype::F16, &[groups, rows][..])
            );
            let scales = halves(tensors, &name("scales"));
            let weight = |i: usize| {
                let (row, column) = (i / columns, i % columns);
                let group = g_idx[column] as usize;
                let integer = qweight[column / 8 * rows + row] >> (4 * (column % 8)) & 15;
                // The first version stores the zero point less one.
                let zero = nibble(&qzeros[group * rows / 8..], row) + 1.0;
                scales[group * rows + row] * (integer as f32 - zero)
            };
            (0..rows * columns).map(weight).collect()
        });
        assert_eq!(
            config["quantization_config"],
            json!({
                "bits": 4, "checkpoint_format": "gptq", "desc_act": false, "group_size": group,
                "lm_head": false, "pack_dtype": "int32", "quant_method": "gptq", "sym": true,
            })
        );
    }
}

#[test]
fn gptq_comes_back_bit_for_bit() {
    for (scales, group, rule) in CASES {
        let dir = TempDir::new().unwrap();
        let file = smq(&dir, scales, group, rule);
        let out = dir.path().join("out");
        run(&file, &out, GPTQ).unwrap();
        let again = dir.path().join("again.smq");
        let options = ConvertOptions {
            target: "all".parse().unwrap(),
            quantize: Method::Int4(QuantizeOptions {
                group,
                scales,
                // The integers are kept, so that no rule may choose others.
                rule: ScaleRule::Reference,
            }),
            overwrite: false,
            jobs: 0,
        };
        let source = Checkpoint::open(&out).unwrap();
        assert_eq!(source.import().unwrap().form, Form::Gptq { stored_zero: 7 });
        convert(&source, &again, &options, &|_| true).unwrap();
        let again = SmqFile::open(&again).unwrap();
        let tensors = |file: &SmqFile| {
            let tensors = file.index().tensors.iter().map(|tensor| {
                let hashes: Vec<_> = tensor.blobs.iter().map(|blob| blob.blake3).collect();
                (
                    tensor.name.clone(),
                    tensor.shape.clone(),
                    tensor.scheme,
                    hashes,
                )
            });
            tensors.collect::<Vec<_>>()
        };
        assert_eq!(tensors(&file), tensors(&again));
    }
}

#[test]
fn mlx_dequantizes_to_the_same_weights() {
    for (scales, group, rule) in CASES {
        let dir = TempDir::new().unwrap();
        let file = smq(&dir, scales, group, rule);
        let out = dir.path().join("out");
        let summary = run(&file, &out, MLX).unwrap();
        assert_eq!(summary.rounding.inexact, 0);
        let config = check(&file, &out, |tensors, module, [rows, columns, group]| {
            let name = |part: &str| format!("{module}.{part}");
            let weight = words(tensors, &name("weight"), StDtype::U32, &[rows, columns / 8]);
            let scales = halves(tensors, &name("scales"));
            let biases = halves(tensors, &name("biases"));
            let shape = [rows, columns / group];
            for part in ["scales", "biases"] {
                assert_eq!(tensors.tensor(&name(part)).unwrap().shape(), shape);
            }
            (0..rows * columns)
                .map(|i| scales[i / group] * nibble(&weight, i) + biases[i / group])
                .collect()
        });
        let expected = json!({"bits": 4, "group_size": group});
        assert_eq!(config["quantization"], expected);
        assert_eq!(config["quantization_config"], expected);
    }
}

#[test]
fn gptq_names_what_is_not_quantized() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let tensors = [
        ("model.layers.0.mlp.down_proj.weight", SHAPE, INT4),
        ("model.layers.0.self_attn.o_proj.weight", SHAPE, RAW),
        ("lm_head.weight", SHAPE, INT4),
    ];
    let file = smq_of(&dir, &[("config.json", "{}")], &tensors);
    run(&file, &out, GPTQ).unwrap();
    let config = &config_of(&out)["quantization_config"];
    assert_eq!(config["lm_head"], true);
    let left = r"-:^model\.layers\.0\.self_attn\.o_proj$";
    assert_eq!(config["dynamic"], json!({ left: {} }));
    // transformers looks for these names among the layers' modules, vLLM for the head too.
    assert_eq!(
        config["modules_in_block_to_quantize"],
        json!([["model.layers.0.mlp.down_proj", "lm_head"]])
    );
}

#[test]
fn one_group_a_row_is_for_gptq_alone() {
    let dir = TempDir::new().unwrap();
    let row = |columns| Kind::Int4(columns, ScaleFormat::F16);
    for tensors in [
        vec![
            ("a.weight", &[32, 64][..], row(64)),
            ("b.weight", &[16, 96][..], row(96)),
        ],
        vec![("a.weight", &[32, 96][..], row(96))],
    ] {
        let file = smq_of(&dir, &[("config.json", "{}")], &tensors);
        let out = dir.path().join("out");
        run(&file, &out, GPTQ).unwrap();
        assert_eq!(config_of(&out)["quantization_config"]["group_size"], -1);
        fs::remove_dir_all(&out).unwrap();
        let error = run(&file, &out, MLX).unwrap_err().to_string();
        assert!(
            error.contains("MLX takes groups of 32, 64 and 128; convert"),
            "{error}"
        );
        assert!(!out.exists());
    }
}

#[test]
fn what_they_cannot_hold_is_refused_with_the_remedy() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let refused = |file: &SmqFile, format, expected: &str| {
        let error = run(file, &out, format).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!out.exists());
    };
    let config = Some("{}");
    for (name, columns, group, config, gptq, mlx) in [
        (
            "a.weight",
            64,
            16,
            config,
            "takes groups of 32, 64 and 128, or one a row; convert the checkpoint again with --group-size 64",
            "MLX takes groups of 32, 64 and 128; convert",
        ),
        (
            "a.weight",
            96,
            64,
            config,
            "and GPTQ has no shorter last group",
            "and MLX has no shorter",
        ),
        (
            "a.weight",
            64,
            32,
            None,
            "where GPTQ describes",
            "where MLX describes",
        ),
        (
            "a.bias",
            64,
            32,
            config,
            "all that GPTQ quantizes",
            "all that MLX quantizes",
        ),
    ] {
        let file = one_tensor(&dir, name, columns, group, config);
        refused(&file, GPTQ, gptq);
        refused(&file, MLX, mlx);
    }
    // `one_tensor` has two rows.
    let file = one_tensor(&dir, "a.weight", 64, 32, config);
    refused(
        &file,
        GPTQ,
        "\"a.weight\" has 2 rows and 64 columns, and GPTQ packs eights of both",
    );
    run(&file, &out, MLX).unwrap();
    fs::remove_dir_all(&out).unwrap();

    // Scales that f16 rounds: the tensor, the value and the options that help.
    let file = smq(&dir, ScaleChoice::F32, 128, ScaleRule::Reference);
    let first = file.tensor("model.layers.0.mlp.down_proj.weight").unwrap();
    let TensorData::Int4 { scales, .. } = first.data() else {
        panic!("it is int4")
    };
    let changes = |scale: &f32| half::f16::from_f32(*scale).to_f32() != *scale;
    let scale = scales
        .decode_all()
        .unwrap()
        .into_iter()
        .find(changes)
        .unwrap();
    let why = format!("the first {scale:e} of tensor \"model.layers.0.mlp.down_proj.weight\"");
    refused(&file, GPTQ, &format!("scales are not exact in f16, {why}"));
    refused(
        &file,
        GPTQ,
        "convert the checkpoint again with --scales f16",
    );
    refused(&file, MLX, &why);
    let rounded = ExportFormat::Gptq {
        allow_inexact: true,
    };
    assert!(run(&file, &out, rounded).unwrap().rounding.inexact > 0);
    fs::remove_dir_all(&out).unwrap();

    for (method, name, remedy) in [
        (Method::Nf4, "nf4-dq", "--to safetensors, which"),
        (
            Method::Fp8,
            "fp8-e4m3",
            "--to compressed-tensors, or --to safetensors",
        ),
    ] {
        let dir = TempDir::new().unwrap();
        let file = quantized(&dir, method);
        let why =
            |form| format!("is {name}, and only int4 can be exported as {form}; use {remedy}");
        refused(&file, GPTQ, &why("GPTQ"));
        refused(&file, MLX, &why("MLX"));
    }
}

#[test]
fn biases_that_f16_does_not_hold_are_refused() {
    // Scales of 2^13 are exact in f16, and -8 of them are not finite there.
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let kind = Kind::Scaled(32, ScaleFormat::F16, 8192.0);
    let file = smq_of(&dir, &[("config.json", "{}")], &[("a.weight", SHAPE, kind)]);
    let error = run(&file, &out, MLX).unwrap_err();
    assert!(matches!(error, ConvertError::Export { .. }));
    assert!(
        error
            .to_string()
            .contains("\"a.weight\" has a scale of 8.192e3, over f16's largest"),
        "{error}"
    );
    assert!(!out.exists());
    run(&file, &out, GPTQ).unwrap();
}
