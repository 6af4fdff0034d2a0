//! Tokenizers and chat templates against Hugging Face's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::{Path, PathBuf};

use smq_model::Message;
use smq_model::{Source, Tokenizer};

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn turn(role: &str, content: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: content.into(),
    }
}

/// golden.json's `chat` prompt is what Hugging Face's `apply_chat_template` makes of one turn.
#[test]
fn a_chat_turn_is_templated_as_hugging_face_does() {
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture().join("golden.json")).unwrap()).unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    let chat = prompts.iter().find(|p| p["name"] == "chat").unwrap();
    let text = chat["prompt"].as_str().unwrap();
    let content = text.strip_prefix("<|user|>\n").unwrap();
    let content = content.strip_suffix("<|end|>\n<|assistant|>\n").unwrap();
    let tokenizer = Tokenizer::load(&Source::open(&fixture()).unwrap()).unwrap();
    let messages = [turn("user", content)];
    assert_eq!(
        tokenizer.chat().unwrap().render(&messages, true).unwrap(),
        text
    );
    let ids: Vec<u32> = serde_json::from_value(chat["prompt_ids"].clone()).unwrap();
    assert_eq!(tokenizer.encode_chat(&messages).unwrap(), ids);
}

/// Text that arrives token by token is the text of all tokens, and no part of a character shows.
#[test]
fn a_stream_of_tokens_is_their_text() {
    let tokenizer = Tokenizer::load(&Source::open(&fixture()).unwrap()).unwrap();
    for text in [
        "Once upon a time",
        "naïve 漢字 🦀, \u{1F469}\u{200D}\u{1F680}",
        " \n\n  two  spaces ",
        "",
    ] {
        let ids = tokenizer.encode(text, false).unwrap();
        let mut stream = tokenizer.stream();
        let mut shown = String::new();
        for id in &ids {
            let part = stream.push(*id).unwrap();
            assert!(!part.contains('\u{FFFD}'), "{text:?} showed {part:?}");
            shown += &part;
        }
        let (rest, whole) = stream.finish().unwrap();
        assert_eq!(shown + &rest, text);
        assert_eq!(whole, text);
    }
    // An unfinished character appears at the end, as the replacement the tokenizer decodes it to.
    let ids = tokenizer.encode("a🦀", false).unwrap();
    let mut stream = tokenizer.stream();
    let mut shown = String::new();
    for id in &ids[..ids.len() - 1] {
        shown += &stream.push(*id).unwrap();
    }
    assert_eq!(shown, "a");
    let (rest, whole) = stream.finish().unwrap();
    assert!(rest.starts_with('\u{FFFD}') && whole == shown + &rest);
}

/// llama.cpp's vocabulary test of Phi-3: `.inp` has the texts, `.out` a line of ids for each.
#[test]
#[ignore = "needs SMQ_DATA_DIR, a directory with phi3_tokenizer/"]
fn phi3_vocabulary_test() {
    let data = std::env::var("SMQ_DATA_DIR").expect("SMQ_DATA_DIR is not set");
    let data = Path::new(&data).join("phi3_tokenizer");
    // A source needs weights: the fixture's serve, with the other tokenizer beside them.
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::write(
            dir.path().join(path.file_name().unwrap()),
            std::fs::read(&path).unwrap(),
        )
        .unwrap();
    }
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::write(
            dir.path().join(name),
            std::fs::read(data.join(name)).unwrap(),
        )
        .unwrap();
    }
    let tokenizer = Tokenizer::load(&Source::open(dir.path()).unwrap()).unwrap();
    let texts = std::fs::read_to_string(data.join("ggml-vocab-phi-3.gguf.inp")).unwrap();
    let ids = std::fs::read_to_string(data.join("ggml-vocab-phi-3.gguf.out")).unwrap();
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let lines: Vec<&str> = ids.lines().collect();
    // The last separator is followed by nothing.
    assert!(
        texts.len() == lines.len() || (texts.len() == lines.len() + 1 && texts.last() == Some(&""))
    );
    let mut equal = 0;
    for (text, line) in texts.iter().zip(&lines) {
        let want: Vec<u32> = line
            .split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect();
        assert_eq!(tokenizer.encode(text, false).unwrap(), want, "{text:?}");
        equal += 1;
    }
    println!("{equal} of {} texts equal", lines.len());
    let messages = [turn("system", "Be brief."), turn("user", " Hi \n there ")];
    assert_eq!(
        tokenizer.chat().unwrap().render(&messages, true).unwrap(),
        "<|system|>\nBe brief.<|end|>\n<|user|>\n Hi \n there <|end|>\n<|assistant|>\n"
    );
    // As Hugging Face's tokenizers encodes it with the same tokenizer.json, which puts a space
    // before the text after a special token. transformers 5 builds a LlamaTokenizer of its own
    // instead of using the file, without that space.
    assert_eq!(
        tokenizer.encode_chat(&messages).unwrap(),
        [
            32006, 1522, 11473, 29889, 32007, 32010, 6324, 29871, 13, 727, 29871, 32007, 32001
        ]
    );
}
