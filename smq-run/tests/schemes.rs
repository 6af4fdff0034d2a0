//! lut4, NF4 and FP8 files of the fixture on the CPU reference, against its checkpoint with the
//! dequantized weights.
//!
//! # Tolerance
//! The same weights in another form differ by what f32's rounding explains, 1e-3 (derived in
//! golden.rs). FP8's activations are rounded to 3 mantissa bits, `u = 2^-4` relative, at each of
//! the 16 products' inputs, the head's apart, which is not quantized; independent and each
//! perturbing what follows by its full relative error, logits up to `s` are off by about
//! `sqrt(16) u s = s / 4`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::{Path, PathBuf};

use smq_convert::{
    Checkpoint, ConvertOptions, ExportFormat, ExportOptions, LevelChoice, Method, QuantizeOptions,
    ScaleChoice, ScaleRule, Target, convert, export,
};
use smq_engine::model::Precision;
use smq_engine::{CpuEngine, Engine};
use smq_format::{Dtype, SmqFile};
use smq_model::Source;

const F32_TOLERANCE: f32 = 1e-3;
const PROMPT: [u32; 12] = [1, 17, 250, 33, 90, 5, 400, 123, 77, 8, 311, 64];

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

/// The fixture converted, every projection quantized, and its dequantized weights as a checkpoint.
fn files(method: Method, dtype: Dtype, dir: &Path) -> (PathBuf, PathBuf) {
    let (smq, plain) = (dir.join("model.smq"), dir.join("plain"));
    let options = ConvertOptions {
        target: Target::All,
        quantize: method,
        overwrite: true,
        jobs: 0,
    };
    let checkpoint = Checkpoint::open(&fixture()).unwrap();
    convert(&checkpoint, &smq, &options, &|_| true).unwrap();
    let file = SmqFile::open(&smq).unwrap();
    assert_eq!(file.verify(|_| ()), []);
    let options = ExportOptions {
        format: ExportFormat::Safetensors(dtype),
        shard_bytes: 1 << 30,
        force: false,
    };
    export(&file, &plain, &options, &|_, _| true).unwrap();
    (smq, plain)
}

/// Logits after the prompt and after each of 8 further tokens.
fn logits(path: &Path, precision: Precision) -> Vec<Vec<f32>> {
    let source = Source::open(path).unwrap();
    let mut engine = CpuEngine::load_with(&source, precision).unwrap();
    engine.start(PROMPT.len() + 8).unwrap();
    let mut steps = vec![engine.extend(&PROMPT).unwrap().logits.to_vec()];
    for id in 100..108 {
        steps.push(engine.extend(&[id]).unwrap().logits.to_vec());
    }
    steps
}

fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.map(f32::abs).fold(0.0, f32::max)
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let (a, b) = (a.iter().flatten(), b.iter().flatten());
    largest(a.zip(b).map(|(a, b)| a - b))
}

#[test]
fn nf4_runs_as_its_dequantized_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (smq, plain) = files(Method::Nf4, Dtype::F32, dir.path());
    let difference = largest_difference(
        &logits(&smq, Precision::F32),
        &logits(&plain, Precision::F32),
    );
    assert!(difference <= F32_TOLERANCE, "{difference}");
}

/// Rows of 256 and 768 columns in groups of 128 and, for the path without fused loops, of 31.
#[test]
fn lut4_runs_as_its_dequantized_weights() {
    for (group, scales, levels) in [
        (128, ScaleChoice::e5(3), LevelChoice::Learned),
        (31, ScaleChoice::F16, LevelChoice::Nf4),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let options = QuantizeOptions {
            group,
            scales,
            rule: ScaleRule::Nearest,
        };
        let method = Method::Lut4 { options, levels };
        let (smq, plain) = files(method, Dtype::F32, dir.path());
        let difference = largest_difference(
            &logits(&smq, Precision::F32),
            &logits(&plain, Precision::F32),
        );
        assert!(difference <= F32_TOLERANCE, "{difference}");
    }
}

/// Rounded to bf16, the weights are those of the bf16 checkpoint, and the sums have one order:
/// equal to the bit.
#[test]
fn nf4_in_bf16_runs_as_its_weights_in_bf16() {
    let dir = tempfile::tempdir().unwrap();
    let (smq, plain) = files(Method::Nf4, Dtype::Bf16, dir.path());
    let rounded = logits(&smq, Precision::Bf16);
    assert_eq!(rounded, logits(&plain, Precision::Bf16));
    assert!(rounded != logits(&smq, Precision::F32));
}

#[test]
fn fp8_rounds_its_activations() {
    let dir = tempfile::tempdir().unwrap();
    let (smq, plain) = files(Method::Fp8, Dtype::F32, dir.path());
    let plain = logits(&plain, Precision::F32);
    let scale = largest(plain.iter().flatten().copied());
    for precision in [Precision::F32, Precision::Bf16] {
        let difference = largest_difference(&logits(&smq, precision), &plain);
        // More than f32's rounding, since activations are rounded; less than their rounding can do.
        assert!(
            10.0 * F32_TOLERANCE < difference && difference < scale / 4.0,
            "{precision:?}: {difference} of {scale}"
        );
    }
}

#[test]
fn fp8_with_a_nan_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (smq, _) = files(Method::Fp8, Dtype::F32, dir.path());
    let mut bytes = std::fs::read(&smq).unwrap();
    let file = SmqFile::open(&smq).unwrap();
    let name = "model.layers.1.mlp.down_proj.weight";
    let blob = &file.tensor(name).unwrap().entry().blobs[0];
    bytes[blob.offset as usize + 1000] = 0xff;
    std::fs::write(&smq, bytes).unwrap();
    let source = Source::open(&smq).unwrap();
    let error = CpuEngine::load(&source).err().unwrap().to_string();
    assert!(error.contains(name) && error.contains("NaN"), "{error}");
}
