//! Writes the seeds under `seeds/`: tiny valid files of every scheme, a tiny checkpoint, and side
//! files from the fixtures of the tests.

use std::error::Error;
use std::path::Path;

use safetensors::tensor::{Dtype as SourceDtype, TensorView, serialize};
use serde_json::{Value, json};
use smq_format::scale::{MiniFloat, ScaleFormat};
use smq_format::{Dtype, Levels, Provenance, Scheme, SmqFile, SmqWriter, bits};
use smq_tests::corrupt::{Sample, cases};

/// Names and contents.
type Files = Vec<(&'static str, Vec<u8>)>;

fn main() -> Result<(), Box<dyn Error>> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let directory = smq_fuzz::scratch();
    let scratch = directory.path();
    let mini = MiniFloat::for_largest(5, 5, 0.75).ok_or("widths out of range")?;
    let int4 = |scales| Scheme::Int4 { group: 4, scales };
    let lut4 = |scales| Scheme::Lut4 {
        group: 4,
        scales,
        levels: Levels::nf4(),
    };
    let sample = Sample::write(scratch)?;
    let calibrated = cases(&sample)?
        .into_iter()
        .find(|case| case.name == "statistics 2 whole")
        .ok_or("the corpus has no file with statistics of version 2")?;
    let mut files = vec![
        ("all.smq", sample.bytes),
        ("calibrated.smq", calibrated.bytes),
    ];
    for (name, scheme) in [
        ("raw.smq", Scheme::Raw(Dtype::F16)),
        ("e5m5.smq", int4(ScaleFormat::Mini(mini))),
        ("lut4.smq", lut4(ScaleFormat::Mini(mini))),
        ("lut4-f16.smq", lut4(ScaleFormat::F16)),
        ("f16.smq", int4(ScaleFormat::F16)),
        ("f32.smq", int4(ScaleFormat::F32)),
        (
            "nf4.smq",
            Scheme::Nf4 {
                offset_bits: 0.25f32.to_bits(),
            },
        ),
        ("fp8.smq", Scheme::Fp8),
    ] {
        let path = scratch.join(name);
        let mut writer = SmqWriter::create(&path, true)?;
        match scheme {
            Scheme::Raw(dtype) => {
                writer.add_tensor("norm", &[2, 3], dtype, scheme, &[&[0x3c; 12]])?;
            }
            Scheme::Int4 { scales, .. } | Scheme::Lut4 { scales, .. } => {
                let codes = [0.75, -0.5, 0.0, 0.375].map(|s| scales.encode(s).code);
                let stream = bits::pack(codes, scales.width_bits());
                let nibbles = [0xe1, 0x87, 0x03, 0x5f, 0x21, 0x0c];
                writer.add_tensor("w", &[2, 5], Dtype::Bf16, scheme, &[&nibbles, &stream])?;
            }
            Scheme::Nf4 { .. } => {
                let blobs: [&[u8]; 3] = [&[0x0f, 0x17, 0xe2, 0x87], &[200], &0.5f32.to_le_bytes()];
                writer.add_tensor("w", &[1, 7], Dtype::Bf16, scheme, &blobs)?;
            }
            Scheme::Fp8 => {
                let blobs: [&[u8]; 2] = [&[0x7e, 0x81, 0, 0x38], &0.25f32.to_le_bytes()];
                writer.add_tensor("w", &[1, 4], Dtype::Bf16, scheme, &blobs)?;
            }
        }
        writer.finish(Provenance::default(), None)?;
        files.push((name, SmqFile::open(&path)?.bytes().to_vec()));
    }
    put(&seeds.join("smq"), &files)?;
    put(&seeds.join("safetensors"), &checkpoints()?)?;
    // Bytes for `arbitrary`: any will do, so a run of each kind.
    let ramp: Vec<u8> = (0..=255).collect();
    put(
        &seeds.join("round_trip"),
        &[
            ("ramp", ramp),
            ("ones", vec![1; 512]),
            (
                "mixed",
                (0..2048u32).map(|i| ((i * i) >> 3) as u8).collect(),
            ),
        ],
    )?;
    put_texts(&seeds)?;
    Ok(())
}

fn checkpoints() -> Result<Files, Box<dyn Error>> {
    let bf16: Vec<u8> = (0..40u8).flat_map(|i| [i * 6, 0x3c | i << 7]).collect();
    let f32: Vec<u8> = (0..15)
        .flat_map(|i| (i as f32 - 7.0).to_le_bytes())
        .collect();
    let tensors = [
        (
            "model.layers.0.mlp.up_proj.weight",
            TensorView::new(SourceDtype::BF16, vec![5, 8], &bf16)?,
        ),
        (
            "model.layers.0.self_attn.q_proj.weight",
            TensorView::new(SourceDtype::F32, vec![3, 5], &f32)?,
        ),
        (
            "model.norm.weight",
            TensorView::new(SourceDtype::F16, vec![6], &bf16[..12])?,
        ),
    ];
    // Two rows of 16 columns, groups of 8: integers 8 to a word, as the two int4 forms lay them
    // out.
    let words: Vec<u8> = (0..16u8).map(|i| i.wrapping_mul(37)).collect();
    let zeros: Vec<u8> = [0x77u8, 0, 0, 0].repeat(2);
    let order: Vec<u8> = (0..16i32).flat_map(|c| (c / 8).to_le_bytes()).collect();
    let dims: Vec<u8> = [2i64, 16].iter().flat_map(|d| d.to_le_bytes()).collect();
    let (i32, f16) = (SourceDtype::I32, SourceDtype::F16);
    let gptq = [
        ("m.qweight", TensorView::new(i32, vec![2, 2], &words)?),
        ("m.qzeros", TensorView::new(i32, vec![2, 1], &zeros)?),
        ("m.scales", TensorView::new(f16, vec![2, 2], &bf16[..8])?),
        ("m.g_idx", TensorView::new(i32, vec![16], &order)?),
    ];
    let packed = [
        ("m.weight_packed", TensorView::new(i32, vec![2, 2], &words)?),
        (
            "m.weight_scale",
            TensorView::new(f16, vec![2, 2], &bf16[..8])?,
        ),
        (
            "m.weight_shape",
            TensorView::new(SourceDtype::I64, vec![2], &dims)?,
        ),
    ];
    let one = [(
        "w",
        TensorView::new(SourceDtype::F16, vec![2, 3], &bf16[..12])?,
    )];
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    Ok(vec![
        ("three.safetensors", serialize(tensors, Some(metadata))?),
        ("one.safetensors", serialize(one, None)?),
        ("gptq.safetensors", serialize(gptq, None)?),
        ("packed.safetensors", serialize(packed, None)?),
    ])
}

/// The seeds that are text: side files, several in one as [`smq_fuzz::Parts`] has them.
fn put_texts(seeds: &Path) -> Result<(), Box<dyn Error>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let text = |name: &str| std::fs::read_to_string(fixtures.join(name));
    let json =
        |name: &str| -> Result<Value, Box<dyn Error>> { Ok(serde_json::from_str(&text(name)?)?) };
    let (set, key) = ("$set", "chat_template");
    let phi3 = json("phi3-tiny/tokenizer_config.json")?;
    let cases = json("hf/template_cases.json")?;
    let cases = cases["cases"]
        .as_array()
        .ok_or("there are no cases of templates")?;
    let of_case = |case: &'_ Value| {
        Some(
            case["files"]["tokenizer_config.json"][set][key]
                .as_str()?
                .to_owned(),
        )
    };
    let templates: Vec<String> = cases.iter().filter_map(of_case).collect();
    let messages =
        r#"[{"role": "user", "content": " a <b> "}, {"role": "assistant", "content": "é"}]"#;
    let with_messages = |template: &str| format!("{template}\n=== messages.json ===\n{messages}\n");
    let mut chat = vec![(
        "phi3".to_owned(),
        with_messages(phi3[key].as_str().ok_or("no template")?),
    )];
    for (n, template) in templates
        .iter()
        .step_by((templates.len() / 12).max(1))
        .enumerate()
    {
        chat.push((format!("case{n}"), with_messages(template)));
    }
    put_text(&seeds.join("chat_template"), &chat)?;

    let mut tokenizers = Vec::new();
    for (name, config) in [
        (
            "byte_level",
            r#"{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}"#,
        ),
        (
            "sentencepiece",
            r#"{"tokenizer_class": "LlamaTokenizer", "legacy": false}"#,
        ),
        ("wordpiece", r#"{"clean_up_tokenization_spaces": true}"#),
    ] {
        let file: Value = json(&format!("hf/tokenizers/{name}.json"))?;
        let beside = format!("=== tokenizer_config.json ===\n{config}\n=== text ===\n");
        tokenizers.push((name.to_owned(), format!("{file}\n{beside}The é <s> 12\n")));
    }
    put_text(&seeds.join("tokenizer"), &tokenizers)?;

    let (mut models, mut configs) = (Vec::new(), Vec::new());
    let bases = json("hf/config_cases.json")?;
    for (name, files) in bases["base"]
        .as_object()
        .ok_or("there are no base models")?
    {
        let config = &files["config.json"]["$json"];
        configs.push((name.clone(), format!("{config}\n")));
        let generation =
            r#"{"do_sample": true, "temperature": 0.5, "top_k": 3, "eos_token_id": [2, 1]}"#;
        let tokenizer = r#"{"bos_token": "a", "eos_token": {"content": "b"}, "chat_template": "{{ bos_token }}"}"#;
        let generation = format!("=== generation_config.json ===\n{generation}\n");
        let tokenizer = format!("=== tokenizer_config.json ===\n{tokenizer}\n");
        models.push((name.clone(), format!("{config}\n{generation}{tokenizer}")));
    }
    let phi3 = text("phi3-tiny/config.json")?;
    configs.push(("phi3-tiny".to_owned(), phi3.clone()));
    models.push(("phi3-tiny".to_owned(), phi3));
    put_text(&seeds.join("side_files"), &models)?;
    put_text(&seeds.join("export"), &configs)?;

    let (first, second) = (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    );
    let map = json!({ "a": first, "model.layers.0.w": first, "b": second });
    let index = json!({ "metadata": { "total_size": 22 }, "weight_map": map });
    let explicit = "=== config.json ===\n{\"transformers_weights\": \"other.safetensors\"}\n";
    let indices = [
        ("two".to_owned(), format!("{index}\n")),
        ("explicit".to_owned(), format!("{index}\n{explicit}")),
    ];
    put_text(&seeds.join("shard_index"), &indices)
}

fn put_text(dir: &Path, files: &[(String, String)]) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(dir)?;
    for (name, text) in files {
        std::fs::write(dir.join(name), text)?;
    }
    Ok(())
}

fn put(dir: &Path, files: &[(&'static str, Vec<u8>)]) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(dir)?;
    for (name, bytes) in files {
        std::fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}
