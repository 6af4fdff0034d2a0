//! Which weights of a directory count. What is taken is what transformers 5.24.0 takes
//! (`_get_resolved_checkpoint_files` and `_load_pretrained_model` of its modeling_utils.py): each
//! case was loaded there too, but for those that it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

mod common;

use std::path::Path;

use common::{FIRST, INDEX, SECOND, SINGLE, index, put, weights};
use serde_json::json;
use smq_model::Checkpoint;
use tempfile::TempDir;

/// Shards of an older save: `a` is 8, `b` is 9.
fn shards(dir: &Path) {
    weights(&dir.join(FIRST), &[("a", 8.0)]);
    weights(&dir.join(SECOND), &[("b", 9.0)]);
    index(&dir.join(INDEX), &[("a", FIRST), ("b", SECOND)]);
}

/// Each tensor's name and value, and the notes in one text without the directory.
fn read(dir: &Path) -> (Vec<(String, f32)>, String) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let value = |t| f32::from_le_bytes(checkpoint.bytes(t).try_into().unwrap());
    let tensors = checkpoint.tensors().iter();
    let values = tensors.map(|t| (t.name.clone(), value(t))).collect();
    (values, without(dir, &checkpoint.notes().join("\n")))
}

fn refused(dir: &Path) -> String {
    without(dir, &Checkpoint::open(dir).unwrap_err().to_string())
}

fn without(dir: &Path, text: &str) -> String {
    let dir = dir.display().to_string();
    text.replace(&format!("{dir}/"), "").replace(&dir, "DIR")
}

fn values(of: &[(&str, f32)]) -> Vec<(String, f32)> {
    of.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect()
}

#[test]
fn a_single_file_comes_before_an_index() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    shards(dir);
    weights(&dir.join(SINGLE), &[("a", 1.0), ("b", 2.0)]);
    let (found, notes) = read(dir);
    assert_eq!(found, values(&[("a", 1.0), ("b", 2.0)]));
    assert_eq!(
        notes,
        format!(
            "DIR: weights are taken from {SINGLE}, as transformers does; left out: {FIRST}, {SECOND} and {INDEX}; the index \
             lists 2 tensors in 2 other files"
        )
    );

    std::fs::remove_file(dir.join(FIRST)).unwrap();
    std::fs::remove_file(dir.join(SECOND)).unwrap();
    let (found, notes) = read(dir);
    assert_eq!(found, values(&[("a", 1.0), ("b", 2.0)]));
    assert!(
        notes.ends_with("of the 2 files that the index lists, 2 are not there"),
        "{notes}"
    );

    // An index that is broken is passed over there too; one of the file itself contradicts nothing.
    std::fs::write(dir.join(INDEX), "{").unwrap();
    assert!(read(dir).1.ends_with("the index cannot be read"));
    index(&dir.join(INDEX), &[("a", SINGLE), ("b", SINGLE)]);
    assert_eq!(
        read(dir),
        (values(&[("a", 1.0), ("b", 2.0)]), String::new())
    );
    std::fs::remove_file(dir.join(INDEX)).unwrap();
    assert_eq!(read(dir).1, "");
}

#[test]
fn other_weights_beside_are_left_and_named() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    shards(dir);
    assert_eq!(
        read(dir),
        (values(&[("a", 8.0), ("b", 9.0)]), String::new())
    );
    weights(&dir.join("consolidated.safetensors"), &[("c", 3.0)]);
    let (found, notes) = read(dir);
    assert_eq!(found, values(&[("a", 8.0), ("b", 9.0)]));
    let expected = format!(
        "DIR: weights are taken from the files that {INDEX} lists, as transformers does; left out: consolidated.safetensors"
    );
    assert_eq!(notes, expected);

    weights(&dir.join(SINGLE), &[("a", 1.0)]);
    for i in 0..9 {
        weights(&dir.join(format!("model.v{i}.safetensors")), &[("a", 2.0)]);
    }
    std::fs::write(dir.join("pytorch_model.bin"), b"old").unwrap();
    let (found, notes) = read(dir);
    assert_eq!(found, values(&[("a", 1.0)]));
    assert!(
        notes.contains("left out: consolidated.safetensors, ") && notes.contains("and 9 more"),
        "{notes}"
    );
}

#[test]
fn a_lone_file_of_another_name_is_taken_and_said() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    weights(&dir.join("model.fp16.safetensors"), &[("a", 1.0)]);
    let (found, notes) = read(dir);
    assert_eq!(found, values(&[("a", 1.0)]));
    assert!(
        notes.starts_with("DIR: weights are taken from model.fp16.safetensors, the only safetensors file in it; transformers"),
        "{notes}"
    );
    // An adapter beside it is no second candidate.
    weights(&dir.join("adapter_model.safetensors"), &[("a", 2.0)]);
    assert_eq!(read(dir).0, values(&[("a", 1.0)]));
    // What transformers would load in its place is not read here.
    std::fs::write(dir.join("pytorch_model.bin"), b"pickled").unwrap();
    let message = refused(dir);
    assert!(
        message.starts_with("DIR: transformers would load pytorch_model.bin, which is not read")
            && message.contains("save_pretrained(")
            && message.ends_with(
                "if model.fp16.safetensors holds the same weights, rename it to model.safetensors"
            ),
        "{message}"
    );
}

#[test]
fn what_cannot_be_decided_is_refused() {
    let refusal = |files: &[&str]| {
        let dir = TempDir::new().unwrap();
        for name in files {
            match name.ends_with(".safetensors") {
                true => weights(&dir.path().join(name), &[("a", 1.0)]),
                false => std::fs::write(dir.path().join(name), b"x").unwrap(),
            }
        }
        refused(dir.path())
    };
    let message = refusal(&["a.safetensors", "b.safetensors"]);
    assert!(
        message.starts_with("DIR: holds a.safetensors and b.safetensors and neither"),
        "{message}"
    );
    let message = refusal(&[FIRST, SECOND]);
    assert!(message.contains(&format!("but not {INDEX}")), "{message}");
    let message = refusal(&["consolidated.safetensors", FIRST, SECOND]);
    assert!(
        message.contains("consolidated.safetensors") && message.contains(FIRST),
        "{message}"
    );
    let message = refusal(&[
        "pytorch_model.bin.index.json",
        "pytorch_model-00001-of-00001.bin",
    ]);
    assert!(
        message.starts_with("DIR: transformers would load pytorch_model.bin.index.json"),
        "{message}"
    );
    let message = refusal(&[SINGLE, "shard-00000-model-00001-of-00001.safetensors"]);
    assert!(message.contains("distributed checkpoint"), "{message}");
    let nothing = "DIR: no model.safetensors, no model.safetensors.index.json and no other .safetensors file in it";
    assert_eq!(refusal(&["README.md"]), nothing);
    for (name, expected) in [
        ("out.smq", "; it holds out.smq: give that file"),
        ("q4.gguf", "; it holds q4.gguf, which is not read"),
        (
            "consolidated.00.pth",
            "; it holds consolidated.00.pth, which is not read",
        ),
    ] {
        let message = refusal(&[name]);
        assert!(
            message.starts_with(&format!("{nothing}{expected}")),
            "{message}"
        );
    }
}

#[test]
fn an_adapter_is_not_a_model() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    weights(&dir.join("adapter_model.safetensors"), &[("a", 1.0)]);
    let config = json!({"base_model_name_or_path": "org/base", "peft_type": "LORA"});
    put(&dir.join("adapter_config.json"), &config);
    let message = refused(dir);
    assert!(
        message.contains("an adapter (LoRA; adapter_config.json says of what) and no model; merge it into its base model org/base"),
        "{message}"
    );
    // Whatever its file is called.
    std::fs::remove_file(dir.join("adapter_model.safetensors")).unwrap();
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    weights(&dir.join(SINGLE), &[(name, 1.0)]);
    assert!(refused(dir).contains("merge it into its base model org/base"));
}

/// transformers takes from an index the names of files: every tensor in them is loaded, a later
/// file's over an earlier's.
#[test]
fn an_index_gives_files_and_not_places() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    shards(dir);
    index(&dir.join(INDEX), &[("a", SECOND), ("b", FIRST)]);
    let (found, notes) = read(dir);
    assert_eq!(found, values(&[("a", 8.0), ("b", 9.0)]));
    assert_eq!(
        notes,
        format!(
            "{INDEX}: it places tensors in other files than hold them, from which they are taken: \"a\" and \"b\""
        )
    );

    weights(&dir.join(SECOND), &[("b", 9.0), ("c", 7.0)]);
    index(&dir.join(INDEX), &[("a", FIRST), ("b", SECOND)]);
    let (found, notes) = read(dir);
    assert_eq!(found, values(&[("a", 8.0), ("b", 9.0), ("c", 7.0)]));
    assert!(
        notes.starts_with(&format!(
            "{INDEX}: its files hold tensors that it does not list"
        )),
        "{notes}"
    );

    index(
        &dir.join(INDEX),
        &[("a", FIRST), ("b", SECOND), ("c", SECOND), ("d", FIRST)],
    );
    let (found, notes) = read(dir);
    assert_eq!(found.len(), 3);
    assert_eq!(
        notes,
        format!("{INDEX}: it lists tensors that none of its files holds: \"d\"")
    );
    let checkpoint = Checkpoint::open(dir).unwrap();
    assert_eq!(checkpoint.absent().collect::<Vec<_>>(), [("d", FIRST)]);
    let why = without(dir, &checkpoint.why_absent("d"));
    assert_eq!(
        why,
        format!("is not in {FIRST}, where {INDEX} lists it; download both again")
    );

    // Whichever of the two the index names.
    for named in [FIRST, SECOND] {
        weights(&dir.join(FIRST), &[("a", 8.0), ("b", 1.0)]);
        index(
            &dir.join(INDEX),
            &[("a", FIRST), ("b", named), ("c", SECOND)],
        );
        let (found, notes) = read(dir);
        assert_eq!(found, values(&[("a", 8.0), ("b", 9.0), ("c", 7.0)]));
        let expected = format!(
            "DIR: tensor \"b\" is in {FIRST} and in {SECOND}; the last file's counts, as in transformers"
        );
        assert!(notes.starts_with(&expected), "{notes}");
    }
}

#[test]
fn an_index_that_cannot_be_followed_is_blamed() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    shards(dir);
    for (text, expected) in [
        ("{\"weight_map\": {", "is not valid JSON: EOF while parsing"),
        ("[]", "holds a JSON array, expected a JSON object"),
        (
            "{\"weights\": {}}",
            "is not a shard index, it has no object weight_map",
        ),
        ("{\"weight_map\": {}}", "lists no tensor"),
        (
            "{\"weight_map\": {\"a\": 1}}",
            "places tensor \"a\" in 1, expected a file's name",
        ),
        (
            "{\"weight_map\": {\"a\": \"../a.safetensors\"}}",
            "places tensor \"a\" in \"../a.safetensors\", expected the plain name",
        ),
        (
            "{\"weight_map\": {\"a\": \"parts/a.safetensors\"}}",
            "expected the plain name",
        ),
        (
            "{\"weight_map\": {\"a\": \"a.bin\"}}",
            "expected the plain name of a .safetensors file",
        ),
    ] {
        std::fs::write(dir.join(INDEX), text).unwrap();
        let message = refused(dir);
        assert!(
            message.starts_with(INDEX) && message.contains(expected),
            "{message}"
        );
    }
    // Without metadata, which transformers 5.24 cannot do without, the meaning is plain.
    put(
        &dir.join(INDEX),
        &json!({"weight_map": {"a": FIRST, "b": SECOND}}),
    );
    assert_eq!(read(dir).0, values(&[("a", 8.0), ("b", 9.0)]));

    shards(dir);
    std::fs::remove_file(dir.join(SECOND)).unwrap();
    let message = refused(dir);
    assert!(
        message.starts_with(&format!(
            "DIR: shard {SECOND} is missing, though {INDEX} lists it"
        )),
        "{message}"
    );
}

#[test]
fn config_json_may_name_the_weights() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    weights(&dir.join(SINGLE), &[("a", 1.0), ("b", 2.0)]);
    weights(&dir.join("chosen.safetensors"), &[("a", 5.0)]);
    put(
        &dir.join("config.json"),
        &json!({"transformers_weights": "chosen.safetensors"}),
    );
    let (found, notes) = read(dir);
    assert_eq!(found, values(&[("a", 5.0)]));
    assert!(
        notes.contains("taken from chosen.safetensors") && notes.ends_with(SINGLE),
        "{notes}"
    );

    shards(dir);
    std::fs::rename(dir.join(INDEX), dir.join("other.safetensors.index.json")).unwrap();
    put(
        &dir.join("config.json"),
        &json!({"transformers_weights": "other.safetensors.index.json"}),
    );
    assert_eq!(read(dir).0, values(&[("a", 8.0), ("b", 9.0)]));
    put(
        &dir.join("config.json"),
        &json!({"transformers_weights": null}),
    );
    assert_eq!(read(dir).0, values(&[("a", 1.0), ("b", 2.0)]));
    for name in ["../x.safetensors", "x.bin", "x.safetensors", ""] {
        put(
            &dir.join("config.json"),
            &json!({"transformers_weights": name}),
        );
        let message = refused(dir);
        assert!(
            message.starts_with("config.json: transformers_weights is "),
            "{message}"
        );
    }
}

#[test]
fn files_that_are_not_safetensors_are_named() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 252656\n";
    std::fs::write(dir.join(SINGLE), pointer).unwrap();
    assert!(
        refused(dir).starts_with("model.safetensors: is a Git LFS pointer, not the file itself")
    );
    for text in [&b""[..], b"<!DOCTYPE html><html></html>"] {
        std::fs::write(dir.join(SINGLE), text).unwrap();
        let message = refused(dir);
        assert!(
            message.starts_with("model.safetensors: not a complete safetensors file"),
            "{message}"
        );
    }
    // transformers passes over what is no file; named where nothing else is there.
    std::fs::remove_file(dir.join(SINGLE)).unwrap();
    std::fs::create_dir(dir.join(SINGLE)).unwrap();
    assert!(
        refused(dir).contains("model.safetensors is a directory"),
        "{}",
        refused(dir)
    );
    shards(dir);
    assert_eq!(read(dir).0, values(&[("a", 8.0), ("b", 9.0)]));
    #[cfg(unix)]
    {
        std::fs::remove_dir(dir.join(SINGLE)).unwrap();
        std::os::unix::fs::symlink(dir.join("gone"), dir.join(SINGLE)).unwrap();
        let (found, notes) = read(dir);
        assert_eq!(found, values(&[("a", 8.0), ("b", 9.0)]));
        assert!(notes.contains(SINGLE), "{notes}");
        std::fs::remove_file(dir.join(INDEX)).unwrap();
        assert!(refused(dir).contains("cannot follow this symbolic link"));
    }
}
