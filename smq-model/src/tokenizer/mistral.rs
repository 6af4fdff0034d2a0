//! The words of Mistral's larger vocabularies, which older checkpoints have wrong.

use serde_json::{Map, Value, json};

use super::special::truthy;
use crate::error::{Error, Result};

/// The expression that Mistral cuts words by.
const WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TYPES: [&str; 5] = ["mistral", "mistral3", "voxtral", "ministral", "pixtral"];

/// Puts the right expression in, where tokenizer_config.json asks for it (`fix_mistral_regex`) and
/// transformers heeds it: for a checkpoint of Mistral's saved before transformers 5.
pub(super) fn mend(
    tokenizer: &mut tokenizers::Tokenizer,
    model: &Map<String, Value>,
    config: &Map<String, Value>,
) -> Result<()> {
    if !config.get("fix_mistral_regex").is_some_and(truthy)
        || tokenizer.get_vocab_size(true) <= 100_000
        || model.is_empty()
    {
        return Ok(());
    }
    let version = model.get("transformers_version").and_then(Value::as_str);
    let major = version.and_then(|v| v.split('.').next()?.parse::<u32>().ok());
    let model_type = model.get("model_type").and_then(Value::as_str);
    if major.is_some_and(|major| major >= 5) || !model_type.is_none_or(|t| TYPES.contains(&t)) {
        return Ok(());
    }
    let failure = |e: serde_json::Error| Error::Tokenizer(format!("tokenizer.json: {e}"));
    let Some(current) = tokenizer.get_pre_tokenizer() else {
        return Ok(());
    };
    let mut current = serde_json::to_value(current).map_err(failure)?;
    let words = json!({"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated",
                       "invert": false});
    let mended = match current["pretokenizers"].as_array_mut() {
        Some(list) if !list.is_empty() => {
            list[0] = words;
            current
        }
        _ => {
            if current["type"] == "Metaspace" {
                current = json!({"type": "ByteLevel", "add_prefix_space": false,
                                 "trim_offsets": true, "use_regex": false});
            }
            json!({"type": "Sequence", "pretokenizers": [words, current]})
        }
    };
    let mended: tokenizers::PreTokenizerWrapper =
        serde_json::from_value(mended).map_err(failure)?;
    tokenizer.with_pre_tokenizer(Some(mended));
    Ok(())
}
