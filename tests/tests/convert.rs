//! Whole conversions of the bundled checkpoint, and what must not get through.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::Path;

use smq_convert::{
    Checkpoint, ConvertOptions, Method, QuantizeOptions, ScaleChoice, ScaleRule, Target, convert,
    dry_run,
};
use smq_format::{Scheme, SmqFile, TensorData};
use smq_tests::phi3_tiny;
use tempfile::TempDir;

fn options(mantissa_bits: u32) -> ConvertOptions {
    ConvertOptions {
        target: Target::Mlp,
        quantize: Method::Int4(QuantizeOptions {
            group: 128,
            scales: ScaleChoice::e5(mantissa_bits),
            rule: ScaleRule::Reference,
        }),
        overwrite: false,
        jobs: 0,
    }
}

fn run(checkpoint: &Path, out: &Path, options: &ConvertOptions) -> Result<(), String> {
    let checkpoint = Checkpoint::open(checkpoint).map_err(|e| e.to_string())?;
    convert(&checkpoint, out, options, &|_| true).map_err(|e| e.to_string())?;
    Ok(())
}

/// A copy of the fixture that a test may damage.
fn copy(dir: &TempDir) -> std::path::PathBuf {
    let to = dir.path().join("checkpoint");
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(phi3_tiny()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    to
}

/// The conversion fails with a message that has every part, and leaves the directory empty.
fn refused(checkpoint: &Path, parts: &[&str]) {
    let out = TempDir::new().unwrap();
    let error = run(checkpoint, &out.path().join("out.smq"), &options(5)).unwrap_err();
    for part in parts {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
    let left = std::fs::read_dir(out.path()).unwrap().count();
    assert_eq!(left, 0, "files left behind after: {error}");
}

/// Edits a shard's bytes in place.
fn edit(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    edit(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn every_tensor_arrives_and_verifies() {
    let dir = TempDir::new().unwrap();
    for mantissa_bits in [0, 3, 5] {
        let out = dir.path().join(format!("e5m{mantissa_bits}.smq"));
        run(&phi3_tiny(), &out, &options(mantissa_bits)).unwrap();
        let file = SmqFile::open(&out).unwrap();
        assert_eq!(file.verify(|_| ()), []);
        let checkpoint = Checkpoint::open(&phi3_tiny()).unwrap();
        assert_eq!(file.tensors().len(), checkpoint.tensors().len());
        for (view, source) in file.tensors().zip(checkpoint.tensors()) {
            assert_eq!((view.name(), view.shape()), (&*source.name, &*source.shape));
            match view.data() {
                TensorData::Raw { bytes, .. } => assert_eq!(bytes, checkpoint.bytes(source)),
                _ => assert!(view.name().contains(".mlp.")),
            }
        }
        let quantized = |t: &smq_format::TensorView| matches!(t.scheme(), Scheme::Int4 { .. });
        assert_eq!(file.tensors().filter(quantized).count(), 8);
        for name in [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
        ] {
            let original = std::fs::read(phi3_tiny().join(name)).unwrap();
            assert_eq!(file.embedded(name), Some(&*original));
        }
        let again = smq_convert::inspect::recheck(&file, &phi3_tiny(), &|_| ()).unwrap();
        assert_eq!((again.tensors, again.differences), (8, vec![]));
    }
}

#[test]
fn the_same_bytes_at_any_number_of_threads_and_of_the_planned_length() {
    let dir = TempDir::new().unwrap();
    let convert_with = |jobs: usize| {
        let out = dir.path().join(format!("{jobs}.smq"));
        let options = ConvertOptions { jobs, ..options(5) };
        run(&phi3_tiny(), &out, &options).unwrap();
        std::fs::read(&out).unwrap()
    };
    let one = convert_with(1);
    assert!(one == convert_with(2) && one == convert_with(7));
    let checkpoint = Checkpoint::open(&phi3_tiny()).unwrap();
    let planned = dry_run(&checkpoint, &options(5)).unwrap().file_bytes;
    assert_eq!(planned, one.len() as u64);
}

#[test]
fn every_scale_format_has_its_planned_length() {
    let dir = TempDir::new().unwrap();
    let mini = |exponent_bits, mantissa_bits| ScaleChoice::Mini {
        exponent_bits,
        mantissa_bits,
    };
    let formats = [
        ScaleChoice::F32,
        ScaleChoice::F16,
        mini(5, 0),
        mini(5, 10),
        mini(4, 3),
    ];
    for scales in formats {
        for group in [32, 100, 128, 1 << 20] {
            let mut options = options(5);
            options.quantize = Method::Int4(QuantizeOptions {
                group,
                scales,
                rule: ScaleRule::Reference,
            });
            options.target = Target::All;
            options.overwrite = true;
            let out = dir.path().join("x.smq");
            run(&phi3_tiny(), &out, &options).unwrap();
            let checkpoint = Checkpoint::open(&phi3_tiny()).unwrap();
            let planned = dry_run(&checkpoint, &options).unwrap().file_bytes;
            let actual = std::fs::metadata(&out).unwrap().len();
            assert_eq!(planned, actual, "{scales:?} group {group}");
            assert_eq!(SmqFile::open(&out).unwrap().verify(|_| ()), []);
        }
    }
}

#[test]
fn an_existing_file_is_kept_without_force() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.smq");
    std::fs::write(&out, "precious").unwrap();
    let error = run(&phi3_tiny(), &out, &options(5)).unwrap_err();
    assert!(error.contains("exists already") && error.contains("--force"));
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    let overwrite = ConvertOptions {
        overwrite: true,
        ..options(5)
    };
    run(&phi3_tiny(), &out, &overwrite).unwrap();
    SmqFile::open(&out).unwrap();
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let checkpoint = Checkpoint::open(&phi3_tiny()).unwrap();
    let out = dir.path().join("out.smq");
    let result = convert(&checkpoint, &out, &options(5), &|done| done < 1 << 20);
    assert!(result.unwrap_err().to_string().contains("interrupted"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_missing_shard() {
    let dir = TempDir::new().unwrap();
    let checkpoint = copy(&dir);
    std::fs::remove_file(checkpoint.join("model-00002-of-00003.safetensors")).unwrap();
    refused(
        &checkpoint,
        &["model-00002-of-00003.safetensors is missing", "download"],
    );
}

#[test]
fn a_truncated_shard() {
    let dir = TempDir::new().unwrap();
    let checkpoint = copy(&dir);
    let shard = checkpoint.join("model-00003-of-00003.safetensors");
    for keep in [0, 7, 100, 3_000_000] {
        edit(&shard, |bytes| bytes.truncate(keep));
        refused(
            &checkpoint,
            &[
                "model-00003-of-00003.safetensors",
                "not a complete safetensors file",
            ],
        );
        std::fs::copy(phi3_tiny().join("model-00003-of-00003.safetensors"), &shard).unwrap();
    }
}

#[test]
fn nan_and_infinity_in_quantized_and_raw_tensors() {
    let dir = TempDir::new().unwrap();
    let checkpoint = copy(&dir);
    let targets = [
        ("model.layers.1.mlp.down_proj.weight", 0x7fc0u16, "NaN"),
        ("model.embed_tokens.weight", 0xff80, "-inf"),
    ];
    for (name, bits, value) in targets {
        let opened = Checkpoint::open(&checkpoint).unwrap();
        let tensor = opened.tensor(name).unwrap().clone();
        let shard = opened.file_of(&tensor).to_path_buf();
        let columns = tensor.shape[1];
        drop(opened);
        let at = tensor.range.start + 2 * (3 * columns + 17);
        let mut before = [0; 2];
        edit(&shard, |bytes| {
            before.copy_from_slice(&bytes[at..at + 2]);
            bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        });
        refused(&checkpoint, &[name, value, "row 3, column 17"]);
        edit(&shard, |bytes| bytes[at..at + 2].copy_from_slice(&before));
    }
}

#[test]
fn a_config_of_another_model() {
    let dir = TempDir::new().unwrap();
    let checkpoint = copy(&dir);
    let config = checkpoint.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let other = text.replace("\"intermediate_size\": 768", "\"intermediate_size\": 512");
    std::fs::write(&config, other).unwrap();
    refused(&checkpoint, &["config.json", "[1024, 256]", "[1536, 256]"]);
    let other = text.replace("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5");
    std::fs::write(&config, other).unwrap();
    refused(&checkpoint, &["config.json", "model.layers.4"]);
}

#[test]
fn an_unknown_architecture_still_converts() {
    let dir = TempDir::new().unwrap();
    let checkpoint = copy(&dir);
    let config = checkpoint.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("Phi3ForCausalLM", "NewForCausalLM")).unwrap();
    run(&checkpoint, &dir.path().join("out.smq"), &options(5)).unwrap();
}

#[test]
fn unwritable_targets_and_empty_selections() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("no/such/dir/out.smq");
    let error = run(&phi3_tiny(), &missing, &options(5)).unwrap_err();
    assert!(error.contains("out.smq: cannot create"), "{error}");
    let error = run(&phi3_tiny(), dir.path(), &options(5)).unwrap_err();
    assert!(error.contains("is a directory"), "{error}");
    let nothing = ConvertOptions {
        target: "nothing_like_it".parse().unwrap(),
        ..options(5)
    };
    let error = run(&phi3_tiny(), &dir.path().join("o.smq"), &nothing).unwrap_err();
    assert!(error.contains("nothing_like_it"), "{error}");
    let error = run(dir.path(), &dir.path().join("o.smq"), &options(5)).unwrap_err();
    assert!(error.contains("no model.safetensors"), "{error}");
}
