//! The files beside the weights: which are read, which travel, and who is blamed for them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

mod common;

use std::path::Path;

use common::{SINGLE, weights};
use smq_format::{Provenance, SmqWriter};
use smq_model::{Checkpoint, ModelConfig, Source, Tokenizer, is_model_file, is_side_file};
use tempfile::TempDir;

fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    weights(&dir.path().join(SINGLE), &[("a", 1.0)]);
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn smq(dir: &Path, files: &[(&str, &str)]) -> std::path::PathBuf {
    let path = dir.join("model.smq");
    let mut writer = SmqWriter::create(&path, true).unwrap();
    for (name, text) in files {
        writer.add_file(name, text.as_bytes()).unwrap();
    }
    writer.finish(Provenance::default(), None).unwrap();
    path
}

#[test]
fn everything_that_decides_what_is_said_travels_in_one_order() {
    let dir = directory(&[
        ("added_tokens.json", "{}"),
        ("additional_chat_templates/tool_use.jinja", "T"),
        ("additional_chat_templates/rag.jinja", "R"),
        ("additional_chat_templates/.hidden.jinja", "H"),
        ("additional_chat_templates/README.md", "no template"),
        ("additional_chat_templates/deeper/x.jinja", "X"),
        ("chat_template.jinja", "C"),
        ("chat_template.json", "{}"),
        ("config.json", "{}"),
        ("generation_config.json", "{}"),
        ("special_tokens_map.json", "{}"),
        ("tokenizer.json", "{}"),
        ("tokenizer.model", "old"),
        ("tokenizer_config.json", "{}"),
        ("vocab.json", "{}"),
    ]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let names: Vec<_> = checkpoint
        .embedded_files()
        .map(|f| f.0.to_owned())
        .collect();
    let expected = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
        "additional_chat_templates/tool_use.jinja",
        "special_tokens_map.json",
        "added_tokens.json",
    ];
    assert_eq!(names, expected);
    assert!(names.iter().all(|name| is_side_file(name)));
    let template = checkpoint.file("additional_chat_templates/rag.jinja");
    assert_eq!(template, Some(&b"R"[..]));
    // Everything that was read, the weights too, is not to be written over.
    assert_eq!(checkpoint.paths().count(), 1 + expected.len());
}

#[test]
fn names_that_lead_elsewhere_are_no_side_files() {
    for name in [
        "../config.json",
        "/config.json",
        "additional_chat_templates/../config.json",
        "additional_chat_templates/..",
        "additional_chat_templates/.jinja",
        "additional_chat_templates/a/b.jinja",
        "additional_chat_templates\\a.jinja",
        "additional_chat_templates/a\\b.jinja",
        "additional_chat_templates/C:a.jinja",
        "additional_chat_templates/a.txt",
        "additional_chat_templates",
        "other/a.jinja",
        "CONFIG.JSON",
        ".bashrc",
        "model.safetensors",
        "",
    ] {
        assert!(!is_side_file(name), "{name}");
    }
    assert!(is_side_file("additional_chat_templates/tool use.jinja"));
    for name in [
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "chat_template.json",
    ] {
        assert!(is_model_file(name) && !is_side_file(name), "{name}");
    }
    assert!(!is_model_file("README.md"));
}

#[test]
fn the_template_that_counts_is_said_where_there_are_two() {
    let config = r#"{"chat_template": "INLINE"}"#;
    let files = [
        ("tokenizer_config.json", config),
        ("chat_template.jinja", "FILE"),
    ];
    let notes = Checkpoint::open(directory(&files).path())
        .unwrap()
        .notes()
        .join("\n");
    assert!(notes.ends_with("has another chat template; chat_template.jinja is the one that counts, as in transformers"), "{notes}");
    let same = [
        ("tokenizer_config.json", config),
        ("chat_template.jinja", "INLINE"),
    ];
    assert!(
        Checkpoint::open(directory(&same).path())
            .unwrap()
            .notes()
            .is_empty()
    );
}

/// The file at fault is named by its path, and inside a .smq by the .smq's.
#[test]
fn the_right_file_is_blamed() {
    let no_side = |name: &str, text: &str| {
        let dir = directory(&[(name, text)]);
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        (dir.path().join(name).display().to_string(), error)
    };
    for (text, expected) in [
        ("", "is empty"),
        (
            "{\"a\": 1,}",
            "is not valid JSON: trailing comma at line 1 column 9",
        ),
        ("\u{feff}{}", "begins with a byte order mark"),
        ("[]", "holds a JSON array"),
        ("{\"a\": Infinit}", "is not valid JSON"),
    ] {
        let (path, error) = no_side("config.json", text);
        assert!(error.starts_with(&format!("{path}: {expected}")), "{error}");
        // The same inside a .smq.
        let dir = TempDir::new().unwrap();
        let path = smq(
            dir.path(),
            &[("config.json", text), ("tokenizer_config.json", text)],
        );
        let source = Source::open(&path).unwrap();
        let error = ModelConfig::of(&source).unwrap_err().to_string();
        let place = format!("{}: embedded config.json: {expected}", path.display());
        assert!(error.starts_with(&place), "{error}");
        let error = source
            .json("tokenizer_config.json")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(": embedded tokenizer_config.json: "),
            "{error}"
        );
    }
    // A value, not the text.
    let config = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 0}"#;
    let dir = directory(&[("config.json", config)]);
    let error = ModelConfig::of(&Source::open(dir.path()).unwrap())
        .unwrap_err()
        .to_string();
    let path = dir.path().join("config.json").display().to_string();
    assert!(error.starts_with(&format!("{path}: ")), "{error}");
}

/// `json.loads` of Python takes them, and so does transformers.
#[test]
fn an_infinity_where_nobody_looks_is_harmless() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny");
    let text = std::fs::read_to_string(fixture.join("config.json")).unwrap();
    let text = text.replacen('{', "{\"time_step_limit\": [0.0, Infinity], \"x\": NaN,", 1);
    let dir = directory(&[("config.json", &text)]);
    let config = ModelConfig::of(&Source::open(dir.path()).unwrap()).unwrap();
    assert_eq!(
        config,
        ModelConfig::of(&Source::open(&fixture).unwrap()).unwrap()
    );
}

#[test]
fn without_tokenizer_json_what_to_do_is_said() {
    let dir = directory(&[
        ("config.json", "{}"),
        ("vocab.json", "{}"),
        ("merges.txt", ""),
    ]);
    let source = Source::open(dir.path()).unwrap();
    let error = Tokenizer::load(&source).err().unwrap().to_string();
    for words in [
        "holds no tokenizer.json",
        "vocab.json, merges.txt alone cannot be read",
        "save_pretrained",
    ] {
        assert!(error.contains(words), "{error}");
        assert!(source.notes().join("\n").contains(words));
    }
    let dir = TempDir::new().unwrap();
    let source = Source::open(&smq(dir.path(), &[("config.json", "{}")])).unwrap();
    let error = Tokenizer::load(&source).err().unwrap().to_string();
    assert!(error.ends_with("holds no tokenizer.json; convert the checkpoint again with its tokenizer.json beside it"), "{error}");
}

#[test]
fn a_quantized_directory_is_to_be_converted_first() {
    let config = r#"{"quantization_config": {"quant_method": "compressed-tensors"}}"#;
    let dir = directory(&[("config.json", config)]);
    let error = Source::open(dir.path()).unwrap_err().to_string();
    let path = dir.path().display();
    let expected = format!(
        "{path}: is a quantized checkpoint, its {path}/config.json has a quantization_config (compressed-tensors); convert it first \
         with: smq-convert {path} out.smq"
    );
    assert_eq!(error, expected);
    let dir = TempDir::new().unwrap();
    weights(
        &dir.path().join(SINGLE),
        &[("model.layers.0.mlp.up_proj.qweight", 1.0)],
    );
    let error = Source::open(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains(
            "tensor \"model.layers.0.mlp.up_proj.qweight\" holds packed integers; convert it first"
        ),
        "{error}"
    );
}
