//! Every refusal with its exact error.

use std::path::Path;

use safetensors::Dtype as StDtype;
use serde_json::{Value, json};
use smq_convert::{Checkpoint, ConvertError, convert};
use tempfile::TempDir;

use super::*;

/// The error, without the directory, of converting a checkpoint; nothing may be left behind.
fn refusal(checkpoint: &Path, group: usize) -> String {
    let error = match Checkpoint::open(checkpoint) {
        Err(error) => error,
        Ok(opened) => {
            let out = checkpoint.join("out.smq");
            let options = options("mlp", e5m(5), group);
            let error: ConvertError = convert(&opened, &out, &options, &|_| true).unwrap_err();
            assert!(!out.exists());
            error
        }
    };
    let dir = checkpoint.display().to_string();
    error
        .to_string()
        .replace(&format!("{dir}/"), "")
        .replace(&dir, "DIR")
}

const REMEDY: &str = "convert the checkpoint that it was quantized from";

#[test]
fn configs_that_are_refused() {
    let packed: &[(&str, Value, &str)] = &[
        (
            "/quant_method",
            json!("awq"),
            "quant_method is \"awq\"; only symmetric int4 of \"compressed-tensors\" (pack-quantized), \"gptq\" and \"auto-round\" can be imported; R",
        ),
        (
            "/quant_method",
            json!(null),
            "quant_method is missing; only symmetric int4 of \"compressed-tensors\" (pack-quantized), \"gptq\" and \"auto-round\" can be imported; R",
        ),
        (
            "/format",
            json!("float-quantized"),
            "format is \"float-quantized\"; only \"pack-quantized\" can be imported; R",
        ),
        (
            "/format",
            json!("nvfp4-pack-quantized"),
            "format is \"nvfp4-pack-quantized\"; only \"pack-quantized\" can be imported; R",
        ),
        (
            "/kv_cache_scheme",
            json!({"num_bits": 8}),
            "kv_cache_scheme is {\"num_bits\":8}; only weights may be quantized; R",
        ),
        (
            "/transform_config",
            json!({"r": 1}),
            "transform_config is {\"r\":1}; only weights without transforms can be imported; R",
        ),
        (
            "/sparsity_config",
            json!({"format": "sparse-24"}),
            "sparsity_config.format is \"sparse-24\"; only dense weights can be imported; R",
        ),
        (
            "/config_groups",
            json!({}),
            "config_groups is {}; an object with the scheme of the int4 weights is needed; R",
        ),
        (
            "/config_groups/group_0/format",
            json!("int-quantized"),
            "config_groups.group_0.format is \"int-quantized\"; only \"pack-quantized\" can be imported; R",
        ),
        (
            "/config_groups/group_0/input_activations",
            json!({"num_bits": 8}),
            "config_groups.group_0.input_activations is {\"num_bits\":8}; only weights may be quantized; R",
        ),
        (
            "/config_groups/group_0/weights/num_bits",
            json!(8),
            "config_groups.group_0.weights.num_bits is 8; only 4 can be imported; R",
        ),
        (
            "/config_groups/group_0/weights/type",
            json!("float"),
            "config_groups.group_0.weights.type is \"float\"; only \"int\" can be imported; R",
        ),
        (
            "/config_groups/group_0/weights/symmetric",
            json!(false),
            "config_groups.group_0.weights.symmetric is false; only symmetric integers can be imported, since a .smq file has no zero points; quantize again with symmetric=true",
        ),
        (
            "/config_groups/group_0/weights/strategy",
            json!("tensor"),
            "config_groups.group_0.weights.strategy is \"tensor\"; only \"group\" and \"channel\" can be imported; R",
        ),
        (
            "/config_groups/group_0/weights/actorder",
            json!("group"),
            "config_groups.group_0.weights.actorder is \"group\"; only groups of consecutive columns can be imported, and activation order scatters them; quantize again with actorder \"weight\" or none",
        ),
        (
            "/config_groups/group_0/weights/group_size",
            json!(-1),
            "config_groups.group_0.weights.group_size is -1; strategy \"group\" needs a size; R",
        ),
        (
            "/config_groups/group_1",
            json!({"weights": {"num_bits": 4, "strategy": "group", "group_size": 64}}),
            "config_groups.group_1.weights.group_size is 64; only one scheme for all int4 tensors can be imported; R",
        ),
    ];
    let gptq: &[(&str, Value, &str)] = &[
        ("/bits", json!(8), "bits is 8; only 4 can be imported; R"),
        (
            "/bits",
            json!(null),
            "bits is missing; only 4 can be imported; R",
        ),
        (
            "/sym",
            json!(false),
            "sym is false; only symmetric integers can be imported, since a .smq file has no zero points; quantize again with sym=true",
        ),
        (
            "/desc_act",
            json!(true),
            "desc_act is true; only groups of consecutive columns can be imported, and activation order scatters them; quantize again with desc_act=false",
        ),
        (
            "/checkpoint_format",
            json!("marlin"),
            "checkpoint_format is \"marlin\"; only \"gptq\" and \"gptq_v2\" can be imported; R",
        ),
        (
            "/is_marlin_format",
            json!(true),
            "is_marlin_format is true; only the layout of GPTQ itself can be imported; R",
        ),
        (
            "/pack_dtype",
            json!("int8"),
            "pack_dtype is \"int8\"; only \"int32\" can be imported; R",
        ),
        (
            "/rotation",
            json!("hadamard"),
            "rotation is \"hadamard\"; only weights without rotation can be imported; R",
        ),
        (
            "/dynamic",
            json!({"+:.*": {"bits": 8}}),
            "dynamic is {\"+:.*\":{\"bits\":8}}; only one scheme for all modules can be imported; R",
        ),
        (
            "/group_size",
            json!(0),
            "group_size is 0; only groups of 1 to 1048576 elements, or -1 for a whole row, can be imported; R",
        ),
        (
            "/format",
            json!("bitblas"),
            "format is \"bitblas\"; only \"gptq\" and \"gptq_v2\" can be imported; R",
        ),
    ];
    let auto_round: &[(&str, Value, &str)] = &[
        (
            "/packing_format",
            json!("auto_round:auto_awq"),
            "packing_format is \"auto_round:auto_awq\"; only GPTQ's layout of int4 (\"auto_round:auto_gptq\" and the like) can be imported; R",
        ),
        ("/bits", json!(2), "bits is 2; only 4 can be imported; R"),
        (
            "/sym",
            json!(false),
            "sym is false; only symmetric integers can be imported, since a .smq file has no zero points; quantize again with sym=true",
        ),
        (
            "/data_type",
            json!("mx_fp"),
            "data_type is \"mx_fp\"; only \"int\" can be imported; R",
        ),
        (
            "/act_bits",
            json!(8),
            "act_bits is 8; only weights may be quantized; R",
        ),
        (
            "/rotation_config",
            json!({"hadamard_type": "random"}),
            "rotation_config is {\"hadamard_type\":\"random\"}; only weights without rotation can be imported; R",
        ),
        (
            "/extra_config",
            json!({"model.layers.0.mlp.down_proj": {"bits": 8}}),
            "extra_config.model.layers.0.mlp.down_proj.bits is 8; only 4 can be imported; R",
        ),
        (
            "/extra_config",
            json!({"a": {"bits": 16}, "b": {"group_size": 32}}),
            "extra_config.b.group_size is 32; only one scheme for all int4 tensors can be imported; R",
        ),
    ];
    let mut of_auto_round = Gptq::new(8, 128, 128, 7).config;
    let keys = json!({
        "quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": true, "data_type": "int"
    });
    of_auto_round["quantization_config"] = keys;
    let base = [
        pack_config(128),
        Gptq::new(8, 128, 128, 7).config,
        of_auto_round,
    ];
    for (cases, base) in [packed, gptq, auto_round].into_iter().zip(base) {
        for (pointer, value, expected) in cases {
            let dir = TempDir::new().unwrap();
            let mut config = base.clone();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let parent = format!("/quantization_config{parent}");
            config.pointer_mut(&parent).unwrap()[key] = value.clone();
            let checkpoint = write(dir.path(), &config, &Gptq::new(8, 128, 128, 7).tensors);
            let expected = format!(
                "config.json: quantization_config.{}",
                expected.replace("; R", &format!("; {REMEDY}"))
            );
            assert_eq!(refusal(&checkpoint, 128), expected);
        }
    }
    let preset = json!({"W4A16": ["Linear"], "W8A16": ["re:.*down_proj"]});
    let mut config = pack_config(128);
    config["quantization_config"]["config_groups"] = preset;
    let dir = TempDir::new().unwrap();
    let checkpoint = write(dir.path(), &config, &Gptq::new(8, 128, 128, 7).tensors);
    assert_eq!(
        refusal(&checkpoint, 128),
        format!(
            "config.json: quantization_config.config_groups.W8A16 is [\"re:.*down_proj\"]; of the presets only \"W4A16\" can be imported; {REMEDY}"
        )
    );
    let accepted = [("actorder", json!("weight")), ("actorder", json!("static"))];
    for (key, value) in accepted {
        let dir = TempDir::new().unwrap();
        let mut config = pack_config(128);
        config["quantization_config"]["config_groups"]["group_0"]["weights"][key] = value;
        let checkpoint = write(dir.path(), &config, &Gptq::new(8, 128, 128, 7).tensors);
        assert!(refusal(&checkpoint, 128).contains("no tensor's name ends in \".weight_packed\""));
    }
}

type Edit = fn(&mut Gptq);

#[test]
fn gptq_tensors_that_are_refused() {
    const FILE: &str = "model.safetensors: tensor \"model.layers.0.mlp.down_proj";
    const DAMAGED: &str =
        "the checkpoint is damaged or its config.json is another's; download both again";
    let cases: &[(Edit, String)] = &[
        (
            |g| g.tensor("g_idx").3 = le(&(0..256).map(|k| k % 2).collect::<Vec<_>>()),
            format!("{FILE}.g_idx\" puts column 1 into group 1; only groups of 128 consecutive columns can be imported, and activation order scatters them; quantize again with desc_act=false"),
        ),
        (
            |g| g.tensor("qzeros").3[5] = 0x75,
            format!("{FILE}.qzeros\" stores zero point 5 for group 0 of output 10; the ones before it are 7, and only equal ones can be imported; quantize again with sym=true"),
        ),
        (
            |g| g.tensor("qzeros").3[0] = 0x76,
            format!("{FILE}.qzeros\" stores zero point 6 for group 0 of output 0; only 8 throughout, or 7 as GPTQ's first version stores it, can be imported; quantize again with sym=true"),
        ),
        (
            |g| g.set("checkpoint_format", json!("gptq_v2")),
            format!("{FILE}.qzeros\" stores zero point 7 for group 0 of output 0; symmetric integers have 8 in the version of GPTQ that config.json declares, and only these can be imported; quantize again with sym=true"),
        ),
        (
            |g| {
                g.set("checkpoint_format", json!("gptq"));
                g.set("format", json!("gptq_v2"));
            },
            "config.json: quantization_config.format is \"gptq_v2\"; checkpoint_format says another; remove the one of the two that is wrong".to_owned(),
        ),
        (
            |g| g.tensor("qweight").1 = StDtype::F32,
            format!("{FILE}.qweight\" has dtype f32; only i32 can be imported; {REMEDY}"),
        ),
        (
            |g| g.tensor("scales").1 = StDtype::I16,
            format!("{FILE}.scales\" has dtype i16; only scales in bf16, f16 or f32 can be imported; {REMEDY}"),
        ),
        (
            |g| g.tensor("scales").2 = vec![16, 2],
            format!("{FILE}.scales\" has shape [16, 2]; its integers and group size imply [2, 16]; {DAMAGED}"),
        ),
        (
            |g| g.set("group_size", json!(64)),
            format!("{FILE}.qzeros\" has shape [2, 2]; its integers and group size imply [4, 2]; {DAMAGED}"),
        ),
        (
            |g| g.tensor("qweight").2 = vec![512],
            format!("{FILE}.qweight\" has shape [512]; its integers and group size imply [in / 8, out], both at least 1; {DAMAGED}"),
        ),
        (
            |g| g.tensors.retain(|t| !t.0.ends_with("scales")),
            format!("DIR: tensor \"{MODULE}.scales\" is missing; int4 tensor \"{MODULE}.weight\" needs it; download the checkpoint again"),
        ),
        (
            |g| g.tensors.push(("x.g_idx".to_owned(), StDtype::I32, vec![1], vec![0; 4])),
            "model.safetensors: tensor \"x.g_idx\" is part of an int4 tensor; its integers \"x.qweight\" are missing; download the checkpoint again".to_owned(),
        ),
        (
            |g| g.tensors.push((format!("{MODULE}.weight"), StDtype::F16, vec![1], vec![0; 2])),
            format!("{FILE}.weight\" is there twice; it is also stored in int4; remove one of the two"),
        ),
        (
            |g| g.tensors.retain(|t| t.0.ends_with("norm.weight")),
            "config.json: quantization_config says gptq, but no tensor's name ends in \".qweight\"; an int4 checkpoint needs one; where the weights are not quantized, remove quantization_config".to_owned(),
        ),
        (
            |g| g.config = json!({}),
            format!("{FILE}.qweight\" holds packed integers; DIR/config.json has no quantization_config that says which; put the config.json of the quantized checkpoint beside it"),
        ),
        (
            |g| g.tensors.push(("x.weight".to_owned(), StDtype::I64, vec![1], vec![0; 8])),
            "model.safetensors: tensor \"x.weight\" has dtype i64; smq-convert reads bf16, f16 and f32".to_owned(),
        ),
        (
            |g| g.tensor("scales").3[2..4].copy_from_slice(&[0, 0x7c]),
            format!("{FILE}.weight\" has inf at row 1, column 0; the checkpoint is damaged or was saved after training diverged"),
        ),
    ];
    for (edit, expected) in cases {
        let dir = TempDir::new().unwrap();
        let mut gptq = Gptq::new(16, 256, 128, 7);
        edit(&mut gptq);
        let error = refusal(&gptq.write(dir.path()), 128);
        assert_eq!(error, expected.replace("DIR/", ""));
    }
}

#[test]
fn packed_tensors_that_are_refused() {
    let zeros = |end: &str, dtype, shape: &[usize], bytes| {
        (format!("m.{end}"), dtype, shape.to_vec(), vec![0u8; bytes])
    };
    let shape = |rows: i64, columns: i64| {
        let bytes = [rows, columns].into_iter().flat_map(|n| n.to_le_bytes());
        (
            "m.weight_shape".to_owned(),
            StDtype::I64,
            vec![2],
            bytes.collect::<Vec<u8>>(),
        )
    };
    let codes = zeros("weight_packed", StDtype::I32, &[2, 2], 16);
    let scales = zeros("weight_scale", StDtype::BF16, &[2, 2], 8);
    let cases = [
        (
            vec![
                codes.clone(),
                scales.clone(),
                shape(2, 16),
                zeros("weight_zero_point", StDtype::I32, &[1, 2], 8),
            ],
            "model.safetensors: tensor \"m.weight_zero_point\" holds zero points; only symmetric integers can be imported, since a .smq file has no zero points; quantize again with symmetric=true",
        ),
        (
            vec![
                codes.clone(),
                scales.clone(),
                shape(2, 16),
                zeros("weight_g_idx", StDtype::I32, &[16], 64),
            ],
            "model.safetensors: tensor \"m.weight_g_idx\" holds an activation order; only groups of consecutive columns can be imported; quantize again with actorder \"weight\" or none",
        ),
        (
            vec![codes.clone(), scales.clone(), shape(2, -1)],
            "model.safetensors: tensor \"m.weight_shape\" holds [2, -1]; two dimensions of 1 to 2^31 are needed; the checkpoint is damaged; download it again",
        ),
        (
            vec![codes.clone(), scales.clone(), shape(2, 17)],
            "model.safetensors: tensor \"m.weight_packed\" has shape [2, 2]; its integers and group size imply [2, 3]; the checkpoint is damaged or its config.json is another's; download both again",
        ),
        (
            vec![codes, shape(2, 16)],
            "DIR: tensor \"m.weight_scale\" is missing; int4 tensor \"m.weight\" needs it; download the checkpoint again",
        ),
    ];
    for (tensors, expected) in cases {
        let dir = TempDir::new().unwrap();
        let checkpoint = write(dir.path(), &pack_config(8), &tensors);
        assert_eq!(refusal(&checkpoint, 8), expected);
    }
}
