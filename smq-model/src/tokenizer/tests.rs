//! Tokenizers against what transformers makes of the same files.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::*;

mod streams;

/// tokens-tokenizers.json: directories that transformers 5.24.0 loaded (record_tokenizers.py
/// beside it).
#[derive(Deserialize)]
struct Recorded {
    texts: Vec<String>,
    tokenizers: BTreeMap<String, Map<String, Value>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    base: String,
    /// Keys of the base's tokenizer.json that are replaced.
    patch: Map<String, Value>,
    /// The files beside it.
    files: BTreeMap<String, String>,
    /// The texts' ids with and without what stands around them; `None` where it failed.
    ids: Option<Vec<[Vec<u32>; 2]>>,
    /// Ids and their text.
    decoded: Vec<(Vec<u32>, String)>,
    /// What the library has as `special_tokens_map`.
    tokens: BTreeMap<String, String>,
}

fn recorded() -> Recorded {
    let json = include_str!("../../tests/fixtures/tokens-tokenizers.json");
    serde_json::from_str(json).unwrap()
}

fn tokenizer(base: &Map<String, Value>, files: &[(&str, String)]) -> Result<Tokenizer> {
    let json = Value::Object(base.clone()).to_string();
    let files = files.iter().map(|(name, text)| (*name, text.as_bytes()));
    let files: Vec<(&str, &[u8])> = files.chain([("tokenizer.json", json.as_bytes())]).collect();
    Tokenizer::read(&Files {
        files: &files,
        label: &str::to_owned,
    })
}

/// Prints the special tokens that a template knows, of a list of names.
fn tokens_template(names: &[&str]) -> String {
    let pair = |name: &&str| {
        format!("{{% if {name} is defined %}}{name}\u{1}{{{{ {name} }}}}\u{2}{{% endif %}}")
    };
    names.iter().map(pair).collect()
}

fn check(case: &Case, recorded: &Recorded) -> std::result::Result<(), String> {
    let mut base = recorded.tokenizers[&case.base].clone();
    base.extend(case.patch.clone());
    let names = [
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
        "image_token",
        "audio_token",
        "video_token",
        "boi",
        "foo",
    ];
    let files = case
        .files
        .iter()
        .map(|(name, text)| (name.as_str(), text.clone()));
    let template = ("chat_template.jinja", tokens_template(&names));
    let files: Vec<(&str, String)> = files.chain([template]).collect();
    let loaded = tokenizer(&base, &files);
    let Some(ids) = &case.ids else {
        let refuses = |t: &Tokenizer| {
            recorded
                .texts
                .iter()
                .any(|text| t.encode(text, true).is_err())
        };
        return match loaded.as_ref().map_or(true, refuses) {
            true => Ok(()),
            false => Err("is not refused".into()),
        };
    };
    let tokenizer = loaded.map_err(|e| e.to_string())?;
    for (text, ids) in recorded.texts.iter().zip(ids) {
        for (want, special) in ids.iter().zip([true, false]) {
            let found = tokenizer.encode(text, special).map_err(|e| e.to_string())?;
            if found != *want {
                return Err(format!("{text:?}: want {want:?}, have {found:?}"));
            }
        }
    }
    for (ids, want) in &case.decoded {
        let found = streamed(&tokenizer, ids);
        if found != *want {
            return Err(format!("{ids:?}: want {want:?}, have {found:?}"));
        }
    }
    let message = Message {
        role: "user".to_owned(),
        content: String::new(),
    };
    let chat = tokenizer.chat().ok_or("no template")?;
    let text = chat.render(&[message], true).map_err(|e| e.to_string())?;
    let pairs = text
        .split_terminator('\u{2}')
        .filter_map(|pair| pair.split_once('\u{1}'));
    let tokens = pairs.map(|(name, token)| (name.to_owned(), token.to_owned()));
    match tokens.collect::<BTreeMap<_, _>>() {
        tokens if tokens == case.tokens => Ok(()),
        tokens => Err(format!("tokens: want {:?}, have {tokens:?}", case.tokens)),
    }
}

/// The parts of a streamed text together, which are checked to be its whole.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut shown = String::new();
    for id in ids {
        shown += &stream.push(*id).unwrap();
    }
    let (rest, whole) = stream.finish().unwrap();
    assert_eq!(shown + &rest, whole, "{ids:?}");
    assert_eq!(tokenizer.decode(ids).unwrap(), whole, "{ids:?}");
    whole
}

#[test]
fn directories_are_read_as_in_transformers() {
    let recorded = recorded();
    assert!(recorded.cases.len() > 100);
    let wrong = recorded.cases.iter().filter_map(|case| {
        let error = check(case, &recorded).err()?;
        Some(format!("{}: {error}", case.name))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_id_without_an_embedding_is_refused_with_both_numbers() {
    let base = recorded().tokenizers["level"].clone();
    let files = [
        ("config.json", json!({"vocab_size": 300}).to_string()),
        (
            "tokenizer_config.json",
            json!({"cls_token": "<x>"}).to_string(),
        ),
    ];
    let tokenizer = tokenizer(&base, &files).unwrap();
    assert!(tokenizer.encode("fine", true).is_ok());
    let error = tokenizer.encode("a<x>", true).unwrap_err().to_string();
    assert!(
        error.contains("\"<x>\" has id 300") && error.contains("vocab_size is 300"),
        "{error}"
    );
}

#[test]
fn what_is_no_token_is_named_with_its_file() {
    let base = recorded().tokenizers["level"].clone();
    for (file, text, parts) in [
        (
            "tokenizer_config.json",
            json!({"bos_token": 5}),
            "bos_token holds 5",
        ),
        (
            "tokenizer_config.json",
            json!({"added_tokens_decoder": {"a": {}}}),
            "added_tokens_decoder",
        ),
        (
            "tokenizer_config.json",
            json!({"added_tokens_decoder": null}),
            "holds null",
        ),
        (
            "tokenizer_config.json",
            json!({"extra_special_tokens": [1]}),
            "holds 1",
        ),
        (
            "special_tokens_map.json",
            json!({"eos_token": ["a"]}),
            "eos_token holds [\"a\"]",
        ),
        (
            "added_tokens.json",
            json!({"<x>": "300"}),
            "<x> holds \"300\"",
        ),
        (
            "added_tokens.json",
            json!(["<x>"]),
            "expected a JSON object",
        ),
        (
            "tokenizer_config.json",
            json!({"fast_tokenizer_files": ["tokenizer.4.0.json"]}),
            "tokenizer.4.0.json",
        ),
        (
            "tokenizer_config.json",
            json!({"tokenizer_class": "T5Tokenizer"}),
            "T5Tokenizer",
        ),
    ] {
        let error = tokenizer(&base, &[(file, text.to_string())])
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains(file) || error.contains("tokenizer_class"),
            "{error}"
        );
        assert!(error.contains(parts), "{error}");
    }
}

/// A template that cannot be parsed stops chats, and nothing else.
#[test]
fn a_broken_template_leaves_the_tokenizer_alone() {
    let base = recorded().tokenizers["level"].clone();
    let broken = [("chat_template.jinja", "{% nope %}".to_owned())];
    let tokenizer = tokenizer(&base, &broken).unwrap();
    assert!(!tokenizer.encode("Hello", true).unwrap().is_empty());
    let message = Message {
        role: "user".to_owned(),
        content: "Hi".into(),
    };
    let error = tokenizer.encode_chat(&[message]).unwrap_err().to_string();
    assert!(
        error.contains("chat_template.jinja: encountered unknown tag 'nope'"),
        "{error}"
    );
}

/// `_patch_mistral_regex` of transformers: only where it is asked for, of an old checkpoint of
/// Mistral's with a large vocabulary.
#[test]
fn mistrals_words_are_mended_where_that_is_asked_for() {
    let mut base = recorded().tokenizers["level"].clone();
    let vocabulary = base["model"]["vocab"].as_object_mut().unwrap();
    for id in vocabulary.len()..100_001 {
        vocabulary.insert(format!("filler {id}"), id.into());
    }
    let ids = |model: Value, fix: bool| {
        let config = json!({"fix_mistral_regex": fix});
        let files = [
            ("config.json", model.to_string()),
            ("tokenizer_config.json", config.to_string()),
        ];
        let tokenizer = tokenizer(&base, &files).unwrap();
        tokenizer.encode("12", false).unwrap()
    };
    let plain = ids(json!({"model_type": "mistral"}), false);
    // The vocabulary has a token for 12, which Mistral's words take apart.
    assert_eq!(plain.len(), 1);
    assert_eq!(ids(json!({"model_type": "mistral"}), true).len(), 2);
    assert_eq!(
        ids(json!({"transformers_version": "4.57.3"}), true).len(),
        2
    );
    for model in [
        json!({"model_type": "llama"}),
        json!({"model_type": "mistral", "transformers_version": "5.0.0"}),
    ] {
        assert_eq!(ids(model, true), plain);
    }
}

/// Files on which the library panics, never ends, or takes the machine's memory: each is refused,
/// or used within bounds, and what goes wrong names the file.
#[test]
fn a_hostile_tokenizer_is_an_error() {
    let base = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "u", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {"u": 0, "a": 1, "##a": 2}},
    });
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let sequence = |replacement: Value, n: usize| json!({"type": "Sequence", "normalizers": vec![replacement; n]});
    let regex = |pattern: &str, to: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": to});
    let split = |pattern: Value| json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false});
    let huge = "x".repeat(10_000_000);
    let template = |id: &str, listed: &str| {
        let special = json!({"id": listed, "ids": [7], "tokens": [listed]});
        json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": id, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {listed: special},
        })
    };
    let padding = json!({"strategy": "BatchLongest", "direction": "Right", "pad_id": 0,
        "pad_to_multiple_of": 1u64 << 63, "pad_type_id": 0, "pad_token": "u"});
    let truncation = json!({"direction": "Right", "max_length": 0, "strategy": "LongestFirst",
        "stride": 5});
    let bpe = |merges: Value, prefix: &str| {
        json!({"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "continuing_subword_prefix": prefix, "end_of_word_suffix": null,
            "vocab": {"a": 0, "b": 1}, "merges": merges})
    };
    let word_piece = |key: &str, value: Value| {
        let mut model = base["model"].clone();
        model[key] = value;
        model
    };
    let cases = [
        ("normalizer", replace("", "x")),
        ("normalizer", regex("", "x")),
        ("normalizer", replace("a", &huge)),
        ("normalizer", sequence(replace("a", "aa"), 40)),
        ("normalizer", sequence(regex("a?", "aa"), 40)),
        ("normalizer", regex("(a+)+$", "")),
        ("normalizer", json!({"type": "Prepend", "prepend": huge})),
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ),
        ("normalizer", json!({"type": "Nonsense"})),
        ("pre_tokenizer", split(json!({"String": ""}))),
        ("pre_tokenizer", split(json!({"Regex": ""}))),
        ("pre_tokenizer", split(json!({"Regex": "("}))),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        (
            "pre_tokenizer",
            json!({"type": "FixedLength", "length": u64::MAX}),
        ),
        ("post_processor", template("[CLS]", "[SEP]")),
        ("post_processor", template("[CLS]", "[CLS]")),
        (
            "decoder",
            json!({"type": "CTC", "pad_token": huge, "word_delimiter_token": "|",
            "cleanup": true}),
        ),
        (
            "decoder",
            json!({"type": "Strip", "content": "a", "start": u64::MAX, "stop": u64::MAX}),
        ),
        ("padding", padding),
        ("truncation", truncation),
        ("model", bpe(json!([["a", "b"]]), "")),
        ("model", bpe(json!(["a"]), "")),
        ("model", bpe(json!([]), &huge)),
        (
            "model",
            word_piece("continuing_subword_prefix", json!(huge)),
        ),
        (
            "model",
            word_piece("max_input_chars_per_word", json!(u64::MAX)),
        ),
        ("model", word_piece("vocab", json!({}))),
        (
            "model",
            word_piece("vocab", json!({"u": u32::MAX, "a": u32::MAX})),
        ),
        (
            "model",
            json!({"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]}),
        ),
        (
            "model",
            json!({"type": "Unigram", "unk_id": 0, "vocab": []}),
        ),
        (
            "added_tokens",
            json!([{"id": u32::MAX, "content": "", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": true, "special": false}]),
        ),
    ];
    let text = "a".repeat(2000) + " ab\u{0} \u{fdfa} <s>";
    let mut refused = 0;
    for (key, value) in cases {
        let mut file = base.clone();
        file[key] = value.clone();
        let mut shown = value.to_string();
        shown.truncate(80);
        let done = tokenizer(file.as_object().unwrap(), &[]).and_then(|tokenizer| {
            let ids = tokenizer.encode(&text, true)?;
            assert!(ids.len() < 100_000, "{key} {shown}");
            tokenizer.decode(&[0, 1, 2, 7, u32::MAX])
        });
        match done {
            Ok(text) => assert!(text.len() < 100_000, "{key} {shown}"),
            Err(error) => {
                refused += 1;
                let error = error.to_string();
                assert!(
                    error.len() < 1000 && error.contains("okenizer"),
                    "{shown}: {error}"
                );
            }
        }
    }
    assert!(refused >= 12, "{refused}");
}
