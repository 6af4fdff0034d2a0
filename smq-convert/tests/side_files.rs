//! Side files travel into the .smq and out again, and nothing of another model stays beside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

mod small;

use std::fs;
use std::path::Path;

use small::{files, llama, options, put};
use smq_convert::{
    Checkpoint, ConvertError, DirectoryError, ExportFormat, ExportOptions, SynthError,
    SynthOptions, convert, export, synth,
};
use smq_format::{Dtype, Provenance, Scheme, SmqFile, SmqWriter};
use tempfile::TempDir;

const SIDE: [(&str, &str); 9] = [
    ("added_tokens.json", r#"{"<tool>": 47}"#),
    ("additional_chat_templates/rag.jinja", "RAG {{ messages }}"),
    ("additional_chat_templates/tool_use.jinja", "TOOLS\r\n\r\n"),
    ("chat_template.jinja", "{{ messages[0].content }}\n\n"),
    ("generation_config.json", r#"{"eos_token_id": 2}"#),
    ("special_tokens_map.json", r#"{"bos_token": "<s>"}"#),
    ("tokenizer.json", r#"{"version": "1.0"}"#),
    ("tokenizer_config.json", r#"{"chat_template": "INLINE"}"#),
    ("config.json", ""), // as it is
];

/// What an earlier model left: each would change what is said, here or in transformers.
const STALE: [(&str, &str); 15] = [
    ("added_tokens.json", r#"{"<stale>": 1}"#),
    ("additional_chat_templates/old.jinja", "STALE"),
    ("chat_template.jinja", "STALE"),
    ("chat_template.json", "{}"),
    ("generation_config.json", r#"{"eos_token_id": 7}"#),
    ("merges.txt", "stale"),
    ("model-00001-of-00001.safetensors", "stale"),
    ("model.safetensors.index.json", "{}"),
    ("shard-00000-model-00001-of-00001.safetensors", "stale"),
    ("special_tokens_map.json", "{}"),
    ("tekken.json", "{}"),
    ("tokenizer.json", "{}"),
    ("tokenizer.model", "stale"),
    ("tokenizer_config.json", "{}"),
    ("vocab.json", "{}"),
];

/// What is nobody's to delete.
const KEPT: [(&str, &str); 4] = [
    ("README.md", "mine"),
    ("additional_chat_templates/notes.txt", "mine"),
    ("mine.safetensors", "mine"),
    ("model.fp16.safetensors", "mine"),
];

fn checkpoint(parent: &Path, name: &str, side: &[(&str, &str)]) -> std::path::PathBuf {
    let dir = llama(parent, name);
    for (name, text) in side.iter().filter(|(_, text)| !text.is_empty()) {
        put(&dir.join(name), text);
    }
    dir
}

fn into(dir: &Path, file: &SmqFile, out: &str) -> Result<std::path::PathBuf, ConvertError> {
    let out = dir.join(out);
    let options = ExportOptions {
        format: ExportFormat::Safetensors(Dtype::F32),
        shard_bytes: 1 << 30,
        force: true,
    };
    export(file, &out, &options, &|_, _| true)?;
    Ok(out)
}

#[test]
fn a_round_trip_keeps_every_file_and_leaves_nothing_stale() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    for (case, side) in [("all", &SIDE[..]), ("none", &[])] {
        let source = checkpoint(dir, case, side);
        let smq = dir.join(format!("{case}.smq"));
        let opened = Checkpoint::open(&source).unwrap();
        convert(&opened, &smq, &options(), &|_| true).unwrap();
        let file = SmqFile::open(&smq).unwrap();
        assert_eq!(file.verify(|_| ()), []);
        let mut expected = files(&source);
        assert_eq!(file.index().files.len(), expected.len() - 1);
        for entry in &file.index().files {
            assert_eq!(file.embedded(&entry.name).unwrap(), expected[&entry.name]);
        }

        let out = dir.join(format!("{case}-out"));
        for (name, text) in STALE.iter().chain(&KEPT) {
            put(&out.join(name), text);
        }
        into(dir, &file, &format!("{case}-out")).unwrap();
        let mut found = files(&out);
        for (name, text) in KEPT {
            assert_eq!(
                found.remove(name).as_deref(),
                Some(text.as_bytes()),
                "{name}"
            );
        }
        // The weights are in f32 now, which config.json says; all else is as it was.
        let config: serde_json::Value = serde_json::from_slice(&found["config.json"]).unwrap();
        let mut original: serde_json::Value =
            serde_json::from_slice(&expected["config.json"]).unwrap();
        for key in ["dtype", "torch_dtype"]
            .into_iter()
            .filter(|key| config.get(key).is_some())
        {
            original[key] = "float32".into();
        }
        assert_eq!(config, original);
        assert!(found.remove("config.json").is_some() && expected.remove("config.json").is_some());
        assert!(found.remove("model.safetensors") != expected.remove("model.safetensors"));
        assert_eq!(found, expected);
    }
}

#[test]
fn an_adapter_beside_the_export_is_refused_and_kept() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let smq = dir.join("a.smq");
    let opened = Checkpoint::open(&llama(dir, "a")).unwrap();
    convert(&opened, &smq, &options(), &|_| true).unwrap();
    put(&dir.join("out/adapter_config.json"), "{}");
    put(&dir.join("out/adapter_model.safetensors"), "trained");
    put(&dir.join("out/tokenizer.json"), "{}");
    let before = files(&dir.join("out"));
    let error = into(dir, &SmqFile::open(&smq).unwrap(), "out").unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("adapter_config.json: an adapter's configuration"),
        "{error}"
    );
    assert_eq!(files(&dir.join("out")), before);
}

/// A .smq may embed any name that its format allows; only those of a checkpoint are written, into
/// real directories.
#[test]
fn only_known_names_are_written_and_no_link_is_followed() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let path = dir.join("crafted.smq");
    let mut writer = SmqWriter::create(&path, true).unwrap();
    for name in [
        "../x", "/x", "a/../x", "a\\x", "C:x", ".ssh", "a/.x", "a/b/x", "x\0",
    ] {
        let mut hostile = SmqWriter::create(&dir.join("hostile.smq"), true).unwrap();
        let error = hostile.add_file(name, b"x").unwrap_err().to_string();
        assert!(error.contains("is not allowed: "), "{error}");
    }
    for name in [
        "evil.py",
        "templates/x.jinja",
        "additional_chat_templates/x.py",
        "model.safetensors",
    ] {
        writer.add_file(name, b"hostile").unwrap();
    }
    writer
        .add_file("additional_chat_templates/a.jinja", b"A")
        .unwrap();
    let raw = Scheme::Raw(Dtype::F32);
    writer
        .add_tensor("a", &[1], Dtype::F32, raw, &[&[0; 4]])
        .unwrap();
    writer.finish(Provenance::default(), None).unwrap();
    let file = SmqFile::open(&path).unwrap();
    let names: Vec<_> = files(&into(dir, &file, "out").unwrap())
        .into_keys()
        .collect();
    assert_eq!(
        names,
        ["additional_chat_templates/a.jinja", "model.safetensors"]
    );
    #[cfg(unix)]
    {
        put(&dir.join("elsewhere/old.jinja"), "somebody's");
        fs::create_dir(dir.join("linked")).unwrap();
        let link = dir.join("linked/additional_chat_templates");
        std::os::unix::fs::symlink(dir.join("elsewhere"), &link).unwrap();
        into(dir, &file, "linked").unwrap();
        assert!(!link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(fs::read(link.join("a.jinja")).unwrap(), b"A");
        let elsewhere: Vec<_> = files(&dir.join("elsewhere")).into_keys().collect();
        assert_eq!(elsewhere, ["old.jinja"]);
    }
}

#[test]
fn synth_copies_every_side_file_and_leaves_nothing_stale() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let tokenizer = checkpoint(dir, "tokenizer", &SIDE);
    put(&dir.join("like.json"), &small::config().to_string());
    let out = dir.join("out");
    for (name, text) in STALE {
        put(&out.join(name), text);
    }
    let mut options = SynthOptions::new(dir.join("like.json"), &out);
    options.tokenizer = Some(tokenizer.clone());
    options.force = true;
    let summary = synth(&options, &|_, _| {}).unwrap();
    let (found, mut expected) = (files(&out), files(&tokenizer));
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    assert_eq!(summary.side_files.len(), SIDE.len());
    expected.retain(|name, _| !["config.json", "model.safetensors"].contains(&name.as_str()));
    assert!(
        expected
            .iter()
            .all(|(name, contents)| found[name] == *contents)
    );

    put(&out.join("adapter_config.json"), "{}");
    let error = synth(&options, &|_, _| {}).unwrap_err();
    assert!(
        matches!(error, SynthError::Directory(DirectoryError::Adapter { .. })),
        "{error}"
    );
}

/// Not even --force writes over what is being read.
#[test]
fn no_file_that_is_read_is_written_over() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let source = checkpoint(dir, "a", &SIDE);
    let shards = checkpoint(dir, "b", &SIDE);
    let name = "model-00001-of-00001.safetensors";
    fs::rename(shards.join("model.safetensors"), shards.join(name)).unwrap();
    let index = format!(r#"{{"weight_map": {{"model.norm.weight": "{name}"}}}}"#);
    put(&shards.join("model.safetensors.index.json"), &index);
    let mut read = 0;
    for dir in [source, shards] {
        let before = files(&dir);
        let opened = Checkpoint::open(&dir).unwrap();
        for name in before.keys() {
            let error = convert(&opened, &dir.join(name), &options(), &|_| true).unwrap_err();
            assert!(
                matches!(error, ConvertError::OutputIsInput(_)),
                "{name}: {error}"
            );
            read += 1;
        }
        assert_eq!(files(&dir), before);
    }
    assert_eq!(read, 10 + 11);
}
