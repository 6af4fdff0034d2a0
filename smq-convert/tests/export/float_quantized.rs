//! FP8 as compressed-tensors' `float-quantized`: what its readers find, and what it cannot hold.

use std::fs;

use safetensors::{Dtype as StDtype, SafeTensors};
use serde_json::json;
use smq_convert::Method;
use smq_format::{TensorData, fp8};
use tempfile::TempDir;

use super::elsewhere::{INT4, Kind, RAW, SHAPE, config_of, smq_of};
use super::{PACKED, PACKED_INEXACT, fixture, quantized, run};

#[test]
fn codes_and_scales_are_kept_and_dequantize_to_the_same_weights() {
    let dir = TempDir::new().unwrap();
    let file = quantized(&dir, Method::Fp8);
    let out = dir.path().join("out");
    let summary = run(&file, &out, PACKED).unwrap();
    assert_eq!((summary.scales, summary.group), (None, None));
    assert_eq!((summary.rounding.values, summary.rounding.inexact), (0, 0));
    assert_eq!(summary.quantized_tensors, 16);
    let bytes = fs::read(&summary.shards[0]).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut expected = 0;
    for view in file.tensors() {
        let (name, written) = (view.name(), tensors.tensor(view.name()).unwrap());
        assert_eq!(written.shape(), view.shape(), "{name}");
        expected += 1;
        let codes = match view.data() {
            TensorData::Fp8 { codes, .. } => codes,
            TensorData::Raw { bytes, .. } => {
                assert!(written.data() == bytes, "{name}");
                continue;
            }
            _ => panic!("{name} is neither FP8 nor raw"),
        };
        expected += 1;
        assert_eq!(written.dtype(), StDtype::F8_E4M3, "{name}");
        assert!(written.data() == codes, "{name}");
        let scales = tensors.tensor(&format!("{name}_scale")).unwrap();
        let (rows, columns) = view.matrix_shape();
        assert_eq!(
            (scales.dtype(), scales.shape()),
            (StDtype::F32, &[rows, 1][..])
        );
        let scales = scales.data().as_chunks::<4>().0;
        let weight = |(i, &code): (usize, &u8)| {
            let scale = f32::from_le_bytes(scales[i / columns]);
            (fp8::VALUES[usize::from(code)] * scale).to_bits()
        };
        let found: Vec<u32> = written.data().iter().enumerate().map(weight).collect();
        let exact = view.dequantize().unwrap();
        let exact: Vec<u32> = exact.iter().map(|w| w.to_bits()).collect();
        assert!(found == exact, "{name}");
    }
    assert_eq!(tensors.len(), expected);

    let mut config = config_of(&out);
    let quantization = config.as_object_mut().unwrap();
    let quantization = quantization.remove("quantization_config").unwrap();
    let args = |strategy: &str, dynamic: bool| {
        json!({
            "num_bits": 8, "type": "float", "symmetric": true, "strategy": strategy,
            "dynamic": dynamic,
        })
    };
    assert_eq!(
        quantization,
        json!({
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": "float-quantized",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {
                "targets": ["Linear"],
                "weights": args("channel", false),
                "input_activations": args("token", true),
            }},
        })
    );
    let original = fs::read(fixture().join("config.json")).unwrap();
    let original: serde_json::Value = serde_json::from_slice(&original).unwrap();
    assert_eq!(config, original);
    // There is nothing to round, with leave to do so or without.
    let again = dir.path().join("again");
    run(&file, &again, PACKED_INEXACT).unwrap();
    let bytes_again = fs::read(again.join("model.safetensors")).unwrap();
    assert!(bytes == bytes_again);
}

#[test]
fn the_head_is_named_and_what_is_left_is_ignored() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let tensors = [
        ("model.layers.0.mlp.down_proj.weight", SHAPE, Kind::Fp8),
        ("model.layers.0.self_attn.o_proj.weight", SHAPE, RAW),
        ("lm_head.weight", SHAPE, Kind::Fp8),
    ];
    let file = smq_of(&dir, &[("config.json", "{}")], &tensors);
    run(&file, &out, PACKED).unwrap();
    let config = &config_of(&out)["quantization_config"];
    assert_eq!(config["ignore"], json!(["model.layers.0.self_attn.o_proj"]));
    let targets = &config["config_groups"]["group_0"]["targets"];
    assert_eq!(*targets, json!(["Linear", "lm_head"]));
}

#[test]
fn what_it_cannot_hold_is_refused_with_the_remedy() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let config = &[("config.json", "{}")][..];
    let gpt2 = &[("config.json", r#"{"model_type": "gpt2"}"#)][..];
    let gate = ("model.layers.0.mlp.gate_proj.weight", SHAPE, RAW);
    for (files, tensors, expected) in [
        (
            config,
            vec![("a.weight", SHAPE, Kind::Fp8), ("b.weight", SHAPE, INT4)],
            "\"b.weight\" is int4-f32 but \"a.weight\" is fp8-e4m3, and compressed-tensors is \
             written with one scheme for all; convert the checkpoint again with one --scheme",
        ),
        (
            config,
            vec![("a.bias", SHAPE, Kind::Fp8)],
            "is not the weight of a module, which is all that compressed-tensors quantizes",
        ),
        (
            config,
            vec![("model.embed_tokens.weight", SHAPE, Kind::Fp8)],
            "is an embedding, and only linear modules can be exported quantized",
        ),
        (
            gpt2,
            vec![("h.0.attn.c_proj.weight", SHAPE, Kind::Fp8)],
            "is stored [in, out] for a Conv1D module",
        ),
        (
            &[],
            vec![("a.weight", SHAPE, Kind::Fp8)],
            "has no config.json, where compressed-tensors describes the quantization",
        ),
        (
            config,
            vec![
                gate,
                ("model.layers.0.mlp.up_proj.weight", SHAPE, Kind::Fp8),
            ],
            "model.layers.0.mlp.up_proj.weight are quantized and not",
        ),
        (
            config,
            vec![gate],
            "holds no quantized tensor; use --to safetensors",
        ),
    ] {
        let file = smq_of(&dir, files, &tensors);
        let error = run(&file, &out, PACKED).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!out.exists());
    }
}
