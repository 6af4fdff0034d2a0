//! Tokenizers that transformers builds in code, out of a tokenizer.json's vocabulary and merges.

use serde_json::{Map, Value, json};

use super::class::Class;
use crate::error::{Error, Result};

/// How Qwen2 divides a text into words.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen3.5's, which keep marks with their letters.
const QWEN3_5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What `class` makes of a tokenizer.json, as another tokenizer.json without added tokens.
/// `options` is tokenizer_config.json, `unknown` the unknown token.
pub(super) fn rebuilt(
    class: Class,
    mut file: Map<String, Value>,
    options: &Map<String, Value>,
    unknown: Option<&str>,
) -> Result<Value> {
    let option = |key: &str| options.get(key).filter(|value| !value.is_null());
    let flag = |key: &str| option(key).map(|value| value == &Value::Bool(true));
    let byte_level = |prefix: bool, regex: bool| {
        json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true,
               "use_regex": regex})
    };
    let words = |regex: &str, prefix: bool| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
            byte_level(prefix, false),
        ]})
    };
    let prefix = flag("add_prefix_space");
    if let (Class::Gpt2 | Class::GptNeoX, Some(Value::Null)) =
        (class, options.get("add_prefix_space"))
    {
        let message = "tokenizer_config.json: add_prefix_space is null, expected true or false";
        return Err(Error::Tokenizer(message.into()));
    }
    let nfc = json!({"type": "NFC"});
    let metaspace_decoder = |strip: bool| {
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if strip {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        json!({"type": "Sequence", "decoders": decoders})
    };
    let (model, normalizer, pre_tokenizer, decoder) = match class {
        Class::File => return Ok(Value::Object(file)),
        Class::Llama => {
            let prefix = prefix.unwrap_or(true);
            // `legacy` is off unless the file turns it on; null is off too.
            let scheme = match (prefix, flag("legacy")) {
                (false, _) => "never",
                (true, Some(true)) => "always",
                (true, _) => "first",
            };
            (
                json!({"fuse_unk": true, "byte_fallback": true}),
                Value::Null,
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme,
                       "split": false}),
                metaspace_decoder(prefix),
            )
        }
        Class::Gemma => {
            // Python's `str(None)`, where the file says that there is none.
            let unknown = unknown.unwrap_or("None");
            (
                json!({"fuse_unk": true, "byte_fallback": true, "unk_token": unknown}),
                json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
                json!({"type": "Split", "pattern": {"String": " "},
                       "behavior": "MergedWithPrevious", "invert": false}),
                metaspace_decoder(false),
            )
        }
        Class::Qwen2 | Class::Qwen3_5 => {
            let regex = if class == Class::Qwen2 {
                QWEN2
            } else {
                QWEN3_5
            };
            (
                json!({"continuing_subword_prefix": "", "end_of_word_suffix": ""}),
                nfc,
                words(regex, prefix.unwrap_or(false)),
                byte_level(true, true),
            )
        }
        Class::Gpt2 | Class::GptNeoX => (
            json!({"continuing_subword_prefix": "", "end_of_word_suffix": ""}),
            if class == Class::GptNeoX {
                nfc
            } else {
                Value::Null
            },
            byte_level(prefix.unwrap_or(false), true),
            byte_level(true, true),
        ),
    };
    let absent = |what: &str| {
        let message =
            format!("tokenizer.json has no {what}, of which {class:?}'s tokenizer is built");
        Error::Tokenizer(message)
    };
    let mut given = file.remove("model").unwrap_or_default();
    let vocabulary = given.get_mut("vocab").map(Value::take).unwrap_or_default();
    let vocabulary = match vocabulary {
        Value::Object(map) => map,
        // A list's entries have the ids of their places.
        Value::Array(list) => {
            let token = |entry: Value| match entry {
                Value::Array(pair) => pair.into_iter().next().unwrap_or_default(),
                other => other,
            };
            let tokens = list.into_iter().map(token).enumerate();
            let numbered =
                |(id, token): (usize, Value)| Some((token.as_str()?.to_owned(), id.into()));
            tokens.filter_map(numbered).collect()
        }
        _ => return Err(absent("vocabulary")),
    };
    let mut model = match model {
        Value::Object(model) => model,
        _ => Map::new(),
    };
    let merges = given.get_mut("merges").map(Value::take);
    model.insert("type".into(), "BPE".into());
    model.insert("vocab".into(), Value::Object(vocabulary));
    model.insert("merges".into(), merges.unwrap_or_else(|| json!([])));
    let post_processor = match class {
        // Built from add_bos_token and add_eos_token, which do not count beside a tokenizer.json.
        Class::GptNeoX => Value::Null,
        _ => file.remove("post_processor").unwrap_or_default(),
    };
    let mut rebuilt = Map::new();
    for (key, value) in [
        ("version", json!("1.0")),
        ("added_tokens", json!([])),
        ("normalizer", normalizer),
        ("pre_tokenizer", pre_tokenizer),
        ("post_processor", post_processor),
        ("decoder", decoder),
        ("model", Value::Object(model)),
    ] {
        rebuilt.insert(key.into(), value);
    }
    Ok(Value::Object(rebuilt))
}
