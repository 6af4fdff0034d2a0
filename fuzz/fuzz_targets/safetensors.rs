//! Opens a checkpoint whose model.safetensors is arbitrary, plans a conversion, and does a small
//! one; what is converted verifies.
#![no_main]

use regex::Regex;
use smq_convert::{
    Checkpoint, ConvertOptions, Method, QuantizeOptions, ScaleChoice, ScaleRule, Target, convert,
    dry_run,
};
use smq_format::SmqFile;
use smq_fuzz::{fold, mutate_safetensors, scratch};

const MAX_BYTES: usize = 1 << 15;
/// The config.json beside the weights, by what they are: of an architecture that the converter does
/// not know, so that any set of tensors is one of its checkpoints; and with the int4 forms that can
/// be imported.
const CONFIGS: [&str; 3] = [
    r#"{"model_type": "fuzz"}"#,
    r#"{"model_type": "fuzz", "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 8}}"#,
    r#"{"model_type": "fuzz", "quantization_config": {"quant_method": "compressed-tensors",
        "format": "pack-quantized", "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int",
        "symmetric": true, "strategy": "group", "group_size": 8}}}}}"#,
];

smq_fuzz::target! {
    mutate: mutate_safetensors,
    run: run,
}

/// A pattern that takes every matrix, and none of them by accident: an embedding or a norm is
/// quantized only where its name is given in full. Names that are too many or too long for a
/// pattern are left to `.`.
fn every_matrix(checkpoint: &Checkpoint) -> Target {
    let matrices = checkpoint.tensors().iter().filter(|t| t.shape.len() == 2);
    let names: Vec<_> = matrices.map(|t| regex::escape(&t.name)).collect();
    let pattern = Regex::new(&format!("^(?:{})$", names.join("|")));
    Target::Pattern(pattern.unwrap_or_else(|_| Regex::new(".").expect("a pattern")))
}

fn run(data: &[u8]) {
    let choose = fold(data);
    let has = |name: &[u8]| data.windows(name.len()).any(|w| w == name);
    let kind = match () {
        () if has(b".qweight") => 1,
        () if has(b".weight_packed") => 2,
        () => 0,
    };
    let scratch = scratch();
    let dir = scratch.path().join("checkpoint");
    std::fs::create_dir(&dir).expect("the checkpoint's directory can be made");
    std::fs::write(dir.join("config.json"), CONFIGS[kind]).expect("config.json can be written");
    std::fs::write(dir.join("model.safetensors"), data).expect("the scratch file can be written");
    let mut checkpoint = match Checkpoint::open(&dir) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    if choose % 5 == 0 {
        checkpoint.requantize();
    }
    let int4 = Method::Int4(QuantizeOptions {
        group: if kind > 0 {
            8
        } else {
            [128, 32, 5, 1][choose / 4 % 4]
        },
        scales: [
            ScaleChoice::Mini {
                exponent_bits: 5,
                mantissa_bits: 5,
            },
            ScaleChoice::Mini {
                exponent_bits: 8,
                mantissa_bits: 0,
            },
            ScaleChoice::F16,
            ScaleChoice::F32,
        ][choose / 16 % 4],
        rule: [
            ScaleRule::Reference,
            ScaleRule::Nearest,
            ScaleRule::Search,
            ScaleRule::Signed,
        ][choose / 64 % 4],
    });
    let method = [int4, int4, Method::Nf4, Method::Fp8][choose / 256 % 4];
    let options = ConvertOptions {
        target: match choose % 4 {
            0 => Target::Mlp,
            1 => Target::All,
            2 => ".".parse().expect("a target parses"),
            _ => every_matrix(&checkpoint),
        },
        quantize: method,
        overwrite: true,
        jobs: 1,
    };
    let planned = match dry_run(&checkpoint, &options) {
        Ok(planned) => planned,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert_eq!(planned.tensors.len(), checkpoint.tensors().len());
    if data.len() > MAX_BYTES {
        return;
    }
    let target = scratch.path().join("converted.smq");
    match convert(&checkpoint, &target, &options, &|_| true) {
        Ok(summary) => {
            let file = SmqFile::open(&target).expect("what was converted opens");
            assert_eq!(summary.written.file_bytes, file.bytes().len() as u64);
            assert_eq!(file.verify(|_| ()), [], "what was converted verifies");
            assert_eq!(file.tensors().len(), checkpoint.tensors().len());
            // Of an int4 tensor's bias, or of the ten of an NF4 tensor's offset.
            let digits = 9 * file.tensors().len() as u64;
            assert!(
                planned.file_bytes.abs_diff(summary.written.file_bytes)
                    <= digits.next_multiple_of(256)
            );
            for (tensor, source) in file.tensors().zip(checkpoint.tensors()) {
                assert_eq!(
                    (tensor.name(), tensor.shape()),
                    (source.name.as_str(), source.shape.as_slice())
                );
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
