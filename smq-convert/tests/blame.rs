//! What the programs say about input that is no checkpoint, and where the Hugging Face cache is
//! looked into.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

mod small;

use std::path::{Path, PathBuf};
use std::process::Command;

use small::{llama, put};
use tempfile::TempDir;

/// A program's exit status, and what it said on both streams.
fn run(program: &str, dir: &Path, args: &[&str], cache: (&str, &Path)) -> (bool, String) {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .env_clear()
        .env(cache.0, cache.1)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

fn convert(dir: &Path, args: &[&str]) -> (bool, String) {
    let program = env!("CARGO_BIN_EXE_smq-convert");
    run(program, dir, args, ("HF_HUB_CACHE", &dir.join("no-cache")))
}

/// Puts a checkpoint into the cache as snapshot `commit` of `org/name`.
fn snapshot(cache: &Path, commit: &str) -> PathBuf {
    llama(&cache.join("models--org--name/snapshots"), commit)
}

const ARGS: [&str; 6] = [
    "--group-size",
    "32",
    "org/name",
    "out.smq",
    "--force",
    "--threads=1",
];

#[test]
fn a_repositorys_id_is_looked_up_in_the_cache() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let (ok, text) = convert(dir, &ARGS);
    let expected = format!(
        "error: org/name: no such file or directory, and no repository of this name is in the Hugging Face cache {}; if it is a \
         repository's id, download it with: hf download org/name --local-dir name\n",
        dir.join("no-cache").display()
    );
    assert_eq!((ok, text), (false, expected));

    // Wherever the cache is: huggingface_hub's variables, in its order.
    let home = dir.join("home");
    for (variable, value, cache) in [
        ("HF_HUB_CACHE", dir.join("a"), dir.join("a")),
        ("HUGGINGFACE_HUB_CACHE", dir.join("b"), dir.join("b")),
        ("HF_HOME", dir.join("c"), dir.join("c/hub")),
        (
            "XDG_CACHE_HOME",
            dir.join("d"),
            dir.join("d/huggingface/hub"),
        ),
        ("HOME", home.clone(), home.join(".cache/huggingface/hub")),
    ] {
        let only = snapshot(&cache, "0a1b");
        put(&cache.join("models--org--name/refs/main"), "0a1b\n");
        let program = env!("CARGO_BIN_EXE_smq-convert");
        let (ok, text) = run(program, dir, &ARGS, (variable, &value));
        let note = format!(
            "note: org/name is no path; its snapshot in the Hugging Face cache is taken, {}\n",
            only.display()
        );
        assert!(ok && text.contains(&note), "{variable}: {text}");
    }
    // A directory of that name is what was meant.
    llama(&dir.join("org"), "name");
    let program = env!("CARGO_BIN_EXE_smq-convert");
    let (ok, text) = run(program, dir, &ARGS, ("HF_HOME", &dir.join("c")));
    assert!(ok && !text.contains("note: "), "{text}");
}

#[test]
fn the_snapshot_is_that_of_the_branch_main() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let cache = dir.join("no-cache");
    let main = snapshot(&cache, "0a1b");
    snapshot(&cache, "2c3d");
    let (ok, text) = convert(dir, &ARGS);
    assert!(
        !ok && text.contains(
            "has no refs/main that says which snapshot is meant; give its path where you know, "
        ) && text.contains(main.to_str().unwrap()),
        "{text}"
    );
    put(&cache.join("models--org--name/refs/main"), "0a1b");
    let (ok, text) = convert(dir, &ARGS);
    assert!(ok && text.contains(main.to_str().unwrap()), "{text}");
    for commit in ["4e5f", "../../elsewhere", ""] {
        put(&cache.join("models--org--name/refs/main"), commit);
        let (ok, text) = convert(dir, &ARGS);
        assert!(
            !ok && text.contains("has no snapshot of the commit that its refs/main names"),
            "{text}"
        );
    }
}

#[test]
fn a_snapshot_of_which_a_part_is_there_is_to_be_completed() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let cache = dir.join("no-cache");
    let main = snapshot(&cache, "0a1b");
    put(&cache.join("models--org--name/refs/main"), "0a1b");
    std::fs::remove_file(main.join("model.safetensors")).unwrap();
    let remedy = "; the Hugging Face cache has a part of org/name only, download it with: hf download org/name --local-dir name\n";
    let (ok, text) = convert(dir, &ARGS);
    assert!(
        !ok && text.contains("no model.safetensors, no") && text.ends_with(remedy),
        "{text}"
    );
    let index = r#"{"weight_map": {"a": "model-00001-of-00001.safetensors"}}"#;
    put(&main.join("model.safetensors.index.json"), index);
    let (ok, text) = convert(dir, &ARGS);
    let missing = "shard model-00001-of-00001.safetensors is missing; ";
    assert!(
        !ok && text.contains(missing) && text.ends_with(remedy),
        "{text}"
    );

    for address in [
        "https://huggingface.co/org/name",
        "http://hf.co/org/name/tree/main?x=1",
    ] {
        let (ok, text) = convert(dir, &[address, "out.smq"]);
        let end =
            "is a web address, no path; download it with: hf download org/name --local-dir name\n";
        assert!(!ok && text.ends_with(end), "{text}");
    }
}

#[test]
fn what_was_given_in_place_of_a_checkpoint_is_named() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    llama(dir, "a");
    put(&dir.join("a/model.gguf"), "GGUF\u{3}");
    put(&dir.join("a/pytorch_model.bin"), "PK\u{3}\u{4}");
    put(&dir.join("notes.txt"), "hello");
    for (input, expected) in [
        (
            "a/config.json",
            "a/config.json: is the configuration of a checkpoint; give the directory that holds it and the rest of the checkpoint, a, ",
        ),
        (
            "a/model.gguf",
            "a/model.gguf: is a GGUF file, which is not read; give the directory of the Hugging Face checkpoint",
        ),
        (
            "a/pytorch_model.bin",
            "a/pytorch_model.bin: is a PyTorch file, which is not read because unpickling runs code",
        ),
        (
            "notes.txt",
            "notes.txt: is not a checkpoint; give a Hugging Face checkpoint directory, or one .safetensors file",
        ),
    ] {
        let (ok, text) = convert(dir, &[input, "out.smq"]);
        assert!(
            !ok && text.starts_with(&format!("error: {expected}")),
            "{text}"
        );
    }
    let inspect = |args: &[&str]| {
        let program = env!("CARGO_BIN_EXE_smq-inspect");
        run(program, dir, args, ("HF_HUB_CACHE", &dir.join("no-cache")))
    };
    for args in [
        &["a"][..],
        &["a", "--verify"],
        &["a", "--strip-statistics"],
        &["diff", "a", "a"],
    ] {
        let (ok, text) = inspect(args);
        let expected = "error: a: is a directory; give a .smq file, which smq-convert makes of a checkpoint directory\n";
        assert_eq!((ok, text.as_str()), (false, expected));
    }
    let (ok, text) = convert(dir, &["a", "b.smq", "--group-size", "32"]);
    assert!(ok, "{text}");
    let (ok, text) = inspect(&["b.smq", "--recheck", "b.smq"]);
    assert!(
        !ok && text.ends_with(
            "b.smq: is a .smq file already; give the checkpoint directory that it was made from\n"
        ),
        "{text}"
    );
    // What the reader has to say is said there too.
    put(&dir.join("a/model.safetensors.index.json"), "{}");
    let (ok, text) = inspect(&["b.smq", "--recheck", "a"]);
    assert!(
        ok && text
            .contains("note: a: weights are taken from model.safetensors, as transformers does"),
        "{text}"
    );
}

/// The converter reads what Python reads, and names the file that it cannot read.
#[test]
fn a_config_is_read_as_python_does() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let source = llama(dir, "a");
    let text = std::fs::read_to_string(source.join("config.json")).unwrap();
    let config = source.join("config.json");
    put(
        &config,
        &text.replacen('{', "{\"time_step_limit\": [0.0, Infinity], ", 1),
    );
    let (ok, said) = convert(dir, &["a", "out.smq", "--group-size", "32"]);
    assert!(ok, "{said}");
    for (text, expected) in [
        ("", "is empty"),
        ("[1]", "holds a JSON array, expected a JSON object"),
        (
            "{\"a\": 1,}",
            "is not valid JSON: trailing comma at line 1 column 9",
        ),
    ] {
        put(&config, text);
        let (ok, said) = convert(dir, &["a", "out.smq"]);
        assert!(
            !ok && said.starts_with(&format!("error: a/config.json: {expected}")),
            "{said}"
        );
    }
}
