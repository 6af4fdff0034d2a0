//! What other programs find in an exported directory.

use std::fs;
use std::path::Path;

use safetensors::{Dtype as StDtype, SafeTensors};
use serde_json::{Value, json};
use smq_format::scale::ScaleFormat;
use smq_format::{Dtype, Provenance, Scheme, SmqFile, SmqWriter, TensorData, bits};
use tempfile::TempDir;

use smq_convert::{ExportFormat, ScaleChoice, ScaleRule};

use super::{BF16, F32, PACKED, e5m, read_back, run, smq};

const F16: ExportFormat = ExportFormat::Safetensors(Dtype::F16);

/// One tensor: int4 in groups of so many with scales of 1, or of another number; FP8's ones with a
/// scale of 1; or zeros of a type.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Int4(usize, ScaleFormat),
    Scaled(usize, ScaleFormat, f32),
    Fp8,
    Raw(Dtype),
}

pub(super) const INT4: Kind = Kind::Int4(32, ScaleFormat::F32);
pub(super) const RAW: Kind = Kind::Raw(Dtype::Bf16);

/// A .smq file of `files` and of tensors of the shape that is given.
pub(super) fn smq_of(
    dir: &TempDir,
    files: &[(&str, &str)],
    tensors: &[(&str, &[usize], Kind)],
) -> SmqFile {
    let path = dir.path().join("made.smq");
    let mut writer = SmqWriter::create(&path, true).unwrap();
    for (name, contents) in files {
        writer.add_file(name, contents.as_bytes()).unwrap();
    }
    for (name, shape, kind) in tensors {
        let elems: usize = shape.iter().product();
        let (dtype, scheme, blobs) = match *kind {
            Kind::Raw(dtype) => (
                dtype,
                Scheme::Raw(dtype),
                vec![vec![0; dtype.bytes() * elems]],
            ),
            Kind::Fp8 => {
                let scales = 1f32.to_le_bytes().repeat(shape[0]);
                (Dtype::Bf16, Scheme::Fp8, vec![vec![0x38; elems], scales])
            }
            Kind::Int4(group, scales) | Kind::Scaled(group, scales, _) => {
                let scale = match *kind {
                    Kind::Scaled(.., scale) => scale,
                    Kind::Int4(..) | Kind::Fp8 | Kind::Raw(_) => 1.0,
                };
                let codes = vec![scales.encode(scale).code; shape[0] * shape[1].div_ceil(group)];
                let blobs = vec![
                    vec![0x11; elems / 2],
                    bits::pack(codes, scales.width_bits()),
                ];
                (Dtype::Bf16, Scheme::Int4 { group, scales }, blobs)
            }
        };
        let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
        writer
            .add_tensor(name, shape, dtype, scheme, &blobs)
            .unwrap();
    }
    writer.finish(Provenance::default(), None).unwrap();
    SmqFile::open(&path).unwrap()
}

pub(super) fn config_of(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap()
}

pub(super) const SHAPE: &[usize] = &[32, 64];

#[test]
fn nothing_names_code_that_is_not_there() {
    let dir = TempDir::new().unwrap();
    let config = r#"{
  "auto_map": {
    "AutoConfig": "configuration_phi3.Phi3Config",
    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"
  },
  "rope_theta": 1.0800000429153442e4,
  "custom_pipelines": {"text": {"impl": "pipeline.Text"}}
}"#;
    let tokenizer = r#"{"auto_map": {"AutoTokenizer": ["t.T", null]}, "model_max_length": 1e+30}"#;
    let generation = r#"{ "eos_token_id": 2 }"#;
    let files = [
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer),
    ];
    let file = smq_of(&dir, &files, &[("a.weight", SHAPE, INT4)]);
    for format in [PACKED, BF16] {
        let out = dir.path().join(format!("{format:?}"));
        let summary = run(&file, &out, format).unwrap();
        assert!(summary.named_code);
        let config = fs::read_to_string(out.join("config.json")).unwrap();
        assert!(config.contains("\"rope_theta\": 1.0800000429153442e4"));
        assert!(!config.contains("auto_map") && !config.contains("custom_pipelines"));
        let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
        assert_eq!(
            read("tokenizer_config.json"),
            "{\n  \"model_max_length\": 1e+30\n}\n"
        );
        assert_eq!(read("generation_config.json"), generation);
    }
    let file = smq_of(&dir, &[("config.json", "{}")], &[("a.weight", SHAPE, INT4)]);
    let out = dir.path().join("plain");
    assert!(!run(&file, &out, PACKED).unwrap().named_code);
}

#[test]
fn what_vllm_loads_as_one_has_one_scheme() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let files = [("config.json", "{}")];
    let attention = "model.layers.3.self_attn";
    let (q, k, v) = (
        format!("{attention}.q_proj.weight"),
        format!("{attention}.k_proj.weight"),
        format!("{attention}.v_proj.weight"),
    );
    let (gate, up) = (
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    );
    let expert = |e: usize, name: &str| format!("model.layers.1.mlp.experts.{e}.{name}.weight");
    let (first, second) = (expert(0, "w1"), expert(7, "w2"));
    let other = ("model.layers.1.mlp.down_proj.weight", SHAPE, INT4);
    let cases = [
        (
            vec![
                (q.as_str(), SHAPE, INT4),
                (&k, SHAPE, RAW),
                (&v, SHAPE, INT4),
            ],
            "but model.layers.3.self_attn.q_proj.weight, model.layers.3.self_attn.v_proj.weight are quantized and not model.layers.3.self_attn.k_proj.weight;",
        ),
        (
            vec![(gate, SHAPE, RAW), (up, SHAPE, INT4)],
            "but model.layers.0.mlp.up_proj.weight are quantized and not model.layers.0.mlp.gate_proj.weight;",
        ),
        (
            vec![(first.as_str(), SHAPE, INT4), (&second, SHAPE, RAW)],
            "but model.layers.1.mlp.experts.0.w1.weight are quantized and not model.layers.1.mlp.experts.7.w2.weight;",
        ),
    ];
    for (mut tensors, expected) in cases {
        tensors.push(other);
        let file = smq_of(&dir, &files, &tensors);
        let error = run(&file, &out, PACKED).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.ends_with("with a --target that takes all of these or none"));
        assert!(!out.exists());
        // Dequantized, they are all alike.
        run(&file, &dir.path().join("f32"), F32).unwrap();
        fs::remove_dir_all(dir.path().join("f32")).unwrap();
        // All of them, or none.
        for kind in [INT4, RAW] {
            let same = tensors.iter().map(|t| match t.0 == other.0 {
                true => other,
                false => (t.0, t.1, kind),
            });
            let file = smq_of(&dir, &files, &same.collect::<Vec<_>>());
            run(&file, &out, PACKED).unwrap();
            fs::remove_dir_all(&out).unwrap();
        }
    }
}

#[test]
fn config_says_the_type_that_is_written() {
    let dir = TempDir::new().unwrap();
    let cases = [
        (
            F32,
            Dtype::Bf16,
            r#"{"torch_dtype": "bfloat16"}"#,
            json!({"torch_dtype": "float32"}),
        ),
        (
            F32,
            Dtype::F32,
            r#"{"dtype": "float32"}"#,
            json!({"dtype": "float32"}),
        ),
        (F32, Dtype::Bf16, "{}", json!({"torch_dtype": "float32"})),
        (
            BF16,
            Dtype::Bf16,
            r#"{"dtype": "float16"}"#,
            json!({"dtype": "bfloat16"}),
        ),
        // A tensor in f32 beside bf16 ones was there before, and so was the config.
        (
            BF16,
            Dtype::F32,
            r#"{"dtype": "bfloat16"}"#,
            json!({"dtype": "bfloat16"}),
        ),
        (
            F16,
            Dtype::F16,
            r#"{"dtype": "bfloat16"}"#,
            json!({"dtype": "float16"}),
        ),
        (
            F16,
            Dtype::F32,
            r#"{"dtype": "float16"}"#,
            json!({"dtype": "float16"}),
        ),
        // f16 beside bf16: only f32 holds both.
        (
            BF16,
            Dtype::F16,
            r#"{"dtype": "float16"}"#,
            json!({"dtype": "float32"}),
        ),
    ];
    for (format, raw, config, expected) in cases {
        let tensors = [
            ("a.weight", SHAPE, INT4),
            ("b.weight", SHAPE, Kind::Raw(raw)),
        ];
        let file = smq_of(&dir, &[("config.json", config)], &tensors);
        let out = dir.path().join("out");
        run(&file, &out, format).unwrap();
        assert_eq!(config_of(&out), expected);
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn a_head_beside_a_tied_embedding_is_told() {
    let dir = TempDir::new().unwrap();
    let tied = [(
        "config.json",
        r#"{"tie_word_embeddings": true, "dtype": "bfloat16"}"#,
    )];
    let embedding = ("model.embed_tokens.weight", SHAPE, RAW);
    let quantized = [("lm_head.weight", SHAPE, INT4), embedding];
    let file = smq_of(&dir, &tied, &quantized);
    let out = dir.path().join("out");
    run(&file, &out, PACKED).unwrap();
    let config = config_of(&out);
    assert_eq!(config["tie_word_embeddings"], false);
    let quantization = &config["quantization_config"];
    // vLLM's head is no Linear module, so that it is named.
    let targets = &quantization["config_groups"]["group_0"]["targets"];
    assert_eq!(*targets, json!(["Linear", "lm_head"]));
    assert_eq!(quantization["ignore"], json!([]));

    // The same weights twice are tied indeed.
    let same = [
        ("a.weight", SHAPE, INT4),
        ("lm_head.weight", SHAPE, RAW),
        ("model.embed_tokens.weight", SHAPE, RAW),
    ];
    let file = smq_of(&dir, &tied, &same);
    let out = dir.path().join("same");
    run(&file, &out, PACKED).unwrap();
    assert_eq!(config_of(&out)["tie_word_embeddings"], true);
}

#[test]
fn one_group_a_row_is_a_strategy_of_its_own() {
    let dir = TempDir::new().unwrap();
    let row = |columns| Kind::Int4(columns, ScaleFormat::F16);
    let tensors = [
        ("a.weight", &[32, 64][..], row(64)),
        ("b.weight", &[16, 96][..], row(96)),
    ];
    let file = smq_of(
        &dir,
        &[("config.json", r#"{"dtype": "float16"}"#)],
        &tensors,
    );
    let out = dir.path().join("out");
    run(&file, &out, PACKED).unwrap();
    let weights = &config_of(&out)["quantization_config"]["config_groups"]["group_0"]["weights"];
    assert_eq!(
        (&weights["strategy"], &weights["group_size"]),
        (&json!("channel"), &Value::Null)
    );
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let written = SafeTensors::deserialize(&bytes).unwrap();
    let scales = written.tensor("b.weight_scale").unwrap();
    assert_eq!(
        (scales.shape(), scales.dtype()),
        (&[16, 1][..], StDtype::F16)
    );
}

#[test]
fn scales_have_the_models_type_where_it_holds_them() {
    let dir = TempDir::new().unwrap();
    let e5m5 = smq_format::scale::MiniFloat::new(5, 5, 20).unwrap();
    let tensors = [("a.weight", SHAPE, Kind::Int4(32, ScaleFormat::Mini(e5m5)))];
    for (config, expected) in [
        (r#"{"torch_dtype": "bfloat16"}"#, StDtype::BF16),
        (r#"{"torch_dtype": "float16"}"#, StDtype::F16),
        ("{}", StDtype::BF16),
    ] {
        let file = smq_of(&dir, &[("config.json", config)], &tensors);
        let out = dir.path().join("out");
        run(&file, &out, PACKED).unwrap();
        let bytes = fs::read(out.join("model.safetensors")).unwrap();
        let written = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(written.tensor("a.weight_scale").unwrap().dtype(), expected);
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn scales_that_only_f16_holds_go_out_as_f16() {
    for choice in [ScaleChoice::F16, e5m(10), e5m(8)] {
        let dir = TempDir::new().unwrap();
        let file = smq(&dir, choice, 128, ScaleRule::Reference);
        let out = dir.path().join("out");
        let summary = run(&file, &out, PACKED).unwrap();
        assert_eq!(summary.rounding.inexact, 0);
        let bytes = fs::read(&summary.shards[0]).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for view in file.tensors() {
            let TensorData::Int4 { scales, .. } = view.data() else {
                continue;
            };
            let scale = tensors.tensor(&format!("{}_scale", view.name())).unwrap();
            assert_eq!(scale.dtype(), StDtype::F16);
            let mut values = vec![0.0; scales.count];
            smq_format::widen(Dtype::F16, scale.data(), &mut values);
            assert_eq!(values, scales.decode_all().unwrap());
        }
    }
}

#[test]
fn f16_weights_are_rounded_to_f16() {
    let dir = TempDir::new().unwrap();
    let file = smq(&dir, e5m(5), 128, ScaleRule::Reference);
    let out = dir.path().join("out");
    let rounding = run(&file, &out, F16).unwrap().rounding;
    let written = read_back(&out);
    let mut inexact = 0;
    for view in file.tensors().filter(|view| view.scheme().is_quantized()) {
        let (_, dtype, values) = &written[view.name()];
        assert_eq!(*dtype, Dtype::F16);
        for (weight, value) in view.dequantize().unwrap().iter().zip(values) {
            let rounded = half::f16::from_f32(*weight).to_f32();
            assert_eq!(value.to_bits(), rounded.to_bits());
            inexact += u64::from(value != weight);
        }
    }
    assert_eq!(rounding.inexact, inexact);
}

#[test]
fn layouts_that_are_no_linear_module() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let gpt2 = [("config.json", r#"{"model_type": "gpt2"}"#)];
    let tensors = [("h.0.attn.c_proj.weight", SHAPE, INT4)];
    let error = run(&smq_of(&dir, &gpt2, &tensors), &out, PACKED).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is stored [in, out] for a Conv1D module"),
        "{error}"
    );
    // Experts in one tensor stay as they are, under the name that vLLM looks for.
    let tensors = [
        (
            "model.layers.0.mlp.experts.gate_up_proj",
            &[2, 32, 64][..],
            RAW,
        ),
        ("model.layers.0.self_attn.o_proj.weight", SHAPE, INT4),
    ];
    run(
        &smq_of(&dir, &[("config.json", "{}")], &tensors),
        &out,
        PACKED,
    )
    .unwrap();
    assert_eq!(
        config_of(&out)["quantization_config"]["ignore"],
        json!(["lm_head", r"re:model\.layers\.0\.mlp\.experts.*"])
    );
}
