//! What is said about a path that is no model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

mod common;

use common::{INDEX, SINGLE, index, weights};
use smq_format::{Provenance, SmqWriter};
use smq_model::{Checkpoint, Source, open_smq};
use tempfile::TempDir;

#[test]
fn a_file_of_another_kind_is_named_with_what_to_give() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    weights(&dir.join(SINGLE), &[("a", 1.0)]);
    weights(&dir.join("named.smq"), &[("a", 1.0)]);
    index(&dir.join(INDEX), &[("a", SINGLE)]);
    for (name, bytes) in [
        ("config.json", &b"{\n  \"model_type\": \"llama\"}"[..]),
        ("tokenizer.json", b"{}"),
        ("q4.gguf", b"GGUF\x03\0\0\0"),
        ("pytorch_model.bin", b"PK\x03\x04and more"),
        ("old.pt", b"\x80\x02}q\0."),
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n"),
    ] {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    let path = dir.join("model.smq");
    let writer = SmqWriter::create(&path, false).unwrap();
    writer.finish(Provenance::default(), None).unwrap();

    let here = dir.display().to_string();
    let holds =
        format!("give the directory that holds it and the rest of the checkpoint, {here}, ");
    let checkpoint =
        "give the directory of the Hugging Face checkpoint with config.json and safetensors, ";
    for (name, says, remedy) in [
        (
            "config.json",
            "is the configuration of a checkpoint",
            holds.as_str(),
        ),
        (INDEX, "is the shard index of a checkpoint", &holds),
        ("tokenizer.json", "is a JSON file", &holds),
        (
            "pytorch_model.bin",
            "is a PyTorch file, which is not read",
            checkpoint,
        ),
        ("old.pt", "is a PyTorch file, which is not read", checkpoint),
        (
            "tf_model.h5",
            "is an HDF5 file, which is not read",
            checkpoint,
        ),
        (SINGLE, "is a bare safetensors file", &holds),
        ("named.smq", "is a bare safetensors file", &holds),
    ] {
        let path = dir.join(name);
        let start = format!("{}: {says}", path.display());
        let run = Source::open(&path).unwrap_err().to_string();
        assert!(
            run.starts_with(&start) && run.ends_with(&format!("{remedy}or a .smq file")),
            "{run}"
        );
        let inspected = open_smq(&path).unwrap_err().to_string();
        assert!(
            inspected.starts_with(&start) && inspected.ends_with("; give a .smq file"),
            "{inspected}"
        );
        let converted = Checkpoint::open(&path);
        match says {
            "is a bare safetensors file" => drop(converted.unwrap()),
            _ => {
                let message = converted.unwrap_err().to_string();
                let end = format!("{remedy}or one .safetensors file");
                assert!(
                    message.starts_with(&start) && message.ends_with(&end),
                    "{message}"
                );
            }
        }
    }
    let message = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(
        message.ends_with(
            "is a .smq file already; give the checkpoint directory that it was made from"
        ),
        "{message}"
    );
    let message = open_smq(dir).unwrap_err().to_string();
    assert_eq!(
        message,
        format!(
            "{here}: is a directory; give a .smq file, which smq-convert makes of a checkpoint directory"
        )
    );
    assert!(Source::open(&path).is_ok());
}

#[test]
fn a_name_much_like_a_models_gets_that_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("smollm2.smq"), "").unwrap();
    std::fs::write(at("smollm3.txt"), "").unwrap();
    std::fs::create_dir(at("checkpoint")).unwrap();
    std::fs::write(at("checkpoint/config.json"), "{}").unwrap();
    for (given, meant) in [
        ("smolm2.smq", "smollm2.smq"),
        ("smollm2", "smollm2.smq"),
        ("mollsm2.smq", "smollm2.smq"),
        ("chekpoint", "checkpoint"),
        ("chekcpoint", "checkpoint"),
    ] {
        let message = format!(
            "{}: no such file or directory; did you mean {}?",
            at(given).display(),
            at(meant).display()
        );
        assert_eq!(
            Source::open(&at(given)).unwrap_err().to_string(),
            message,
            "{given}"
        );
        assert_eq!(open_smq(&at(given)).unwrap_err().to_string(), message);
    }
    for given in ["smollm3.tx", "phi35.smq", "check"] {
        let message = Source::open(&at(given)).unwrap_err().to_string();
        assert!(!message.contains("did you mean"), "{message}");
    }
}

#[test]
fn what_is_no_repositorys_id_is_only_absent() {
    for name in [
        "./org/name",
        "/no/such",
        "org/name/more",
        "org/model.smq",
        "a b",
        "org/",
    ] {
        let message = Source::open(name.as_ref()).unwrap_err().to_string();
        let end = "No such file or directory (os error 2)";
        assert_eq!(message, format!("{name}: cannot open it: {end}"));
    }
}
