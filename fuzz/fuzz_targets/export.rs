//! Exports a file that is arbitrary, or a small one whose config.json is; what is exported holds
//! the tensors of the file.
#![no_main]

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use smq_convert::{ExportFormat, ExportOptions, export};
use smq_format::header::MAGIC;
use smq_format::scale::{MiniFloat, ScaleFormat};
use smq_format::{Dtype, Provenance, Scheme, SmqFile, SmqWriter, TensorData, bits};
use smq_fuzz::{Hashes, Mutate, Random, change_json, fold, mutate_smq, scratch};

/// Largest number of elements of all tensors that is exported.
const MAX_ELEMS: usize = 1 << 16;
const WORDS: &[&str] = &[
    "model_type",
    "llama",
    "architectures",
    "torch_dtype",
    "dtype",
    "bfloat16",
    "float16",
    "float32",
    "auto",
    "quantization_config",
    "compression_config",
    "quant_method",
    "compressed-tensors",
    "auto_map",
    "AutoModelForCausalLM",
    "text_config",
    "hidden_size",
    "num_hidden_layers",
    "tie_word_embeddings",
    "transformers_version",
    "ignore",
    "a.b--c",
    "é",
];

smq_fuzz::target! {
    mutate: change,
    run: run,
}

fn change(input: &[u8], limit: usize, random: &mut Random, mutate: Mutate) -> Vec<u8> {
    if input.starts_with(&MAGIC) {
        return mutate_smq(input, limit, random, Hashes::Mostly, mutate);
    }
    let mut json = input.to_vec();
    change_json(&mut json, random, WORDS, mutate);
    json
}

fn run(data: &[u8]) {
    let scratch = scratch();
    let path = scratch.path().join("model.smq");
    match data.starts_with(&MAGIC) {
        true => std::fs::write(&path, data).expect("the scratch file can be written"),
        false => write_with(&path, data, fold(data) / 72 % 2 == 0),
    }
    let Ok(file) = SmqFile::open(&path) else {
        return;
    };
    let elems = |(rows, columns): (usize, usize)| rows.saturating_mul(columns);
    let sizes = file.tensors().map(|tensor| elems(tensor.matrix_shape()));
    if sizes.fold(0, usize::saturating_add) > MAX_ELEMS {
        return;
    }
    let choose = fold(data);
    let allow_inexact = choose / 2 % 2 == 0;
    let format = [
        ExportFormat::Safetensors(Dtype::F32),
        ExportFormat::Safetensors(Dtype::Bf16),
        ExportFormat::Safetensors(Dtype::F16),
        ExportFormat::CompressedTensors { allow_inexact },
        ExportFormat::Gptq { allow_inexact },
        ExportFormat::Mlx { allow_inexact },
    ][choose / 4 % 6];
    let options = ExportOptions {
        format,
        shard_bytes: [1, 64, 1 << 30][choose / 24 % 3],
        force: false,
    };
    let out_dir = scratch.path().join("out");
    match export(&file, &out_dir, &options, &|_, _| true) {
        Ok(summary) => check(&file, format, &summary.shards),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(!out_dir.exists(), "an export that fails leaves nothing");
        }
    }
}

/// Whether dequantized shards hold every tensor, and in f32 its exact values, and whether those of
/// FP8 for compressed-tensors hold its codes and scales.
fn check(file: &SmqFile, format: ExportFormat, shards: &[std::path::PathBuf]) {
    let mut found = BTreeMap::new();
    for shard in shards {
        let bytes = std::fs::read(shard).expect("a shard that was written can be read");
        let tensors = SafeTensors::deserialize(&bytes).expect("a shard is safetensors");
        for (name, view) in tensors.tensors() {
            let twice = found.insert(name, (view.shape().to_vec(), view.data().to_vec()));
            assert!(twice.is_none(), "a tensor is in one shard");
        }
    }
    let dtype = match format {
        ExportFormat::Safetensors(dtype) => dtype,
        ExportFormat::CompressedTensors { .. } => {
            for tensor in file.tensors() {
                if let TensorData::Fp8 { codes, scales } = tensor.data() {
                    let scale = format!("{}_scale", tensor.name());
                    assert_eq!(found[tensor.name()].1, codes);
                    assert_eq!(found[&scale].1, scales.bytes);
                }
            }
            return;
        }
        ExportFormat::Gptq { .. } | ExportFormat::Mlx { .. } => return,
    };
    assert_eq!(found.len(), file.tensors().len());
    for tensor in file.tensors() {
        let (shape, bytes) = &found[tensor.name()];
        assert_eq!(
            shape.as_slice(),
            tensor.shape(),
            "tensor {:?}",
            tensor.name()
        );
        if matches!(tensor.scheme(), Scheme::Raw(_)) || dtype != Dtype::F32 {
            continue;
        }
        let values = tensor.dequantize().expect("what was exported dequantizes");
        let exact: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(bytes, &exact, "tensor {:?}", tensor.name());
    }
}

/// Writes a file of an int4 or FP8 tensor and a raw one with this config.json.
fn write_with(path: &Path, config: &[u8], fp8: bool) {
    let mini = MiniFloat::for_largest(5, 5, 0.75).expect("the widths are in range");
    let scales = ScaleFormat::Mini(mini);
    let mut writer = SmqWriter::create(path, true).expect("the scratch file can be written");
    writer
        .add_file("config.json", config)
        .expect("a known name is accepted");
    let codes = [0.75, -0.5, 0.0, 0.375].map(|s| scales.encode(s).code);
    let stream = bits::pack(codes, scales.width_bits());
    let rows = [0.75f32, -0.5].map(f32::to_le_bytes);
    let (scheme, blobs): (_, [&[u8]; 2]) = match fp8 {
        true => {
            let codes = &[0x7e, 0xfe, 0, 0x80, 1, 0x38, 0xb8, 0x81, 0x40, 0x77];
            (Scheme::Fp8, [codes, rows.as_flattened()])
        }
        false => {
            let nibbles = &[0xe1, 0x87, 0x03, 0x5f, 0x21, 0x0c];
            (Scheme::Int4 { group: 4, scales }, [nibbles, &stream])
        }
    };
    let name = "model.layers.0.mlp.up_proj.weight";
    let added = writer.add_tensor(name, &[2, 5], Dtype::Bf16, scheme, &blobs);
    added.expect("a tensor of its shape is accepted");
    let (raw, ones) = (Scheme::Raw(Dtype::Bf16), [0x80, 0x3f].repeat(5));
    let added = writer.add_tensor("model.norm.weight", &[5], Dtype::Bf16, raw, &[&ones]);
    added.expect("a tensor of its shape is accepted");
    writer
        .finish(Provenance::default(), None)
        .expect("the file can be finished");
}
